"""What trained encoders bring along, taught to encoders that start from nothing: what is where, and
what words mean.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ris.training.targets import Targets


class PretextHeads(nn.Module):
    """Linear layers that training alone uses. For every patch of either image encoder: which kind
    it shows, the place and size of the thing it is part of, and where that stands among its like.
    For every patch of CLIP: which kinds the image shows at all, and which of them left, right,
    above and below. For a sentence: which kinds it names, the place and size of what it means. For
    the dense prompt: a mask."""

    def __init__(self, sam_width: int, clip_width: int, kinds: int) -> None:
        super().__init__()
        self.sam = nn.Linear(sam_width, kinds + 1)
        self.clip = nn.Linear(clip_width, kinds + 1)
        self.sam_places = nn.Linear(sam_width, 3)
        self.clip_places = nn.Linear(clip_width, 3)
        self.sam_order = nn.Linear(sam_width, 6)
        self.clip_order = nn.Linear(clip_width, 6)
        self.around = nn.Linear(clip_width, kinds * 5)
        self.names = nn.Linear(sam_width, kinds)
        self.place = nn.Linear(sam_width, 3)
        self.dense = nn.Conv2d(sam_width, 1, 1)
        for parameter in self.parameters():
            nn.init.zeros_(parameter)


def label_shares(labels: Tensor, classes: int, side: int) -> Tensor:
    """labels [B, S, S] int64 -> the share of each class in side x side cells, float32 [B, side,
    side, classes].
    """
    images, size = labels.shape[0], labels.shape[-1]
    cell = torch.arange(size, device=labels.device) * side // size
    cells = cell[:, None] * side + cell
    place = (
        torch.arange(images, device=labels.device)[:, None, None] * side**2 + cells
    ) * classes + labels
    counts = torch.bincount(place.flatten(), minlength=images * side**2 * classes).float()
    shares = counts.unflatten(0, (images, side, side, classes))
    return shares / shares.sum(-1, keepdim=True)


def places(masks: Tensor) -> Tensor:
    """Centre (x, y from -1 to 1) and size (log2 of the side of the square of that area, a sixth of
    the image's side being about 0) of each mask [N, S, S]: float32 [N, 3]. Empty masks lie in the
    middle."""
    line = torch.linspace(-1, 1, masks.shape[-1], device=masks.device)
    area = masks.sum((1, 2)).clamp(min=1)
    centre = (
        torch.stack([(masks.sum(1) * line).sum(-1), (masks.sum(2) * line).sum(-1)], -1)
        / area[:, None]
    )
    return torch.cat([centre, 0.5 * area.log2()[:, None] - math.log2(masks.shape[-1]) + 2.5], -1)


def order(known: Tensor, kinds: Tensor) -> Tensor:
    """How each thing stands among those of its kind: float32 [B, classes, 6], 2**-n for n of them
    left of it, right of it, above, below, smaller, larger; so the leftmost dog has 1 first. known
    [B, classes, 3]: `places`; kinds [B, classes], 0 where there is no thing."""
    like = (kinds[:, :, None] == kinds[:, None]) & (kinds[:, None] > 0)
    before = (known[:, None] < known[:, :, None]) & like[..., None]  # [B, one, other, x y size]
    after = (known[:, None] > known[:, :, None]) & like[..., None]
    return 0.5 ** torch.stack([before.sum(2), after.sum(2)], -1).flatten(2).float()


def _middles(side: int, device: torch.device) -> Tensor:
    """The middles (x, y) of side x side cells, from -1 to 1: [side, side, 2]."""
    line = torch.linspace(-1, 1, side + 1, device=device)
    middle = (line[:-1] + line[1:]) / 2
    return torch.stack(torch.meshgrid(middle, middle, indexing="xy"), -1)


def surroundings(known: Tensor, kinds: Tensor, owner: Tensor, count: int) -> Tensor:
    """What a cell has around it: float32 [B, side, side, count, 5] of 0 and 1, for each of `count`
    kinds whether the image shows one at all, and whether one that the cell is no part of lies
    clearly left of it, right, above, below.

    known [B, classes, 3]: `places`; kinds [B, classes], 0 where there is no thing; owner [B, side,
    side]: the class that fills most of a cell.
    """
    # [B, side, side, classes, 2]
    away = known[:, None, None, :, :2] - _middles(owner.shape[1], known.device)[:, :, None]
    other = F.one_hot(owner, known.shape[1]) == 0
    x, y = away.unbind(-1)
    beside, upright = 1.5 * x.abs() >= y.abs(), 1.5 * y.abs() >= x.abs()
    left, right, above, below = (
        (x < -0.1) & beside,
        (x > 0.1) & beside,
        (y < -0.1) & upright,
        (y > 0.1) & upright,
    )
    lies = torch.stack(
        [torch.ones_like(other), *(side & other for side in (left, right, above, below))], -1
    )
    named = F.one_hot(kinds, count + 1)[..., 1:].float()
    return torch.einsum("bhwcs,bcn->bhwns", lies.float(), named).clamp(max=1)


def _around_loss(found: Tensor, owner: Tensor, truth: Tensor) -> Tensor:
    """Binary cross entropy of found [B, side, side, 5 kinds] with `surroundings`, a sum of five
    means over the kinds; cells of background count a quarter."""
    error = (
        F.binary_cross_entropy_with_logits(found.view_as(truth), truth, reduction="none")
        .mean(3)
        .sum(3)
    )
    weight = 0.25 + 0.75 * (owner > 0)
    return (weight * error).sum() / weight.sum()


def _order_loss(found: Tensor, owner: Tensor, truth: Tensor) -> Tensor:
    """Squared error of found [B, side, side, 6] against truth [B, classes, 6] of each cell's thing,
    owner [B, side, side]; over cells that show one."""
    error = (
        (found - truth.gather(1, owner.flatten(1)[..., None].expand(-1, -1, 6)).view_as(found)) ** 2
    ).sum(-1)
    shown = (owner > 0).float()
    return (shown * error).sum() / shown.sum().clamp(min=1)


def _place_loss(found: Tensor, owner: Tensor, known: Tensor) -> Tensor:
    """Squared error of found [B, side, side, 3] against the place of each cell's thing, owner [B,
    side, side], known [B, classes, 3]; cells of background have their own place, no size, and count
    a quarter."""
    side = found.shape[1]
    truth = known.gather(1, owner.flatten(1)[..., None].expand(-1, -1, 3)).unflatten(
        1, (side, side)
    )
    own = _middles(side, found.device)
    shown = (owner > 0).float()[..., None]
    centre = ((found[..., :2] - torch.where(shown > 0, truth[..., :2], own)) ** 2).sum(
        -1, keepdim=True
    )
    size = (found[..., 2:] - truth[..., 2:]) ** 2
    weight = 0.25 + 0.75 * shown
    return (weight * centre).sum() / weight.sum() + (shown * size).sum() / shown.sum().clamp(min=1)


def pretext_loss(
    heads: PretextHeads, image_embeddings: Tensor, clip_tokens: Tensor, targets: Targets
) -> dict[str, Tensor]:
    """What the patches of either encoder show, by name: cross entropy against the share of each
    kind, background, most of an image, counting a quarter; where the thing is that fills most of
    them, and where it stands among its like; what CLIP's patches have around them."""
    assert targets.kinds is not None
    assert targets.things is not None
    side = round(clip_tokens.shape[1] ** 0.5)
    each = F.one_hot(targets.things).permute(0, 3, 1, 2).float()
    known = places(each.flatten(0, 1)).unflatten(0, each.shape[:2])
    each_kind = (each * targets.kinds[:, None]).amax((2, 3)).long()
    ranks = order(known, each_kind)
    losses: dict[str, Tensor] = {}
    for name, cells, kinds, place, rank in (
        ("sam", image_embeddings.permute(0, 2, 3, 1), heads.sam, heads.sam_places, heads.sam_order),
        (
            "clip",
            clip_tokens.unflatten(1, (side, side)),
            heads.clip,
            heads.clip_places,
            heads.clip_order,
        ),
    ):
        logits = kinds(cells).float()
        weight = torch.full(logits.shape[-1:], 2.0, device=logits.device)
        weight[0] = 0.5
        shares = label_shares(targets.kinds, len(weight), cells.shape[1])
        losses[name] = F.cross_entropy(logits.flatten(0, 2), shares.flatten(0, 2), weight)
        owner = label_shares(targets.things, known.shape[1], cells.shape[1]).argmax(-1)
        losses[f"{name}_places"] = _place_loss(place(cells).float(), owner, known)
        losses[f"{name}_order"] = _order_loss(rank(cells).float(), owner, ranks)
    around = surroundings(known, each_kind, owner, heads.names.out_features)
    losses["around"] = 2 * _around_loss(heads.around(cells).float(), owner, around)
    return losses


