"""Tiny LISA, whose matrices `ris-calibrate weights` rounds, and files of its levels."""

from __future__ import annotations

import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from ris.calibration.samples import scene_set
from ris.export.rounded_file import About, Record, RoundedFile
from ris.export.sources import made_up

INT4 = {"": "int4"}
QUESTION = "language_question"
UP = "layers.0.mlp.up_proj.weight"
SOURCE = made_up("tiny-lisa", 0)
FEW = scene_set(2)


def matrix_of(model, name):
    """A matrix [K, N] of a model, by its parameter's name."""
    return np.ascontiguousarray(model.get_parameter(name).detach().numpy().T)


def about(source=SOURCE, **formats):
    return About(source.family, source.config, source.describe(), formats)


def changed(made, path, name, part, index, value):
    """Another file, in which a number of a matrix is another, and its check is right."""
    tensors = load_file(made)
    tensors[f"{name}.{part}"][index] = value
    with safe_open(made, "numpy") as opened:
        about = opened.metadata()
    record = Record(*(tensors[f"{name}.{one}"] for one in ("levels", "scales", "sha256", "errors")))
    tensors[f"{name}.check"] = record.check(about, name)
    save_file(tensors, path, about)
    return RoundedFile(path)
