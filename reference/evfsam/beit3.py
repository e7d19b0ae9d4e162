"""BEiT-3: the image's positions and the words in one sequence, each with weights of their own.

The two parts stay two tensors. Only attention sees them together, so that only its queries, keys
and values are concatenated. N expressions, P positions of the image (the class token and the
patches), T words, D channels. Attribute names are the checkpoint's key names; "A" are the weights
of the image's positions, "B" those of the words.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ris.reference.evfsam.config import FIRST_POSITION, Beit3Config
from ris.reference.layers.attention import BLOCKED


class Experts(nn.Module):
    """A module for the image's positions and one of the same sizes for the words."""

    def __init__(self, make: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.A = make()
        self.B = make()

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        return self.A(image), self.B(text)


def _linears(inputs: int, outputs: int) -> Experts:
    return Experts(lambda: nn.Linear(inputs, outputs))


def _norms(width: int) -> Experts:
    return Experts(lambda: nn.LayerNorm(width))


class FeedForward(nn.Module):
    """Two linear layers with GELU and a norm between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.ffn_layernorm = nn.LayerNorm(hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, input: Tensor) -> Tensor:
        return self.fc2(self.ffn_layernorm(F.gelu(self.fc1(input))))


class MixedAttention(nn.Module):
    """Attention of both parts to both parts.

    The constructor raises ValueError for heads that do not share out the channels.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise ValueError(f"{width} channels do not go into {heads} heads")
        self.heads = heads
        self.k_proj = _linears(width, width)
        self.v_proj = _linears(width, width)
        self.q_proj = _linears(width, width)
        self.inner_attn_ln = _norms(width)
        self.out_proj = _linears(width, width)

    def read(self, query: Tensor, image: Tensor, text: Tensor, bias: Tensor) -> Tensor:
        """What some queries read of both parts.

        Args:
            query: Of `q_proj`, [N, Q, D].
            image: The keys' and values' image part, normed, [N, P, D].
            text: Their words, normed, [N, T, D].
            bias: As of `Layer.forward`.

        Returns:
            The heads side by side, [N, Q, D].
        """
        key = self._split(torch.cat(self.k_proj(image, text), 1))
        value = self._split(torch.cat(self.v_proj(image, text), 1))
        query = self._split(query) * (query.shape[-1] // self.heads) ** -0.5
        logits = query @ key.transpose(-1, -2) + bias
        return (logits.softmax(-1) @ value).transpose(1, 2).flatten(2)

    def forward(self, image: Tensor, text: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Both parts, normed -> what they read; arguments and results as of `Layer.forward`."""
        read = self.read(torch.cat(self.q_proj(image, text), 1), image, text, bias)
        positions = image.shape[1]
        return self.out_proj(*self.inner_attn_ln(read[:, :positions], read[:, positions:]))

    def first(self, image: Tensor, text: Tensor, bias: Tensor) -> Tensor:
        """What the class token reads, [N, 1, D]; the arguments are those of `forward`."""
        read = self.read(self.q_proj.A(image[:, :1]), image, text, bias)
        return self.out_proj.A(self.inner_attn_ln.A(read))

    def _split(self, x: Tensor) -> Tensor:
        """x [N, L, D] -> [N, heads, L, D/heads]."""
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)


class Layer(nn.Module):
    """A layer: norms before attention and MLP, and one more within each of them."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        """Builds the modules, with random weights.

        Args:
            width: Channels D.
            heads: Attention heads.
            hidden: Channels within the MLPs.
        """
        super().__init__()
        self.self_attn = MixedAttention(width, heads)
        self.self_attn_layer_norm = _norms(width)
        self.ffn = Experts(lambda: FeedForward(width, hidden))
        self.final_layer_norm = _norms(width)

    def forward(self, image: Tensor, text: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Both parts behind the layer.

        Args:
            image: [N, P, D].
            text: [N, T, D].
            bias: Added to the logits of the keys, [N, 1, 1, P+T].

        Returns:
            The parts, of the same shapes.
        """
        read_image, read_text = self.self_attn(*self.self_attn_layer_norm(image, text), bias)
        image, text = image + read_image, text + read_text
        more_image, more_text = self.ffn(*self.final_layer_norm(image, text))
        return image + more_image, text + more_text

    def first(self, image: Tensor, text: Tensor, bias: Tensor) -> Tensor:
        """The class token behind the layer, [N, 1, D]; the arguments are those of `forward`."""
        normed_image, normed_text = self.self_attn_layer_norm(image, text)
        token = image[:, :1] + self.self_attn.first(normed_image, normed_text, bias)
        return token + self.ffn.A(self.final_layer_norm.A(token))


class Encoder(nn.Module):
    """The tables of positions, the layers, and the norm of what comes out."""

    def __init__(self, config: Beit3Config) -> None:
        super().__init__()
        width = config.width
        self.embed_positions = nn.ModuleDict(
            {
                "A": nn.Embedding(FIRST_POSITION + config.image_positions, width),
                "B": nn.Embedding(config.positions, width),
            }
        )
        self.layers = nn.ModuleList(
            Layer(width, config.heads, config.mlp_width) for _ in range(config.layers)
        )
        self.layer_norm = _norms(width)


class VisionEmbedding(nn.Module):
    """The patches of the square, the class token in front of them."""

    def __init__(self, config: Beit3Config) -> None:
        super().__init__()
        patch = config.patch_size
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.proj = nn.Conv2d(3, config.width, patch, stride=patch)

    def forward(self, image: Tensor) -> Tensor:
        """image [B, 3, s, s] -> [B, P, D], without positions."""
        patches = self.proj(image).flatten(2).transpose(1, 2)
        return torch.cat([self.cls_token.expand(len(patches), -1, -1), patches], 1)


class Beit3(nn.Module):
    """BEiT-3 without heads."""

    def __init__(self, config: Beit3Config) -> None:
        super().__init__()
        self.config = config
        self.text_embed = nn.Embedding(config.vocab_size, config.width)
        self.vision_embed = VisionEmbedding(config)
        self.encoder = Encoder(config)

    def image_positions(self) -> Tensor:
        """What is added to the image's positions, [P, D]."""
        return self._positions("A")[FIRST_POSITION:]

    def text_positions(self, tokens: int) -> Tensor:
        """What is added to the words, [tokens, D]."""
        return self._positions("B")[FIRST_POSITION : FIRST_POSITION + tokens]

    def _positions(self, part: str) -> Tensor:
        table = self.encoder.embed_positions[part]
        assert isinstance(table, nn.Embedding)
        return table.weight

    def embed_image(self, image: Tensor) -> Tensor:
        """image [B, 3, s, s], normalised -> [B, P, D]."""
        return self.vision_embed(image) + self.image_positions()

    def embed_text(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """Words as the layers take them; padding is zero.

        input_ids: int64 [N, T]. mask: float32 [N, T], 1 for real tokens, 0 for padding. Returns
        [N, T, D].
        """
        words = self.text_embed(input_ids) + self.text_positions(input_ids.shape[1])
        return words * mask[..., None]

    def bias(self, mask: Tensor) -> Tensor:
        """What is added to the logits of the keys; padding is not read.

        mask: [N, T], as of `embed_text`. Returns [N, 1, 1, P+T].
        """
        words = F.pad(mask - 1.0, (self.config.image_positions, 0))
        return (words * -BLOCKED)[:, None, None]

    def forward(self, image: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        """What the model says of N squares and their expressions: its class token.

        In the last layer only that token is computed.

        Args:
            image: Of `embed_image`, a row for each expression, [N, P, D].
            text: Of `embed_text`, [N, T, D].
            mask: [N, T], as of `embed_text`.

        Returns:
            [N, 1, D].
        """
        bias = self.bias(mask)
        *layers, last = self.encoder.layers
        for layer in layers:
            image, text = layer(image, text, bias)
        token = cast(Layer, last).first(image, text, bias)
        return self.encoder.layer_norm.A(token)
