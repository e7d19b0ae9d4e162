"""What a family tells the exporter: its stages, what the host does between them, its rules.

A family's own module fills these in (`ris.export.families.DESIGNS`). Nothing else of the exporter
knows a stage by name.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from ris.engines import TensorSpec
from ris.engines.errors import RisError
from ris.reference.layers.deformable import Sampling
from ris.runtime.manifest import Answer, Host, Precision, Resize
from ris.runtime.manifest_kinds import Taken

Build = Callable[[Any, Sampling], nn.Module]
"""Makes the module to trace of a model, whose weights it shares."""


@dataclass(frozen=True)
class NarrowFrom:
    """Where in a graph bfloat16 begins."""

    value: str
    """The name that the value gets; what depends on it may be bfloat16."""

    module: str
    """A part of the path of the module that reads this value and no other computed one."""

    reason: str
    """Why what comes before stays FP32."""


@dataclass(frozen=True)
class IslandRules:
    """What stays FP32 in an FP16 graph, beyond what holds for every model."""

    modules: Mapping[str, str] = field(default_factory=dict)
    """Modules, and the reason. A key is a part of a module's path; the first that fits is taken."""

    attention: tuple[str, ...] = ()
    """How the paths of attention modules end. Sums in them are of logits, and may be FP16."""


@dataclass(frozen=True)
class StageDesign:
    """One graph: the module to trace, what goes in and comes out, what a precision may do to it."""

    name: str
    """The stage's name, and that of its file."""

    inputs: tuple[Taken, ...]
    """The inputs, in the order and under the names of the module's arguments."""

    outputs: tuple[TensorSpec, ...]
    """The outputs, in the order in which the module returns them."""

    build: Build
    """Makes the module, in eval mode."""

    samples: bool = False
    """Whether it samples bilinearly, and so heeds `Sampling`."""

    narrow_from: NarrowFrom | None = None
    """Where bfloat16 begins; None: at the inputs."""

    int8_by_default: bool = False
    """Whether it is quantised where the user names no graph."""

    narrow_weights: bool = False
    """Whether its matrices are stored in fewer bits where that is asked for and no graph is named.

    It is for graphs whose time goes into reading their weights: large ones, and few rows.
    """

    shared_weights: str | None = None
    """The name of the file that its weights lie in with those of other stages that name it; what
    two of them have is there once. None: a file of its own."""

    halved: tuple[str, ...] = ()
    """The outputs that are FP16 where the graphs that have them are narrow, in what they compute or
    in their weights: large values that a scene keeps (`ris.export.narrow_values`)."""

    thresholded: Mapping[str, float] = field(default_factory=dict)
    """The outputs that lie behind a threshold, as of an attention mask, each with the relative
    error that a step there may make."""

    islands: IslandRules = IslandRules()
    """What stays FP32 in the FP16 graph."""

    whole: Mapping[Precision, str] = field(default_factory=dict)
    """By a bundle's precision the reason why the graph stays FP32 in it, as a whole."""

    lengths: tuple[int, ...] = ()
    """The lengths of the axis "tokens", as the host's text has them; empty where no input has that
    axis."""

    resizes: Mapping[str, Resize] = field(default_factory=dict)
    """The inputs that the graph itself resizes, by name, before the module takes them."""

    @property
    def module_inputs(self) -> tuple[Taken, ...]:
        """The inputs as the module takes them."""
        return tuple(
            replace(spec, shape=(*spec.shape[:2], resize.size, resize.size))
            if (resize := self.resizes.get(spec.name))
            else spec
            for spec in self.inputs
        )

    @property
    def bfloat16(self) -> bool:
        """Whether bfloat16 is precise enough for the graph."""
        return "bf16" not in self.whole


AS_ASKED = "FP32 was asked for"
"""Why a graph stays FP32 that the user named."""


def keep_fp32(
    stages: Sequence[StageDesign], names: Collection[str], precision: Precision
) -> tuple[StageDesign, ...]:
    """The stages, of which those with the names stay FP32 in a bundle of that precision.

    Raises RisError for a name of none of them.
    """
    own = [stage.name for stage in stages]
    if unknown := sorted(set(names).difference(own)):
        raise RisError(f"there is no graph {unknown[0]!r} to keep FP32; there are {', '.join(own)}")
    return tuple(
        replace(stage, whole={**stage.whole, precision: AS_ASKED}) if stage.name in names else stage
        for stage in stages
    )


@dataclass(frozen=True)
class Questions:
    """What an export is checked with."""

    image: NDArray[np.uint8]
    """A picture, RGB [H, W, 3]."""

    expressions: tuple[str, ...]
    """Three that are asked about it, the second of its mirror image."""

    categories: tuple[str, ...] = ()
    """The category of each expression; a family that asks by none leaves them out."""


@dataclass(frozen=True)
class Variants:
    """The variants of a family, and what `--variant` and `--supplement` make of a configuration."""

    name: Callable[[Any], str]
    """Which one a configuration is."""

    choose: Callable[[Any, str | None, bool], Any]
    """A preset's configuration in the variant that is asked for, with the supplement or without."""

    contradiction: Callable[[Any, str | None, bool], tuple[str, str] | None]
    """The option that asks for another variant than the files' configuration is, and what that is,
    as in "is the cls variant". None where none does."""


@dataclass(frozen=True)
class FamilyDesign:
    """A family's side of the exporter. Each function takes the family's own configuration."""

    stages: Callable[[Any], tuple[StageDesign, ...]]
    """The stages, in the order in which they run."""

    host: Callable[[Any], Host]
    """What the runtime does beside the graphs."""

    answer: Callable[[Any], Answer]
    """How a question's values become masks."""

    questions: Callable[[Any, bool], Questions]
    """What an export is checked with; the flag says whether the weights are trained."""

    words: Callable[[Any], str]
    """A configuration for people, in a few lines."""

    repeated: Callable[[Any], Iterable[nn.Module]]
    """The model's blocks that repeat, nearly all of its work: what `torch.compile` compiles."""

    variants: Variants | None = None
    """The family's variants; None where there is one alone."""

    categories: Callable[[Any], tuple[Sequence[Any], NDArray[np.float32]]] | None = None
    """A model's table of categories: for each row what its names are, as categories.json has it,
    and the features [rows, width]. None for families that ask by none."""

    memory: Callable[[Any], int] = lambda config: 0
    """The bytes that a pass of the reference needs at most, its weights aside."""
