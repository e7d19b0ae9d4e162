"""The families that can be exported: a module each, and the table of them."""

from __future__ import annotations

from ris.export.families import cgformer, dfam, evfsam, lisa, rela
from ris.export.families.design import FamilyDesign

DESIGNS: dict[str, FamilyDesign] = {
    "cgformer": cgformer.DESIGN,
    "dfam": dfam.DESIGN,
    "evfsam": evfsam.DESIGN,
    "lisa": lisa.DESIGN,
    "rela": rela.DESIGN,
}
"""What each family of `ris.reference.families` tells the exporter, by its name."""
