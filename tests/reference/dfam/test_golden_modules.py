"""Each module on its own against the golden files (docs/reference/models/dfam.md 21 and 22)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from conftest import GOLDEN
from golden import inputs
from golden_files import GoldenFile, tensor
from golden_files import filled as filled_by
from ris.reference.dfam.category_table import category_rows
from ris.reference.dfam.config import PRESETS
from ris.reference.dfam.deterministic import make_tensor
from ris.reference.dfam.model import empty_model
from ris.reference.dfam.pixel_decoder import PixelDecoder
from ris.reference.dfam.pyramid import ClipPyramid, SamPyramid
from ris.reference.dfam.queries import DFAM
from ris.reference.dfam.sparse_branch import SparseBranch
from ris.reference.layers.attention import blocked_keys, sine_positions
from ris.reference.layers.encoders import build_clip, build_sam
from ris.reference.layers.pixel_words import PWAM
from ris.reference.preprocess import resize_logits

CONFIG = PRESETS["vitb-vitl336"]


def filled(module: torch.nn.Module, prefix: str) -> torch.nn.Module:
    """The module with the golden weights of the keys below `prefix`."""
    return filled_by(module, prefix, make_tensor)


class Golden(GoldenFile):
    """A golden file of one module."""

    def check(self, name: str, got: torch.Tensor, accept: float = 1e-4, p99: bool = False) -> None:
        self.compare(name, got, *((np.inf, accept) if p99 else (accept,)))


@pytest.fixture
def golden(request):
    file = Golden(GOLDEN / f"{request.param}.npz")
    yield file
    file.finish()


def golden_file(name: str):
    return pytest.mark.parametrize("golden", [name], indirect=True, ids=[name])


@golden_file("module_pwam")
def test_pwam(golden):
    pwam = filled(PWAM(1024, 256), "adaptor_clip.fusion.")
    mask = torch.zeros(1, 35)
    mask[:, :7] = 1
    clip_tokens, text = tensor("pwam.vis", (1, 576, 1024)), tensor("pwam.lang", (1, 35, 256))
    queries = pwam.project_image(clip_tokens)[1]
    golden.check("language_aligned", pwam.image_lang_att(queries, text, mask))
    golden.check("fused", pwam(clip_tokens, text, mask))


@golden_file("module_clip_pyramid")
def test_clip_pyramid(golden):
    pyramid = filled(ClipPyramid(256, 768), "backbone_clip.")
    levels = pyramid(tensor("clip_pyramid.in", (1, 256, 24, 24)))
    for name, level in zip(("p2", "p3", "p4"), levels, strict=True):
        golden.check(name, level)


@golden_file("module_sam_pyramid")
def test_sam_pyramid(golden):
    pyramid = filled(SamPyramid(256), "backbone_sam.")
    levels = pyramid(tensor("sam_pyramid.in", (1, 256, 64, 64)))
    for name, level in zip(("p4", "p5", "p6"), levels, strict=True):
        golden.check(name, level)


@pytest.mark.parametrize("sampling", ["native", "gather"])
@golden_file("module_pixel_decoder")
def test_pixel_decoder(golden, sampling):
    decoder = filled(
        PixelDecoder(768, 256, 8, 6, 4, 1024, clip_grid_only=False), "clip_pixel_decoder."
    )
    decoder.set_sampling(sampling)
    p2, p3, p4 = (tensor(f"pixel.p{i}", (1, 768, s, s)) for i, s in ((2, 48), (3, 24), (4, 12)))
    seen = {}
    layers = decoder.transformer.encoder.layers
    layers[0].self_attn.register_forward_hook(lambda m, i, o: seen.update(attention=o))
    layers[0].register_forward_hook(lambda m, i, o: seen.update(first=o))
    layers[5].register_forward_hook(lambda m, i, o: seen.update(last=o))
    mask_features, maps = decoder(p2, p3, p4)
    for level, (project, feature) in enumerate(zip(decoder.input_proj, (p4, p3, p2), strict=True)):
        golden.check(f"encoder_input_{level}", project(feature), 2e-4)
        golden.check(f"ms_{level}", maps[level], 2e-4)
    sine = sine_positions(12, 12, 256, p2).transpose(1, 2).unflatten(2, (12, 12))
    golden.check("pe_12", sine, 2e-4)
    golden.check("encoder_layer_0_attention", seen["attention"], 2e-4)
    golden.check("encoder_layer_0", seen["first"], 2e-4)
    golden.check("encoder_layer_5", seen["last"], 2e-4)
    features = decoder.fpn(maps[-1], p2, p3, p4)
    for name, feature in zip(("fpn_p4", "fpn_p3", "fpn_p2"), features, strict=True):
        golden.check(name, feature, 2e-4)
    golden.check("mask_features", mask_features, 2e-4)
    pruned, finest = decoder(p2, p3, p4, finest_only=True)
    assert len(finest) == 1
    torch.testing.assert_close(pruned, mask_features, atol=2e-5, rtol=1e-5)


@golden_file("module_sparse_branch")
def test_sparse_branch(golden):
    branch = filled(SparseBranch(256, 8, 1024, "feed_forward"), "txt2txt.")
    project = filled(torch.nn.Linear(768, 256), "clip_mlpl.")
    text = tensor("sparse.lang", (1, 35, 256))
    rows = project(torch.from_numpy(make_tensor("text_embeddings", (134, 768)))[[0, 2, 133]])
    golden.check("category_projected_0_2_133", rows)
    for name, row in zip(("person", "car", "background"), rows, strict=True):
        golden.check(f"token_{name}", branch(row[None, None], text))
    golden.check("token_cls", branch(text[:, :1], text))
    golden.check("attention_person", branch.ca.multihead_attn(rows[None, :1], text, text))


@golden_file("module_dfam")
def test_dfam(golden):
    dfam = filled(DFAM(256, 8, 1024, 100, 768, "mlp"), "decoder.")
    clip_levels = [tensor(f"dfam.clip{i}", (1, 256, s, s)) for i, s in enumerate((12, 24, 48))]
    sam_levels = [tensor(f"dfam.sam{i}", (1, 256, s, s)) for i, s in enumerate((16, 32, 64))]
    sam = torch.from_numpy(inputs.dfam_mask_input())
    golden.check("mask_input", sam)
    out = dfam(sam_levels, clip_levels, sam)
    for i in range(4):
        golden.check(f"queries_sam_{i}", out.queries_sam[i], p99=True)
        golden.check(f"queries_clip_{i}", out.queries_clip[i], p99=True)
        golden.check(f"mask_logits_{i}", out.mask_logits[i], p99=True)
    for i, s, c in ((0, 16, 12), (1, 32, 24), (2, 64, 48), (3, 16, 12)):
        golden.equal(f"blocked_keys_{i}_sam_{s}", blocked_keys(out.mask_logits[i], (s, s)).sum(-1))
        golden.equal(f"blocked_keys_{i}_clip_{c}", blocked_keys(out.mask_logits[i], (c, c)).sum(-1))
    golden.check("object_embedding", out.object_embedding, p99=True)
    golden.check("nt_per_query", out.no_target_per_query, p99=True)
    golden.check("nt_logits", out.no_target_logits)
    table = torch.from_numpy(make_tensor("text_embeddings", (134, 768)))
    words = torch.cat([tensor("dfam.clip_cls", (1, 768)), table])
    text_logits, bert_logits = dfam.training_logits(
        out.object_embedding, words, tensor("dfam.bert_cls", (1, 1, 256))[0]
    )
    golden.check("pred_logits_train", text_logits, p99=True)
    golden.check("pred_logits_bertcls_train", bert_logits, p99=True)
    queries, masks = dfam.read_sam(sam_levels, sam)
    decided = dfam.decide(queries, clip_levels[-1], masks)
    torch.testing.assert_close(decided, out.no_target_logits)


@golden_file("module_text_projection")
def test_text_projection(golden):
    project = filled(torch.nn.Linear(768, 256), "lang_mlp.")
    golden.check("projected", project(tensor("text.bert", (1, 35, 768))))


@golden_file("module_prompt_encoder")
def test_prompt_encoder(golden):
    model = empty_model(CONFIG)
    state = {
        key: torch.from_numpy(make_tensor(key, tuple(value.shape)))
        for key, value in model.state_dict().items()
        if key.startswith("sam.prompt_encoder.")
    }
    model.load_state_dict(state, assign=True, strict=False)
    dense = model.dense_embedding(tensor("prompt.dense", (1, 256, 48, 48)))
    golden.check("dense_embedding", dense)
    golden.check("dense_pe", model.sam.prompt_encoder.get_dense_pe())
    # the token passes through unchanged
    golden.check("sparse_embedding", tensor("prompt.sparse", (1, 1, 256)))


@golden_file("module_mask_decoder")
def test_mask_decoder(golden):
    sam = build_sam(CONFIG.sam, CONFIG.prompt_width, CONFIG.heads, CONFIG.decoder_mlp_width)
    filled(sam.prompt_encoder, "sam.prompt_encoder.")
    filled(sam.mask_decoder, "sam.mask_decoder.")
    seen = {}
    sam.mask_decoder.transformer.register_forward_hook(
        lambda m, i, o: seen.update(tokens=o[0], image=o[1])
    )
    sam.mask_decoder.output_upscaling.register_forward_hook(lambda m, i, o: seen.update(upscaled=o))
    logits, _ = sam.mask_decoder(
        image_embeddings=tensor("maskdec.image", (1, 256, 64, 64)),
        image_pe=sam.prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=tensor("maskdec.sparse", (1, 1, 256)),
        dense_prompt_embeddings=tensor("maskdec.dense", (1, 256, 64, 64)),
        multimask_output=False,
    )
    golden.check("tokens_out", seen["tokens"])
    golden.check("image_out", seen["image"])
    golden.check("upscaled", seen["upscaled"])
    golden.check("low_res_logits", logits)


@golden_file("module_postprocess")
def test_postprocess(golden):
    logits = resize_logits(tensor("post.low", (1, 1, 256, 256), scale=3.0), 1024, 1024)
    golden.check("logits_1024", logits)
    golden.check("probability", logits.sigmoid())


@golden_file("module_category_text")
def test_category_text(golden):
    clip = build_clip(CONFIG.clip)
    text_keys = {k: v for k, v in clip.state_dict().items() if not k.startswith("visual.")}
    state = {
        k: torch.from_numpy(np.array(make_tensor(f"clip_dense.clip_model.{k}", v.shape)))
        for k, v in text_keys.items()
    }
    clip.load_state_dict(state, strict=False)
    with torch.no_grad():
        for name in ("person", "tree-merged", "background"):
            tokens = torch.from_numpy(golden.arrays[f"tokens_{name}"])
            golden.equal(f"tokens_{name}", tokens)
            golden.check(f"unnormalised_{name}", clip.encode_text(tokens))
            golden.check(f"row_{name}", category_rows(clip, [tokens]))
