"""LISA's made-up weights, its presets, its parameter table, and its pass by value name."""

from __future__ import annotations

import json
import math
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from lisa_helper import clip_keys, official_keys

from conftest import GOLDEN
from golden.lisa.inputs import ANSWER, EXPRESSIONS, IM_END, IM_START, question
from ris.engines.errors import CheckpointError
from ris.reference.layers.letterbox import letterbox_size
from ris.reference.lisa.config import PRESETS, LisaConfig
from ris.reference.lisa.deterministic import clip_file_tensor, deterministic_model, make_tensor
from ris.reference.lisa.family import LisaFamily
from ris.reference.lisa.keys import MODULES
from ris.reference.lisa.llama import Kept, causal_bias, rotary_tables
from ris.reference.lisa.model import empty_model
from ris.reference.lisa.preprocess import covering_size
from ris.reference.lisa.templates import question_text, system_ids, system_text

LISA = LisaFamily()
TINY = PRESETS["tiny-lisa"]
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def drawn(key: str, shape) -> np.ndarray:
    """The tensor of a key as the files have it."""
    if key.startswith("vision_model."):
        return clip_file_tensor(key, shape)
    return make_tensor(key.removeprefix("model."), shape)


def test_the_weight_rule_draws_the_golden_numbers():
    """All but the two largest of the file, which the golden passes draw, and a file's copy."""
    checks = json.loads((GOLDEN / "lisa" / "weights_check.json").read_text())
    left_out = ("model.embed_tokens.weight", "lm_head.weight")
    for key, want in checks.items():
        if key in left_out or key.endswith("inv_freq"):
            continue
        got = drawn(key, want["shape"])
        assert zlib.crc32(np.ascontiguousarray(got).tobytes()) == want["crc32"], key
        np.testing.assert_array_equal(got.ravel()[: len(want["first"])], np.float32(want["first"]))


@pytest.mark.full
@pytest.mark.parametrize("key", ["model.embed_tokens.weight", "lm_head.weight"])
def test_the_weight_rule_draws_the_golden_tables(key):
    want = json.loads((GOLDEN / "lisa" / "weights_check.json").read_text())[key]
    assert zlib.crc32(drawn(key, want["shape"]).tobytes()) == want["crc32"]


def test_packed_clip_weights_are_those_of_the_file():
    """Queries, keys and values, which the model has in one tensor."""
    layer, width = "vision_model.encoder.layers.4.self_attn.", 8
    packed = make_tensor("clip.visual.transformer.resblocks.4.attn.in_proj_weight", (24, width))
    parts = [clip_file_tensor(f"{layer}{n}_proj.weight", (width, width)) for n in "qkv"]
    np.testing.assert_array_equal(packed, np.concatenate(parts))


def test_state_dict_keys_are_those_that_a_mask_reads():
    """Every key and shape of LISA-7B-v1 that reaches a mask; all others but SAM's are not built."""
    state = empty_model(PRESETS["lisa-7b"]).state_dict()
    ours = {key: list(value.shape) for key, value in state.items() if not key.startswith("clip.")}
    theirs = {key.removeprefix("model."): one for key, one in official_keys().items()}
    read = {key: one["shape"] for key, one in theirs.items() if one["reach"] == "mask"}
    assert read.items() <= ours.items()
    more = {key for key in ours if key not in read}
    assert all(theirs[key]["reach"] == "-" for key in more)
    assert all(key.startswith("visual_model.") for key in more)
    # q, k and v of a layer are one here
    clip = [key for key in state if key.startswith("clip.")]
    unused = 18 + 1  # the last layer, the last norm; the projection is of the whole CLIP
    assert len(clip) - len(("proj", "ln_post.weight", "ln_post.bias")) == 391 - unused + 1 - 23 * 4


# elements by the beginnings of keys, of 7B and of 13B
TABLE = {
    "embed_tokens.": (131_088_384, 163_855_360),
    "layers.": (6_476_269_568, 12_688_181_760),
    "norm.": (4_096, 5_120),
    "lm_head.": (131_088_384, 163_855_360),
    "mm_projector.": (4_198_400, 5_248_000),
    "text_hidden_fcs.0.": (17_830_144, 27_530_496),
    "visual_model.image_encoder.": (637_026_048, 637_026_048),
    "visual_model.prompt_encoder.": (6_476, 6_476),
    "visual_model.mask_decoder.": (4_058_340, 4_058_340),
}
ALL = (7_401_569_840, 13_689_766_960)
CLIP_TOWER = 303_179_776


