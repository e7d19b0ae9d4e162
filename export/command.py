"""`ris-export`: a model in, a bundle out. Thin over `export_bundle`."""

from __future__ import annotations

import importlib.util
import json
import resource
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ris.engines.errors import CheckpointError, RisError
from ris.runtime.commands.console import RisCommand, StepProgress, size

if TYPE_CHECKING:
    from ris.export.bundle_writer import ExportResult

PRESET_NAMES = ("vitb-vitl336", "tiny")


@click.command(cls=RisCommand)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("ris-bundle"),
    show_default=True,
    help="The bundle to write, a folder.",
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16"]),
    default="fp32",
    show_default=True,
    help="What the graphs compute in. FP16 keeps inputs, outputs and a few layers in FP32.",
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
    help="The architecture. Default with --random-weights: vitb-vitl336, the paper's; otherwise the demo's.",
)
@click.option(
    "--variant",
    type=click.Choice(["cls", "category"]),
    default="cls",
    show_default=True,
    help="What the sparse branch asks with: BERT's [CLS] (and a no-target head), or a COCO category.",
)
@click.option(
    "--supplement",
    is_flag=True,
    help="The architecture as the paper's supplement words it, where the released code differs.",
)
@click.option(
    "--grid-sample",
    type=click.Choice(["native", "gather"]),
    default="native",
    show_default=True,
    help="How deformable attention samples: GridSample nodes, or gathers for engines whose GridSample is "
    "wrong (TensorRT).",
)
@click.option(
    "--vocabulary",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="A vocab.txt. Default: bert-base-uncased's for full-size BERT.",
)
@click.option("--force", is_flag=True, help="Replace the bundle if it exists.")
@click.option("--json", "as_json", is_flag=True, help="Print what was written as JSON.")
def main(
    out: Path,
    precision: str,
    random_weights: int | None,
    preset: str | None,
    variant: str,
    supplement: bool,
    grid_sample: str,
    vocabulary: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Exports a model into a bundle of five ONNX graphs, each checked against PyTorch as it is written.

    Without weights it exports the built-in demo: the tiny architecture with made-up weights, to try the tools with.

    \b
    Examples:
      ris-export
      ris-export --precision fp16 --out demo-fp16
      ris-export --random-weights 0 --out full-size
    """
    for package in ("torch", "onnx", "segment_anything", "open_clip", "transformers", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise RisError(f'ris-export needs {package}: pip install "ris-runtime[cpu,export]"')
    if preset == "vitb-vitl336" and random_weights is None:
        raise CheckpointError(
            "there are no weights for vitb-vitl336; --random-weights 0 exports it untrained, for benchmarks"
        )
    demo = random_weights is None
    name = preset or ("tiny" if demo else "vitb-vitl336")
    if demo:
        click.echo(
            "No weights were given: exporting the built-in demo (tiny, made-up weights; masks mean nothing).", err=True
        )
    start = time.perf_counter()
    with StepProgress("Export", 10) as progress:
        progress("libraries")
        result = _export(
            name, random_weights or 0, variant, supplement, out, precision, grid_sample, vocabulary, force, progress
        )
    if as_json:
        click.echo(
            json.dumps({"bundle": str(out), "parity": json.loads(result.manifest.to_json())["parity"]}, indent=2)
        )
    else:
        _print(result, time.perf_counter() - start)


def _export(
    preset: str,
    seed: int,
    variant: str,
    supplement: bool,
    out: Path,
    precision: str,
    grid_sample: str,
    vocabulary: Path | None,
    force: bool,
    progress: StepProgress,
) -> ExportResult:
    from ris.export.bundle_writer import export_bundle
    from ris.reference.config import PRESETS
    from ris.reference.deterministic import deterministic_model
    from ris.runtime.bundle import Source

    config = PRESETS[preset]
    if variant == "category":
        config = config.with_category_query()
    if supplement:
        config = config.with_supplement()
    return export_bundle(
        lambda: deterministic_model(config, seed),
        config,
        out,
        source=Source(kind="deterministic", trained=False, seed=seed, checkpoint=None, checkpoint_sha256=None),
        precision_name=precision,  # type: ignore[arg-type]
        sampling=grid_sample,  # type: ignore[arg-type]
        vocabulary=vocabulary,
        overwrite=force,
        report=progress,
    )


def _print(result: ExportResult, seconds: float) -> None:
    manifest, out = result.manifest, result.path
    total = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    click.echo(f"Wrote {out}: {manifest.precision}, {size(total)}, in {seconds:.0f} s, peak memory {size(peak)}")
    for stage, entry in manifest.graphs.items():
        files = sum((out / name).stat().st_size for name in entry.sha256)
        worst = max(row.relative for name, row in manifest.parity.items() if name.startswith(stage + "."))
        kept = f", {len(entry.fp32_islands)} nodes kept FP32" if entry.fp32_islands else ""
        if "*" in entry.fp32_islands:
            kept = ", kept FP32"
        click.echo(
            f"  {stage:<19} {size(files):>8}  {entry.parameters / 1e6:7.2f} M weights  relative error {worst:.1e}{kept}"
        )
    end = manifest.parity["end_to_end.mask_logits"].relative
    click.echo(f"  end to end: mask logits {end:.1e}, mask IoU {manifest.mask_iou:.6f} against PyTorch")
    if not manifest.source.trained:
        click.echo("  The weights are made up: this bundle shows speed and parity, its masks mean nothing.")
    flag = "" if str(out) == "ris-bundle" else f" --bundle {out}"
    category = " --category person" if manifest.categories else ""
    click.echo(f'Next:\n  ris-infer image.jpg "left man"{category}{flag}\n  ris-parity {out}')
