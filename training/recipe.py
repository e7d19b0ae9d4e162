"""What a training run does: loss weights, optimiser, schedule, batch.

Sources: the paper's supplement, and its released code for what the supplement leaves open
(docs/reference/training.md).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from ris.reference.dfam.config import ModelConfig
from ris.reference.dfam.keys import BERT, SAM_DECODER, SAM_ENCODER, SAM_PROMPTS

if TYPE_CHECKING:
    from ris.data.scenes import Wanted


Objective = Literal["released", "demo"]
"""The choices of `Recipe.objective`."""

NO_CONTRAST = "refcoco"
"""The data set whose sentence term leaves out pairs of one COCO category."""


@dataclass(frozen=True)
class LossWeights:
    """Weights of the loss terms; the defaults are the supplement's."""

    mask_dice: float = 2.0
    """Dice of the main mask."""

    mask_bce: float = 0.5
    """Binary cross entropy of the main mask."""

    dfam: float = 1.0
    """Scales all terms of DFAM's outputs: dfam_dice, dfam_bce, classes and vl."""

    dfam_dice: float = 5.0
    """Dice of the matched queries' masks, per output of DFAM; a matching cost, too."""

    dfam_bce: float = 5.0
    """Binary cross entropy of the matched queries' masks, per output; a matching cost, too."""

    classes: float = 0.0
    """Cross entropy of the queries' classes by CLIP's text vectors, per output; a cost, too."""

    vl: float = 1.0
    """The sentence term of object embeddings and [CLS] states, per output; a cost, too."""

    same_category: bool = True
    """Whether sentences about two objects of one COCO category are each other's negatives.

    The sentence term leaves them out otherwise.
    """

    no_target: float = 0.1
    """Cross entropy of the no-target head."""

    no_target_classes: tuple[float, float] = (1.0, 1.0)
    """Weights of that head's two classes: something is referred to, nothing is."""

    pretext: float = 0.0
    """The terms of `pretext`, which are not the paper's; 0 where the encoders are pre-trained.

    They stand in for the pre-training that encoders trained from scratch lack.
    """


FROZEN = (
    SAM_ENCODER,
    SAM_PROMPTS,
    f"{SAM_DECODER}iou_prediction_head.",
    "clip_dense.",
)
"""Prefixes of what neither source trains: both image encoders, and what reaches no loss."""

LEFT_OUT_BERT = (
    f"{BERT}embeddings.",
    f"{BERT}encoder.layer.10.",
    f"{BERT}encoder.layer.11.",
)
"""Prefixes of what the released code's optimiser leaves out of BERT."""


