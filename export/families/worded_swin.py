"""A Swin that reads the words, cut where the words begin, in the form that exports well.

Families whose backbone is `ris.reference.layers.worded_swin` make two of their graphs of it.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ris.engines import TensorSpec
from ris.export.families.parts import with_parts
from ris.export.families.signatures import of_expression, of_image
from ris.reference.layers.encoder_sizes import SwinConfig
from ris.reference.layers.worded_swin import MAPS, Stem, WordedSwin


def stem_values(swin: SwinConfig, image_size: int) -> tuple[TensorSpec, ...]:
    """What `ImageStem` gives, for pictures of this side in pixels."""
    places = swin.grids(image_size)[0] ** 2
    return tuple(of_image(n, places, swin.width) for n in ("stem", "stem_vis", "stem_query"))


def map_values(swin: SwinConfig, image_size: int) -> tuple[TensorSpec, ...]:
    """What `WordsInImage` gives, for pictures of this side in pixels."""
    sizes = zip(MAPS, swin.widths(), swin.grids(image_size), strict=True)
    return tuple(of_expression(name, width, side, side) for name, width, side in sizes)


class ImageStem(nn.Module):
    """What the words do not reach: the first stage's blocks, and its half of the mixture.

    `image` [B, 3, S, S] -> `stem`, `stem_vis` and `stem_query`, [B, s*s, C] each.
    """

    def __init__(self, backbone: WordedSwin) -> None:
        super().__init__()
        first = backbone.stages()[0]
        self.patch_embed, self.blocks = backbone.patch_embed, first.blocks
        # under its own name, by which a family's rules know it
        self._mixer = first.mixing.mixer
        self.add_module(self._mixer, with_parts(first.words, dict.fromkeys(_OF_THE_WORDS)))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        tokens = self.patch_embed(image)
        for block in self.blocks:
            tokens = block(tokens)
        return (tokens, *getattr(self, self._mixer).project_image(tokens))


class WordsInImage(nn.Module):
    """The rest of the backbone: everything that sees the words."""

    def __init__(self, backbone: WordedSwin) -> None:
        super().__init__()
        mixtures = {
            f"layers.{i}.{stage.mixing.mixer}.image_lang_att": CentredAttention(
                stage.words.image_lang_att
            )
            for i, stage in enumerate(backbone.stages())
        }
        mixer = backbone.stages()[0].mixing.mixer
        first = ("blocks", f"{mixer}.vis_project", f"{mixer}.image_lang_att.f_query")
        of_stem = ("patch_embed", *(f"layers.0.{part}" for part in first))
        self.backbone = with_parts(backbone, mixtures | dict.fromkeys(of_stem))

    def forward(
        self,
        stem: Tensor,
        stem_vis: Tensor,
        stem_query: Tensor,
        text_features: Tensor,
        text_mask: Tensor,
        image_index: Tensor,
    ) -> tuple[Tensor, ...]:
        """The maps of N expressions about B images.

        Args:
            stem: Of `ImageStem` [B, s*s, C].
            stem_vis: Of `ImageStem` [B, s*s, C].
            stem_query: Of `ImageStem` [B, s*s, C].
            text_features: BERT's states [N, T, width].
            text_mask: 1 for a word, 0 for padding [N, T].
            image_index: The image of each expression, int32 [N].

        Returns:
            `res2` [N, C, s, s] to `res5` [N, 8C, s/8, s/8].
        """
        index = image_index.long()
        own = Stem(*(value.index_select(0, index) for value in (stem, stem_vis, stem_query)))
        return tuple(self.backbone(own, text_features, text_mask))


class CentredAttention(nn.Module):
    """PWAM's attention with the mean over the places taken away before the products.

    The instance norm at its end takes it away in any case, the biases with it. It is up to 80 times
    as large as what it leaves; an engine that sums 14,400 places one by one then rounds a part of
    that away, even in FP32.
    """

    f_key: nn.Module
    f_value: nn.Module
    W: nn.Sequential

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.heads: int = attention.heads  # type: ignore[assignment]
        for name, part in attention.named_children():
            setattr(self, name, part)

    def forward(self, query: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        """query [N, P, C], text [N, T, text width], mask [N, T] -> [N, P, C]."""
        key, value = (project(text) * mask[..., None] for project in (self.f_key, self.f_value))
        query = query * query.shape[-1] ** -0.5
        if self.heads > 1:
            query, key, value = (self._split(x) for x in (query, key, value))
        products = query @ key.transpose(-1, -2)
        blocked = 10000.0 * (mask[:, None] - 1.0)
        weights = (products + (blocked[:, None] if self.heads > 1 else blocked)).softmax(-1)
        weights = weights - weights.mean(weights.dim() - 2, keepdim=True)
        read = weights @ value
        if self.heads > 1:
            read = read.transpose(1, 2).flatten(2)
        weight: Any = self.W[0].weight
        return self.W[1](F.linear(read, weight[..., 0]))

    def _split(self, x: Tensor) -> Tensor:
        """x [N, L, C] -> [N, heads, L, C/heads]."""
        return x.unflatten(2, (self.heads, x.shape[2] // self.heads)).transpose(1, 2)


_OF_THE_WORDS = (
    "project_mm",
    "image_lang_att.f_key",
    "image_lang_att.f_value",
    "image_lang_att.W",
)
