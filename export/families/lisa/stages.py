"""The five graphs of `lisa`, and what the host does beside them.

All expressions of a call are about one image, whose keys and values they share: a row of them for
each expression would be some hundred megabytes.
"""

from __future__ import annotations

from ris.engines import TensorSpec
from ris.export.families.design import StageDesign
from ris.export.families.lisa.language import ClipTokens, LanguagePrefix, LanguageQuestion
from ris.export.families.lisa.rules import CLIP_IMAGE, LANGUAGE, SAM_IMAGE, WHOLE_MASK_DECODER
from ris.export.families.sam_encoder import SamImageEncoder
from ris.export.families.sam_masks import SamMasks
from ris.export.families.signatures import of_expression, of_image, plain, taken
from ris.reference.layers.deformable import Sampling
from ris.reference.lisa.config import LisaConfig
from ris.reference.lisa.model import LisaModel
from ris.reference.lisa.preprocess import CLIP_MEAN, CLIP_STD
from ris.reference.lisa.templates import FORMS, question_parts
from ris.reference.preprocess import IMAGENET_MEAN, IMAGENET_STD
from ris.runtime.manifest import PICTURE, Answer, Host, HostImage
from ris.runtime.manifest_text import Form, Text

PAD_ID = 0
"""The id of `<unk>`, which fills a row. Nothing looks at what it is."""

LENGTHS = (24, 32, 40)
"""The lengths that a row of ids may have, below `LisaConfig.max_tokens`.

A phrase's question has 17 tokens and those of the phrase, a sentence's 11 and those of the
sentence. An engine that compiles prepares kernels and buffers for each length that comes, so that
there are few.
"""

WEIGHTS = "language.data"
"""The file of both graphs of the language model."""


def stages(config: LisaConfig) -> tuple[StageDesign, ...]:
    """The graphs in the order in which they run (docs/reference/models/lisa.md)."""
    return (
        _sam_image_encoder(config),
        _clip_image_encoder(config),
        _language_prefix(config),
        _language_question(config),
        _mask_decoder(config),
    )


def host(config: LisaConfig) -> Host:
    """Two images of the picture, each made from the picture itself, and a padded question.

    SAM's is a letterbox. CLIP's is the picture's middle.
    """
    sam_image = HostImage(
        *(PICTURE, "letterbox", config.sam.image_size, "bilinear"),
        antialias=True,
        levels=255,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    )
    clip_image = HostImage(
        *(PICTURE, "crop", config.clip.image_size, "bicubic"),
        antialias=True,
        levels=1,
        mean=CLIP_MEAN,
        std=CLIP_STD,
    )
    forms: dict[str, Form] = {one: Form(*question_parts(one, config.template)) for one in FORMS}
    return Host(
        images={"sam_image": sam_image, "clip_image": clip_image},
        text=Text(
            *("tokenizer.json", config.max_tokens, PAD_ID, "input_ids", "text_mask"),
            forms=forms,
            form=FORMS[0],
            lengths=row_lengths(config),
        ),
        image_index=None,
        categories=None,
        resizes={},
    )


def row_lengths(config: LisaConfig) -> tuple[int, ...]:
    """The lengths that a row of ids may have."""
    return (*(one for one in LENGTHS if one < config.max_tokens), config.max_tokens)


def answer(config: LisaConfig) -> Answer:
    """The mask of the letterbox. The model does not decide whether there is a target."""
    return Answer("mask_logits", None, "bilinear", 0.0, letterbox_of="sam_image")


def _sam_image_encoder(config: LisaConfig) -> StageDesign:
    size, grid = config.sam.image_size, config.sam.grid

    def encoder(model: LisaModel, sampling: Sampling) -> SamImageEncoder:
        # who asks for gathers exports for TensorRT
        for_tensorrt = sampling == "gather"
        return SamImageEncoder(model.sam.image_encoder, grid, for_tensorrt=for_tensorrt).eval()

    return StageDesign(
        name="sam_image_encoder",
        inputs=(taken(of_image("image", 3, size, size), "sam_image"),),
        outputs=(_embeddings(config),),
        build=encoder,
        islands=SAM_IMAGE,
        int8_by_default=True,
    )


def _clip_image_encoder(config: LisaConfig) -> StageDesign:
    size = config.clip.image_size
    return StageDesign(
        name="clip_image_encoder",
        inputs=(taken(of_image("image", 3, size, size), "clip_image"),),
        outputs=(_image_tokens(config),),
        build=plain(ClipTokens),
        islands=CLIP_IMAGE,
        int8_by_default=True,
    )


def _language_prefix(config: LisaConfig) -> StageDesign:
    return StageDesign(
        name="language_prefix",
        shared_weights=WEIGHTS,
        inputs=(taken(_image_tokens(config)),),
        outputs=_kept(config),
        halved=tuple(spec.name for spec in _kept(config)),
        build=plain(LanguagePrefix),
        islands=LANGUAGE,
        narrow_weights=True,
    )


def _language_question(config: LisaConfig) -> StageDesign:
    input_ids = TensorSpec("input_ids", "int32", ("expressions", "tokens"))
    text_mask = of_expression("text_mask", "tokens")
    return StageDesign(
        name="language_question",
        shared_weights=WEIGHTS,
        inputs=tuple(map(taken, (input_ids, text_mask, *_kept(config)))),
        lengths=row_lengths(config),
        outputs=(_prompt(config),),
        build=plain(LanguageQuestion),
        islands=LANGUAGE,
        narrow_weights=True,
    )


def _mask_decoder(config: LisaConfig) -> StageDesign:
    side = 4 * config.sam.grid
    return StageDesign(
        name="mask_decoder",
        inputs=(taken(_embeddings(config)), taken(_prompt(config))),
        outputs=(of_expression("mask_logits", 1, side, side),),
        build=plain(lambda model: SamMasks(model.sam)),
        whole=WHOLE_MASK_DECODER,
    )


def _embeddings(config: LisaConfig) -> TensorSpec:
    grid = config.sam.grid
    return of_image("image_embeddings", config.prompt_width, grid, grid)


def _image_tokens(config: LisaConfig) -> TensorSpec:
    return of_image("image_tokens", config.image_tokens, config.llama.width)


def _kept(config: LisaConfig) -> tuple[TensorSpec, TensorSpec]:
    """Keys and values of all positions in front of a question."""
    llama = config.llama
    sizes = llama.layers, llama.heads, config.prefix_length, llama.head_width
    return of_image("prefix_keys", *sizes), of_image("prefix_values", *sizes)


def _prompt(config: LisaConfig) -> TensorSpec:
    return of_expression("sparse_prompt", 1, config.prompt_width)
