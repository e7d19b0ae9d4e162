"""LLaMA, cut so that what comes before a question is kept: keys and values of every layer.

Ours and not transformers', because of the cuts: of what is kept the last layer gives keys and
values alone, and of a question its last position alone. Attribute names are the checkpoint's.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ris.reference.layers.attention import BLOCKED
from ris.reference.lisa.config import LlamaSpec

POSITIONS = 512
"""The most positions of a sequence: a picture takes 292 or 308, a question some tens."""

_BASE = 10000.0  # of the rotary angles


class Rotary(NamedTuple):
    """The rotary tables of T positions. Channel i of a head is paired with i + half of it."""

    cos: Tensor
    """float32 [T, head width]; [N, 1, 1, head width] for one position of each of N rows."""

    sin: Tensor
    """As `cos`."""

    def turn(self, heads: Tensor) -> Tensor:
        """Queries or keys [N, heads, T, head width], turned by their positions."""
        first, second = heads.chunk(2, -1)
        return heads * self.cos + torch.cat([-second, first], -1) * self.sin

    def at(self, rows: Tensor) -> Rotary:
        """The tables of one position for each of N rows. rows: indices into the T, [N]."""
        return Rotary(self.cos[rows][:, None, None], self.sin[rows][:, None, None])


@functools.lru_cache(maxsize=8)
def _angles(head_width: int) -> np.ndarray:
    """float32 [POSITIONS, head width]; float32 throughout, as the authors' code has them."""
    exponents = np.arange(0, head_width, 2, dtype=np.float64) / head_width
    frequencies = (1.0 / _BASE**exponents).astype(np.float32)
    angles = np.arange(POSITIONS, dtype=np.float32)[:, None] * frequencies
    return np.concatenate([angles, angles], 1)


def rotary_tables(first: int, count: int, head_width: int, like: Tensor) -> Rotary:
    """The tables of some positions: a slice of constants.

    Args:
        first: The first position.
        count: How many; there are tables for `POSITIONS`.
        head_width: Channels of a head.
        like: A tensor on the device of the result.
    """
    angles = _angles(head_width)
    tables = (torch.from_numpy(part).to(like.device) for part in (np.cos(angles), np.sin(angles)))
    return Rotary(*(table[first : first + count] for table in tables))


def causal_bias(count: int, like: Tensor) -> Tensor:
    """The logit bias of T positions among themselves, [T, T]: none sees a later one."""
    order = torch.arange(count, device=like.device)
    return torch.where(order[:, None] < order, BLOCKED, 0.0).to(like.dtype)


class KeysValues(NamedTuple):
    """Keys and values of one layer."""

    keys: Tensor
    """[B, H, P, head width], behind the rotary turn."""

    values: Tensor
    """[B, H, P, head width]."""


class Kept(NamedTuple):
    """Keys, behind the rotary turn, and values of every layer; what later positions need.

    L layers, H heads, P positions.
    """

    keys: Tensor
    """[B, L, H, P, head width]."""

    values: Tensor
    """[B, L, H, P, head width]."""

    @property
    def positions(self) -> int:
        """How many positions are kept."""
        return self.keys.shape[3]

    def of_layer(self, layer: int) -> KeysValues:
        """Those of one layer, [B, H, P, head width] each."""
        return KeysValues(self.keys[:, layer], self.values[:, layer])


class RmsNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) over the channels, times a weight; float32 inside."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        mean = (wide * wide).mean(-1, keepdim=True)
        return self.weight * (wide / torch.sqrt(mean + self.eps)).to(x.dtype)


class LlamaAttention(nn.Module):
    """Rotary attention without biases."""

    def __init__(self, spec: LlamaSpec) -> None:
        super().__init__()
        self.heads, self.scale = spec.heads, spec.head_width**-0.5
        self.q_proj = nn.Linear(spec.width, spec.width, bias=False)
        self.k_proj = nn.Linear(spec.width, spec.width, bias=False)
        self.v_proj = nn.Linear(spec.width, spec.width, bias=False)
        self.o_proj = nn.Linear(spec.width, spec.width, bias=False)

    def keys_values(self, x: Tensor, rotary: Rotary) -> KeysValues:
        """Those of normed states x [N, T, width]."""
        return KeysValues(rotary.turn(self._split(self.k_proj(x))), self._split(self.v_proj(x)))

    def queries(self, x: Tensor, rotary: Rotary) -> Tensor:
        """Those of normed states [N, T, width], turned: [N, H, T, head width]."""
        return rotary.turn(self._split(self.q_proj(x)))

    def read(
        self, queries: Tensor, past: KeysValues | None, own: KeysValues, bias: Tensor
    ) -> Tensor:
        """What the queries read.

        Args:
            queries: [N, H, T, head width].
            past: What was kept, of each row or, with B = 1, of all; all of it is seen.
            own: Of the row's own positions.
            bias: Added to the logits of own positions.

        Returns:
            [N, T, width], behind the last projection.
        """
        # of the queries, not of the logits: OpenVINO would multiply all that is kept, in each layer
        queries = queries * self.scale
        logits = queries @ own.keys.transpose(-1, -2) + bias
        if past is None:
            read = logits.softmax(-1) @ own.values
        else:
            # two products, not one over both joined: what is kept is not copied for each row
            before = queries @ past.keys.transpose(-1, -2)
            shares = torch.cat([before, logits], -1).softmax(-1)
            read = shares[..., : past.keys.shape[2]] @ past.values
            read = read + shares[..., past.keys.shape[2] :] @ own.values
        return self.o_proj(read.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        """x [N, T, width] -> [N, H, T, head width]."""
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)


