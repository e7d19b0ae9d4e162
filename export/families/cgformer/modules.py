"""CGFormer's decoder cut into what becomes a graph each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from ris.export.families.folding import conv_with_norm, linear_behind_norm, plain
from ris.export.families.parts import with_parts
from ris.reference.cgformer.decoder import Decoder
from ris.reference.cgformer.fusing import Fuse
from ris.reference.cgformer.mask_head import without_padding
from ris.reference.cgformer.tokens import Grouping, TokenLayer, WordedTokenLayer, share_out
from ris.reference.layers.basic import GeluMLP

_TINY = 1e-12


class Pyramid(nn.Module):
    """The maps whose places are grouped, with their batch norms in the convolutions."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.fuses = nn.ModuleList(_folded(cast(Fuse, fuse)) for fuse in decoder.fuses)

    def forward(self, res2: Tensor, res3: Tensor, res4: Tensor, res5: Tensor) -> tuple[Tensor, ...]:
        """The fused maps of N expressions.

        Args:
            res2: The finest of the backbone's maps [N, C, s, s].
            res3: [N, 2C, s/2, s/2].
            res4: [N, 4C, s/4, s/4].
            res5: [N, 8C, s/8, s/8].

        Returns:
            `map_0` [N, D, s/4, s/4] to `map_2` [N, D, s, s].
        """
        found, fused = [], res5
        for fuse, large in zip(self.fuses, (res4, res3, res2), strict=True):
            fused = fuse(fused, large)
            found.append(fused)
        return tuple(found)


class GroupPlaces(nn.Module):
    """The tokens through all levels, to the kernel of the mask.

    The first level's tokens are the same for every expression: what they ask with is a constant.
    """

    first: Tensor
    query: Tensor

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.places = decoder.places
        blocks = decoder.cgattention1, decoder.cgattention2, decoder.cgattention2
        layers = cast("list[TokenLayer]", list(decoder.layers))
        levels = [
            GroupLevel(block, layer.positional_embedding)
            for block, layer in zip(blocks, layers, strict=True)
        ]
        self.levels = nn.ModuleList(levels)
        self.words = nn.ModuleList(
            WordsInTokens(layer) for layer in layers if isinstance(layer, WordedTokenLayer)
        )
        self.txt = decoder.mask_head.txt
        self.register_buffer("first", decoder.tokens.weight[None])
        self.register_buffer("query", levels[0].ask(self.first))

    def forward(
        self,
        map_0: Tensor,
        map_1: Tensor,
        map_2: Tensor,
        text_features: Tensor,
        text_mask: Tensor,
        assignment_noise: Tensor | None = None,
    ) -> Tensor:
        """The kernels of N expressions.

        Args:
            map_0: Of `Pyramid` [N, D, s/4, s/4].
            map_1: Of `Pyramid` [N, D, s/2, s/2].
            map_2: Of `Pyramid` [N, D, s, s].
            text_features: BERT's states [N, T, width].
            text_mask: 1 for a word, 0 for padding [N, T].
            assignment_noise: What places go to one token by, [N, all places]. None: each token gets
                its share in the mean.

        Returns:
            `kernel` [N, D+1].
        """
        parts: Sequence[Tensor | None] = (None,) * len(self.places)
        if assignment_noise is not None:
            parts = assignment_noise.split(self.places, 1)
        first, *others = cast("list[GroupLevel]", list(self.levels))
        tokens = first(self.first, self.query, map_0, parts[0])
        for level, words, fused, part in zip(
            others, self.words, (map_1, map_2), parts[1:], strict=True
        ):
            tokens = words(tokens, text_features, text_mask)
            tokens = level(tokens, level.ask(tokens), fused, part)
        return self.txt(tokens[:, -1])


