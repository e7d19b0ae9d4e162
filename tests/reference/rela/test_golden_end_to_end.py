"""The full-size models against the end-to-end golden files, every stage, Swin-B and Swin-T."""

from __future__ import annotations

import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch

from conftest import GOLDEN
from golden import inputs
from golden.rela.inputs import tokens
from golden_files import GoldenFile, Seen
from ris.reference.layers.worded_swin import MAPS
from ris.reference.preprocess import resize_logits, resize_to_square
from ris.reference.rela.config import PRESETS
from ris.reference.rela.deterministic import deterministic_model
from ris.reference.rela.values import prepare

# what to accept of the maximum and of the 99th percentile, in standard deviations of the stage
PLAIN = (1e-4, np.inf)
# PWAM's instance norms take away means that are large beside what they leave
MIXED = (1e-3, 2e-4)
BLOCKS = (3e-4, 1e-4)
# LayerNorm of PWAM's output divides by what is small at a few places
MAPS_OF = (5e-3, 3e-4)
FEATURES = (2e-3, 3e-4)
# a mask's logit near zero may fall on the other side and hide a key
QUERIES = (5e-2, 2e-3)
READ_OUT = (5e-2, 3e-3)
MASKS = (1e-3, np.inf)
DIFFERENT_COUNTS = 100
DIFFERENT_PIXELS = 50


def watched(model) -> Seen:
    """Everything that a forward pass gives below the model's own outputs."""
    seen = Seen()
    seen.backbone(model.backbone)
    for index, stage in enumerate(model.backbone.layers):
        for block in (0, 1):
            seen.outputs(stage.blocks[block], f"debug_stage{index}_block{block}")
    seen.outputs(model.bert.embeddings, "debug_bert_embeddings")
    seen.outputs(model.bert.encoder.layer[0], "debug_bert_layer_0")

    pixels, regions = model.pixel_decoder, model.region_decoder
    for level, project in enumerate(pixels.input_proj):
        seen.outputs(project, f"encoder_input_{level}")
    first = pixels.transformer.encoder.layers[0]
    seen.outputs(first.self_attn, "debug_encoder_attention_0")
    seen.outputs(first, "debug_encoder_layer_0")
    seen.outputs(pixels.adapter_1, "debug_fpn_lateral")
    seen.inputs(pixels.mask_features, "fpn")
    seen.outputs(regions.RIA_layers[0], "ria_0")
    seen.outputs(regions.RLA_lang_att, "rla_language")
    seen.inputs(regions.RLA_vision[0], "rla_sum")
    seen.outputs(regions.RLA_vision[0], "rla_vision_0")
    return seen


def accepted(name: str) -> tuple[float, float]:
    """What to accept of a module's output."""
    if name.endswith(("_language", "_fused", "_gate", "_gated", "_down")):
        return PLAIN if name == "rla_language" else MIXED
    if "_block" in name:
        return PLAIN if "stage0" in name else BLOCKS
    if name.startswith(("encoder_input", "debug_encoder", "debug_fpn", "fpn")):
        return MAPS_OF
    return PLAIN


@pytest.mark.parametrize("size", ["base", "tiny"])
@torch.no_grad()
def test_every_stage(size):
    golden = GoldenFile(GOLDEN / "rela" / f"e2e_swin_{size}_seed0.npz")
    model = deterministic_model(replace(PRESETS[f"rela-swin-{size}"], lang_weight="stored"))
    seen = watched(model)

    picture = inputs.image(0)
    resized = resize_to_square(picture, 480)
    golden.equal("image_crc32", zlib.crc32(picture.tobytes()))
    golden.equal("resized_crc32", zlib.crc32(resized.tobytes()))
    golden.compare("resized", torch.from_numpy(resized.copy()), 0)
    image = prepare(model, picture)["image"]
    golden.compare("image_input", image, 1e-6)
    ids, mask = tokens(0)
    golden.equal("input_ids", ids)
    golden.equal("text_mask", mask)

    out = model(image, torch.from_numpy(ids))
    first = dict(seen)
    for name, value in first.items():
        if name == "patch_embed":
            value = value.transpose(1, 2).unflatten(2, (120, 120))
        golden.compare(name, value, *accepted(name))
    golden.compare("text", out.text_features, *PLAIN)
    for name, value in zip(MAPS, out.maps, strict=True):
        golden.compare(name, value, *MAPS_OF)
    for level, value in enumerate(out.levels):
        golden.compare(f"ms_{level}", value, *MAPS_OF)
    golden.compare("mask_features", out.mask_features, *FEATURES)
    check_regions(golden, model, out)
    check_answer(golden, out)

    model.region_decoder.lang_weight.zero_()
    other = model.region_decoder(out.mask_features, out.levels, out.text_features)
    golden.compare("lang_weight_0_rla_sum", seen["rla_sum"], *PLAIN)
    golden.compare("lang_weight_0_difference", other.mask_logits[:, 0], *MASKS)
    golden.compare_absolute("lang_weight_0_no_target_logits", other.no_target_logits, 2e-4)
    pixels = int((resize_logits(other.mask_logits, 480, 480) > 0).sum())
    assert abs(int(golden.take("lang_weight_0_mask_pixels")) - pixels) <= DIFFERENT_PIXELS
    golden.finish()


def check_regions(golden: GoldenFile, model, out) -> None:
    """The regions behind every layer, and what is read out of them."""
    regions, features = out.regions, out.mask_features.flatten(2)
    for i, queries in enumerate(regions.queries):
        golden.compare(f"queries_{i}", queries, *(PLAIN if i < 2 else QUERIES))
    for i, accept in ((0, FEATURES), (1, FEATURES), (9, READ_OUT)):
        masks = model.region_decoder.embed(regions.queries[i]) @ features
        golden.compare(f"mask_logits_{i}", masks.unflatten(2, (120, 120)), *accept)
    differ = sum(
        int(np.abs(golden.take(f"blocked_{i}") - blocked.sum(-1)[0].numpy()).sum())
        for i, blocked in enumerate(regions.blocked)
    )
    assert differ <= DIFFERENT_COUNTS
    golden.compare("region_embed", regions.region_embed, *READ_OUT)
    golden.compare("minimap", regions.minimap, *READ_OUT)
    golden.compare("no_target_per_query", regions.no_target_per_query, *READ_OUT)


def check_answer(golden: GoldenFile, out) -> None:
    """The two channels as the authors compute them, our one map, and the decision."""
    regions = out.regions
    both = regions.minimap.transpose(1, 2) @ regions.region_embed @ out.mask_features.flatten(2)
    both = both.unflatten(2, (120, 120))
    golden.compare("masks", both, *MASKS)
    golden.compare("difference", regions.mask_logits[:, 0], *MASKS)
    whole = resize_logits(both, 480, 480)[0]
    golden.compare("masks_480", whole, *MASKS)
    golden.compare_absolute("probability", whole.sigmoid(), 1e-3)

    ours = (resize_logits(regions.mask_logits, 480, 480)[0, 0] > 0).numpy()
    theirs = golden.bits("mask_bits", (480, 480))
    assert (ours != theirs).sum() <= DIFFERENT_PIXELS
    assert abs(int(golden.take("mask_pixels")) - int(ours.sum())) <= DIFFERENT_PIXELS

    golden.compare_absolute("no_target_logits", regions.no_target_logits, 2e-4)
    sigmoids = regions.no_target_logits.sigmoid()[0]
    np.testing.assert_allclose(golden.take("no_target_probability"), sigmoids, atol=2e-4)
    golden.equal("no_target", regions.no_target_logits.argmax() == 1)
