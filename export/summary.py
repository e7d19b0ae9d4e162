"""What `ris-export` says of a bundle that it has written, for people."""

from __future__ import annotations

import resource

import click

from ris.export.bundle_writer import ExportResult
from ris.export.families import DESIGNS
from ris.export.sources import ModelSource
from ris.export.weights import worst_layers
from ris.runtime.commands.console import size
from ris.runtime.manifest_weights import StoredWeights
from ris.runtime.tolerance import END_TO_END


def print_summary(source: ModelSource, result: ExportResult, seconds: float) -> None:
    """What was written: its size, and how each graph and the whole agree with PyTorch."""
    manifest, out = result.manifest, result.path
    total = size(sum(file.stat().st_size for file in out.rglob("*") if file.is_file()))
    peak = size(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    click.echo(
        f"Wrote {out}: {manifest.precision}, {total}, in {seconds:.0f} s, peak memory {peak}"
    )
    width = max(map(len, manifest.graphs))
    for stage in manifest.graphs:
        click.echo(_graph_line(result, stage, width))
        if (weights := manifest.graphs[stage].weights) is not None:
            click.echo(_weights_line(weights, width))

    end = manifest.parity[END_TO_END].relative
    click.echo(
        f"  end to end: mask logits {end:.1e}, mask IoU {manifest.mask_iou:.6f} against PyTorch"
    )
    if manifest.source.trained:
        variants = DESIGNS[source.family].variants
        of = f", {variants.name(source.config)} variant" if variants else ""
        click.echo(f"  Made from {manifest.source.checkpoint}{of}.")
    else:
        click.echo(
            "  The weights are made up: this bundle shows speed and parity, its masks mean nothing."
        )


def _graph_line(result: ExportResult, stage: str, width: int) -> str:
    """One graph: its size, its weights, its error and what stayed FP32.

    width: that of the longest name.
    """
    entry = result.manifest.graphs[stage]
    total = size(sum((result.path / name).stat().st_size for name in entry.sha256))
    parity = result.manifest.parity
    worst = max(row.relative for name, row in parity.items() if name.startswith(f"{stage}."))

    kept = ""
    if "*" in entry.fp32_islands:
        kept = ", kept FP32"
    elif entry.fp32_islands:
        kept = f", {len(entry.fp32_islands)} nodes kept FP32"
    weights = f"{entry.parameters / 1e6:7.2f} M weights"
    return f"  {stage:<{width + 1}} {total:>8}  {weights}  relative error {worst:.1e}{kept}"


def _weights_line(weights: StoredWeights, width: int) -> str:
    """What rounding changed in a graph's matrices, and in which layers most."""
    worst = ", ".join(f"{layer} {error:.2e}" for layer, error in worst_layers(weights))
    how = " by GPTQ" if weights.rounding == "gptq" else ""
    return (
        f"  {'':<{width + 1}} {weights.format}{how}: {weights.matrices} matrices,"
        f" relative error {weights.error:.2e}; most in {worst}"
    )
