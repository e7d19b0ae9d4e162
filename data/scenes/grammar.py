"""Referring expressions for a scene, of mixed kinds, with the objects they mean.

`writer` makes single expressions; here the kinds are mixed and repetitions are left out.
"""

from __future__ import annotations

from collections.abc import Container, Mapping

import numpy as np
from numpy.typing import NDArray

from ris.data.scenes import phrases
from ris.data.scenes.scene import Scene, random_stream
from ris.data.scenes.words import NOUNS
from ris.data.scenes.writer import Sample, Wanted, Writer

WEIGHTS: dict[Wanted, float] = {
    "plain": 0.19,
    "position": 0.20,
    "ordinal": 0.08,
    "relation": 0.27,
    "size": 0.12,
    "several": 0.07,
    "no_target": 0.12,
}
"""How often each kind is tried first. What a scene does not allow goes to the other kinds, so that
in the end about 22 % are plain, 26 % position, 9 % ordinal, 13 % relation, 8 % size, 10 % several
and 12 % no target."""

MOST_SAMPLES = 1000
"""The most samples that may be asked of one scene."""

_ATTEMPTS = 12  # at one kind before another is tried
_ROUNDS = 50  # over all kinds before a scene is taken to give no more
_ABSENT = ("no_target", "too_many", "unrelated")


def make_samples(
    scene: Scene, seed: int, count: int, weights: Mapping[Wanted, float] = WEIGHTS
) -> list[Sample]:
    """Samples with distinct expressions, of mixed kinds.

    They are the same for the same scene, seed and weights. The kinds depend on the scene: where no
    two things are of one kind, there is nothing to count.

    Args:
        scene: What the expressions are about.
        seed: Gives other samples of the same scene; 0 or more.
        count: How many samples, up to `MOST_SAMPLES`.
        weights: How often each kind is tried first.

    Raises:
        ValueError: For a negative seed, for a count that is negative or above `MOST_SAMPLES`, and
            where the scene does not give that many distinct expressions (hundreds are no problem).
    """
    if not 0 <= count <= MOST_SAMPLES:
        raise ValueError(f"count is {count}; a scene gives 0 to {MOST_SAMPLES} samples")
    rng = random_stream(scene.split, scene.seed, seed)
    writer = Writer(scene, rng)
    names, shares = list(weights), np.array(list(weights.values()))
    shares = shares / shares.sum()

    samples: dict[str, Sample] = {}
    for _ in range(count):
        for _ in range(_ROUNDS):
            order = [names[i] for i in rng.choice(len(names), len(names), replace=False, p=shares)]
            sample = _first_possible(writer, order, samples)
            if sample is not None:
                break
        else:
            raise ValueError(
                f"scene {scene.seed} gives only {len(samples)} distinct expressions, {count} were "
                "wanted"
            )
        samples[sample.expression] = sample
    return list(samples.values())


def _first_possible(writer: Writer, order: list[Wanted], taken: Container[str]) -> Sample | None:
    """A new sample of the first kind in `order` that the scene allows.

    Kinds without a target come last unless one of them is the first: almost every scene allows
    them, so they would take the place of all others.
    """
    for wanted in order[:1] + sorted(order[1:], key=_ABSENT.__contains__):
        for _ in range(_ATTEMPTS):
            sample = writer.write(wanted)
            if sample is not None and sample.expression not in taken:
                return sample
    return None


def target_mask(scene: Scene, sample: Sample) -> NDArray[np.bool_]:
    """bool [S, S]: the visible pixels of all targets; nothing where there is no target."""
    mask = np.zeros(scene.image.shape[:2], np.bool_)
    for i in sample.targets:
        mask |= scene.objects[i].mask
    return mask


def vocabulary_words() -> list[str]:
    """Every word that any expression of any split can have, sorted."""
    words = {"an", "leftmost", "rightmost", "topmost", "bottommost", "left", "right"}
    words |= {*phrases.ORDINALS, *phrases.COUNTS.values(), *phrases.LEVELS, *phrases.UPPERS}
    texts = [template for templates in phrases.TEMPLATES.values() for template in templates]
    texts += [text for options in phrases.RELATIONS.values() for text in options]
    texts += [*phrases.LARGE, *phrases.SMALL, *phrases.LARGER, *phrases.SMALLER]
    texts += [word for noun in NOUNS for word in (noun.one, noun.many)]
    words |= {word for text in texts for word in text.split() if word.isalpha()}
    return sorted(words)
