"""The weights of ONNX graphs, also where their files are links.

The onnx package reads no weights through links, and Hugging Face's cache has nothing else
(`ris.engines.linked`).
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper
from onnx.external_data_helper import ExternalDataInfo, uses_external_data


def load_whole(path: Path) -> onnx.ModelProto:
    """The graph at `path` with its weights in memory."""
    model = onnx.load(path, load_external_data=False)
    bring_weights(model, path.parent)
    return model


def bring_weights(model: onnx.ModelProto, folder: Path) -> None:
    """Puts into the model what it keeps in data files of this folder."""
    for tensor in model.graph.initializer:
        _bring(tensor, folder)


def weight_values(tensor: TensorProto, folder: Path) -> NDArray[Any]:
    """A weight's values; the tensor itself stays as it is."""
    whole = TensorProto()
    whole.CopyFrom(tensor)
    _bring(whole, folder)
    return numpy_helper.to_array(whole)


def mapped_bytes(tensor: TensorProto, folder: Path) -> NDArray[np.uint8]:
    """The bytes of a weight that lies in a data file, mapped into memory."""
    about = ExternalDataInfo(tensor)
    shape = None if about.length is None else (int(about.length),)
    path = folder / about.location
    return np.memmap(path, np.uint8, "r", offset=int(about.offset or 0), shape=shape)


def content_of(path: Path) -> str:
    """The sha256 of a graph and its weights, wherever in which data file those lie."""
    model, digest = onnx.load(path, load_external_data=False), hashlib.sha256()
    for tensor in model.graph.initializer:
        if uses_external_data(tensor):
            digest.update(mapped_bytes(tensor, path.parent).data)
            del tensor.external_data[:]
    digest.update(model.SerializeToString(deterministic=True))
    return digest.hexdigest()


def _bring(tensor: TensorProto, folder: Path) -> None:
    if not uses_external_data(tensor):
        return
    about = ExternalDataInfo(tensor)
    with (folder / about.location).open("rb") as file:
        file.seek(about.offset or 0)
        tensor.raw_data = file.read(-1 if about.length is None else about.length)
    tensor.data_location = TensorProto.DEFAULT
    del tensor.external_data[:]
