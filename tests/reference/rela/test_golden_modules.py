"""Each module of ReLA on its own against the golden files."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from conftest import GOLDEN
from golden.rela import inputs
from golden_files import GoldenFile, tensor
from golden_files import filled as filled_by
from ris.reference.layers.attention import attention_bias, sine_positions
from ris.reference.layers.basic import ConvNorm
from ris.reference.layers.pixel_words import PWAM
from ris.reference.layers.swin import PatchEmbed, PatchMerging, SwinBlock
from ris.reference.layers.windows import relative_positions, window_places
from ris.reference.layers.worded_swin import Stage
from ris.reference.preprocess import resize_logits
from ris.reference.rela.config import PRESETS
from ris.reference.rela.deterministic import make_tensor
from ris.reference.rela.model import mixing
from ris.reference.rela.pixel_decoder import PixelDecoder
from ris.reference.rela.regions import LEVELS, RegionDecoder

BASE, TINY = PRESETS["rela-swin-base"], PRESETS["rela-swin-tiny"]
ACCEPT = 1e-4
PIXELS = 2e-4  # the pixel decoder
SMALL = 5e-4  # inputs so small that every eps shows
HEAD = "sem_seg_head."


def filled(module: nn.Module, prefix: str) -> nn.Module:
    """The module with the golden weights of the keys below `prefix`."""
    return filled_by(module, prefix, make_tensor)


@pytest.fixture
def golden(request):
    file = GoldenFile(GOLDEN / "rela" / f"{request.param}.npz")
    with torch.no_grad():
        yield file
    file.finish()


def golden_file(name: str):
    return pytest.mark.parametrize("golden", [name], indirect=True, ids=[name])


def block_of(config, stage: int, block: int) -> SwinBlock:
    swin, side = config.swin, config.grids()[stage]
    width, heads = swin.widths()[stage], swin.heads[stage]
    shift = swin.window // 2 if block % 2 else 0
    made = SwinBlock(width, heads, side, swin.window, shift)
    return filled(made, f"backbone.layers.{stage}.blocks.{block}.")


@golden_file("module_patch_embed")
def test_patch_embed(golden):
    for size, config in (("base", BASE), ("tiny", TINY)):
        embed = filled(PatchEmbed(config.swin.width, 4), "backbone.patch_embed.")
        whole = embed(tensor("rela.image", (1, 3, 480, 480)))
        odd = embed(tensor("rela.image_odd", (1, 3, 30, 45)))
        golden.compare(size, whole.transpose(1, 2).unflatten(2, (120, 120)), ACCEPT)
        golden.compare(f"{size}_odd", odd.transpose(1, 2).unflatten(2, (8, 12)), ACCEPT)


@pytest.mark.parametrize(
    ("golden", "size", "stages", "masks"),
    [
        ("module_swin_base", "base", (0, 2, 3), (2, 3)),
        ("module_swin_tiny", "tiny", (0, 1, 3), (1,)),
    ],
    indirect=["golden"],
)
def test_swin_blocks(golden, size, stages, masks):
    config = BASE if size == "base" else TINY
    window = config.swin.window
    for stage in stages:
        side, width = config.grids()[stage], config.swin.widths()[stage]
        tokens = tensor(f"rela.{size}.stage{stage}", (1, side * side, width))
        for index in (0, 1):
            block = block_of(config, stage, index)
            golden.compare(f"stage{stage}_after_attention_{index}", block.attend(tokens), ACCEPT)
            tokens = block(tokens)
            golden.compare(f"stage{stage}_block_{index}", tokens, ACCEPT)
    for stage in masks:
        ours = window_places(config.grids()[stage], window, window // 2).mask[:, 0] == -100
        shape = tuple(golden.take(f"stage{stage}_shift_mask_shape"))
        assert ours.shape == shape
        np.testing.assert_array_equal(golden.bits(f"stage{stage}_shift_mask_bits", shape), ours)
    golden.equal("relative_position_index", relative_positions(window))


@golden_file("module_patch_merging")
def test_patch_merging(golden):
    merging = filled(PatchMerging(128), "backbone.layers.0.downsample.")
    golden.compare("even", merging(tensor("rela.merge_even", (1, 14400, 128)), 120, 120), ACCEPT)
    golden.compare("odd", merging(tensor("rela.merge_odd", (1, 195, 128)), 15, 13), ACCEPT)


@golden_file("module_pwam")
def test_pwam_and_gate(golden):
    text, mask = tensor("rela.pwam.text", (1, 20, 768)), torch.from_numpy(inputs.word_mask(7))
    for name, config, index in (
        ("base_stage2", BASE, 2),
        ("tiny_stage0", TINY, 0),
        ("base_stage3", BASE, 3),
    ):
        side, width = config.grids()[index], config.swin.widths()[index]
        prefix = f"backbone.layers.{index}."
        pwam = filled(PWAM(width, width, 768), f"{prefix}fusion.")
        tokens = tensor(f"rela.pwam.{name}", (1, side * side, width))
        values, queries = pwam.project_image(tokens)
        golden.compare(f"{name}_language", pwam.image_lang_att(queries, text, mask), ACCEPT)
        fused = pwam.mix(values, queries, text, mask)
        golden.compare(f"{name}_fused", fused, ACCEPT)
        if index == 3:
            continue
        with torch.device("meta"):
            stage = Stage(config.swin, config.image_size, index, mixing(config))
        filled(stage.res_gate.to_empty(device="cpu"), f"{prefix}res_gate.")
        golden.compare(f"{name}_gate", stage.res_gate(fused), ACCEPT)
        golden.compare(f"{name}_gated", stage.gated(tokens, fused), ACCEPT)


@pytest.mark.parametrize("sampling", ["native", "gather"])
@golden_file("module_pixel_decoder")
def test_pixel_decoder(golden, sampling):
    decoder = filled(PixelDecoder(BASE), f"{HEAD}pixel_decoder.")
    decoder.set_sampling(sampling)
    shapes = zip((2, 3, 4, 5), BASE.swin.widths(), BASE.grids(), strict=True)
    maps = [tensor(f"rela.res{i}", (1, width, side, side)) for i, width, side in shapes]
    seen = {}

    def keep(name):
        return lambda module, args, output: seen.update({name: output})

    layers = decoder.transformer.encoder.layers
    layers[0].self_attn.register_forward_hook(keep("layer_0_attention"))
    layers[0].register_forward_hook(keep("layer_0"))
    layers[5].register_forward_hook(keep("layer_5"))
    decoder.adapter_1.register_forward_hook(keep("lateral"))
    decoder.mask_features.register_forward_pre_hook(lambda module, args: seen.update(fpn=args[0]))
    features, levels = decoder(maps)
    for name, value in seen.items():
        golden.compare(name, value, PIXELS)
    golden.compare("mask_features", features, PIXELS)
    for level, (project, feature) in enumerate(zip(decoder.input_proj, maps[:0:-1], strict=True)):
        side = feature.shape[-1]
        sine = sine_positions(side, side, 256, feature).transpose(1, 2).unflatten(2, (side, side))
        golden.compare(f"positions_{level}", sine, PIXELS)
        golden.compare(f"encoder_input_{level}", project(feature), PIXELS)
        golden.compare(f"ms_{level}", levels[level], PIXELS)


@pytest.fixture(scope="module")
def regions() -> RegionDecoder:
    return filled(RegionDecoder(BASE), f"{HEAD}predictor.")


@golden_file("module_region_layer")
def test_region_layer(golden, regions):
    """Layer 0 in steps, with a mask that hides everything from two regions."""
    queries = tensor("rela.layer.queries", (1, 100, 256))
    memory = tensor("rela.layer.memory", (1, 225, 256)) - regions.level_embed.weight[0]
    level = memory.transpose(1, 2).unflatten(2, (15, 15))
    bias = attention_bias(torch.from_numpy(inputs.blocked())[None])
    text = tensor("rela.layer.text", (1, 20, 768))
    read = regions.read_image(0, queries, level, bias)
    language = regions.read_words(read, text)
    with_words = regions.add_words(read, language)
    golden.compare("ria", read, ACCEPT)
    golden.compare("text_projected", regions.lang_proj(text), ACCEPT)
    golden.compare("rla_language", language, ACCEPT)
    golden.compare("rla_sum", with_words, ACCEPT)
    vision = regions.RLA_vision[0](with_words, regions.query_embed.weight)
    golden.compare("rla_vision", vision, ACCEPT)
    golden.compare("queries", regions.read_regions(0, with_words), ACCEPT)


@golden_file("module_region_decoder")
def test_region_decoder(golden, regions):
    features = torch.from_numpy(inputs.mask_features())
    levels = [tensor(f"rela.ms_{i}", (1, 256, s, s)) for i, s in enumerate((15, 30, 60))]
    seen = {}
    hooks = [
        *(
            regions.RIA_layers[i].register_forward_hook(
                lambda module, args, output, name=f"ria_{i}": seen.update({name: output})
            )
            for i in range(LEVELS)
        ),
        regions.RLA_lang_att.register_forward_hook(
            lambda module, args, output: seen.update(rla_language=output)
        ),
    ]
    out = regions(features, levels, tensor("rela.decoder.text", (1, 20, 768)))
    for hook in hooks:
        hook.remove()
    for name, value in seen.items():
        golden.compare(name, value, ACCEPT)
    for i, queries in enumerate(out.queries):
        golden.compare(f"queries_{i}", queries, ACCEPT)
    for i in (0, 1, 9):
        masks = (regions.embed(out.queries[i]) @ features.flatten(2)).unflatten(2, (120, 120))
        golden.compare(f"mask_logits_{i}", masks, ACCEPT)
    hidden = [blocked.sum(-1)[0].numpy() for blocked in out.blocked]
    differ = sum(
        int(np.abs(golden.take(f"blocked_{i}") - count).sum()) for i, count in enumerate(hidden)
    )
    assert differ <= 5
    for i in (0, 1, 6):  # everything is hidden from one region, which then sees everything
        assert (hidden[i] == (225, 900, 3600)[i % LEVELS]).sum() == 1
    golden.compare("region_embed", out.region_embed, ACCEPT)
    golden.compare("minimap", out.minimap, ACCEPT)
    both = out.minimap.transpose(1, 2) @ out.region_embed @ features.flatten(2)
    golden.compare("masks", both.unflatten(2, (120, 120)), ACCEPT)
    golden.compare("difference", out.mask_logits[:, 0], ACCEPT)
    golden.compare("no_target_per_query", out.no_target_per_query, ACCEPT)
    golden.compare("no_target_logits", out.no_target_logits, ACCEPT)


@golden_file("module_no_target")
def test_no_target(golden, regions):
    common = torch.from_numpy(np.float32(2) * tensor("rela.nt.common8", (1, 1, 256)).numpy())
    for name, queries in (
        ("a", tensor("rela.nt.a", (1, 100, 256))),
        ("b", tensor("rela.nt.b", (1, 100, 256)) + common),
    ):
        normed = regions.decoder_norm(queries)
        per_query, logits = regions.no_target(normed)
        golden.compare(f"{name}_regions", normed, ACCEPT)
        golden.compare(f"{name}_per_query", per_query, ACCEPT)
        golden.compare(f"{name}_logits", logits, ACCEPT)
        golden.equal(f"{name}_no_target", logits.argmax() == 1)


@golden_file("module_postprocess")
def test_postprocess(golden):
    """The authors' two channels, and the sign of their difference, which is the mask.

    Where both sigmoids round to 1, the authors' mask is a fact about float32; ours is the one that
    float64 finds, half of the picture.
    """
    for name, shift in (("plain", 0), ("saturated", 25)):
        masks = tensor("rela.post.masks", (1, 2, 120, 120), scale=3.0) + shift
        both = resize_logits(masks, 480, 480)
        golden.compare(f"{name}_masks_480", both, ACCEPT)
        theirs = golden.bits(f"{name}_mask_bits", (480, 480))
        pixels = int(golden.take(f"{name}_mask_pixels"))
        assert pixels == theirs.sum()
        ours = (resize_logits(masks[:, 1:] - masks[:, :1], 480, 480)[0, 0] > 0).numpy()
        if name == "saturated":
            golden.compare_absolute(f"{name}_probability", both.sigmoid()[0], 1e-6)
            assert ours.mean() == pytest.approx(0.504, abs=5e-4)
            continue
        golden.compare(f"{name}_probability", both.sigmoid()[0], ACCEPT)
        assert (ours != theirs).sum() <= 5
        assert abs(int(ours.sum()) - pixels) <= 5


@golden_file("module_small_inputs")
def test_small_inputs(golden):
    """What a wrong eps of any norm changes by much."""

    def small(name, shape, scale=0.005):
        return tensor(f"rela.small.{name}", shape, scale=scale)

    block = block_of(BASE, 3, 0)
    tokens = small("stage3", (1, 225, 1024))
    golden.compare("after_attention", block.attend(tokens), SMALL)
    golden.compare("block", block(tokens), SMALL)
    merging = filled(PatchMerging(128), "backbone.layers.0.downsample.")
    golden.compare("merged", merging(small("merge", (1, 900, 128)), 30, 30), SMALL)

    pwam = filled(PWAM(1024, 1024, 768), "backbone.layers.3.fusion.")
    text, mask = small("text", (1, 20, 768), 0.1), torch.from_numpy(inputs.word_mask(7))
    values, queries = pwam.project_image(small("pwam", (1, 225, 1024)))
    golden.compare("language", pwam.image_lang_att(queries, text, mask), SMALL)
    golden.compare("fused", pwam.mix(values, queries, text, mask), SMALL)

    norm3 = filled(nn.LayerNorm(1024), "backbone.norm3.")
    golden.compare("feature", norm3(small("feature", (1, 225, 1024))), SMALL)
    decoder = filled(PixelDecoder(BASE), f"{HEAD}pixel_decoder.")
    projected = decoder.input_proj[0](small("res5", (1, 1024, 15, 15)))
    golden.compare("encoder_input_0", projected, SMALL)
    assert isinstance(decoder.adapter_1, ConvNorm)
    golden.compare("lateral", decoder.adapter_1(small("res2", (1, 128, 120, 120))), SMALL)
    norm = filled(nn.LayerNorm(256), f"{HEAD}predictor.decoder_norm.")
    golden.compare("regions", norm(small("regions", (1, 100, 256))), SMALL)


def test_small_masks_are_resized_ones(regions):
    """Masks of resized features are resized masks, up to rounding."""
    features = torch.from_numpy(inputs.mask_features())
    embed = regions.embed(regions.start(features))
    whole = (embed @ features.flatten(2)).unflatten(2, (120, 120))
    for side in (15, 30, 60):
        size = (side, side)
        small = F.interpolate(features, size=size, mode="bilinear", align_corners=False)
        resized = F.interpolate(whole, size=size, mode="bilinear", align_corners=False)
        torch.testing.assert_close(
            embed @ small.flatten(2), resized.flatten(2), rtol=1e-4, atol=1e-3
        )
