"""PWAM, the pixel-word attention that mixes CLIP patches with words (docs/reference/models/dfam.md
6).
"""

from __future__ import annotations

from torch import Tensor, nn

from ris.reference.layers import InstanceNorm, PointwiseConv1d


class _ImageLanguageAttention(nn.Module):
    def __init__(self, image_width: int, width: int) -> None:
        super().__init__()
        self.f_query = nn.Sequential(PointwiseConv1d(image_width, width), InstanceNorm())
        self.f_key = nn.Sequential(PointwiseConv1d(width, width))
        self.f_value = nn.Sequential(PointwiseConv1d(width, width))
        self.W = nn.Sequential(PointwiseConv1d(width, width), InstanceNorm())

    def forward(self, query: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        mask = mask[..., None]
        key = self.f_key(text) * mask
        value = self.f_value(text) * mask
        logits = query @ key.transpose(1, 2) * key.shape[-1] ** -0.5 + 10000.0 * (
            mask.transpose(1, 2) - 1.0
        )
        return self.W(logits.softmax(-1) @ value)


class PWAM(nn.Module):
    """One head of attention from image positions to words.

    `project_image` depends on the image alone, `fuse` on an image and an expression; `forward` is
    both.
    """

    def __init__(self, image_width: int, width: int) -> None:
        super().__init__()
        self.vis_project = nn.Sequential(PointwiseConv1d(image_width, width), nn.GELU())
        self.image_lang_att = _ImageLanguageAttention(image_width, width)
        self.project_mm = nn.Sequential(PointwiseConv1d(width, width), nn.GELU())

    def project_image(self, clip_tokens: Tensor) -> tuple[Tensor, Tensor]:
        """clip_tokens [B, P, image_width] -> (values, queries), both [B, P, width]."""
        return self.vis_project(clip_tokens), self.image_lang_att.f_query(clip_tokens)

    def fuse(self, values: Tensor, queries: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        """values and queries [N, P, C], text [N, T, C], mask [N, T] (1 real, 0 padding) -> [N, C,
        g, g].
        """
        fused = self.project_mm(values * self.image_lang_att(queries, text, mask))
        grid = int(fused.shape[1] ** 0.5)
        return fused.transpose(1, 2).unflatten(2, (grid, grid))

    def forward(self, clip_tokens: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        return self.fuse(*self.project_image(clip_tokens), text, mask)


class PWAMAdaptor(nn.Module):
    """Holds the PWAM under the checkpoint's name, `adaptor_clip.fusion`."""

    def __init__(self, image_width: int, width: int) -> None:
        super().__init__()
        self.fusion = PWAM(image_width, width)
