"""Each module of CGFormer on its own against the golden files."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from conftest import GOLDEN
from golden import inputs as pictures
from golden.cgformer import inputs
from golden_files import GoldenFile, tensor
from golden_files import filled as filled_by
from ris.reference.cgformer.config import PRESETS
from ris.reference.cgformer.deterministic import make_tensor
from ris.reference.cgformer.fusing import Fuse
from ris.reference.cgformer.mask_head import MaskHead, without_padding
from ris.reference.cgformer.model import mixing
from ris.reference.cgformer.tokens import Grouping, WordedTokenLayer, share_out
from ris.reference.cgformer.values import prepare
from ris.reference.layers.worded_swin import Stage
from ris.reference.preprocess import resize_probability, resize_to_square

CONFIG = PRESETS["cgformer"]
ACCEPT = 1e-4


def filled(module: nn.Module, prefix: str) -> nn.Module:
    """The module with the golden weights of the keys below `prefix`."""
    return filled_by(module, prefix, make_tensor)


@pytest.fixture
def golden(request):
    file = GoldenFile(GOLDEN / "cgformer" / f"module_{request.param}.npz")
    with torch.no_grad():
        yield file
    file.finish()


def golden_file(name: str):
    return pytest.mark.parametrize("golden", [name], indirect=True, ids=[name])


def positions(level: int) -> torch.Tensor:
    key = f"decoder.layers.{level}.positional_embedding"
    return torch.from_numpy(make_tensor(key, (CONFIG.places()[level], CONFIG.width)))


def layer(level: int) -> WordedTokenLayer:
    made = WordedTokenLayer(CONFIG.width, 1, CONFIG.mlp_width, CONFIG.bert.width)
    return filled(made, f"decoder.layers.{level}.")


def block(number: int) -> Grouping:
    return filled(Grouping(CONFIG.width, CONFIG.mlp_width), f"decoder.cgattention{number}.")


@golden_file("pwam")
def test_pwam_and_gate(golden):
    text, mask = tensor("cgformer.pwam.text", (1, 20, 768)), torch.from_numpy(inputs.word_mask(7))
    for index in (0, 2, 3):
        with torch.device("meta"):
            stage = Stage(CONFIG.swin, CONFIG.image_size, index, mixing(CONFIG))
        prefix, width = f"backbone.layers.{index}.", CONFIG.swin.widths()[index]
        pwam = filled(stage.words.to_empty(device="cpu"), f"{prefix}pwam_fusion.")
        tokens = tensor(f"cgformer.pwam.stage{index}", (1, stage.side**2, width))
        values, queries = pwam.project_image(tokens)
        language = pwam.image_lang_att(queries, text, mask)
        golden.compare(f"stage{index}_language", language, ACCEPT)
        fused = pwam.mix(values, queries, text, mask)
        golden.compare(f"stage{index}_fused", fused, ACCEPT)
        if index < 3:
            filled(stage.share.to_empty(device="cpu"), f"{prefix}pwam_gate.")
            golden.compare(f"stage{index}_gate", stage.share(fused), ACCEPT)
            golden.compare(f"stage{index}_gated", stage.gated(tokens, fused), ACCEPT)


@golden_file("fuse")
def test_fused_maps(golden):
    sizes = (
        ((1024, 15), (512, 30)),
        ((512, 30), (256, 60)),
        ((512, 60), (128, 120)),
    )
    for level, ((narrow, low), (wide, high)) in enumerate(sizes):
        small = tensor(f"cgformer.fuse{level}.small", (1, narrow, low, low))
        large = tensor(f"cgformer.fuse{level}.large", (1, wide, high, high))
        fuse = filled(Fuse(narrow + wide, CONFIG.width), f"decoder.fuses.{level}.")
        resized = fuse.resize(small, large)
        if level == 0:
            golden.compare("upsampled_0", resized, ACCEPT)
        first = fuse.fusion[:3](torch.cat([resized, large], 1))
        golden.compare(f"first_{level}", first, ACCEPT)
        golden.compare(f"fused_{level}", fuse(small, large), ACCEPT)


@golden_file("load")
def test_tokens_read_the_words(golden):
    text, mask = tensor("cgformer.load.text", (1, 20, 768)), torch.from_numpy(inputs.word_mask(7))
    for level in (1, 2):
        own, tokens = layer(level), tensor(f"cgformer.load{level}.tokens", (1, 2, 512))
        worded = own.loadtoken(tokens, text, mask)
        assert torch.equal(worded[:, 0], tokens[:, 0])
        golden.compare(f"worded_{level}", worded, ACCEPT)
        golden.compare(f"loaded_{level}", own.replace(worded), ACCEPT)


@golden_file("group")
def test_grouping(golden):
    for level, side in ((0, 30), (1, 60)):
        name, own = f"level{level}", block(level + 1)
        common = tensor(f"cgformer.group{level}.common", (1, 512, 1, 1))
        feature = F.relu(tensor(f"cgformer.group{level}.map", (1, 512, side, side)) + common)
        tokens = tensor(f"cgformer.group{level}.tokens", (1, 2, 512))
        places = own.normed(feature, positions(level))
        golden.compare(f"{name}_normed", places, ACCEPT)
        golden.compare(f"{name}_cosines", own.cosines(tokens, places), ACCEPT)
        tau = make_tensor(f"decoder.cgattention{level + 1}.tau", (1,))
        # what the authors' code divides by, before it takes the largest
        golden.compare(f"{name}_tau", torch.from_numpy(np.exp(np.minimum(tau, 0))), 1e-6)

        noise = {form: golden.take(f"{name}_{form}") for form in ("noise", "empty_noise")}
        given = {
            "noise": noise["noise"][:, 1] - noise["noise"][:, 0],
            "empty": noise["empty_noise"][:, 1] - noise["empty_noise"][:, 0],
            "zero": np.zeros((1, side * side), np.float32),
            "expected": None,
        }
        for form, more in given.items():
            part = None if more is None else torch.from_numpy(more)
            found = own(tokens, feature, positions(level), part)
            golden.compare(f"{name}_{form}_grouped", found.read, ACCEPT)
            golden.compare(f"{name}_{form}_tokens", found.tokens, ACCEPT)
            if form != "expected":
                second = golden.bits(f"{name}_{form}_second_bits", (side * side,))
                np.testing.assert_array_equal(found.shares[0, 1].bool(), second)
                golden.equal(f"{name}_{form}_count", int(found.shares[:, 1].sum()))
        assert second.sum() < side * side  # of "zero", where neither token has all places


def test_a_tie_goes_to_the_first_token():
    cosines = torch.tensor([[[0.5, 0.5, 0.25], [0.5, 0.75, 0.5]]])
    assert share_out(cosines, torch.zeros(1, 3)).tolist() == [[[1, 0, 0], [0, 1, 1]]]
    shifted = share_out(cosines, torch.tensor([[0.5, -0.25, -0.5]]))
    assert shifted.tolist() == [[[0, 1, 1], [1, 0, 0]]]
    mean = share_out(cosines, None)
    torch.testing.assert_close(mean, cosines.softmax(1))


@pytest.mark.parametrize("folded", [True, False])
@golden_file("head")
def test_mask_head(golden, folded):
    head = filled(MaskHead(CONFIG.width), "decoder.proj.")
    head.folded = folded
    feature = F.relu(tensor("cgformer.head.map", (2, 512, 12, 20)))
    kernel = head.kernel(tensor("cgformer.head.token", (2, 512)))
    golden.compare("kernel", kernel, ACCEPT)
    twice = head.twice(feature)
    golden.compare("twice", twice, ACCEPT)
    four_times = head.four_times(twice)
    golden.compare("four_times", four_times, ACCEPT)
    golden.compare("features", head.features(four_times), ACCEPT)
    golden.compare("logits", head.padded_logits(four_times, kernel), ACCEPT)
    answer = head(feature, kernel)
    golden.compare("answer", answer, ACCEPT)
    ring = torch.cat([answer[..., (0, -1), :].flatten(2), answer[..., (0, -1)].flatten(2)], 2)
    assert torch.equal(ring, kernel[:, None, -1:].expand_as(ring))


@golden_file("small_inputs")
def test_small_inputs(golden):
    """What a wrong eps of any norm changes by much."""

    def small(name, shape):
        return tensor(f"cgformer.small.{name}", shape, scale=0.005)

    tokens, text, own = small("tokens", (1, 2, 512)), small("text", (1, 20, 768)), layer(1)
    worded = own.loadtoken(tokens, text, torch.from_numpy(inputs.word_mask(7)))
    golden.compare("worded", worded, ACCEPT)
    golden.compare("loaded", own.replace(worded), ACCEPT)
    grouping, feature = block(1), small("map", (1, 512, 30, 30))
    found = grouping(tokens, feature, None, None)
    golden.compare("normed", grouping.normed(feature, None), ACCEPT)
    golden.compare("cosines", found.cosines, ACCEPT)
    golden.compare("tokens", found.tokens, ACCEPT)


class Sized:
    """What `prepare` needs of a model."""

    config = CONFIG


@golden_file("process")
def test_pictures_and_answers(golden):
    sizes = {
        "landscape": (375, 500),
        "portrait": (640, 427),
        "small": (200, 150),
        "square": (480, 480),
    }
    for name, size in sizes.items():
        picture = pictures.image(2, *size)
        resized = resize_to_square(picture, CONFIG.image_size)
        golden.compare(f"{name}_resized", torch.from_numpy(resized.copy()), 0)
        golden.compare(f"{name}_image_input", prepare(Sized, picture)["image"], 1e-6)

        logits = tensor(f"cgformer.post.{name}", (1, 1, 60, 60), scale=3.0)
        padded = F.interpolate(logits, size=(482, 482), mode="bicubic", align_corners=False)
        logits = without_padding(padded)
        golden.compare(f"{name}_mask_logits", logits, ACCEPT)
        probability = resize_probability(logits, *size)
        golden.compare_absolute(f"{name}_probability", probability, 1e-4)
        bits = golden.bits(f"{name}_mask_bits", size)
        assert ((probability[0, 0] > 0.5).numpy() != bits).sum() <= 20
        golden.equal(f"{name}_mask_pixels", int(bits.sum()))
    assert zlib.crc32(pictures.image(2, 375, 500).tobytes()) == 408784949
