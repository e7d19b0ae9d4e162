"""The full-size models against the end-to-end golden files: every stage, four expressions."""

from __future__ import annotations

import json
import zlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from conftest import GOLDEN
from golden import inputs
from golden.evfsam.inputs import EXPRESSIONS, PAD, tokens
from golden_files import GoldenFile, Seen
from ris.reference.evfsam.config import PRESETS
from ris.reference.evfsam.deterministic import deterministic_model
from ris.reference.evfsam.model import EvfsamModel
from ris.reference.evfsam.preprocess import picture_logits, prepare_image
from ris.reference.layers.letterbox import resize_longest
from ris.reference.preprocess import resize_to_square

# what to accept of the maximum and of the 99th percentile, in standard deviations of the stage
IMAGE = (1e-4, np.inf)
SQUARE = (5e-4, 1e-4)
BEHIND = (3e-4, 1e-4)
LOGITS = (5e-4, 1e-4)
DENSE_PE = (1e-5, np.inf)
LEAST_IOU = 0.9999
DIFFERENT_PIXELS = 20
SIZE = (480, 640)


@pytest.mark.full
@torch.no_grad()
def test_every_stage_of_version_1():
    golden = GoldenFile(GOLDEN / "evfsam" / "e2e_evfsam_seed0.npz")
    model = deterministic_model(PRESETS["evfsam"])
    rgb = check_picture(golden)
    resized = resize_longest(rgb, 1024)
    golden.equal("resize_shape", resized.shape[:2])
    golden.equal("resized_crc32", zlib.crc32(resized.tobytes()))
    sam, beit = prepare_image(rgb, model.config)
    golden.compare("sam_input", sam[0], 1e-6)
    golden.compare("beit_input", beit, *SQUARE)

    seen = Seen()
    encoder = model.sam.image_encoder
    seen.outputs(encoder.patch_embed, "debug_sam_patches")
    for block in (0, 7, 16, 31):
        seen.outputs(encoder.blocks[block], f"debug_sam_block{block}")
    encoded = model.encode_sam(sam)
    for name, value in (seen | encoded).items():
        golden.compare(name, value, *IMAGE)

    check_words(golden, model, beit)
    check_masks(golden, model, beit, encoded)
    golden.finish()


@torch.no_grad()
def test_every_stage_of_version_2():
    golden = GoldenFile(GOLDEN / "evfsam" / "e2e_evfsam2_seed0.npz")
    model = deterministic_model(PRESETS["evfsam2"])
    rgb = check_picture(golden)
    resized = resize_to_square(rgb, 1024).transpose(2, 0, 1)
    golden.compare("resized", torch.from_numpy(resized.copy()), 0)
    golden.equal("resized_crc32", zlib.crc32(resized.tobytes()))
    sam, beit = prepare_image(rgb, model.config)
    golden.compare("sam_input", sam[0], 1e-6)

    seen = Seen()
    encoder = model.sam2.image_encoder
    seen.outputs(encoder.trunk.patch_embed, "debug_patches")
    for block in (0, 2, 8, 23, 44, 47):
        seen.outputs(encoder.trunk.blocks[block], f"debug_block{block}")
    encoder.neck.register_forward_hook(
        lambda module, args, maps: seen.update({f"fpn_{i}": one for i, one in enumerate(maps)})
    )
    encoded = model.encode_sam(sam)
    for name, value in (seen | encoded).items():
        golden.compare(name, value, *IMAGE)

    model.sam2.sam_mask_decoder.register_forward_hook(
        lambda module, args, found: decoded.append(found)
    )
    decoded: list = []
    check_masks(golden, model, beit, encoded)
    for end, found in zip(ENDS, decoded, strict=True):
        golden.compare(f"iou_predictions{end}", found.iou_predictions, *BEHIND)
        golden.equal(f"best{end}", int(found.best))
    golden.compare("decoder_tokens", decoded[0].tokens, *BEHIND)
    golden.compare("decoder_image_tokens", decoded[0].image_tokens, *BEHIND)
    golden.compare("masks", decoded[0].masks, *BEHIND)
    golden.finish()


ENDS = ("", "_1", "_2", "_3")  # of the expressions' arrays


