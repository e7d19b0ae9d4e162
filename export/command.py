"""`ris-export`: a model in, a bundle out. Thin over `export_bundle`."""

from __future__ import annotations

import importlib.util
import json
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ris import pip_install
from ris.engines import ENGINE_NAMES, EngineSpec, create, select
from ris.engines.errors import CheckpointError, EngineError, RisError
from ris.runtime.bundle import Bundle
from ris.runtime.commands.compile import build_options, compile_and_show, engine_options
from ris.runtime.commands.console import RisCommand, StepProgress, size
from ris.runtime.commands.weight_files import weight_file_options

if TYPE_CHECKING:
    from ris.export.bundle_writer import ExportResult
    from ris.export.sources import ModelSource

PRESET_NAMES = ("vitb-vitl336", "tiny", "demo")


@click.command(cls=RisCommand)
@weight_file_options()
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("ris-bundle"),
    show_default=True,
    help="The bundle to write, a folder.",
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "bf16", "fp16"]),
    default="fp32",
    show_default=True,
    help=(
        "What the graphs compute in. FP16 keeps inputs, outputs and a few layers in FP32; bf16 is"
        " for CPUs: the weights of the image encoders and of most of the fusion are bfloat16, and"
        " OpenVINO computes in it."
    ),
)
@click.option(
    "--random-weights",
    type=int,
    metavar="SEED",
    help="Export an untrained model with made-up weights, for benchmarks; its masks mean nothing.",
)
@click.option(
    "--preset",
    type=click.Choice(PRESET_NAMES),
    help=(
        "The architecture. Default: what the checkpoint says; with --random-weights vitb-vitl336,"
        " the paper's. tiny without weights has made-up ones."
    ),
)
@click.option(
    "--variant",
    type=click.Choice(["cls", "category"]),
    help=(
        "What the sparse branch asks with: BERT's [CLS] (and a no-target head), or a COCO category."
        " Default: what the checkpoint says; cls without one."
    ),
)
@click.option(
    "--supplement",
    is_flag=True,
    help="The architecture as the paper's supplement words it, where the released code differs.",
)
@click.option(
    "--grid-sample",
    type=click.Choice(["native", "gather"]),
    help=(
        "How deformable attention samples: GridSample nodes, or gathers for engines whose"
        " GridSample is wrong (TensorRT). Default: what --engine needs; native without one."
    ),
)
@click.option(
    "--engine",
    type=click.Choice(ENGINE_NAMES),
    help=(
        "Compile the graphs for this engine too, when they are written (ris-compile does it later)."
    ),
)
@build_options()
@click.option(
    "--vocabulary",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="A vocab.txt. Default: that of --bert, else bert-base-uncased's for full-size BERT.",
)
@click.option(
    "--ranges",
    "ranges_file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help=(
        "What ris-calibrate ranges measured on an FP32 bundle of this model: FP16 spares what comes"
        " near its limit."
    ),
)
@click.option("--force", is_flag=True, help="Replace the bundle if it exists.")
@click.option(
    "--dry-run",
    is_flag=True,
    help="Say what was found, what is missing, and the plan; write nothing.",
)
@click.option(
    "--json", "as_json", is_flag=True, help="Print what was written (or the dry run) as JSON."
)
def main(
    out: Path,
    precision: str,
    random_weights: int | None,
    preset: str | None,
    variant: str | None,
    supplement: bool,
    grid_sample: str | None,
    engine: str | None,
    max_batch: int,
    max_expressions: int | None,
    workspace: int | None,
    version_compatible: bool,
    hardware_compatible: bool,
    strip_weights: bool,
    vocabulary: Path | None,
    ranges_file: Path | None,
    force: bool,
    dry_run: bool,
    as_json: bool,
    **files: Path | None,
) -> None:
    """Exports a model into a bundle of five ONNX graphs, each checked against PyTorch as it is
    written.

    --checkpoint takes a trained model; variant and sizes are read off it. A component file replaces
    what training leaves alone (SAM's image encoder, CLIP) and fills in what the checkpoint lacks of
    the rest (SAM's mask decoder, BERT). Without weights it exports the built-in demo, a small model
    trained on drawn scenes.

    \b
    Examples:
      ris-export
      ris-export --precision fp16 --out demo-fp16
      ris-export --precision bf16 --out demo-bf16
      ris-export --precision fp16 --engine tensorrt-rtx --out demo-rtx
      ris-export --checkpoint model_final.pth --dry-run
      ris-export --checkpoint model_final.pth --precision fp16
      ris-export --checkpoint trained.pth --sam-checkpoint sam_vit_b_01ec64.pth \\
          --clip-checkpoint ViT-L-14-336px.pt
      ris-export --random-weights 0 --out full-size
    """
    for package in (
        "torch",
        "onnx",
        "segment_anything",
        "open_clip",
        "transformers",
        "onnxruntime",
    ):
        if importlib.util.find_spec(package) is None:
            raise RisError(f"ris-export needs {package}: {pip_install('cpu', 'export')}")
    if ranges_file and precision != "fp16":
        raise RisError("--ranges says what FP16 has to spare; it belongs to --precision fp16")
    ranges = None
    if ranges_file:
        from ris.calibration.numerics import read_ranges

        ranges = read_ranges(ranges_file)
    # an engine that cannot compile here is an error before anything is written
    row = None if engine is None else select(engine)
    compiling: dict[str, Any] = {
        "max_batch": max_batch,
        "max_expressions": max_expressions,
        "workspace": workspace,
        "version_compatible": version_compatible,
        "hardware_compatible": hardware_compatible,
        "strip_weights": strip_weights,
    }
    if row is not None:
        create(row.name, engine_options(None, row, **compiling))
        if engine == "auto":
            click.echo(f"--engine auto: {row.name}", err=True)
        if row.needs_gathers and grid_sample == "native":
            raise EngineError(
                f"engine {row.name!r} needs --grid-sample gather; leave --grid-sample out"
            )
    sampling = grid_sample or ("gather" if row is not None and row.needs_gathers else "native")
    from_files = any(files.values())
    if from_files and random_weights is not None:
        raise CheckpointError(
            "--random-weights and weight files contradict each other; give one of them"
        )
    if preset == "vitb-vitl336" and random_weights is None and not from_files:
        raise CheckpointError(
            "there are no weights for vitb-vitl336; --random-weights 0 exports it untrained, for"
            " benchmarks, and --checkpoint with trained ones"
        )
    is_demo = not from_files and random_weights is None and preset in (None, "demo")
    if is_demo:
        click.echo(
            "No weights were given: exporting the built-in demo, trained on drawn scenes.", err=True
        )

    def find() -> ModelSource:
        from ris.export import sources
        from ris.reference.checkpoint import WeightFiles

        if from_files:
            return sources.from_files(WeightFiles(**files), preset, variant, supplement)
        if is_demo:
            return sources.demo(variant, supplement)
        return sources.made_up(preset or "vitb-vitl336", random_weights or 0, variant, supplement)

    if dry_run:
        _dry_run(find, out, precision, vocabulary, force, as_json)
        return
    start = time.perf_counter()
    with StepProgress("Export", 11 if from_files or is_demo else 10) as progress:
        progress("libraries")
        from ris.export.bundle_writer import export_bundle
        from ris.runtime.bundle_folder import check_target

        check_target(out, force)
        source = find()
        if from_files:
            from ris.export.plan import found_lines

            click.echo("\n".join(found_lines(source)), err=True)
        if from_files or is_demo:
            progress("checkpoint")
        result = export_bundle(
            source.make,
            source.config,
            out,
            source=source.describe(),
            precision_name=precision,  # type: ignore[arg-type]
            sampling=sampling,  # type: ignore[arg-type]
            vocabulary=vocabulary or source.vocabulary,
            overwrite=force,
            ranges=ranges,
            report=progress,
        )
    warnings = source.warnings
    if not as_json:
        _print(result, time.perf_counter() - start)
    engines = {}
    if row is not None:
        written = Bundle(out, result.manifest)
        compiler = create(row.name, engine_options(written, row, **compiling))
        engines[row.name] = compile_and_show(written, row, compiler, quiet=as_json)
    if as_json:
        parity = json.loads(result.manifest.to_json())["parity"]
        data = {"bundle": str(out), "parity": parity, "warnings": warnings}
        click.echo(json.dumps(data | ({"engines": engines} if engines else {}), indent=2))
    else:
        _print_next(result, row)
    for warning in warnings:
        click.echo(warning, err=True)


