"""What a training run does: loss weights, optimiser, schedule, batch. Frozen dataclasses that the
command fills.

Sources: the paper's supplement and its released code where the two differ
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
    """Weights of the loss terms; the defaults are the supplement's.

    mask_*: the main mask. dfam scales everything that DFAM's layers give: per layer dfam_dice,
    dfam_bce and vl, the cosine term between object embeddings and sentences. no_target: the cross
    entropy of the no-target head, whose classes are weighted by no_target_classes. pretext is ours,
    and stands in for the pre-training that encoders trained from scratch lack; 0 where they have
    it. Linear layers say what each patch of the two image encoders shows, where and how large that
    is, whether others of its kind are left of it or larger, and which kinds are around it; they say
    the kind, place and size of a sentence's target, and read a mask off the dense prompt.
    """

    mask_dice: float = 2.0
    mask_bce: float = 0.5
    dfam: float = 1.0
    dfam_dice: float = 5.0
    dfam_bce: float = 5.0
    vl: float = 1.0
    no_target: float = 0.1
    no_target_classes: tuple[float, float] = (0.9, 1.1)
    pretext: float = 0.0


@dataclass(frozen=True)
class Recipe:
    """One training run.

    images and expressions: a batch is that many images with that many expressions each. parts: the
    batch is cut by images into so many, whose gradients are averaged; on a CPU they run side by
    side. steps: optimiser steps; warmup: steps of linear growth, at the start and after the
    lessons; decay: the share of the steps, at the end, over which the rate falls to zero along a
    cosine. lessons and lesson_images: so many first steps train the encoders alone, on the pretext
    terms, with that many images each: until they know what things are, there is nothing for words
    to mean. muon: weight matrices inside the network are updated by Muon, at so many times the
    rate, and everything else by AdamW; 0: AdamW updates all. augment: drawn scenes vary in more
    than their glyphs and backgrounds do. mix: how often drawn scenes are asked for a kind of
    expression, where that departs from `WEIGHTS` of their grammar. clip_norm: L2 norm of the whole
    model's gradient. bf16: bfloat16 autocast (weights stay float32), where the device has it. ema:
    decay of the averaged weights that are validated and exported; 0 keeps none. unknown_words: how
    often an expression gets a word that it does not know. frozen: prefixes of state-dict keys that
    do not train.
    """

    name: str = "supplement"
    weights: LossWeights = field(default_factory=LossWeights)
    learning_rate: float = 5e-5
    muon: float = 0.0
    weight_decay: float = 0.05
    clip_norm: float = 0.01
    images: int = 4
    expressions: int = 8
    parts: int = 1
    steps: int = 100_000
    warmup: int = 0
    decay: float = 0.1
    lessons: int = 0
    lesson_images: int = 16
    augment: bool = False
    mix: dict[Wanted, float] = field(default_factory=dict)
    ema: float = 0.0
    bf16: bool = True
    unknown_words: float = 0.0
    frozen: tuple[str, ...] = ("sam.image_encoder.", "sam.prompt_encoder.", "clip_dense.")
    seed: int = 0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def rate(self, step: int) -> float:
        """The learning rate of optimiser step `step`, counted from 0; it warms up again after the
        lessons.
        """
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
    # the released code's weights and batch; its class term against CLIP text vectors is not offered
    # (docs/guide/train.md)
    "released": Recipe(
        name="released",
        weights=LossWeights(mask_dice=0.5, mask_bce=2.0),
        images=8,
        expressions=8,
    ),
    # from scratch, on drawn scenes: nothing is frozen, and the encoders get a lesson of their own
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
