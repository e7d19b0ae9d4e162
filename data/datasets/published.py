"""How large the data sets are, as far as their authors' repositories say so."""

from __future__ import annotations

REFERENCES: dict[tuple[str, str], dict[str, int]] = {
    # CGFormer, utils/dataset.py, lines 14 to 38
    ("refcoco", "unc"): {"train": 42_404, "val": 3_811, "testA": 1_975, "testB": 1_810},
    ("refcoco+", "unc"): {"train": 42_278, "val": 3_805, "testA": 1_975, "testB": 1_798},
    ("refcocog", "umd"): {"train": 42_226, "val": 2_573, "test": 5_023},
    ("refcocog", "google"): {"train": 44_822, "val": 5_000},
}
"""(data set, split-by) -> references of each split. gRefCOCO's and Ref-ZOM's are not stated."""

IMAGES: dict[tuple[str, str], int] = {
    # refer, pyReferDemo.ipynb
    ("refcoco", "unc"): 19_994,
}
"""(data set, split-by) -> images with references."""

EXPRESSIONS: dict[tuple[str, str], int] = {
    # refer, pyReferDemo.ipynb
    ("refcoco", "unc"): 142_210,
}
"""(data set, split-by) -> expressions."""