def check_picture(golden: GoldenFile) -> np.ndarray:
    """The picture, and what is asked of it."""
    rgb = inputs.image(0, *SIZE)
    golden.equal("original_size", SIZE)
    golden.equal("image_crc32", zlib.crc32(rgb.tobytes()))
    assert json.loads(str(golden.take("expressions"))) == list(EXPRESSIONS)
    return rgb


def words(expressions, length=None) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids int64 and mask float32 of expressions."""
    ids, mask = map(torch.from_numpy, tokens(expressions, length))
    return ids, mask.float()


def check_words(golden: GoldenFile, model: EvfsamModel, beit_image: torch.Tensor) -> None:
    """BEiT-3 with every layer at every position, and several expressions at once."""
    beit3, first = model.beit3, next(iter(EXPRESSIONS))
    golden.compare("beit_vision_tokens", beit3.vision_embed(beit_image), *BEHIND)
    ids, mask = words([first])
    golden.equal("input_ids", ids)
    image, text = beit3.embed_image(beit_image), beit3.embed_text(ids, mask)
    golden.compare("beit_embedded", torch.cat([image, text], 1), *BEHIND)
    for number, layer in enumerate(beit3.encoder.layers):
        image, text = layer(image, text, beit3.bias(mask))
        if number in (0, 11, 23):
            golden.compare(f"debug_beit_layer{number}", torch.cat([image, text], 1), *BEHIND)
    out = torch.cat(beit3.encoder.layer_norm(image, text), 1)
    golden.compare("beit_out", out, *BEHIND)

    ids, mask = words(EXPRESSIONS)
    golden.equal("padded_ids", ids)
    assert (mask == (ids != PAD)).all()
    images = beit3.embed_image(beit_image).expand(len(ids), -1, -1)
    cls = beit3(images, beit3.embed_text(ids, mask), mask)
    golden.compare("padded_cls", cls[:, 0], *BEHIND)


def check_masks(
    golden: GoldenFile, model: EvfsamModel, beit_image: torch.Tensor, encoded: dict
) -> None:
    """Each expression on its own, from the words to the picture's mask.

    encoded: of `EvfsamModel.encode_sam`.
    """
    beit3, seen = model.beit3, Seen()
    tokens_of_image = beit3.embed_image(beit_image)
    seen.outputs(beit3, "cls")
    if model.config.version == "1":
        model.sam.mask_decoder.transformer.register_forward_hook(
            lambda module, args, out: seen.update(tokens=out[0], image_tokens=out[1])
        )
    for end, expression in zip(ENDS, EXPRESSIONS, strict=True):
        ids, mask = words([expression])
        prompt = model.prompt(tokens_of_image, beit3.embed_text(ids, mask), mask)
        golden.compare(f"cls{end}", seen["cls"][:, 0], *BEHIND)
        golden.compare(f"sparse_prompt{end}", prompt, *BEHIND)
        low = model.decode_masks(encoded, prompt)
        golden.compare(f"low_res_logits{end}", low, *BEHIND)
        logits = picture_logits(low, model.config, *SIZE)[:, 0]
        golden.compare(f"logits{end}", logits, *LOGITS)
        pixels = int((logits > 0).sum())
        assert abs(pixels - int(golden.take(f"mask_pixels{end}"))) <= DIFFERENT_PIXELS
        if not end:
            check_first_mask(golden, model, seen, low, logits)


def check_first_mask(
    golden: GoldenFile,
    model: EvfsamModel,
    seen: Seen,
    low: torch.Tensor,
    logits: torch.Tensor,
) -> None:
    """What the files have of the main expression alone."""
    wanted = golden.bits("mask_bits", SIZE)
    found = (logits[0] > 0).numpy()
    assert (found & wanted).sum() / (found | wanted).sum() >= LEAST_IOU
    if model.config.version == "1":
        golden.compare("decoder_tokens", seen["tokens"], *BEHIND)
        golden.compare("decoder_image_tokens", seen["image_tokens"], *BEHIND)
        prompts = model.sam.prompt_encoder
        golden.compare("dense_pe", prompts.get_dense_pe(), *DENSE_PE)
        golden.compare("dense_prompt", prompts.no_mask_embed.weight[..., None, None], 1e-6)
        whole = F.interpolate(low, size=(1024, 1024), mode="bilinear", align_corners=False)
        golden.compare("logits_1024", whole, *LOGITS)
