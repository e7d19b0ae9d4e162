"""The whole export: reference pass, five graphs, each checked right after it is written, and the
bundle around them.

A failed or killed export leaves the target as it was (`ris.runtime.bundle_folder`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import nn

from ris import __version__
from ris.calibration.numerics import Ranges, emulated
from ris.engines import EngineOptions, Graph, create
from ris.engines.errors import BundleError, ParityError
from ris.export import bf16, graphs, precision
from ris.export.fp16 import make_fp16
from ris.export.live_reference import first_image_only, reference_arrays
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
from ris.runtime.bundle import (
    BF16_FROM,
    FORMAT_VERSION,
    MANIFEST,
    STAGES,
    Bundle,
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
    hash_files,
)
from ris.runtime.bundle_folder import building
from ris.runtime.loading import open_model
from ris.runtime.parity import TOLERANCES, ParityReport, check_model, check_stage, failed_rows

Report = Callable[[str], None]
"""Called with the name of each step as it begins."""


@dataclass(frozen=True)
class ExportOptions:
    """How a model becomes a bundle."""

    precision: Precision = "fp32"
    """What the graphs compute in."""

    sampling: Sampling = "native"
    """How deformable attention samples bilinearly: "native" GridSample nodes, or "gather"."""

    vocabulary: Path | None = None
    """vocab.txt or tokenizer.json, None for the preset's own."""

    overwrite: bool = False
    """Replace a bundle that is there."""

    ranges: Ranges | None = None
    """Measured on an FP32 bundle of the same model: FP16 keeps in FP32 what they show to be too
    large."""


@dataclass(frozen=True)
class ExportResult:
    """What was written."""

    path: Path
    """The bundle's folder."""

    manifest: Manifest

    parity: ParityReport
    """How the bundle as a whole agrees with the reference."""


