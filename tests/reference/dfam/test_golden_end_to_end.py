"""The full-size model against the end-to-end golden files, every stage, both variants.

Sections 21 and 22 of docs/reference/models/dfam.md.
"""

from __future__ import annotations

import zlib

import numpy as np
import pytest
import torch

from conftest import GOLDEN
from golden import inputs
from ris.reference.dfam.config import PRESETS
from ris.reference.dfam.deterministic import deterministic_model
from ris.reference.dfam.model import empty_model
from ris.reference.dfam.preprocess import prepare_image
from ris.reference.preprocess import resize_logits, resize_to_square

# what to accept of the maximum and of the 99th percentile, in standard deviations of the stage
PLAIN = (1e-4, 1e-4)
# behind PWAM's instance norms, which amplify the rounding of the bicubic CLIP resize
AMPLIFIED = (1e-3, 2e-4)
# behind DFAM's thresholded masks: a logit near zero may fall on the other side
MASKED = (np.inf, 1e-3)


@pytest.fixture(scope="module")
def full_size_model():
    """The paper's model, [CLS] variant, with the golden weights (seed 0)."""
    return deterministic_model(PRESETS["vitb-vitl336"])


@pytest.fixture(scope="module")
def encoded(full_size_model):
    """The image stages and the encoders' inner states, which both variants share."""
    model = full_size_model
    image = inputs.image(0)
    seen: dict[str, torch.Tensor] = {}

    def keep(name):
        return lambda module, args, output: seen.update({name: output})

    visual = model.clip_dense.clip_model.visual
    blocks = model.sam.image_encoder.blocks
    hooks = [
        model.sam.image_encoder.patch_embed.register_forward_hook(keep("debug_sam_patch_embed")),
        *(blocks[i].register_forward_hook(keep(f"debug_sam_block_{i}")) for i in (0, 2, 11)),
        visual.ln_pre.register_forward_hook(keep("debug_clip_ln_pre")),
        *(
            visual.transformer.resblocks[i].register_forward_hook(keep(f"debug_clip_block_{i}"))
            for i in (0, 11, 23)
        ),
    ]
    sam_input, clip_input = prepare_image(image, model.config)
    seen["sam_input"], seen["clip_input"] = sam_input[0], clip_input
    seen["resized"] = torch.from_numpy(resize_to_square(image, 1024).copy())
    seen["sam_embedding"] = model.encode_sam(sam_input)
    seen["clip_tokens"] = model.encode_clip(clip_input)
    seen["clip_last_block"] = seen.pop("debug_clip_block_23")
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("variant", ["grefcoco", "refcoco"])
def test_every_stage(variant, encoded, full_size_model):
    golden = np.load(GOLDEN / f"e2e_{variant}_seed0.npz")
    left = set(inputs.names(golden))
    failures = []

    def check(name, got, accept):
        left.discard(name)
        result = inputs.compare(golden, name, got.detach().numpy())
        if result["max"] > accept[0] or result["p99"] > accept[1]:
            failures.append(f"{name}: {result}, accepted {accept}")

    def equal(name, got):
        left.discard(name)
        assert golden[name] == got, name

    model = full_size_model
    if variant == "refcoco":
        model = empty_model(model.config.with_category_query())
        wanted = model.state_dict().keys()
        state = {k: v for k, v in full_size_model.state_dict().items() if k in wanted}
        model.load_state_dict(state, assign=True)

    equal("image_crc32", zlib.crc32(inputs.image(0).tobytes()))
    equal("resized_crc32", zlib.crc32(encoded["resized"].numpy().tobytes()))
    equal("category", "person" if variant == "refcoco" else "")
    ids, mask = inputs.tokens(0)
    np.testing.assert_array_equal(golden["token_ids"], ids)
    np.testing.assert_array_equal(golden["token_mask"], mask)
    left -= {"token_ids", "token_mask"}

    check("resized", encoded["resized"], (0, 0))
    check("sam_input", encoded["sam_input"], (1e-6, 1e-6))
    check("clip_input", encoded["clip_input"], (3e-4, 3e-5))
    inner = [name for name in encoded if name.startswith("debug_")]
    for name in (*inner, "sam_embedding", "clip_last_block"):
        check(name, encoded[name], PLAIN)

    bert: dict[str, torch.Tensor] = {}
    hooks = [
        model.text_encoder.embeddings.register_forward_hook(
            lambda m, i, o: bert.update(embeddings=o)
        ),
        model.text_encoder.encoder.layer[0].register_forward_hook(
            lambda m, i, o: bert.update(layer_0=o[0] if isinstance(o, tuple) else o)
        ),
    ]
    with torch.no_grad():
        out = model.ask(
            encoded["sam_embedding"],
            encoded["clip_tokens"],
            torch.from_numpy(ids),
            torch.tensor([0]),
        )
    for hook in hooks:
        hook.remove()

    check("debug_bert_embeddings", bert["embeddings"], PLAIN)
    check("debug_bert_layer_0", bert["layer_0"], PLAIN)
    check("bert_last", out.bert_states, PLAIN)
    check("text_projected", out.text_features, PLAIN)
    if variant == "refcoco":
        check("category_projected", out.sparse_query[:, 0], PLAIN)
    check("fused", out.fused, AMPLIFIED)
    for name, level in zip(("p2", "p3", "p4"), out.clip_pyramid, strict=True):
        check(f"clip_pyramid_{name}", level, AMPLIFIED)
    for i, level in enumerate(out.pixel_maps):
        check(f"pixel_ms_{i}", level, AMPLIFIED)
    check("mask_features", out.dense_prompt, AMPLIFIED)
    check("dense_embedding", out.dense_embedding, AMPLIFIED)
    check("sparse_query", out.sparse_query, PLAIN)
    check("sparse_token", out.sparse_prompt, PLAIN)
    check("sparse_embedding", out.sparse_prompt, PLAIN)
    check("low_res_logits", out.mask_logits, AMPLIFIED)

    probability = resize_logits(out.mask_logits, 1024, 1024).sigmoid()[0]
    scale = inputs.compare(golden, "probability", probability.numpy())["scale"]
    check("probability", probability, (5e-4 / scale, np.inf))
    left.discard("mask_pixels")
    flipped = abs(int(golden["mask_pixels"]) - int((probability > 0.5).sum()))
    assert flipped <= 0.001 * probability.numel()

    if variant == "grefcoco":
        for name, level in zip(("p4", "p5", "p6"), out.sam_pyramid, strict=True):
            check(f"sam_pyramid_{name}", level, PLAIN)
        for i in range(4):
            check(f"dfam_mask_logits_{i}", out.dfam.mask_logits[i], MASKED)
        for i in (1, 2, 3):
            check(f"dfam_queries_sam_{i}", out.dfam.queries_sam[i], MASKED)
        check("dfam_queries_clip_3", out.dfam.queries_clip[3], MASKED)
        check("dfam_object_embedding", out.dfam.object_embedding, MASKED)
        scale = inputs.compare(golden, "nt_logits", out.no_target_logits.numpy())["scale"]
        check("nt_logits", out.no_target_logits, (5e-4 / scale, np.inf))
        check("nt_sigmoid", out.no_target_logits.sigmoid()[0], (np.inf, np.inf))
        np.testing.assert_allclose(
            golden["nt_sigmoid"], out.no_target_logits.sigmoid()[0], atol=5e-4
        )
        equal("nt_class", int(out.no_target_logits.argmax()))
    assert not failures, "\n".join(failures)
    assert not left, f"arrays that no assertion looked at: {sorted(left)}"
