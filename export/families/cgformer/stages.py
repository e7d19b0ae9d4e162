"""The six graphs of `cgformer`, and what the host does beside them.

B images and N expressions are independent axes, as in `dfam`. The words meet the image behind the
first stage of the backbone, so that next to nothing runs once an image.
"""

from __future__ import annotations

from ris.engines import TensorSpec
from ris.export.families.bert import BertEncoder
from ris.export.families.cgformer.modules import GroupPlaces, MaskHead, Pyramid
from ris.export.families.cgformer.rules import (
    BACKBONE,
    MASK_HEAD,
    WHOLE,
    WHOLE_GROUPING,
    WHOLE_STEM,
    WHOLE_TEXT_ENCODER,
)
from ris.export.families.design import StageDesign
from ris.export.families.signatures import IMAGE_INDEX, of_expression, of_image, plain, taken
from ris.export.families.worded_swin import ImageStem, WordsInImage, map_values, stem_values
from ris.reference.cgformer.config import CgformerConfig
from ris.reference.cgformer.values import FUSED, NOISE
from ris.reference.preprocess import IMAGENET_MEAN, IMAGENET_STD
from ris.runtime.manifest import PICTURE, Answer, Drawn, Host, HostImage, Text


def stages(config: CgformerConfig) -> tuple[StageDesign, ...]:
    """The graphs in the order in which they run (docs/reference/models/cgformer.md)."""
    return (
        _image_stem(config),
        _text_encoder(config),
        _backbone(config),
        _pyramid(config),
        _grouping(config),
        _mask_head(config),
    )


def host(config: CgformerConfig) -> Host:
    """One square of the picture, padded text and, where places are drawn, their noise."""
    image = HostImage(
        *(PICTURE, "square", config.image_size, "bilinear", True),
        levels=255,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    )
    noise = Drawn("logistic", (sum(config.places()),), seed=0)
    return Host(
        images={"image": image},
        text=Text("tokenizer.json", config.max_tokens, 0, "input_ids", "text_mask"),
        image_index="image_index",
        categories=None,
        resizes={},
        drawn={NOISE: noise} if config.assignment == "sampled" else {},
    )


def answer(config: CgformerConfig) -> Answer:
    """The mask: probabilities, resized with corners on corners.

    The mask head is linear in the kernel, so that draws are averaged there.
    """
    return Answer(
        *("mask_logits", None, "bicubic", 0.5),
        of="probabilities",
        align_corners=True,
        mean_of="kernel" if config.assignment == "sampled" else None,
    )


def _image_stem(config: CgformerConfig) -> StageDesign:
    size = config.image_size
    return StageDesign(
        name="image_stem",
        inputs=(taken(of_image("image", 3, size, size)),),
        outputs=stem_values(config.swin, size),
        build=plain(lambda model: ImageStem(model.backbone)),
        whole=WHOLE_STEM,
    )


def _text_encoder(config: CgformerConfig) -> StageDesign:
    return StageDesign(
        name="text_encoder",
        inputs=(taken(TensorSpec("input_ids", "int32", ("expressions", config.max_tokens))),),
        outputs=(_words(config),),
        build=plain(lambda model: BertEncoder(model.bert, model.config.max_tokens)),
        whole=WHOLE_TEXT_ENCODER,
    )


def _backbone(config: CgformerConfig) -> StageDesign:
    given = *stem_values(config.swin, config.image_size), _words(config), _text_mask(config)
    return StageDesign(
        name="backbone",
        inputs=tuple(map(taken, (*given, IMAGE_INDEX))),
        outputs=_maps(config),
        build=plain(lambda model: WordsInImage(model.backbone)),
        islands=BACKBONE,
        whole=WHOLE,
    )


def _pyramid(config: CgformerConfig) -> StageDesign:
    return StageDesign(
        name="pyramid",
        inputs=tuple(map(taken, _maps(config))),
        outputs=_fused(config),
        build=plain(lambda model: Pyramid(model.decoder)),
        whole=WHOLE,
        int8_by_default=True,
    )


def _grouping(config: CgformerConfig) -> StageDesign:
    given = [*_fused(config), _words(config), _text_mask(config)]
    if config.assignment == "sampled":
        given.append(of_expression(NOISE, sum(config.places())))
    return StageDesign(
        name="grouping",
        inputs=tuple(map(taken, given)),
        outputs=(_kernel(config),),
        build=plain(lambda model: GroupPlaces(model.decoder)),
        whole=WHOLE_GROUPING,
    )


def _mask_head(config: CgformerConfig) -> StageDesign:
    side = config.image_size
    return StageDesign(
        name="mask_head",
        inputs=tuple(map(taken, (_fused(config)[-1], _kernel(config)))),
        outputs=(of_expression("mask_logits", 1, side, side),),
        build=plain(lambda model: MaskHead(model.decoder)),
        islands=MASK_HEAD,
        whole=WHOLE,
        int8_by_default=True,
    )


def _words(config: CgformerConfig) -> TensorSpec:
    return of_expression("text_features", config.max_tokens, config.bert.width)


def _text_mask(config: CgformerConfig) -> TensorSpec:
    return of_expression("text_mask", config.max_tokens)


def _maps(config: CgformerConfig) -> tuple[TensorSpec, ...]:
    return map_values(config.swin, config.image_size)


def _fused(config: CgformerConfig) -> tuple[TensorSpec, ...]:
    sides = zip(FUSED, config.map_sides(), strict=True)
    return tuple(of_expression(name, config.width, side, side) for name, side in sides)


def _kernel(config: CgformerConfig) -> TensorSpec:
    return of_expression("kernel", config.width + 1)
