"""Disk that an export needs while it works."""

from __future__ import annotations

import itertools
import math
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ris.calibration.weights.groups import BITS, WeightFormat, group_of
from ris.engines.errors import BundleError
from ris.export.alone import kept_folder
from ris.export.families.design import StageDesign
from ris.export.held import LEAST
from ris.export.precision import module_reason
from ris.reference.layers.deformable import Sampling
from ris.runtime.bundle_folder import behind_links
from ris.runtime.manifest import Precision

DIRECT_FROM = 8_000_000_000
"""The bytes of FP32 weights from which on a graph's matrices are rounded as they are written.

A graph of less is written and checked in FP32 first.
"""

_SLACK = 1.08  # constants that tracing makes of the code, and what a search keeps FP32
_BESIDE = 60_000  # bytes of a graph's own file, and its share of vocabulary and manifest
_EXPRESSIONS = 2  # of golden.npz


@dataclass(frozen=True)
class GraphSize:
    """The weights of a graph that is to be written, in bytes of its data file."""

    stage: str
    """The graph's stage."""

    parameters: int
    """How many weights there are, not in bytes."""

    traced: int
    """As they are traced."""

    rounded: int
    """With the matrices narrow that are to be, and the rest as it is traced; `traced` without."""

    written: int
    """As they stay."""

    precision: Precision
    """What the graph computes in."""

    weights: WeightFormat | None
    """What its matrices are stored in; None: in its precision."""

    direct: bool
    """Whether its matrices are rounded as they are written."""

    shared: str | None
    """The file that it shares with other graphs; None: it has its own."""

    tensors: Mapping[int, int]
    """Each weight as it stays, by what tells the model's weights apart."""

    golden: int
    """What golden.npz has of its outputs, before it is compressed."""


def graph_sizes(
    stages: Sequence[StageDesign],
    model: Any,
    precision: Precision,
    formats: Mapping[str, WeightFormat],
    *,
    sampling: Sampling = "native",
    large: bool = False,
) -> tuple[GraphSize, ...]:
    """The graphs of a model.

    Args:
        stages: What is to be written.
        model: The model, which may be without weights, on the meta device.
        precision: The bundle's.
        formats: What matrices are stored in, by stage, where it is not the graph's precision.
        sampling: As the graphs are built.
        large: Whether the model's large matrices are read from its files.
    """
    built = [(stage, stage.build(model, sampling)) for stage in stages]
    # together, so that what two graphs share is one thing
    return tuple(
        _size_of(stage, module, precision, formats.get(stage.name), large)
        for stage, module in built
    )


def _size_of(
    stage: StageDesign,
    module: nn.Module,
    precision: Precision,
    format: WeightFormat | None,
    large: bool,
) -> GraphSize:
    own: Precision = "fp32" if precision in stage.whole else precision
    traced = rounded = read = parameters = 0
    tensors: dict[int, int] = {}
    for name, part in module.named_modules():
        own_tensors = part.named_parameters(recurse=False), part.named_buffers(recurse=False)
        for end, tensor in itertools.chain(*own_tensors):
            if id(tensor) in tensors:
                continue
            whole, stays = tensor.nbytes, _stays(stage, own, f"{name}.{end}", part, tensor)
            parameters += tensor.numel()
            traced += whole
            is_matrix = type(part) is nn.Linear and end == "weight"
            is_read = large and is_matrix and tensor.numel() >= LEAST
            read += whole if is_read else 0
            if is_matrix and format and (group := group_of(tensor.shape[1])):
                whole = stays = round(tensor.numel() * (BITS[format] / 8 + 4 / group))
            rounded += whole
            tensors[id(tensor)] = stays
    return GraphSize(
        stage=stage.name,
        parameters=parameters,
        traced=traced,
        rounded=rounded,
        written=sum(tensors.values()),
        precision=own,
        weights=format,
        direct=format is not None and read >= DIRECT_FROM,
        shared=stage.shared_weights,
        tensors=tensors,
        golden=sum(_golden(spec.shape) for spec in stage.outputs),
    )


