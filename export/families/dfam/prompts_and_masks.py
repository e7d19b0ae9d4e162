"""From features to prompts, and from prompts to masks, in the form that exports well."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ris.export.families.parts import with_parts
from ris.export.families.sam_encoder import channels_last
from ris.reference.dfam.model import RISModel
from ris.reference.dfam.queries import DFAM
from ris.reference.layers.deformable import Sampling


def _path(dfam: DFAM, *, clip: bool) -> DFAM:
    """The same DFAM with the layers of one path alone, so that a graph has no others to count."""
    layers = ("CA_layers", "SA_layers", "transformer_ffn_layers")
    return with_parts(dfam, dict.fromkeys(name if clip else f"{name}2" for name in layers))


class ImageFeatures(nn.Module):
    """What the fusion reads of an image: all of PWAM and of DFAM that depends on no word.

    See docs/reference/models/dfam.md 6, 13 and 14.
    """

    def __init__(self, model: RISModel) -> None:
        super().__init__()
        self.pwam = model.adaptor_clip.fusion
        self.has_no_target = model.config.no_target != "none"
        if self.has_no_target:
            self.sam_pyramid = model.backbone_sam
            self.dfam = _path(model.decoder, clip=False)

    def forward(
        self, clip_tokens: Tensor, image_embeddings: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """The features of B images.

        Args:
            clip_tokens: CLIP's tokens [B, g*g, width].
            image_embeddings: SAM's embeddings [B, C, s, s]. None: the model has no no-target head.

        Returns:
            `pixel_values` and `pixel_queries` [B, g*g, C] and, where the model has a no-target
            head, `object_queries` [B, Q, C] and `object_masks` [B, Q, s, s].
        """
        outputs = self.pwam.project_image(clip_tokens)
        if not self.has_no_target:
            return outputs
        assert image_embeddings is not None
        levels = self.sam_pyramid(image_embeddings)[::-1]
        return (*outputs, *self.dfam.read_sam(levels, image_embeddings))


class Fusion(nn.Module):
    """An image's features and words -> dense prompt, sparse prompt, no-target logits.

    See docs/reference/models/dfam.md 6-9 and 14.
    """

    def __init__(self, model: RISModel, sampling: Sampling) -> None:
        super().__init__()
        self.pwam = model.adaptor_clip.fusion
        self.pyramid = model.backbone_clip
        self.pixel_decoder = model.clip_pixel_decoder
        self.pixel_decoder.set_sampling(sampling)
        self.sparse = model.txt2txt
        self.by_category = model.config.query == "category"
        self.project_category = model.clip_mlpl if self.by_category else None
        self.has_no_target = model.config.no_target != "none"
        if self.has_no_target:
            self.dfam = _path(model.decoder, clip=True)

    def forward(
        self,
        pixel_values: Tensor,
        pixel_queries: Tensor,
        text_features: Tensor,
        text_mask: Tensor,
        image_index: Tensor,
        object_queries: Tensor | None = None,
        object_masks: Tensor | None = None,
        category_feature: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """The prompts of N expressions about B images.

        Args:
            pixel_values: Of `ImageFeatures` [B, g*g, C].
            pixel_queries: Of `ImageFeatures` [B, g*g, C].
            text_features: The words [N, T, C].
            text_mask: 1 for a word, 0 for padding [N, T].
            image_index: The image of each expression, int32 [N].
            object_queries: Of `ImageFeatures` [B, Q, C]. None: the model has no no-target head.
            object_masks: Of `ImageFeatures` [B, Q, s, s]. None: the same.
            category_feature: CLIP's feature of a category [N, E]. None: the model asks with [CLS].

        Returns:
            `dense_prompt` [N, C, h, h], `sparse_prompt` [N, 1, C], and `no_target_logits` [N, 2]
            where the model has them.
        """
        index = image_index.long()
        values, queries = (x.index_select(0, index) for x in (pixel_values, pixel_queries))
        fused = self.pwam.fuse(values, queries, text_features, text_mask)
        dense_prompt, maps = self.pixel_decoder(*self.pyramid(fused), finest_only=True)
        if self.project_category is not None:
            query = self.project_category(category_feature)[:, None]
        else:
            query = text_features[:, :1]
        outputs = [dense_prompt, self.sparse(query, text_features)]
        if self.has_no_target:
            assert object_queries is not None
            assert object_masks is not None
            objects, masks = (x.index_select(0, index) for x in (object_queries, object_masks))
            outputs.append(self.dfam.decide(objects, maps[-1], masks))
        return tuple(outputs)


class MaskDecoder(nn.Module):
    """SAM's mask decoder with one sparse token, and of its masks the one of mask token 0.

    See docs/reference/models/dfam.md 10 and 11.
    """

    def __init__(self, model: RISModel) -> None:
        super().__init__()
        decoder = model.sam.mask_decoder
        self.transformer = decoder.transformer
        self.upscale = channels_last(decoder.output_upscaling)
        self.hypernetwork = decoder.output_hypernetworks_mlps[0]
        self.tokens = nn.Buffer(
            torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])[None]
        )
        self.positions = nn.Buffer(model.sam.prompt_encoder.get_dense_pe())
        self.size = model.config.mask_size

    def forward(
        self,
        image_embeddings: Tensor,
        dense_prompt: Tensor,
        sparse_prompt: Tensor,
        image_index: Tensor,
    ) -> Tensor:
        """The masks of N expressions about B images, as logits [N, 1, m, m].

        Args:
            image_embeddings: SAM's embeddings [B, C, s, s].
            dense_prompt: The dense prompt at their size [N, C, s, s].
            sparse_prompt: The sparse prompt [N, 1, C].
            image_index: The image of each expression, int32 [N].
        """
        source = image_embeddings.index_select(0, image_index.long()) + dense_prompt
        tokens = torch.cat([self.tokens.expand(sparse_prompt.shape[0], -1, -1), sparse_prompt], 1)
        tokens, image_tokens = self.transformer(source, self.positions, tokens)
        upscaled = self.upscale(image_tokens.transpose(1, 2).unflatten(2, source.shape[2:]))
        hyper = self.hypernetwork(tokens[:, 1:2])  # mask token 0 stands behind the IoU token
        return (hyper @ upscaled.flatten(2)).unflatten(2, (self.size, self.size))