Arrays = dict[str, NDArray[Any]]


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
        make_model: Makes the reference model, when its turn comes.
        config: Its configuration.
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
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            writer={"ris-runtime": __version__}
            | {name: metadata.version(name) for name in ("torch", "onnx", "onnxscript")},
            source=source,
            model=json.loads(json.dumps(config.to_dict())),
            precision=options.precision,
            graphs=entries,
            preprocess=_preprocess(config),
            text=Text("tokenizer.json", config.max_tokens),
            dense_prompt=DensePrompt(
                config.dense_prompt_grid, config.sam.grid, config.dense_interpolation
            ),
            postprocess=Postprocess("bilinear", 0.0),
            no_target=config.no_target != "none",
            categories=categories,
            golden="golden.npz",
            files=_write_files(folder, tokenizer, golden, categories),
            parity=parity,
            mask_iou=0.0,
        )
        checked = _check_end_to_end(Bundle(folder, manifest), golden)

        report("bundle")
        manifest = dataclasses.replace(
            manifest, parity=parity | checked.rows, mask_iou=checked.mask_iou
        )
        (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    return ExportResult(out, manifest, checked)


def _reference_pass(model: RISModel, tokenizer: Tokenizer, source: Source) -> Arrays:
    """Two images, the second mirrored, and three expressions through PyTorch.

    The trained demo is shown a scene of its own kind: there an agreement means something.
    """
    scenes = source.trained and model.config.preset == "demo"
    image, expressions = sample_scene() if scenes else (sample_image(), EXPRESSIONS)
    images = [image, np.ascontiguousarray(image[:, ::-1])]
    return reference_arrays(model, tokenizer, images, expressions, CATEGORIES, [0, 1, 0])


def _export_stages(
    model: RISModel, reference: Arrays, folder: Path, options: ExportOptions, report: Report
) -> tuple[dict[str, GraphEntry], dict[str, StageParity]]:
    """Writes and checks every graph; the manifest's entries, and the parity of their outputs."""
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
    """Writes one graph in its precision and checks it on two batch sizes."""
    signature = graphs.signature(stage, model.config)
    module: nn.Module = graphs.build(stage, model, options.sampling)
    file = f"graphs/{stage}.onnx"
    path = folder / file
    scopes = write_onnx(module, signature, path)
    if stage in BF16_FROM:
        name_input(path, scopes, "pyramid", BF16_FROM[stage])
    operations = count_operations(path)
    graph = Graph(stage, path, signature.inputs, signature.outputs)
    _require_own_ranges(options.ranges, stage, hash_files(folder, _files(folder, file)))

    kept: dict[str, str] = {}
    rounded: dict[str, StageParity] = {}  # what true FP16 arithmetic gives
    whole = precision.WHOLE[options.precision]
    graph_precision: Precision = "fp32" if stage in whole else options.precision
    if graph_precision == "fp16":
        known = options.ranges.stages[stage] if options.ranges else None
        one = first_image_only(reference)
        kept, rounded = make_fp16(
            graph, scopes, one, known, lambda what: report(f"{stage}: {what}")
        )
    elif graph_precision == "bf16":
        kept = bf16.convert_to_bf16(path, BF16_FROM.get(stage))
    elif stage in whole:
        kept = {"*": whole[stage]}

    entry = GraphEntry(
        file=file,
        sha256=hash_files(folder, _files(folder, file)),
        precision=graph_precision,
        fp32_islands=kept,
        inputs=signature.inputs,
        outputs=signature.outputs,
        parameters=precision.count_parameters(path),
        sampling=options.sampling if stage == "fusion" else None,
        operations=operations,
    )
    rows = _check_graph(graph, graph_precision, reference)
    return entry, rounded or rows


def _require_own_ranges(ranges: Ranges | None, stage: str, sha256: dict[str, str]) -> None:
    """Raises BundleError where the ranges were measured on another graph than this one."""
    if ranges and ranges.sha256.get(stage) != sha256:
        raise BundleError(
            f"the ranges were measured on another {stage} than the one exported here; run"
            " ris-calibrate ranges on an FP32 bundle of this model with the same options"
        )


def _check_graph(
    graph: Graph, graph_precision: Precision, reference: Arrays
) -> dict[str, StageParity]:
    """The graph's parity over the whole reference pass; a single expression is checked as well."""
    engine = create("onnxruntime", EngineOptions())
    with engine.open(graph, engine.compile(graph)) as session:
        rows = check_stage(graph.stage, session, reference)
        single = check_stage(graph.stage, session, first_image_only(reference, expressions=1))
    for name, found in (("", rows), (" with batch 1", single)):
        _require(tuple(failed_rows(found, TOLERANCES[graph_precision])), f"{graph.stage}{name}")
    return rows


def _check_end_to_end(bundle: Bundle, golden: Arrays) -> ParityReport:
    """The masks of the bundle against the reference's; FP16 as its hardware computes it."""
    fp16 = bundle.manifest.precision == "fp16"
    with (
        emulated(bundle) if fp16 else contextlib.nullcontext(bundle) as checked,
        open_model(checked, engine="onnxruntime") as runtime,
    ):
        report = check_model(runtime, golden)
    _require(report.failures, "the bundle")
    return report


def _files(folder: Path, graph: str) -> list[str]:
    """The names of a graph's files: the graph, and its data where it has any."""
    return [graph] + [f"{graph}.data"] * (folder / f"{graph}.data").exists()


def _require(failures: tuple[str, ...], what: str) -> None:
    if failures:
        raise ParityError(
            f"{what} does not agree with the PyTorch reference: {'; '.join(failures)}"
        )


def _preprocess(config: ModelConfig) -> Preprocess:
    return Preprocess(
        sam=SquareImage(config.sam.image_size, "pillow-bilinear-uint8", SAM_MEAN, SAM_STD),
        clip=SquareImage(config.clip.image_size, "bicubic", CLIP_MEAN, CLIP_STD),
    )


def _write_categories(model: RISModel, folder: Path) -> Categories:
    rows = ",\n".join(json.dumps(entry) for entry in category_entries(len(model.text_embeddings)))
    (folder / "categories.json").write_text(f"[\n{rows}\n]\n", encoding="utf-8")
    np.save(folder / "categories.npy", model.text_embeddings.numpy())
    return Categories("categories.json", "categories.npy")


def _write_files(
    folder: Path,
    tokenizer: Tokenizer,
    golden: dict[str, NDArray[Any]],
    categories: Categories | None,
) -> dict[str, str]:
    """tokenizer.json and golden.npz; returns the sha256 of everything that is not a graph."""
    tokenizer.save(str(folder / "tokenizer.json"))
    kept = {k: v for k, v in golden.items() if k not in ("image", "image_index")}
    np.savez_compressed(folder / "golden.npz", **kept)  # type: ignore[arg-type]
    names = ["tokenizer.json", "golden.npz"]
    if categories is not None:
        names += [categories.names, categories.features]
    return hash_files(folder, names)
