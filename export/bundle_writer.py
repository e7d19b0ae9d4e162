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
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from ris import __version__
from ris.calibration.numerics import emulated
from ris.calibration.weights.groups import WeightFormat
from ris.engines.errors import BundleError, RisError
from ris.export.alone import alone
from ris.export.families import DESIGNS
from ris.export.families.design import Questions, StageDesign, keep_fp32
from ris.export.graph_writer import GraphJob, require, write_graphs
from ris.export.held import held_back
from ris.export.narrow_values import halve_kept
from ris.export.options import DEFAULTS, ExportOptions, Resizing
from ris.export.reference_pass import Arrays, Asked, ReferencePass, reference_pass
from ris.export.resizing import require_resizes, resizes_inside
from ris.export.rounded_file import About
from ris.export.sharing import share_weights
from ris.export.space import disk_needed, graph_sizes, require_disk
from ris.export.streaming import kept_beside
from ris.export.turns import open_by_turns
from ris.export.weights import ANY, formats_of, require_finite
from ris.reference.families import FAMILIES
from ris.reference.family import Config
from ris.runtime.bundle import MANIFEST, Bundle, hash_files
from ris.runtime.bundle_folder import building, check_target
from ris.runtime.loading import open_model
from ris.runtime.manifest import (
    FORMAT_VERSION,
    Categories,
    GraphEntry,
    Host,
    Manifest,
    Source,
    joined,
)
from ris.runtime.model import Model
from ris.runtime.parity import ParityReport, check_model
from ris.runtime.wiring import problems

__all__ = ["ExportOptions", "ExportResult", "Report", "Resizing", "export_bundle", "steps"]

Report = Callable[[str], None]
"""Called with the name of each step as it begins."""

_GOLDEN = "golden.npz"


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
    options: ExportOptions = DEFAULTS,
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
        BundleError: Where the family's design contradicts itself, `out` is in the way, another
            export writes it or the disk is full.
        CheckpointError: For a vocabulary that does not fit the model.
        RisError: For narrow weights that there is nothing to be stored in, or in FP16, and for
            levels of another model.
        ParityError: Where a graph does not agree with the reference.
    """
    design = DESIGNS[family]
    stages, host, formats = chosen_graphs(family, config, options)
    stages = halve_kept(stages, options.precision, formats, options.ranges)
    rounded = options.rounded
    if rounded is not None:
        rounded.require(About(family, config, source, formats))
    planned = _planned(family, config, source, options, stages, host)
    check_target(out, options.overwrite)
    with alone(out):
        with building(out, options.overwrite) as folder:
            tokenizer = FAMILIES[family].tokenizer_of(options.vocabulary, config, source.trained)
            report("weights")
            model = make_model()
            held = held_back(model)
            empty = FAMILIES[family].empty_model(config)
            about = stages, empty, options.precision, formats
            sizes = graph_sizes(*about, sampling=options.sampling, large=held is not None)
            require_disk(out, disk_needed(sizes, out, kept=held is not None))

            report("reference pass")
            questions = design.questions(config, source.trained)
            asked = _asked(questions, host)
            again = partial(reference_pass, FAMILIES[family], model, tokenizer, host, asked)
            passed = again()
            read = held.files if held else ()
            read += (rounded.path,) if rounded else ()
            kept = kept_beside(out, read) if held else None
            job = GraphJob(planned, model, passed, folder, options, report, formats, held, kept)
            entries, parity = write_graphs(stages, job, again)
            if rounded is not None:
                report(rounded.require_taken())
            shared = {stage.name: name for stage in stages if (name := stage.shared_weights)}
            entries = share_weights(folder, entries, shared)
            if host.categories is not None and design.categories is not None:
                _write_categories(folder, host.categories, *design.categories(model))
            opened = open_by_turns if held is not None else _open_together
            del model, job, held, again  # half of the memory, before the graphs are opened

            report("end to end")
            passed = passed.first_image()
            files = _write_files(folder, tokenizer, passed)
            manifest = dataclasses.replace(planned, stages=entries, files=files, parity=parity)
            checked = _check_end_to_end(Bundle(folder, manifest), passed.arrays, opened)

            report("bundle")
            manifest = dataclasses.replace(
                manifest, parity=parity | checked.rows, mask_iou=checked.mask_iou
            )
            (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
        if kept is not None:
            kept.remove()
    return ExportResult(out, manifest, checked)


def chosen_graphs(
    family: str, config: Config, options: ExportOptions
) -> tuple[tuple[StageDesign, ...], Host, dict[str, WeightFormat]]:
    """The graphs that the options ask for, the host's part, and the formats of narrow weights.

    It reads no weights, so that whoever hashes gigabytes for a `Source` asks it before. Raises
    RisError for options that name a graph, resizes or weights that the model does not have.
    """
    design = DESIGNS[family]
    stages = keep_fp32(design.stages(config), options.fp32, options.precision)
    host = design.host(config)
    if options.resizing == "graph":
        require_resizes(host, family)
        stages, host = resizes_inside(stages, host)
    formats = formats_of(stages, options.weights)
    if formats and options.precision == "fp16":
        raise RisError("narrow weights are for products in FP32 or bfloat16, not for FP16")
    return stages, host, formats


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


def _open_together(bundle: Bundle) -> Model:
    return open_model(bundle, engine="onnxruntime")


def _check_end_to_end(
    bundle: Bundle, golden: Arrays, opened: Callable[[Bundle], Model]
) -> ParityReport:
    """The masks of the bundle against the reference's; FP16 as its hardware computes it.

    opened: Opens the bundle, on ONNX Runtime.
    """
    exact: AbstractContextManager[Bundle] = (
        emulated(bundle) if bundle.manifest.precision == "fp16" else nullcontext(bundle)
    )
    with exact as checked, opened(checked) as runtime:
        rounded = any(stage.weights for stage in bundle.manifest.stages)
        report = check_model(runtime, golden, ANY if rounded else None)
    if rounded:
        require_finite(report.rows, "the bundle")
    way_out = ""
    if narrow := _narrow_rows(bundle.manifest):
        worst = max(narrow, key=narrow.__getitem__)
        way_out = f". --fp32 {worst} keeps FP32 the graph that is farthest off by itself"
    require(report.failures, "the bundle", way_out)
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
