"""The whole model: SAM or SAM 2, BEiT-3 and the projector between them.

Attribute names are the checkpoint's key names, so `load_state_dict` takes an official state dict
(`ris.reference.checkpoint` says what it may have besides).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from segment_anything.modeling import Sam
from torch import Tensor, nn

from ris.reference.evfsam.beit3 import Beit3
from ris.reference.evfsam.config import EvfsamConfig
from ris.reference.evfsam.sam2_decoder import ImageMaps, Sam2
from ris.reference.layers.encoders import build_sam
from ris.reference.layers.sam_masks import masks_of_prompts

FINER_MAPS = ("high_res_1", "high_res_0")
"""The names of SAM 2's two finer maps."""


class _Extractor(nn.Module):
    """Holds BEiT-3 under the checkpoint's name, `mm_extractor.beit3`."""

    def __init__(self, beit3: Beit3) -> None:
        super().__init__()
        self.beit3 = beit3


class EvfsamModel(nn.Module):
    """The reference model, of either version."""

    def __init__(self, config: EvfsamConfig) -> None:
        super().__init__()
        self.config = config
        width, heads, hidden = config.prompt_width, config.decoder_heads, config.decoder_mlp_width
        self.visual_model = (
            build_sam(config.sam, width, heads, hidden)
            if config.version == "1"
            else Sam2(config.hiera, width, heads, hidden)
        )
        self.mm_extractor = _Extractor(Beit3(config.beit3))
        text_width = config.beit3.width
        self.text_hidden_fcs = nn.ModuleList(
            [
                nn.Sequential(
                    nn.Linear(text_width, text_width), nn.ReLU(), nn.Linear(text_width, width)
                )
            ]
        )

    # --- parts by what they are, not by their keys in a checkpoint ---

    @property
    def sam(self) -> Sam:
        """SAM, of version 1."""
        assert isinstance(self.visual_model, Sam)
        return self.visual_model

    @property
    def sam2(self) -> Sam2:
        """What is used of SAM 2, of version 2."""
        assert isinstance(self.visual_model, Sam2)
        return self.visual_model

    @property
    def beit3(self) -> Beit3:
        """BEiT-3."""
        return self.mm_extractor.beit3

    @property
    def projector(self) -> nn.Module:
        """From BEiT-3's class token [N, 1, D] to SAM's sparse prompt [N, 1, C]."""
        return self.text_hidden_fcs[0]

    # --- the stages ---

    def encode_sam(self, image: Tensor) -> dict[str, Tensor]:
        """What SAM says of B images.

        image: [B, 3, S, S], normalised. Returns `image_embeddings` [B, C, s, s] and, in version 2,
        `high_res_1` [B, C/4, 2s, 2s] and `high_res_0` [B, C/8, 4s, 4s].
        """
        if self.config.version == "1":
            return {"image_embeddings": self.sam.image_encoder(image)}
        maps = self.sam2.encode_image(image)
        finer = {name: getattr(maps, name) for name in FINER_MAPS}
        return {"image_embeddings": maps.image_embeddings, **finer}

    def prompt(self, image_tokens: Tensor, text_features: Tensor, text_mask: Tensor) -> Tensor:
        """SAM's one sparse token, [N, 1, C]; the arguments are those of `Beit3.forward`."""
        return self.projector(self.beit3(image_tokens, text_features, text_mask))

    def decode_masks(self, encoded: Mapping[str, Tensor], sparse_prompt: Tensor) -> Tensor:
        """The masks of N prompts.

        encoded: of `encode_sam`, a row for each prompt. sparse_prompt: [N, 1, C]. Returns mask
        logits [N, 1, 4s, 4s].
        """
        embeddings = encoded["image_embeddings"]
        if self.config.version == "2":
            maps = ImageMaps(embeddings, *(encoded[name] for name in FINER_MAPS))
            return self.sam2.decode(maps, sparse_prompt).mask_logits
        return masks_of_prompts(self.sam, embeddings, sparse_prompt)


def empty_model(config: EvfsamConfig) -> EvfsamModel:
    """A model without weights, in eval mode, to be filled with `load_state_dict(assign=True)`.

    It is on the meta device, but for the buffers that no checkpoint carries, which are real.
    """
    with torch.device("meta"):
        model = EvfsamModel(config)
    if config.version == "1":
        model.sam.pixel_mean = torch.zeros(3, 1, 1)
        model.sam.pixel_std = torch.ones(3, 1, 1)
    return model.eval()
