"""The whole export: a pass of the reference, a graph a stage, and the bundle around them.

Each graph is checked right after it is written. An export that fails or is killed leaves the target
as it was (`ris.runtime.bundle_folder`).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from ris import __version__
from ris.calibration.numerics import Ranges, emulated
from ris.engines import EngineOptions, Graph, create
from ris.engines.errors import BundleError, ParityError
from ris.export import precision
from ris.export.bf16 import convert_to_bf16
from ris.export.families import DESIGNS
from ris.export.families.design import Questions, StageDesign, keep_fp32
from ris.export.fp16 import make_fp16
from ris.export.onnx_writer import name_input, write_onnx
from ris.export.operations import count_operations
from ris.export.reference_pass import Arrays, Asked, ReferencePass, reference_pass
from ris.export.resizing import require_resizes, resize_inside, resizes_inside
from ris.export.space import disk_needed, require_disk
from ris.reference.families import FAMILIES
from ris.reference.family import Config
from ris.reference.layers.deformable import Sampling
from ris.runtime.bundle import MANIFEST, Bundle, hash_files
from ris.runtime.bundle_folder import building
from ris.runtime.loading import open_model
from ris.runtime.manifest import (
    FORMAT_VERSION,
    Categories,
    GraphEntry,
    Host,
    Manifest,
    Precision,
    Source,
    StageParity,
    joined,
)
from ris.runtime.parity import (
    TOLERANCES,
    ParityReport,
    check_model,
    check_stage,
    failed_rows,
    no_target_row,
    thresholded_rows,
)
from ris.runtime.wiring import problems

Report = Callable[[str], None]
"""Called with the name of each step as it begins."""

Resizing = Literal["host", "graph"]
"""What resizes maps between two graphs: the host, or the graph that takes them."""

_GOLDEN = "golden.npz"


@dataclass(frozen=True)
class ExportOptions:
    """How a model becomes a bundle."""

    precision: Precision = "fp32"
    """What the graphs compute in."""

    fp32: tuple[str, ...] = ()
    """The graphs that stay FP32 beside those that the family keeps so."""

    sampling: Sampling = "native"
    """How deformable attention samples bilinearly: with GridSample nodes ("native") or "gather"."""

    resizing: Resizing = "host"
    """What resizes maps between two graphs."""

    vocabulary: Path | None = None
    """A vocab.txt or tokenizer.json; None for the preset's own."""

    overwrite: bool = False
    """Replace a bundle that is there."""

    ranges: Ranges | None = None
    """What was measured on an FP32 bundle of the same model; None where nothing was.

    An FP16 graph keeps in FP32 what these ranges show to be too large.
    """


@dataclass(frozen=True)
class ExportResult:
    """What was written."""

    path: Path
    """The bundle's folder."""

    manifest: Manifest
    """The bundle's manifest, as it was written."""

    parity: ParityReport
    """How the bundle as a whole agrees with the reference."""


def steps(family: str, config: Config) -> int:
    """How often an export of this model reports a step, the searches for islands aside."""
    return 4 + len(DESIGNS[family].stages(config))


