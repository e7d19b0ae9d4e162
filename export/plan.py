"""`ris-export --dry-run`: what was found, what is missing, and what an export would write and
need.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ris.engines.errors import RisError
from ris.export import graphs, precision
from ris.export.sources import ModelSource
from ris.export.space import disk_needed, require_disk
from ris.reference.config import ModelConfig
from ris.reference.model import empty_model
from ris.reference.tokenizer import tokenizer_from
from ris.runtime.bundle import STAGES, Precision

# measured on full-size exports: the libraries, and how often the weights are in memory at the
# end-to-end check
_LIBRARIES, _COPIES = 0.9e9, 2.0


@dataclass(frozen=True)
class GraphPlan:
    """One graph: parameters, precision, and bytes of its weights (a few layers of an FP16 graph
    stay FP32).
    """

    stage: str
    parameters: int
    precision: Precision
    bytes: int


@dataclass(frozen=True)
class Plan:
    """What an export would write and need, in bytes; problems: why it would not work, in
    sentences.
    """

    out: str
    precision: Precision
    tokenizer: str
    graphs: tuple[GraphPlan, ...]
    bundle_bytes: int
    disk_bytes: int
    memory_bytes: int
    problems: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"works": not self.problems}


def make_plan(
    source: ModelSource,
    precision_name: Precision,
    out: Path,
    vocabulary: Path | None,
    check_target: Callable[[], None],
) -> Plan:
    """The plan of an export; writes nothing and reads no weights. check_target raises where `out`
    is in the way.
    """
    config = source.config
    model = empty_model(config)
    stages = []
    for stage in STAGES:
        parameters = _size(graphs.build(stage, model))
        own: Precision = "fp32" if stage in precision.WHOLE[precision_name] else precision_name
        stages.append(GraphPlan(stage, parameters, own, parameters * (4 if own == "fp32" else 2)))
    disk = disk_needed(sum(p.numel() for p in model.parameters()))
    problems = []
    if source.inspection is not None and not source.inspection.keys.fits:
        problems.append("\n    ".join([source.inspection.summary(), *source.inspection.hints()]))
    for check in (
        lambda: tokenizer_from(vocabulary, config),
        check_target,
        lambda: require_disk(out, disk),
    ):
        try:
            check()
        except RisError as error:
            problems.append(str(error))
    return Plan(
        out=str(out),
        precision=precision_name,
        tokenizer=str(vocabulary) if vocabulary else "the built-in vocabulary",
        graphs=tuple(stages),
        bundle_bytes=sum(stage.bytes for stage in stages),
        disk_bytes=disk,
        memory_bytes=_memory(config, sum(stage.parameters for stage in stages)),
        problems=tuple(problems),
    )


def _size(module: Any) -> int:
    tensors = {id(t): t.numel() for t in (*module.parameters(), *module.buffers())}
    return sum(tensors.values())


def _memory(config: ModelConfig, parameters: int) -> int:
    """Rough peak memory of an export: libraries, weights, and the attention maps of SAM's global
    blocks.
    """
    attention = 3 * config.sam.heads * config.sam.grid**4 * 4
    return round(_LIBRARIES + _COPIES * 4 * parameters + attention)


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
        "model": source.config.to_dict(),
        "files": files,
        "plan": plan.to_dict(),
    }


def describe_config(config: ModelConfig) -> str:
    """The configuration in three lines: variant, sizes, prompts."""
    sam, clip, bert = config.sam, config.clip, config.bert
    head = {
        "none": "without no-target head",
        "linear": "with a linear no-target head",
        "mlp": "with a no-target head",
    }
    words = "the released code" if config.sparse_branch == "feed_forward" else "the supplement"
    return (
        f"{config.preset}, {config.query} variant {head[config.no_target]}, as {words} has it\n "
        f" SAM {sam.image_size} px, {sam.width} wide, {sam.depth} blocks; CLIP {clip.image_size}"
        f" px, {clip.width} wide, {clip.layers} blocks; BERT {bert.width} wide, {bert.layers}"
        f" layers, {bert.vocab_size} words\n  dense prompt"
        f" {config.dense_prompt_grid}x{config.dense_prompt_grid} {config.dense_interpolation},"
        f" sparse branch {config.sparse_branch}, {config.prompt_width} channels"
    )


def found_lines(source: ModelSource) -> list[str]:
    """What is in the files and what model that is, for people: formats, variant, sizes, who gives
    what, dead keys.
    """
    text = [f"From: {source.origin}"]
    found = source.inspection
    if found is not None:
        text += [f"  {name}: {kind}" for name, kind in found.formats.items()]
    text.append(f"Model: {describe_config(source.config)}")
    if found is not None:
        how = (
            "the checkpoint carries its configuration"
            if found.carried_config
            else "read off the keys and shapes"
        )
        text.append(f"  ({how})")
        text.append("Weights:")
        for part in found.parts:
            text.append(
                f"  {part.module:<20} "
                + ", ".join(f"{n} tensors from {f}" for f, n in part.tensors.items())
            )
        text += [f"  {note}" for note in found.notes]
        keys = found.keys
        dead = ", ".join(f"{module} {count}" for module, count in keys.dead_by_module().items())
        text.append(f"  not loaded: {len(keys.dead)} dead tensors{f' ({dead})' if dead else ''}")
        text.append(
            f"  loaded, without effect on inference: {len(keys.idle)}; absent, not needed:"
            f" {len(keys.absent)}"
        )
    return text


def lines(source: ModelSource, plan: Plan) -> list[str]:
    """What a dry run found, for people."""
    text = found_lines(source)
    if source.inspection is not None:
        text += [f"  {line}" for line in source.inspection.keys.problems()]
    text.append(f"Tokenizer: {plan.tokenizer}")
    text.append(f"Plan: {plan.out}, {plan.precision}, about {plan.bundle_bytes / 1e6:.0f} MB")
    for graph in plan.graphs:
        text.append(
            f"  {graph.stage:<19} {graph.precision} {graph.parameters / 1e6:8.2f} M weights"
            f" {graph.bytes / 1e6:8.1f} MB"
        )
    text.append(
        f"  needs about {plan.disk_bytes / 1e6:.0f} MB of disk while it works and"
        f" {plan.memory_bytes / 1e9:.1f} GB of memory"
    )
    text += [f"Would not work: {problem}" for problem in plan.problems] or [
        "Would work; nothing was written."
    ]
    return text
