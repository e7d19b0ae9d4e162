"""Readers of referring-segmentation data sets in their original files, for training, calibration
and evaluation.

data = read_refer("data", "refcoco", split="val")
for image in data.images:                       # its file, and every expression about it
    for reference in image.references: ...
"""

from ris.data.datasets.lines import read_lines
from ris.data.datasets.refer import DATASETS, ReferData, Reference, ReferImage, reference_mask
from ris.data.datasets.refer import read as read_refer

__all__ = [
    "DATASETS",
    "ReferData",
    "ReferImage",
    "Reference",
    "read_lines",
    "read_refer",
    "reference_mask",
]
