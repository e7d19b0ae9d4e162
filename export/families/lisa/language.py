"""LLaMA cut into what becomes a graph each: the picture's positions, and a question's.

N expressions about one image, L layers, H heads of d channels, D channels, P positions in front of
a question of T tokens, C channels of the prompt.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ris.export.families.clip import ClipImageEncoder
from ris.reference.layers.attention import BLOCKED
from ris.reference.lisa.llama import (
    KeysValues,
    LlamaLayer,
    Rotary,
    causal_bias,
    rotary_tables,
)
from ris.reference.lisa.model import LisaModel


class ClipTokens(nn.Module):
    """`image` [B, 3, c, c] -> `image_tokens` [B, g*g, D], as the language model takes them."""

    def __init__(self, model: LisaModel) -> None:
        super().__init__()
        self.encoder = ClipImageEncoder(model.clip.visual)
        self.projector = model.mm_projector

    def forward(self, image: Tensor) -> Tensor:
        return self.projector(self.encoder(image))


class _Tables(NamedTuple):
    """What T positions need beside their states."""

    rotary: Rotary
    """The rotary tables, [T, d] each."""

    bias: Tensor
    """What keeps each from seeing those behind it, [T, T]."""


class _Layers(nn.Module):
    """The layers, and the tables of the positions that they are run at."""

    def __init__(self, model: LisaModel, first: int, count: int) -> None:
        """Takes the layers, for `count` positions from `first` on."""
        super().__init__()
        self.layers = model.layers
        like = model.norm.weight
        tables = rotary_tables(first, count, model.spec.head_width, like)
        self.cos, self.sin = nn.Buffer(tables.cos), nn.Buffer(tables.sin)
        self.bias = nn.Buffer(causal_bias(count, like))

    @property
    def tables(self) -> _Tables:
        """The tables of all the positions."""
        return _Tables(Rotary(self.cos, self.sin), self.bias)

    def tables_of(self, count: int) -> _Tables:
        """Those of the first `count` positions."""
        return _Tables(Rotary(self.cos[:count], self.sin[:count]), self.bias[:count, :count])

    def below_the_last(
        self, x: Tensor, tables: _Tables, keys: Tensor, values: Tensor
    ) -> tuple[Tensor, list[KeysValues]]:
        """The states behind all layers but the last, and what each of those has of them.

        Args:
            x: The states in front of the first layer, [N, T, D].
            tables: Of the T positions.
            keys: Those of the positions before, [1, L, H, P, d].
            values: As `keys`.
        """
        found = []
        for index, layer in enumerate(self.layers[:-1]):
            past = KeysValues(keys[:, index], values[:, index])
            x, own = layer(x, tables.rotary, past, tables.bias)
            found.append(own)
        return x, found


class LanguagePrefix(_Layers):
    """`image_tokens` [B, g*g, D] -> `prefix_keys` and `prefix_values` [B, L, H, P, d].

    What the constant positions in front of the picture give is computed here, in FP32.
    """

    def __init__(self, model: LisaModel) -> None:
        constant = model.keep_constant_prefix()
        super().__init__(model, constant.positions, model.config.image_tokens + 1)
        self.keys, self.values = nn.Buffer(constant.keys), nn.Buffer(constant.values)
        end = model.embed_tokens.weight[model.config.tokens.im_end]
        self.end = nn.Buffer(end[None, None].detach().clone())

    def forward(self, image_tokens: Tensor) -> tuple[Tensor, Tensor]:
        rows = torch.cat([image_tokens, self.end.expand(image_tokens.shape[0], -1, -1)], 1)
        states, found = self.below_the_last(rows, self.tables, self.keys, self.values)
        last = cast(LlamaLayer, self.layers[-1])
        found.append(last.remember(states, self.tables.rotary))
        both = []
        for constant, own in zip((self.keys, self.values), zip(*found, strict=True), strict=True):
            before = constant.expand(image_tokens.shape[0], -1, -1, -1, -1)
            both.append(torch.cat([before, torch.stack(own, 1)], 3))
        return both[0], both[1]


class LanguageQuestion(_Layers):
    """A question behind what was kept of a picture -> `sparse_prompt` [N, 1, C].

    The rows of a call may be of any length up to `max_tokens`, and cost what they are long. The
    last layer computes the question's last token alone. That is taken by a product with a row of 0
    and 1, as not every engine gathers by row.
    """

    def __init__(self, model: LisaModel) -> None:
        config = model.config
        super().__init__(model, config.prefix_length, config.max_tokens)
        self.embed_tokens = model.embed_tokens
        self.norm = model.norm
        self.prompt = model.text_hidden_fcs[0]

    def forward(
        self, input_ids: Tensor, text_mask: Tensor, prefix_keys: Tensor, prefix_values: Tensor
    ) -> Tensor:
        """The prompts of N questions about one image.

        Args:
            input_ids: The questions, int32 [N, T], padded at the right.
            text_mask: 1 for a token, 0 for padding [N, T].
            prefix_keys: Of `LanguagePrefix`, one image's [1, L, H, P, d].
            prefix_values: As `prefix_keys`.

        Returns:
            `sparse_prompt` [N, 1, C].
        """
        tables = self.tables_of(input_ids.shape[1])
        states, _ = self.below_the_last(
            self.embed_tokens(input_ids.long()), tables, prefix_keys, prefix_values
        )
        past = KeysValues(prefix_keys[:, -1], prefix_values[:, -1])
        return self.prompt(self.norm(self._at(states, tables.rotary, text_mask, past)))

    def _at(self, x: Tensor, rotary: Rotary, text_mask: Tensor, past: KeysValues) -> Tensor:
        """The last layer at the last token of each row, [N, 1, D].

        Args:
            x: The states in front of it, [N, T, D].
            rotary: The tables of the T positions.
            text_mask: As of `forward`.
            past: What the layer kept of the positions before.
        """
        layer = cast(LlamaLayer, self.layers[-1])
        normed = layer.input_layernorm(x)
        own = layer.self_attn.keys_values(normed, rotary)
        last = (text_mask - F.pad(text_mask[:, 1:], (0, 1)))[:, None]  # [N, 1, T], a single 1
        there = Rotary((last @ rotary.cos)[:, None], (last @ rotary.sin)[:, None])
        queries = layer.self_attn.queries(last @ normed, there)
        seen = ((text_mask - 1.0) * -BLOCKED)[:, None, None]
        return layer.behind(last @ x, layer.self_attn.read(queries, past, own, seen))
