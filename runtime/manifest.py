"""The manifest: what a bundle's manifest.json says, as dataclasses.

`ris-export` writes it and the runtime reads it. `manifest.schema.json` beside this file states the
same for other languages; a test keeps the two together.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, cast

from ris.engines.errors import BundleError
from ris.engines.text import echoed
from ris.runtime.from_json import Rule, build, within
from ris.runtime.manifest_kinds import (
    Count,
    Deviations,
    FileName,
    Hashes,
    Logit,
    Means,
    Share,
    Side,
    Tensors,
)

FORMAT_VERSION = 1
"""The format that this version writes, and the newest that it reads."""

Precision = Literal["fp32", "bf16", "fp16"]
"""What a graph is written in."""

BundlePrecision = Literal[Precision, "int8"]
"""What a bundle was exported or quantised to."""

MOST_PROBLEMS = 12
"""How many things that are wrong with a bundle a sentence says at most."""

_LONGEST = 700  # characters of these together

_IS_ONNX = Rule(lambda name: name.endswith(".onnx"), "a file *.onnx")
_IS_SAMS = Rule(
    lambda square: square.interpolation != "bicubic", "of pillow-bilinear-uint8 interpolation"
)
_IS_CLIPS = Rule(lambda square: square.interpolation == "bicubic", "of bicubic interpolation")


@dataclass(frozen=True)
class Int8:
    """The INT8 products of a graph, by QuantizeLinear and DequantizeLinear nodes.

    The rest of the graph has the graph's own precision.
    """

    layers: Count
    """How many layers are quantised."""

    calibrator: Literal["minmax", "percentile", "entropy"]
    """What the ranges of the activations come from."""

    percentile: float | None
    """The percentile of that calibrator, None for the others."""

    alpha: Share | None
    """The strength of the smoothing, 0 to 1; None where nothing was smoothed."""

    samples: Count
    """The number of expressions that the graph was calibrated with."""


@dataclass(frozen=True)
class Operations:
    """Floating-point operations of a graph's matrix products and convolutions.

    A multiply-add counts as two.
    """

    fixed: Count
    """For each call."""

    image: Count
    """For each image of a call."""

    expression: Count
    """For each expression of a call."""

    def of(self, images: int, expressions: int) -> int:
        """The operations of one call."""
        return self.fixed + self.image * images + self.expression * expressions


@dataclass(frozen=True)
class GraphEntry:
    """One graph: where it is, what is in it, what goes in and comes out."""

    file: Annotated[FileName, _IS_ONNX]
    """The ONNX file."""

    sha256: Hashes
    """The hash of every file that the graph needs."""

    precision: Precision
    """What the graph is written in. In an INT8 graph: what the rest of it is written in."""

    fp32_islands: dict[str, str]
    """What stays FP32, by node name, with the reason.

    In an FP16 graph these are nodes of any kind, in an INT8 graph products. In an FP16 or bfloat16
    bundle, "*" stands for a whole graph.
    """

    inputs: Tensors
    """What goes in."""

    outputs: Tensors
    """What comes out."""

    parameters: Count
    """The number of weights."""

    sampling: Literal["native", "gather"] | None
    """How the fusion samples bilinearly; None for the other graphs."""

    int8: Int8 | None = None
    """How the graph was quantised; None where nothing is INT8. May be absent."""

    operations: Operations | None = None
    """What a call computes; None where it was not counted. May be absent."""

    @property
    def shown(self) -> str:
        """The precision for people."""
        return f"int8 and {self.precision}" if self.int8 else self.precision


@dataclass(frozen=True)
class SquareImage:
    """How the square image of an encoder is made."""

    size: Side
    """The side in pixels."""

    interpolation: Literal["pillow-bilinear-uint8", "bicubic"]
    """How it is resized: as SAM's or as CLIP's."""

    mean: Means
    """What is subtracted from each of the three channels."""

    std: Deviations
    """What each channel is divided by after that."""


@dataclass(frozen=True)
class Preprocess:
    """The squares of the two image encoders."""

    sam: Annotated[SquareImage, _IS_SAMS]
    """SAM's, made from the image; its levels are 0 to 255."""

    clip: Annotated[SquareImage, _IS_CLIPS]
    """CLIP's, made from SAM's square; its levels are 0 to 1."""


@dataclass(frozen=True)
class Text:
    """How an expression becomes token ids; they are padded with 0."""

    tokenizer: FileName
    """The tokenizer's file."""

    max_tokens: Annotated[int, within(2, 4096)]
    """The length T of a row of ids; what is longer is cut."""


