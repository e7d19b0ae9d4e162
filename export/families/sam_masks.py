"""SAM's mask decoder for prompt vectors alone, in the form that exports well."""

from __future__ import annotations

import torch
from segment_anything.modeling import Sam
from torch import Tensor, nn

from ris.export.families.sam_encoder import channels_last


class SamMasks(nn.Module):
    """SAM's mask decoder without a dense prompt, and of its masks the one of mask token 0.

    What SAM adds where no mask is given is a constant.
    """

    def __init__(self, sam: Sam) -> None:
        super().__init__()
        decoder, prompts = sam.mask_decoder, sam.prompt_encoder
        self.transformer = decoder.transformer
        self.upscale = channels_last(decoder.output_upscaling)
        self.hypernetwork = decoder.output_hypernetworks_mlps[0]
        self.tokens = nn.Buffer(
            torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])[None]
        )
        self.dense_prompt = nn.Buffer(prompts.no_mask_embed.weight[..., None, None].clone())
        self.positions = nn.Buffer(prompts.get_dense_pe())

    def forward(
        self,
        image_embeddings: Tensor,
        sparse_prompt: Tensor,
        image_index: Tensor | None = None,
    ) -> Tensor:
        """The masks of N expressions about B images, as logits [N, 1, 4s, 4s].

        Args:
            image_embeddings: SAM's embeddings [B, C, s, s].
            sparse_prompt: The sparse prompt [N, 1, C].
            image_index: The image of each expression, int32 [N]. None: all are about one image.
        """
        count = sparse_prompt.shape[0]
        source = image_embeddings + self.dense_prompt
        if image_index is None:
            source = source.expand(count, -1, -1, -1)
        else:
            source = source.index_select(0, image_index.long())
        tokens = torch.cat([self.tokens.expand(count, -1, -1), sparse_prompt], 1)
        tokens, image_tokens = self.transformer(source, self.positions, tokens)
        upscaled = self.upscale(image_tokens.transpose(1, 2).unflatten(2, source.shape[2:]))
        hyper = self.hypernetwork(tokens[:, 1:2])  # mask token 0 stands behind the IoU token
        return (hyper @ upscaled.flatten(2)).unflatten(2, upscaled.shape[2:])
