"""The manifest: what a bundle's manifest.json says, as dataclasses.

`ris-export` writes it and the runtime reads it. `manifest.schema.json` beside this file states the
same for other languages; a test keeps the two together. What a manifest of format 1 says is brought
into this form first (`ris.runtime.dfam.format_1`).

A manifest names values: arrays that the host or one of the graphs gives, and others take
(`ris.runtime.wiring`).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, cast

from ris.engines.errors import BundleError
from ris.engines.text import echoed
from ris.runtime.dfam.format_1 import as_format_2
from ris.runtime.from_json import Rule, build, within
from ris.runtime.manifest_kinds import (
    Count,
    Deviations,
    DrawnShape,
    FileName,
    Hashes,
    Inputs,
    Means,
    Name,
    Seed,
    Share,
    Side,
    Step,
    Tensors,
    Threshold,
)
from ris.runtime.manifest_source import Source
from ris.runtime.manifest_text import Text as Text
from ris.runtime.manifest_weights import StoredWeights
from ris.runtime.masks import MaskRule

FORMAT_VERSION = 2
"""The format that this version writes, and the newest that it reads."""

Precision = Literal["fp32", "bf16", "fp16"]
"""What a graph is written in."""

BundlePrecision = Literal[Precision, "int8"]
"""What a bundle was exported or quantised to."""

MOST_PROBLEMS = 12
"""How many things that are wrong with a bundle a sentence says at most."""

_LONGEST = 700  # characters of these together

_IS_ONNX = Rule(lambda name: name.endswith(".onnx"), "a file *.onnx")
PICTURE = "picture"
"""What the first of the host's images is made of: the picture that is asked about."""


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
    """For each expression of a call; in a row of the shortest length, where rows have several."""

    def of(self, images: int, expressions: int) -> int:
        """The operations of one call."""
        return self.fixed + self.image * images + self.expression * expressions


@dataclass(frozen=True)
class GraphEntry:
    """One stage: its graph, what goes in and comes out, and what a precision may do to it."""

    name: Name
    """The stage's name."""

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

    inputs: Inputs
    """What goes in. Where one of them has the axis `expressions`, the stage runs for each question,
    else once an image."""

    outputs: Tensors
    """What comes out; an output's name is that of the value that it gives."""

    parameters: Count
    """The number of weights."""

    sampling: Literal["native", "gather"] | None
    """How the graph samples bilinearly; None where it does not."""

    int8: Int8 | None = None
    """How the graph was quantised; None where nothing is INT8. May be absent."""

    operations: Operations | None = None
    """What a call computes; None where it was not counted. May be absent."""

    bfloat16: bool = False
    """Whether bfloat16 is precise enough for the graph. May be absent."""

    bfloat16_from: str | None = None
    """The value in the graph from which on it may be bfloat16; None: all of it. May be absent.

    What does not depend on that value stays FP32.
    """

    int8_by_default: bool = False
    """Whether the graph is quantised where the user names none. May be absent."""

    thresholded: dict[Name, Step] = field(default_factory=dict)
    """The outputs that lie behind a threshold, as of an attention mask. May be absent.

    A number that rounding carries over the threshold is a step in them. So parity accepts the
    relative error that stands beside an output, where it accepts less of others.
    """

    weights: StoredWeights | None = None
    """The matrices that are stored in fewer bits; None without any. May be absent."""

    @property
    def shown(self) -> str:
        """The precision for people."""
        shown = f"int8 and {self.precision}" if self.int8 else self.precision
        return f"{shown}, {self.weights.format} weights" if self.weights else shown


@dataclass(frozen=True)
class HostImage:
    """An image that the host makes, float32 [1, 3, size, size]."""

    of: str
    """What it is made of: `PICTURE`, or the 8-bit levels of another of the host's images."""

    fit: Literal["square", "letterbox", "crop"]
    """How the whole gets into a square.

    "square" changes the aspect ratio. "letterbox" makes the longest side `size`, and adds zeros at
    the right and below behind the normalisation. "crop" makes the shortest side `size`, rounds the
    other one down and cuts the middle out.
    """

    size: Side
    """The side in pixels."""

    filter: Literal["bilinear", "bicubic"]
    """How it is resized."""

    antialias: bool
    """Whether the filter is as wide as what a pixel covers: Pillow's resize, on 8-bit levels.

    Without it, it is torch's interpolate.
    """

    levels: Literal[1, 255]
    """What white is before `mean` and `std`."""

    mean: Means
    """What is subtracted from each of the three channels."""

    std: Deviations
    """What each channel is divided by after that."""


@dataclass(frozen=True)
class Categories:
    """The table of a model that asks by category."""

    names: FileName
    """The file of the names, a JSON list."""

    features: FileName
    """The file of their text features: npy, float32 [names, width]."""

    value: Name
    """The value that the asked rows become, float32 [N, width]."""


@dataclass(frozen=True)
class Resize:
    """Maps that the host resizes between two stages, as torch's interpolate does."""

    of: Name
    """The value, as its stage gives it."""

    size: Side
    """The side of a map afterwards."""

    interpolation: Literal["bilinear", "bicubic"]
    """How a map is resized."""