def named_kinds(targets: Targets, kinds: int) -> Tensor:
    """Which kinds each expression's target shows: float32 [N, kinds] of 0 and 1."""
    assert targets.kinds is not None
    shown = torch.where(targets.masks > 0, targets.kinds[targets.image_index], 0)
    rows = torch.arange(len(shown), device=shown.device)[:, None, None] * (kinds + 1)
    counts = torch.bincount((rows + shown).flatten(), minlength=len(shown) * (kinds + 1))
    return (counts.unflatten(0, (len(shown), kinds + 1))[:, 1:] > 0).float()


def sentence_loss(heads: PretextHeads, sentences: Tensor, targets: Targets) -> Tensor:
    """What sentences [N, C] name (binary cross entropy over the kinds), and the place and size of
    what they mean (squared error), averaged over expressions that have a target; 0 where none
    has."""
    chosen = targets.present.nonzero()[:, 0]
    if len(chosen) == 0:
        return sentences.sum() * 0.0
    names, place = heads.names(sentences[chosen]).float(), heads.place(sentences[chosen]).float()
    truth = named_kinds(targets, names.shape[1])[chosen]
    named = F.binary_cross_entropy_with_logits(names, truth, reduction="none").sum(1).mean()
    return named + ((place - places(targets.masks[chosen])) ** 2).sum(1).mean()
