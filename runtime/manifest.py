"""The manifest: what a bundle's manifest.json says, as dataclasses.

`ris-export` writes it and the runtime reads it. `manifest.schema.json` beside this file states the
same for other languages; a test keeps the two together.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any, Literal

from ris.engines import TensorSpec
from ris.engines.errors import BundleError
from ris.runtime.from_json import build

FORMAT_VERSION = 1
"""The format that this version writes, and the newest that it reads."""

Precision = Literal["fp32", "bf16", "fp16"]
"""What a graph is written in."""

BundlePrecision = Literal[Precision, "int8"]
"""What a bundle was exported or quantised to."""


@dataclass(frozen=True)
class Int8:
    """The INT8 products of a graph, by QuantizeLinear and DequantizeLinear nodes.

    The rest of the graph has the graph's own precision.
    """

    layers: int
    """How many layers are quantised."""

    calibrator: str
    """What the ranges of the activations come from: "minmax", "percentile" or "entropy"."""

    percentile: float | None
    """The percentile of that calibrator, None for the others."""

    alpha: float | None
    """The strength of the smoothing, 0 to 1; None where nothing was smoothed."""

    samples: int
    """The number of expressions that the graph was calibrated with."""


@dataclass(frozen=True)
class Operations:
    """Floating-point operations of a graph's matrix products and convolutions.

    A multiply-add counts as two.
    """

    fixed: int
    """For each call."""

    image: int
    """For each image of a call."""

    expression: int
    """For each expression of a call."""

    def of(self, images: int, expressions: int) -> int:
        """The operations of one call."""
        return self.fixed + self.image * images + self.expression * expressions


@dataclass(frozen=True)
class GraphEntry:
    """One graph: where it is, what is in it, what goes in and comes out."""

    file: str
    """The ONNX file, relative to the bundle."""

    sha256: dict[str, str]
    """The hash of every file that the graph needs, by its name relative to the bundle."""

    precision: Precision
    """What the graph is written in. In an INT8 graph: what the rest of it is written in."""

    fp32_islands: dict[str, str]
    """What stays FP32, by node name, with the reason.

    In an FP16 graph these are nodes of any kind, in an INT8 graph products. In an FP16 or bfloat16
    bundle, "*" stands for a whole graph.
    """

    inputs: tuple[TensorSpec, ...]
    """What goes in."""

    outputs: tuple[TensorSpec, ...]
    """What comes out."""

    parameters: int
    """The number of weights."""

    sampling: str | None
    """How the fusion samples bilinearly: "native" or "gather"; None for the other graphs."""

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

    size: int
    """The side in pixels."""

    interpolation: str
    """How it is resized: "pillow-bilinear-uint8" (SAM) or "bicubic" (CLIP)."""

    mean: tuple[float, ...]
    """What is subtracted from each of the three channels."""

    std: tuple[float, ...]
    """What each channel is divided by after that."""


@dataclass(frozen=True)
class Preprocess:
    """The squares of the two image encoders."""

    sam: SquareImage
    """SAM's, made from the image; its levels are 0 to 255."""

    clip: SquareImage
    """CLIP's, made from SAM's square; its levels are 0 to 1."""


@dataclass(frozen=True)
class Text:
    """How an expression becomes token ids; they are padded with 0."""

    tokenizer: str
    """The tokenizer's file."""

    max_tokens: int
    """The length T of a row of ids; what is longer is cut."""


@dataclass(frozen=True)
class DensePrompt:
    """How the host resizes the dense prompt between fusion and mask decoder."""

    grid: int
    """The side of a map as the fusion gives it."""

    target: int
    """The side of a map as the mask decoder takes it."""

    interpolation: Literal["bilinear", "bicubic"]
    """How a map is resized."""


@dataclass(frozen=True)
class Postprocess:
    """How mask logits become a mask of the image's own size."""

    interpolation: str
    """How the logits are resized; always "bilinear"."""

    threshold: float
    """The logit above which a pixel belongs to the mask."""


@dataclass(frozen=True)
class Categories:
    """The table of a model that asks by category."""

    names: str
    """The file of the names, a JSON list."""

    features: str
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

    format_version: int
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

    golden: str
    """The file of the reference's arrays, which parity is checked against."""

    files: dict[str, str]
    """The hash of every file that belongs to no graph, by name."""

    parity: dict[str, StageParity]
    """What the export measured, by stage and output."""

    mask_iou: float
    """The smallest IoU of a mask with the reference's that the export measured."""

    def to_json(self) -> str:
        """The text of manifest.json; keys are sorted, so that equal manifests are equal files."""
        return json.dumps(dataclasses.asdict(self), indent=2, sort_keys=True) + "\n"


def manifest_from_dict(data: Any) -> Manifest:
    """The manifest of parsed JSON.

    Raises:
        BundleError: Where fields are missing or of the wrong kind; it names all of them.
    """
    manifest, problems = build(Manifest, data, "the manifest")
    if manifest is None or problems:
        raise BundleError("; ".join(problems))
    return manifest
