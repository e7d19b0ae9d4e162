"""What a run would need and take: what is missing, memory, disk and time, measured on this device.

Nothing is written. The step is measured with one of its groups, and counted up.
"""

from __future__ import annotations

import resource
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ris.engines.errors import RisError, Skipped
from ris.reference.checkpoint import WeightFiles
from ris.runtime.commands.console import size
from ris.training.features import store_sentence
from ris.training.initialise import starting_model
from ris.training.loop import Trainer
from ris.training.measure import Share
from ris.training.prepare import Request, model_config, prepare_run, read_data, require_encoders
from ris.training.refer_source import ReferSource, ReferSubset

Say = Callable[[str], None]


def dry_run(out: Path, request: Request, validate_every: int, say: Say, skipped: Skipped) -> None:
    """Says what is missing; where nothing is, measures and says what the run takes.

    Args:
        out: The run's folder.
        request: The run.
        validate_every: Steps between validations.
        say: Gets each line.
        skipped: Gets a sentence for each image of a data set whose file is missing.

    Raises:
        RisError: Where something is missing.
    """
    missing = list(_missing(request))
    for sentence in missing:
        say(f"missing: {sentence}")
    if missing:
        raise RisError(f"{len(missing)} missing, named above; nothing was measured")

    quiet = replace(request.options, features=None, trackers=())
    trainer = prepare_run(out, replace(request, options=quiet), skipped)
    times = _measure(trainer, skipped)
    _say_size(trainer, say)
    _say_memory(trainer, say)
    _say_disk(trainer, out, request, say)
    _say_time(trainer, times, validate_every, say)


def _missing(request: Request) -> Iterable[str]:
    """A sentence for each file and package that the run needs and lacks."""
    files = WeightFiles(**request.model.files)
    names = () if request.data.drawn else request.data.names
    checks: list[Callable[[], Any]] = [partial(read_data, request.data, n, "train") for n in names]
    if not request.data.drawn:
        validation = request.data.validates_on or request.data.names[0]
        split = request.data.validation_split
        checks.append(partial(read_data, request.data, validation, split))

    def weights() -> None:
        config = model_config(request.model)
        if not request.model.random_encoders:
            require_encoders(config, request.recipe, files)
        starting_model(config, request.recipe, files, lambda line: None)

    for check in (*checks, weights):
        try:
            check()
        except RisError as error:
            yield str(error)


@dataclass(frozen=True)
class _Times:
    """What the parts of a run take."""

    lessons: int
    """How many of the steps are lessons."""

    lesson: float
    """Seconds of one; 0 where there is none."""

    steps: int
    """How many other steps there are."""

    step: float
    """Seconds of one; 0 where there is none."""

    validation: float
    """Seconds of a validation."""


def _measure(trainer: Trainer, skipped: Skipped) -> _Times:
    """One lesson, one other step and a part of a validation, as far as the run has them."""
    steps = trainer.recipe.steps
    lessons = min(trainer.recipe.lessons, steps) if trainer.taught() else 0
    return _Times(
        lessons=lessons,
        lesson=measure_step(trainer, 0) if lessons else 0.0,
        steps=steps - lessons,
        step=measure_step(trainer, lessons) if lessons < steps else 0.0,
        validation=_measure_validation(trainer, skipped),
    )


def measure_step(trainer: Trainer, number: int, rounds: int = 2) -> float:
    """Seconds of step `number` of this process: its groups, as the last of some rounds took.

    One group is computed, and counted up.
    """
    trainer.model.train()
    trainer.learner.step = number
    groups = next(trainer.batches(number + 1))
    for _ in range(rounds):
        start = time.perf_counter()
        trainer.learner.step = number
        trainer.train_step(groups[:1])
        _wait(trainer)
        seconds = time.perf_counter() - start
    return seconds * len(groups)


def _measure_validation(trainer: Trainer, skipped: Skipped) -> float:
    """Seconds of a whole validation, by one batch of it."""
    start, steps = time.perf_counter(), trainer.validation.steps
    trainer.validate(skipped, Share(0, steps))
    _wait(trainer)
    return (time.perf_counter() - start) * steps


def _wait(trainer: Trainer) -> None:
    if trainer.accelerator.device.type == "cuda":
        torch.cuda.synchronize()


def _say_size(trainer: Trainer, say: Say) -> None:
    recipe, source = trainer.recipe, trainer.sources.training
    trained = sum(p.numel() for p in trainer.learner.trained.values()) / 1e6
    whole = sum(p.numel() for p in trainer.model.parameters()) / 1e6
    say(f"model: {whole:.1f} million parameters, {trained:.1f} million of them train")
    if isinstance(source, ReferSource):
        passes = recipe.steps * recipe.samples / source.sentences
        say(
            f"data: {source.sentences} sentences about {source.images} images; {recipe.steps} steps"
            f" of {recipe.samples} samples are {passes:.1f} passes"
        )


def peak_memory(device: torch.device) -> int:
    """The most bytes that this process has held so far: on the GPU, or of the computer's memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _say_memory(trainer: Trainer, say: Say) -> None:
    device = trainer.accelerator.device
    used = size(peak_memory(device))
    if device.type == "cuda":
        there = torch.cuda.mem_get_info()[1]
        say(f"memory: {used} of {size(there)} on the GPU, at one group at a time")
    else:
        say(f"memory: {used} of this process, at one group at a time")


def _say_disk(trainer: Trainer, out: Path, request: Request, say: Say) -> None:
    """Says what the run's folder takes, and that of the features.

    Args:
        trainer: The run.
        out: Its folder.
        request: The run as it was asked for.
        say: Gets each line.
    """
    state = _bytes(trainer.learner.state())
    best = _bytes(trainer.learner.trained_weights())
    whole = _bytes(trainer.model.state_dict())
    keep = request.options.keep
    there = next(place for place in (out, *out.absolute().parents) if place.exists())
    say(
        f"disk: a state is {size(state)}, {keep} are kept and one is being written; with the best"
        f" and the last weights {size((keep + 1) * state + best + 2 * whole)}"
        f" ({size(shutil.disk_usage(there).free)} are free)"
    )
    source, subset = trainer.sources.training, trainer.sources.validation
    if request.options.features and isinstance(source, ReferSource):
        more = subset.images if isinstance(subset, ReferSubset) else 0
        images = source.images + more
        say(f"disk: {store_sentence(request.options.features, trainer.model.config, images)}")


def _say_time(trainer: Trainer, times: _Times, every: int, say: Say) -> None:
    """Says what the run takes.

    Args:
        trainer: The run.
        times: What its parts take.
        every: Steps between validations.
        say: Gets each line.
    """
    count = trainer.recipe.steps // every - times.lessons // every  # the lessons have none
    whole = times.lesson * times.lessons
    parts = []
    if times.lessons:
        parts.append(f"{times.lesson:.2f} s a lesson, {_hours(whole)} for {times.lessons} lessons")
    taken = times.step * times.steps
    parts.append(f"{times.step:.2f} s a step, {_hours(taken)} for {times.steps} steps")
    asked = times.validation * count
    parts.append(f"{times.validation:.1f} s a validation, {_hours(asked)} for {count}")
    said = f"time: {'; '.join(parts)}; {_hours(whole + taken + asked)} in all"
    if isinstance(trainer.sources.training, ReferSource):
        said += ". Every image was encoded; --features saves that from the second pass on"
    say(said)


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.1f} hours" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"


def _bytes(value: Any) -> int:
    """The bytes of all tensors in nested dicts and lists."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, dict):
        return sum(map(_bytes, value.values()))
    return sum(map(_bytes, value)) if isinstance(value, list | tuple) else 0
