"""Scenes with referring expressions: what the demo model is trained and measured on.

scene = make_scene(seed=7, split="train")               # image, and objects with exact masks
for sample in make_samples(scene, seed=0, count=6):     # "left man", "all dogs", ...
    mask = target_mask(scene, sample)
"""

from ris.data.scenes.backgrounds import draw_background
from ris.data.scenes.glyphs import Split, hue_turn, kinds, variant_colours
from ris.data.scenes.grammar import WEIGHTS, make_samples, target_mask, vocabulary_words
from ris.data.scenes.scene import Scene, SceneObject, make_scene
from ris.data.scenes.words import COLOURS
from ris.data.scenes.writer import Sample, Wanted

KINDS = kinds()
"""The kinds of thing that scenes show."""

__all__ = [
    "COLOURS",
    "KINDS",
    "WEIGHTS",
    "Sample",
    "Scene",
    "SceneObject",
    "Split",
    "Wanted",
    "draw_background",
    "hue_turn",
    "make_samples",
    "make_scene",
    "target_mask",
    "variant_colours",
    "vocabulary_words",
]
