"""Each module of LISA on its own against the golden files."""

from __future__ import annotations

import copy
import zlib

import numpy as np
import pytest
import torch

from conftest import GOLDEN
from golden import inputs as pictures
from golden.lisa.inputs import SIZES
from golden_files import GoldenFile, Seen, filled, tensor
from ris.reference.layers.encoders import build_sam
from ris.reference.layers.letterbox import (
    letterbox,
    letterbox_logits,
    letterbox_size,
    resize_longest,
)
from ris.reference.lisa.config import PRESETS
from ris.reference.lisa.deterministic import make_tensor
from ris.reference.lisa.llama import KeysValues, RmsNorm, causal_bias, rotary_tables
from ris.reference.lisa.preprocess import clip_input, crop_square

CONFIG = PRESETS["lisa-7b"]
ACCEPT = 1e-4
HEADS, HEAD_WIDTH = CONFIG.llama.heads, CONFIG.llama.head_width


@pytest.fixture
def golden(request):
    file = GoldenFile(GOLDEN / request.param)
    with torch.no_grad():
        yield file
    file.finish()


def golden_file(name: str, family: str = "lisa"):
    path = f"{family}/module_{name}.npz"
    return pytest.mark.parametrize("golden", [path], indirect=True, ids=[name])


@golden_file("preprocess")
def test_pictures(golden):
    """The letterbox of SAM, and the covering crop of CLIP, to the bit before the floats."""
    for i, size in enumerate(SIZES):
        rgb = pictures.image(0, *size)
        golden.equal(f"image_crc32_{i}", zlib.crc32(rgb.tobytes()))
        golden.equal(f"resize_shape_{i}", letterbox_size(*size, 1024))
        for name, levels in (
            ("resized", resize_longest(rgb, 1024)),
            ("clip_square", crop_square(rgb, 224)),
        ):
            golden.compare(f"{name}_{i}", torch.tensor(levels), 0)
            golden.equal(f"{name}_crc32_{i}", zlib.crc32(np.ascontiguousarray(levels).tobytes()))
        golden.compare(f"sam_input_{i}", letterbox(rgb, 1024), 1e-6)
        golden.compare(f"clip_input_{i}", clip_input(rgb, 224), 1e-6)


@golden_file("postprocess", "evfsam")
def test_logits_at_the_pictures_size(golden):
    low = tensor("post.low", (1, 1, 256, 256), scale=3.0)
    for i, size in enumerate(SIZES):
        logits = letterbox_logits(low, *size, 1024)
        golden.compare(f"logits_{i}", logits, 5e-4)
        assert abs(int((logits > 0).sum()) - int(golden.take(f"mask_pixels_{i}"))) <= 10


def attended(attention: torch.nn.MultiheadAttention, x: torch.Tensor) -> torch.Tensor:
    """What the heads read, before the last projection, which torch has in the same call."""
    alone = copy.deepcopy(attention)
    torch.nn.init.eye_(alone.out_proj.weight)
    torch.nn.init.zeros_(alone.out_proj.bias)
    return alone(x, x, x, need_weights=False)[0]


@golden_file("clip")
def test_clip(golden, two_layers):
    visual, seen = two_layers.clip.visual, Seen()
    blocks = visual.transformer.resblocks
    hooks = [seen.outputs(visual.ln_pre, "embedded")]
    hooks += [seen.outputs(blocks[i], f"layer{i}") for i in (0, 11, 22)]
    features = two_layers.encode_clip(tensor("clip.pixels", (1, 3, 224, 224)))
    for name, value in seen.items():
        golden.compare(name, value, ACCEPT)
    golden.compare("features", features, ACCEPT)
    for hook in hooks:
        hook.remove()

    block = blocks[5]
    x = tensor("clip.x", (1, 257, 1024), scale=2.0)
    normed = block.ln_1(x)
    read = block.attn(normed, normed, normed, need_weights=False)[0]
    golden.compare("l5_attention", read, ACCEPT)
    golden.compare("l5_attended", attended(block.attn, normed), ACCEPT)
    golden.compare("l5_fc1", block.mlp.c_fc(block.ln_2(x + read)), ACCEPT)
    golden.compare("l5_output", block(x), ACCEPT)


@golden_file("projector")
def test_projector(golden, two_layers):
    tokens = two_layers.project(tensor("proj.features", (1, 256, 1024), scale=3.0))
    golden.compare("image_tokens", tokens, ACCEPT)


@golden_file("rmsnorm")
def test_rms_norms(golden):
    """Small inputs, where the eps of 7B and that of 13B differ by much."""
    x = tensor("rms.x", (2, 4096), scale=0.02)
    for name, preset in (("eps_1e-6", "lisa-7b"), ("eps_1e-5", "lisa-13b")):
        norm = filled(RmsNorm(4096, PRESETS[preset].llama.eps), "norm.", make_tensor)
        golden.compare(name, norm(x), 1e-5)


