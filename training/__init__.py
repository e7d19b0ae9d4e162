"""Training: the supplement's losses and recipe, on drawn scenes or on RefCOCO's files.

docs/guide/train.md says how to train.
"""
