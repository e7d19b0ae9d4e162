"""BEiT-3 and the projector cut into what becomes a graph each.

N expressions about B images, P positions of the image, T words, D channels, C those of the prompt.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ris.export.families.folding import scaled
from ris.reference.evfsam.beit3 import Beit3, FeedForward, Layer, MixedAttention
from ris.reference.layers.attention import BLOCKED


class ImageTokens(nn.Module):
    """`image` [B, 3, b, b] -> `image_tokens` [B, P, D]: class token, patches and positions."""

    def __init__(self, beit3: Beit3) -> None:
        super().__init__()
        positions = beit3.image_positions()
        self.proj = beit3.vision_embed.proj
        self.class_token = nn.Buffer(beit3.vision_embed.cls_token + positions[:1])
        self.positions = nn.Buffer(positions[1:].clone())

    def forward(self, image: Tensor) -> Tensor:
        patches = self.proj(image).flatten(2).transpose(1, 2) + self.positions
        return torch.cat([self.class_token.expand(patches.shape[0], -1, -1), patches], 1)


class WordEmbedding(nn.Module):
    """`input_ids` [N, T] and `text_mask` [N, T] -> `text_features` [N, T, D]; padding is zero."""

    def __init__(self, beit3: Beit3, tokens: int) -> None:
        """Takes the rows of all words, and of the positions as many as a row has tokens."""
        super().__init__()
        self.words = beit3.text_embed
        self.positions = nn.Buffer(beit3.text_positions(tokens).clone())

    def forward(self, input_ids: Tensor, text_mask: Tensor) -> Tensor:
        return (self.words(input_ids.long()) + self.positions) * text_mask[..., None]


class Fusion(nn.Module):
    """An image's tokens and words -> `sparse_prompt` [N, 1, C].

    Nothing else is read of the last layer than the class token, and of its words nothing but keys
    and values.
    """

    def __init__(self, beit3: Beit3, projector: nn.Sequential) -> None:
        super().__init__()
        layers = [cast(Layer, layer) for layer in beit3.encoder.layers]
        self.layers = nn.ModuleList(_Layer(layer, is_last=layer is layers[-1]) for layer in layers)
        self.norm = beit3.encoder.layer_norm.A
        self.projector = projector
        self.image_positions = beit3.config.image_positions

    def forward(
        self,
        image_tokens: Tensor,
        text_features: Tensor,
        text_mask: Tensor,
        image_index: Tensor,
    ) -> Tensor:
        """The prompts of N expressions about B images.

        Args:
            image_tokens: Of `ImageTokens` [B, P, D].
            text_features: Of `WordEmbedding` [N, T, D].
            text_mask: 1 for a word, 0 for padding [N, T].
            image_index: The image of each expression, int32 [N].

        Returns:
            `sparse_prompt` [N, 1, C].
        """
        image = image_tokens.index_select(0, image_index.long())
        bias = (F.pad(text_mask - 1.0, (self.image_positions, 0)) * -BLOCKED)[:, None, None]
        text = text_features
        for layer in self.layers:
            image, text = layer(image, text, bias)
        return self.projector(self.norm(image))


class _Layer(nn.Module):
    """A layer of two experts; the last one gives the class token alone."""

    def __init__(self, layer: Layer, is_last: bool) -> None:
        super().__init__()
        self.attn = _Attention(layer.self_attn, is_last)
        norm = layer.self_attn_layer_norm
        self.image_norm, self.text_norm = norm.A, norm.B
        self.image_part = _Expert(layer, "A")
        self.text_part = None if is_last else _Expert(layer, "B")

    def forward(self, image: Tensor, text: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        read = self.attn(self.image_norm(image), self.text_norm(text), bias)
        if self.text_part is None:
            return self.image_part(image[:, :1], read), text
        positions = image.shape[1]
        return (
            self.image_part(image, read[:, :positions]),
            self.text_part(text, read[:, positions:]),
        )


class _Attention(nn.Module):
    """What both parts read of both, [N, P+T, D], or the class token alone, [N, 1, D].

    The queries' scale is in their weights.
    """

    def __init__(self, attention: MixedAttention, is_last: bool) -> None:
        super().__init__()
        self.heads, self.is_last = attention.heads, is_last
        self.k_proj, self.v_proj = attention.k_proj, attention.v_proj
        width = cast(nn.Linear, attention.q_proj.A).in_features
        scale = (width // self.heads) ** -0.5
        self.image_query = scaled(cast(nn.Linear, attention.q_proj.A), scale)
        self.text_query = None if is_last else scaled(cast(nn.Linear, attention.q_proj.B), scale)
        self.softmax = _MaskedSoftmax()

    def forward(self, image: Tensor, text: Tensor, bias: Tensor) -> Tensor:
        if self.text_query is None:
            query = self.image_query(image[:, :1])
        else:
            query = torch.cat([self.image_query(image), self.text_query(text)], 1)
        key, value = (torch.cat(both(image, text), 1) for both in (self.k_proj, self.v_proj))
        q, k, v = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in (query, key, value)
        )
        return (self.softmax(q @ k.transpose(2, 3), bias) @ v).transpose(1, 2).flatten(2)


class _MaskedSoftmax(nn.Module):
    """Weights of keys, under a name by which their precision is chosen."""

    def forward(self, logits: Tensor, bias: Tensor) -> Tensor:
        return (logits + bias).softmax(-1)


class _Expert(nn.Module):
    """What follows attention, for one part: [N, L, D] -> the same shape."""

    def __init__(self, layer: Layer, name: str) -> None:
        super().__init__()
        self.inner_norm = getattr(layer.self_attn.inner_attn_ln, name)
        self.out_proj = getattr(layer.self_attn.out_proj, name)
        self.norm = getattr(layer.final_layer_norm, name)
        ffn: FeedForward = getattr(layer.ffn, name)
        self.fc1, self.hidden_norm, self.fc2 = ffn.fc1, ffn.ffn_layernorm, ffn.fc2
        self.gelu = nn.GELU()

    def forward(self, x: Tensor, read: Tensor) -> Tensor:
        x = x + self.out_proj(self.inner_norm(read))
        return x + self.fc2(self.hidden_norm(self.gelu(self.fc1(self.norm(x)))))
