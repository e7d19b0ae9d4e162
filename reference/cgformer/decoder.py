"""Everything behind the backbone: fused maps, tokens that group their places, the mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn

from ris.reference.cgformer.config import LEVELS, CgformerConfig
from ris.reference.cgformer.fusing import Fuse
from ris.reference.cgformer.mask_head import MaskHead
from ris.reference.cgformer.tokens import (
    TOKENS,
    Grouped,
    Grouping,
    TokenLayer,
    WordedTokenLayer,
)


@dataclass
class TokenOutputs:
    """Every step of the tokens, [N, 2, D] where nothing else is said."""

    kernel: Tensor
    """Weights and, last, the bias of the mask's kernel, [N, D+1]."""

    worded: list[Tensor] = field(default_factory=list)
    """The tokens that have read the words, of each level but the first."""

    loaded: list[Tensor] = field(default_factory=list)
    """The tokens behind the MLP that follows."""

    levels: list[Grouped] = field(default_factory=list)
    """What each level's grouping gives."""


class Decoder(nn.Module):
    """The decoder; its attributes are named as in the checkpoint."""

    def __init__(self, config: CgformerConfig) -> None:
        super().__init__()
        width, hidden = config.width, config.mlp_width
        finest, second, third, coarsest = config.swin.widths()
        small = (coarsest, width, width)
        large = (third, second, finest)
        self.places = config.places()
        self.tokens = nn.Embedding(TOKENS, width)
        self.fuses = nn.ModuleList(Fuse(s + m, width) for s, m in zip(small, large, strict=True))
        first, *others = self.places
        self.layers = nn.ModuleList(
            [
                TokenLayer(width, first),
                *(WordedTokenLayer(width, n, hidden, config.bert.width) for n in others),
            ]
        )
        self.cgattention1 = Grouping(width, hidden)
        self.cgattention2 = Grouping(width, hidden)
        self.proj = MaskHead(width)

    @property
    def mask_head(self) -> MaskHead:
        """The mask head."""
        return self.proj

    def fuse(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """The maps whose places are grouped.

        maps: "res2" to "res5" of the backbone. Returns coarse to fine, [N, D, s/4, s/4], [N, D,
        s/2, s/2] and [N, D, s, s].
        """
        *finer, fused = maps
        found = []
        for fuse, large in zip(self.fuses, reversed(finer), strict=True):
            fused = fuse(fused, large)
            found.append(fused)
        return found

    def group(
        self, maps: Sequence[Tensor], text: Tensor, mask: Tensor, noise: Tensor | None
    ) -> TokenOutputs:
        """The tokens of N expressions, through all levels.

        Args:
            maps: Of `fuse`.
            text: BERT's states, [N, T, text width].
            mask: [N, T], 1 for real tokens, 0 for padding.
            noise: What places go to one token by, [N, places], the levels' one behind the other,
                places row by row; None: each token gets its share in the mean.
        """
        parts = (None,) * LEVELS if noise is None else noise.split(self.places, 1)
        tokens = self.tokens.weight.expand(len(text), -1, -1)
        out = TokenOutputs(tokens)
        for level, (feature, part) in enumerate(zip(maps, parts, strict=True)):
            layer = cast(TokenLayer, self.layers[level])
            if isinstance(layer, WordedTokenLayer):
                out.worded.append(layer.loadtoken(tokens, text, mask))
                tokens = layer.replace(out.worded[-1])
                out.loaded.append(tokens)
            # the levels behind the first share one block
            block = self.cgattention2 if level else self.cgattention1
            found = block(tokens, feature, layer.positional_embedding, part)
            out.levels.append(found)
            tokens = found.tokens
        out.kernel = self.proj.kernel(tokens[:, -1])
        return out

    def masks(self, finest: Tensor, kernel: Tensor) -> Tensor:
        """finest [N, D, s, s], of `fuse`, kernel [N, D+1] -> mask logits [N, 1, S, S].

        One expression at a time: the maps between are sixteen times as large as `finest`.
        """
        pairs = zip(finest.split(1), kernel.split(1), strict=True)
        return torch.cat([self.proj(one, its) for one, its in pairs])