@dataclass(frozen=True)
class Recipe:
    """One training run. Its fields are the keys of the recipe in a run's state file."""

    name: str = "supplement"
    """The recipe's name in `RECIPES`."""

    objective: Objective = "released"
    """Whose losses, starting values and rule of what decays: the released code's or the demo's."""

    weights: LossWeights = field(default_factory=LossWeights)
    """Weights of the loss terms."""

    learning_rate: float = 5e-5
    """The highest learning rate of the schedule (`rate`)."""

    muon: float = 0.0
    """Muon updates the network's inner weight matrices, at this multiple of the learning rate.

    AdamW updates everything else. 0: AdamW updates all.
    """

    weight_decay: float = 0.05
    """Weight decay, of the parameters that decay (`optimisers.decays`)."""

    clip_norm: float = 0.01
    """The largest L2 norm of the gradient of everything in the optimisers."""

    samples: int = 32
    """Samples of a data set in a step, all groups and devices together.

    A sample is an image with one sentence.
    """

    group: int = 16
    """Samples whose sentences are each other's negatives.

    A step's samples are cut into groups of this size, and the groups' gradients are averaged. The
    released code's groups are the samples of one of its GPUs.
    """

    images: int = 8
    """Drawn scenes in a step."""

    expressions: int = 6
    """Expressions per drawn scene."""

    parts: int = 1
    """A step's drawn scenes are cut into this many groups."""

    steps: int = 100_000
    """Optimiser steps of the whole run, lessons included."""

    warmup: int = 0
    """Steps of linear growth of the rate, at the start and again after the lessons."""

    drops: tuple[float, ...] = (0.6, 0.9)
    """The shares of the steps after which the rate falls to a tenth."""

    decay: float = 0.0
    """The share of the steps, at the end, over which the rate falls to zero along a cosine."""

    lessons: int = 0
    """The first steps train the encoders alone, on the pretext terms.

    Until the encoders know what things are, words have nothing to mean.
    """

    lesson_images: int = 16
    """Images in a batch of the lessons."""

    augment: bool = False
    """Drawn scenes vary in more than their glyphs and backgrounds."""

    mix: dict[Wanted, float] = field(default_factory=dict)
    """How often drawn scenes are asked for a kind of expression.

    Kinds that are not named here are asked for as often as the grammar's `WEIGHTS` say.
    """

    ema: float = 0.0
    """Decay of the averaged weights, which are validated and exported; 0 keeps no average."""

    mixed_precision: bool = True
    """Autocast in the precision that the device has (`devices.precision_of`); weights stay float32.

    bfloat16, or float16 with a scaled loss; a device that has instructions for neither computes in
    FP32.
    """

    bert_dropout: float = 0.1
    """Dropout in BERT while it trains: on its embeddings, attention and outputs of its layers."""

    unknown_words: float = 0.0
    """The share of expressions that get an unknown word."""

    frozen: tuple[str, ...] = FROZEN
    """Prefixes of state-dict keys that do not train."""

    seed: int = 0
    """Seed of weights, scenes, batches and order."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def rate(self, step: int) -> float:
        """The learning rate of optimiser step `step`, counted from 0."""
        begun = step - self.lessons if step >= self.lessons else step
        if begun < self.warmup:
            return self.learning_rate * (begun + 1) / self.warmup

        falls = sum(step >= round(share * self.steps) for share in self.drops)
        rate = self.learning_rate * 0.1**falls
        tail = max(1, round(self.steps * self.decay))
        into = step - (self.steps - tail)
        if into <= 0:
            return rate
        return rate * 0.5 * (1 + math.cos(math.pi * min(1.0, into / tail)))

    def trains(self, key: str, config: ModelConfig) -> bool:
        """Whether the parameter `key` of a model of `config` trains."""
        # the [CLS] variant has no category to project
        idle = ("clip_mlpl.",) if config.query == "cls" else ()
        return not key.startswith((*self.frozen, *idle))

    def for_data(self, name: str) -> Recipe:
        """The recipe on the data set `name`.

        On RefCOCO the released code's sentence term leaves out pairs of one category.
        """
        if self.objective == "demo":
            return self
        return replace(self, weights=replace(self.weights, same_category=name != NO_CONTRAST))


def changed(recipe: Recipe, **values: Any) -> Recipe:
    """The recipe with the given fields replaced; None leaves a field as it is."""
    return replace(recipe, **{name: value for name, value in values.items() if value is not None})


RECIPES: dict[str, Recipe] = {
    # The released code with the supplement's weights and batch. The three readings that it leaves
    # open: no class term, no class weights of the no-target term, and all of BERT trains.
    "supplement": Recipe(),
    "released": Recipe(
        name="released",
        weights=LossWeights(mask_dice=0.5, mask_bce=2.0, classes=2.0, no_target_classes=(0.9, 1.1)),
        samples=64,
        frozen=(*FROZEN, *LEFT_OUT_BERT),
    ),
    # From scratch, on drawn scenes: only SAM's prompt encoder is frozen, and the encoders get
    # lessons first.
    "demo": Recipe(
        name="demo",
        objective="demo",
        weights=LossWeights(dfam=0.1, pretext=1.0, no_target=1.0),
        learning_rate=6e-4,
        muon=5.0,
        clip_norm=1.0,
        parts=2,
        steps=2_000,
        lessons=600,
        augment=True,
        mix={"ordinal": 0.14, "no_target": 0.25, "too_many": 0.04, "unrelated": 0.05},
        warmup=200,
        drops=(),
        decay=0.65,
        ema=0.998,
        bert_dropout=0.0,
        unknown_words=0.03,
        frozen=("sam.prompt_encoder.",),
    ),
}
"""The recipes by name."""
