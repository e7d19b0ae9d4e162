"""`ris-export --dry-run`: what was found, what is missing, and what an export would write."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ris.calibration.weights.groups import WeightFormat
from ris.engines.errors import RisError
from ris.export.families import DESIGNS
from ris.export.families.design import keep_fp32
from ris.export.held import held_elements
from ris.export.sources import ModelSource
from ris.export.space import GraphSize, bundle_size, disk_needed, graph_sizes, require_disk
from ris.export.weights import formats_of
from ris.reference.families import FAMILIES
from ris.runtime.manifest import Precision

# measured on full-size exports
_LIBRARIES = 0.9e9  # bytes
_COPIES = 2.0  # of the weights in memory at the end-to-end check


@dataclass(frozen=True)
class GraphPlan:
    """One graph that would be written."""

    stage: str
    """The graph's stage."""

    parameters: int
    """The number of weights."""

    precision: Precision
    """What the graph would compute in."""

    bytes: int
    """The size of its weights in this precision; the FP32 layers of an FP16 graph add a little."""

    weights: WeightFormat | None = None
    """What its matrices would be stored in; None: in its precision."""


@dataclass(frozen=True)
class Plan:
    """What an export would write and need."""

    out: str
    """The bundle to write."""

    precision: Precision
    """What the graphs would compute in."""

    tokenizer: str
    """Where the vocabulary comes from, in words."""

    graphs: tuple[GraphPlan, ...]
    """The graphs, in the order in which they run."""

    bundle_bytes: int
    """The size of the bundle."""

    disk_bytes: int
    """The disk that the export needs while it works."""

    memory_bytes: int
    """The memory that it needs at most, roughly."""

    problems: tuple[str, ...]
    """Why it would not work, in sentences; empty where it would."""

    def to_dict(self) -> dict[str, Any]:
        """The fields, and `works`."""
        return asdict(self) | {"works": not self.problems}


def make_plan(
    source: ModelSource,
    precision_name: Precision,
    out: Path,
    vocabulary: Path | None,
    check_target: Callable[[], None],
    fp32: Sequence[str] = (),
    weights: Mapping[str, WeightFormat] = MappingProxyType({}),
) -> Plan:
    """The plan of an export; writes nothing. Reads the weights, to find those that are no numbers.

    Args:
        source: The model to export.
        precision_name: What the graphs are to compute in.
        out: The bundle to write.
        vocabulary: A file as of `Family.tokenizer`; None for the preset's own.
        check_target: Raises RisError where `out` is in the way.
        fp32: The graphs that stay FP32 because they were named.
        weights: What matrices are stored in, as of `ExportOptions.weights`.

    Raises:
        RisError: Where one of the graphs is none of the model's.
    """
    family, design, config = FAMILIES[source.family], DESIGNS[source.family], source.config
    model = family.empty_model(config)
    designs = keep_fp32(design.stages(config), fp32, precision_name)
    formats = formats_of(designs, weights)
    found = source.inspection
    large = found is not None and held_elements(model, found.entries) > 0
    sizes = graph_sizes(designs, model, precision_name, formats, large=large)
    stages = tuple(map(_graph_plan, sizes))
    disk = disk_needed(sizes, out, kept=large)

    problems = []
    if source.inspection is not None and not source.inspection.keys.fits:
        problems.append("\n    ".join([source.inspection.summary(), *source.inspection.hints()]))
    if source.inspection is not None:
        problems += _refusals(source.inspection.require_finite)
    problems += _refusals(
        lambda: family.tokenizer_of(vocabulary, config, source.inspection is not None),
        check_target,
        lambda: require_disk(out, disk),
    )
    return Plan(
        out=str(out),
        precision=precision_name,
        tokenizer=str(vocabulary) if vocabulary else "the built-in vocabulary",
        graphs=stages,
        bundle_bytes=bundle_size(sizes),
        disk_bytes=disk,
        memory_bytes=round(
            _LIBRARIES
            + _COPIES * sum(s.bytes if s.weights else 4 * s.parameters for s in stages)
            + design.memory(config)
        ),
        problems=tuple(problems),
    )


def _graph_plan(size: GraphSize) -> GraphPlan:
    return GraphPlan(size.stage, size.parameters, size.precision, size.written, size.weights)


def _refusals(*checks: Callable[[], object]) -> list[str]:
    """The messages of the checks that raise RisError."""
    messages = []
    for check in checks:
        try:
            check()
        except RisError as error:
            messages.append(str(error))
    return messages


def report(source: ModelSource, plan: Plan) -> dict[str, Any]:
    """Everything that a dry run found, for JSON."""
    found = source.inspection
    files = None
    if found is not None:
        files = {
            "formats": found.formats,
            "carried_config": found.carried_config,
            "parts": {part.module: part.tensors for part in found.parts},
            "notes": list(found.notes),
            "keys": found.keys.to_dict(),
        }
    return {
        "origin": source.origin,
        "family": source.family,
        "model": source.config.to_dict(),
        "files": files,
        "plan": plan.to_dict(),
    }


def found_lines(source: ModelSource) -> list[str]:
    """What is in the files and what model that is, for people.

    Formats, family, variant, sizes, which file gives what, and keys that are not used.
    """
    text = [f"From: {source.origin}"]
    words = DESIGNS[source.family].words(source.config)
    found = source.inspection
    if found is None:
        return [*text, f"Family: {source.family}", f"Model: {words}"]

    text += [f"  {name}: {kind}" for name, kind in found.formats.items()]
    text += [f"Family: {source.family}", f"Model: {words}"]
    if found.carried_config:
        text.append("  (the checkpoint carries its configuration)")
    else:
        text.append("  (read off the keys and shapes)")

    text.append("Weights:")
    width = max(20, *(len(part.module) for part in found.parts))
    for part in found.parts:
        givers = ", ".join(f"{count} tensors from {file}" for file, count in part.tensors.items())
        text.append(f"  {part.module:<{width}} {givers}")
    text += [f"  {note}" for note in found.notes]

    keys = found.keys
    dead = ", ".join(f"{module} {count}" for module, count in keys.dead_by_module().items())
    text.append(f"  not loaded: {len(keys.dead)} dead tensors{f' ({dead})' if dead else ''}")
    text.append(
        f"  loaded, without effect on inference: {len(keys.idle)}; "
        f"absent, not needed: {len(keys.absent)}"
    )
    return text


def lines(source: ModelSource, plan: Plan) -> list[str]:
    """What a dry run found, for people."""
    text = found_lines(source)
    if source.inspection is not None:
        text += [f"  {line}" for line in source.inspection.keys.problems()]

    text.append(f"Tokenizer: {plan.tokenizer}")
    text.append(f"Plan: {plan.out}, {plan.precision}, about {plan.bundle_bytes / 1e6:.0f} MB")
    width = max(len(graph.stage) for graph in plan.graphs)
    for graph in plan.graphs:
        weights = f"{graph.parameters / 1e6:8.2f} M weights {graph.bytes / 1e6:8.1f} MB"
        stored = f", matrices {graph.weights}" if graph.weights else ""
        text.append(f"  {graph.stage:<{width + 1}} {graph.precision} {weights}{stored}")
    text.append(
        f"  needs about {plan.disk_bytes / 1e6:.0f} MB of disk while it works and "
        f"{plan.memory_bytes / 1e9:.1f} GB of memory"
    )

    if not plan.problems:
        text.append("Would work; nothing was written.")
    text += [f"Would not work: {problem}" for problem in plan.problems]
    return text
