"""SAM 2 for one image and one prompt vector: its encoder's three outputs, and its mask decoder.

Of Ravi et al., "SAM 2: Segment Anything in Images and Videos" (2024). The prompt encoder and the
two-way transformer are SAM's, from the segment_anything package; the rest is written from a
description of what it computes (docs/reference/models/evfsam.md). What videos need is left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from segment_anything.modeling import PromptEncoder, TwoWayTransformer
from segment_anything.modeling.common import LayerNorm2d
from torch import Tensor, nn

from ris.reference.evfsam.hiera import HieraEncoder
from ris.reference.evfsam.hiera_sizes import HieraSizes
from ris.reference.layers.basic import MLP

_DEPTH = 2  # layers of the two-way transformer
_MASKS = 4  # mask tokens; the first is for prompts that leave no doubt
_MASK_IN = 16  # hidden channels of the prompt encoder's way in for masks, which nothing uses

IOU_TOKEN = 1
"""Position of the IoU token among the tokens; the mask tokens follow."""


@dataclass(frozen=True)
class ImageMaps:
    """What depends on B images alone; s is the side of the embeddings."""

    image_embeddings: Tensor
    """[B, C, s, s]."""

    high_res_1: Tensor
    """[B, C/4, 2s, 2s]."""

    high_res_0: Tensor
    """[B, C/8, 4s, 4s]."""


@dataclass(frozen=True)
class Decoded:
    """What the mask decoder makes of N prompts; s is the side of the embeddings."""

    tokens: Tensor
    """The tokens behind the transformer [N, 7, C]."""

    image_tokens: Tensor
    """The image behind the transformer [N, s*s, C]."""

    masks: Tensor
    """The logits of three masks [N, 3, 4s, 4s]."""

    iou_predictions: Tensor
    """How good the decoder takes each of them to be [N, 3], 0 to 1."""

    best: Tensor
    """Which of them it takes to be the best, int64 [N]."""

    mask_logits: Tensor
    """That one [N, 1, 4s, 4s]."""


class Sam2MaskDecoder(nn.Module):
    """SAM 2's mask decoder, asked for the best of three masks."""

    def __init__(self, width: int, heads: int, mlp_width: int) -> None:
        """Makes the decoder.

        Args:
            width: Channels of embeddings and prompts.
            heads: Attention heads of its transformer.
            mlp_width: Hidden channels of its transformer's feed-forward layers.
        """
        super().__init__()
        self.transformer = TwoWayTransformer(_DEPTH, width, heads, mlp_width)
        for layer in self.transformer.layers:
            layer.mlp = MLP(width, mlp_width, width, 2)  # SAM's, under SAM 2's keys
        self.iou_token = nn.Embedding(1, width)
        self.mask_tokens = nn.Embedding(_MASKS, width)
        self.obj_score_token = nn.Embedding(1, width)
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose2d(width, width // 4, 2, 2),
            LayerNorm2d(width // 4),
            nn.GELU(),
            nn.ConvTranspose2d(width // 4, width // 8, 2, 2),
            nn.GELU(),
        )
        self.conv_s0 = nn.Conv2d(width, width // 8, 1)
        self.conv_s1 = nn.Conv2d(width, width // 4, 1)
        self.output_hypernetworks_mlps = nn.ModuleList(
            MLP(width, width, width // 8, 3) for _ in range(_MASKS)
        )
        self.iou_prediction_head = MLP(width, width, _MASKS, 3)

    def own_tokens(self) -> Tensor:
        """The tokens that stand before the prompt [1, 6, C]."""
        parts = self.obj_score_token, self.iou_token, self.mask_tokens
        return torch.cat([part.weight for part in parts])[None]

    def upscale(self, image_tokens: Tensor, high_res_1: Tensor, high_res_0: Tensor) -> Tensor:
        """The image at four times the side.

        Args:
            image_tokens: The image behind the transformer [N, C, s, s].
            high_res_1: [N, C/4, 2s, 2s].
            high_res_0: [N, C/8, 4s, 4s].

        Returns:
            [N, C/8, 4s, 4s].
        """
        first, norm, gelu, second, _ = self.output_upscaling
        found = gelu(norm(first(image_tokens) + high_res_1))
        return gelu(second(found) + high_res_0)

    def forward(
        self,
        source: Tensor,
        positions: Tensor,
        sparse_prompt: Tensor,
        high_res_1: Tensor,
        high_res_0: Tensor,
    ) -> Decoded:
        """The masks of N prompts.

        Args:
            source: The image embeddings with the dense prompt added [N, C, s, s].
            positions: The encoding of their places [1, C, s, s].
            sparse_prompt: [N, 1, C].
            high_res_1: The finer map of each prompt's image [N, C/4, 2s, 2s].
            high_res_0: The finest [N, C/8, 4s, 4s].
        """
        own = self.own_tokens().expand(len(sparse_prompt), -1, -1)
        places = positions.expand(len(sparse_prompt), -1, -1, -1)
        tokens, image_tokens = self.transformer(source, places, torch.cat([own, sparse_prompt], 1))
        back = image_tokens.transpose(1, 2).unflatten(2, source.shape[2:])
        upscaled = self.upscale(back, high_res_1, high_res_0)

        kernels = torch.stack(
            [
                self.output_hypernetworks_mlps[i](tokens[:, IOU_TOKEN + 1 + i])
                for i in range(1, _MASKS)
            ],
            1,
        )
        masks = (kernels @ upscaled.flatten(2)).unflatten(2, upscaled.shape[2:])
        scores = self.iou_prediction_head(tokens[:, IOU_TOKEN])[:, 1:].sigmoid()
        best = scores.argmax(1)
        chosen = masks[torch.arange(len(masks), device=masks.device), best][:, None]
        return Decoded(tokens, image_tokens, masks, scores, best, chosen)


class Sam2(nn.Module):
    """What EVF-SAM2 uses of SAM 2; keys as below `visual_model.`."""

    def __init__(self, sizes: HieraSizes, width: int, heads: int, mlp_width: int) -> None:
        """Makes SAM 2.

        Args:
            sizes: Sizes of its image encoder.
            width: Channels of its embeddings and prompts.
            heads: Attention heads of its mask decoder.
            mlp_width: Hidden channels of the feed-forward layers of its mask decoder.
        """
        super().__init__()
        side = sizes.sides()[2]
        self.image_encoder = HieraEncoder(sizes, width)
        self.no_mem_embed = nn.Parameter(torch.zeros(1, 1, width))
        self.sam_prompt_encoder = PromptEncoder(
            width, (side, side), (sizes.image_size, sizes.image_size), _MASK_IN
        )
        self.sam_mask_decoder = Sam2MaskDecoder(width, heads, mlp_width)

    def encode_image(self, image: Tensor) -> ImageMaps:
        """image [B, 3, S, S], normalised -> what depends on the images alone."""
        finest, fine, coarse = self.image_encoder(image)
        decoder = self.sam_mask_decoder
        embeddings = coarse + self.no_mem_embed[0, :, :, None, None]
        return ImageMaps(embeddings, decoder.conv_s1(fine), decoder.conv_s0(finest))

    def decode(self, maps: ImageMaps, sparse_prompt: Tensor) -> Decoded:
        """The masks of N prompts.

        Args:
            maps: Of the image of each prompt, N rows.
            sparse_prompt: [N, 1, C].
        """
        prompts = self.sam_prompt_encoder
        source = maps.image_embeddings + prompts.no_mask_embed.weight[..., None, None]
        positions = prompts.get_dense_pe()
        return self.sam_mask_decoder(
            source, positions, sparse_prompt, maps.high_res_1, maps.high_res_0
        )
