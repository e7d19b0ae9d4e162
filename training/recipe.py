"""What a training run does: loss weights, optimiser, schedule, batch.

Sources: the paper's supplement, and its released code where the two differ
(docs/reference/models/dfam.md 19 and 20).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ris.data.scenes import Wanted


@dataclass(frozen=True)
class LossWeights:
    """Weights of the loss terms; the defaults are the supplement's."""

    mask_dice: float = 2.0
    """Dice of the main mask."""

    mask_bce: float = 0.5
    """Binary cross entropy of the main mask."""

    dfam: float = 1.0
    """Scales all three terms of DFAM's layers: dfam_dice, dfam_bce and vl."""

    dfam_dice: float = 5.0
    """Dice of the matched query's mask, per layer of DFAM."""

    dfam_bce: float = 5.0
    """Binary cross entropy of the matched query's mask, per layer of DFAM."""

    vl: float = 1.0
    """The cosine term between object embeddings and sentences, per layer of DFAM."""

    no_target: float = 0.1
    """Cross entropy of the no-target head."""

    no_target_classes: tuple[float, float] = (0.9, 1.1)
    """Weights of that head's two classes: something is referred to, nothing is."""

    pretext: float = 0.0
    """The terms of `pretext`, which are not the paper's; 0 where the encoders are pre-trained.

    They stand in for the pre-training that encoders trained from scratch lack.
    """


@dataclass(frozen=True)
class Recipe:
    """One training run. Its fields are the keys of the recipe in a run's state file."""

    name: str = "supplement"
    """The recipe's name in `RECIPES`."""

    weights: LossWeights = field(default_factory=LossWeights)
    """Weights of the loss terms."""

    learning_rate: float = 5e-5
    """The highest learning rate of the schedule (`rate`)."""

    muon: float = 0.0
    """Muon updates the network's inner weight matrices, at this multiple of the learning rate.

    AdamW updates everything else. 0: AdamW updates all.
    """

    weight_decay: float = 0.05
    """Weight decay of matrices; nothing else decays."""

    clip_norm: float = 0.01
    """The largest L2 norm of the gradient of the whole model."""

    images: int = 4
    """Images in a batch."""

    expressions: int = 8
    """Expressions per image."""

    parts: int = 1
    """A batch is cut by images into this many parts, whose gradients are averaged.

    On a CPU the parts run side by side.
    """

    steps: int = 100_000
    """Optimiser steps of the whole run, lessons included."""

    warmup: int = 0
    """Steps of linear growth of the rate, at the start and again after the lessons."""

    decay: float = 0.1
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

    bf16: bool = True
    """bfloat16 autocast where the device has instructions for it; weights stay float32."""

    unknown_words: float = 0.0
    """The share of expressions that get an unknown word."""

    frozen: tuple[str, ...] = ("sam.image_encoder.", "sam.prompt_encoder.", "clip_dense.")
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

        tail = max(1, round(self.steps * self.decay))
        into = step - (self.steps - tail)
        if into <= 0:
            return self.learning_rate
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, into / tail)))


def changed(recipe: Recipe, **values: Any) -> Recipe:
    """The recipe with the given fields replaced; None leaves a field as it is."""
    return replace(recipe, **{name: value for name, value in values.items() if value is not None})


RECIPES: dict[str, Recipe] = {
    "supplement": Recipe(),
    # The released code's weights and batch. Its class term against CLIP text vectors is not
    # offered (docs/reference/training.md).
    "released": Recipe(
        name="released",
        weights=LossWeights(mask_dice=0.5, mask_bce=2.0),
        images=8,
        expressions=8,
    ),
    # From scratch, on drawn scenes: only SAM's prompt encoder is frozen, and the encoders get
    # lessons first.
    "demo": Recipe(
        name="demo",
        weights=LossWeights(dfam=0.1, pretext=1.0, no_target=1.0, no_target_classes=(1.0, 1.0)),
        learning_rate=6e-4,
        muon=5.0,
        clip_norm=1.0,
        images=8,
        expressions=6,
        parts=2,
        steps=2_000,
        lessons=600,
        augment=True,
        mix={"ordinal": 0.14, "no_target": 0.25, "too_many": 0.04, "unrelated": 0.05},
        warmup=200,
        decay=0.65,
        ema=0.998,
        unknown_words=0.03,
        frozen=("sam.prompt_encoder.",),
    ),
}
"""The recipes by name."""