def counted(preset: str) -> dict[str, int]:
    """Elements of a released file by the beginnings of keys.

    The model's, and what is not built: the head, and a copy of the rotary frequencies a layer.
    """
    config = PRESETS[preset]
    sizes = {key: value.numel() for key, value in empty_model(config).state_dict().items()}
    sizes["lm_head.weight"] = config.llama.vocab_size * config.llama.width
    for index in range(config.llama.layers):
        sizes[f"layers.{index}.self_attn.rotary_emb.inv_freq"] = config.llama.head_width // 2
    found = {start: sum(n for key, n in sizes.items() if key.startswith(start)) for start in TABLE}
    clip = sum(n for key, n in sizes.items() if key.startswith("clip."))
    assert sum(found.values()) + clip == sum(sizes.values())
    return found


@pytest.mark.parametrize(("column", "preset"), enumerate(["lisa-7b", "lisa-13b"]))
def test_parameter_table(column, preset):
    found = counted(preset)
    assert found == {start: numbers[column] for start, numbers in TABLE.items()}
    assert sum(found.values()) == ALL[column]
    starts = [start for _, start in MODULES]
    assert {start for start in TABLE if any(start.startswith(one) for one in starts)} == set(TABLE)


def test_parameters_of_the_files_keys():
    """The same table from the keys of the released files."""
    keys = official_keys()
    for start, (number, _) in TABLE.items():
        shapes = [
            one["shape"]
            for key, one in keys.items()
            if key.removeprefix("model.").startswith(start)
        ]
        assert sum(map(math.prod, shapes)) == number, start
    assert sum(math.prod(one["shape"]) for one in clip_keys().values()) == CLIP_TOWER
    size = sum(
        math.prod(one["shape"]) * (2 if one["released"] == "bfloat16" else 4)
        for one in keys.values()
    )
    assert size == 16_120_981_696


@pytest.mark.parametrize("config", PRESETS.values(), ids=PRESETS)
def test_a_configuration_survives_json(config):
    data = json.loads(json.dumps(config.to_dict()))
    assert LisaConfig.from_dict(data) == config
    assert LISA.carried_config(data, "here") == config
    with pytest.raises(TypeError, match="unknown model configuration fields: colour"):
        LisaConfig.from_dict({**config.to_dict(), "colour": 1})
    with pytest.raises(CheckpointError, match=r"eps is 'small', not a finite number"):
        LISA.carried_config({**data, "llama": {**data["llama"], "eps": "small"}}, "here")


def test_every_method_of_the_row():
    """What tests/reference/test_families.py asks of the families in the table."""
    for preset, config in LISA.presets.items():
        assert config.preset == preset
        keys = list(LISA.empty_model(config).state_dict())
        assert any(key.startswith(LISA.signs) for key in keys)
        rules = LISA.key_rules(config)
        assert {rules.module_of(key) for key in keys} <= set(rules.names()) - {"other"}
        assert set(LISA.brings) <= set(rules.names())
        for prefix in LISA.components.values():
            assert any(key.startswith(prefix) for key in keys)
        for part in LISA.shared_parts():
            for key in (part.gives, *(key for key, _ in part.takes)):
                assert not key or key in keys


def test_the_published_models():
    seven, thirteen = PRESETS["lisa-7b"], PRESETS["lisa-13b"]
    assert (seven.llama.eps, thirteen.llama.eps) == (1e-6, 1e-5)
    assert (seven.llama.head_width, thirteen.llama.head_width) == (128, 128)
    assert (seven.tokens.seg, thirteen.tokens.seg) == (32003, 32000)
    assert seven.clip_layers == 23
    for config in (seven, thirteen):
        assert config.image_tokens == 256
        assert config.prefix_length == 292
        assert len(config.constant_ids) == 35
        assert config.constant_ids[-1] == IM_START
        assert config.tokens.im_end == IM_END
        assert replace(config, template="llava_llama_2").prefix_length == 308


