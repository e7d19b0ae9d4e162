"""`python -m ris.reference.dfam.parameters`: the parameter table beside the supplement's Table 2.

Section 18 of docs/reference/models/dfam.md discusses it.
"""

from __future__ import annotations

from typing import Any

import click
from rich.console import Console
from rich.table import Table

from ris.reference.dfam.config import PRESETS
from ris.reference.dfam.model import RISModel, empty_model

PAPER = "vitb-vitl336"
"""The preset that the supplement counts."""

TABLE_2: dict[str, float] = {
    "SAM ViT": 89.67,
    "CLIP ViT": 304.3,
    "SAM decoder": 4.06,
    "BERT": 108.9,
    "DFAM": 6.90,
    "PWAM": 7.88,
}
"""Table 2 of the supplement, in millions; it counts the other components in its total only."""

NOTES = {
    "PWAM": "the supplement's figure is ten times the count",
    "DFAM": "without the no-target head",
}
"""What has to be known to compare a component's two figures."""


def count(*modules: Any) -> int:
    """Number of parameters of all modules together."""
    return sum(p.numel() for module in modules for p in module.parameters())


def component_counts(model: RISModel) -> dict[str, int]:
    """Parameters by component, in the order of the table."""
    head = count(model.decoder.nt_embed) if hasattr(model.decoder, "nt_embed") else 0
    return {
        "SAM ViT": count(model.sam.image_encoder),
        "CLIP ViT": count(model.clip_dense.clip_model.visual),
        "SAM decoder": count(model.sam.mask_decoder),
        "BERT": count(model.text_encoder),
        "DFAM": count(model.decoder) - head,
        "no-target head": head,
        "PWAM": count(model.adaptor_clip),
        "CLIP pyramid": count(model.backbone_clip),
        "pixel decoder": count(model.clip_pixel_decoder),
        "SAM pyramid": count(model.backbone_sam),
        "sparse branch": count(model.txt2txt),
        "lang_mlp and clip_mlpl": count(model.lang_mlp, model.clip_mlpl),
    }


@click.command()
@click.option(
    "--preset",
    type=click.Choice(sorted(PRESETS)),
    default=PAPER,
    show_default=True,
)
def main(preset: str) -> None:
    """Prints the parameter count of every component beside the supplement's Table 2."""
    table = Table(title=f"{preset}: parameters in millions")
    for heading in ("component", "counted", "supplement", ""):
        table.add_column(heading, justify="left" if heading in ("component", "") else "right")

    compare = preset == PAPER
    for name, number in component_counts(empty_model(PRESETS[preset])).items():
        published = TABLE_2.get(name) if compare else None
        note = NOTES.get(name, "") if compare else ""
        table.add_row(name, f"{number / 1e6:.3f}", f"{published:g}" if published else "", note)

    Console(width=100).print(table)


if __name__ == "__main__":
    main()
