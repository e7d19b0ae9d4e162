"""The INT8 bundle on disk: graphs, manifest, and a check on the bundle's golden image."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np

from ris import __version__
from ris.calibration.int8.report import Int8Report
from ris.calibration.int8.search import LayerKey, Quantiser
from ris.engines.errors import RisError
from ris.runtime import Bundle
from ris.runtime.bundle import MANIFEST, hash_files
from ris.runtime.bundle_folder import building
from ris.runtime.loading import open_model
from ris.runtime.manifest import GraphEntry, Int8
from ris.runtime.onnx_weights import data_files
from ris.runtime.parity import ParityReport, check_model, load_golden

WRITER = "ris-calibrate int8"
"""The manifest's `writer` names this in a bundle with INT8 graphs."""


def write_bundle(
    quantiser: Quantiser, chosen: list[LayerKey], report: Int8Report, out: Path, overwrite: bool
) -> float:
    """Writes the FP32 bundle of `quantiser` to `out` with the chosen layers in INT8.

    Args:
        quantiser: The bundle and its statistics.
        chosen: The layers to quantise.
        report: What was found; it names the calibrator, and why other layers stay FP32.
        out: The new bundle, a folder.
        overwrite: Whether a bundle that is there already is replaced.

    Returns:
        The lowest mask IoU with PyTorch on the bundle's golden image.

    Raises:
        RisError: The INT8 graphs give values that are not finite on the golden image.
    """
    bundle = quantiser.chain.bundle
    manifest = bundle.manifest
    with building(out, overwrite) as folder:
        for name in bundle.hashes():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
        for name in manifest.files:
            shutil.copyfile(bundle.file(name), folder / name)

        entries: list[GraphEntry] = []
        for stage, entry in manifest.graphs.items():
            if report.quantised.get(stage):
                quantiser.write(stage, chosen, report.calibrator, folder / entry.file)
                entries.append(_quantised_entry(stage, entry, report, folder))
            else:
                for name in entry.sha256:
                    shutil.copyfile(bundle.file(name), folder / name)
                islands = {"*": _why_not(stage, report)}
                entries.append(dataclasses.replace(entry, fp32_islands=islands))

        changed = dataclasses.replace(
            manifest.with_graphs(entries),
            precision="int8",
            writer={**manifest.writer, WRITER: __version__},
        )
        checked = _check(Bundle(folder, changed), bundle)
        changed = dataclasses.replace(changed, parity=checked.rows, mask_iou=checked.mask_iou)
        (folder / MANIFEST).write_text(changed.to_json(), encoding="utf-8")
    return checked.mask_iou


def _quantised_entry(stage: str, entry: GraphEntry, report: Int8Report, folder: Path) -> GraphEntry:
    """The manifest's entry of a graph that was written to `folder`."""
    percentile = report.options.percentile if report.calibrator == "percentile" else None
    int8 = Int8(
        layers=report.quantised[stage],
        calibrator=report.calibrator,
        percentile=percentile,
        alpha=report.options.alpha,
        samples=report.samples,
    )
    # small weights are in the graph's own file, and leave none beside it
    beside = [f"{entry.file}.data", *entry.sha256]
    named = {
        Path(entry.file).with_name(name).as_posix() for name in data_files(folder / entry.file)
    }
    files = [entry.file, *(name for name in dict.fromkeys(beside) if name in named)]
    return dataclasses.replace(
        entry,
        sha256=hash_files(folder, files),
        fp32_islands=report.kept[stage],
        int8=int8,
    )


def _check(written: Bundle, original: Bundle) -> ParityReport:
    """The INT8 graphs' parity with PyTorch on the golden image."""
    with open_model(written, engine="onnxruntime") as model:
        checked = check_model(model, load_golden(original))
    if not all(np.isfinite(row.relative) for row in checked.rows.values()):
        raise RisError(
            "the INT8 graphs give values that are not finite on the bundle's own golden image"
        )
    return checked


def _why_not(stage: str, report: Int8Report) -> str:
    """Why a graph has no INT8 layer."""
    if stage in report.quantised:
        limit = f"--max-iou-drop {report.options.max_iou_drop:g}"
        return f"every layer of it in INT8 costs more than {limit} allows"
    return "was not asked for (--graph)"
