"""ReLA cut into what becomes a graph each."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ris.export.families.bert import BertEncoder
from ris.export.families.parts import with_parts
from ris.reference.layers.deformable import Sampling
from ris.reference.rela.backbone import Stem
from ris.reference.rela.model import RelaModel


class ImageStem(nn.Module):
    """What the words do not reach: the first stage's blocks, and its half of the mixture.

    `image` [B, 3, S, S] -> `stem`, `stem_vis` and `stem_query`, [B, s*s, C] each.
    """

    def __init__(self, model: RelaModel) -> None:
        super().__init__()
        first = model.backbone.stages()[0]
        self.patch_embed, self.blocks = model.backbone.patch_embed, first.blocks
        self.fusion = with_parts(first.fusion, dict.fromkeys(_OF_THE_WORDS))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        tokens = self.patch_embed(image)
        for block in self.blocks:
            tokens = block(tokens)
        return (tokens, *self.fusion.project_image(tokens))


class TextEncoder(BertEncoder):
    """`input_ids` [N, T] -> `text_features` [N, T, width], those of padding among them."""

    def __init__(self, model: RelaModel) -> None:
        super().__init__(model.bert, model.config.max_tokens)


class WordsInImage(nn.Module):
    """The rest of the backbone: everything that sees the words."""

    def __init__(self, model: RelaModel) -> None:
        super().__init__()
        mixtures = {
            f"layers.{i}.fusion.image_lang_att": CentredAttention(stage.fusion.image_lang_att)
            for i, stage in enumerate(model.backbone.stages())
        }
        first = "layers.0"
        of_stem = (
            "patch_embed",
            *(f"{first}.{p}" for p in ("blocks", "fusion.vis_project", _QUERY)),
        )
        self.backbone = with_parts(model.backbone, mixtures | dict.fromkeys(of_stem))

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


class Segmenter(nn.Module):
    """Pixel decoder and region decoder: the maps of an expression -> its answer."""

    def __init__(self, model: RelaModel, sampling: Sampling) -> None:
        super().__init__()
        self.pixel_decoder, self.regions = model.pixel_decoder, model.region_decoder
        self.pixel_decoder.set_sampling(sampling)

    def forward(
        self, res2: Tensor, res3: Tensor, res4: Tensor, res5: Tensor, text_features: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The answer for N expressions.

        Args:
            res2: The finest of the backbone's maps [N, C, s, s].
            res3: [N, 2C, s/2, s/2].
            res4: [N, 4C, s/4, s/4].
            res5: [N, 8C, s/8, s/8].
            text_features: BERT's states [N, T, width], padding included.

        Returns:
            `mask_logits` [N, 1, s, s], foreground minus background, and `no_target_logits` [N, 2].
        """
        features, levels = self.pixel_decoder([res2, res3, res4, res5])
        found = self.regions(features, levels, text_features)
        return found.mask_logits, found.no_target_logits


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
        for name, part in attention.named_children():
            setattr(self, name, part)

    def forward(self, query: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        """query [N, P, C], text [N, T, text width], mask [N, T] -> [N, P, C]."""
        key, value = (project(text) * mask[..., None] for project in (self.f_key, self.f_value))
        products = (query * query.shape[-1] ** -0.5) @ key.transpose(1, 2)
        weights = (products + 10000.0 * (mask[:, None] - 1.0)).softmax(-1)
        weights = weights - weights.mean(1, keepdim=True)
        weight: Any = self.W[0].weight
        return self.W[1](F.linear(weights @ value, weight[..., 0]))


_QUERY = "fusion.image_lang_att.f_query"
_OF_THE_WORDS = (
    "project_mm",
    "image_lang_att.f_key",
    "image_lang_att.f_value",
    "image_lang_att.W",
)
