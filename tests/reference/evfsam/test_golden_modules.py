"""EVF-SAM's modules against the golden files of each, those of SAM 2 apart."""

from __future__ import annotations

import functools
import zlib

import numpy as np
import pytest
import torch
from evfsam_helper import made, part

from conftest import GOLDEN
from golden import inputs
from golden.evfsam.inputs import SIZES, tokens
from golden_files import GoldenFile, Seen, tensor
from ris.reference.evfsam import preprocess
from ris.reference.evfsam.beit3 import Beit3
from ris.reference.evfsam.config import PRESETS
from ris.reference.evfsam.model import empty_model
from ris.reference.layers.letterbox import resize_longest

ACCEPT = 1e-4
CONFIG = PRESETS["evfsam"]
BEIT3 = "mm_extractor.beit3"


def golden_file(name):
    """Gives a test the golden file, every array of which it has to compare."""

    def decorate(test):
        @functools.wraps(test)
        def wrapped(*args, **kwargs):
            golden = GoldenFile(GOLDEN / "evfsam" / f"module_{name}.npz")
            with torch.no_grad():
                test(golden, *args, **kwargs)
            golden.finish()

        del wrapped.__wrapped__
        return wrapped

    return decorate


@golden_file("preprocess")
def test_pictures(golden):
    for number, size in enumerate(SIZES):
        golden.equal(f"size_{number}", size)
        rgb = inputs.image(0, *size)
        golden.equal(f"image_crc32_{number}", zlib.crc32(rgb.tobytes()))
        resized = resize_longest(rgb, 1024)
        golden.equal(f"resize_shape_{number}", resized.shape[:2])
        golden.compare(f"resized_{number}", torch.from_numpy(resized.copy()), 0)
        golden.equal(f"resized_crc32_{number}", zlib.crc32(resized.tobytes()))
        sam, beit = preprocess.prepare_image(rgb, CONFIG)
        golden.compare(f"sam_input_{number}", sam, 1e-6)
        golden.compare(f"beit_input_{number}", beit, 1e-3, 2e-4)


@golden_file("postprocess")
def test_masks(golden):
    low = tensor("post.low", (1, 1, 256, 256), scale=3.0)
    for number, size in enumerate(SIZES):
        logits = preprocess.picture_logits(low, CONFIG, *size)
        golden.compare(f"logits_{number}", logits, 5e-4)
        pixels = int((logits > 0).sum())
        assert abs(pixels - int(golden.take(f"mask_pixels_{number}"))) <= 10


@golden_file("sam_vit_h")
def test_sams_encoder(golden):
    """A block with windows, one without, and the neck."""
    encoder = "visual_model.image_encoder"
    tokens = tensor("samh.in", (1, 64, 64, 1280))
    for block in (0, 7):
        golden.compare(f"block{block}", part("1", f"{encoder}.blocks.{block}")(tokens), ACCEPT)
    neck = part("1", f"{encoder}.neck")
    golden.compare("neck", neck(tensor("samh.neck", (1, 1280, 64, 64))), ACCEPT)


