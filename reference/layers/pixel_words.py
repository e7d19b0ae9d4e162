"""PWAM, the pixel-word attention that mixes image positions with words.

Section 6 of docs/reference/models/dfam.md.
"""

from __future__ import annotations

from torch import Tensor, nn

from ris.reference.layers.basic import InstanceNorm, PointwiseConv1d


class _ImageLanguageAttention(nn.Module):
    """What the words say at each position: query [N, P, C], text [N, T, text_width] -> [N, P, C].

    mask [N, T] is 1 for real tokens, 0 for padding. The query is `f_query` of the image, which
    `PWAM.project_image` computes once an image. A head has contiguous channels, and all of C scale
    its logits.
    """

    def __init__(self, image_width: int, width: int, text_width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.f_query = nn.Sequential(PointwiseConv1d(image_width, width), InstanceNorm())
        self.f_key = nn.Sequential(PointwiseConv1d(text_width, width))
        self.f_value = nn.Sequential(PointwiseConv1d(text_width, width))
        self.W = nn.Sequential(PointwiseConv1d(width, width), InstanceNorm())

    def forward(self, query: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        mask = mask[..., None]
        key = self.f_key(text) * mask
        value = self.f_value(text) * mask
        scale = key.shape[-1] ** -0.5
        blocked = 10000.0 * (mask.transpose(1, 2) - 1.0)
        if self.heads > 1:
            query, key, value = (self._split(x) for x in (query, key, value))
            blocked = blocked[:, None]
        logits = query @ key.transpose(-1, -2) * scale + blocked
        read = logits.softmax(-1) @ value
        if self.heads > 1:
            read = read.transpose(1, 2).flatten(2)
        return self.W(read)

    def _split(self, x: Tensor) -> Tensor:
        """x [N, L, C] -> [N, heads, L, C/heads]."""
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)


class PWAM(nn.Module):
    """Attention from image positions to words.

    `project_image` depends on the image alone, `mix` and `fuse` on an image and an expression;
    `forward` is both.
    """

    def __init__(
        self, image_width: int, width: int, text_width: int | None = None, heads: int = 1
    ) -> None:
        """Builds the modules, with random weights.

        Args:
            image_width: Channels of the image.
            width: Channels C of the result.
            text_width: Channels of the words; None for C.
            heads: Attention heads.
        """
        super().__init__()
        self.vis_project = nn.Sequential(PointwiseConv1d(image_width, width), nn.GELU())
        self.image_lang_att = _ImageLanguageAttention(
            image_width, width, text_width or width, heads
        )
        self.project_mm = nn.Sequential(PointwiseConv1d(width, width), nn.GELU())

    def project_image(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """tokens [B, P, image_width] -> (values, queries), both [B, P, width]."""
        return self.vis_project(tokens), self.image_lang_att.f_query(tokens)

    def mix(self, values: Tensor, queries: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        """Mixes projected image positions with the words of an expression each.

        Args:
            values: [N, P, C], of `project_image`.
            queries: [N, P, C], of `project_image`.
            text: The words, [N, T, text_width].
            mask: [N, T], 1 for real tokens, 0 for padding.

        Returns:
            The fused tokens, [N, P, C].
        """
        return self.project_mm(values * self.image_lang_att(queries, text, mask))

    def fuse(self, values: Tensor, queries: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        """`mix` of a square grid of g*g positions, as a map.

        Args:
            values: As of `mix`; P is g*g.
            queries: As of `mix`.
            text: As of `mix`.
            mask: As of `mix`.

        Returns:
            The fused map, [N, C, g, g].
        """
        fused = self.mix(values, queries, text, mask)
        grid = int(fused.shape[1] ** 0.5)
        return fused.transpose(1, 2).unflatten(2, (grid, grid))

    def forward(self, tokens: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        return self.fuse(*self.project_image(tokens), text, mask)
