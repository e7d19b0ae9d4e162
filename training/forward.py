"""The model's forward pass as training wants it: many expressions an image, everything batched,
every loss's input.

`RISModel.forward` is the inference path; this one gives the same mask and no-target logits (a test
holds it to that) and shares what depends on the image alone between its expressions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ris.reference.model import RISModel


@dataclass
class TrainingOutputs:
    """What the losses read; B images, N expressions, Q queries, s SAM's grid, C the prompt width, T
    tokens.

    mask_logits [N, 1, 4s, 4s]. query_masks: [B, Q, s, s] before DFAM's first layer and after each;
    they depend on the image alone. objects: the object embeddings [N, Q, C] at the same four
    places. sentences [N, C]: the projected [CLS] states. no_target_logits [N, 2] where the model
    has the head. image_embeddings [B, C, s, s], clip_tokens [B, P, w]. dense_prompt [N, C, d, d]:
    before its interpolation.
    """

    mask_logits: Tensor
    query_masks: list[Tensor]
    objects: list[Tensor]
    sentences: Tensor
    no_target_logits: Tensor | None
    image_embeddings: Tensor
    clip_tokens: Tensor
    dense_prompt: Tensor


def decode_masks(model: RISModel, images: Tensor, sparse_prompt: Tensor) -> Tensor:
    """SAM's mask decoder for a batch: images [N, C, s, s] with the dense prompt already added ->
    [N, 1, 4s, 4s].

    segment_anything's own forward takes one image at a time.
    """
    decoder = model.sam.mask_decoder
    tokens = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight]).expand(
        len(images), -1, -1
    )
    positions = model.sam.prompt_encoder.get_dense_pe().expand(len(images), -1, -1, -1)
    states, pixels = decoder.transformer(images, positions, torch.cat([tokens, sparse_prompt], 1))
    upscaled = decoder.output_upscaling(pixels.transpose(1, 2).unflatten(2, images.shape[-2:]))
    filters = decoder.output_hypernetworks_mlps[0](states[:, 1])
    return (filters[:, None] @ upscaled.flatten(2)).unflatten(2, upscaled.shape[-2:])


def encode(
    model: RISModel, image: Tensor, clip_image: Tensor, trained: bool
) -> tuple[Tensor, Tensor]:
    """The two image encoders: (image embeddings, clip tokens); without gradient where they are not
    `trained`.
    """
    with torch.set_grad_enabled(trained and torch.is_grad_enabled()):
        return model.encode_sam(image), model.encode_clip(clip_image)


def ask(
    model: RISModel,
    image_embeddings: Tensor,
    clip_tokens: Tensor,
    input_ids: Tensor,
    image_index: Tensor,
    category: Tensor | None = None,
) -> TrainingOutputs:
    """Everything after the image encoders.

    image_embeddings [B, C, s, s], clip_tokens [B, P, width], input_ids [N, T] int64, image_index
    [N] int64: which image each expression is about, category [N] int64 for the category variant.
    """
    text = model.encode_words(input_ids)[1]
    mask = (input_ids != 0).to(text)
    pwam = model.adaptor_clip.fusion
    values, queries = pwam.project_image(clip_tokens)
    fused = pwam.fuse(values[image_index], queries[image_index], text, mask)
    dense, maps = model.clip_pixel_decoder(*model.backbone_clip(fused))
    sparse = model.txt2txt(model.sparse_query(text, category), text)
    mask_logits = decode_masks(
        model, image_embeddings[image_index] + model.dense_embedding(dense), sparse
    )

    dfam, levels = model.decoder, model.backbone_sam(image_embeddings)[::-1]
    states = dfam.start(image_embeddings)
    query_masks = [dfam.masks(states, image_embeddings)]
    objects = [dfam.objects(states[image_index])]
    for layer in range(dfam.layers):
        states = dfam.sam_step(layer, states, levels[layer], query_masks[-1])
        seen = query_masks[-1][image_index]
        objects.append(dfam.objects(dfam.clip_step(layer, states[image_index], maps[layer], seen)))
        query_masks.append(dfam.masks(states, image_embeddings))
    decided = dfam.no_target(objects[-1])[1] if hasattr(dfam, "nt_embed") else None
    return TrainingOutputs(
        mask_logits, query_masks, objects, text[:, 0], decided, image_embeddings, clip_tokens, dense
    )
