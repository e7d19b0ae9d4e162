"""The training run: steps, validation, a log, and states that a killed run goes on from."""

from __future__ import annotations

import contextlib
import functools
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

from tokenizers import Tokenizer

from ris.engines.errors import RisError, Skipped, refuse
from ris.reference.dfam.model import RISModel
from ris.training.data import Batch, batches
from ris.training.devices import make_accelerator, repeatable
from ris.training.features import FeatureStore
from ris.training.forward import encode
from ris.training.keeper import About, Keeper
from ris.training.learner import Learner, Step, Stopped
from ris.training.loading import Loading
from ris.training.measure import Asker, BatchValidation, Share, Validated, Validation, validate
from ris.training.optimisers import set_trained
from ris.training.options import HardwareOptions, RunOptions
from ris.training.pretext import PretextHeads
from ris.training.recipe import Recipe
from ris.training.run_folder import Progress, Window, append_log
from ris.training.samples import Sources
from ris.training.trackers import Note, log_picture, log_progress

PATIENCE = 5
"""So many steps in a row may fail to change the weights before the run stops."""


class Trainer:
    """A run in a folder: its states, a log and its weights (`run_folder`).

    Where Accelerate finds several processes, all of them make the same `Trainer`, and the main one
    writes.

    Args:
        folder: The run's folder; it is made with the first file.
        recipe: What the run does.
        make_model: Makes the model with its starting values.
        sources: Where samples come from.
        tokenizer: The model's tokenizer.
        hardware: What to compute with.
        options: How the run is kept and watched.
        validation: What to validate on; None: the batches of `sources.validation`.

    Raises:
        RisError: For stored features of encoders that the recipe trains, and for a metric that the
            validation does not have.
    """

    def __init__(
        self,
        folder: Path,
        recipe: Recipe,
        make_model: Callable[[], RISModel],
        sources: Sources,
        tokenizer: Tokenizer,
        hardware: HardwareOptions | None = None,
        options: RunOptions | None = None,
        validation: Validation | None = None,
    ) -> None:
        self.sources, self.tokenizer = sources, tokenizer
        self.hardware = hardware or HardwareOptions()
        self.options = options or RunOptions()
        self.accelerator = make_accelerator(self.hardware.device, mixed=recipe.mixed_precision)
        self.validation = validation or BatchValidation(
            sources.validation, sources.validation_steps, tokenizer
        )
        metric = self.options.metric or self.validation.metric
        if metric not in self.validation.metrics:
            known = ", ".join(self.validation.metrics)
            raise RisError(f"--best-by {metric}: this validation has {known}")

        model = make_model()
        set_trained(model, recipe)
        encoders = (model.sam.image_encoder, model.clip_dense)
        self._trains_encoders = any(p.requires_grad for e in encoders for p in e.parameters())
        if self.options.features is not None and self._trains_encoders:
            raise RisError("stored features need frozen image encoders; the recipe trains them")
        store = self.options.features
        words = self.accelerator.mixed_precision.replace("no", "fp32")
        self.features = FeatureStore(store, model, words) if store is not None else None
        self.learner = Learner(
            model,
            self._pretext_heads(model, recipe),
            recipe,
            self.accelerator,
            self._encode,
            fewer_activations=self.hardware.fewer_activations,
        )
        about = About(sources.training.identity, self.validation.identity, metric)
        self.keeper = Keeper(folder, self.learner, self.options, about)
        self._idle = 0  # steps in a row that changed nothing

    @property
    def step(self) -> int:
        """Steps done."""
        return self.learner.step

    @property
    def recipe(self) -> Recipe:
        """What the run does, with the learning rate that a resumed state brought."""
        return self.learner.recipe

    @property
    def model(self) -> RISModel:
        """The model that trains."""
        return self.learner.model

    def _pretext_heads(self, model: RISModel, recipe: Recipe) -> PretextHeads | None:
        """The layers of the pretext terms, where the recipe and the source have these."""
        kinds = self.sources.training.kinds
        if not (recipe.weights.pretext and kinds):
            return None
        return PretextHeads(model.config.prompt_width, model.config.clip.width, kinds)

    def _encode(self, model: RISModel, batch: Batch) -> Any:
        if self.features is not None:
            return self.features.encode(model, batch)
        return encode(model, batch.image, batch.clip_image, self._trains_encoders)

    def resume(self, learning_rate: float | None = None) -> bool:
        """`Keeper.resume`."""
        return self.keeper.resume(learning_rate)

    def run(
        self,
        *,
        log_every: int = 20,
        save_every: int = 200,
        validate_every: int = 500,
        stop: int | None = None,
        report: Callable[[Progress], None] = lambda line: None,
        skipped: Skipped = refuse,
    ) -> None:
        """Trains to the recipe's last step.

        SIGTERM and Ctrl-C, in any of the processes, let the step end and save the state before all
        leave; a second Ctrl-C leaves at once.

        Args:
            log_every: Steps between lines of the log.
            save_every: Steps between states.
            validate_every: Steps between validations. The lessons have none: they teach no masks.
            stop: Leave after this step instead; None: the recipe's last one.
            report: Called with each line of the log; one with a `note` has no figures.
            skipped: Gets a sentence for each sample that cannot be used; some may come again.

        Raises:
            KeyboardInterrupt: After such a signal.
            RisError: Where gradients are not finite, or another process writes into the folder, or
                it has a state that was not resumed; by default where a sample cannot be used.
        """
        last = min(self.recipe.steps, stop or self.recipe.steps)
        self.model.train()
        note = functools.partial(self._note, report=report)
        with self.keeper.folder_held(note), self._signals():
            try:
                window = Window()
                for groups in self.batches(last):
                    for sentence in (said for group in groups for said in group.about.left_out):
                        skipped(sentence)
                    self._take(window, groups)
                    done = self.step == last
                    due = self.step % validate_every == 0 and self.step > self.recipe.lessons
                    figures = self._validated(skipped, note) if due or done else None
                    if figures is not None or self.step % log_every == 0:
                        rate = self.recipe.rate(self.step - 1)
                        line = window.line(self.step, rate, figures)
                        self._log(line, report)
                        log_progress(self.accelerator, line, note)
                        window = Window()
                    if done or (self.step % save_every == 0 and not self._idle):
                        self.keeper.save()
                self.keeper.write_weights()
            except Stopped:
                if not self._idle:
                    self.keeper.save()
                self.accelerator.wait_for_everyone()  # until the state is written
                raise
            except KeyboardInterrupt:
                # half an update is no state to go on from: the last one stays
                if not self.learner.updating and not self._idle:
                    self.keeper.save()
                raise

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """For the block SIGTERM and Ctrl-C are noted, for the next step to find."""

        def note(number: int, frame: FrameType | None) -> None:
            if self.learner.leaving and number == signal.SIGINT:
                raise KeyboardInterrupt
            self.learner.leaving = True

        self.learner.leaving = False
        if threading.current_thread() is not threading.main_thread():  # which alone may set them
            yield
            return
        numbers = (signal.SIGTERM, signal.SIGINT)
        before = [signal.signal(number, note) for number in numbers]
        try:
            yield
        finally:
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)

    def train_step(self, groups: Sequence[Batch]) -> Step:
        """One step over this process's groups of it."""
        lesson = self.taught() and self.step < self.recipe.lessons
        with repeatable(self.accelerator.device):
            return self.learner.train_step(groups, lesson=lesson)

    def validate(self, skipped: Skipped = refuse, share: Share | None = None) -> Validated:
        """How well the weights to use do.

        Args:
            skipped: Gets a sentence for each sample that cannot be used.
            share: Which part of the questions this process asks; None: its own.
        """
        if share is None:
            share = Share(self.accelerator.process_index, self.accelerator.num_processes)
        loading = Loading(workers=self.hardware.workers, features=self.features)
        asker = Asker(self.model, self._encode, loading, share)
        with repeatable(self.accelerator.device), self.learner.weights_to_use():
            return validate(asker, self.validation, self.accelerator, skipped)

    def _take(self, window: Window, groups: Sequence[Batch]) -> None:
        """A step, and what to think of it. Raises RisError where it is time to give up."""
        step = self.train_step(groups)
        window.add(step.losses, step.norm, changed=step.changed)
        self._idle = self._idle + 1 if step.hopeless else 0
        if self._idle >= PATIENCE:
            raise RisError(
                f"the loss or its gradient is not finite in {PATIENCE} steps in a row, to step"
                f" {self.step}: {step.losses}, gradient {step.norm}; {self.keeper.advice()}"
            )

    def taught(self) -> bool:
        """Whether the recipe's first steps are lessons."""
        return self.sources.lessons is not None and self.learner.heads is not None

    def _validated(self, skipped: Skipped, note: Note) -> dict[str, dict[str, float]]:
        found = self.validate(skipped)
        self.keeper.keep_best(found.figures)
        if found.picture is not None:
            log_picture(self.accelerator, found.picture, self.step, note)
        return found.figures

    def _log(self, line: Progress, report: Callable[[Progress], None]) -> None:
        if self.accelerator.is_main_process:
            append_log(self.keeper.folder, line)
            report(line)

    def _note(self, sentence: str, report: Callable[[Progress], None]) -> None:
        """A line of the log about what happened beside the steps."""
        rate = self.recipe.rate(max(0, self.step - 1))
        self._log(Progress(self.step, {}, rate, 0.0, note=sentence), report)

    def batches(self, last: int) -> Iterator[list[Batch]]:
        """The groups of the steps from here to `last`: lessons first, then expressions."""
        config, lessons = self.model.config, 0
        if self.sources.lessons is not None:
            source, lessons = self.sources.lessons, min(self.recipe.lessons, last)
            if self.step < lessons:
                plain = replace(self._loading(), unknown_words=0.0)
                yield from batches(source, config, self.tokenizer, self.step, lessons, plain)
        first = max(self.step, lessons)
        yield from batches(
            self.sources.training, config, self.tokenizer, first, last, self._loading()
        )

    def _loading(self) -> Loading:
        return Loading(
            workers=self.hardware.workers,
            rank=self.accelerator.process_index,
            processes=self.accelerator.num_processes,
            # batches of drawn scenes are cut, those of data sets are groups already
            parts=self.recipe.parts if self.sources.training.kinds else 1,
            unknown_words=self.recipe.unknown_words,
            features=self.features,
            pinned=self.accelerator.device.type == "cuda",
        )
