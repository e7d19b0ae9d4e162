"""The category table of the category variant: names, and how a row is made from words (docs/model.md 15)."""

from __future__ import annotations

import torch
from open_clip.model import CLIP
from torch import Tensor

_THINGS = """person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant,
stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack,
umbrella, handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove,
skateboard, surfboard, tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich,
orange, broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv,
laptop, mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase,
scissors, teddy bear, hair drier, toothbrush"""

_STUFF = """banner, blanket, bridge, cardboard, counter, curtain, door-stuff, floor-wood, flower, fruit, gravel,
house, light, mirror-stuff, net, pillow, platform, playingfield, railroad, river, road, roof, sand, sea, shelf,
snow, stairs, tent, towel, wall-brick, wall-stone, wall-tile, wall-wood, water-other, window-blind, window-other,
tree-merged, fence-merged, ceiling-merged, sky-other-merged, cabinet-merged, table-merged, floor-other-merged,
pavement-merged, mountain-merged, grass-merged, dirt-merged, paper-merged, food-other-merged,
building-other-merged, rock-merged, wall-other-merged, rug-merged"""


def _split(names: str) -> list[str]:
    return [" ".join(name.split()) for name in names.split(",")]


COCO_PANOPTIC: list[str] = [*_split(_THINGS), *_split(_STUFF), "background"]
"""The 80 COCO things, the 53 stuff classes and `background`, in the table's order."""


@torch.no_grad()
def category_row(clip: CLIP, tokens: Tensor) -> Tensor:
    """One row of the table, [embed_dim]: tokens [phrases, 77] of the class's phrases through CLIP's text tower.

    The mean of the unnormalised text vectors, divided by its L2 norm.
    """
    mean = clip.encode_text(tokens).mean(0)
    return mean / mean.norm()
