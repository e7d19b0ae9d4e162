"""The model's forward pass for training: batched, many expressions an image, every loss's input.

`RISModel.forward` is the inference path. This one gives the same mask and no-target logits (a test
holds it to that), and computes what depends on the image alone once for all its expressions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ris.reference.dfam.model import RISModel


@dataclass
class TrainingOutputs:
    """What the losses read, for B images, N expressions and Q queries.

    C is the prompt's width, s the side of SAM's grid.
    """

    mask_logits: Tensor
    """The main mask, [N, 1, 4s, 4s]."""

    query_masks: list[Tensor]
    """DFAM's masks, [B, Q, s, s] logits before its first layer and after each.

    They depend on the image alone.
    """

    objects: list[Tensor]
    """The object embeddings, [N, Q, C], at the same places as `query_masks`."""

    sentences: Tensor
    """The projected [CLS] states, [N, C]."""

    no_target_logits: Tensor | None
    """The no-target head's logits, [N, 2]; None where the model has no such head."""

    image_embeddings: Tensor
    """SAM's image embeddings, [B, C, s, s]."""

    clip_tokens: Tensor
    """CLIP's patch tokens, [B, P, w]."""

    dense_prompt: Tensor
    """The dense prompt before its interpolation, [N, C, d, d]."""


def decode_masks(model: RISModel, images: Tensor, sparse_prompt: Tensor) -> Tensor:
    """SAM's mask decoder for a batch; segment_anything's own takes one image at a time.

    images: [N, C, s, s] with the dense prompt already added. Returns logits [N, 1, 4s, 4s].
    """
    decoder = model.sam_decoder
    own_tokens = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
    tokens = torch.cat([own_tokens.expand(len(images), -1, -1), sparse_prompt], 1)
    positions = model.sam.prompt_encoder.get_dense_pe().expand(len(images), -1, -1, -1)
    states, pixels = decoder.transformer(images, positions, tokens)

    upscaled = decoder.output_upscaling(pixels.transpose(1, 2).unflatten(2, images.shape[-2:]))
    filters = decoder.output_hypernetworks_mlps[0](states[:, 1])
    return (filters[:, None] @ upscaled.flatten(2)).unflatten(2, upscaled.shape[-2:])


def encode(
    model: RISModel, image: Tensor, clip_image: Tensor, trained: bool
) -> tuple[Tensor, Tensor]:
    """The two image encoders.

    Frozen ones take image by image, as in the released code: SAM's attention maps of a whole group
    would need tens of gigabytes, and the numbers do not depend on what else is in the group.

    Args:
        model: The model.
        image: SAM's input, [B, 3, S, S].
        clip_image: CLIP's input, [B, 3, c, c].
        trained: Whether the encoders train; without it no gradient is kept.

    Returns:
        Image embeddings [B, C, s, s] and CLIP tokens [B, P, w].
    """
    if trained:
        return model.encode_sam(image), model.encode_clip(clip_image)
    with torch.no_grad():
        return (
            torch.cat([model.encode_sam(one) for one in image.split(1)]),
            torch.cat([model.encode_clip(one) for one in clip_image.split(1)]),
        )


def ask(
    model: RISModel,
    image_embeddings: Tensor,
    clip_tokens: Tensor,
    input_ids: Tensor,
    image_index: Tensor,
    category: Tensor | None = None,
) -> TrainingOutputs:
    """Everything after the image encoders.

    Args:
        model: The model.
        image_embeddings: SAM's, [B, C, s, s].
        clip_tokens: CLIP's, [B, P, w].
        input_ids: The expressions' tokens, int64 [N, T], padded with 0.
        image_index: Which image each expression is about, int64 [N].
        category: The category each expression is asked with, int64 [N], for the category variant.
    """
    text = model.encode_words(input_ids)[1]
    mask = (input_ids != 0).to(text)
    pwam = model.pwam
    values, queries = pwam.project_image(clip_tokens)
    fused = pwam.fuse(values[image_index], queries[image_index], text, mask)
    pyramid = model.backbone_clip(fused)
    # as in the released code: half precision is too coarse for where it samples
    with torch.autocast(fused.device.type, enabled=False):
        dense, maps = model.clip_pixel_decoder(*(level.float() for level in pyramid))

    sparse = model.txt2txt(model.sparse_query(text, category), text)
    prompted = image_embeddings[image_index] + model.dense_embedding(dense)
    mask_logits = decode_masks(model, prompted, sparse)

    query_masks, objects = _run_dfam(model, image_embeddings, image_index, maps)
    dfam = model.decoder
    has_head = hasattr(dfam, "nt_embed")
    return TrainingOutputs(
        mask_logits=mask_logits,
        query_masks=query_masks,
        objects=objects,
        sentences=text[:, 0],
        no_target_logits=dfam.no_target(objects[-1])[1] if has_head else None,
        image_embeddings=image_embeddings,
        clip_tokens=clip_tokens,
        dense_prompt=dense,
    )


def _run_dfam(
    model: RISModel, image_embeddings: Tensor, image_index: Tensor, maps: list[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """DFAM: its masks and object embeddings, before the first layer and after each.

    maps: those of CLIP's pixel decoder, one for each layer.
    """
    dfam, levels = model.decoder, model.backbone_sam(image_embeddings)[::-1]
    states = dfam.start(image_embeddings)
    query_masks = [dfam.masks(states, image_embeddings)]
    objects = [dfam.objects(states[image_index])]

    for layer in range(dfam.layers):
        states = dfam.sam_step(layer, states, levels[layer], query_masks[-1])
        seen = query_masks[-1][image_index]
        asked = dfam.clip_step(layer, states[image_index], maps[layer], seen)
        objects.append(dfam.objects(asked))
        query_masks.append(dfam.masks(states, image_embeddings))
    return query_masks, objects
