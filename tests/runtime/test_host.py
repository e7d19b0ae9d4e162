"""What the host does for a bundle: images in squares, texts, and resizes between stages."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from conftest import GOLDEN
from golden import inputs
from golden.lisa.inputs import SIZES
from ris.engines.errors import ImageError
from ris.reference.dfam.config import PRESETS
from ris.reference.dfam.preprocess import CLIP_MEAN, CLIP_STD, SAM_MEAN, SAM_STD
from ris.reference.dfam.preprocess import prepare_image as reference_prepare
from ris.runtime.bundle import open_bundle
from ris.runtime.host import HostSide, prepare_images
from ris.runtime.letterbox import covering_size, letterbox_size
from ris.runtime.manifest import PICTURE, HostImage

LARGE = HostImage(PICTURE, "square", 256, "bilinear", True, 255, SAM_MEAN, SAM_STD)
SMALL = HostImage("large", "square", 84, "bicubic", False, 1, CLIP_MEAN, CLIP_STD)


def noise(height, width):
    return np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (1024, 1024), (256, 256), (3, 2)])
def test_any_size_is_prepared_as_the_reference_does(size):
    images = prepare_images(noise(*size), {"large": LARGE, "small": SMALL})
    want, want_small = reference_prepare(noise(*size), PRESETS["tiny"])
    np.testing.assert_array_equal(images["large"], want.numpy())
    np.testing.assert_allclose(images["small"], want_small.numpy(), atol=2e-5)


@pytest.mark.parametrize("number", range(4))
def test_a_letterbox_is_the_authors(number):
    golden = np.load(GOLDEN / "evfsam" / "module_preprocess.npz")
    size = tuple(int(n) for n in golden[f"size_{number}"])
    box = replace(LARGE, fit="letterbox", size=1024)
    height, width = letterbox_size(*size, 1024)
    assert [height, width] == golden[f"resize_shape_{number}"].tolist()
    rgb = inputs.image(0, *size)
    image = prepare_images(rgb, {"box": box})["box"]
    assert inputs.compare(golden, f"sam_input_{number}", image)["max"] < 1e-6
    assert not image[:, :, height:].any()
    assert not image[..., width:].any()


@pytest.mark.parametrize("number", range(4))
def test_a_cropped_middle_is_the_authors(number):
    golden = np.load(GOLDEN / "lisa" / "module_preprocess.npz")
    crop = HostImage(PICTURE, "crop", 224, "bicubic", True, 1, CLIP_MEAN, CLIP_STD)
    rgb = inputs.image(0, *SIZES[number])
    for pixels in (rgb, Image.fromarray(rgb)):
        image = prepare_images(pixels, {"crop": crop})["crop"]
        assert inputs.compare(golden, f"clip_input_{number}", image)["max"] < 1e-6


def test_a_cropped_middle_rounds_down_and_has_an_end():
    assert covering_size(480, 640, 224) == (224, 298)
    assert covering_size(640, 480, 224) == (298, 224)
    assert covering_size(3, 3, 224) == (224, 224)
    assert covering_size(1, 100, 224) == (224, 22400)
    with pytest.raises(ImageError) as caught:
        covering_size(1, 101, 224)
    assert str(caught.value) == (
        "the picture has 101x1 pixels; this model takes none that is more than 100 times as long"
        " as it is wide"
    )


@pytest.mark.parametrize("number", range(4))
def test_a_square_without_antialiasing_is_the_authors(number):
    """Straight from the picture, whatever its size."""
    golden = np.load(GOLDEN / "evfsam" / "module_preprocess.npz")
    half = (0.5, 0.5, 0.5)
    image = HostImage(PICTURE, "square", 224, "bicubic", False, 1, half, half)
    rgb = inputs.image(0, *(int(n) for n in golden[f"size_{number}"]))
    for pixels in (rgb, Image.fromarray(rgb)):
        found = prepare_images(pixels, {"small": image})["small"]
        off = inputs.compare(golden, f"beit_input_{number}", found)
        assert off["max"] < 1e-3
        assert off["p99"] < 2e-4


def test_a_letterbox_of_a_picture_that_was_decoded_smaller_is_of_its_own_size():
    box = replace(LARGE, fit="letterbox")
    assert letterbox_size(801, 1600, 256) == (128, 256)
    assert letterbox_size(401, 800, 256) == (128, 256)
    assert letterbox_size(803, 1600, 256) == (128, 256)
    image = prepare_images(noise(101, 200), {"box": box}, (803, 1600))["box"]
    assert image[0, 0, 127].any()
    assert not image[0, 0, 128:].any()
    assert letterbox_size(1, 5000, 256) == (1, 256)


def test_an_image_does_not_depend_on_the_others():
    """Nor on their order: one may be made of another that comes later."""
    rgb = noise(70, 90)
    half = replace(LARGE, size=128, levels=1, mean=CLIP_MEAN, std=CLIP_STD)
    images = prepare_images(rgb, {"small": SMALL, "half": half, "large": LARGE})
    assert {name: image.shape for name, image in images.items()} == {
        "small": (1, 3, 84, 84),
        "half": (1, 3, 128, 128),
        "large": (1, 3, 256, 256),
    }
    for name, alone in (("large", {"large": LARGE}), ("half", {"half": half})):
        np.testing.assert_array_equal(images[name], prepare_images(rgb, alone)[name])
    both = prepare_images(rgb, {"large": LARGE, "small": SMALL})
    np.testing.assert_array_equal(images["small"], both["small"])


@pytest.mark.parametrize("levels", [1, 255])
def test_levels_say_what_white_is(levels):
    """torchvision's ToTensor and Normalize, or the levels as they are."""
    rgb = noise(40, 60)
    found = prepare_images(rgb, {"a": replace(LARGE, size=32, levels=levels)})["a"]
    square = np.asarray(Image.fromarray(rgb).resize((32, 32), Image.Resampling.BILINEAR))
    want = torch.tensor(square, dtype=torch.float32).permute(2, 0, 1) / (255 / levels)
    want = (want - torch.tensor(SAM_MEAN)[:, None, None]) / torch.tensor(SAM_STD)[:, None, None]
    np.testing.assert_allclose(found[0], want.numpy(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["bilinear", "bicubic"])
def test_an_image_of_an_image_is_torchs_interpolate(kind):
    wanted = replace(SMALL, filter=kind, levels=255, size=50)
    found = prepare_images(noise(256, 256), {"large": LARGE, "small": wanted})["small"]
    levels = torch.tensor(noise(256, 256), dtype=torch.float32).permute(2, 0, 1)[None]
    want = functional.interpolate(levels, size=(50, 50), mode=kind, align_corners=False)
    mean, std = (torch.tensor(values)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))
    want = (want - mean) / std
    np.testing.assert_allclose(found, want.numpy(), rtol=1e-4, atol=1e-3)


