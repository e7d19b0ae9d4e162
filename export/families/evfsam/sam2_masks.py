"""SAM 2's mask decoder for prompt vectors alone, in the form that exports well."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from segment_anything.modeling.common import LayerNorm2d
from torch import Tensor, nn

from ris.export.families.sam_encoder import ChannelsLastNorm
from ris.reference.evfsam.sam2_decoder import IOU_TOKEN, Sam2
from ris.reference.layers.basic import MLP

_CHOICES = (1, 2, 3)  # the masks of which the best is taken


class Sam2Masks(nn.Module):
    """SAM 2's mask decoder, and of its three masks the one that it takes to be the best."""

    def __init__(self, sam2: Sam2) -> None:
        super().__init__()
        decoder, prompts = sam2.sam_mask_decoder, sam2.sam_prompt_encoder
        self.transformer = decoder.transformer
        first, norm, _, second, _ = decoder.output_upscaling
        self.upscale_1, self.upscale_2 = first, second
        self.norm = ChannelsLastNorm(cast(LayerNorm2d, norm))
        self.hypernetworks = nn.ModuleList(decoder.output_hypernetworks_mlps[i] for i in _CHOICES)
        self.scores = decoder.iou_prediction_head
        self.tokens = nn.Buffer(decoder.own_tokens())
        self.dense_prompt = nn.Buffer(prompts.no_mask_embed.weight[..., None, None].clone())
        self.positions = nn.Buffer(prompts.get_dense_pe())

    def forward(
        self,
        image_embeddings: Tensor,
        high_res_1: Tensor,
        high_res_0: Tensor,
        sparse_prompt: Tensor,
        image_index: Tensor,
    ) -> Tensor:
        """The masks of N expressions about B images, as logits [N, 1, 4s, 4s].

        Args:
            image_embeddings: SAM 2's embeddings [B, C, s, s].
            high_res_1: The finer map [B, C/4, 2s, 2s].
            high_res_0: The finest [B, C/8, 4s, 4s].
            sparse_prompt: The sparse prompt [N, 1, C].
            image_index: The image of each expression, int32 [N].
        """
        index = image_index.long()
        source = (image_embeddings + self.dense_prompt).index_select(0, index)
        tokens = torch.cat([self.tokens.expand(sparse_prompt.shape[0], -1, -1), sparse_prompt], 1)
        tokens, image_tokens = self.transformer(source, self.positions, tokens)

        found = self.upscale_1(image_tokens.transpose(1, 2).unflatten(2, source.shape[2:]))
        found = F.gelu(self.norm(found + high_res_1.index_select(0, index)))
        upscaled = F.gelu(self.upscale_2(found) + high_res_0.index_select(0, index))
        return (self._kernel(tokens) @ upscaled.flatten(2)).unflatten(2, upscaled.shape[2:])

    def _kernel(self, tokens: Tensor) -> Tensor:
        """The weights of the best mask, [N, 1, C/8]."""
        places = (IOU_TOKEN + 1 + mask for mask in _CHOICES)
        kernels = [
            cast(MLP, make)(tokens[:, place : place + 1])
            for place, make in zip(places, self.hypernetworks, strict=True)
        ]
        # the sigmoid of the scores would keep their order
        best = self.scores(tokens[:, IOU_TOKEN])[:, _CHOICES[0] :].argmax(1)
        chosen = best[:, None, None].expand(-1, 1, kernels[0].shape[2])
        return torch.cat(kernels, 1).gather(1, chosen)
