"""The state dict in what a checkpoint holds, and what wrappers put into its names.

Training code saves the state dict alone or as an entry of a dictionary, one or two levels down, and
wrappers of modules (DistributedDataParallel, torch.compile, AveragedModel, FSDP) leave segments of
their own in the names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, TypeVar

from torch import Tensor

from ris.engines.errors import CheckpointError
from ris.engines.text import echoed

T = TypeVar("T")

WRAPPERS = (
    "module",
    "_orig_mod",
    "_forward_module",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
)
"""Segments of names that wrappers of modules add, at the beginning or further in."""

PREFIXES = ("model.", "net.", "network.", "ema.")
"""What may stand before every name: the attribute that held the whole model."""

_COUNTER = "n_averaged"  # AveragedModel's own buffer, which is no weight
_DEEPEST = 2  # levels below the checkpoint itself
# beside the model: its loss, in frameworks that train both as one module, and the head of a
# language model of transformers
_BESIDE = ("criterion.", "lm_head.")
_RIVAL = 0.5  # the share of names that makes two state dicts copies of one model


class StateDict(NamedTuple):
    """The weights that a checkpoint holds."""

    place: tuple[str, ...]
    """The entries that lead to them, none where the checkpoint is the state dict itself."""

    tensors: dict[str, Tensor]
    """Its tensors by name, as they stand there."""


def find_state_dict(data: Mapping[Any, Any], path: object) -> StateDict:
    """The state dict in a checkpoint: the entry with the most tensors, or the checkpoint itself.

    Args:
        data: What was loaded.
        path: Its file, for messages.

    Raises:
        CheckpointError: Where two entries hold the weights of one model, such as a mean over the
            training beside the last ones.
    """
    found = [(set(_short_names(s.tensors).values()), s) for s in _state_dicts(data, ())]
    names, best = max(found, key=lambda pair: (len(pair[0]), -len(pair[1].place)))
    rivals = [state for others, state in found if len(names & others) > _RIVAL * len(names)]
    if len(rivals) > 1:
        places = [_code(state.place) for state in rivals]
        raise CheckpointError(
            f"{path} holds the weights of one model {len(rivals)} times, as {' and '.join(places)};"
            f" save the ones that you want alone: torch.save({places[-1]}, FILE)"
        )
    return best


def unwrapped(tensors: Mapping[str, T], path: object) -> dict[str, T]:
    """The tensors of a state dict by their names without what wrappers added.

    Raises:
        CheckpointError: Where two become one.
    """
    named: dict[str, T] = {}
    first: dict[str, str] = {}
    for name, short in _short_names(tensors).items():
        if short in named:
            raise CheckpointError(
                f"{path} holds {echoed(short)} as {echoed(first[short])} and as {echoed(name)};"
                " save the state dict of one model alone"
            )
        named[short], first[short] = tensors[name], name
    return named


def _short_names(names: Iterable[str]) -> dict[str, str]:
    """Each name without what wrappers added, by the name as it stands; counters are left out."""
    found = {}
    for name in names:
        segments = [part for part in name.split(".") if part not in WRAPPERS]
        if segments[-1:] != [_COUNTER]:
            found[name] = ".".join(segments)
    while prefix := _common_prefix(found.values()):
        found = {name: short.removeprefix(prefix) for name, short in found.items()}
    return found


def _common_prefix(names: Iterable[str]) -> str | None:
    """One of `PREFIXES` that begins all of the names but those beside the model."""
    every = [name for name in names if not name.startswith(_BESIDE)]
    return next((p for p in PREFIXES if every and all(n.startswith(p) for n in every)), None)


def _state_dicts(data: Mapping[Any, Any], place: tuple[str, ...]) -> list[StateDict]:
    """Everything that may be a state dict, from the outside in; an optimiser's state is none."""
    tensors = {str(name): value for name, value in data.items() if isinstance(value, Tensor)}
    found = [StateDict(place, tensors)]
    if len(place) < _DEEPEST:
        for name, value in data.items():
            if isinstance(value, Mapping) and "optim" not in str(name).lower():
                found += _state_dicts(value, (*place, str(name)))
    return found


def _code(place: tuple[str, ...]) -> str:
    """The entry as Python writes it."""
    return "checkpoint" + "".join(f"[{step[:40]!r}]" for step in place)
