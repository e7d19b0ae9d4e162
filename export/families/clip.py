"""CLIP's image encoder in the form that exports well."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _ClipBlock(nn.Module):
    """One residual block of CLIP.

    The first `skip` tokens are keys and values only: in the last block, nothing reads what comes
    out at the class token.
    """

    def __init__(self, block: Any, skip: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = block.ln_1, block.ln_2
        self.c_fc, self.c_proj = block.mlp.c_fc, block.mlp.c_proj
        self.attn: Any = block.attn
        self.skip = skip

    def forward(self, x: Tensor) -> Tensor:
        heads, width = self.attn.num_heads, self.attn.embed_dim
        depth = width // heads
        normed = self.ln_1(x)
        qkv = F.linear(normed, self.attn.in_proj_weight, self.attn.in_proj_bias)
        q, k, v = qkv.unflatten(2, (3, heads, depth)).permute(2, 0, 3, 1, 4)
        if self.skip:
            q, x = q[:, :, self.skip :], x[:, self.skip :]
        weights = ((q * depth**-0.5) @ k.transpose(2, 3)).softmax(-1)
        x = x + self.attn.out_proj((weights @ v).transpose(1, 2).flatten(2))
        hidden = self.c_fc(self.ln_2(x))
        return x + self.c_proj(hidden * torch.sigmoid(1.702 * hidden))


class ClipImageEncoder(nn.Module):
    """`image` [B, 3, c, c] -> the patch tokens behind the last block, [B, g*g, width].

    The class token is left out, and the norm behind the blocks.
    """

    def __init__(self, visual: Any) -> None:
        """Takes the layers of an image tower as open_clip has it."""
        super().__init__()
        self.conv1, self.ln_pre = visual.conv1, visual.ln_pre
        class_token = visual.class_embedding + visual.positional_embedding[0]
        self.class_token = nn.Buffer(class_token[None, None])
        self.positions = nn.Buffer(visual.positional_embedding[1:].clone())
        blocks = list(visual.transformer.resblocks)
        self.blocks = nn.ModuleList(_ClipBlock(b, skip=1 if b is blocks[-1] else 0) for b in blocks)

    def forward(self, image: Tensor) -> Tensor:
        patches = self.conv1(image).flatten(2).transpose(1, 2) + self.positions
        x = self.ln_pre(torch.cat([self.class_token.expand(patches.shape[0], -1, -1), patches], 1))
        for block in self.blocks:
            x = block(x)
        return x
