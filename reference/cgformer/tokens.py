"""The two tokens: what they read from the words, and how they group the places of a map.

The last token stands for what is asked, the first for the rest. N expressions, D channels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ris.reference.layers.basic import GeluMLP

TOKENS = 2
"""Number of tokens; the assignment is written for two."""

_TINY = 1e-12


class CrossAttention(nn.Module):
    """One head of attention from tokens to words; all four layers are linear."""

    def __init__(self, width: int, text_width: int) -> None:
        super().__init__()
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(text_width, width, bias=False)
        self.v_proj = nn.Linear(text_width, width, bias=False)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor, words: Tensor, mask: Tensor) -> Tensor:
        """What N expressions' words say to their tokens.

        Args:
            tokens: [N, t, D].
            words: [N, T, text width].
            mask: [N, T], 1 for real tokens, 0 for padding.

        Returns:
            [N, t, D].
        """
        query, key, value = self.q_proj(tokens), self.k_proj(words), self.v_proj(words)
        logits = query @ key.transpose(1, 2) * query.shape[-1] ** -0.5
        logits = logits + 10000.0 * (mask[:, None] - 1.0)
        return self.proj(logits.softmax(-1) @ value)


class LoadToken(nn.Module):
    """The last token with what it reads from the words; the first passes as it is."""

    def __init__(self, width: int, text_width: int) -> None:
        super().__init__()
        self.normq = nn.LayerNorm(width)
        self.normk = nn.LayerNorm(text_width)
        self.cross_attn = CrossAttention(width, text_width)

    def forward(self, tokens: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        """The tokens of N expressions.

        Args:
            tokens: [N, 2, D].
            text: BERT's states, [N, T, text width].
            mask: [N, T], 1 for real tokens, 0 for padding.

        Returns:
            [N, 2, D].
        """
        others, last = tokens[:, :-1], tokens[:, -1:]
        read = self.cross_attn(self.normq(last), self.normk(text), mask)
        return torch.cat([others, last + read], 1)


class TokenLayer(nn.Module):
    """What a level has of its own: positions of its places and, behind the first, the words."""

    def __init__(self, width: int, places: int) -> None:
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.zeros(places, width))


class WordedTokenLayer(TokenLayer):
    """A level behind the first: the words, then an MLP whose result replaces the tokens."""

    def __init__(self, width: int, places: int, hidden: int, text_width: int) -> None:
        """Builds the modules, with random weights.

        Args:
            width: Channels D.
            places: Places of the level's map.
            hidden: Channels within the MLP.
            text_width: Channels of the words.
        """
        super().__init__(width, places)
        self.loadtoken = LoadToken(width, text_width)
        self.norm = nn.LayerNorm(width)
        self.mlp = GeluMLP(width, hidden)

    def replace(self, tokens: Tensor) -> Tensor:
        """Tokens that have read the words [N, 2, D] -> those that group, of the same shape."""
        return self.mlp(self.norm(tokens))


class Grouped(NamedTuple):
    """What one level makes of the tokens."""

    cosines: Tensor
    """How like each place is to each token, [N, 2, places], in [-1, 1]."""

    shares: Tensor
    """How much of each place goes to each token, [N, 2, places]; 1 over the tokens."""

    read: Tensor
    """What each token reads from its places, [N, 2, D]."""

    tokens: Tensor
    """The tokens behind the level, [N, 2, D]."""


class Grouping(nn.Module):
    """Tokens that share out the places of a map, and read the mean of what each of them gets.

    `tau` of the checkpoints scales no answer and is not here: it divides what is compared, and in
    the mean over draws it cancels.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm_v = nn.LayerNorm(width)
        self.norm_t = nn.LayerNorm(width)
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.proj = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.mlp = GeluMLP(width, hidden)

    def normed(self, feature: Tensor, positions: Tensor | None) -> Tensor:
        """The places of a map as they are read.

        feature: [N, D, s, s]. positions: [s*s, D]; None for none. Returns [N, s*s, D].
        """
        places = feature.flatten(2).transpose(1, 2)
        return self.norm_v(places if positions is None else places + positions)

    def cosines(self, tokens: Tensor, places: Tensor) -> Tensor:
        """tokens [N, 2, D], places [N, P, D], of `normed` -> [N, 2, P]."""
        query, key = self.q_proj(self.norm_t(tokens)), self.k_proj(places)
        return _unit(query) @ _unit(key).transpose(1, 2)

    def read(self, shares: Tensor, places: Tensor) -> Tensor:
        """What each token reads.

        shares [N, 2, P], places [N, P, D], of `normed` -> [N, 2, D]. The values are linear in the
        places, so that they are made of the means: two rows instead of P.
        """
        number = shares.sum(-1, keepdim=True)
        mean = shares @ places / (number + 1)
        values = mean @ self.v_proj.weight.T + self.v_proj.bias * (number / (number + 1))
        return self.proj(values)

    def replace(self, tokens: Tensor, read: Tensor) -> Tensor:
        """The tokens behind the level, both arguments and the result [N, 2, D]."""
        return self.mlp(self.norm(read + tokens))

    def forward(
        self, tokens: Tensor, feature: Tensor, positions: Tensor | None, noise: Tensor | None
    ) -> Grouped:
        """One level.

        Args:
            tokens: [N, 2, D].
            feature: The map, [N, D, s, s].
            positions: [s*s, D]; None for none.
            noise: As of `share_out`.
        """
        places = self.normed(feature, positions)
        cosines = self.cosines(tokens, places)
        shares = share_out(cosines, noise)
        read = self.read(shares, places)
        return Grouped(cosines, shares, read, self.replace(tokens, read))


def share_out(cosines: Tensor, noise: Tensor | None) -> Tensor:
    """How much of each place goes to each token.

    cosines: [N, 2, P]. noise: what the last token's logit gets more than the first's, [N, P], of a
    logistic distribution: a place then goes to one token; None: to each by its share in the mean
    over such noise. Returns [N, 2, P].
    """
    first, last = cosines.chunk(2, 1)
    more = last - first
    second = more.sigmoid() if noise is None else (more + noise[:, None] > 0).to(cosines)
    return torch.cat([1 - second, second], 1)


def _unit(vectors: Tensor) -> Tensor:
    """vectors [..., D] at length 1."""
    return vectors / ((vectors * vectors).sum(-1, keepdim=True).sqrt() + _TINY)