def export_bundle(
    make_model: Callable[[], Any],
    config: Config,
    out: Path,
    *,
    family: str,
    source: Source,
    options: ExportOptions = ExportOptions(),
    report: Report = lambda step: None,
) -> ExportResult:
    """Exports a model into the bundle `out`.

    The parity of an FP16 bundle, in its manifest, is that of true FP16 arithmetic.

    Args:
        make_model: Makes the reference model; called once, when `out` and the vocabulary are known
            to be right.
        config: The model's configuration.
        out: The folder to write.
        family: The model's family, a name of `ris.reference.families`.
        source: What the manifest says about the weights.
        options: Precision, sampling, resizing, vocabulary, overwriting and ranges.
        report: Called with the name of each step as it begins.

    Raises:
        BundleError: Where the family's design contradicts itself, `out` is in the way or the disk
            is full.
        CheckpointError: For a vocabulary that does not fit the model.
        ParityError: Where a graph does not agree with the reference.
    """
    design = DESIGNS[family]
    stages = keep_fp32(design.stages(config), options.fp32, options.precision)
    host = design.host(config)
    if options.resizing == "graph":
        require_resizes(host, family)
        stages, host = resizes_inside(stages, host)
    planned = _planned(family, config, source, options, stages, host)
    with building(out, options.overwrite) as folder:
        tokenizer = FAMILIES[family].tokenizer_of(options.vocabulary, config, source.trained)
        report("weights")
        model = make_model()
        require_disk(out, disk_needed(sum(p.numel() for p in model.parameters())))

        report("reference pass")
        questions = design.questions(config, source.trained)
        asked = _asked(questions, host)
        passed = reference_pass(FAMILIES[family], model, tokenizer, host, asked)
        entries, parity = _export_stages(stages, planned, model, passed, folder, options, report)
        if host.categories is not None and design.categories is not None:
            _write_categories(folder, host.categories, *design.categories(model))
        del model  # half of the memory, before the graphs are opened together

        report("end to end")
        passed = passed.first_image()
        files = _write_files(folder, tokenizer, passed)
        manifest = dataclasses.replace(planned, stages=entries, files=files, parity=parity)
        checked = _check_end_to_end(Bundle(folder, manifest), passed.arrays)

        report("bundle")
        manifest = dataclasses.replace(
            manifest, parity=parity | checked.rows, mask_iou=checked.mask_iou
        )
        (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    return ExportResult(out, manifest, checked)


def _planned(
    family: str,
    config: Config,
    source: Source,
    options: ExportOptions,
    stages: Sequence[StageDesign],
    host: Host,
) -> Manifest:
    """The manifest as the family's design has it, without what is known once files are written.

    Args:
        family: The model's family.
        config: Its configuration.
        source: What the manifest says about the weights.
        options: The options of the export.
        stages: The graphs.
        host: What the runtime does beside them.

    Raises:
        BundleError: Where the design contradicts itself.
    """
    design = DESIGNS[family]
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        family=family,
        writer=_writer(),
        source=source,
        model=json.loads(json.dumps(config.to_dict())),  # tuples become lists, as in the file
        precision=options.precision,
        host=host,
        stages=tuple(_planned_entry(stage, options) for stage in stages),
        answer=design.answer(config),
        golden=_GOLDEN,
        files={},
        parity={},
        mask_iou=0.0,
    )
    if found := problems(manifest):
        raise BundleError(f"the design of the family {family} contradicts itself: {joined(found)}")
    return manifest


def _planned_entry(stage: StageDesign, options: ExportOptions) -> GraphEntry:
    """A stage's entry, without what is known once its graph is written."""
    return GraphEntry(
        name=stage.name,
        file=f"graphs/{stage.name}.onnx",
        sha256={},
        precision="fp32",
        fp32_islands={},
        inputs=stage.inputs,
        outputs=stage.outputs,
        parameters=0,
        sampling=options.sampling if stage.samples else None,
        bfloat16=stage.bfloat16,
        bfloat16_from=stage.narrow_from.value if stage.narrow_from else None,
        int8_by_default=stage.int8_by_default,
        thresholded=dict(stage.thresholded),
    )


def _asked(questions: Questions, host: Host) -> Asked:
    """Two images, the second mirrored, and three expressions; one image where graphs take one."""
    images, index = [questions.image], [0, 0, 0]
    if host.image_index is not None:
        images.append(np.ascontiguousarray(questions.image[:, ::-1]))
        index = [0, 1, 0]
    return Asked(images, questions.expressions, questions.categories, index)


