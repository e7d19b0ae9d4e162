"""Which query answers for which object: an exact assignment, without gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ris.training.points import Points, sampled
from ris.training.recipe import LossWeights
from ris.training.terms import dice

IMPOSSIBLE = 1e6
"""The cost of a query whose own is no finite number, so that the rest can be assigned."""


@dataclass
class DfamOutput:
    """What one of DFAM's four outputs says, for N sentences and Q queries. All are logits."""

    masks: Tensor
    """The queries' masks, float32 [N, Q, s, s]."""

    sentences: Tensor
    """How well a query fits each of the sentences, float32 [N, Q, N]."""

    classes: Tensor | None
    """The same of the classes, float32 [N, Q, N + categories]; None without a class term.

    The sentences come first, each as a class of its own, and background is last.
    """


@dataclass(frozen=True)
class Matched:
    """The M matched queries of an output, by sample and then by query."""

    sample: Tensor
    """int64 [M]."""

    query: Tensor
    """int64 [M]."""

    target: Tensor
    """The number of the object among its sample's, int64 [M]."""

    def __len__(self) -> int:
        return len(self.sample)


@torch.no_grad()
def match(
    outputs: Sequence[DfamOutput],
    objects: Sequence[Tensor],
    weights: LossWeights,
    points: Points,
) -> list[Matched]:
    """Gives every object of every sample a query of its own, in each output by itself.

    Args:
        outputs: DFAM's outputs.
        objects: The masks of each sample's objects, N of float32 [n, S, S].
        weights: Weights of the costs.
        points: Where masks are compared.
    """
    costs = [
        query_costs(output, sample, masks, weights, points.of_match(number, sample))
        for number, output in enumerate(outputs)
        for sample, masks in enumerate(objects)
    ]
    # one copy for all: each copy waits for the device
    flat = torch.cat([cost.flatten() for cost in costs]).cpu()
    pieces = iter(flat.split([cost.numel() for cost in costs]))
    device = outputs[0].masks.device
    queries = outputs[0].masks.shape[1]
    return [_assigned([next(pieces).view(queries, -1) for _ in objects], device) for _ in outputs]


def query_costs(
    output: DfamOutput, sample: int, objects: Tensor, weights: LossWeights, points: Tensor
) -> Tensor:
    """What it costs to let each query answer for each object of a sample.

    Args:
        output: What the queries say.
        sample: The sample's number.
        objects: Its objects' masks, float32 [n, S, S].
        weights: Weights of the costs.
        points: Where masks are compared, float32 [P, 2].

    Returns:
        float32 [Q, n].
    """
    queries, own = output.masks.shape[1], output.sentences[sample, :, sample]
    if not len(objects):
        return own.new_zeros(queries, 0)

    at = points.to(own.device)[None]
    logits = sampled(output.masks[sample][None], at)[0]
    truth = sampled(objects[None], at)[0]
    overlap = logits @ truth.T / len(points)
    bce = F.softplus(logits).mean(-1, keepdim=True) - overlap
    unlike = dice(logits[:, None], truth[None])
    cost = weights.dfam_bce * bce + weights.dfam_dice * unlike
    cost = cost - weights.vl * own.sigmoid()[:, None]
    if output.classes is not None:
        share = output.classes[sample].softmax(-1)[:, sample]
        cost = cost - weights.classes * share[:, None]
    return cost


def _assigned(costs: Sequence[Tensor], device: torch.device) -> Matched:
    """The cheapest assignment of each sample's costs [Q, n], on `device`."""
    rows: list[tuple[int, int, int]] = []
    for sample, cost in enumerate(costs):
        cost = cost.nan_to_num(IMPOSSIBLE, IMPOSSIBLE, IMPOSSIBLE)
        pairs = zip(*linear_sum_assignment(cost.numpy()), strict=True)
        rows += [(sample, int(query), int(target)) for query, target in pairs]
    found = torch.tensor(rows, dtype=torch.int64).view(-1, 3).to(device)
    return Matched(*found.unbind(1))
