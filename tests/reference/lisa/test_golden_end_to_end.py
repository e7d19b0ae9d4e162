"""The model against the end-to-end golden file: LLaMA at full width with two layers."""

from __future__ import annotations

import json
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch

from conftest import GOLDEN
from golden import inputs as pictures
from golden.lisa.inputs import ANSWER, EXPRESSIONS, IM_END, IM_START, IMAGE, SEG, questions
from golden_files import GoldenFile, Seen, filled
from ris.reference.layers.encoders import build_sam
from ris.reference.layers.letterbox import letterbox_logits, letterbox_size
from ris.reference.lisa.config import PRESETS
from ris.reference.lisa.deterministic import make_tensor
from ris.reference.lisa.llama import Kept
from ris.reference.lisa.values import ask, prepare

# what to accept of the maximum and of the 99th percentile, in standard deviations of the stage
PLAIN = (1e-4, np.inf)
LOGITS = (2e-4, 1e-4)
AT_THE_PICTURES_SIZE = (5e-4, 1e-4)
SPLIT = 1e-5  # of a whole pass and one in two parts
MASK_IOU = 0.9999
SIZE = (480, 640)


class Prepared:
    """What `prepare` needs of a model."""

    config = PRESETS["lisa-7b"]


@pytest.fixture(scope="module")
def golden():
    with torch.no_grad():
        file = GoldenFile(GOLDEN / "lisa" / "e2e_lisa_seed0.npz")
        yield file


@pytest.fixture(scope="module")
def rgb():
    return pictures.image(0, *SIZE)


def names(name: str) -> list[str]:
    """The arrays of the three expressions."""
    return [name, f"{name}_1", f"{name}_2"]


@torch.no_grad()
def test_every_stage(golden, rgb, two_layers):
    """All but SAM's image encoder, whose golden output is taken here and compared below."""
    golden.equal("image_crc32", zlib.crc32(rgb.tobytes()))
    golden.equal("resize_shape", letterbox_size(*SIZE, 1024))
    assert json.loads(str(golden.take("expressions"))) == list(EXPRESSIONS)
    images = prepare(Prepared, rgb)
    golden.compare("sam_input", images["sam_image"], 1e-6)
    golden.compare("clip_input", images["clip_image"], 1e-6)

    features = two_layers.encode_clip(images["clip_image"])
    golden.compare("clip_features", features, *PLAIN)
    tokens = two_layers.project(features)
    golden.compare("image_tokens", tokens, *PLAIN)
    prefix = check_prefix(golden, two_layers, tokens)
    whole = check_whole(golden, two_layers, tokens)

    ids, lengths = questions()
    golden.equal("question_ids", ids)
    golden.equal("question_lengths", lengths)
    last = torch.from_numpy(lengths) - 1
    hidden = two_layers.read_question(torch.from_numpy(ids), last, prefix)
    golden.compare("hidden", hidden, *PLAIN)
    spread = float(hidden.std())
    torch.testing.assert_close(hidden[:1], whole, rtol=0, atol=SPLIT * spread)
    check_padding(two_layers, prefix, hidden)

    states = two_layers.run(two_layers.embed_tokens(torch.from_numpy(ids)), prefix)
    before = states[torch.arange(3), last]
    golden.compare("hidden_before_norm", before, *PLAIN)
    golden.compare("sparse_prompt", two_layers.sparse_prompt(hidden)[:, 0], *PLAIN)
    check_answer(golden, hidden)
    check_masks(golden, two_layers, prefix)
    golden.finish()


def check_prefix(golden, model, tokens) -> Kept:
    """Keys and values of all that is in front of the question, at once and in two parts."""
    config = model.config
    given = [*config.constant_ids, IMAGE, config.tokens.im_end]
    assert given[-3:] == [IM_START, IMAGE, IM_END]
    golden.equal("prefix_ids", given)
    prefix = model.read_picture(tokens)
    assert prefix.positions == config.prefix_length == 292
    places = golden.take("prefix_positions")
    for name, found in zip(("prefix_keys", "prefix_values"), prefix, strict=True):
        golden.compare(f"{name}_all", found[0], *PLAIN)
        golden.compare(name, found[0][:, :, places], *PLAIN)

    at_once = model.remember(spliced(model, given, tokens))
    for found, wanted in zip(prefix, at_once, strict=True):
        spread = float(wanted.std())
        torch.testing.assert_close(found, wanted, rtol=0, atol=SPLIT * spread)
    return prefix


