"""The whole export: reference pass, five graphs, each checked right after it is written, and the
bundle around them.

A failed or killed export leaves the target as it was (`ris.runtime.bundle_folder`).
"""

from __future__ import annotations

import dataclasses
import json
import shutil
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
from ris.engines import EngineOptions, Graph, TensorSpec, create
from ris.engines.errors import BundleError, ParityError
from ris.export import bf16, graphs, precision
from ris.export.fp16 import make_fp16
from ris.export.live_reference import first_image_only, reference_arrays
from ris.export.onnx_writer import name_input, write_onnx
from ris.export.operations import count_operations
from ris.export.sample import CATEGORIES, EXPRESSIONS, sample_image, sample_scene
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
from ris.runtime.model import open_model
from ris.runtime.parity import TOLERANCES, ParityReport, check_model, check_stage, failed_rows

Report = Callable[[str], None]
"""Called with the name of each step as it begins."""


@dataclass(frozen=True)
class ExportResult:
    """What was written: the bundle's folder, its manifest, and the end-to-end parity report."""

    path: Path
    manifest: Manifest
    parity: ParityReport


def export_bundle(
    make_model: Callable[[], RISModel],
    config: ModelConfig,
    out: Path,
    *,
    source: Source,
    precision_name: Precision = "fp32",
    sampling: Sampling = "native",
    vocabulary: Path | None = None,
    overwrite: bool = False,
    ranges: Ranges | None = None,
    report: Report = lambda step: None,
) -> ExportResult:
    """Exports the model of `make_model` into the bundle `out`.

    sampling: the form of the deformable attention's bilinear sampling, "native" GridSample or
    "gather". ranges: of an FP32 bundle of the same model; an FP16 export keeps in FP32 what they
    show to be too large. The parity of an FP16 bundle, in the manifest, is that of true FP16
    arithmetic. Raises BundleError where `out` is in the way or the disk is full, CheckpointError
    for an unfit vocabulary, and ParityError where a graph does not agree with the reference.
    """
    with building(out, overwrite) as folder:
        tokenizer = tokenizer_from(vocabulary, config)
        report("weights")
        model = make_model()
        needed = sum(p.numel() for p in model.parameters()) * 4
        free = shutil.disk_usage(folder).free
        if free < 1.2 * needed:
            raise BundleError(
                f"{out}: the disk is too full: the export needs about {needed * 1.2 / 1e6:.0f} MB, "
                f"{free / 1e6:.0f} MB are free"
            )
        report("reference pass")
        scenes = source.trained and config.preset == "demo"
        image, expressions = sample_scene() if scenes else (sample_image(), EXPRESSIONS)
        images = [image, np.ascontiguousarray(image[:, ::-1])]
        reference = reference_arrays(model, tokenizer, images, expressions, CATEGORIES, [0, 1, 0])
        (folder / "graphs").mkdir()
        entries: dict[str, GraphEntry] = {}
        parity: dict[str, StageParity] = {}
        for stage in graphs.STAGES:
            report(stage)
            entry, rows = _export_stage(
                stage, model, reference, folder, precision_name, sampling, ranges, report
            )
            entries[stage] = entry
            parity |= rows
        categories = _write_categories(model, folder) if config.query == "category" else None
        del model
        report("end to end")
        golden = first_image_only(reference)
        files = _write_files(folder, tokenizer, golden, categories)
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            writer={"ris-runtime": __version__}
            | {name: metadata.version(name) for name in ("torch", "onnx", "onnxscript")},
            source=source,
            model=json.loads(json.dumps(config.to_dict())),
            precision=precision_name,
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
            files=files,
            parity=parity,
            mask_iou=0.0,
        )
        if precision_name == "fp16":
            with emulated(Bundle(folder, manifest)) as rounded:
                checked = _check(rounded, golden)
        else:
            checked = _check(Bundle(folder, manifest), golden)
        report("bundle")
        manifest = dataclasses.replace(
            manifest, parity=parity | checked.rows, mask_iou=checked.mask_iou
        )
        (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    return ExportResult(out, manifest, checked)


def _check(bundle: Bundle, golden: dict[str, NDArray[Any]]) -> ParityReport:
    with open_model(bundle, engine="onnxruntime") as runtime:
        checked = check_model(runtime, golden)
    _require(checked.failures, "the bundle")
    return checked


def _export_stage(
    stage: str,
    model: RISModel,
    reference: dict[str, NDArray[Any]],
    folder: Path,
    precision_name: Precision,
    sampling: Sampling,
    ranges: Ranges | None,
    report: Report,
) -> tuple[GraphEntry, dict[str, StageParity]]:
    """Writes one graph and checks it on two batch sizes."""
    signature = graphs.signature(stage, model.config)
    module: nn.Module = graphs.build(stage, model, sampling)
    file = f"graphs/{stage}.onnx"
    path = folder / file
    scopes = write_onnx(module, signature, path)
    if stage in BF16_FROM:
        name_input(path, scopes, "pyramid", BF16_FROM[stage])
    operations = count_operations(path)
    inputs = tuple(TensorSpec(a.name, a.dtype, a.shape) for a in signature.inputs)
    outputs = tuple(TensorSpec(a.name, a.dtype, a.shape) for a in signature.outputs)
    graph = Graph(stage, path, inputs, outputs)
    kept: dict[str, str] = {}
    rounded: dict[str, StageParity] = {}  # what true FP16 arithmetic gives
    whole = precision.WHOLE[precision_name]
    graph_precision: Precision = "fp32" if stage in whole else precision_name
    if ranges and ranges.sha256.get(stage) != hash_files(folder, _files(folder, file)):
        raise BundleError(
            f"the ranges were measured on another {stage} than the one exported here; run"
            " ris-calibrate ranges on an FP32 bundle of this model with the same options"
        )
    if graph_precision == "fp16":
        known = ranges.stages[stage] if ranges else None
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
        inputs=inputs,
        outputs=outputs,
        parameters=precision.count_parameters(path),
        sampling=sampling if stage == "fusion" else None,
        operations=operations,
    )
    engine = create("onnxruntime", EngineOptions())
    with engine.open(graph, engine.compile(graph)) as session:
        rows = check_stage(stage, session, reference)
        single = check_stage(stage, session, first_image_only(reference, expressions=1))
    for name, found in (("", rows), (" with batch 1", single)):
        _require(tuple(failed_rows(found, TOLERANCES[graph_precision])), f"{stage}{name}")
    return entry, rounded or rows


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
