"""LISA's checkpoints: folders of shards load, other versions are refused by name."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from lisa_helper import (
    added_tokens_of,
    clip_keys,
    is_half,
    official_keys,
    released_state,
    write_clip,
    write_folder,
    write_json,
)
from safetensors.torch import save_file

from checkpoint_files import refused
from ris.engines.errors import CheckpointError
from ris.reference.checkpoint import WeightFiles, inspect, load_model
from ris.reference.families import FAMILIES, recognise
from ris.reference.lisa.config import PRESETS, AddedTokens
from ris.reference.lisa.deterministic import deterministic_model
from ris.reference.lisa.family import LisaFamily

TINY = PRESETS["tiny-lisa"]
GIVE = "give LISA-7B-v1 or LISA-13B-llama2-v1"
OTHERS = "LISA++, LISA v0 and plain LLaVA are other models, which this version does not run"


@pytest.fixture(autouse=True)
def family(monkeypatch):
    """LISA in the table of families."""
    monkeypatch.setitem(FAMILIES, "lisa", LisaFamily())
    return FAMILIES["lisa"]


@pytest.fixture(scope="module")
def state():
    return released_state(TINY)


@pytest.fixture
def folder(state, tmp_path):
    return write_folder(tmp_path / "LISA-7B-v1", TINY, state)


@pytest.fixture
def clip(tmp_path):
    return write_clip(tmp_path / "clip.safetensors", TINY)


def change(path, **entries):
    """Changes entries of a JSON file; None takes one out."""
    found = json.loads(path.read_text()) | entries
    write_json(path, {name: value for name, value in found.items() if value is not None})


def test_official_keys_load(tmp_path, family):
    """A number for each key of LISA-7B-v1 and of CLIP, one in memory and in the files."""
    keys, vision = official_keys(), clip_keys()
    assert (len(keys), len(vision)) == (923, 391)
    tensors = {
        key: torch.tensor(i / 64, dtype=getattr(torch, one["released"])).expand(one["shape"])
        for i, (key, one) in enumerate(keys.items(), 1)
    }
    folder = write_folder(tmp_path / "LISA-7B-v1", PRESETS["lisa-7b"], tensors)
    torch.save(
        {k: torch.zeros(()).expand(one["shape"]) for k, one in vision.items()}, tmp_path / "c"
    )
    found = inspect(WeightFiles(folder, clip=tmp_path / "c"))
    assert found.family is family
    assert found.config == PRESETS["lisa-7b"]
    assert found.keys.fits
    assert found.keys.absent == ("clip.visual.proj",)  # of the whole CLIP, without effect

    def named(reach):
        return {key.removeprefix("model.") for key, one in keys.items() if one["reach"] in reach}

    loaded = {key for key in found.keys.loaded if not key.startswith("clip.")}
    idle = {key for key in found.keys.idle if not key.startswith("clip.")}
    dead = {key for key in found.keys.dead if not key.startswith("clip.")}
    assert loaded - idle == named(("mask",))
    assert idle == {key for key in named("-") if "inv_freq" not in key}
    assert dead == {key for key in named(("-", "chat")) if key not in idle}
    assert found.keys.dead_by_module() == {
        "LLaMA layers": 32,
        "LLaMA head": 1,
        "CLIP image tower": 12,  # the last layer: queries, keys and values are one
    }
    assert {key for key in found.keys.idle if key.startswith("clip.")} == {
        "clip.visual.ln_post.weight",
        "clip.visual.ln_post.bias",
    }
    for key, one in keys.items():
        if one["reach"] == "mask":
            entry = found.entries[key.removeprefix("model.")]
            assert entry.dtype == (torch.bfloat16 if is_half(key) else torch.float32)


@pytest.mark.parametrize("kind", ["bin", "safetensors", "index", "one file", "without its head"])
def test_the_same_model_comes_out(state, clip, tmp_path, family, kind):
    end = "bin" if kind in ("bin", "index") else "safetensors"
    given = write_folder(tmp_path / "lisa", TINY, state, end)
    if kind == "index":
        given = given / "pytorch_model.bin.index.json"
    elif kind == "one file":
        given = tmp_path / "lisa.safetensors"
        save_file(state, given)
    elif kind == "without its head":
        given = tmp_path / "lisa.pth"
        torch.save({k: v for k, v in state.items() if k != "lm_head.weight"}, given)
    model, found = load_model(WeightFiles(given, clip=clip))
    assert found.family is family
    assert found.config == TINY
    wanted = deterministic_model(TINY, 3).state_dict()
    for key, value in model.state_dict().items():
        half = is_half(f"model.{key}") and not key.startswith("clip.")
        own = wanted[key].bfloat16().float() if half else wanted[key]
        assert value.dtype == torch.float32
        if key != "clip.visual.proj":  # of no effect: zeros in the file
            assert torch.equal(value, own), key
    ids, last = torch.tensor([[379, 287, 577, 779]]), torch.tensor([3])
    images = family.prepare(model, np.zeros((40, 60, 3), np.uint8))
    with torch.no_grad():
        assert model(*images.values(), ids, last).mask_logits.isfinite().all()


def test_what_the_files_beside_the_weights_say(folder, clip):
    """The eps, the heads and the ids of added tokens are in no weight."""
    change(folder / "config.json", rms_norm_eps=1e-5, num_attention_heads=2, num_key_value_heads=2)
    write_json(folder / "added_tokens.json", {"[SEG]": 800, "<im_start>": 801, "<im_end>": 803})
    found = inspect(WeightFiles(folder, clip=clip)).config
    assert found == replace(
        TINY,
        preset="custom",
        llama=replace(TINY.llama, eps=1e-5, heads=2),
        tokens=AddedTokens(801, 803, 800),
    )
    assert found.constant_ids[-1] == 801


def test_a_shortened_model_says_how_many_layers_it_has(state, clip, tmp_path):
    config = replace(TINY, llama=replace(TINY.llama, layers=2))
    short = {key: value for key, value in state.items() if not key.startswith("model.layers.2.")}
    folder = write_folder(tmp_path / "short", config, short)
    found = inspect(WeightFiles(folder, clip=clip))
    assert found.keys.fits
    assert found.config == replace(config, preset="custom")
    (folder / "config.json").unlink()
    lacking = inspect(WeightFiles(folder, clip=clip)).keys.missing
    assert len(lacking) == 9
    assert all(key.startswith("layers.2.") for key in lacking)


def test_the_template_is_a_choice(folder, clip):
    files = WeightFiles(folder, clip=clip)
    assert inspect(files).config.template == "llava_v1"
    found = inspect(files, chosen={"template": "llava_llama_2"}).config
    assert found == replace(TINY, template="llava_llama_2")
    assert (TINY.prefix_length, found.prefix_length) == (32 + 1 + 17, 87 + 1 + 17)


def test_clip_comes_from_its_own_file(folder, clip, tmp_path):
    with pytest.raises(CheckpointError) as caught:
        load_model(WeightFiles(folder))
    assert "CLIP image tower: --clip-checkpoint would bring it" in str(caught.value)
    sources = {part.module: part.tensors for part in inspect(WeightFiles(folder, clip=clip)).parts}
    assert list(sources["CLIP image tower"]) == ["clip.safetensors"]
    assert list(sources["SAM mask decoder"]) == ["pytorch_model-00002-of-00002.bin"]
    assert len(sources["LLaMA layers"]) == 2

    large = replace(TINY, clip=replace(TINY.clip, image_size=84))
    other = write_clip(tmp_path / "large.safetensors", large)
    assert refused(checkpoint=folder, clip=other) == (
        f"{folder}/pytorch_model.bin.index.json: it was trained with a CLIP of 56 pixels, the one"
        " that was given takes 84; give openai/clip-vit-large-patch14 (ViT-L-14.pt)"
    )
    narrow = replace(TINY, clip=replace(TINY.clip, width=32))
    other = write_clip(tmp_path / "narrow.safetensors", narrow)
    assert "takes 64 channels" in refused(checkpoint=folder, clip=other)


def test_sam_is_never_taken_from_a_file_of_its_own(folder, tmp_path):
    assert refused(checkpoint=folder, sam=tmp_path / "sam.pth") == (
        "a model of the family lisa has no part that --sam-checkpoint could give; leave it out"
    )


def test_version_0_is_refused(state, clip, tmp_path):
    """By what its folder has, and by what its weights lack."""
    folder = write_folder(tmp_path / "v0", TINY, state)
    torch.save({}, folder / "pytorch_model-text_hidden_fcs.bin")
    index = folder / "pytorch_model.bin.index.json"
    assert refused(checkpoint=folder, clip=clip) == (
        f"{index}: it is LISA v0 (pytorch_model-text_hidden_fcs.bin), whose code this version does"
        f" not run; {GIVE}"
    )
    lean = {key: value for key, value in state.items() if "text_hidden_fcs" not in key}
    path = tmp_path / "v0.pth"
    torch.save(lean, path)
    assert refused(checkpoint=path, clip=clip) == (
        f"{path}: it has SAM but no text_hidden_fcs.0.*, as LISA v0 has it, whose code this version"
        f" does not run; {GIVE}"
    )


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (
            {"mm_vision_tower": "openai/clip-vit-large-patch14-336"},
            "mm_vision_tower 'openai/clip-vit-large-patch14-336', where LISA v1 has"
            " 'openai/clip-vit-large-patch14'",
        ),
        (
            {"architectures": ["LlavaLlamaForCausalLM"]},
            "architectures ['LlavaLlamaForCausalLM'], where LISA v1 with these weights has"
            " ['LISAForCausalLM']",
        ),
        (
            {"num_key_value_heads": 1},
            "num_key_value_heads 1, where LISA v1 with these weights has 4",
        ),
        (
            {"rope_scaling": {"type": "linear"}},
            "rope_scaling {'type': 'linear'}, where LISA v1 with these weights has None",
        ),
        ({"vocab_size": 803}, "vocab_size 803, where LISA v1 with these weights has 804"),
    ],
)
def test_other_versions_are_refused_by_their_settings(folder, clip, entry, words):
    change(folder / "config.json", **entry)
    index = folder / "pytorch_model.bin.index.json"
    assert refused(checkpoint=folder, clip=clip) == (
        f"{index}: its config.json has {words}; {OTHERS}; {GIVE}"
    )


@pytest.mark.parametrize("token", ["[SEG]", "<im_start>", "<im_end>"])
def test_other_versions_are_refused_by_their_tokens(folder, clip, token):
    index = folder / "pytorch_model.bin.index.json"
    tokens = added_tokens_of(TINY)
    for number, words in ((None, f"no {token}"), (804, f"{token} as 804")):
        write_json(folder / "added_tokens.json", tokens | {token: number})
        assert refused(checkpoint=folder, clip=clip) == (
            f"{index}: its added_tokens.json has {words}; LISA v1 has an id below 804 there, LISA++"
            f" and LISA v0 are other models; {GIVE}"
        )


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"rms_norm_eps": 0}, "rms_norm_eps 0, no number above 0"),
        ({"rms_norm_eps": "1e-6"}, "rms_norm_eps '1e-6', no number above 0"),
        ({"num_hidden_layers": 0}, "num_hidden_layers 0, no number from 1 to 1048576"),
        ({"num_hidden_layers": 2.5}, "num_hidden_layers 2.5, no number from 1 to 1048576"),
        (
            {"num_attention_heads": 3, "num_key_value_heads": 3},
            "num_attention_heads 3, which does not divide the width 128",
        ),
    ],
)
def test_settings_are_checked(folder, clip, entry, words):
    change(folder / "config.json", **entry)
    index = folder / "pytorch_model.bin.index.json"
    assert refused(checkpoint=folder, clip=clip) == (
        f"{index}: its config.json has {words}; download it again"
    )


def test_a_projector_of_several_layers_is_refused(state, tmp_path):
    """LLaVA 1.5's."""
    other = dict(state)
    other["model.mm_projector.0.weight"] = other.pop("model.mm_projector.weight")
    torch.save(other, tmp_path / "llava.pth")
    assert refused(checkpoint=tmp_path / "llava.pth") == (
        f"{tmp_path}/llava.pth, given as --checkpoint, is a LLaVA whose projector has several"
        " layers, as LLaVA 1.5 and what is built on it have; LISA v1 has one, and LISA++ is"
        f" another model. G{GIVE[1:]}"
    )