def test_texts_of_another_padding(tiny_bundle):
    """`pad_id` fills a row, and is what the mask calls padding."""
    bundle = open_bundle(tiny_bundle, verify=False)
    host = bundle.manifest.host
    usual = HostSide(bundle)
    tokens = usual.tokenize(["left man"])
    words = int(tokens.mask.sum())

    other = replace(host, text=replace(host.text, pad_id=7, mask=None), image_index=None)
    changed = HostSide(replace(bundle, manifest=replace(bundle.manifest, host=other)))
    padded = changed.tokenize(["left man"])
    np.testing.assert_array_equal(padded.ids[:, :words], tokens.ids[:, :words])
    assert (padded.ids[:, words:] == 7).all()
    np.testing.assert_array_equal(padded.mask, tokens.mask)
    assert set(changed.texts(padded)) == {host.text.ids}
    assert set(usual.texts(tokens)) == {host.text.ids, host.text.mask, host.image_index}


def test_a_resized_value_has_its_own_name(made_up_bundle):
    host = HostSide(open_bundle(made_up_bundle, verify=False))
    if made_up_bundle.name == "whole":
        assert host.steps("everything", {}) == {}
        return
    maps = np.random.default_rng(0).normal(size=(2, 4, 4, 4)).astype(np.float32)
    spent = {}
    [(output, step)] = host.steps("find", spent).items()
    assert output == "rough"
    found = host.renamed("find", {"rough": step(maps)})
    assert set(found) == set(spent) == {"fine"}
    want = functional.interpolate(torch.tensor(maps), size=(8, 8), mode="bilinear")
    np.testing.assert_allclose(found["fine"], want.numpy(), atol=1e-6)
    np.testing.assert_array_equal(host.resized("find", {"rough": maps})["fine"], found["fine"])
    assert host.resized("read", {"words": maps}) == {}