class LlamaMLP(nn.Module):
    """The gated feed-forward part: down(silu(gate) * up), without biases."""

    def __init__(self, spec: LlamaSpec) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(spec.width, spec.mlp_width, bias=False)
        self.up_proj = nn.Linear(spec.width, spec.mlp_width, bias=False)
        self.down_proj = nn.Linear(spec.mlp_width, spec.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class LlamaLayer(nn.Module):
    """A pre-norm layer."""

    def __init__(self, spec: LlamaSpec) -> None:
        super().__init__()
        self.input_layernorm = RmsNorm(spec.width, spec.eps)
        self.self_attn = LlamaAttention(spec)
        self.post_attention_layernorm = RmsNorm(spec.width, spec.eps)
        self.mlp = LlamaMLP(spec)

    def forward(
        self, x: Tensor, rotary: Rotary, past: KeysValues | None, bias: Tensor
    ) -> tuple[Tensor, KeysValues]:
        """All positions.

        Args:
            x: States of T positions, [N, T, width].
            rotary: Their tables.
            past: What the layer kept of the positions before.
            bias: Of `causal_bias`.

        Returns:
            The new states, and the positions' keys and values.
        """
        normed = self.input_layernorm(x)
        own = self.self_attn.keys_values(normed, rotary)
        queries = self.self_attn.queries(normed, rotary)
        return self.behind(x, self.self_attn.read(queries, past, own, bias)), own

    def remember(self, x: Tensor, rotary: Rotary) -> KeysValues:
        """Keys and values of x [N, T, width] alone: all that the last layer has to keep."""
        return self.self_attn.keys_values(self.input_layernorm(x), rotary)

    def at(
        self, x: Tensor, rotary: Rotary, past: KeysValues | None, bias: Tensor, rows: Tensor
    ) -> Tensor:
        """The new state of one position of each row: all that the last layer has to give.

        Args:
            x: As of `forward`.
            rotary: As of `forward`.
            past: As of `forward`.
            bias: As of `forward`.
            rows: The positions, indices into the T, [N].

        Returns:
            [N, 1, width].
        """
        normed = self.input_layernorm(x)
        own = self.self_attn.keys_values(normed, rotary)
        queries = self.self_attn.queries(pick(normed, rows), rotary.at(rows))
        seen = bias[rows][:, None, None]
        return self.behind(pick(x, rows), self.self_attn.read(queries, past, own, seen))

    def behind(self, x: Tensor, attention: Tensor) -> Tensor:
        """The states x with what attention and then the feed-forward part add."""
        x = x + attention
        return x + self.mlp(self.post_attention_layernorm(x))


def pick(x: Tensor, rows: Tensor) -> Tensor:
    """One position of each row of x [N, T, C], [N, 1, C]; rows: their indices, int64 [N]."""
    return x[torch.arange(len(x), device=x.device), rows][:, None]


class Llama(nn.Module):
    """The language model without its head."""

    def __init__(self, spec: LlamaSpec) -> None:
        super().__init__()
        self.spec = spec
        self.embed_tokens = nn.Embedding(spec.vocab_size, spec.width)
        self.layers = nn.ModuleList(LlamaLayer(spec) for _ in range(spec.layers))
        self.norm = RmsNorm(spec.width, spec.eps)

    def run(self, x: Tensor, past: Kept | None = None) -> Tensor:
        """The states of all positions behind the last layer, before the norm.

        x: what the positions begin as, [N, T, width], behind those that `past` keeps.
        """
        return self._through(x, past, len(self.layers))[0]

    def remember(self, x: Tensor, past: Kept | None = None) -> Kept:
        """What is kept of the positions x [N, T, width], and of those that were kept before.

        The last layer computes keys and values alone. past: of N rows, or of one for all.
        """
        last: Any = self.layers[-1]
        states, found = self._through(x, past, len(self.layers) - 1)
        rotary, _ = self._tables(x, past)
        found.append(last.remember(states, rotary))
        new = Kept(*(torch.stack(parts, 1) for parts in zip(*found, strict=True)))
        if past is None:
            return new
        rows = (len(x), -1, -1, -1, -1)
        return Kept(*(torch.cat([a.expand(rows), b], 3) for a, b in zip(past, new, strict=True)))

    def state_at(self, x: Tensor, rows: Tensor, past: Kept | None = None) -> Tensor:
        """The normed state of one position of each row, [N, width].

        Args:
            x: As of `run`.
            rows: The positions, indices into the T, int64 [N].
            past: As of `run`.
        """
        index = len(self.layers) - 1
        last: Any = self.layers[index]
        states, _ = self._through(x, past, index)
        rotary, bias = self._tables(x, past)
        before = None if past is None else past.of_layer(index)
        return self.norm(last.at(states, rotary, before, bias, rows)[:, 0])

    def _through(self, x: Tensor, past: Kept | None, count: int) -> tuple[Tensor, list[KeysValues]]:
        """x behind the first `count` layers, and what each of them has of it."""
        rotary, bias = self._tables(x, past)
        found = []
        for index, layer in enumerate(self.layers[:count]):
            x, own = layer(x, rotary, None if past is None else past.of_layer(index), bias)
            found.append(own)
        return x, found

    def _tables(self, x: Tensor, past: Kept | None) -> tuple[Rotary, Tensor]:
        """The rotary tables and the bias of the positions x."""
        count = x.shape[1]
        first = 0 if past is None else past.positions
        return rotary_tables(first, count, self.spec.head_width, x), causal_bias(count, x)
