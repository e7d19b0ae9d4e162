"""The whole model: SAM and CLIP from their libraries, LLaMA ours.

Attribute names are the checkpoint's key names without the `model.` in front of them, so
`load_state_dict` takes an official state dict (`ris.reference.checkpoint` says what it may have
besides). CLIP's tower is in a file of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from open_clip.model import CLIP
from segment_anything.modeling import Sam
from torch import Tensor, nn

from ris.reference.layers.encoders import build_clip, build_sam
from ris.reference.layers.sam_masks import masks_of_prompts
from ris.reference.lisa.config import LisaConfig
from ris.reference.lisa.llama import Kept, Llama


@dataclass
class LisaOutputs:
    """Every stage of one forward pass, float32, in the order of computation.

    g is the side of CLIP's grid, s that of SAM's; D are the language model's channels, C those of
    the prompt, L its layers, H its heads and P the positions in front of the question.
    """

    image_embeddings: Tensor
    """SAM's, [B, C, s, s]."""

    clip_features: Tensor
    """CLIP's patch tokens, [B, g*g, CLIP's width]."""

    image_tokens: Tensor
    """The same as the language model takes them, [B, g*g, D]."""

    prefix: Kept
    """What is kept of everything in front of the question, [B, L, H, P, D/H]."""

    hidden: Tensor
    """The state of the question's last token behind the last norm, [B, D]."""

    sparse_prompt: Tensor
    """SAM's one sparse token, [B, 1, C]."""

    mask_logits: Tensor
    """Low-resolution mask logits, [B, 1, 4s, 4s]."""


class _ClipTower(nn.Module):
    """CLIP's image tower without the layers that are not run, under the names of the whole CLIP."""

    def __init__(self, clip: CLIP, layers: int) -> None:
        super().__init__()
        self.visual = clip.visual
        del self.visual.transformer.resblocks[layers:]


class LisaModel(Llama):
    """The reference model. It is a LLaMA with more modules, as the authors' is."""

    def __init__(self, config: LisaConfig) -> None:
        super().__init__(config.llama)
        self.config = config
        width = config.llama.width
        self.clip = _ClipTower(build_clip(config.clip), config.clip_layers)
        self.mm_projector = nn.Linear(config.clip.width, width)
        prompt = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), nn.Linear(width, config.prompt_width)
        )
        self.text_hidden_fcs = nn.ModuleList([prompt])
        self.visual_model = build_sam(
            config.sam, config.prompt_width, config.decoder_heads, config.decoder_mlp_width
        )
        self._kept_constant: Kept | None = None

    # --- parts by what they are, not by their keys in a checkpoint ---

    @property
    def sam(self) -> Sam:
        """SAM."""
        return self.visual_model

    # --- what depends on the picture alone ---

    def encode_sam(self, sam_image: Tensor) -> Tensor:
        """sam_image [B, 3, S, S], normalised -> image embeddings [B, C, s, s]."""
        return self.sam.image_encoder(sam_image)

    def encode_clip(self, clip_image: Tensor) -> Tensor:
        """The patch tokens behind the last layer that is run, without a norm.

        clip_image [B, 3, c, c], normalised -> [B, g*g, CLIP's width].
        """
        visual: Any = self.clip.visual
        patches = visual.conv1(clip_image).flatten(2).transpose(1, 2)
        class_token = visual.class_embedding.expand(patches.shape[0], 1, -1)
        tokens = torch.cat([class_token, patches], 1) + visual.positional_embedding
        return visual.transformer(visual.ln_pre(tokens))[:, 1:]

    def project(self, clip_features: Tensor) -> Tensor:
        """[B, g*g, CLIP's width] -> image tokens [B, g*g, D]."""
        return self.mm_projector(clip_features)

    def constant_prefix(self) -> Kept:
        """What is kept of the positions in front of the picture: the same for every picture.

        [1, L, H, 35, D/H]: `<s>`, the system words and `<im_start>`.
        """
        ids = torch.tensor([self.config.constant_ids], device=self.norm.weight.device)
        return self.remember(self.embed_tokens(ids))

    def keep_constant_prefix(self) -> Kept:
        """`constant_prefix`, which `read_picture` takes from here on, as a graph that holds it.

        It then stays what it is where the weights are rounded later.
        """
        self._kept_constant = self.constant_prefix()
        return self._kept_constant

    def read_picture(self, image_tokens: Tensor, constant: Kept | None = None) -> Kept:
        """What is kept of everything in front of the question.

        image_tokens: [B, g*g, D]. constant: of `constant_prefix`; None for what is kept of it, or
        computes it. Returns keys and values [B, L, H, P, D/H].
        """
        constant = self._kept_constant if constant is None else constant
        before = self.constant_prefix() if constant is None else constant
        end = self.embed_tokens.weight[self.config.tokens.im_end]
        rows = torch.cat([image_tokens, end.expand(len(image_tokens), 1, -1)], 1)
        return self.remember(rows, before)

    # --- what depends on the question ---

    def read_question(self, input_ids: Tensor, last: Tensor, prefix: Kept) -> Tensor:
        """The state that prompts SAM: that of the question's last token, behind the last norm.

        Args:
            input_ids: The questions' ids, int64 [N, T], padded at the right with any id.
            last: The place of each question's last token among its T, int64 [N].
            prefix: Of `read_picture`, of N rows or of one picture that all ask about.

        Returns:
            [N, D].
        """
        return self.state_at(self.embed_tokens(input_ids), last, prefix)

    def sparse_prompt(self, hidden: Tensor) -> Tensor:
        """hidden [N, D] -> SAM's one sparse token [N, 1, C]."""
        return self.text_hidden_fcs[0](hidden)[:, None]

    def decode_masks(self, image_embeddings: Tensor, sparse_prompt: Tensor) -> Tensor:
        """SAM's mask decoder with single-mask output and no dense prompt, row by row.

        Embeddings [N, C, s, s], or one picture's for all; sparse prompt [N, 1, C] -> mask logits
        [N, 1, 4s, 4s].
        """
        return masks_of_prompts(self.sam, image_embeddings, sparse_prompt)

    # --- the whole ---

    def forward(
        self, sam_image: Tensor, clip_image: Tensor, input_ids: Tensor, last: Tensor
    ) -> LisaOutputs:
        """The whole model, one question a picture.

        Args:
            sam_image: SAM's input, [B, 3, S, S], normalised.
            clip_image: CLIP's input, [B, 3, c, c], normalised.
            input_ids: The questions' ids behind the picture, int64 [B, T].
            last: As of `read_question`.
        """
        embeddings = self.encode_sam(sam_image)
        features = self.encode_clip(clip_image)
        tokens = self.project(features)
        prefix = self.read_picture(tokens)
        hidden = self.read_question(input_ids, last, prefix)
        sparse = self.sparse_prompt(hidden)
        masks = self.decode_masks(embeddings, sparse)
        return LisaOutputs(embeddings, features, tokens, prefix, hidden, sparse, masks)


def empty_model(config: LisaConfig) -> LisaModel:
    """A model without weights, in eval mode, to be filled with `load_state_dict(assign=True)`.

    It is on the meta device, but for the buffers that no checkpoint carries, which are real.
    """
    with torch.device("meta"):
        model = LisaModel(config)
    model.sam.pixel_mean = torch.zeros(3, 1, 1)
    model.sam.pixel_std = torch.ones(3, 1, 1)
    return model.eval()
