"""Weight files in every format, with a handful of tensors; and whole tiny checkpoints."""

from __future__ import annotations

import functools
import io
import json
import random
import struct
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from fuzz.bundles import mutated_zip
from fuzz.json_tree import mutated_json, mutated_tree
from fuzz.kinds import Input, Kind, require
from fuzz.mutate import mutate
from ris.reference.checkpoint import WeightFiles
from ris.reference.checkpoint.files import open_weights
from ris.reference.checkpoint.loading import inspect
from ris.reference.dfam.config import PRESETS
from ris.reference.dfam.deterministic import deterministic_model

SHAPES = {"layer.weight": [3, 4], "layer.bias": [3], "scale": [], "table": [2, 5, 2]}


@functools.cache
def _state() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    state = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    return state | {"layer.bias": state["layer.bias"].half()}


@functools.cache
def _safetensors() -> bytes:
    data: bytes = save(_state(), {"format": "pt", "ris_config": '{"preset": "tiny"}'})
    return data


def _saved(zipped: bool) -> bytes:
    file = io.BytesIO()
    optimizer = {"state": {0: {"exp_avg": torch.zeros(7)}}, "param_groups": [{"lr": 5e-5}]}
    whole = {"model": _state(), "optimizer": optimizer, "iteration": 3, "name": "tiny"}
    torch.save(whole, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


zipped = functools.cache(lambda: _saved(True))
pickled = functools.cache(lambda: _saved(False))


class _Two(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        for name, value in _state().items():
            self.register_parameter(name.replace(".", "_"), torch.nn.Parameter(value.float()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale


@functools.cache
def _scripted() -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings(action="ignore"):  # TorchScript is deprecated, its files are not
        torch.jit.save(torch.jit.trace(_Two(), torch.zeros(2), check_trace=False), file)
    return file.getvalue()


@functools.cache
def _model() -> bytes:
    data: bytes = save(deterministic_model(PRESETS["tiny"], 3).state_dict(), {"format": "pt"})
    return data


def mutated_header(data: bytes, rng: random.Random) -> bytes:
    """A safetensors file with another header."""
    (size,) = struct.unpack("<Q", data[:8])
    header, rest = json.loads(data[8 : 8 + size]), data[8 + size :]
    text = mutated_json(header, rng)
    text += b" " * (-len(text) % 8)
    said = (
        len(text)
        if rng.random() < 0.9
        else rng.choice((0, 2**31, 2**63 - 1, 2**64 - 1, 100_000_001))
    )
    return struct.pack("<Q", said) + text + rest


def _make_safetensors(rng: random.Random, control: bool) -> Input:
    good = _safetensors()
    if control:
        return Input({"weights.safetensors": good}, expected=SHAPES)
    data = mutated_header(good, rng) if rng.random() < 0.6 else mutate(good, rng)
    return Input({rng.choice(("weights.safetensors", "weights.pth")): data})


def _make_zip(rng: random.Random, control: bool) -> Input:
    if control:
        return Input({"weights.pth": zipped()}, expected=SHAPES)
    data = mutate(zipped(), rng)
    if rng.random() < 0.7:
        data = mutated_zip(zipped(), rng, zipfile.ZIP_STORED)
    return Input({"weights.pth": data})


def _make_pickle(rng: random.Random, control: bool) -> Input:
    if control:
        return Input({"weights.pth": pickled()}, expected=SHAPES)
    if rng.random() < 0.3:  # another object than a state dict
        file = io.BytesIO()
        whole = {"model": {k: v.tolist() for k, v in _state().items()}, "iteration": 3}
        tree = mutated_tree(whole, rng)
        torch.save(tree, file, _use_new_zipfile_serialization=rng.random() < 0.5)
        return Input({"weights.pth": file.getvalue()})
    return Input({"weights.pth": mutate(pickled(), rng)})


def _make_torchscript(rng: random.Random, control: bool) -> Input:
    if control:
        named = {name.replace(".", "_"): shape for name, shape in SHAPES.items()}
        return Input({"weights.pt": _scripted()}, expected=named)
    data = mutate(_scripted(), rng)
    if rng.random() < 0.7:
        data = mutated_zip(_scripted(), rng, zipfile.ZIP_STORED)
    return Input({"weights.pt": data})


def _open(folder: Path, expected: Any) -> list[str]:
    (path,) = folder.iterdir()
    opened = open_weights(path)
    for name, entry in opened.entries.items():
        tensor = entry.read()
        require(tuple(tensor.shape) == entry.shape, f"{name} of another shape")
        if tensor.is_floating_point():
            float(tensor.sum())  # every byte of it can be read
    if expected is not None:
        found = {name: list(entry.shape) for name, entry in opened.entries.items()}
        require(found == expected, f"{found}")
    return []


def _make_model(rng: random.Random, control: bool) -> Input:
    good = _model()
    if control:
        return Input({"weights.safetensors": good}, expected=True)
    data = mutated_header(good, rng) if rng.random() < 0.9 else mutate(good, rng)
    return Input({"weights.safetensors": data})


def _inspect(folder: Path, expected: Any) -> list[str]:
    found = inspect(WeightFiles(checkpoint=folder / "weights.safetensors"))
    require(expected is None or found.keys.fits, "a whole model does not fit")
    return []


KINDS = {
    "weights-safetensors": Kind(_make_safetensors, _open),
    "weights-zip": Kind(_make_zip, _open),
    "weights-pickle": Kind(_make_pickle, _open),
    "weights-torchscript": Kind(_make_torchscript, _open),
    "weights-model": Kind(_make_model, _inspect),
}
