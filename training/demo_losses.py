"""The demo's losses: for encoders from scratch, and one target mask an expression.

DFAM's masks are compared at all positions of its grid, its terms are means over its outputs, and
the pretext's terms teach what pre-trained encoders bring along.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ris.reference.dfam.model import RISModel
from ris.training.forward import TrainingOutputs
from ris.training.pretext import PretextHeads, pretext_loss, sentence_loss
from ris.training.recipe import LossWeights
from ris.training.targets import Targets
from ris.training.terms import dice, no_target_loss


def demo_losses(
    model: RISModel,
    heads: PretextHeads | None,
    out: TrainingOutputs,
    targets: Targets,
    weights: LossWeights,
) -> dict[str, Tensor]:
    """The terms by name, weighted.

    Args:
        model: The model.
        heads: The layers of the pretext terms; None leaves these terms out.
        out: What the model answered.
        targets: What is right.
        weights: Weights of the terms.
    """
    parts = {"mask": mask_loss(out.mask_logits, targets, weights)}
    masks, vl = dfam_loss(model, out, targets, weights)
    parts["dfam"], parts["vl"] = weights.dfam * masks, weights.dfam * vl
    if out.no_target_logits is not None:
        classes = weights.no_target_classes
        decided = no_target_loss(out.no_target_logits, targets.targeted, classes)
        parts["no_target"] = weights.no_target * decided

    if heads is not None and targets.things is not None and weights.pretext:
        taught = pretext_loss(heads, out.image_embeddings, out.clip_tokens, targets)
        taught["sentence"] = sentence_loss(heads, out.sentences, targets)
        taught["dense"] = dense_loss(heads, out.dense_prompt, targets)
        if out.no_target_logits is not None:
            taught["relevance"] = 2 * relevance_loss(model, out, targets)
        parts |= {name: weights.pretext * value for name, value in taught.items()}
    return parts


def mask_loss(mask_logits: Tensor, targets: Targets, weights: LossWeights) -> Tensor:
    """The main term, at the model's square, averaged over expressions that have a target.

    0 where none has.
    """
    chosen = targets.targeted.nonzero()[:, 0]
    if len(chosen) == 0:
        return mask_logits.sum() * 0.0

    masks = targets.union[chosen].float()
    logits = F.interpolate(
        mask_logits[chosen].float(), size=masks.shape[-2:], mode="bilinear", align_corners=False
    )
    flat, truth = logits[:, 0].flatten(1), masks.flatten(1)
    bce = F.binary_cross_entropy_with_logits(flat, truth)
    return weights.mask_dice * dice(flat, truth).mean() + weights.mask_bce * bce


def match(
    query_masks: Tensor, similarity: Tensor, truth: Tensor, index: Tensor, weights: LossWeights
) -> Tensor:
    """The query of each expression: the one with the lowest cost.

    An expression has one target mask, so that Hungarian matching is to take the cheapest query.

    Args:
        query_masks: DFAM's masks of the B images, [B, Q, P] logits.
        similarity: How well each query fits the expression's own sentence, [N, Q] logits.
        truth: The target masks, [N, P] from 0 to 1.
        index: Which image each expression is about, int64 [N].
        weights: Weights of the three costs.

    Returns:
        Indices of queries, int64 [N].
    """
    with torch.no_grad():
        logits = query_masks[index]
        pixels = logits.shape[-1]
        bce = F.softplus(logits).mean(-1) - torch.einsum("nqp,np->nq", logits, truth) / pixels
        cost = weights.dfam_bce * bce + weights.dfam_dice * dice(logits, truth[:, None])
        return (cost - weights.vl * similarity.sigmoid()).argmin(1)


def dfam_loss(
    model: RISModel, out: TrainingOutputs, targets: Targets, weights: LossWeights
) -> tuple[Tensor, Tensor]:
    """DFAM's terms: the mean over its initial queries and its three layers.

    Args:
        model: The model.
        out: What it answered.
        targets: What is right.
        weights: Weights of the terms; `dfam` is not applied here.

    Returns:
        The mask terms and the sentence term, weighted.
    """
    index = targets.image_index
    truth = _pooled(targets, out.query_masks[0])
    chosen = targets.targeted.nonzero()[:, 0]
    rows = torch.arange(len(index), device=truth.device)
    # a pair that means the same thing is neither right nor wrong, and does not count
    counted = torch.eye(len(index), dtype=torch.bool, device=truth.device)
    counted = counted | ~(counted if targets.same is None else targets.same)

    masks = vl = out.mask_logits.sum() * 0.0
    for query_masks, objects in zip(out.query_masks, out.objects, strict=True):
        logits = query_masks.float().flatten(2)
        similarity = _similarity(model, objects, out.sentences)
        best = match(logits, similarity.detach()[rows, :, rows], truth, index, weights)

        label = torch.zeros_like(similarity)
        label[chosen, best[chosen], chosen] = 1.0
        use = counted[:, None].expand_as(similarity)
        queries = similarity.shape[1]
        vl = vl + F.binary_cross_entropy_with_logits(similarity[use], label[use]) * queries

        if len(chosen):
            picked = logits[index[chosen], best[chosen]]
            bce = F.binary_cross_entropy_with_logits(picked, truth[chosen])
            masks = masks + weights.dfam_bce * bce
            masks = masks + weights.dfam_dice * dice(picked, truth[chosen]).mean()

    layers = len(out.query_masks)
    return masks / layers, weights.vl * vl / layers


def _similarity(model: RISModel, objects: Tensor, sentences: Tensor) -> Tensor:
    """Scaled cosines of object embeddings [N, Q, C] with all sentences [N, C]: [N, Q, N]."""
    projected = F.normalize(model.decoder.to_logits_bert(objects).float(), dim=-1)
    directions = F.normalize(sentences.float(), dim=-1)
    return projected @ directions.T * model.decoder.logit_scale.exp()


def dense_loss(heads: PretextHeads, dense_prompt: Tensor, targets: Targets) -> Tensor:
    """Dice and cross entropy of the mask that a linear layer reads off the dense prompt.

    dense_prompt: [N, C, d, d]. The mask is empty for expressions that have no target.
    """
    logits = heads.dense(dense_prompt).float()[:, 0].flatten(1)
    truth = _pooled(targets, dense_prompt)
    return dice(logits, truth).mean() + F.binary_cross_entropy_with_logits(logits, truth)


def relevance_loss(model: RISModel, out: TrainingOutputs, targets: Targets) -> Tensor:
    """Cross entropy of the no-target head's answer for each query.

    What is right is how much of the query's mask is meant. The head's own answer is the maximum
    over queries, through which only one query at a time would learn.
    """
    each = model.decoder.no_target(out.objects[-1])[0].float()  # [N, Q, 2]
    with torch.no_grad():
        masks = out.query_masks[-1].float().sigmoid()
        truth = _pooled(targets, masks)
        masks = masks.flatten(2)[targets.image_index]
        meant = torch.einsum("nqp,np->nq", masks, truth) / masks.sum(-1).clamp(min=1e-3)
    return F.binary_cross_entropy_with_logits(each[..., 0] - each[..., 1], meant.clamp(0, 1))


def _pooled(targets: Targets, like: Tensor) -> Tensor:
    """The target masks at the height and width of `like` [..., h, w]: [N, h * w] from 0 to 1."""
    height, width = like.shape[-2:]
    return F.adaptive_avg_pool2d(targets.union[:, None].float(), (height, width)).flatten(1)
