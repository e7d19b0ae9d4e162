"""One group of samples through the model to its loss: what DDP wraps, and its memory.

A step is several groups. Their losses are averaged, whichever device computes which.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ris.reference.dfam.model import RISModel
from ris.training.data import Batch
from ris.training.forward import ask
from ris.training.losses import total_loss
from ris.training.pretext import PretextHeads, pretext_loss, sentence_loss
from ris.training.recipe import Recipe

Encode = Callable[[RISModel, Batch], tuple[Tensor, Tensor]]
"""The model and a group -> image embeddings [B, C, s, s] and CLIP tokens [B, P, w]."""


class GroupLoss(nn.Module):
    """The loss of one group.

    Args:
        model: The model.
        heads: The layers of the pretext terms; None leaves these terms out.
        recipe: Which losses, and their weights.
        encode: The image encoders, or what they have stored.
    """

    def __init__(
        self, model: RISModel, heads: PretextHeads | None, recipe: Recipe, encode: Encode
    ) -> None:
        super().__init__()
        self.model, self.heads = model, heads
        self.recipe, self.encode = recipe, encode

    def forward(
        self, batch: Batch, objects: float, points: torch.Generator, lesson: bool
    ) -> tuple[Tensor, dict[str, float]]:
        """The loss of the group, and its terms by name, weighted.

        Args:
            batch: The group.
            objects: See `total_loss`.
            points: Draws the points at which masks are compared.
            lesson: Whether only the pretext terms are learnt that need no decoder.
        """
        embeddings, tokens = self.encode(self.model, batch)
        if lesson:
            return self._lesson(batch, embeddings, tokens)
        index = batch.targets.image_index
        out = ask(self.model, embeddings, tokens, batch.input_ids, index, batch.category)
        return total_loss(self.model, self.heads, out, batch.targets, self.recipe, objects, points)

    def _lesson(
        self, batch: Batch, embeddings: Tensor, tokens: Tensor
    ) -> tuple[Tensor, dict[str, float]]:
        """The pretext terms that need no decoder: their weighted sum, and each as it is."""
        assert self.heads is not None
        taught = pretext_loss(self.heads, embeddings, tokens, batch.targets)
        sentences = self.model.encode_words(batch.input_ids)[1][:, 0]
        taught["sentence"] = sentence_loss(self.heads, sentences, batch.targets)
        loss = self.recipe.weights.pretext * torch.stack(list(taught.values())).sum()
        return loss, {name: float(value.detach()) for name, value in taught.items()}


def seed_group(seed: int, step: int, group: int, device: torch.device) -> torch.Generator:
    """Makes chance depend on the run's seed, the step and the number of the group alone.

    Args:
        seed: The run's.
        step: Steps done before.
        group: The group's number in the step, over all processes.
        device: Where the points are drawn.

    Returns:
        A generator for the points of the losses. PyTorch's own, for dropout, are seeded.
    """
    words = np.random.SeedSequence([seed, step, group]).generate_state(2, np.uint64)
    torch.manual_seed(int(words[0] >> np.uint64(1)))
    return torch.Generator(device).manual_seed(int(words[1] >> np.uint64(1)))


def keep_fewer_activations(model: RISModel) -> None:
    """Gradient checkpointing: the layers that hold most are computed anew on the way back.

    Less memory for more time; the numbers stay the same.
    """
    dfam, pwam = model.decoder, model.pwam
    layers = [
        *model.bert.encoder.layer,
        *model.clip_pixel_decoder.transformer.encoder.layers,
        model.backbone_clip,
        model.backbone_sam,
        model.sam_decoder.transformer,
        model.sam_decoder.output_upscaling,
    ]
    for layer in layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
    methods = ((dfam, "sam_step"), (dfam, "clip_step"), (pwam, "project_image"), (pwam, "fuse"))
    for owner, name in methods:
        setattr(owner, name, partial(checkpoint, getattr(owner, name), use_reentrant=False))
