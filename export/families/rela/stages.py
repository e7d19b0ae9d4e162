"""The four graphs of `rela`, and what the host does beside them.

B images and N expressions are independent axes, as in `dfam`. The words meet the image behind the
first stage of the backbone, so that little runs once an image.
"""

from __future__ import annotations

from ris.engines import TensorSpec
from ris.export.families.design import StageDesign
from ris.export.families.rela.modules import Segmenter, TextEncoder
from ris.export.families.rela.rules import (
    BACKBONE,
    SEGMENTER,
    STEP,
    WHOLE,
    WHOLE_TEXT_ENCODER,
)
from ris.export.families.signatures import IMAGE_INDEX, of_expression, of_image, plain, taken
from ris.export.families.worded_swin import ImageStem, WordsInImage, map_values, stem_values
from ris.reference.preprocess import IMAGENET_MEAN, IMAGENET_STD
from ris.reference.rela.config import RelaConfig
from ris.runtime.manifest import PICTURE, Answer, Host, HostImage, Text


def stages(config: RelaConfig) -> tuple[StageDesign, ...]:
    """The graphs in the order in which they run (docs/reference/models/rela.md)."""
    return _image_stem(config), _text_encoder(config), _backbone(config), _segmenter(config)


def host(config: RelaConfig) -> Host:
    """One square of the picture, and the text in rows that are padded to their full length."""
    image = HostImage(
        *(PICTURE, "square", config.image_size, "bilinear", True),
        levels=255,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    )
    return Host(
        images={"image": image},
        text=Text("tokenizer.json", config.max_tokens, 0, "input_ids", "text_mask"),
        image_index="image_index",
        categories=None,
        resizes={},
    )


def answer(config: RelaConfig) -> Answer:
    """The mask, and whether there is a target."""
    return Answer("mask_logits", "no_target_logits", "bilinear", 0.0)


def _image_stem(config: RelaConfig) -> StageDesign:
    size = config.image_size
    return StageDesign(
        name="image_stem",
        inputs=(taken(of_image("image", 3, size, size)),),
        outputs=_stem(config),
        build=plain(lambda model: ImageStem(model.backbone)),
        islands=BACKBONE,
        whole=WHOLE,
        int8_by_default=True,
    )


def _text_encoder(config: RelaConfig) -> StageDesign:
    return StageDesign(
        name="text_encoder",
        inputs=(taken(TensorSpec("input_ids", "int32", ("expressions", config.max_tokens))),),
        outputs=(_words(config),),
        build=plain(TextEncoder),
        whole=WHOLE_TEXT_ENCODER,
    )


def _backbone(config: RelaConfig) -> StageDesign:
    text_mask = of_expression("text_mask", config.max_tokens)
    return StageDesign(
        name="backbone",
        inputs=tuple(map(taken, (*_stem(config), _words(config), text_mask, IMAGE_INDEX))),
        outputs=_maps(config),
        build=plain(lambda model: WordsInImage(model.backbone)),
        islands=BACKBONE,
        whole=WHOLE,
        int8_by_default=True,
    )


def _segmenter(config: RelaConfig) -> StageDesign:
    side = config.mask_size
    return StageDesign(
        name="segmenter",
        inputs=tuple(map(taken, (*_maps(config), _words(config)))),
        outputs=(of_expression("mask_logits", 1, side, side), of_expression("no_target_logits", 2)),
        build=lambda model, sampling: Segmenter(model, sampling).eval(),
        samples=True,
        thresholded={"mask_logits": STEP, "no_target_logits": STEP},
        islands=SEGMENTER,
        whole=WHOLE,
    )


def _words(config: RelaConfig) -> TensorSpec:
    return of_expression("text_features", config.max_tokens, config.bert.width)


def _stem(config: RelaConfig) -> tuple[TensorSpec, ...]:
    return stem_values(config.swin, config.image_size)


def _maps(config: RelaConfig) -> tuple[TensorSpec, ...]:
    return map_values(config.swin, config.image_size)