def _export_stages(
    stages: Sequence[StageDesign],
    planned: Manifest,
    model: Any,
    reference: ReferencePass,
    folder: Path,
    options: ExportOptions,
    report: Report,
) -> tuple[tuple[GraphEntry, ...], dict[str, StageParity]]:
    """Writes and checks every graph.

    Args:
        stages: What to write.
        planned: The manifest as far as it is known.
        model: The reference model.
        reference: The reference pass.
        folder: The bundle's folder.
        options: The options of the export.
        report: Called with the name of each stage, and with what takes long.

    Returns:
        The manifest's entries, and the parity of the graphs' outputs.
    """
    (folder / "graphs").mkdir()
    entries: list[GraphEntry] = []
    parity: dict[str, StageParity] = {}
    for stage in stages:
        report(stage.name)
        entry, rows = _export_stage(stage, planned, model, reference, folder, options, report)
        entries.append(entry)
        parity |= rows
    return tuple(entries), parity


def _export_stage(
    stage: StageDesign,
    planned: Manifest,
    model: Any,
    reference: ReferencePass,
    folder: Path,
    options: ExportOptions,
    report: Report,
) -> tuple[GraphEntry, dict[str, StageParity]]:
    """Writes one graph in its precision and checks it on two batch sizes.

    Args:
        stage: What to write.
        planned: The manifest as far as it is known.
        model: The reference model.
        reference: The reference pass.
        folder: The bundle's folder.
        options: The options of the export.
        report: Called with what takes long.

    Returns:
        The manifest's entry, and the parity of the graph's outputs.
    """
    entry, host = planned.graphs[stage.name], planned.host
    file, no_target = entry.file, no_target_row(planned)
    graph = Graph(stage.name, folder / file, stage.inputs, stage.outputs)
    module = stage.build(model, options.sampling)
    traced = dataclasses.replace(stage, inputs=stage.module_inputs)
    scopes = write_onnx(module, traced, graph.path, one_image=host.image_index is None)
    if stage.resizes:
        scopes = resize_inside(graph.path, scopes, stage)
    if (narrow := stage.narrow_from) is not None:
        name_input(graph.path, scopes, narrow.module, narrow.value)
    # before the precision changes: the shapes and the measured graph are those of FP32
    operations = count_operations(graph.path)
    _require_own_ranges(options.ranges, stage.name, hash_files(folder, _files(folder, file)))

    golden = reference.first_image().arrays
    converted = _convert(stage, graph, scopes, golden, options, no_target, report)
    written = dataclasses.replace(
        entry,
        sha256=hash_files(folder, _files(folder, file)),
        precision=converted.precision,
        fp32_islands=converted.kept,
        parameters=precision.count_parameters(graph.path),
        operations=operations,
    )
    rows = _check_graph(graph, converted.precision, reference, planned)
    return written, converted.rounded or rows


class _Converted(NamedTuple):
    """What became of an FP32 graph."""

    precision: Precision
    """What the graph computes in now."""

    kept: dict[str, str]
    """What stays FP32, by node name, with the reason; "*" is the whole graph."""

    rounded: dict[str, StageParity]
    """The parity that true FP16 arithmetic gives; empty for other precisions."""


def _convert(
    stage: StageDesign,
    graph: Graph,
    scopes: dict[str, list[str]],
    reference: Arrays,
    options: ExportOptions,
    no_target: str | None,
    report: Report,
) -> _Converted:
    """Rewrites the FP32 graph's file in the precision that the options ask for.

    Args:
        stage: The graph's stage.
        graph: The graph.
        scopes: For every node the paths of the modules it came from.
        reference: The arrays of one image.
        options: The options of the export.
        no_target: The row of the no-target logits.
        report: Called with what takes long.
    """
    if (reason := stage.whole.get(options.precision)) is not None:
        return _Converted("fp32", {"*": reason}, {})
    if options.precision == "fp16":
        known = options.ranges.stages[stage.name] if options.ranges else None
        kept, rounded = make_fp16(
            graph,
            scopes,
            stage.islands,
            reference,
            known,
            no_target,
            lambda what: report(f"{stage.name}: {what}"),
        )
        return _Converted("fp16", kept, rounded)
    if options.precision == "bf16":
        return _Converted("bf16", convert_to_bf16(graph.path, stage.narrow_from), {})
    return _Converted("fp32", {}, {})


