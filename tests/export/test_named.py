"""`ris-export --model NAME`: download, export, mask; gone on with; published; and each refusal."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from click.testing import CliRunner

import published_models
from published_models import NAME, REPOSITORY, VOCABULARY
from ris.engines.errors import CheckpointError
from ris.export import named
from ris.export.command import main
from ris.export.named import look_up
from ris.runtime import HubError, load, open_bundle
from ris.runtime.commands import models
from ris.runtime.hub.models import Entry, Licences, PublishedFile
from traced import share_traces

RUN = {"engine": "onnxruntime", "device": "cpu"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    share_traces()
    return published_models.write_checkpoint(tmp_path_factory.mktemp("files") / "gres.pth")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder to work in."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def listed(here, monkeypatch):
    """Writes the table that commands read."""

    def write(*entries):
        monkeypatch.setenv(
            "RIS_MODELS", str(published_models.write_table(here / "t.json", *entries))
        )

    return write


@pytest.fixture
def published(hub, checkpoint, listed):
    """The model on the Hub and in the table, with its hash."""
    entry = published_models.entry()
    entry["files"][0]["sha256"] = published_models.sha256(checkpoint)
    entry["files"][0]["bytes"] = checkpoint.stat().st_size
    listed(entry)
    files = {"gres.pth": checkpoint.read_bytes(), "vocabulary.model": VOCABULARY}
    return hub.repository(REPOSITORY, files)


def export(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


def refusal(*arguments):
    done = export(*arguments)
    assert done.exit_code == 2, done.output
    [line] = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    return line.removeprefix("Error: ")


def test_from_a_name_to_a_mask(hub, published, checkpoint, here, picture):
    """The transfer breaks off for good, the command is given again, and goes on."""
    total = checkpoint.stat().st_size
    hub.fails("/cdn/", break_after=total // 2, times=1)
    hub.fails("/cdn/", break_after=0, times=5)
    said = refusal("--model", NAME, "--out", "bundle")
    assert said.startswith(f"the transfer of gres.pth of {REPOSITORY} broke off")
    assert not (here / "bundle").exists()
    assert 0 < hub.sent() <= total // 2

    publishing = ["--push", "hf://me/tiny", "--licence", "apache-2.0"]
    done = export("--model", NAME, "--out", "bundle", *publishing)
    assert done.exit_code == 0, done.output
    [asked] = hub.ranges()
    start = int(asked.removeprefix("bytes=").removesuffix("-"))
    assert start > total // 4
    sent = sum(seen.sent for seen in hub.requests if seen.path.startswith("/cdn/"))
    assert sent == total - start

    before, _, after = done.stderr.partition("Download: gres.pth")
    assert "A tiny ReLA" in before
    assert f"from hf://{REPOSITORY}" in before
    assert "licences: code mit, weights apache-2.0" in before
    assert "Export: reference pass" in after
    source = open_bundle(here / "bundle").manifest.source
    assert (source.checkpoint, source.checkpoint_sha256) == (
        "gres.pth",
        published_models.sha256(checkpoint),
    )
    commit = published.branches["main"]
    assert vars(source.published) == {
        "name": NAME,
        "repository": REPOSITORY,
        "commit": commit,
        "verified": True,
    }

    with load(here / "bundle", **RUN) as model:
        found = model.segment(picture, "left man").mask
    assert found.shape == picture.shape[:2]

    # published by the same command, and opened from there
    commit = hub.repositories["me/tiny"].branches["main"]
    assert f"ris-infer --bundle hf://me/tiny@{commit}" in done.stdout
    shutil.rmtree(here / "bundle")
    with load("hf://me/tiny", **RUN) as model:
        np.testing.assert_array_equal(model.segment(picture, "left man").mask, found)
    card = hub.repositories["me/tiny"].files("main")["README.md"].decode()
    for fragment in (
        "license: apache-2.0\n",
        f'base_model: "{REPOSITORY}"\n',
        f"| made from | A tiny ReLA (`{NAME}`) |",
        "| licence of the weights | `apache-2.0` |",
        "| chosen: lang_weight | `zero` |",
        "| end_to_end.mask_logits | ",
    ):
        assert fragment in card, card


def test_a_dry_run_downloads_nothing_and_says_what_it_would(hub, published, checkpoint, here):
    done = export("--model", NAME, "--dry-run")
    assert done.exit_code == 0, done.output
    assert "would download gres.pth, " in done.stdout
    assert "would download vocabulary.model;" in done.stdout
    assert hub.requests == []
    data = json.loads(export("--model", NAME, "--dry-run", "--json").stdout)
    assert data["download"][0]["bytes"] == checkpoint.stat().st_size

    CliRunner().invoke(models.main, ["fetch", NAME])
    hub.sent()
    done = export("--model", NAME, "--dry-run")
    assert done.exit_code == 0, done.output
    assert "rela" in done.stdout
    assert hub.sent() == 0
    assert not (here / "ris-bundle").exists()


def test_a_bundle_that_is_there_is_known_before_the_download(hub, published, here):
    (here / "ris-bundle").mkdir()
    (here / "ris-bundle" / "manifest.json").write_text("{}")
    assert "ris-bundle exists; use --force to replace it" in refusal("--model", NAME)
    assert hub.requests == []


def test_a_file_that_was_replaced_is_not_exported(hub, published, here):
    published.commit({"gres.pth": bytes(5000)})
    hub.storage[published_models.hashlib.sha256(bytes(5000)).hexdigest()] = bytes(5000)
    said = refusal("--model", NAME)
    assert said.startswith(f"gres.pth of {REPOSITORY} was replaced: the Hub has a file of hash")
    assert hub.sent() == 0


def test_a_model_behind_a_page_takes_its_file_from_a_path(hub, listed, checkpoint, here):
    files = [{"role": "checkpoint", "name": "gres.pth", "page": "https://example.org/gres"}]
    files[0]["sha256"] = published_models.sha256(checkpoint)
    listed(published_models.entry(files=files))
    assert refusal("--model", NAME) == (
        f"gres.pth of {NAME} has to be fetched by hand, from https://example.org/gres; then"
        f" ris-export --model {NAME} --checkpoint gres.pth"
    )
    (here / "other.pth").write_bytes(b"something else")
    assert refusal("--model", NAME, "--checkpoint", "other.pth") == (
        f"other.pth is not the gres.pth that is published as {NAME} (sha256 differs); leave --model"
        " out for a file of your own"
    )
    done = export("--model", NAME, "--checkpoint", checkpoint, "--dry-run")
    assert done.exit_code == 0, done.output
    assert hub.requests == []


def test_a_given_file_without_a_published_hash_is_not_verified(hub, listed, checkpoint, here):
    files = [{"role": "checkpoint", "name": "gres.pth", "page": "https://example.org/gres"}]
    listed(published_models.entry(files=files))
    done = export("--model", NAME, "--checkpoint", checkpoint, "--dry-run")
    assert done.exit_code == 0, done.output
    assert f"{checkpoint} is not verified: no hash of it is published as {NAME}" in done.stdout
    found = named.get(look_up(NAME), {"checkpoint": checkpoint})
    assert found.published.verified is False


def test_given_files_are_held_to_their_own_hashes(tmp_path):
    """Of a folder those that are published; of several files of a role the one of that name."""
    content = {"a.bin": b"a", "b.bin": b"b"}
    shas = {
        name: published_models.hashlib.sha256(data).hexdigest() for name, data in content.items()
    }
    for name, data in content.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "own.txt").write_bytes(b"no part of it")
    files = tuple(
        PublishedFile(role, name, repository="a/b", sha256=shas[name])
        for role, name in (("bert", "a.bin"), ("bert", "b.bin"), ("checkpoint", "a.bin"))
    )
    entry = Entry("x", "model", "X", files, Licences())
    assert named._require_published(entry, {"bert": tmp_path}) == ()
    assert named._require_published(entry, {"checkpoint": tmp_path / "a.bin"}) == ()
    assert named._require_published(entry, {"bert": tmp_path / "b.bin"}) == ()
    [note] = named._require_published(entry, {"sam": tmp_path / "a.bin"})
    assert note == f"{tmp_path / 'a.bin'} is not verified: no hash of it is published as x"

    (tmp_path / "b.bin").write_bytes(b"a")  # another file's content
    for given in (tmp_path, tmp_path / "b.bin"):
        with pytest.raises(
            CheckpointError, match=r"b\.bin is not the b\.bin that is published as x"
        ):
            named._require_published(entry, {"bert": given})
    (tmp_path / "a.bin").unlink()
    (tmp_path / "b.bin").unlink()
    [note] = named._require_published(entry, {"bert": tmp_path})
    assert note.startswith(f"{tmp_path} is not verified")


def test_a_file_of_another_model_than_the_name_says(listed, checkpoint, here):
    files = [{"role": "checkpoint", "name": "x.pth", "page": "https://example.org"}]
    other = {"family": "cgformer", "preset": "tiny-cgformer"}
    listed(published_models.entry(files=files, **other))
    assert refusal("--model", NAME, "--checkpoint", checkpoint, "--dry-run") == (
        f"{checkpoint} is tiny-rela of the family rela, and {NAME} is tiny-cgformer of cgformer;"
        " leave --model out for a file of your own"
    )


LLAMA = {"word": "llama", "words": "it has LLaMA in it, which is for those who hold a right."}


@pytest.mark.parametrize(
    ("more", "arguments", "said"),
    [
        ({"family": "unheard"}, [], "is of the family unheard, which this version of ris-runtime"),
        ({"refused": "is another model; take b"}, [], "cannot be exported: it is another model;"),
        ({"kind": "part"}, [], f"is a part of models and no model; `ris-models fetch {NAME}` gets"),
        ({"terms": LLAMA}, [], "who hold a right. Where that is so, say --accept-licence llama"),
        ({"terms": LLAMA}, ["--accept-licence", "x"], "is not what tiny-published asks for; it"),
        ({}, ["--accept-licence", "llama"], "it asks for no terms"),
        ({}, ["--random-weights", "0"], "says what to export; leave --random-weights out"),
        ({}, ["--family", "rela"], "says what to export; leave --family out"),
        ({}, ["--preset", "rela-swin-base"], "is tiny-rela, which contradicts --preset rela-swin"),
        ({}, ["--variant", "cls"], "family rela, which has no variants; leave --variant and"),
        ({}, ["--assignment", "sampled"], "--assignment is of no use to the family rela; leave it"),
        ({}, ["--precision", "fp16", "--fp32", "decoder"], "there is no graph 'decoder' to keep"),
        ({}, ["--resizing", "graph"], "nothing is resized between the graphs of rela; leave"),
        ({}, ["--checkpoint", NAME], f"--checkpoint takes a file; --model {NAME} exports what is"),
        (
            {"family": "dfam", "preset": "tiny", "variant": "category"},
            ["--variant", "cls"],
            "is the category variant, which contradicts --variant cls; leave --variant out",
        ),
        ({}, ["--supplement"], "family rela, which has no variants; leave --variant and"),
        ({}, ["--push", "hf://me/x"], "say which, such as --licence apache-2.0. It has to be one"),
        ({}, ["--push", "hf://me/x", "--licence", "mit"], "which contradicts --licence mit; say"),
        ({}, ["--push", "me/x", "--licence", "mit"], "me/x is no address on a Hub; write hf://"),
        ({}, ["--licence", "mit"], "--licence says how to publish the bundle; give --push as well"),
    ],
)
def test_refusals_ask_nobody(hub, listed, here, more, arguments, said):
    listed(published_models.entry(**more))
    assert said in refusal("--model", NAME, *arguments)
    assert hub.requests == []
    assert not (here / "ris-bundle").exists()


NO_PART = "a model of the family rela has no part that --sam-checkpoint could give; leave it out"


def test_a_component_may_be_named_too(hub, listed, checkpoint, here):
    files = [{"role": "sam", "name": "sam.pth", "repository": "lab/sam", "bytes": 5000}]
    listed(published_models.entry(name="sam-x", kind="part", family=None, files=files))
    given = ["--checkpoint", checkpoint, "--sam-checkpoint", "sam-x", "--dry-run"]
    done = export(*given)
    assert done.exit_code == 0, done.output
    assert "  from hf://lab/sam" in done.stdout
    assert "would download sam.pth, 5 kB; what is in it is not known before" in done.stdout
    [named_file] = json.loads(export(*given, "--json").stdout)["download"]
    assert named_file == {"file": "sam.pth", "from": "hf://lab/sam", "bytes": 5000}
    assert hub.requests == []
    hub.repository("lab/sam", {"sam.pth": b"no weights" * 500})
    assert refusal(*given[:-1]) == NO_PART
    assert hub.sent() == 5000
    hub.requests.clear()
    listed(
        published_models.entry(name="sam-x", kind="part", family=None, files=files),
        published_models.entry(),
    )
    assert refusal("--model", NAME, "--sam-checkpoint", "sam-x") == NO_PART
    assert hub.requests == []


def test_names_that_nobody_published(listed, here):
    listed(published_models.entry())
    assert refusal("--model", "tiny-publisht") == (
        f"no model is known as 'tiny-publisht'; is it {NAME}? `ris-models list` has all names"
    )
    assert "give that as well" in refusal("--accept-licence", "llama")


def test_publishing_needs_a_login_before_anything_is_exported(hub, here, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_of_somebody_else")
    said = refusal("--preset", "tiny-rela", "--push", "hf://me/x", "--licence", "mit")
    assert "wants a login (401)" in said
    assert not (here / "ris-bundle").exists()


def test_every_model_of_the_built_in_table_is_exported_or_refused_by_name(monkeypatch):
    """What it names of this version's families is there: presets, and no component beside it."""
    from ris.reference.families import FAMILIES
    from ris.runtime.hub.models import read_table

    monkeypatch.delenv("RIS_MODELS", raising=False)
    seen = set()
    for entry in read_table().entries:
        if entry.family not in FAMILIES:
            continue
        if entry.refused:
            with pytest.raises(HubError, match="cannot be exported"):
                look_up(entry.name)
        else:
            assert look_up(entry.name, entry.terms.word if entry.terms else None) == entry
            assert entry.preset in FAMILIES[entry.family].presets
            seen.add(entry.family)
    assert {"rela", "cgformer", "evfsam", "lisa"} <= seen
