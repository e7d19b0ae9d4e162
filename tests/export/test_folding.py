"""Layers folded into their neighbours do what both did."""

from __future__ import annotations

import torch
from torch import nn

from ris.export.families.folding import conv_with_norm, linear_behind_norm, plain


def drawn(module: nn.Module) -> nn.Module:
    """The module in eval mode, its numbers drawn; variances are positive."""
    generator = torch.Generator().manual_seed(0)
    for name, value in module.state_dict().items():
        if value.dtype == torch.float32:
            value.normal_(generator=generator)
            if name.endswith("running_var"):
                value.abs_().add_(0.1)
    return module.eval()


@torch.no_grad()
def test_a_batch_norm_goes_into_its_convolution():
    for bias in (True, False):
        conv = drawn(nn.Conv2d(3, 5, 3, padding=1, bias=bias))
        norm = drawn(nn.BatchNorm2d(5))
        before = conv.weight.clone()
        image = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(
            conv_with_norm(conv, norm)(image), norm(conv(image)), rtol=1e-5, atol=1e-5
        )
        assert torch.equal(conv.weight, before)


@torch.no_grad()
def test_a_layer_norms_affine_part_goes_into_the_linear_layer_behind():
    for bias in (True, False):
        norm, linear = drawn(nn.LayerNorm(6)), drawn(nn.Linear(6, 4, bias=bias))
        given = torch.randn(2, 7, 6, generator=torch.Generator().manual_seed(1))
        got = linear_behind_norm(norm, linear)(plain(norm)(given))
        torch.testing.assert_close(got, linear(norm(given)), rtol=1e-5, atol=1e-5)