def asked() -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask of two expressions, padded to 9."""
    ids, mask = tokens(("left man", "the broccoli closest to the ketchup bottle"), 9)
    return torch.from_numpy(ids), torch.from_numpy(mask)


@golden_file("beit3_embed")
def test_the_embedding(golden):
    beit3 = with_embedding()
    ids, mask = asked()
    golden.equal("input_ids", ids)
    golden.equal("mask", mask)
    pixels = tensor("beit.pixels", (2, 3, 224, 224), scale=0.5)
    golden.compare("vision_tokens", beit3.vision_embed(pixels), ACCEPT)
    embedded = beit3.embed_image(pixels), beit3.embed_text(ids, mask.float())
    golden.compare("embedded", torch.cat(embedded, 1), ACCEPT)
    tables = beit3.encoder.embed_positions
    assert torch.equal(beit3.image_positions(), tables["A"].weight[2:199])
    assert torch.equal(beit3.text_positions(9), tables["B"].weight[2:11])


def with_embedding() -> Beit3:
    """BEiT-3 with the weights of all in front of its layers."""
    beit3 = empty_model(CONFIG).beit3
    state = {
        key: made(f"{BEIT3}.{key}", tuple(value.shape))
        for key, value in beit3.state_dict().items()
        if not key.startswith(("encoder.layers.", "encoder.layer_norm."))
    }
    beit3.load_state_dict(state, assign=True, strict=False)
    return beit3.requires_grad_(False)


@golden_file("beit3_layer")
def test_a_layer(golden):
    layer = part("1", f"{BEIT3}.encoder.layers.5")
    positions = CONFIG.beit3.image_positions
    x = tensor("beit.x", (2, 206, 1024))
    seen = Seen()
    for expert in ("A", "B"):
        attention = layer.self_attn
        seen.inputs(getattr(attention.inner_attn_ln, expert), f"attended.{expert}")
        seen.outputs(getattr(attention.inner_attn_ln, expert), f"inner.{expert}")
        seen.outputs(getattr(attention.out_proj, expert), f"attention.{expert}")
        seen.outputs(getattr(layer.ffn, expert).ffn_layernorm, f"hidden.{expert}")
    bias = empty_model(CONFIG).beit3.bias(asked()[1].float())
    image, text = layer(x[:, :positions], x[:, positions:], bias)
    for name in ("attended", "inner", "attention"):
        golden.compare(name, torch.cat([seen[f"{name}.A"], seen[f"{name}.B"]], 1), ACCEPT)
    golden.compare("hidden_image", seen["hidden.A"], ACCEPT)
    golden.compare("hidden_text", seen["hidden.B"], ACCEPT)
    golden.compare("output", torch.cat([image, text], 1), ACCEPT)
    first = layer.first(x[:, :positions], x[:, positions:], bias)
    torch.testing.assert_close(first, image[:, :1], rtol=1e-4, atol=1e-4)


@golden_file("projector")
def test_the_projector(golden):
    projector = part("1", "text_hidden_fcs.0")
    golden.compare("sparse_prompt", projector(tensor("proj.cls", (3, 1, 1024))), ACCEPT)


@golden_file("prompt_encoder")
def test_the_prompt_encoder(golden):
    prompts = part("1", "visual_model.prompt_encoder")
    sparse = tensor("prompt.sparse", (1, 1, 256), scale=1.4)
    golden.compare("sparse_embedding", sparse, 0)  # the vector and nothing else
    dense = prompts.no_mask_embed.weight[..., None, None].expand(-1, -1, 64, 64)
    golden.compare("dense_embedding", dense, ACCEPT)
    golden.compare("dense_pe", prompts.get_dense_pe(), ACCEPT)


@golden_file("mask_decoder")
def test_the_mask_decoder(golden):
    prompts = part("1", "visual_model.prompt_encoder")
    decoder = part("1", "visual_model.mask_decoder")
    seen = Seen()
    decoder.transformer.register_forward_hook(
        lambda module, args, out: seen.update(tokens=out[0], image_tokens=out[1])
    )
    seen.outputs(decoder.output_upscaling, "upscaled")
    masks, _ = decoder(
        image_embeddings=tensor("maskdec.image", (1, 256, 64, 64)),
        image_pe=prompts.get_dense_pe(),
        sparse_prompt_embeddings=tensor("maskdec.sparse", (1, 1, 256), scale=1.4),
        dense_prompt_embeddings=prompts.no_mask_embed.weight[..., None, None],
        multimask_output=False,
    )
    golden.compare("low_res_logits", masks, ACCEPT)
    for name in ("tokens", "image_tokens", "upscaled"):
        golden.compare(name, seen[name], ACCEPT)


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (3, 2), (512, 512)])
def test_any_picture_is_prepared(size):
    rgb = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
    for preset in ("tiny-evfsam", "tiny-evfsam2"):
        config = PRESETS[preset]
        sam, beit = preprocess.prepare_image(rgb, config)
        assert sam.shape == (1, 3, config.image_size, config.image_size)
        assert beit.shape == (1, 3, config.beit3.image_size, config.beit3.image_size)
        logits = torch.zeros(1, 1, config.mask_size, config.mask_size)
        assert preprocess.picture_logits(logits, config, *size).shape[2:] == size