def spliced(model, ids, tokens) -> torch.Tensor:
    """What a sequence of ids begins as, the picture's tokens in the place of `IMAGE`."""
    ids = list(ids)
    place = ids.index(IMAGE)
    rows = (model.embed_tokens(torch.tensor([part])) for part in (ids[:place], ids[place + 1 :]))
    before, behind = rows
    return torch.cat([before, tokens, behind], 1)


def check_whole(golden, model, tokens) -> torch.Tensor:
    """One pass over the first sequence; the state of its colon."""
    config = model.config
    rows = golden.take("input_ids")
    _, lengths = questions()
    for row, question, length in zip(rows, questions()[0], lengths, strict=True):
        sequence = [*config.constant_ids, IMAGE, IM_END, *question[:length], *ANSWER]
        assert row.tolist() == sequence + [0] * (len(row) - len(sequence))
    golden.equal("sequence_lengths", lengths + config.prefix_length)

    begin = spliced(model, rows[0], tokens)
    golden.compare("inputs_embeds", begin, *PLAIN)
    colon = config.prefix_length + int(lengths[0])
    seen = Seen()
    handles = [seen.outputs(model.layers[i], f"layer{i}") for i in (0, 1)]
    states = model.norm(model.run(begin[:, :colon]))
    for handle in handles:
        handle.remove()
    for name, value in seen.items():
        golden.compare(name, value, *PLAIN)
    return states[:, -1]


def check_padding(model, prefix, hidden) -> None:
    """A question alone, and in a longer batch padded with another id, has the same state."""
    ids, lengths = questions(40)
    last = torch.from_numpy(lengths) - 1
    padded = torch.from_numpy(np.where(np.arange(40) < lengths[:, None], ids, SEG))
    atol = SPLIT * float(hidden.std())
    found = model.read_question(padded, last, prefix)
    torch.testing.assert_close(found, hidden, rtol=0, atol=atol)
    alone = torch.from_numpy(ids[:1, : lengths[0]])
    found = model.read_question(alone, last[:1], prefix)
    torch.testing.assert_close(found, hidden[:1], rtol=0, atol=atol)


def check_answer(golden, hidden) -> None:
    """What the head, which no mask needs, would say behind the colon."""
    head = torch.from_numpy(make_tensor("lm_head.weight", (32004, 4096)))
    logits = hidden @ head.T
    golden.compare("next_token_logits", logits, *PLAIN)
    golden.equal("next_token", logits.argmax(1))
    golden.compare("seg_logit", logits[:, SEG], *PLAIN)


def check_masks(golden, model, prefix) -> None:
    """The masks of the three expressions, by the names of values."""
    ids, lengths = questions()
    values = {
        "image_embeddings": torch.from_numpy(golden.take("image_embeddings")),
        "prefix_keys": prefix.keys,
        "prefix_values": prefix.values,
        "input_ids": torch.from_numpy(ids),
        "text_mask": torch.from_numpy(np.arange(ids.shape[1]) < lengths[:, None]).float(),
    }
    masks = ask(model, values)["mask_logits"]
    at_size = letterbox_logits(masks, *SIZE, 1024)
    for i in range(3):
        golden.compare(names("low_res_logits")[i], masks[i : i + 1], *LOGITS)
        golden.compare(names("logits")[i], at_size[i : i + 1], *AT_THE_PICTURES_SIZE)
        wanted = golden.bits(names("mask_bits")[i], SIZE)
        golden.equal(names("mask_pixels")[i], int(wanted.sum()))
        found = (at_size[i, 0] > 0).numpy()
        assert (found & wanted).sum() >= MASK_IOU * (found | wanted).sum()


@pytest.mark.full
@torch.no_grad()
def test_sam_image_encoder(rgb):
    """The whole ViT-H: 2.6 GB and 6e12 operations."""
    golden = np.load(GOLDEN / "lisa" / "e2e_lisa_seed0.npz")
    config = PRESETS["lisa-7b"]
    with torch.device("meta"):
        sam = build_sam(
            config.sam, config.prompt_width, config.decoder_heads, config.decoder_mlp_width
        )
    encoder = sam.image_encoder.to_empty(device="cpu")
    filled(encoder, "visual_model.image_encoder.", make_tensor)
    found = encoder(prepare(Prepared, rgb)["sam_image"])
    off = pictures.compare(golden, "image_embeddings", found.numpy())
    assert off["max"] <= PLAIN[0], off


def test_the_golden_model_is_7b_with_two_layers(two_layers):
    """So that what is compared above is what a 7B file makes, but for the depth."""
    whole = PRESETS["lisa-7b"]
    assert two_layers.config == replace(
        whole, llama=replace(whole.llama, layers=2), sam=two_layers.config.sam
    )
    assert two_layers.config.sam.grid == whole.sam.grid
