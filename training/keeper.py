"""What a run keeps in its folder: states, the best weights, and the folder for itself."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object

from ris.engines.errors import CheckpointError, RisError
from ris.training.learner import Learner
from ris.training.options import RunOptions
from ris.training.run_folder import (
    BEST,
    WEIGHTS,
    Progress,
    append_log,
    complete_weights,
    cut_log,
    digest,
    files_of_another,
    read_state,
    states,
    step_of,
    write_begun,
    write_state,
    write_weights,
    writing,
)
from ris.training.trackers import Note, finish_trackers, start_trackers


@dataclass(frozen=True)
class About:
    """What a run trains on, and by what it is judged."""

    data: str
    """`Source.identity` of what it trains on."""

    validation: str
    """`Validation.identity`."""

    metric: str
    """The figure of the validation that says which weights are best."""

    @property
    def judged(self) -> tuple[str, str]:
        """What makes two figures comparable: the metric, and what was asked."""
        return self.metric, self.validation


class Keeper:
    """Writes what a run keeps; of several processes the main one alone.

    Args:
        folder: The run's folder; it is made with the first file.
        learner: What learns.
        options: How many states are kept, and where figures go.
        about: What the run trains on, and by what it is judged.
    """

    def __init__(self, folder: Path, learner: Learner, options: RunOptions, about: About) -> None:
        self.folder, self.learner, self.options, self.about = folder, learner, options, about
        self.best: dict[str, Any] | None = None
        """The best validation so far: "step", "metric", "value" and "validation", what was asked.
        """

        self.rates: list[tuple[int, float]] = [(0, learner.recipe.learning_rate)]
        """From which step on which learning rate was the recipe's."""

    def resume(self, learning_rate: float | None = None) -> bool:
        """Resumes from the folder's newest state; returns whether there is one.

        learning_rate: another one from here on; None keeps that of the state.

        Raises CheckpointError for a state that cannot be read, or is of another recipe or other
        data, and where the run's processes do not have the same one.
        """
        state = read_state(self.folder)
        if state is not None:
            self._load(state, learning_rate)
        self._require_agreement()
        return state is not None

    def _load(self, state: dict[str, Any], learning_rate: float | None) -> None:
        learner, source = self.learner, states(self.folder)[-1]
        if state.get("data") != self.about.data:
            raise CheckpointError(
                f"{source} was trained on {state.get('data', 'unknown data')}, and this is"
                f" {self.about.data}; give the data that the run began with, another folder or"
                " --restart"
            )
        learner.load(state, str(source))
        self.rates = state["rates"]
        # figures of another kind, or of other questions, say nothing about which weights are better
        best = state["best"]
        if best and self.about.judged == (best["metric"], best.get("validation")):
            self.best = best
        if learning_rate is not None and learning_rate != learner.recipe.learning_rate:
            learner.recipe = replace(learner.recipe, learning_rate=learning_rate)
            self.rates = [*self.rates, (learner.step, learning_rate)]

    def _require_agreement(self) -> None:
        """Raises CheckpointError where the run's processes do not go on from the same weights."""
        learner = self.learner
        if learner.accelerator.num_processes == 1:
            return
        own = (learner.step, digest({k: p.detach() for k, p in learner.trained.items()}))
        found = gather_object([own])
        if len(set(found)) > 1:
            steps = ", ".join(str(step) for step, _ in found)
            raise CheckpointError(
                f"the run's processes do not go on from one state: they are at steps {steps};"
                f" {self.folder} has to be a folder that all machines share"
            )

    def save(self) -> None:
        """Writes the state; older ones beyond `options.keep` go.

        Raises RisError, and writes nothing, where a weight is not finite.
        """
        learner = self.learner
        if not learner.accelerator.is_main_process:
            return
        if not learner.is_finite():
            raise RisError(f"a weight is not finite after step {learner.step}; {self.advice()}")
        state = learner.state() | {
            "best": self.best,
            "rates": self.rates,
            "data": self.about.data,
        }
        write_state(self.folder, state, self.options.keep)

    def write_weights(self) -> None:
        """Writes the whole model, and adds to the best weights what does not train."""
        learner = self.learner
        if not learner.accelerator.is_main_process:
            return
        notes = {"step": str(learner.step)}
        write_weights(self.folder / WEIGHTS, learner.weights(), learner.model, notes)
        complete_weights(self.folder / BEST, learner.model.state_dict(), learner.model)

    def keep_best(self, figures: dict[str, dict[str, float]]) -> None:
        """Writes what trains where it validated better than ever."""
        value, learner = figures["all"].get(self.about.metric), self.learner
        if value is None or not math.isfinite(value):
            return
        if self.best is not None and not value > self.best["value"]:
            return
        metric, validation = self.about.judged
        self.best = {
            "step": learner.step,
            "metric": metric,
            "value": value,
            "validation": validation,
        }
        if learner.accelerator.is_main_process:
            notes = {name: str(what) for name, what in self.best.items()}
            weights = learner.trained_weights()
            write_weights(self.folder / BEST, weights, learner.model, notes)

    def advice(self) -> str:
        """What to do about a run that went wrong."""
        found = states(self.folder)
        kept = f"{found[-1]} is kept" if found else "no state was written"
        return f"{kept}; go on with a lower --learning-rate"

    @contextlib.contextmanager
    def folder_held(self, note: Note) -> Iterator[None]:
        """Holds the folder and opens its logs; all processes begin and end together.

        note: gets a sentence where a log cannot be ended as it should. Raises RisError where
        another process holds the folder, its state was not resumed, or a log cannot begin.
        """
        accelerator, step = self.learner.accelerator, self.learner.step
        main = accelerator.is_main_process
        with writing(self.folder) if main else contextlib.nullcontext():
            if main:
                self._require_own_state()
                config = self.learner.recipe.to_dict()
                write_begun(self.folder, config, self.about.data)
                cut_log(self.folder, step)
                start_trackers(accelerator, self.options.trackers, self.folder, step, config)
                self._note_rate()
            accelerator.wait_for_everyone()
            try:
                yield
            finally:
                finish_trackers(accelerator, note)
        accelerator.wait_for_everyone()

    def _require_own_state(self) -> None:
        """Raises CheckpointError where the newest state is not that of the run's step.

        And where the folder has a run without any state, as earlier versions left it.
        """
        found = states(self.folder)
        if not found and (there := files_of_another(self.folder)):
            raise CheckpointError(
                f"{self.folder} has {', '.join(there)} and no state to go on from; give another"
                " folder, or --restart, which keeps it under another name"
            )
        if found and step_of(found[-1]) != self.learner.step:
            raise CheckpointError(f"{found[-1]} was not resumed; give another folder or resume it")

    def _note_rate(self) -> None:
        """A line of the log where the learning rate was changed here."""
        step = self.learner.step
        if len(self.rates) > 1 and self.rates[-1][0] == step:
            before, now = self.rates[-2][1], self.rates[-1][1]
            note = f"learning rate {before:g} -> {now:g}"
            rate = self.learner.recipe.rate(step)
            append_log(self.folder, Progress(step, {}, rate, 0.0, note=note))
