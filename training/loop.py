"""The training run: steps, averaged weights, validation, and a state that a killed run resumes."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from ris.engines.errors import CheckpointError, RisError, Skipped, refuse
from ris.engines.processor import cpu_features
from ris.reference.model import RISModel
from ris.training.data import Batch, Sources, batches
from ris.training.features import FeatureStore
from ris.training.forward import ask, encode
from ris.training.losses import total_loss
from ris.training.measure import measure
from ris.training.optimisers import make_optimisers, set_rate
from ris.training.pretext import PretextHeads, pretext_loss, sentence_loss
from ris.training.recipe import Recipe
from ris.training.run_folder import (
    STATE,
    WEIGHTS,
    Progress,
    append_log,
    cut_log,
    read_state,
    write_state,
    write_weights,
)

Gradients = tuple[Tensor | None, ...]
"""The gradient of each trained parameter; None where the loss does not depend on it."""


def computes_bf16(device: torch.device) -> bool:
    """Whether `device` has instructions for bfloat16.

    A CPU without them emulates it, at a fifth of FP32's speed.
    """
    instructions = {"avx512_bf16", "amx_bf16", "bf16"}
    return device.type != "cpu" or not instructions.isdisjoint(cpu_features())


class Trainer:
    """A run in a folder: its state, a log and the weights so far (`run_folder`).

    The weights are the averaged ones where the recipe keeps an average.

    Args:
        folder: The run's folder; it is made with the first file.
        recipe: What the run does.
        make_model: Makes the model with its starting values.
        sources: Where samples come from.
        tokenizer: The model's tokenizer.
        workers: Processes that make batches.
        device: Where to compute, a name that PyTorch knows.
        features: The folder of the frozen encoders' stored outputs; None stores nothing.

    Raises:
        RisError: For stored features of encoders that the recipe trains.
    """

    def __init__(
        self,
        folder: Path,
        recipe: Recipe,
        make_model: Callable[[], RISModel],
        sources: Sources,
        tokenizer: Tokenizer,
        *,
        workers: int = 1,
        device: str = "cpu",
        features: Path | None = None,
    ) -> None:
        self.folder, self.recipe = folder, recipe
        self.sources, self.tokenizer, self.workers = sources, tokenizer, workers
        self.device = torch.device(device)
        self.bf16 = recipe.bf16 and computes_bf16(self.device)
        self.step = 0
        self._updating = False

        self.model = make_model().to(self.device)
        self.heads = self._pretext_heads()
        self.trains_encoders = self._freeze()
        if features is not None and self.trains_encoders:
            raise RisError("stored features need frozen image encoders; the recipe trains them")
        self.features = FeatureStore(features, self.model) if features is not None else None

        heads = self.heads.parameters() if self.heads else ()
        self.parameters = [*(p for p in self.model.parameters() if p.requires_grad), *heads]
        self.optimisers = make_optimisers(self.model, self.heads, recipe)
        self.average = self._first_average()
        self._threads = self._thread_pool()

    def _pretext_heads(self) -> PretextHeads | None:
        """The layers of the pretext terms, where the recipe and the source have these."""
        kinds = self.sources.training.kinds
        if not (self.recipe.weights.pretext and kinds):
            return None
        config = self.model.config
        return PretextHeads(config.prompt_width, config.clip.width, kinds).to(self.device)

    def _freeze(self) -> bool:
        """Freezes what the recipe does not train; returns whether an image encoder trains."""
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(not name.startswith(self.recipe.frozen))
        encoders = (self.model.sam.image_encoder, self.model.clip_dense)
        return any(p.requires_grad for encoder in encoders for p in encoder.parameters())

    def _first_average(self) -> dict[str, Tensor] | None:
        if not self.recipe.ema:
            return None
        state = self.model.state_dict()
        return {k: v.detach().clone() for k, v in state.items() if v.is_floating_point()}

    def _thread_pool(self) -> ThreadPoolExecutor | None:
        """A thread for each part of a batch, on a CPU: they share PyTorch's threads."""
        parts = self.recipe.parts
        if self.device.type != "cpu" or parts < 2:
            return None
        each = max(1, torch.get_num_threads() // parts)
        return ThreadPoolExecutor(parts, initializer=lambda: torch.set_num_threads(each))

    # --- the state on disk ---

    def resume(self) -> bool:
        """Resumes from the folder's state; returns whether there is one.

        Raises CheckpointError for a state that cannot be read or is another recipe's.
        """
        state = read_state(self.folder, self.device)
        if state is None:
            return False

        same_recipe = _comparable(state["recipe"]) == _comparable(self.recipe.to_dict())
        if not same_recipe or state["config"] != self._config():
            raise CheckpointError(
                f"{self.folder / STATE} belongs to another recipe or preset; give another folder or"
                " --restart"
            )
        self.model.load_state_dict(state["model"])
        if self.heads is not None:
            self.heads.load_state_dict(state["heads"])
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self.average = state["average"]
        self.step = state["step"]
        cut_log(self.folder, self.step)
        return True

    def save(self) -> None:
        """Writes the state and the weights; a file is replaced only by a whole one."""
        state = {
            "step": self.step,
            "recipe": self.recipe.to_dict(),
            "config": self._config(),
            "model": self.model.state_dict(),
            "heads": self.heads.state_dict() if self.heads is not None else None,
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            "average": self.average,
        }
        write_state(self.folder, state)
        notes = {"step": str(self.step)}
        write_weights(self.folder / WEIGHTS, self.weights(), self.model, notes)

    def weights(self) -> dict[str, Tensor]:
        """The state dict to use: averaged where the recipe keeps an average."""
        return self.model.state_dict() | (self.average or {})

    def _config(self) -> dict[str, object]:
        """The model's configuration as JSON gives it back: lists where it has tuples."""
        config: dict[str, object] = json.loads(json.dumps(self.model.config.to_dict()))
        return config

    # --- one step ---

    def train_step(self, batch: Batch) -> dict[str, float]:
        """One optimiser step; returns the loss terms by name.

        Raises RisError where the loss is not finite.
        """
        set_rate(self.optimisers, self.recipe.rate(self.step))
        found = self._each_part(batch.to(self.device).split(self.recipe.parts))
        losses = {name: sum(loss[name] for loss, _ in found) / len(found) for name in found[0][0]}
        if not math.isfinite(sum(losses.values())):
            raise RisError(
                f"the loss is not finite at step {self.step}: {losses}; resume with a lower"
                " learning rate"
            )

        self._set_gradients([gradients for _, gradients in found])
        nn.utils.clip_grad_norm_(self.parameters, self.recipe.clip_norm)

        self._updating = True
        for optimiser in self.optimisers:
            optimiser.step()
        self.step += 1
        self._average()
        self._updating = False
        return losses

    def _each_part(self, parts: list[Batch]) -> list[tuple[dict[str, float], Gradients]]:
        if self._threads is not None and len(parts) > 1:
            return list(self._threads.map(self._part_gradients, parts))
        return [self._part_gradients(part) for part in parts]

    def _part_gradients(self, batch: Batch) -> tuple[dict[str, float], Gradients]:
        """The loss terms of one part of a batch, by name, and their gradients."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            embeddings, tokens = self._encode(batch)
            if self._in_lessons():
                loss, losses = self._lesson_loss(batch, embeddings, tokens)
                # under autocast, unlike those below: outside it a BF16 run's numbers would change
                return losses, self._gradients(loss)

            index = batch.targets.image_index
            out = ask(self.model, embeddings, tokens, batch.input_ids, index, batch.category)
            weights = self.recipe.weights
            loss, losses = total_loss(self.model, self.heads, out, batch.targets, weights)
        return losses, self._gradients(loss)

    def _encode(self, batch: Batch) -> tuple[Tensor, Tensor]:
        if self.features is not None:
            return self.features.encode(self.model, batch)
        return encode(self.model, batch.image, batch.clip_image, self.trains_encoders)

    def _in_lessons(self) -> bool:
        taught = self.sources.lessons is not None and self.heads is not None
        return taught and self.step < self.recipe.lessons

    def _lesson_loss(
        self, batch: Batch, embeddings: Tensor, tokens: Tensor
    ) -> tuple[Tensor, dict[str, float]]:
        """The pretext terms that need no decoder: their weighted sum, and each as it is."""
        assert self.heads is not None
        taught = pretext_loss(self.heads, embeddings, tokens, batch.targets)
        sentences = self.model.encode_words(batch.input_ids)[1][:, 0]
        taught["sentence"] = sentence_loss(self.heads, sentences, batch.targets)
        loss = self.recipe.weights.pretext * torch.stack(list(taught.values())).sum()
        return loss, {name: float(value.detach()) for name, value in taught.items()}

    def _gradients(self, loss: Tensor) -> Gradients:
        return torch.autograd.grad(loss, self.parameters, allow_unused=True)

    def _set_gradients(self, found: list[Gradients]) -> None:
        """Gives each parameter the mean of the parts' gradients."""
        for parameter, *gradients in zip(self.parameters, *found, strict=True):
            given = [g for g in gradients if g is not None]
            parameter.grad = torch.stack(given).sum(0).div_(len(found)) if given else None

    @torch.no_grad()
    def _average(self) -> None:
        """Moves the averaged weights towards the model's."""
        if self.average is None:
            return
        # the average forgets its random start faster than its last weights
        decay = min(self.recipe.ema, (1 + self.step) / (10 + self.step))
        for name, value in self.model.state_dict().items():
            if name in self.average:
                self.average[name].lerp_(value, 1 - decay)

    # --- the run ---

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
        """Trains to the recipe's last step; Ctrl-C saves the state before it leaves.

        Args:
            log_every: Steps between lines of the log.
            save_every: Steps between states.
            validate_every: Steps between validations. The lessons have none: they teach no masks.
            stop: Leave after this step instead; None: the recipe's last one.
            report: Called with each line of the log.
            skipped: Gets a sentence for each sample that cannot be used; some may come again.

        Raises:
            RisError: Where the loss is not finite, and by default where a sample cannot be used.
        """
        last = min(self.recipe.steps, stop or self.recipe.steps)
        self.model.train()
        window = _Window()
        try:
            for batch in self._batches(last):
                for sentence in batch.raw.left_out:
                    skipped(sentence)
                window.add(self.train_step(batch))
                done = self.step == last
                due = self.step % validate_every == 0 and self.step > self.recipe.lessons
                figures = self.validate(skipped) if due or done else None
                if figures is not None or self.step % log_every == 0:
                    rate = self.recipe.rate(self.step - 1)
                    line = Progress(self.step, window.means(), rate, window.seconds(), figures)
                    window = _Window()
                    append_log(self.folder, line)
                    report(line)
                if self.step % save_every == 0 or done:
                    self.save()
        except KeyboardInterrupt:
            # half an update is no state to resume: the last saved one stays
            if not self._updating:
                self.save()
            raise

    def _batches(self, last: int) -> Iterator[Batch]:
        """The batches of the steps from here to `last`: lessons first, then expressions."""
        config, lessons = self.model.config, 0
        if self.sources.lessons is not None:
            source, lessons = self.sources.lessons, min(self.recipe.lessons, last)
            if self.step < lessons:
                yield from batches(
                    source, config, self.tokenizer, self.step, lessons, workers=self.workers
                )
        yield from batches(
            self.sources.training,
            config,
            self.tokenizer,
            max(self.step, lessons),
            last,
            unknown_words=self.recipe.unknown_words,
            workers=self.workers,
        )

    def validate(self, skipped: Skipped = refuse) -> dict[str, dict[str, float]]:
        """`measure` of the weights to use, on the validation source.

        skipped: gets a sentence for each sample that cannot be used.
        """
        own = {k: v.clone() for k, v in self.model.state_dict().items()}
        self.model.load_state_dict(self.weights())
        try:
            return measure(
                self.model,
                self.sources.validation,
                self.tokenizer,
                self.sources.validation_steps,
                bf16=self.bf16,
                workers=self.workers,
                skipped=skipped,
            )
        finally:
            self.model.load_state_dict(own)


class _Window:
    """The steps since the last line of the log."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._steps, self._start = 0, time.perf_counter()

    def add(self, losses: dict[str, float]) -> None:
        for name, value in losses.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._steps += 1

    def means(self) -> dict[str, float]:
        return {name: value / self._steps for name, value in self._sums.items()}

    def seconds(self) -> float:
        return time.perf_counter() - self._start


def _comparable(recipe: dict[str, object]) -> str:
    """The recipe without its length, as text: a longer run is the same run."""
    return json.dumps(recipe | {"steps": 0, "decay": 0}, sort_keys=True)
