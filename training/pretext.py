"""What pre-trained encoders bring along, taught to encoders that start from nothing.

That is: what is where in an image, and what words mean.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ris.training.targets import Targets


class PretextHeads(nn.Module):
    """Linear layers that training alone uses.

    - `sam`, `clip`, of every patch of either image encoder: which kind it shows.
    - `sam_places`, `clip_places`: the place and size of the thing that the patch is part of.
    - `sam_order`, `clip_order`: where that thing stands among those of its kind (`order`).
    - `around`, of every patch of CLIP: which kinds the image shows at all, and which of them left,
      right, above and below (`surroundings`).
    - `names`, `place`, of a sentence: which kinds it names, where and how large its target is.
    - `dense`, of the dense prompt: a mask.
    """

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
    """The share of each class in side x side cells: float32 [B, side, side, classes].

    labels: int64 [B, S, S].
    """
    images, size = labels.shape[0], labels.shape[-1]
    cell = torch.arange(size, device=labels.device) * side // size
    cells = cell[:, None] * side + cell
    first = torch.arange(images, device=labels.device)[:, None, None] * side**2
    bins = (first + cells) * classes + labels
    counts = torch.bincount(bins.flatten(), minlength=images * side**2 * classes).float()
    shares = counts.unflatten(0, (images, side, side, classes))
    return shares / shares.sum(-1, keepdim=True)


def places(masks: Tensor) -> Tensor:
    """Centre (x and y, from -1 to 1) and size of each mask [N, S, S]: float32 [N, 3].

    The size is log2 of the side of a square of the mask's area; 0 is about a sixth of the image's
    side. Empty masks lie in the middle.
    """
    side = masks.shape[-1]
    line = torch.linspace(-1, 1, side, device=masks.device)
    area = masks.sum((1, 2)).clamp(min=1)
    x, y = (masks.sum(1) * line).sum(-1), (masks.sum(2) * line).sum(-1)
    centre = torch.stack([x, y], -1) / area[:, None]
    return torch.cat([centre, 0.5 * area.log2()[:, None] - math.log2(side) + 2.5], -1)


def order(known: Tensor, kinds: Tensor) -> Tensor:
    """How each thing stands among those of its kind: float32 [B, classes, 6].

    The six values are 2**-n for the n others that are left of it, right of it, above, below,
    smaller, larger: the leftmost dog has 1 first.

    known: `places`, [B, classes, 3]; kinds: int64 [B, classes], 0 where there is no thing.
    """
    like = (kinds[:, :, None] == kinds[:, None]) & (kinds[:, None] > 0)
    before = (known[:, None] < known[:, :, None]) & like[..., None]  # [B, one, other, x y size]
    after = (known[:, None] > known[:, :, None]) & like[..., None]
    return 0.5 ** torch.stack([before.sum(2), after.sum(2)], -1).flatten(2).float()


def _middles(side: int, device: torch.device) -> Tensor:
    """The middles (x and y, from -1 to 1) of side x side cells: [side, side, 2]."""
    line = torch.linspace(-1, 1, side + 1, device=device)
    middle = (line[:-1] + line[1:]) / 2
    return torch.stack(torch.meshgrid(middle, middle, indexing="xy"), -1)


def surroundings(known: Tensor, kinds: Tensor, owner: Tensor, count: int) -> Tensor:
    """What each cell has around it.

    Args:
        known: `places` of the image's things, [B, classes, 3].
        kinds: Their kinds, int64 [B, classes], 0 where there is no thing.
        owner: The class that fills most of a cell, int64 [B, side, side].
        count: How many kinds there are.

    Returns:
        float32 [B, side, side, count, 5] of 0 and 1, for each kind: whether the image shows one at
        all, and whether one that the cell is not part of lies clearly left of the cell, right,
        above, below.
    """
    # [B, side, side, classes, 2]
    away = known[:, None, None, :, :2] - _middles(owner.shape[1], known.device)[:, :, None]
    other = F.one_hot(owner, known.shape[1]) == 0

    x, y = away.unbind(-1)
    beside, upright = 1.5 * x.abs() >= y.abs(), 1.5 * y.abs() >= x.abs()
    left, right = (x < -0.1) & beside, (x > 0.1) & beside
    above, below = (y < -0.1) & upright, (y > 0.1) & upright
    directions = [side & other for side in (left, right, above, below)]
    lies = torch.stack([torch.ones_like(other), *directions], -1)

    named = F.one_hot(kinds, count + 1)[..., 1:].float()
    return torch.einsum("bhwcs,bcn->bhwns", lies.float(), named).clamp(max=1)


def _of_owner(values: Tensor, owner: Tensor) -> Tensor:
    """For each cell the values of its thing: values [B, classes, v] -> [B, side, side, v]."""
    index = owner.flatten(1)[..., None].expand(-1, -1, values.shape[-1])
    return values.gather(1, index).unflatten(1, owner.shape[1:])


def _around_loss(found: Tensor, owner: Tensor, truth: Tensor) -> Tensor:
    """Binary cross entropy with `surroundings`: a sum of five means over the kinds.

    found: [B, side, side, 5 * kinds]. Cells of background, owner 0, count a quarter.
    """
    each = F.binary_cross_entropy_with_logits(found.view_as(truth), truth, reduction="none")
    error = each.mean(3).sum(3)
    weight = 0.25 + 0.75 * (owner > 0)
    return (weight * error).sum() / weight.sum()


def _order_loss(found: Tensor, owner: Tensor, ranks: Tensor) -> Tensor:
    """Squared error of found [B, side, side, 6] over cells that show a thing.

    ranks: `order` of the things, [B, classes, 6]; owner: each cell's thing, [B, side, side].
    """
    error = ((found - _of_owner(ranks, owner)) ** 2).sum(-1)
    shown = (owner > 0).float()
    return (shown * error).sum() / shown.sum().clamp(min=1)


def _place_loss(found: Tensor, owner: Tensor, known: Tensor) -> Tensor:
    """Squared error of found [B, side, side, 3] against the place and size of each cell's thing.

    known: `places` of the things, [B, classes, 3]; owner: each cell's thing, [B, side, side]. Cells
    of background have their own place and no size, and count a quarter.
    """
    truth = _of_owner(known, owner)
    own = _middles(found.shape[1], found.device)
    shown = (owner > 0).float()[..., None]
    middle = torch.where(shown > 0, truth[..., :2], own)
    centre = ((found[..., :2] - middle) ** 2).sum(-1, keepdim=True)
    size = (found[..., 2:] - truth[..., 2:]) ** 2
    weight = 0.25 + 0.75 * shown
    return (weight * centre).sum() / weight.sum() + (shown * size).sum() / shown.sum().clamp(min=1)


@dataclass(frozen=True)
class _Things:
    """The things that B images show; class 0 is background."""

    places: Tensor
    """`places`, float32 [B, classes, 3]."""

    kinds: Tensor
    """Their kinds, int64 [B, classes], 0 where there is no thing."""

    ranks: Tensor
    """`order`, float32 [B, classes, 6]."""


def _things(targets: Targets) -> _Things:
    assert targets.kinds is not None
    assert targets.things is not None
    each = F.one_hot(targets.things).permute(0, 3, 1, 2).float()
    known = places(each.flatten(0, 1)).unflatten(0, each.shape[:2])
    kinds = (each * targets.kinds[:, None]).amax((2, 3)).long()
    return _Things(known, kinds, order(known, kinds))


def pretext_loss(
    heads: PretextHeads, image_embeddings: Tensor, clip_tokens: Tensor, targets: Targets
) -> dict[str, Tensor]:
    """What the patches of both encoders show, where that is, and what is around it.

    Args:
        heads: The layers that say so.
        image_embeddings: SAM's patches, [B, C, s, s].
        clip_tokens: CLIP's patches, [B, P, w].
        targets: What is right; its kinds and things must be given.

    Returns:
        The terms by name: `sam` and `clip`, `sam_places`, `sam_order` and so on, `around`.
    """
    things = _things(targets)
    side = round(clip_tokens.shape[1] ** 0.5)
    sam, clip = image_embeddings.permute(0, 2, 3, 1), clip_tokens.unflatten(1, (side, side))
    losses: dict[str, Tensor] = {}

    owner = _owners(targets, things, sam)
    losses["sam"] = _kind_loss(heads.sam(sam).float(), targets)
    losses["sam_places"] = _place_loss(heads.sam_places(sam).float(), owner, things.places)
    losses["sam_order"] = _order_loss(heads.sam_order(sam).float(), owner, things.ranks)

    owner = _owners(targets, things, clip)
    losses["clip"] = _kind_loss(heads.clip(clip).float(), targets)
    losses["clip_places"] = _place_loss(heads.clip_places(clip).float(), owner, things.places)
    losses["clip_order"] = _order_loss(heads.clip_order(clip).float(), owner, things.ranks)

    around = surroundings(things.places, things.kinds, owner, heads.names.out_features)
    losses["around"] = 2 * _around_loss(heads.around(clip).float(), owner, around)
    return losses


def _owners(targets: Targets, things: _Things, cells: Tensor) -> Tensor:
    """The thing that fills most of each cell [B, side, side, w]: int64 [B, side, side]."""
    assert targets.things is not None
    classes = things.places.shape[1]
    return label_shares(targets.things, classes, cells.shape[1]).argmax(-1)


def _kind_loss(logits: Tensor, targets: Targets) -> Tensor:
    """Cross entropy of logits [B, side, side, kinds + 1] against the share of each kind in a cell.

    Background, which is most of an image, counts a quarter of what a kind counts.
    """
    assert targets.kinds is not None
    weight = torch.full(logits.shape[-1:], 2.0, device=logits.device)
    weight[0] = 0.5
    shares = label_shares(targets.kinds, len(weight), logits.shape[1])
    return F.cross_entropy(logits.flatten(0, 2), shares.flatten(0, 2), weight)


def named_kinds(targets: Targets, kinds: int) -> Tensor:
    """Which kinds each expression's target shows: float32 [N, kinds] of 0 and 1."""
    assert targets.kinds is not None
    shown = torch.where(targets.union, targets.kinds[targets.image_index], 0)
    count, classes = len(shown), kinds + 1
    rows = torch.arange(count, device=shown.device)[:, None, None] * classes
    counts = torch.bincount((rows + shown).flatten(), minlength=count * classes)
    return (counts.unflatten(0, (count, classes))[:, 1:] > 0).float()


def sentence_loss(heads: PretextHeads, sentences: Tensor, targets: Targets) -> Tensor:
    """What sentences [N, C] name and mean, averaged over expressions that have a target.

    Binary cross entropy over the kinds that the target shows, and the squared error of its place
    and size. 0 where no expression has a target.
    """
    chosen = targets.targeted.nonzero()[:, 0]
    if len(chosen) == 0:
        return sentences.sum() * 0.0

    names, place = heads.names(sentences[chosen]).float(), heads.place(sentences[chosen]).float()
    truth = named_kinds(targets, names.shape[1])[chosen]
    named = F.binary_cross_entropy_with_logits(names, truth, reduction="none").sum(1).mean()
    return named + ((place - places(targets.union[chosen].float())) ** 2).sum(1).mean()
