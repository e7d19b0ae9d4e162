"""LISA (Lai et al., CVPR 2024) in PyTorch: a LLaVA whose language model prompts SAM.

docs/reference/models/lisa.md has the facts.
"""
