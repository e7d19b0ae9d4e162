"""What a run keeps in its folder: states, the best weights, and the folder for itself."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

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
    read_state,
    states,
    step_of,
    write_state,
    write_weights,
    writing,
)
from ris.training.trackers import start_trackers


class Keeper:
    """Writes what a run keeps; of several processes the main one alone.

    Args:
        folder: The run's folder; it is made with the first file.
        learner: What learns.
        options: How many states are kept, and where figures go.
        metric: The figure of the validation that says which weights are best.
    """

    def __init__(self, folder: Path, learner: Learner, options: RunOptions, metric: str) -> None:
        self.folder, self.learner, self.options, self.metric = folder, learner, options, metric
        self.best: dict[str, Any] | None = None
        """The best validation so far: "step", "metric" and "value"."""

        self.rates: list[tuple[int, float]] = [(0, learner.recipe.learning_rate)]
        """From which step on which learning rate was the recipe's."""

    def resume(self, learning_rate: float | None = None) -> bool:
        """Resumes from the folder's newest state; returns whether there is one.

        learning_rate: another one from here on; None keeps that of the state.

        Raises CheckpointError for a state that cannot be read or is another recipe's.
        """
        state = read_state(self.folder)
        if state is None:
            return False
        learner = self.learner
        learner.load(state, str(states(self.folder)[-1]))
        self.best, self.rates = state["best"], state["rates"]
        if learning_rate is not None and learning_rate != learner.recipe.learning_rate:
            learner.recipe = replace(learner.recipe, learning_rate=learning_rate)
            self.rates = [*self.rates, (learner.step, learning_rate)]
        return True

    def save(self) -> None:
        """Writes the state; older ones beyond `options.keep` go.

        Raises RisError, and writes nothing, where a weight is not finite.
        """
        learner = self.learner
        if not learner.accelerator.is_main_process:
            return
        if not learner.is_finite():
            raise RisError(f"a weight is not finite after step {learner.step}; {self.advice()}")
        state = learner.state() | {"best": self.best, "rates": self.rates}
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
        value, learner = figures["all"].get(self.metric), self.learner
        if value is None or (self.best is not None and not value > self.best["value"]):
            return
        self.best = {"step": learner.step, "metric": self.metric, "value": value}
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
    def folder_held(self) -> Iterator[None]:
        """Holds the folder and opens its logs; all processes begin and end together.

        Raises RisError where another process holds it, or its state was not resumed.
        """
        accelerator, step = self.learner.accelerator, self.learner.step
        main = accelerator.is_main_process
        with writing(self.folder) if main else contextlib.nullcontext():
            if main:
                self._require_own_state()
                cut_log(self.folder, step)
                config = self.learner.recipe.to_dict()
                start_trackers(accelerator, self.options.trackers, self.folder, step, config)
                self._note_rate()
            accelerator.wait_for_everyone()
            try:
                yield
            finally:
                for tracker in accelerator.trackers:
                    tracker.finish()
                accelerator.trackers = []
        accelerator.wait_for_everyone()

    def _require_own_state(self) -> None:
        """Raises CheckpointError where the newest state is not that of the run's step."""
        found = states(self.folder)
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
