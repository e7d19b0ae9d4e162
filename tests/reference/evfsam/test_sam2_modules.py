"""SAM 2's modules against the golden files of each."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from evfsam_helper import made, part

from conftest import GOLDEN
from golden_files import GoldenFile, tensor
from ris.reference.evfsam.config import PRESETS
from ris.reference.evfsam.hiera import Hiera, cut, halved, join
from ris.reference.evfsam.hiera_sizes import HieraSizes
from ris.reference.evfsam.sam2_decoder import ImageMaps, Sam2

ACCEPT = 1e-4
ENCODER = "visual_model.image_encoder"
TINY = PRESETS["tiny-evfsam2"].hiera
SHAPES = {
    0: (1, 32, 32, 144),
    2: (1, 32, 32, 144),
    8: (1, 32, 32, 288),
    23: (1, 16, 16, 576),
    44: (1, 32, 32, 576),
}
"""The inputs of the golden blocks: windowed, growing (three), global."""


@torch.no_grad()
def test_hiera_and_its_neck():
    golden = GoldenFile(GOLDEN / "evfsam" / "module_hiera.npz")
    for index, shape in SHAPES.items():
        block = part("2", f"{ENCODER}.trunk.blocks.{index}")
        golden.compare(f"block{index}", block(tensor(f"hiera.in{index}", shape)), ACCEPT)

    trunk = Hiera(HieraSizes(depths=(1, 1, 1, 1), global_blocks=()))
    for table in ("pos_embed", "pos_embed_window"):
        own = getattr(trunk, table)
        own.data = made(f"{ENCODER}.trunk.{table}", own.shape)
    golden.compare("positions", trunk.positions(), ACCEPT)

    shapes = [(1, 144 << stage, 256 >> stage, 256 >> stage) for stage in range(4)]
    maps = [tensor(f"hiera.s{stage}", shape) for stage, shape in enumerate(shapes)]
    finest, fine, coarse = part("2", f"{ENCODER}.neck")([x.permute(0, 2, 3, 1) for x in maps])
    golden.compare("fpn_2", coarse, ACCEPT)
    for name, map_ in (("0", finest), ("1", fine)):
        convolve = part("2", f"visual_model.sam_mask_decoder.conv_s{name}")
        golden.compare(f"high_res_{name}", convolve(map_), ACCEPT)
    golden.finish()


@torch.no_grad()
def test_the_mask_decoder_takes_the_best_of_three():
    golden = GoldenFile(GOLDEN / "evfsam" / "module_sam2_mask_decoder.npz")
    with torch.device("meta"):
        sam2 = Sam2(HieraSizes(), 256, 8, 2048)
    for path in ("sam_mask_decoder", "sam_prompt_encoder"):
        setattr(sam2, path, part("2", f"visual_model.{path}"))
    maps = (
        tensor("maskdec2.image", (1, 256, 64, 64)),
        tensor("maskdec2.s1", (1, 64, 128, 128), 0.7),
        tensor("maskdec2.s0", (1, 32, 256, 256), 0.7),
    )
    prompts = tensor("maskdec2.sparse", (40, 1, 256), 2.0)[[9, 21, 23, 29]]
    out = sam2.decode(ImageMaps(*(one.expand(4, -1, -1, -1) for one in maps)), prompts)

    golden.compare("tokens", out.tokens[:1], ACCEPT)
    golden.compare("image_tokens", out.image_tokens[:1], ACCEPT)
    golden.compare("masks", out.masks[:1], ACCEPT)
    golden.compare("iou_predictions", out.iou_predictions, ACCEPT)
    golden.equal("best", out.best)
    golden.compare("low_res_logits", out.mask_logits, ACCEPT)
    golden.finish()


def test_windows_of_each_block():
    """The first block of a stage has the window of the stage before."""
    sizes = HieraSizes()
    assert [sizes.window_of(i) for i in (0, 1, 2, 3, 8, 9, 23, 33, 43, 44, 45, 47)] == [
        *(8, 8, 8, 4, 4, 16, 0, 0, 0, 16, 8, 8)
    ]
    assert sizes.ends() == (1, 7, 43, 47)
    assert sizes.widths() == (144, 288, 576, 1152)
    assert sizes.sides() == (256, 128, 64, 32)


@torch.no_grad()
def test_windows_are_cut_row_by_row():
    places = torch.arange(64.0).reshape(1, 8, 8, 1)
    windows = cut(places, 4)
    assert windows.shape == (4, 4, 4, 1)
    assert windows[1, 0, :, 0].tolist() == [4, 5, 6, 7]
    torch.testing.assert_close(join(windows, 8), places)
    assert halved(places)[0, 0, :, 0].tolist() == [9, 11, 13, 15]


@torch.no_grad()
def test_a_window_sees_nothing_of_another():
    trunk = Hiera(TINY).eval()
    x = torch.randn(1, 64, 64, TINY.width, generator=torch.Generator().manual_seed(0))
    changed = x.clone()
    changed[:, 8:] += 1.0  # another row of windows
    block = trunk.blocks[0]
    torch.testing.assert_close(block(changed)[:, :8], block(x)[:, :8])


@pytest.mark.parametrize("windows", [(8, 4, 16, 0), (8, 4, 6, 8), (8, 4, 32, 8)])
def test_windows_that_do_not_fit_are_refused(windows):
    wrong = next(w for w, usual in zip(windows, TINY.windows, strict=True) if w != usual)
    with pytest.raises(ValueError, match=re.escape(f"a window of {wrong} is no power of two")):
        HieraSizes(image_size=256, windows=windows)


def test_positions_are_a_map_and_windows():
    trunk = Hiera(TINY)
    trunk.pos_embed_window.data = torch.arange(64.0).reshape(1, 1, 8, 8).expand(1, 16, -1, -1)
    positions = trunk.positions().detach().numpy()
    assert positions.shape == (1, 64, 64, 16)
    np.testing.assert_array_equal(positions[:, :8, :8], positions[:, 56:, 24:32])
