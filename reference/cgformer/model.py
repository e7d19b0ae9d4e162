"""The whole model: BERT from its library, the other modules ours.

Attribute names are the checkpoint's key names, so `load_state_dict` takes an official state dict
(`ris.reference.checkpoint` says what it may have besides).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import BertModel

from ris.reference.cgformer.config import CgformerConfig
from ris.reference.cgformer.decoder import Decoder, TokenOutputs
from ris.reference.layers.encoders import build_bert, fill_buffers, run_bert
from ris.reference.layers.worded_swin import Mixing, Stem, WordedSwin


@dataclass
class CgformerOutputs:
    """Every stage of one forward pass behind the stem, float32, in the order of computation.

    s is the side of the first stage's grid, S that of the input; C are the backbone's first
    channels, D those of the decoder, T is the number of tokens.
    """

    text_features: Tensor
    """BERT's states, [N, T, bert width]."""

    maps: list[Tensor]
    """The backbone's maps "res2" to "res5", [N, C, s, s] to [N, 8C, s/8, s/8]."""

    fused: list[Tensor]
    """The decoder's maps, coarse to fine, [N, D, s/4, s/4] to [N, D, s, s]."""

    tokens: TokenOutputs
    """What the tokens make of them."""

    mask_logits: Tensor
    """[N, 1, S, S]."""


def mixing(config: CgformerConfig) -> Mixing:
    """How the backbone mixes the words in."""
    return Mixing("pwam_fusion", "pwam_gate", config.bert.width, config.pwam_heads)


class CgformerModel(nn.Module):
    """The reference model."""

    def __init__(self, config: CgformerConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = WordedSwin(config.swin, config.image_size, mixing(config))
        self.text_encoder = build_bert(config.bert)
        self.decoder = Decoder(config)

    @property
    def bert(self) -> BertModel:
        """BERT."""
        return self.text_encoder

    def encode_words(self, input_ids: Tensor) -> Tensor:
        """input_ids [N, T], 0 is padding -> BERT's states [N, T, bert width]."""
        return run_bert(self.bert, input_ids)

    def ask(
        self,
        stem: Stem,
        input_ids: Tensor,
        text_mask: Tensor | None = None,
        noise: Tensor | None = None,
    ) -> CgformerOutputs:
        """What depends on N expressions.

        Args:
            stem: Of `WordedSwin.stem`, a row for each expression.
            input_ids: The expressions' tokens, int64 [N, T], 0 is padding.
            text_mask: [N, T], 1 for real tokens; None for what the ids say.
            noise: As of `Decoder.group`.
        """
        text = self.encode_words(input_ids)
        mask = (input_ids != 0).to(text) if text_mask is None else text_mask
        maps = self.backbone(stem, text, mask)
        fused = self.decoder.fuse(maps)
        tokens = self.decoder.group(fused, text, mask, noise)
        mask_logits = self.decoder.masks(fused[-1], tokens.kernel)
        return CgformerOutputs(text, maps, fused, tokens, mask_logits)

    def forward(
        self, image: Tensor, input_ids: Tensor, noise: Tensor | None = None
    ) -> CgformerOutputs:
        """The whole model, one expression an image.

        image [B, 3, S, S], normalised; input_ids int64 [B, T], 0 is padding; noise as of
        `Decoder.group`.
        """
        return self.ask(self.backbone.stem(image), input_ids, noise=noise)


def empty_model(config: CgformerConfig) -> CgformerModel:
    """A model without weights, in eval mode, to be filled with `load_state_dict(assign=True)`.

    It is on the meta device, but for the buffers that no checkpoint carries, which are real.
    """
    with torch.device("meta"):
        model = CgformerModel(config)
    fill_buffers(model.bert)
    return model.eval()
