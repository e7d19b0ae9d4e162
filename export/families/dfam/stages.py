"""The graphs of `dfam`, and what the host does between them.

Axes: `images` B and `expressions` N are independent. `image_index` int32 [N] says which image an
expression belongs to. So one call serves any pairing, and what depends on the image alone is
computed B times, not N.
"""

from __future__ import annotations

from ris.engines import TensorSpec
from ris.export.families.clip import ClipImageEncoder
from ris.export.families.design import StageDesign
from ris.export.families.dfam.prompts_and_masks import Fusion, ImageFeatures, MaskDecoder
from ris.export.families.dfam.rules import (
    FUSED,
    ISLANDS,
    STEP,
    WHOLE_IMAGE_FEATURES,
    WHOLE_MASK_DECODER,
    WHOLE_TEXT_ENCODER,
)
from ris.export.families.dfam.words import TextEncoder
from ris.export.families.sam_encoder import SamImageEncoder
from ris.export.families.signatures import IMAGE_INDEX, of_expression, of_image, plain, taken
from ris.reference.dfam.config import ModelConfig
from ris.reference.dfam.preprocess import CLIP_MEAN, CLIP_STD, SAM_MEAN, SAM_STD
from ris.runtime.manifest import PICTURE, Answer, Categories, Host, HostImage, Resize, Text


def stages(config: ModelConfig) -> tuple[StageDesign, ...]:
    """The graphs in the order in which they run (docs/reference/models/dfam.md)."""
    return (
        _sam_image_encoder(config),
        _clip_image_encoder(config),
        _image_features(config),
        _text_encoder(config),
        _fusion(config),
        _mask_decoder(config),
    )


def host(config: ModelConfig) -> Host:
    """The squares of the picture, the text, and the resize between fusion and mask decoder."""
    sam, clip = config.sam.image_size, config.clip.image_size
    by_category = config.query == "category"
    return Host(
        images={
            "sam_image": HostImage(
                PICTURE, "square", sam, "bilinear", True, 255, SAM_MEAN, SAM_STD
            ),
            "clip_image": HostImage(
                "sam_image", "square", clip, "bicubic", False, 1, CLIP_MEAN, CLIP_STD
            ),
        },
        text=Text("tokenizer.json", config.max_tokens, 0, "input_ids", "text_mask"),
        image_index="image_index",
        categories=(
            Categories("categories.json", "categories.npy", "category_feature")
            if by_category
            else None
        ),
        resizes={
            "dense_embedding": Resize("dense_prompt", config.sam.grid, config.dense_interpolation)
        },
    )


def answer(config: ModelConfig) -> Answer:
    """The mask, and the no-target decision where the model has a head for it."""
    head = None if config.no_target == "none" else "no_target_logits"
    return Answer("mask_logits", head, "bilinear", 0.0)


def _sam_image_encoder(config: ModelConfig) -> StageDesign:
    size = config.sam.image_size
    return StageDesign(
        name="sam_image_encoder",
        inputs=(taken(of_image("image", 3, size, size), "sam_image"),),
        outputs=(_embeddings(config),),
        # who asks for gathers exports for TensorRT
        build=lambda model, sampling: SamImageEncoder(
            model.sam.image_encoder, config.sam.grid, for_tensorrt=sampling == "gather"
        ).eval(),
        islands=ISLANDS,
        int8_by_default=True,
    )


def _clip_image_encoder(config: ModelConfig) -> StageDesign:
    size = config.clip.image_size
    return StageDesign(
        name="clip_image_encoder",
        inputs=(taken(of_image("image", 3, size, size), "clip_image"),),
        outputs=(_tokens(config),),
        build=plain(lambda model: ClipImageEncoder(model.clip_dense.clip_model.visual)),
        islands=ISLANDS,
        int8_by_default=True,
    )


def _image_features(config: ModelConfig) -> StageDesign:
    inputs = [_tokens(config)]
    if config.no_target != "none":
        inputs.append(_embeddings(config))
    return StageDesign(
        name="image_features",
        inputs=tuple(map(taken, inputs)),
        outputs=(*_pixels(config), *_objects(config)),
        thresholded={spec.name: STEP for spec in _objects(config)},
        build=plain(ImageFeatures),
        islands=ISLANDS,
        whole=WHOLE_IMAGE_FEATURES,
    )


def _text_encoder(config: ModelConfig) -> StageDesign:
    return StageDesign(
        name="text_encoder",
        inputs=(taken(TensorSpec("input_ids", "int32", ("expressions", config.max_tokens))),),
        outputs=(_words(config),),
        build=plain(TextEncoder),
        whole=WHOLE_TEXT_ENCODER,
    )


def _fusion(config: ModelConfig) -> StageDesign:
    width, grid = config.prompt_width, config.dense_prompt_grid
    text_mask = of_expression("text_mask", config.max_tokens)
    inputs = [*_pixels(config), _words(config), text_mask, IMAGE_INDEX, *_objects(config)]
    outputs = [of_expression("dense_prompt", width, grid, grid), _sparse(config)]
    if config.no_target != "none":
        outputs.append(of_expression("no_target_logits", 2))
    if config.query == "category":
        inputs.append(of_expression("category_feature", config.clip.embed_dim))
    return StageDesign(
        name="fusion",
        inputs=tuple(map(taken, inputs)),
        outputs=tuple(outputs),
        build=lambda model, sampling: Fusion(model, sampling).eval(),
        samples=True,
        narrow_from=FUSED,
        thresholded={} if config.no_target == "none" else {"no_target_logits": STEP},
        islands=ISLANDS,
    )


def _mask_decoder(config: ModelConfig) -> StageDesign:
    grid, size = config.sam.grid, config.mask_size
    dense_prompt = of_expression("dense_prompt", config.prompt_width, grid, grid)
    return StageDesign(
        name="mask_decoder",
        inputs=(
            taken(_embeddings(config)),
            taken(dense_prompt, "dense_embedding"),
            taken(_sparse(config)),
            taken(IMAGE_INDEX),
        ),
        outputs=(of_expression("mask_logits", 1, size, size),),
        build=plain(MaskDecoder),
        whole=WHOLE_MASK_DECODER,
    )


def _embeddings(config: ModelConfig) -> TensorSpec:
    grid = config.sam.grid
    return of_image("image_embeddings", config.prompt_width, grid, grid)


def _tokens(config: ModelConfig) -> TensorSpec:
    return of_image("clip_tokens", config.clip.grid**2, config.clip.width)


def _pixels(config: ModelConfig) -> tuple[TensorSpec, TensorSpec]:
    """PWAM's two projections of an image."""
    shape = (config.clip.grid**2, config.prompt_width)
    return of_image("pixel_values", *shape), of_image("pixel_queries", *shape)


def _objects(config: ModelConfig) -> tuple[TensorSpec, ...]:
    """DFAM's queries behind its SAM path, and their masks; none without a no-target head."""
    if config.no_target == "none":
        return ()
    queries, grid = config.dfam_queries, config.sam.grid
    return (
        of_image("object_queries", queries, config.prompt_width),
        of_image("object_masks", queries, grid, grid),
    )


def _words(config: ModelConfig) -> TensorSpec:
    return of_expression("text_features", config.max_tokens, config.prompt_width)


def _sparse(config: ModelConfig) -> TensorSpec:
    return of_expression("sparse_prompt", 1, config.prompt_width)
