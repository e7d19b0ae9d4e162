"""Large matrices that a model does not hold: they are read from its files where they are needed.

A linear layer has a placeholder of no size to speak of, which the exporter traces like any weight.
While the layer runs, its matrix is read and then dropped again. A placeholder is NaN all over, so
that nothing computed of it goes unseen.
"""

from __future__ import annotations

import contextlib
import math
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ris.calibration.weights.groups import Rounder, WeightFormat, group_of, nearest_levels
from ris.reference.checkpoint import Inspection, build_model
from ris.reference.checkpoint.entries import Entry, give_back

LEAST = 1 << 20
"""The weights of a matrix from which on it is worth while."""

HELD_FROM = 2_000_000_000
"""The bytes of such matrices, in FP32, from which on a model does not hold them."""

_BACK: weakref.WeakKeyDictionary[nn.Module, HeldBack] = weakref.WeakKeyDictionary()


def held_back(model: nn.Module) -> HeldBack | None:
    """The matrices that a model does not hold; None where it has all."""
    found = _BACK.get(model)
    return found or None


def large_matrices(
    model: nn.Module, entries: Mapping[str, Entry], least: int | None = None
) -> list[str]:
    """The names of the weights that `HeldBack` takes out of a model; its arguments."""
    least = LEAST if least is None else least
    names = {
        f"{name}.weight"
        for name, layer in model.named_modules()
        if type(layer) is nn.Linear and layer.weight.numel() >= least
    }
    return [name for name in entries if name in names]


def held_elements(model: nn.Module, entries: Mapping[str, Entry]) -> int:
    """How many weights of files a model does not hold; its own may be on the meta device."""
    found = sum(math.prod(entries[name].shape) for name in large_matrices(model, entries))
    return found if 4 * found >= HELD_FROM else 0


def held_model(inspection: Inspection) -> nn.Module:
    """The model of an inspection whose keys fit, without its large matrices where they are many.

    Raises CheckpointError as `Inspection.require_finite`.
    """
    empty = inspection.family.empty_model(inspection.config)
    if not held_elements(empty, inspection.entries):
        whole: nn.Module = build_model(inspection)
        return whole
    names = large_matrices(empty, inspection.entries)
    model: nn.Module = build_model(inspection, without=names)
    HeldBack(model, inspection.entries)
    return model


@dataclass
class _Matrix:
    """A matrix that is not held."""

    name: str
    """Its name in the model."""

    layer: nn.Linear
    """Its layer."""

    entry: Entry
    """Where it is."""

    line: Tensor
    """The memory behind the placeholder: one row, which all rows are."""

    hooks: tuple[Any, ...] = ()
    """What reads it before the layer runs, and drops it afterwards."""

    def give_back(self, values: Tensor) -> None:
        """Lets the kernel have the pages of a matrix that is a part of its file."""
        storage = values.untyped_storage().data_ptr()
        if self.entry.mapped and storage == self.entry.pieces[0]().untyped_storage().data_ptr():
            give_back(values)