def _dry_run(
    find: Callable[[], ModelSource],
    out: Path,
    precision: str,
    vocabulary: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Prints what an export would do; ends with 2 where it would not work."""
    from ris.export import plan as plans
    from ris.runtime.bundle_folder import check_target

    try:
        source = find()
    except RisError as error:
        if not as_json:
            raise
        click.echo(json.dumps({"plan": {"works": False, "problems": [str(error)]}}, indent=2))
        raise click.exceptions.Exit(error.exit_code) from None
    vocabulary = vocabulary or source.vocabulary
    plan = plans.make_plan(source, precision, out, vocabulary, lambda: check_target(out, force))  # type: ignore[arg-type]
    if as_json:
        click.echo(json.dumps(plans.report(source, plan), indent=2))
    else:
        click.echo("\n".join(plans.lines(source, plan)))
    if plan.problems:
        raise click.exceptions.Exit(2)


def _print(result: ExportResult, seconds: float) -> None:
    manifest, out = result.manifest, result.path
    total = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    click.echo(
        f"Wrote {out}: {manifest.precision}, {size(total)}, in {seconds:.0f} s, peak memory"
        f" {size(peak)}"
    )
    for stage, entry in manifest.graphs.items():
        files = sum((out / name).stat().st_size for name in entry.sha256)
        worst = max(
            row.relative for name, row in manifest.parity.items() if name.startswith(stage + ".")
        )
        kept = f", {len(entry.fp32_islands)} nodes kept FP32" if entry.fp32_islands else ""
        if "*" in entry.fp32_islands:
            kept = ", kept FP32"
        click.echo(
            f"  {stage:<19} {size(files):>8}  {entry.parameters / 1e6:7.2f} M weights  relative"
            f" error {worst:.1e}{kept}"
        )
    end = manifest.parity["end_to_end.mask_logits"].relative
    click.echo(
        f"  end to end: mask logits {end:.1e}, mask IoU {manifest.mask_iou:.6f} against PyTorch"
    )
    if not manifest.source.trained:
        click.echo(
            "  The weights are made up: this bundle shows speed and parity, its masks mean nothing."
        )
    else:
        click.echo(f"  Made from {manifest.source.checkpoint}, {manifest.model['query']} variant.")


def _print_next(result: ExportResult, row: EngineSpec | None) -> None:
    """The commands to go on with; an engine that cannot run here is not in them."""
    out = result.path
    flag = "" if str(out) == "ris-bundle" else f" --bundle {out}"
    category = " --category person" if result.manifest.categories else ""
    engine = f" --engine {row.name}" if row is not None and row.name != "onnxruntime" else ""
    if row is not None and (reason := row.unusable()):
        click.echo(f"{row.name} cannot run here: {reason}. The next commands use what can.")
        engine = ""
    click.echo(
        f'Next:\n  ris-infer image.jpg "left man"{category}{flag}{engine}\n  ris-parity'
        f" {out}{engine}"
    )
