"""The losses of the released code (docs/reference/training.md), and the sum that is minimised.

All of them are computed in float32, whatever the model computes in. The demo's own are in
`demo_losses`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ris.reference.dfam.model import RISModel
from ris.training.demo_losses import demo_losses
from ris.training.forward import TrainingOutputs
from ris.training.matching import DfamOutput, Matched, match
from ris.training.points import Points, RandomPoints, sampled, uncertain
from ris.training.pretext import PretextHeads
from ris.training.recipe import LossWeights, Recipe
from ris.training.sentence_start import sentence_start
from ris.training.targets import Targets
from ris.training.terms import dice, no_target_loss

Losses = dict[str, Tensor]
"""Terms by name, 0-D each."""

BACKGROUND_WEIGHT = 0.1
"""The weight of background in the class term."""

_MAIN_SMOOTH = 1e-3
"""Smoothing of the main mask's Dice, in pixels."""


def total_loss(
    model: RISModel,
    heads: PretextHeads | None,
    out: TrainingOutputs,
    targets: Targets,
    recipe: Recipe,
    objects: float,
    points: torch.Generator | Points,
) -> tuple[Tensor, dict[str, float]]:
    """The sum that is minimised, and its parts, for one group of samples.

    A step's loss is the mean over its groups. It does not depend on how these are spread over
    devices.

    Args:
        model: The model.
        heads: The layers of the pretext terms, of the demo's losses; None leaves these terms out.
        out: What the model answered.
        targets: What is right.
        recipe: Which losses, and their weights.
        objects: What the sums over objects are divided by: the objects of the whole step
            (`Targets.count` of all its groups on all devices), divided by the number of groups.
        points: What draws the points at which masks are compared, or the points.

    Returns:
        The sum, and its parts by name, weighted.
    """
    weights = recipe.weights
    if recipe.objective == "demo":
        parts = demo_losses(model, heads, out, targets, weights)
    else:
        # logits of texts are computed here, in what the model computes in
        outputs = dfam_outputs(model, out, targets.image_index, weights)
        drawn = RandomPoints(points) if isinstance(points, torch.Generator) else points
        with torch.autocast(out.mask_logits.device.type, enabled=False):
            parts = released_losses(outputs, out, targets, weights, objects, drawn)

    total = torch.stack(list(parts.values())).sum()
    values = torch.stack([value.detach() for value in parts.values()]).tolist()
    return total, dict(zip(parts, values, strict=True))


def released_losses(
    outputs: Sequence[DfamOutput],
    out: TrainingOutputs,
    targets: Targets,
    weights: LossWeights,
    objects: float,
    points: Points,
) -> Losses:
    """The released code's terms by name, weighted, DFAM's summed over its outputs.

    Args:
        outputs: DFAM's outputs.
        out: What the model answered; the main mask and the no-target logits are read.
        targets: What is right.
        weights: Weights of the terms.
        objects: As of `total_loss`.
        points: Where masks are compared.
    """
    main = main_losses(out.mask_logits.float(), targets)
    parts = {
        "mask_bce": weights.mask_bce * main["bce"],
        "mask_dice": weights.mask_dice * main["dice"],
    }
    scales = {
        "dfam_bce": weights.dfam_bce,
        "dfam_dice": weights.dfam_dice,
        "class": weights.classes,
        "sentence": weights.vl,
    }
    found = dfam_losses(outputs, targets, weights, objects, points)
    for name in found[0]:
        parts[name] = weights.dfam * scales[name] * torch.stack([x[name] for x in found]).sum()

    if out.no_target_logits is not None:
        decided = no_target_loss(out.no_target_logits, targets.targeted, weights.no_target_classes)
        parts["no_target"] = weights.no_target * decided
    return parts


def dfam_outputs(
    model: RISModel, out: TrainingOutputs, image_index: Tensor, weights: LossWeights
) -> list[DfamOutput]:
    """DFAM's outputs as the losses read them, in float32.

    Args:
        model: The model; for the class term it has the category table and CLIP's start state.
        out: What it answered.
        image_index: Which image each sentence is about, int64 [N].
        weights: Weights of the losses; without the class term there are no class logits.
    """
    decoder, count = model.decoder, len(image_index)
    texts: Tensor | None = None
    if weights.classes:
        texts = _directions(torch.cat([sentence_start(model)[None], model.text_embeddings]))
    sentences = _directions(out.sentences)

    found = []
    for masks, objects in zip(out.query_masks, out.objects, strict=True):
        own = _directions(decoder.to_logits_bert(objects)) @ sentences.T
        classes: Tensor | None = None
        if texts is not None:
            likeness = _directions(decoder.to_logits(objects)) @ texts.T
            # CLIP's start token reads nothing after it: every sentence has the same vector
            same, others = likeness[..., :1].expand(-1, -1, count), likeness[..., 1:]
            classes = torch.cat([same, others], -1).float() * decoder.logit_scale_condsim.exp()
        found.append(
            DfamOutput(masks[image_index].float(), own.float() * decoder.logit_scale.exp(), classes)
        )
    return found


