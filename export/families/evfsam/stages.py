"""The five graphs of `evfsam`, and what the host does beside them.

B images and N expressions are independent axes, as in `dfam`. SAM's image encoder and BEiT-3's
patches run once an image, all of BEiT-3's layers for every question.
"""

from __future__ import annotations

from ris.engines import TensorSpec
from ris.export.families.design import StageDesign
from ris.export.families.evfsam.beit import Fusion, ImageTokens, WordEmbedding
from ris.export.families.evfsam.hiera_tokens import Sam2ImageEncoder
from ris.export.families.evfsam.rules import (
    FUSION,
    IMAGE,
    WHOLE_FUSION,
    WHOLE_MASK_DECODER,
    WHOLE_TOKENS,
)
from ris.export.families.evfsam.sam2_masks import Sam2Masks
from ris.export.families.sam_encoder import SamImageEncoder
from ris.export.families.sam_masks import SamMasks
from ris.export.families.signatures import IMAGE_INDEX, of_expression, of_image, plain, taken
from ris.reference.evfsam.config import EvfsamConfig
from ris.reference.evfsam.model import EvfsamModel
from ris.reference.evfsam.preprocess import BEIT_MEAN, BEIT_STD
from ris.reference.layers.deformable import Sampling
from ris.reference.preprocess import IMAGENET_MEAN, IMAGENET_STD
from ris.runtime.manifest import PICTURE, Answer, Host, HostImage, Text

PAD_ID = 1
"""The id of `<pad>`."""

END_ID = 2
"""The id of `</s>`, which every text ended with in training."""


def stages(config: EvfsamConfig) -> tuple[StageDesign, ...]:
    """The graphs in the order in which they run (docs/reference/models/evfsam.md)."""
    return (
        _sam_image_encoder(config),
        _beit_image_encoder(config),
        _text_encoder(config),
        _fusion(config),
        _mask_decoder(config),
    )


def host(config: EvfsamConfig) -> Host:
    """Two squares of the picture, each made from the picture itself, and padded text.

    SAM's is a letterbox, SAM 2's has the picture's aspect ratio changed.
    """
    sam_image = HostImage(
        PICTURE,
        "letterbox" if config.version == "1" else "square",
        config.image_size,
        "bilinear",
        antialias=True,
        levels=255,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    )
    beit_image = HostImage(
        *(PICTURE, "square", config.beit3.image_size, "bicubic"),
        antialias=False,
        levels=1,
        mean=BEIT_MEAN,
        std=BEIT_STD,
    )
    return Host(
        images={"sam_image": sam_image, "beit_image": beit_image},
        text=Text(
            *("tokenizer.json", config.max_tokens, PAD_ID, "input_ids", "text_mask"),
            end_id=END_ID,
        ),
        image_index="image_index",
        categories=None,
        resizes={},
    )


def answer(config: EvfsamConfig) -> Answer:
    """The mask; SAM's is of the letterbox. The model does not decide whether there is a target."""
    letterbox = "sam_image" if config.version == "1" else None
    return Answer("mask_logits", None, "bilinear", 0.0, letterbox_of=letterbox)


def _sam_image_encoder(config: EvfsamConfig) -> StageDesign:
    size = config.image_size

    def encoder(model: EvfsamModel, sampling: Sampling) -> SamImageEncoder | Sam2ImageEncoder:
        if config.version == "2":
            return Sam2ImageEncoder(model.sam2).eval()
        # who asks for gathers exports for TensorRT
        sam, for_tensorrt = model.sam.image_encoder, sampling == "gather"
        return SamImageEncoder(sam, config.grid, for_tensorrt=for_tensorrt).eval()

    return StageDesign(
        name="sam_image_encoder",
        inputs=(taken(of_image("image", 3, size, size), "sam_image"),),
        outputs=_encoded(config),
        build=encoder,
        islands=IMAGE,
        int8_by_default=True,
    )


def _beit_image_encoder(config: EvfsamConfig) -> StageDesign:
    size = config.beit3.image_size
    return StageDesign(
        name="beit_image_encoder",
        inputs=(taken(of_image("image", 3, size, size), "beit_image"),),
        outputs=(_image_tokens(config),),
        build=plain(lambda model: ImageTokens(model.beit3)),
        whole=WHOLE_TOKENS,
    )


def _text_encoder(config: EvfsamConfig) -> StageDesign:
    input_ids = TensorSpec("input_ids", "int32", ("expressions", config.max_tokens))
    return StageDesign(
        name="text_encoder",
        inputs=(taken(input_ids), taken(_text_mask(config))),
        outputs=(_words(config),),
        build=plain(lambda model: WordEmbedding(model.beit3, config.max_tokens)),
        whole=WHOLE_TOKENS,
    )


def _fusion(config: EvfsamConfig) -> StageDesign:
    given = _image_tokens(config), _words(config), _text_mask(config), IMAGE_INDEX
    return StageDesign(
        name="fusion",
        inputs=tuple(map(taken, given)),
        outputs=(_prompt(config),),
        build=plain(lambda model: Fusion(model.beit3, model.projector)),
        islands=FUSION,
        whole=WHOLE_FUSION,
        int8_by_default=True,
        narrow_weights=True,
    )


def _mask_decoder(config: EvfsamConfig) -> StageDesign:
    side = config.mask_size

    def masks(model: EvfsamModel) -> SamMasks | Sam2Masks:
        return SamMasks(model.sam) if config.version == "1" else Sam2Masks(model.sam2)

    return StageDesign(
        name="mask_decoder",
        inputs=tuple(map(taken, (*_encoded(config), _prompt(config), IMAGE_INDEX))),
        outputs=(of_expression("mask_logits", 1, side, side),),
        build=plain(masks),
        whole=WHOLE_MASK_DECODER,
    )


def _encoded(config: EvfsamConfig) -> tuple[TensorSpec, ...]:
    """SAM's embeddings and, of SAM 2, the two finer maps that its mask decoder reads."""
    width, grid = config.prompt_width, config.grid
    embeddings = of_image("image_embeddings", width, grid, grid)
    if config.version == "1":
        return (embeddings,)
    return (
        embeddings,
        of_image("high_res_1", width // 4, 2 * grid, 2 * grid),
        of_image("high_res_0", width // 8, 4 * grid, 4 * grid),
    )


def _image_tokens(config: EvfsamConfig) -> TensorSpec:
    return of_image("image_tokens", config.beit3.image_positions, config.beit3.width)


def _words(config: EvfsamConfig) -> TensorSpec:
    return of_expression("text_features", config.max_tokens, config.beit3.width)


def _text_mask(config: EvfsamConfig) -> TensorSpec:
    return of_expression("text_mask", config.max_tokens)


def _prompt(config: EvfsamConfig) -> TensorSpec:
    return of_expression("sparse_prompt", 1, config.prompt_width)