def _stays(stage: StageDesign, own: Precision, name: str, part: nn.Module, tensor: Tensor) -> int:
    """The bytes of a weight in the graph's precision, at most."""
    if own == "fp32" or not tensor.is_floating_point():
        return tensor.nbytes
    if own == "fp16":
        return tensor.nbytes if module_reason([name], stage.islands) else tensor.nbytes // 2
    # bfloat16 is for products, from some value on
    is_factor = name.endswith("weight") and tensor.ndim > 1 and not isinstance(part, nn.Embedding)
    return tensor.nbytes // 2 if is_factor and stage.narrow_from is None else tensor.nbytes


def _golden(shape: Sequence[int | str]) -> int:
    counts = {"images": 1, "expressions": _EXPRESSIONS}
    return 4 * math.prod(counts[axis] if isinstance(axis, str) else axis for axis in shape)


def disk_needed(graphs: Sequence[GraphSize], out: Path, *, kept: bool = False) -> int:
    """The bytes that an export takes at most while it works.

    A file that has two names counts once; a file system without such links takes more.

    Args:
        graphs: What it writes, in this order.
        out: The bundle.
        kept: Whether it keeps what it has written for one that goes on with it.
    """
    # FP16 is measured on copies in the folder for temporary files
    copies = _is_beside(Path(tempfile.gettempdir()), out)
    left = most = 0
    own: dict[str, int] = {}
    for graph in graphs:
        first = graph.rounded if graph.direct else graph.traced
        stays = first if kept else 0
        needed, own[graph.stage] = _rewritten(graph, first - stays, copies)
        most = max(most, left + stays + needed)
        left += stays + own[graph.stage]

    for group in _sharing(graphs):
        joined = _joined(group)
        most = max(most, left + joined)
        left += joined - sum(own[graph.stage] for graph in group)
    left += sum(graph.golden for graph in graphs)
    half = any(graph.precision == "fp16" for graph in graphs)
    most = max(most, left + (bundle_size(graphs) if half and copies else 0))
    return round(_SLACK * most) + _BESIDE * len(graphs)


def bundle_size(graphs: Sequence[GraphSize]) -> int:
    """The bytes of all weights of a bundle; what graphs share is there once."""
    twice = sum(sum(one.written for one in group) - _joined(group) for group in _sharing(graphs))
    return sum(graph.written for graph in graphs) - twice


def _rewritten(graph: GraphSize, file: int, copies: bool) -> tuple[int, int]:
    """What a graph's rewriting takes at most beside what is kept, and what it leaves.

    Args:
        graph: The graph.
        file: Its file as it was first written; 0 where that is the one that is kept.
        copies: Whether temporary files are on the same disk.
    """
    most = file
    if graph.weights and not graph.direct:
        most, file = file + graph.rounded, graph.rounded
    if graph.precision == "bf16":  # what was there is removed first
        most, file = max(most, graph.written), graph.written
    if graph.precision == "fp16":
        beside = max(2 * graph.written, graph.traced if copies else 0)
        most, file = file + beside, graph.written
    return most, file


def _sharing(graphs: Sequence[GraphSize]) -> list[list[GraphSize]]:
    """The graphs that share a file, file by file."""
    names = dict.fromkeys(graph.shared for graph in graphs if graph.shared)
    groups = [[graph for graph in graphs if graph.shared == name] for name in names]
    return [group for group in groups if len(group) > 1]


def _joined(graphs: Sequence[GraphSize]) -> int:
    """The bytes of one file with the weights of several graphs, what two have once."""
    # a weight that they store in two ways is there in both
    once = {pair for graph in graphs for pair in graph.tensors.items()}
    return sum(size for _, size in once)


def _is_beside(folder: Path, out: Path) -> bool:
    """Whether a folder is on the disk of `out`."""
    return folder.stat().st_dev == _nearest(out).stat().st_dev


def _nearest(out: Path) -> Path:
    """The folder above `out` that is there."""
    folder = behind_links(out).absolute().parent
    while not folder.exists():
        folder = folder.parent
    return folder


def require_disk(out: Path, needed: int) -> None:
    """Raises BundleError where the disk has less than `needed` bytes left.

    It is the disk of `out`, a folder that need not exist yet. What a stopped export into it has
    left there counts as free: this one goes on with it, or begins it anew.
    """
    left = kept_folder(out).glob("*.onnx.data")
    free = shutil.disk_usage(_nearest(out)).free + sum(file.stat().st_size for file in left)
    if free < needed:
        raise BundleError(
            f"{out}: the disk is too full: the export needs about {needed / 1e6:.0f} MB, "
            f"{free / 1e6:.0f} MB are free"
        )