def _directions(vectors: Tensor) -> Tensor:
    """The vectors [..., C] at length 1, float32."""
    vectors = vectors.float()
    return vectors / (vectors.norm(dim=-1, keepdim=True) + 1e-7)


def main_losses(mask_logits: Tensor, targets: Targets) -> Losses:
    """The main mask against everything that is meant, at the model's square: "bce" and "dice".

    Samples without target count 0, and the divisor is the number of all samples.

    mask_logits: float32 [N, 1, h, h].
    """
    count, chosen = len(mask_logits), targets.targeted.nonzero()[:, 0]
    if not len(chosen):
        nothing = mask_logits.sum() * 0.0
        return {"bce": nothing, "dice": nothing}

    truth = targets.union[chosen].float().flatten(1)
    logits = F.interpolate(
        mask_logits[chosen], size=targets.union.shape[-2:], mode="bilinear", align_corners=False
    ).flatten(1)
    bce = F.binary_cross_entropy_with_logits(logits, truth, reduction="none").mean(1)
    return {"bce": bce.sum() / count, "dice": dice(logits, truth, _MAIN_SMOOTH).sum() / count}


def dfam_losses(
    outputs: Sequence[DfamOutput],
    targets: Targets,
    weights: LossWeights,
    objects: float,
    points: Points,
) -> list[Losses]:
    """The terms of each of DFAM's outputs, without weight.

    Args:
        outputs: DFAM's outputs.
        targets: What is right.
        weights: Weights of the matching costs; without weight there is no class term.
        objects: As of `total_loss`.
        points: Where masks are compared.

    Returns:
        For each output "dfam_bce" and "dfam_dice", "sentence", and "class" where it has a weight.
    """
    truth = [masks.float() for masks in targets.objects]
    counted = None if weights.same_category else ~_same_category(targets)
    found = []
    for number, matched in enumerate(match(outputs, truth, weights, points)):
        output = outputs[number]
        drawn = points.of_loss(number, len(matched))
        losses = mask_losses(output.masks, truth, matched, drawn, objects)
        if output.classes is not None:
            losses["class"] = class_loss(output.classes, matched)
        losses["sentence"] = sentence_loss(output.sentences, matched, counted)
        found.append(losses)
    return found


def mask_losses(
    masks: Tensor,
    truth: Sequence[Tensor],
    matched: Matched,
    drawn: tuple[Tensor, Tensor],
    objects: float,
) -> Losses:
    """The matched queries' masks against their objects at points: "dfam_bce" and "dfam_dice".

    Args:
        masks: The queries' masks, float32 [N, Q, s, s] logits.
        truth: The masks of each sample's objects, N of float32 [n, S, S].
        matched: The M matched queries.
        drawn: The points of `Points.of_loss`.
        objects: As of `total_loss`.
    """
    if not len(matched):
        nothing = masks.sum() * 0.0
        return {"dfam_bce": nothing, "dfam_dice": nothing}

    logits = masks[matched.sample, matched.query]
    pairs = zip(matched.sample.tolist(), matched.target.tolist(), strict=True)
    right = torch.stack([truth[sample][target] for sample, target in pairs])
    with torch.no_grad():
        candidates, rest = (points.to(logits.device) for points in drawn)
        points = uncertain(logits, candidates, rest)
        right = sampled(right[:, None], points)[:, 0]
    logits = sampled(logits[:, None], points)[:, 0]
    bce = F.binary_cross_entropy_with_logits(logits, right, reduction="none").mean(1)
    divisor = max(objects, 1.0)
    return {"dfam_bce": bce.sum() / divisor, "dfam_dice": dice(logits, right).sum() / divisor}


def class_loss(logits: Tensor, matched: Matched) -> Tensor:
    """Cross entropy of logits [N, Q, N + categories].

    A matched query's class is its own sentence, every other one's is background.
    """
    label = torch.full(logits.shape[:2], logits.shape[-1] - 1, device=logits.device)
    label[matched.sample, matched.query] = matched.sample
    weight = torch.ones(logits.shape[-1], device=logits.device)
    weight[-1] = BACKGROUND_WEIGHT
    return F.cross_entropy(logits.flatten(0, 1), label.flatten(), weight)


def sentence_loss(logits: Tensor, matched: Matched, counted: Tensor | None) -> Tensor:
    """Binary cross entropy of logits [N, Q, N]: 1 for a matched query and its own sentence.

    counted: which pairs of samples count, bool [N, N]; None: all. The divisor is that of all.
    """
    label = torch.zeros_like(logits)
    label[matched.sample, matched.query, matched.sample] = 1.0
    each = F.binary_cross_entropy_with_logits(logits, label, reduction="none")
    return (each if counted is None else each * counted[:, None]).mean()


def _same_category(targets: Targets) -> Tensor:
    """Which different samples mean objects of one category: bool [N, N]."""
    category, targeted = targets.category, targets.targeted
    same = (category[:, None] == category) & targeted[:, None] & targeted
    return same & ~torch.eye(len(category), dtype=torch.bool, device=category.device)