@dataclass(frozen=True)
class Drawn:
    """Random numbers for each expression, float32 [N, *shape] (`ris.runtime.drawn`).

    They depend on the seed, the number of the draw and the place of the value's name among the
    drawn ones alone: every expression gets the same.
    """

    distribution: Literal["logistic"]
    """What they are drawn from: the standard logistic distribution."""

    shape: DrawnShape
    """Their shape, without the axis of the expressions."""

    seed: Seed
    """What they are drawn from where the user names no seed."""


@dataclass(frozen=True)
class Host:
    """What the runtime does beside the graphs; each entry gives a value."""

    images: dict[Name, HostImage]
    """The squares of the picture by value."""

    text: Text
    """The expressions."""

    image_index: Name | None
    """The value that says which image an expression is about, int32 [N]; None: nothing takes it."""

    categories: Categories | None
    """The table of a model that asks by category, None for others."""

    resizes: dict[Name, Resize]
    """The resized maps by value."""

    drawn: dict[Name, Drawn] = field(default_factory=dict)
    """The random numbers by value. May be absent."""


@dataclass(frozen=True)
class Answer:
    """How a question's values become masks."""

    mask_logits: Name
    """The value of the mask logits, float32 [N, 1, m, m]."""

    no_target_logits: Name | None
    """The value of the no-target logits, float32 [N, 2]; class 1 is "no target".

    None where the model does not decide that.
    """

    interpolation: Literal["bilinear", "bicubic"]
    """How logits or probabilities are resized to the picture's size."""

    threshold: Threshold
    """The logit or the probability above which a pixel belongs to the mask."""

    of: Literal["logits", "probabilities"] = "logits"
    """What is resized and compared: the logits, or their sigmoids. May be absent."""

    align_corners: bool = False
    """Whether corners lie on corners, as torch's interpolate says it. May be absent."""

    letterbox_of: Name | None = None
    """The letterbox that the mask logits are of.

    They are resized to its side and cut to the picture's part before they are resized to the
    picture. None: they are of the whole picture. May be absent.
    """

    mean_of: Name | None = None
    """The value that several draws of random numbers are averaged at, float32.

    What depends on the numbers through it alone runs once, on the mean. None: all of it runs for
    each draw, and the mask logits and the no-target logits are averaged. May be absent.
    """


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
    """`FORMAT_VERSION`, also where the file has an earlier format."""

    family: Name
    """The architecture: a name of `ris.reference.families`."""

    writer: dict[str, str]
    """The version of each package that wrote the bundle."""

    source: Source
    """What the bundle was made from."""

    model: dict[str, Any]
    """The model's configuration, as its family writes it."""

    precision: BundlePrecision
    """What the bundle was exported or quantised to; single graphs may differ."""

    host: Host
    """What the runtime does beside the graphs."""

    stages: tuple[GraphEntry, ...]
    """The stages, in the order in which they run."""

    answer: Answer
    """How a question's values become masks."""

    golden: FileName
    """The file of the reference's arrays, which parity is checked against."""

    files: Hashes
    """The hash of every file that belongs to no graph."""

    parity: dict[str, StageParity]
    """What the export measured, by stage and output."""

    mask_iou: Share
    """The smallest IoU of a mask with the reference's that the export measured."""

    @property
    def graphs(self) -> dict[str, GraphEntry]:
        """The stages by name, in their order."""
        return {stage.name: stage for stage in self.stages}

    def with_graphs(self, entries: Iterable[GraphEntry]) -> Manifest:
        """The manifest with these stages."""
        return dataclasses.replace(self, stages=tuple(entries))

    @property
    def categories(self) -> Categories | None:
        """The table of a model that asks by category, None for others."""
        return self.host.categories

    @property
    def no_target(self) -> bool:
        """Whether the model decides that an expression names nothing in the picture."""
        return self.answer.no_target_logits is not None

    @property
    def mask_rule(self) -> MaskRule:
        """The way from mask logits to a mask."""
        return mask_rule(self.host, self.answer)

    @property
    def side(self) -> int:
        """The side in pixels of the largest image that is made of the picture."""
        return max(image.size for image in self.host.images.values() if image.of == PICTURE)

    def to_json(self) -> str:
        """The text of manifest.json; keys are sorted, so that equal manifests are equal files."""
        return json.dumps(dataclasses.asdict(self), indent=2, sort_keys=True) + "\n"


def mask_rule(host: Host, answer: Answer) -> MaskRule:
    """The way from mask logits to a mask that a manifest with this host and answer says."""
    name = answer.letterbox_of
    letterbox = None if name is None else host.images[name].size
    return MaskRule(
        answer.of, answer.interpolation, answer.align_corners, answer.threshold, letterbox
    )


def manifest_from_dict(data: Any) -> Manifest:
    """The manifest of parsed JSON, of this format or an earlier one.

    Raises:
        BundleError: Where fields are missing or wrong; it names the first of them (`joined`).
    """
    version = data.get("format_version") if isinstance(data, dict) else None
    if version == 1 and type(version) is int:  # neither true nor 1.0
        data = as_format_2(data)
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