@dataclass(frozen=True)
class DensePrompt:
    """How the host resizes the dense prompt between fusion and mask decoder."""

    grid: Side
    """The side of a map as the fusion gives it."""

    target: Side
    """The side of a map as the mask decoder takes it."""

    interpolation: Literal["bilinear", "bicubic"]
    """How a map is resized."""


@dataclass(frozen=True)
class Postprocess:
    """How mask logits become a mask of the image's own size."""

    interpolation: Literal["bilinear"]
    """How the logits are resized."""

    threshold: Logit
    """The logit above which a pixel belongs to the mask."""


@dataclass(frozen=True)
class Categories:
    """The table of a model that asks by category."""

    names: FileName
    """The file of the names, a JSON list."""

    features: FileName
    """The file of their text features: npy, float32 [names, width]."""


@dataclass(frozen=True)
class ComponentFile:
    """A weight file that was given beside the checkpoint."""

    component: Literal["sam", "clip", "bert"]
    """The part of the model that it has weights for."""

    file: str
    """Its name, without a folder."""

    sha256: str
    """Its hash."""


@dataclass(frozen=True)
class Source:
    """What the bundle was made from."""

    kind: Literal["deterministic", "checkpoint"]
    """Made-up weights, or a checkpoint's."""

    trained: bool
    """False where the masks mean nothing."""

    seed: int | None
    """The seed of made-up weights, None for a checkpoint."""

    checkpoint: str | None
    """The name of the checkpoint's file, None for made-up weights."""

    checkpoint_sha256: str | None
    """Its hash, None for made-up weights."""

    components: tuple[ComponentFile, ...] = ()
    """Further weight files. May be absent."""


@dataclass(frozen=True)
class StageParity:
    """How far an output is from its reference."""

    max_abs: float
    """The largest absolute difference."""

    mean_abs: float
    """The mean absolute difference."""

    relative: float
    """The root mean square of the differences, divided by that of the reference."""

    cosine: float
    """The cosine of the angle between the two, 1 where they agree."""


@dataclass(frozen=True)
class Manifest:
    """Everything that a program needs to know about a bundle."""

    format_version: Annotated[int, within(1, FORMAT_VERSION)]
    """`FORMAT_VERSION` of what wrote it."""

    writer: dict[str, str]
    """The version of each package that wrote the bundle."""

    source: Source
    """What the bundle was made from."""

    model: dict[str, Any]
    """The model's configuration, as `ris.reference.config.ModelConfig`."""

    precision: BundlePrecision
    """What the bundle was exported or quantised to; single graphs may differ."""

    graphs: dict[str, GraphEntry]
    """The five graphs by stage."""

    preprocess: Preprocess
    """How an image becomes the inputs of the image encoders."""

    text: Text
    """How an expression becomes the input of the text encoder."""

    dense_prompt: DensePrompt
    """What the host does between fusion and mask decoder."""

    postprocess: Postprocess
    """How mask logits become a mask."""

    no_target: bool
    """Whether the fusion has the output `no_target_logits` [N, 2]; class 1 is "no target"."""

    categories: Categories | None
    """The table of a model that asks by category, None for others."""

    golden: FileName
    """The file of the reference's arrays, which parity is checked against."""

    files: Hashes
    """The hash of every file that belongs to no graph."""

    parity: dict[str, StageParity]
    """What the export measured, by stage and output."""

    mask_iou: Share
    """The smallest IoU of a mask with the reference's that the export measured."""

    def to_json(self) -> str:
        """The text of manifest.json; keys are sorted, so that equal manifests are equal files."""
        return json.dumps(dataclasses.asdict(self), indent=2, sort_keys=True) + "\n"


def manifest_from_dict(data: Any) -> Manifest:
    """The manifest of parsed JSON.

    Raises:
        BundleError: Where fields are missing or wrong; it names the first of them (`joined`).
    """
    manifest, problems = build(Manifest, data, "the manifest")
    if problems:
        raise BundleError(joined(problems))
    return cast("Manifest", manifest)


def joined(problems: Sequence[str]) -> str:
    """Problems in one sentence: the first, `MOST_PROBLEMS` at most, and how many more there are."""
    said: list[str] = []
    for problem in map(echoed, problems[:MOST_PROBLEMS]):
        if said and len("; ".join([*said, problem])) > _LONGEST:
            break
        said.append(problem)
    more = len(problems) - len(said)
    return "; ".join(said) + (f"; and {more} more" if more else "")
