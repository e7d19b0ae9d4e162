"""The full-size model against the end-to-end golden file: every stage, three assignments."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from conftest import GOLDEN
from golden import inputs
from golden.cgformer.inputs import tokens
from golden_files import GoldenFile, Seen
from ris.export.families.cgformer.modules import GroupPlaces, MaskHead, Pyramid
from ris.reference.cgformer.config import PRESETS
from ris.reference.cgformer.deterministic import deterministic_model
from ris.reference.cgformer.mask_head import without_padding
from ris.reference.cgformer.values import prepare
from ris.reference.layers.worded_swin import MAPS
from ris.reference.preprocess import resize_probability, resize_to_square

# what to accept of the maximum and of the 99th percentile, in standard deviations of the stage
PLAIN = (1e-4, np.inf)
# PWAM's instance norms take away means that are large beside what they leave
MIXED = (1e-3, 2e-4)
BLOCKS = (3e-4, 1e-4)
MAPS_OF = (1e-3, 3e-4)
LOGITS = (1e-3, np.inf)
DIFFERENT_PIXELS = 50
SIZE = (480, 640)


@pytest.fixture(scope="module")
def golden():
    return GoldenFile(GOLDEN / "cgformer" / "e2e_seed0.npz")


@pytest.fixture(scope="module")
def model():
    return deterministic_model(PRESETS["cgformer"])


def accepted(name: str) -> tuple[float, float]:
    """What to accept of a step of the backbone."""
    if name in ("patch_embed", "stage0_blocks"):
        return PLAIN
    return BLOCKS if name.endswith(("_blocks", "_down")) else MIXED


@torch.no_grad()
def test_every_stage(golden, model):
    seen = Seen()
    seen.backbone(model.backbone)
    picture = inputs.image(0)
    golden.equal("picture_size", picture.shape[:2])
    golden.compare("resized", torch.from_numpy(resize_to_square(picture, 480).copy()), 0)
    image = prepare(model, picture)["image"]
    golden.compare("image_input", image, 1e-6)
    stem = model.backbone.stem(image)
    patches = seen.pop("patch_embed").transpose(1, 2).unflatten(2, (120, 120))
    golden.compare("patch_embed", patches, *PLAIN)
    golden.compare("stage0_blocks", seen.pop("stage0_blocks"), *PLAIN)
    golden.compare("stage0_vis", stem.values.transpose(1, 2), *PLAIN)
    golden.compare("stage0_query", stem.queries.transpose(1, 2), *PLAIN)

    for name in ("a", "b"):
        ids, mask = tokens(name)
        golden.equal(f"{name}_input_ids", ids)
        golden.equal(f"{name}_text_mask", mask)
        text = model.encode_words(torch.from_numpy(ids))
        golden.compare(f"{name}_text", text, *PLAIN)
        maps = model.backbone(stem, text, torch.from_numpy(mask).float())
        for step, value in seen.items():
            if not step.endswith("_gated"):
                golden.compare(f"{name}_{step}", value, *accepted(step))
        for res, value in zip(MAPS, maps, strict=True):
            golden.compare(f"{name}_{res}", value, *MIXED)
        fused = model.decoder.fuse(maps)
        for ways in (fused, Pyramid(model.decoder)(*maps)):
            for level, value in enumerate(ways):
                golden.compare(f"{name}_fused_{level}", value, *MAPS_OF)
        kernels = check_tokens(golden, model, name, fused, text, torch.from_numpy(mask).float())
        check_masks(golden, model, name, fused[-1], kernels)
    golden.finish()


def check_tokens(golden, model, name, fused, text, mask) -> dict[str, torch.Tensor]:
    """Every step of the tokens with the given noise; the kernels of the three forms, those of the
    module that is exported, too.
    """
    gumbel = [golden.take(f"{name}_noise_{level}") for level in range(3)]
    noise = torch.from_numpy(np.concatenate([g[:, 1] - g[:, 0] for g in gumbel], 1))
    out = model.decoder.group(fused, text, mask, noise)
    for level, (worded, loaded) in enumerate(zip(out.worded, out.loaded, strict=True), 1):
        golden.compare(f"{name}_worded_{level}", worded, *PLAIN)
        golden.compare(f"{name}_loaded_{level}", loaded, *PLAIN)
    for level, found in enumerate(out.levels):
        golden.compare(f"{name}_cosines_{level}", found.cosines, *MAPS_OF)
        second = found.shares[0, 1].bool().numpy()
        bits = golden.bits(f"{name}_second_{level}_bits", second.shape)
        np.testing.assert_array_equal(second, bits)
        golden.equal(f"{name}_second_{level}_count", int(second.sum()))
        golden.compare(f"{name}_grouped_{level}", found.read, *PLAIN)
        golden.compare(f"{name}_tokens_{level}", found.tokens, *PLAIN)
    given = {"": noise, "zero_": torch.zeros_like(noise), "expected_": None}
    exported = GroupPlaces(model.decoder)
    kernels = {}
    for form, numbers in given.items():
        kernels[form] = model.decoder.group(fused, text, mask, numbers).kernel
        golden.compare(f"{name}_{form}kernel", kernels[form], *PLAIN)
        golden.compare(f"{name}_{form}kernel", exported(*fused, text, mask, numbers), *PLAIN)
    return kernels


def check_masks(golden, model, name, finest, kernels) -> None:
    """The mask head, its last layer folded into the kernel and as it is, and the answers."""
    head = model.decoder.mask_head
    twice = head.twice(finest)
    golden.compare(f"{name}_head_240", twice, *MAPS_OF)
    four_times = head.four_times(twice)
    golden.compare(f"{name}_head_480", four_times, *MAPS_OF)
    features = head.features(four_times)
    golden.compare(f"{name}_head_features", features, *MAPS_OF)
    weights, bias = kernels[""][:, None, :-1], kernels[""][0, -1]
    plain = F.pad((weights @ features.flatten(2)).unflatten(2, (480, 480)), (1, 1, 1, 1)) + bias
    golden.compare(f"{name}_logits_482", plain, *LOGITS)
    del features
    exported = MaskHead(model.decoder)(finest, kernels[""])
    golden.compare(f"{name}_mask_logits", exported, *LOGITS)

    for form, kernel in kernels.items():
        padded = head.padded_logits(four_times, kernel)
        if not form:
            golden.compare(f"{name}_logits_482", padded, *LOGITS)
        logits = without_padding(padded)
        golden.compare(f"{name}_{form}mask_logits", logits, *LOGITS)
        probability = resize_probability(logits, *SIZE)
        if not form:
            golden.compare_absolute(f"{name}_probability", probability, 1e-3)
        bits = golden.bits(f"{name}_{form}mask_bits", SIZE)
        assert ((probability[0, 0] > 0.5).numpy() != bits).sum() <= DIFFERENT_PIXELS
        golden.equal(f"{name}_{form}mask_pixels", int(bits.sum()))
