"""The whole export: a pass of the reference, five graphs, and the bundle around them.

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
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

from ris import __version__
from ris.calibration.numerics import Ranges, emulated
from ris.engines import EngineOptions, Graph, create
from ris.engines.errors import BundleError, ParityError
from ris.export import graphs, precision
from ris.export.bf16 import convert_to_bf16
from ris.export.fp16 import make_fp16
from ris.export.live_reference import Arrays, first_image_only, reference_arrays
from ris.export.onnx_writer import name_input, write_onnx
from ris.export.operations import count_operations
from ris.export.sample import CATEGORIES, EXPRESSIONS, sample_image, sample_scene
from ris.export.space import disk_needed, require_disk
from ris.reference.categories import category_entries
from ris.reference.config import ModelConfig
from ris.reference.model import RISModel
from ris.reference.pixel_decoder import Sampling
from ris.reference.preprocess import CLIP_MEAN, CLIP_STD, SAM_MEAN, SAM_STD
from ris.reference.tokenizer import tokenizer_from
from ris.runtime.bundle import BF16_FROM, MANIFEST, STAGES, Bundle, hash_files
from ris.runtime.bundle_folder import building
from ris.runtime.loading import open_model
from ris.runtime.manifest import (
    FORMAT_VERSION,
    Categories,
    DensePrompt,
    GraphEntry,
    Manifest,
    Postprocess,
    Precision,
    Preprocess,
    Source,
    SquareImage,
    StageParity,
    Text,
)
from ris.runtime.parity import TOLERANCES, ParityReport, check_model, check_stage, failed_rows

Report = Callable[[str], None]
"""Called with the name of each step as it begins."""


@dataclass(frozen=True)
class ExportOptions:
    """How a model becomes a bundle."""

    precision: Precision = "fp32"
    """What the graphs compute in."""

    sampling: Sampling = "native"
    """How deformable attention samples bilinearly: with GridSample nodes ("native") or "gather"."""

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


def export_bundle(
    make_model: Callable[[], RISModel],
    config: ModelConfig,
    out: Path,
    *,
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
        source: What the manifest says about the weights.
        options: Precision, sampling, vocabulary, overwriting and ranges.
        report: Called with the name of each step as it begins.

    Raises:
        BundleError: Where `out` is in the way or the disk is full.
        CheckpointError: For a vocabulary that does not fit the model.
        ParityError: Where a graph does not agree with the reference.
    """
    with building(out, options.overwrite) as folder:
        tokenizer = tokenizer_from(options.vocabulary, config)
        report("weights")
        model = make_model()
        require_disk(out, disk_needed(sum(p.numel() for p in model.parameters())))

        report("reference pass")
        reference = _reference_pass(model, tokenizer, source)
        entries, parity = _export_stages(model, reference, folder, options, report)
        categories = _write_categories(model, folder) if config.query == "category" else None
        del model  # half of the memory, before the graphs are opened together

        report("end to end")
        golden = first_image_only(reference)
        files = _write_files(folder, tokenizer, golden, categories)
        contents = _Contents(entries, parity, categories, files)
        manifest = _manifest(config, source, options, contents)
        checked = _check_end_to_end(Bundle(folder, manifest), golden)

        report("bundle")
        manifest = dataclasses.replace(
            manifest, parity=parity | checked.rows, mask_iou=checked.mask_iou
        )
        (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    return ExportResult(out, manifest, checked)


def _reference_pass(model: RISModel, tokenizer: Tokenizer, source: Source) -> Arrays:
    """Two images, the second mirrored, and three expressions through PyTorch.

    The trained demo is shown a drawn scene, the kind that it was trained on: on any other picture
    an agreement of its masks would mean little.
    """
    is_trained_demo = source.trained and model.config.preset == "demo"
    image, expressions = sample_scene() if is_trained_demo else (sample_image(), EXPRESSIONS)
    images = [image, np.ascontiguousarray(image[:, ::-1])]
    return reference_arrays(model, tokenizer, images, expressions, CATEGORIES, [0, 1, 0])


def _export_stages(
    model: RISModel, reference: Arrays, folder: Path, options: ExportOptions, report: Report
) -> tuple[dict[str, GraphEntry], dict[str, StageParity]]:
    """Writes and checks every graph.

    Returns the manifest's entries by stage, and the parity of the graphs' outputs.
    """
    (folder / "graphs").mkdir()
    entries: dict[str, GraphEntry] = {}
    parity: dict[str, StageParity] = {}
    for stage in STAGES:
        report(stage)
        entries[stage], rows = _export_stage(stage, model, reference, folder, options, report)
        parity |= rows
    return entries, parity


def _export_stage(
    stage: str,
    model: RISModel,
    reference: Arrays,
    folder: Path,
    options: ExportOptions,
    report: Report,
) -> tuple[GraphEntry, dict[str, StageParity]]:
    """Writes one graph in its precision and checks it on two batch sizes.

    Args:
        stage: The graph's stage.
        model: The reference model.
        reference: The arrays of the reference pass.
        folder: The bundle's folder.
        options: The options of the export.
        report: Called with what takes long.

    Returns:
        The manifest's entry, and the parity of the graph's outputs.
    """
    signature = graphs.signature(stage, model.config)
    file = f"graphs/{stage}.onnx"
    graph = Graph(stage, folder / file, signature.inputs, signature.outputs)
    scopes = write_onnx(graphs.build(stage, model, options.sampling), signature, graph.path)
    if stage in BF16_FROM:
        name_input(graph.path, scopes, "pyramid", BF16_FROM[stage])
    # before the precision changes: the shapes and the measured graph are those of FP32
    operations = count_operations(graph.path)
    _require_own_ranges(options.ranges, stage, hash_files(folder, _files(folder, file)))

    converted = _convert(graph, scopes, reference, options, report)
    entry = GraphEntry(
        file=file,
        sha256=hash_files(folder, _files(folder, file)),
        precision=converted.precision,
        fp32_islands=converted.kept,
        inputs=signature.inputs,
        outputs=signature.outputs,
        parameters=precision.count_parameters(graph.path),
        sampling=options.sampling if stage == "fusion" else None,
        operations=operations,
    )
    rows = _check_graph(graph, converted.precision, reference)
    return entry, converted.rounded or rows


class _Converted(NamedTuple):
    """What became of an FP32 graph."""

    precision: Precision
    """What the graph computes in now."""

    kept: dict[str, str]
    """What stays FP32, by node name, with the reason; "*" is the whole graph."""

    rounded: dict[str, StageParity]
    """The parity that true FP16 arithmetic gives; empty for other precisions."""


def _convert(
    graph: Graph,
    scopes: dict[str, list[str]],
    reference: Arrays,
    options: ExportOptions,
    report: Report,
) -> _Converted:
    """Rewrites the FP32 graph's file in the precision that the options ask for."""
    whole = precision.WHOLE[options.precision]
    if graph.stage in whole:
        return _Converted("fp32", {"*": whole[graph.stage]}, {})
    if options.precision == "fp16":
        known = options.ranges.stages[graph.stage] if options.ranges else None
        kept, rounded = make_fp16(
            graph,
            scopes,
            first_image_only(reference),
            known,
            lambda what: report(f"{graph.stage}: {what}"),
        )
        return _Converted("fp16", kept, rounded)
    if options.precision == "bf16":
        return _Converted("bf16", convert_to_bf16(graph.path, BF16_FROM.get(graph.stage)), {})
    return _Converted("fp32", {}, {})


def _require_own_ranges(ranges: Ranges | None, stage: str, sha256: dict[str, str]) -> None:
    """Raises BundleError where the ranges were measured on another graph than this one."""
    if ranges and ranges.sha256.get(stage) != sha256:
        raise BundleError(
            f"the ranges were measured on another {stage} than the one exported here; run "
            "ris-calibrate ranges on an FP32 bundle of this model with the same options"
        )


def _check_graph(
    graph: Graph, graph_precision: Precision, reference: Arrays
) -> dict[str, StageParity]:
    """The graph's parity over the whole reference pass.

    Raises ParityError where it does not agree there, or on a single expression.
    """
    engine = create("onnxruntime", EngineOptions())
    with engine.load(graph) as session:
        rows = check_stage(graph.stage, session, reference)
        single = check_stage(graph.stage, session, first_image_only(reference, expressions=1))

    tolerance = TOLERANCES[graph_precision]
    _require(failed_rows(rows, tolerance), graph.stage)
    _require(failed_rows(single, tolerance), f"{graph.stage} with batch 1")
    return rows


def _check_end_to_end(bundle: Bundle, golden: Arrays) -> ParityReport:
    """The masks of the bundle against the reference's; FP16 as its hardware computes it."""
    exact: AbstractContextManager[Bundle] = (
        emulated(bundle) if bundle.manifest.precision == "fp16" else nullcontext(bundle)
    )
    with exact as checked, open_model(checked, engine="onnxruntime") as runtime:
        report = check_model(runtime, golden)
    _require(report.failures, "the bundle")
    return report


def _require(failures: Sequence[str], what: str) -> None:
    """Raises ParityError where there are failures."""
    if failures:
        raise ParityError(
            f"{what} does not agree with the PyTorch reference: {'; '.join(failures)}"
        )


class _Contents(NamedTuple):
    """What has been written into the bundle's folder."""

    graphs: dict[str, GraphEntry]
    """The graphs by stage."""

    parity: dict[str, StageParity]
    """How the outputs of the graphs agree with the reference."""

    categories: Categories | None
    """The files of the categories; None for a model that does not ask by category."""

    files: dict[str, str]
    """The sha256 of everything that is not a graph, by name."""


def _manifest(
    config: ModelConfig, source: Source, options: ExportOptions, contents: _Contents
) -> Manifest:
    """The manifest before the bundle is checked as a whole: its mask IoU is still 0."""
    packages = ("torch", "onnx", "onnxscript")
    return Manifest(
        format_version=FORMAT_VERSION,
        writer={"ris-runtime": __version__} | {name: metadata.version(name) for name in packages},
        source=source,
        model=json.loads(json.dumps(config.to_dict())),  # tuples become lists, as in the file
        precision=options.precision,
        graphs=contents.graphs,
        preprocess=_preprocess(config),
        text=Text("tokenizer.json", config.max_tokens),
        dense_prompt=DensePrompt(
            config.dense_prompt_grid, config.sam.grid, config.dense_interpolation
        ),
        postprocess=Postprocess("bilinear", 0.0),
        no_target=config.no_target != "none",
        categories=contents.categories,
        golden="golden.npz",
        files=contents.files,
        parity=contents.parity,
        mask_iou=0.0,
    )


def _preprocess(config: ModelConfig) -> Preprocess:
    return Preprocess(
        sam=SquareImage(config.sam.image_size, "pillow-bilinear-uint8", SAM_MEAN, SAM_STD),
        clip=SquareImage(config.clip.image_size, "bicubic", CLIP_MEAN, CLIP_STD),
    )


def _write_categories(model: RISModel, folder: Path) -> Categories:
    """Writes the names and features of the categories, each row of the JSON on its own line."""
    rows = ",\n".join(json.dumps(entry) for entry in category_entries(len(model.text_embeddings)))
    (folder / "categories.json").write_text(f"[\n{rows}\n]\n", encoding="utf-8")
    np.save(folder / "categories.npy", model.text_embeddings.numpy())
    return Categories("categories.json", "categories.npy")


def _write_files(
    folder: Path, tokenizer: Tokenizer, golden: Arrays, categories: Categories | None
) -> dict[str, str]:
    """Writes tokenizer.json and golden.npz.

    Returns the sha256 of everything that is not a graph, by name.
    """
    tokenizer.save(str(folder / "tokenizer.json"))
    kept = {k: v for k, v in golden.items() if k not in ("image", "image_index")}
    np.savez_compressed(folder / "golden.npz", **kept)  # type: ignore[arg-type]

    names = ["tokenizer.json", "golden.npz"]
    if categories is not None:
        names += [categories.names, categories.features]
    return hash_files(folder, names)


def _files(folder: Path, graph: str) -> list[str]:
    """The names of a graph's files: the graph, and its data where it has any."""
    data = f"{graph}.data"
    return [graph, data] if (folder / data).exists() else [graph]