def templates(kind: str) -> list[dict]:
    data = json.loads((GOLDEN / "lisa" / "tokenizer_tests.json").read_text())
    return data["llama"]["template"] if kind == "llama" else data["template"]


@pytest.mark.parametrize("kind", ["llama", "tiny"])
def test_what_is_fixed_of_a_conversation(kind):
    """The ids in front of the picture; the words around it and the question."""
    rows = 32004 if kind == "llama" else TINY.llama.vocab_size
    strings = {(r["expression"], r["template"]): r.get("string") for r in templates("tiny")}
    for row in templates(kind):
        template, ids = row["template"], row["ids"]
        place = ids.index(-200)
        assert tuple(ids[: place - 1]) == system_ids(template, rows)
        string = strings[row["expression"], template]
        words = system_text(template)
        asked = question_text(row["expression"], row["form"], template)
        assert string.startswith(words)
        front, _, behind = string.removeprefix(words).partition("<im_start><image><im_end>")
        assert front.strip() == ""
        assert behind.partition(" [SEG]")[0].strip() == asked
    for text in EXPRESSIONS if kind == "llama" else ():
        wanted = next((r["ids"] for r in templates("llama") if r["expression"] == text), None)
        if wanted is not None:
            assert wanted[-len(ANSWER) - len(question(text)) :] == question(text) + ANSWER


def test_forms_of_a_question():
    assert question_text(" Left Man ", "phrase", "llava_v1") == (
        "What is left man in this image? Please output segmentation mask. ASSISTANT:"
    )
    assert question_text(" Who is tall? ", "sentence", "llava_llama_2") == (
        "Who is tall? Please output segmentation mask. [/INST]"
    )


def test_a_vocabulary_that_is_not_llamas_has_no_fixed_ids():
    with pytest.raises(CheckpointError, match="the language model has 50257 tokens"):
        system_ids("llava_v1", 50257)


def test_sizes_of_pictures():
    """The covering picture is rounded down, the letterbox to the nearest."""
    assert covering_size(480, 640, 224) == (224, 298)  # 298.67
    assert covering_size(640, 480, 224) == (298, 224)
    assert covering_size(5, 5, 224) == (224, 224)
    assert covering_size(1, 1000, 224) == (224, 224000)
    assert letterbox_size(480, 640, 1024) == (768, 1024)
    assert letterbox_size(1, 5000, 1024) == (1, 1024)


def test_the_tiny_preset_has_every_trap():
    """Several heads, layers on both sides of the cuts, layers of CLIP that are not run."""
    assert TINY.llama.heads > 1
    assert TINY.llama.layers > 2
    assert TINY.clip_layers == TINY.clip.layers - 1 > 1
    assert TINY.image_tokens == 16
    assert not TINY.llama.width % 128
    assert not TINY.llama.mlp_width % 128


# --- the pass in parts against the whole ---


@pytest.fixture(scope="module")
def model():
    return deterministic_model(TINY, 3)


IDS = torch.tensor([[379, 287, 577, 464, 289, 779], [379, 287, 300, 779, 0, 0], [331] * 5 + [0]])
LENGTHS = torch.tensor([6, 4, 5])


