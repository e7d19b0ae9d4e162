"""How far TensorRT's compiler is: one fraction from its nested phases, and the way to stop it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


def make_monitor(trt: Any, report: Callable[[str, float], None], stop: threading.Event) -> Any:
    """A progress monitor of the module `trt`.

    For each percent of the build that is done it calls `report` with the phase that made the last
    step and the fraction that is done. Once `stop` is set, the build ends at its next step.
    """

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.tree = PhaseTree()
            self.lock = threading.Lock()  # TensorRT calls from several threads

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            with self.lock:
                self.tree.start(phase_name, parent_phase, num_steps)

        def phase_finish(self, phase_name: str) -> None:
            with self.lock:
                self.tree.finish(phase_name)

        def step_complete(self, phase_name: str, step: int) -> bool:
            with self.lock:
                before = self.tree.fraction
                self.tree.step(phase_name, step)
                after = self.tree.fraction
            if int(after * 100) > int(before * 100):
                report(phase_name, after)
            return not stop.is_set()

    return Monitor()


@dataclass
class _Phase:
    """A phase that has begun and not ended."""

    parent: str | None
    """The phase that it is a part of, None for the outermost."""

    steps: int
    """The number of its steps, at least 1."""

    done: int = 0
    """The number of steps that are done."""


class PhaseTree:
    """Turns nested phases with steps into one fraction, 0 to 1, that never goes back."""

    fraction: float
    """The share of the whole build that is done."""

    def __init__(self) -> None:
        self.fraction = 0.0
        self._phases: dict[str, _Phase] = {}

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """A phase begins; TensorRT uses a name again once the phase has ended."""
        self._phases[name] = _Phase(parent, max(steps, 1))

    def step(self, name: str, step: int) -> None:
        """A phase has done the step of this index."""
        if phase := self._phases.get(name):
            phase.done = max(phase.done, step + 1)
        self._update(name)

    def finish(self, name: str) -> None:
        """A phase has ended."""
        self._phases.pop(name, None)

    def _update(self, name: str) -> None:
        """A phase's own fraction is part of the step that its parent is at."""
        inner = 0.0
        current: str | None = name
        seen: set[str] = set()
        while current in self._phases and current not in seen:
            seen.add(current)
            phase = self._phases[current]
            inner = min(1.0, (phase.done + inner) / phase.steps)
            current = phase.parent
        self.fraction = max(self.fraction, inner)