def test_a_language_model_alone_is_refused(state, tmp_path, family):
    parts = ("model.layers.", "model.embed_tokens.", "model.norm.", "lm_head.")
    plain = {key: value for key, value in state.items() if key.startswith(parts)}
    assert recognise(key.removeprefix("model.") for key in plain) is family
    torch.save(plain, tmp_path / "llama.pth")
    assert refused(checkpoint=tmp_path / "llama.pth") == (
        f"{tmp_path}/llama.pth: it is a language model without LISA's parts (visual_model.*,"
        f" text_hidden_fcs.0.*); {GIVE}"
    )


def test_the_added_tokens_of_another_table_have_to_be_said(state, clip, tmp_path):
    table = state["model.embed_tokens.weight"]
    other = state | {"model.embed_tokens.weight": torch.cat([table, table[:1]])}
    torch.save(other, tmp_path / "lisa.pth")
    assert refused(checkpoint=tmp_path / "lisa.pth", clip=clip) == (
        f"{tmp_path}/lisa.pth: it has 805 tokens, and what the added ones are stands in"
        " added_tokens.json beside it; give the folder that holds both"
    )


def test_another_vocabulary_is_refused(tmp_path, clip):
    config = replace(TINY, llama=replace(TINY.llama, vocab_size=900))
    folder = write_folder(tmp_path / "lisa", config, released_state(config))
    assert refused(checkpoint=folder, clip=clip) == (
        f"{folder}/pytorch_model.bin.index.json: the language model has 900 tokens, LLaMA has 32000"
        f" and LISA adds three or four; {GIVE}"
    )
