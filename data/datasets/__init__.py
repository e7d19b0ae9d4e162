"""Readers of referring-segmentation data sets in their original files.

data = read_refer("data", "refcoco", split="val")
for image in data.images:                # its file, and every expression about it
    for reference in image.references:
        mask = reference_mask(data, image, reference)
"""

from ris.data.datasets.lines import read_lines
from ris.data.datasets.outlines import reference_mask
from ris.data.datasets.refer import ReferData, Reference, ReferImage
from ris.data.datasets.refer import read as read_refer
from ris.data.datasets.refer_files import DATASETS

__all__ = [
    "DATASETS",
    "ReferData",
    "ReferImage",
    "Reference",
    "read_lines",
    "read_refer",
    "reference_mask",
]
