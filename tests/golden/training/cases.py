"""The golden cases of the losses as the product's types."""

from __future__ import annotations

import numpy as np
import torch

from golden.training import losses_inputs as made
from ris.reference.dfam.categories import COCO_PANOPTIC
from ris.training.targets import Targets

OUTPUTS = ("0", "1", "2", "final")
"""The golden files' names of DFAM's outputs, in the model's order."""

UNWEIGHTED = {
    "mask_bce": "dfam_bce",
    "mask_dice": "dfam_dice",
    "class": "class",
    "sentence": "sentence",
}
"""The product's names of the golden files' terms."""

SMALL = ("ris_small", "gres_small", "gres_none")
FULL = ("ris_full", "gres_full")


class GivenPoints:
    """The points at which the golden values were computed."""

    def __init__(self, case):
        self.case = case

    def of_match(self, output, sample):
        return torch.from_numpy(made.match_points(self.case, OUTPUTS[output], sample))[0]

    def of_loss(self, output, pairs):
        assert pairs == sum(made.counts(self.case))
        return tuple(map(torch.from_numpy, made.loss_points(self.case, OUTPUTS[output])))


def targets_of(case):
    """The case's targets; a sample's category is that of its first object."""
    labels = made.CASES[case]["labels"]
    background = COCO_PANOPTIC.index("background")
    return Targets(
        union=torch.from_numpy(made.union(case)[:, 0]),
        objects=tuple(map(torch.from_numpy, made.truth(case))),
        targeted=torch.tensor([bool(own) for own in labels]),
        image_index=torch.arange(len(labels)),
        category=torch.tensor([own[0] if own else background for own in labels]),
    )


def leaf(array):
    return torch.from_numpy(np.ascontiguousarray(array)).requires_grad_()
