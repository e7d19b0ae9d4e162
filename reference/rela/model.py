"""The whole model: BERT from its library, the other modules ours.

Attribute names are the checkpoint's key names, so `load_state_dict` takes an official state dict
(`ris.reference.checkpoint` says what it may have besides).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import BertModel

from ris.reference.layers.encoders import build_bert, fill_buffers, run_bert
from ris.reference.layers.worded_swin import Mixing, Stem, WordedSwin
from ris.reference.rela.config import RelaConfig
from ris.reference.rela.pixel_decoder import PixelDecoder
from ris.reference.rela.regions import RegionDecoder, RegionOutputs


@dataclass
class RelaOutputs:
    """Every stage of one forward pass behind the stem, float32, in the order of computation.

    s is the side of the first stage's grid; C are the backbone's first channels, D those of the
    pixel decoder, T is the number of tokens.
    """

    text_features: Tensor
    """BERT's states, [N, T, bert width]."""

    maps: list[Tensor]
    """The backbone's maps "res2" to "res5", [N, C, s, s] to [N, 8C, s/8, s/8]."""

    mask_features: Tensor
    """[N, D, s, s]."""

    levels: list[Tensor]
    """The pixel decoder's maps, coarse to fine, [N, D, s/8, s/8] to [N, D, s/2, s/2]."""

    regions: RegionOutputs
    """The region decoder's."""


def mixing(config: RelaConfig) -> Mixing:
    """How the backbone mixes the words in."""
    return Mixing("fusion", "res_gate", config.bert.width)


class SegmentationHead(nn.Module):
    """Pixel decoder and region decoder, under the checkpoint's names."""

    def __init__(self, config: RelaConfig) -> None:
        super().__init__()
        self.pixel_decoder = PixelDecoder(config)
        self.predictor = RegionDecoder(config)


class RelaModel(nn.Module):
    """The reference model."""

    def __init__(self, config: RelaConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = WordedSwin(config.swin, config.image_size, mixing(config))
        self.text_encoder = build_bert(config.bert)
        self.sem_seg_head = SegmentationHead(config)

    @property
    def bert(self) -> BertModel:
        """BERT."""
        return self.text_encoder

    @property
    def pixel_decoder(self) -> PixelDecoder:
        """The pixel decoder."""
        return self.sem_seg_head.pixel_decoder

    @property
    def region_decoder(self) -> RegionDecoder:
        """The region decoder."""
        return self.sem_seg_head.predictor

    def encode_words(self, input_ids: Tensor) -> Tensor:
        """input_ids [N, T], 0 is padding -> BERT's states [N, T, bert width]."""
        return run_bert(self.bert, input_ids)

    def ask(self, stem: Stem, input_ids: Tensor, text_mask: Tensor | None = None) -> RelaOutputs:
        """What depends on N expressions.

        Args:
            stem: Of `WordedSwin.stem`, a row for each expression.
            input_ids: The expressions' tokens, int64 [N, T], 0 is padding.
            text_mask: [N, T], 1 for real tokens, which the backbone obeys; None for what the ids
                say.
        """
        text = self.encode_words(input_ids)
        mask = (input_ids != 0).to(text) if text_mask is None else text_mask
        maps = self.backbone(stem, text, mask)
        features, levels = self.pixel_decoder(maps)
        regions = self.region_decoder(features, levels, text)
        return RelaOutputs(text, maps, features, levels, regions)

    def forward(self, image: Tensor, input_ids: Tensor) -> RelaOutputs:
        """The whole model, one expression an image.

        image [B, 3, S, S], normalised; input_ids int64 [B, T], 0 is padding.
        """
        return self.ask(self.backbone.stem(image), input_ids)


def empty_model(config: RelaConfig) -> RelaModel:
    """A model without weights, in eval mode, to be filled with `load_state_dict(assign=True)`.

    It is on the meta device, but for the buffers that no checkpoint carries, which are real.
    """
    with torch.device("meta"):
        model = RelaModel(config)
    fill_buffers(model.bert)
    return model.eval()
