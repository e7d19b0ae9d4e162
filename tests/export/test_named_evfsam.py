"""`ris-export --model NAME` of an EVF-SAM that is published with its own words, on a Hub."""

from __future__ import annotations

import numpy as np
import pytest
from click.testing import CliRunner
from evfsam_helper import save

import published_models
from ris.export.command import main
from ris.reference.evfsam.config import PRESETS
from ris.reference.evfsam.deterministic import deterministic_model
from ris.reference.evfsam.values import ask, encode, prepare
from ris.reference.evfsam.vocabulary import PAD_ID
from ris.reference.families import FAMILIES
from ris.reference.preprocess import token_ids
from ris.runtime import load, open_bundle
from sentencepiece_helper import SEMANTIC, trained, with_added_tokens
from traced import share_traces

NAME, REPOSITORY, PRESET = "tiny-evf-sam2", "lab/evf-sam2", "tiny-evfsam2"
FILES = ("model.safetensors", "sentencepiece.bpe.model", "added_tokens.json")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The files as their authors publish them: bare FP16 weights, and the words beside them."""
    share_traces()
    folder = tmp_path_factory.mktemp("published")
    pieces = trained(folder / FILES[1]).get_piece_size()
    with_added_tokens(folder / FILES[1], {SEMANTIC: pieces + 2})  # behind <pad> and <mask>
    state = deterministic_model(PRESETS[PRESET]).state_dict()
    save(folder / FILES[0], {key: value.half() for key, value in state.items()})
    return folder


@pytest.fixture
def published(hub, written, tmp_path, monkeypatch):
    """The files on the Hub, and the table that names them."""
    roles = ("checkpoint", "beside", "beside")
    files = [
        {"role": role, "name": name, "repository": REPOSITORY}
        for role, name in zip(roles, FILES, strict=True)
    ]
    files[0]["sha256"] = published_models.sha256(written / FILES[0])
    entry = published_models.entry(name=NAME, family="evfsam", preset=PRESET, files=files)
    table = published_models.write_table(tmp_path / "table.json", entry)
    monkeypatch.setenv("RIS_MODELS", str(table))
    return hub.repository(REPOSITORY, {name: (written / name).read_bytes() for name in FILES})


def test_one_command_from_a_name_to_a_mask_gone_on_with(hub, published, written, tmp_path, picture):
    """It breaks off in the middle of the weights; given again, it goes on from there."""
    out, total = tmp_path / "bundle", (written / FILES[0]).stat().st_size
    command = ["--model", NAME, "--out", str(out)]
    hub.fails("/cdn/", break_after=total // 2, times=1)
    hub.fails("/cdn/", break_after=0, times=5)
    broken = CliRunner().invoke(main, command)
    assert broken.exit_code == 2
    assert f"the transfer of {FILES[0]} of {REPOSITORY} broke off" in broken.stderr
    assert not out.exists()

    hub.sent()
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 0, done.output
    assert int(hub.ranges()[0].removeprefix("bytes=").removesuffix("-")) > total // 4
    manifest = open_bundle(out).manifest
    assert manifest.source.checkpoint_sha256 == published_models.sha256(written / FILES[0])
    assert (manifest.source.published.name, manifest.source.published.verified) == (NAME, True)

    asked = ["left man", f"{SEMANTIC} cat"]
    with load(out, engine="onnxruntime") as runtime:
        answers = runtime.encode_image(picture).segment_many(asked)
    want = _reference(written, picture, asked)
    for answer, logits in zip(answers, want, strict=True):
        np.testing.assert_allclose(answer.logits, logits, atol=2e-3)
        assert answer.mask.shape == picture.shape[:2]


def _reference(folder, picture, asked):
    """What PyTorch gives for each expression with the published files, [s, s]."""
    config = PRESETS[PRESET]
    model = deterministic_model(config)
    model.load_state_dict({key: v.half().float() for key, v in model.state_dict().items()})
    words = FAMILIES["evfsam"].tokenizer(folder / FILES[1], config)
    values = encode(model, prepare(model, picture))
    for expression in asked:
        ids = token_ids(words, [expression], config.max_tokens, PAD_ID)
        texts = {"input_ids": ids, "text_mask": (ids != PAD_ID).float()}
        yield ask(model, values | texts)["mask_logits"][0, 0].numpy()