class HeldBack:
    """The matrices of a model that are read where they are needed."""

    files: tuple[Path, ...]
    """The files that they are read from."""

    def __init__(
        self, model: nn.Module, entries: Mapping[str, Entry], least: int | None = None
    ) -> None:
        """Takes the matrices out of the model's linear layers.

        Args:
            model: The model; its weights may be on the meta device.
            entries: The files' tensors, by their names in the model.
            least: The weights of a matrix from which on it is taken out; None: `LEAST`.
        """
        names = large_matrices(model, entries, least)
        self.files = tuple(sorted({entries[name].file for name in names}))
        self._by_place: dict[int, _Matrix] = {}
        self._reading = True
        self._rounded: Mapping[int, WeightFormat] = {}
        self._rounder: Rounder = nearest_levels
        for name in names:
            layer = model.get_submodule(name.removesuffix(".weight"))
            assert isinstance(layer, nn.Linear), "it was looked for"
            self._take(name, layer, entries[name])
        _BACK[model] = self

    @property
    def elements(self) -> int:
        """How many weights the matrices have together."""
        return sum(held.layer.weight.numel() for held in self._by_place.values())

    def __bool__(self) -> bool:
        return bool(self._by_place)

    def _take(self, name: str, layer: nn.Linear, entry: Entry) -> None:
        line = torch.full((layer.in_features,), float("nan"))
        held = _Matrix(name, layer, entry, line)
        self._by_place[line.data_ptr()] = held
        # its strides tell the matrix from its transpose, in whatever shape
        empty = line.as_strided((layer.out_features, layer.in_features), (0, 1))
        layer.weight = nn.Parameter(empty, requires_grad=False)

        def bring(*ignored: object) -> None:
            if self._reading:
                layer.weight.data = self._values(held)

        def drop(*ignored: object) -> None:
            if self._reading:
                held.give_back(layer.weight)
                layer.weight.data = empty

        held.hooks = (
            layer.register_forward_pre_hook(bring),
            layer.register_forward_hook(drop, always_call=True),
        )

    def _values(self, held: _Matrix) -> Tensor:
        """The matrix, rounded where it is to be."""
        values = held.entry.read()
        format = self._rounded.get(held.line.data_ptr())
        group = group_of(values.shape[1])
        if format is None or group is None:
            return values
        rounded = self._rounder(_copied(values.t()), format, group, held.name)
        return torch.from_numpy(rounded.values()).t()

    @contextlib.contextmanager
    def traced(self) -> Iterator[None]:
        """Layers run on their placeholders, to be traced."""
        self._reading = False
        try:
            yield
        finally:
            self._reading = True

    @contextlib.contextmanager
    def rounded(
        self, formats: Mapping[int, WeightFormat], rounder: Rounder = nearest_levels
    ) -> Iterator[None]:
        """Layers run with matrices as a graph stores them.

        Args:
            formats: What each is stored in, by its key as of `find`.
            rounder: How it is rounded.
        """
        self._rounded, self._rounder = formats, rounder
        try:
            yield
        finally:
            self._rounded, self._rounder = {}, nearest_levels

    def build(self, make: Callable[[], nn.Module]) -> nn.Module:
        """The module that `make` builds of the model.

        Where it computes something of a matrix, such as one that a norm is folded into, the model
        gets that matrix for good, and it is built again.
        """
        while True:
            with _Watch(self._by_place.keys()) as watch:
                module = make()
            if not watch.used:
                return module
            for place in watch.used:
                held = self._by_place.pop(place)
                held.layer.weight = nn.Parameter(held.entry.read(), requires_grad=False)
                for hook in held.hooks:
                    hook.remove()

    def read(self, layer: nn.Linear) -> NDArray[np.float32] | None:
        """A layer's matrix [K, N], as a graph reads it; None where the model has it."""
        held = self._by_place.get(layer.weight.data_ptr())
        return None if held is None else _read(held, turned=True)

    def find(self, tensor: Any) -> tuple[int, Callable[[], NDArray[Any]]] | None:
        """The key of the matrix that a traced weight is a placeholder of, and how to read it.

        None where it is a weight of its own. The exporter turns matrices around; then so is what
        is read.

        Raises:
            ValueError: Where it was computed of a placeholder.
        """
        if tensor.dtype != ir.DataType.FLOAT or len(tensor.shape) != 2:
            return None
        values = tensor.numpy()
        place = values.__array_interface__["data"][0]
        held = self._by_place.get(place)
        if held is None or 0 not in values.strides:
            if values.size and np.isnan(values[0, 0]):
                raise ValueError(f"{tensor.name} was computed of a matrix that is not here")
            return None
        turned = values.strides[1] == 0
        return place, lambda: _read(held, turned)


def _read(held: _Matrix, turned: bool) -> NDArray[Any]:
    """A matrix of its own memory, its axes swapped or not; the file's pages are given back."""
    values = held.entry.read()
    found = _copied(values.t() if turned else values)
    held.give_back(values)
    return found


def _copied(matrix: Tensor) -> NDArray[Any]:
    """A matrix in memory of its own, row by row; numpy is much slower at turning one."""
    return matrix.clone(memory_format=torch.contiguous_format).numpy()


class _Watch(TorchDispatchMode):
    """Notes which placeholders something is computed of; views of them are nothing computed."""

    def __init__(self, places: Any) -> None:
        super().__init__()
        self._places = places
        self.used: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view and func not in _NOT_COMPUTED:
            for value in torch.utils._pytree.tree_leaves((args, kwargs or {})):
                if isinstance(value, Tensor) and value.device.type == "cpu":
                    place = value.untyped_storage().data_ptr()
                    if place in self._places:
                        self.used.add(place)
        return func(*args, **(kwargs or {}))


_NOT_COMPUTED = {torch.ops.aten.detach.default, torch.ops.aten.set_.source_Storage_storage_offset}