def whole_states(model, tokens: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """The normed states of one pass over everything, spelled out: [T of all, width]."""
    config = model.config
    front = model.embed_tokens(torch.tensor([config.constant_ids]))
    behind = model.embed_tokens(torch.tensor([[config.tokens.im_end, *ids.tolist()]]))
    x = torch.cat([front, tokens, behind], 1)
    rotary = rotary_tables(0, x.shape[1], config.llama.head_width, x)
    for layer in model.layers:
        x, _ = layer(x, rotary, None, causal_bias(x.shape[1], x))
    return model.norm(x)[0]


@pytest.mark.parametrize("template", ["llava_v1", "llava_llama_2"])
@torch.no_grad()
def test_prefix_and_question_are_the_whole_pass(template):
    """For each of two pictures and three questions of one batch, both in the last layer's cuts."""
    model = deterministic_model(replace(TINY, template=template), 3)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(2, TINY.image_tokens, TINY.llama.width, generator=generator) / 20
    prefix = model.read_picture(tokens)
    assert prefix.positions == model.config.prefix_length
    for picture in range(2):
        one = Kept(*(part[picture : picture + 1] for part in prefix))
        hidden = model.read_question(IDS, LENGTHS - 1, one)
        for row, length in enumerate(LENGTHS):
            whole = whole_states(model, tokens[picture : picture + 1], IDS[row, :length])
            torch.testing.assert_close(hidden[row], whole[-1], **CLOSE)


@torch.no_grad()
def test_what_is_in_front_of_the_picture_is_a_constant(model):
    tokens = torch.zeros(2, TINY.image_tokens, TINY.llama.width)
    tokens[1] += 1
    constant = model.constant_prefix()
    assert constant.keys.shape == (1, 3, 4, 33, 32)
    prefix = model.read_picture(tokens, constant)
    for kept, fixed in zip(prefix, constant, strict=True):
        assert torch.equal(kept[:, :, :, :33], fixed.expand(2, -1, -1, -1, -1))
        assert not torch.allclose(kept[0, :, :, 33:], kept[1, :, :, 33:], atol=1e-3)


@torch.no_grad()
def test_rows_of_a_batch_do_not_see_each_other(model):
    """Nor the padding behind a question, whatever it is."""
    tokens = torch.randn(1, 16, 128, generator=torch.Generator().manual_seed(1)) / 20
    prefix = model.read_picture(tokens)
    together = model.read_question(IDS, LENGTHS - 1, prefix)
    for row, length in enumerate(LENGTHS):
        alone = model.read_question(IDS[row : row + 1, :length], length[None] - 1, prefix)
        torch.testing.assert_close(together[row : row + 1], alone, **CLOSE)
    other = IDS.clone()
    other[1, 4:] = 700
    found = model.read_question(other, LENGTHS - 1, prefix)
    torch.testing.assert_close(found, together, **CLOSE)
    other[1, 3] = 700
    found = model.read_question(other, LENGTHS - 1, prefix)
    assert not torch.allclose(found[1], together[1], atol=1e-2)
    torch.testing.assert_close(found[[0, 2]], together[[0, 2]], **CLOSE)


@torch.no_grad()
def test_values_are_those_of_the_whole_model(model):
    """Three expressions about two pictures, as the model has each of them alone."""
    pictures = np.random.default_rng(1).integers(0, 255, (2, 40, 60, 3), np.uint8)
    index = [1, 0, 1]
    prepared = [LISA.prepare(model, picture) for picture in pictures]
    images = {name: torch.cat([one[name] for one in prepared]) for name in prepared[0]}
    assert {name: tuple(value.shape) for name, value in images.items()} == {
        "sam_image": (2, 3, 256, 256),
        "clip_image": (2, 3, 56, 56),
    }
    encoded = LISA.encode(model, images)
    asked = {
        "input_ids": IDS.int(),
        "text_mask": (torch.arange(6) < LENGTHS[:, None]).float(),
    }
    values = LISA.ask(model, {name: value[index] for name, value in encoded.items()} | asked)
    assert list(values) == ["sparse_prompt", "mask_logits"]
    whole = model(images["sam_image"][index], images["clip_image"][index], IDS, LENGTHS - 1)
    for name, value in values.items():
        torch.testing.assert_close(value, getattr(whole, name), rtol=1e-4, atol=1e-4, msg=name)
    found = {
        "image_embeddings": whole.image_embeddings,
        "image_tokens": whole.image_tokens,
        "prefix_keys": whole.prefix.keys,
        "prefix_values": whole.prefix.values,
    }
    assert list(encoded) == list(found)
    for name, value in encoded.items():
        torch.testing.assert_close(value[index], found[name], rtol=1e-4, atol=1e-4, msg=name)

    # one picture for all expressions
    one = {name: value[:1] for name, value in encoded.items()}
    shared = LISA.ask(model, one | asked)
    torch.testing.assert_close(shared["mask_logits"][1], values["mask_logits"][1], **CLOSE)
    assert not torch.allclose(shared["mask_logits"][0], values["mask_logits"][0], atol=1e-2)