@golden_file("llama_layer")
def test_llama_layer(golden, two_layers):
    """24 positions behind seven that were kept."""
    layer, seen = two_layers.layers[0], Seen()
    x = tensor("llama.x", (2, 24, 4096), scale=0.05)
    shape = (2, HEADS, 7, HEAD_WIDTH)
    kept = tensor("llama.past_keys", shape, scale=1.5), tensor("llama.past_values", shape)
    golden.equal("position_ids", np.arange(7, 31))
    rotary = rotary_tables(7, 24, HEAD_WIDTH, x)
    golden.compare("cos", rotary.cos, ACCEPT)
    golden.compare("sin", rotary.sin, ACCEPT)
    hooks = [
        seen.outputs(layer.input_layernorm, "normed"),
        seen.outputs(layer.self_attn.v_proj, "v"),
        seen.inputs(layer.self_attn.o_proj, "attended"),
        seen.outputs(layer.self_attn.o_proj, "attention"),
        seen.inputs(layer.mlp.down_proj, "gated"),
        seen.outputs(layer.mlp, "mlp"),
    ]
    output, own = layer(x, rotary, KeysValues(*kept), causal_bias(24, x))
    golden.compare("output", output, ACCEPT)
    for name, value in seen.items():
        golden.compare(name, value, ACCEPT)
    golden.compare("k_rot", own.keys, ACCEPT)
    queries = layer.self_attn.queries(layer.input_layernorm(x), rotary)
    golden.compare("q_rot", queries, ACCEPT)
    for hook in hooks:
        hook.remove()


@golden_file("prefix_split")
def test_a_prefix_and_two_questions(golden, two_layers):
    """40 positions are kept; two questions of 20 and 13 tokens follow in one batch."""
    prefix = tensor("split.prefix", (1, 40, 4096), scale=0.05)
    asked = tensor("split.questions", (2, 20, 4096), scale=0.05)
    lengths = torch.from_numpy(golden.take("lengths"))
    assert lengths.tolist() == [20, 13]
    kept = two_layers.remember(prefix)
    golden.compare("prefix_keys", kept.keys[0], ACCEPT)
    golden.compare("prefix_values", kept.values[0], ACCEPT)

    seen = Seen()
    hook = seen.outputs(two_layers.layers[0], "layer0")
    states = two_layers.norm(two_layers.run(asked, kept))
    hook.remove()
    golden.compare("layer0", seen["layer0"][:1], ACCEPT)
    golden.compare("output", states[0], ACCEPT)
    golden.compare("output_second", states[1, :13], ACCEPT)
    golden.compare("last", two_layers.state_at(asked, lengths - 1, kept), ACCEPT)


@golden_file("text_fc")
def test_prompt_layers(golden, two_layers):
    prompt = two_layers.sparse_prompt(tensor("text.hidden", (3, 4096)))
    golden.compare("sparse_prompt", prompt[:, 0], ACCEPT)


@golden_file("mask_decoder")
def test_mask_decoder(golden, two_layers):
    decoder, prompts, seen = two_layers.sam.mask_decoder, two_layers.sam.prompt_encoder, []
    hooks = [
        decoder.transformer.register_forward_hook(lambda m, i, o: seen.append([*o])),
        decoder.output_upscaling.register_forward_hook(lambda m, i, o: seen[-1].append(o)),
    ]
    image = tensor("maskdec.image", (1, 256, 64, 64))
    sparse = tensor("maskdec.sparse", (3, 1, 256), scale=1.4)
    logits = two_layers.decode_masks(image, sparse)
    for hook in hooks:
        hook.remove()
    golden.compare("dense_embedding", prompts.no_mask_embed.weight[..., None, None], 0)
    golden.compare("dense_pe", prompts.get_dense_pe(), ACCEPT)
    for name, parts in zip(
        ("tokens", "image_tokens", "upscaled"), zip(*seen, strict=True), strict=True
    ):
        golden.compare(name, torch.cat(parts), ACCEPT)
    golden.compare("low_res_logits", logits, ACCEPT)


@pytest.mark.full
@golden_file("sam_vit_h", "evfsam")
def test_sam_vit_h(golden):
    with torch.device("meta"):
        sam = build_sam(CONFIG.sam, 256, 8, 2048)
    encoder, x = sam.image_encoder, tensor("samh.in", (1, 64, 64, 1280))
    for index in (0, 7):
        prefix = f"visual_model.image_encoder.blocks.{index}."
        block = filled(encoder.blocks[index].to_empty(device="cpu"), prefix, make_tensor)
        golden.compare(f"block{index}", block(x), ACCEPT)
    neck = filled(
        encoder.neck.to_empty(device="cpu"), "visual_model.image_encoder.neck.", make_tensor
    )
    golden.compare("neck", neck(tensor("samh.neck", (1, 1280, 64, 64))), ACCEPT)