class WordsInTokens(nn.Module):
    """A level's words and MLP: tokens [N, 2, D] -> the same shape."""

    def __init__(self, layer: WordedTokenLayer) -> None:
        super().__init__()
        read, cross = layer.loadtoken, layer.loadtoken.cross_attn
        self.norm_q, self.norm_k = plain(read.normq), plain(read.normk)
        self.q_proj = linear_behind_norm(read.normq, cross.q_proj)
        self.k_proj, self.v_proj = (
            linear_behind_norm(read.normk, projection)
            for projection in (cross.k_proj, cross.v_proj)
        )
        self.proj = cross.proj
        self.mlp = NormedMLP(layer.norm, layer.mlp)

    def forward(self, tokens: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        others, last = tokens[:, :-1], tokens[:, -1:]
        words = self.norm_k(text)
        query, key, value = self.q_proj(self.norm_q(last)), self.k_proj(words), self.v_proj(words)
        logits = query @ key.transpose(1, 2) * query.shape[-1] ** -0.5
        logits = logits + 10000.0 * (mask[:, None] - 1.0)
        read = last + self.proj(logits.softmax(-1) @ value)
        return self.mlp(torch.cat([others, read], 1))


class GroupLevel(nn.Module):
    """One level of the grouping."""

    positions: Tensor

    def __init__(self, block: Grouping, positions: Tensor) -> None:
        super().__init__()
        self.norm_t, self.norm_v = plain(block.norm_t), plain(block.norm_v)
        self.q_proj = linear_behind_norm(block.norm_t, block.q_proj)
        self.k_proj, self.v_proj = (
            linear_behind_norm(block.norm_v, projection)
            for projection in (block.k_proj, block.v_proj)
        )
        self.proj = block.proj
        self.mlp = NormedMLP(block.norm, block.mlp)
        self.register_buffer("positions", positions)

    def ask(self, tokens: Tensor) -> Tensor:
        """What tokens [N, 2, D] ask with, the same shape at length 1."""
        return _unit(self.q_proj(self.norm_t(tokens)))

    def forward(self, tokens: Tensor, query: Tensor, fused: Tensor, noise: Tensor | None) -> Tensor:
        """The tokens behind the level.

        Args:
            tokens: [N, 2, D].
            query: Of `ask`.
            fused: The map [N, D, s, s].
            noise: [N, s*s], as of `GroupPlaces`.

        Returns:
            [N, 2, D].
        """
        places = self.norm_v(fused.flatten(2).transpose(1, 2) + self.positions)
        keys = self.k_proj(places)
        lengths = (keys * keys).sum(-1).sqrt() + _TINY
        # two rows are divided by the lengths, not as many as there are channels
        shares = share_out(query @ keys.transpose(1, 2) / lengths[:, None], noise)
        number = shares.sum(-1, keepdim=True)
        mean = shares @ places / (number + 1)
        values = mean @ self.v_proj.weight.T + self.v_proj.bias * (number / (number + 1))
        return self.mlp(self.proj(values) + tokens)


class NormedMLP(nn.Module):
    """A layer norm and an MLP behind it, [..., D] -> the same shape."""

    def __init__(self, norm: nn.LayerNorm, mlp: GeluMLP) -> None:
        super().__init__()
        self.norm, self.fc2 = plain(norm), mlp.fc2
        self.fc1 = linear_behind_norm(norm, mlp.fc1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(nn.functional.gelu(self.fc1(self.norm(x))))


class MaskHead(nn.Module):
    """`map_2` [N, D, s, s] and `kernel` [N, D+1] -> `mask_logits` [N, 1, 4s, 4s].

    The batch norms are in the convolutions, the last layer of the map is in the kernel.
    """

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        vis = decoder.mask_head.vis
        steps = []
        for resize, convolve in (vis[:2], vis[2:4]):
            conv, norm, _ = cast(nn.Sequential, convolve)
            steps += [resize, _conv_with_norm(conv, norm), nn.ReLU()]
        self.vis = nn.Sequential(*steps)
        self.last = cast(nn.Conv2d, vis[4])
        self.product = Product()

    def forward(self, map_2: Tensor, kernel: Tensor) -> Tensor:
        weights, bias = kernel[:, None, :-1], kernel[:, None, -1:, None]
        inner = self.product(weights, self.last.weight.flatten(1))
        shift = (weights * cast(Tensor, self.last.bias)).sum(-1)[..., None, None]
        found = self.vis(map_2)
        logits = self.product(inner, found.flatten(2)).unflatten(2, found.shape[2:]) + shift
        return without_padding(nn.functional.pad(logits, (1, 1, 1, 1)) + bias)


class Product(nn.Module):
    """The product of two matrices, under a name by which its precision is chosen."""

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return left @ right


def _folded(fuse: Fuse) -> Fuse:
    """The same with its batch norms in its convolutions."""
    first, first_norm, relu, second, second_norm, _ = fuse.fusion
    convs = _conv_with_norm(first, first_norm), _conv_with_norm(second, second_norm)
    return with_parts(fuse, {"fusion": nn.Sequential(convs[0], relu, convs[1], relu)})


def _conv_with_norm(conv: nn.Module, norm: nn.Module) -> nn.Conv2d:
    return conv_with_norm(cast(nn.Conv2d, conv), cast(nn.BatchNorm2d, norm))


def _unit(vectors: Tensor) -> Tensor:
    """vectors [..., D] at length 1."""
    return vectors / ((vectors * vectors).sum(-1, keepdim=True).sqrt() + _TINY)
