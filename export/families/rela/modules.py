"""ReLA cut into what becomes a graph each."""

from __future__ import annotations

from copy import copy
from typing import TypeVar

from torch import Tensor, nn

from ris.export.families.bert import BertEncoder
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
        self.fusion = _without(first.fusion, *_OF_THE_WORDS)

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
        of_stem = ("vis_project", "image_lang_att.f_query")
        self.backbone = _without(
            model.backbone,
            *("patch_embed", "layers.0.blocks"),
            *(f"layers.0.fusion.{part}" for part in of_stem),
        )

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


_OF_THE_WORDS = (
    "project_mm",
    "image_lang_att.f_key",
    "image_lang_att.f_value",
    "image_lang_att.W",
)


Part = TypeVar("Part", bound=nn.Module)


def _without(module: Part, *paths: str) -> Part:
    """The same module without some of its parts, so that a graph has no others to count."""
    part = copy(module)
    part._modules = dict(module._modules)
    for path in paths:
        name, _, rest = path.partition(".")
        inner = part._modules[name]
        assert inner is not None
        if rest:
            part._modules[name] = _without(inner, rest)
        else:
            del part._modules[name]
    return part
