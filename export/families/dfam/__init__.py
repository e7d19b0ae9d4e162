"""`dfam` for the exporter: its graphs, the host's part, its rules, what it is checked with."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from ris.export.families.design import FamilyDesign, Questions, Variants
from ris.export.families.dfam.stages import answer, host, stages
from ris.export.sample import CATEGORIES, EXPRESSIONS, sample_image, sample_scene
from ris.reference.dfam.categories import category_entries
from ris.reference.dfam.config import ModelConfig
from ris.reference.dfam.model import RISModel


def _questions(config: ModelConfig, trained: bool) -> Questions:
    """The trained demo is shown a drawn scene, the kind that it was trained on.

    On any other picture an agreement of its masks would mean little.
    """
    if trained and config.preset == "demo":
        return Questions(*sample_scene(), CATEGORIES)
    return Questions(sample_image(), EXPRESSIONS, CATEGORIES)


def _words(config: ModelConfig) -> str:
    """The configuration in three lines: variant, sizes, prompts."""
    heads = {
        "none": "without no-target head",
        "linear": "with a linear no-target head",
        "mlp": "with a no-target head",
    }
    head = heads[config.no_target]
    words = "the released code" if config.sparse_branch == "feed_forward" else "the supplement"

    sam, clip, bert = config.sam, config.clip, config.bert
    sam_size = f"SAM {sam.image_size} px, {sam.width} wide, {sam.depth} blocks"
    clip_size = f"CLIP {clip.image_size} px, {clip.width} wide, {clip.layers} blocks"
    bert_size = f"BERT {bert.width} wide, {bert.layers} layers, {bert.vocab_size} words"

    grid = config.dense_prompt_grid
    dense = f"dense prompt {grid}x{grid} {config.dense_interpolation}"
    sparse = f"sparse branch {config.sparse_branch}"
    return (
        f"{config.preset}, {config.query} variant {head}, as {words} has it\n"
        f"  {sam_size}; {clip_size}; {bert_size}\n"
        f"  {dense}, {sparse}, {config.prompt_width} channels"
    )


def _choose(config: ModelConfig, variant: str | None, supplement: bool) -> ModelConfig:
    """A preset's configuration as the options have it."""
    if variant == "category":
        config = config.with_category_query()
    return config.with_supplement() if supplement else config


def _contradiction(
    config: ModelConfig, variant: str | None, supplement: bool
) -> tuple[str, str] | None:
    """The option that a checkpoint's configuration contradicts, and what that is."""
    if variant is not None and variant != config.query:
        head = "no" if config.no_target == "none" else "a"
        found = f"is the {config.query} variant (it has {head} no-target head)"
        return f"--variant {variant}", found
    is_supplement = config.sparse_branch == "additive" or config.dense_grid == "clip"
    if supplement and not is_supplement:
        return "--supplement", "is as the released code has it"
    return None


def _repeated(model: RISModel) -> Iterable[nn.Module]:
    """The blocks of SAM, CLIP and BERT and the pixel decoder's layers."""
    visual: Any = model.clip_dense.clip_model.visual
    yield from model.sam.image_encoder.blocks
    yield from visual.transformer.resblocks
    yield from model.text_encoder.encoder.layer
    yield from model.clip_pixel_decoder.transformer.encoder.layers


def _categories(model: RISModel) -> tuple[list[Any], NDArray[np.float32]]:
    table = model.text_embeddings
    return category_entries(len(table)), table.numpy()


def _memory(config: ModelConfig) -> int:
    """The attention maps of SAM's global blocks."""
    return 3 * config.sam.heads * config.sam.grid**4 * 4


DESIGN = FamilyDesign(
    stages=stages,
    host=host,
    answer=answer,
    questions=_questions,
    words=_words,
    repeated=_repeated,
    variants=Variants(lambda config: config.query, _choose, _contradiction),
    categories=_categories,
    memory=_memory,
)
"""The family's row in `ris.export.families.DESIGNS`."""
