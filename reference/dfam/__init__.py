"""DFAM: Ito, "Feature Design for Bridging SAM and CLIP toward Referring Image Segmentation".

WACV 2025. Written from docs/reference/models/dfam.md, whose sections the docstrings here cite.
"""