def _require_own_ranges(ranges: Ranges | None, stage: str, sha256: dict[str, str]) -> None:
    """Raises BundleError where the ranges were measured on another graph than this one."""
    if ranges and ranges.sha256.get(stage) != sha256:
        raise BundleError(
            f"the ranges were measured on another {stage} than the one exported here; run "
            "ris-calibrate ranges on an FP32 bundle of this model with the same options"
        )


def _check_graph(
    graph: Graph, graph_precision: Precision, reference: ReferencePass, planned: Manifest
) -> dict[str, StageParity]:
    """The graph's parity over the whole reference pass.

    planned: the manifest as far as it is known, which says what is judged how.
    Raises ParityError where it does not agree there, or on a single expression.
    """
    engine = create("onnxruntime", EngineOptions())
    with engine.load(graph) as session:
        rows = check_stage(graph.stage, session, reference.arrays)
        single = check_stage(graph.stage, session, reference.first_image(expressions=1).arrays)

    tolerance = TOLERANCES[graph_precision]
    special = no_target_row(planned), thresholded_rows(planned)
    _require(failed_rows(rows, tolerance, *special), graph.stage)
    _require(failed_rows(single, tolerance, *special), f"{graph.stage} with batch 1")
    return rows


def _check_end_to_end(bundle: Bundle, golden: Arrays) -> ParityReport:
    """The masks of the bundle against the reference's; FP16 as its hardware computes it."""
    exact: AbstractContextManager[Bundle] = (
        emulated(bundle) if bundle.manifest.precision == "fp16" else nullcontext(bundle)
    )
    with exact as checked, open_model(checked, engine="onnxruntime") as runtime:
        report = check_model(runtime, golden)
    way_out = ""
    if narrow := _narrow_rows(bundle.manifest):
        worst = max(narrow, key=narrow.__getitem__)
        way_out = f". --fp32 {worst} keeps FP32 the graph that is farthest off by itself"
    _require(report.failures, "the bundle", way_out)
    return report


def _narrow_rows(manifest: Manifest) -> dict[str, float]:
    """The largest relative error of each graph that is not FP32."""
    return {
        stage.name: max(
            row.relative
            for name, row in manifest.parity.items()
            if name.startswith(f"{stage.name}.")
        )
        for stage in manifest.stages
        if stage.precision != "fp32"
    }


def _require(failures: Sequence[str], what: str, way_out: str = "") -> None:
    """Raises ParityError where there are failures."""
    if failures:
        raise ParityError(
            f"{what} does not agree with the PyTorch reference: {'; '.join(failures)}{way_out}"
        )


def _writer() -> dict[str, str]:
    """The versions of what writes the bundle."""
    packages = ("torch", "onnx", "onnxscript")
    return {"ris-runtime": __version__} | {name: metadata.version(name) for name in packages}


def _write_categories(
    folder: Path, files: Categories, names: Sequence[Any], features: NDArray[np.float32]
) -> None:
    """Writes the names and features of the categories, each row of the JSON on its own line."""
    for name in (files.names, files.features):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
    rows = ",\n".join(json.dumps(entry) for entry in names)
    (folder / files.names).write_text(f"[\n{rows}\n]\n", encoding="utf-8")
    np.save(folder / files.features, features)


def _write_files(folder: Path, tokenizer: Tokenizer, reference: ReferencePass) -> dict[str, str]:
    """Writes the tokenizer and golden.npz.

    Returns the sha256 of everything that is not a graph, by name.
    """
    text, table = reference.host.text, reference.host.categories
    (folder / text.tokenizer).parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / text.tokenizer))
    np.savez_compressed(folder / _GOLDEN, **reference.golden())  # type: ignore[arg-type]

    names = [text.tokenizer, _GOLDEN]
    if table is not None:
        names += [table.names, table.features]
    return hash_files(folder, names)


def _files(folder: Path, graph: str) -> list[str]:
    """The names of a graph's files: the graph, and its data where it has any."""
    data = f"{graph}.data"
    return [graph, data] if (folder / data).exists() else [graph]
