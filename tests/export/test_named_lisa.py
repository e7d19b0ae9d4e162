"""`ris-export --model NAME` of a LISA as it is published: shards, words and CLIP on a Hub."""

from __future__ import annotations

import shutil

import pytest
import torch
from click.testing import CliRunner
from lisa_helper import released_state, write_clip, write_folder, write_json

import published_models
from conftest import GOLDEN
from ris.export.command import main
from ris.reference.checkpoint import WeightFiles, load_model
from ris.reference.families import FAMILIES
from ris.reference.layers.letterbox import letterbox_logits
from ris.reference.lisa.config import PRESETS
from ris.reference.lisa.templates import question_text
from ris.reference.lisa.values import ask, encode, prepare
from ris.reference.preprocess import token_ids
from ris.runtime import load, open_bundle
from ris.runtime.comparing import mask_iou
from ris.runtime.hub.models import TABLE, read_table
from traced import share_traces

NAME, REPOSITORY, CLIP = "tiny-lisa-v1", "lab/LISA-tiny-v1", "lab/clip-tiny"
CONFIG = PRESETS["tiny-lisa"]
SHARDS = [f"pytorch_model-{number:05}-of-00002.bin" for number in (1, 2)]
ASKED = ["left man", "The Red Ball, on the right."]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The released folder, and CLIP's file beside it."""
    share_traces()
    folder = tmp_path_factory.mktemp("published")
    model = write_folder(folder / "lisa", CONFIG, released_state(CONFIG))
    shutil.copy(GOLDEN / "lisa" / "tokenizer_small.model", model / "tokenizer.model")
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        write_json(model / name, {})
    (folder / "clip").mkdir()
    write_clip(folder / "clip" / "model.safetensors", CONFIG)
    return folder


@pytest.fixture
def published(hub, written, tmp_path, monkeypatch):
    """Both on the Hub, and a table that names them as the built-in one does the real files."""
    real = next(one for one in read_table(TABLE).entries if one.name == "lisa-7b-v1")
    places = {file.repository for file in real.files}
    files = [
        {
            "role": file.role,
            "name": file.name,
            "repository": REPOSITORY if file.repository == real.repository else CLIP,
        }
        for file in real.files
    ]
    assert len(places) == 2, "LISA's own repository and CLIP's"
    terms = {"word": "llama", "words": "its weights contain LLaMA."}
    entry = published_models.entry(
        name=NAME, family="lisa", preset="tiny-lisa", files=files, terms=terms
    )
    monkeypatch.setenv(
        "RIS_MODELS", str(published_models.write_table(tmp_path / "table.json", entry))
    )
    hub.folder(REPOSITORY, written / "lisa")
    hub.folder(CLIP, written / "clip")
    return hub


def export(*arguments):
    return CliRunner().invoke(main, ["--model", NAME, *map(str, arguments)])


def test_nothing_is_asked_before_the_terms_are_accepted(published, tmp_path):
    done = export("--out", tmp_path / "bundle")
    assert done.exit_code == 2
    assert "its weights contain LLaMA. Where that is so, say --accept-licence llama" in done.stderr
    assert published.requests == []


def test_a_dry_run_names_every_file_and_downloads_none(published, tmp_path):
    done = export("--accept-licence", "llama", "--out", tmp_path / "bundle", "--dry-run")
    assert done.exit_code == 0, done.output
    for name in (*SHARDS, "tokenizer.model", "added_tokens.json", "model.safetensors"):
        assert f"would download {name}" in done.output
    assert published.sent() == 0


def test_one_command_from_a_name_to_the_references_masks_gone_on_with(
    published, written, tmp_path, picture
):
    """It breaks off in the second shard; given again, it goes on from there."""
    out, second = tmp_path / "bundle", written / "lisa" / SHARDS[1]
    command = ["--accept-licence", "llama", "--out", out]
    place = f"/cdn/{published_models.sha256(second)}"
    published.fails(place, break_after=second.stat().st_size // 2, times=1)
    published.fails(place, break_after=0, times=5)
    broken = export(*command)
    assert broken.exit_code == 2
    assert f"the transfer of {SHARDS[1]} of {REPOSITORY} at " in broken.stderr
    assert not out.exists()

    published.sent()
    done = export(*command)
    assert done.exit_code == 0, done.output
    fetched = [seen for seen in published.requests if seen.path.startswith("/cdn/") and seen.sent]
    first = f"/cdn/{published_models.sha256(written / 'lisa' / SHARDS[0])}"
    assert first not in {seen.path for seen in fetched}
    [rest] = [seen for seen in fetched if seen.path == place]
    assert int(rest.range.removeprefix("bytes=").removesuffix("-")) > second.stat().st_size // 4

    source = open_bundle(out).manifest.source
    assert (source.published.name, source.published.repository) == (NAME, REPOSITORY)
    assert source.published.verified
    assert [part.component for part in source.components] == ["clip"]

    files = WeightFiles(written / "lisa", clip=written / "clip" / "model.safetensors")
    reference, _ = load_model(files)
    words = FAMILIES["lisa"].tokenizer(written / "lisa" / "tokenizer.model", CONFIG)
    with torch.no_grad(), load(out, engine="onnxruntime") as runtime:
        values = encode(reference, prepare(reference, picture))
        for answer in runtime.encode_image(picture).segment_many(ASKED):
            question = question_text(answer.expression, "phrase", CONFIG.template)
            ids = token_ids(words, [question], CONFIG.max_tokens, 0)
            texts = {"input_ids": ids, "text_mask": (ids != 0).float()}
            logits = ask(reference, values | texts)["mask_logits"]
            want = letterbox_logits(logits, *picture.shape[:2], CONFIG.sam.image_size)[0, 0] > 0
            assert mask_iou(answer.mask, want.numpy()) >= 0.9999
