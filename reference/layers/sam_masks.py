"""SAM's mask decoder asked by prompt vectors alone."""

from __future__ import annotations

import torch
from segment_anything.modeling import Sam
from torch import Tensor


def masks_of_prompts(sam: Sam, image_embeddings: Tensor, sparse_prompt: Tensor) -> Tensor:
    """The mask of token 0 for each of N prompts, without a dense prompt, row by row.

    Args:
        sam: SAM.
        image_embeddings: [N, C, s, s], or one picture's for all.
        sparse_prompt: [N, 1, C].

    Returns:
        Mask logits [N, 1, 4s, 4s].
    """
    prompts = sam.prompt_encoder
    count = len(sparse_prompt)
    masks = [
        sam.mask_decoder(
            image_embeddings=embeddings,
            image_pe=prompts.get_dense_pe(),
            sparse_prompt_embeddings=prompt,
            dense_prompt_embeddings=prompts.no_mask_embed.weight[..., None, None],
            multimask_output=False,
        )[0]
        for embeddings, prompt in zip(
            image_embeddings.expand(count, -1, -1, -1).split(1),
            sparse_prompt.split(1),
            strict=True,
        )
    ]
    return torch.cat(masks)
