"""The table of published models, and `ris-models`."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from conftest import REPO
from ris.runtime import BUILT_IN, HubError
from ris.runtime.bundle import sha256_of
from ris.runtime.commands import models
from ris.runtime.hub import entries
from ris.runtime.hub.models import TABLE, Entry, PublishedFile, Table, read_table

GUIDE = (REPO / "docs" / "guide" / "train.md").read_text(encoding="utf-8")
NAMES = (REPO / "docs" / "reference" / "models" / "names.md").read_text(encoding="utf-8")
CONTENT = b"weights" * 1000


@pytest.fixture(autouse=True)
def built_in(monkeypatch):
    monkeypatch.delenv("RIS_MODELS", raising=False)


def run(*arguments):
    return CliRunner().invoke(models.main, [str(a) for a in arguments])


def listed(monkeypatch, tmp_path, *given, **more):
    path = tmp_path / "table.json"
    path.write_text(json.dumps({"format": 1, "entries": given, **more}))
    monkeypatch.setenv("RIS_MODELS", str(path))
    return path


def entry(**more):
    files = [{"role": "sam", "name": "sam.pth", "repository": "lab/sam"}]
    known = {"name": "sam-x", "kind": "part", "title": "A part", "files": files, "licences": {}}
    return {**known, **more}


# The built-in table


def test_the_built_in_table_is_read():
    table = read_table()
    assert {entry.kind for entry in table.entries} == {"model", "part", "data"}
    for name in ("evf-sam", "evf-sam-multitask", "evf-sam2-multitask", "rela-swin-base", "refcoco"):
        assert table.named(name).title
    assert "evf-sam2-multitask" in str(table.named("evf-sam2").refused)
    assert [file.name for file in table.named("rela-swin-base").by_hand] == ["gres_swin_base.pth"]
    assert table.named("evf-sam").by_hand == ()


def test_hashes_are_those_of_the_guide():
    """The table and docs/guide/train.md say the same of the same file."""
    found = 0
    for one in read_table().entries:
        for file in one.files if one.kind != "model" else ():
            if f"`{file.name}`" in GUIDE and file.sha256 is not None:
                found += 1
                [row] = [line for line in GUIDE.splitlines() if file.sha256 in line]
                assert file.name in row
                assert file.bytes is None or f" {file.bytes:,} " in row
    assert found >= 8


def test_files_beside_a_checkpoint_are_of_its_repository():
    for one in read_table().entries:
        if one.kind == "model":
            places = {
                file.repository for file in one.files if file.role in ("checkpoint", "beside")
            }
            assert len(places) == 1, one.name


def test_the_page_of_names_has_every_field():
    for kind in (Entry, PublishedFile):
        for field in dataclasses.fields(kind):
            assert f"`{field.name}`" in NAMES, field.name


# Other tables


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([entry(name="A b")], "entries.0.name should be a name"),
        ([entry(), entry()], "sam-x stands there twice"),
        ([entry(kind="model")], "the model sam-x has no family"),
        ([entry(files=[{"role": "sam", "name": "a"}])], "a is to have one of repository, url and"),
        ([entry(files=[{"name": "a", "page": "x"}])], "entries.0.files.0.role is missing"),
        (
            [entry(files=[{"role": None, "name": "a", "page": "x"}])],
            "has no role, or one in a data",
        ),
        (
            [entry(files=[{"role": "sam", "name": "../a", "repository": "a/b"}])],
            "'../a' is no name of a file",
        ),
        (
            [entry(files=[{"role": "sam", "name": "a", "url": "http://a.org/a"}])],
            "a comes over plain HTTP, and has no sha256",
        ),
        (
            [
                entry(
                    files=[
                        {"role": "bert", "name": "a", "repository": name} for name in ("b/c", "d/e")
                    ]
                )
            ],
            "sam-x: a stands there twice",
        ),
        (
            [entry(files=[{"role": "sam", "name": "a/b", "url": "https://a.org/a"}])],
            "'a/b' has a folder, which only files of a repository have",
        ),
        (
            [
                entry(
                    files=[
                        {"role": "sam", "name": "a", "repository": "b/c", "revision": "../../../x"}
                    ]
                )
            ],
            "'../../../x' of a is no revision",
        ),
        (
            [entry(files=[{"role": "sam", "name": "a", "page": "x", "sha256": "1"}])],
            "entries.0.files.0.sha256 should be a sha256",
        ),
    ],
)
def test_a_table_that_is_none(monkeypatch, tmp_path, given, said):
    path = listed(monkeypatch, tmp_path, *given)
    done = run("list")
    assert done.exit_code == 2
    assert done.stderr.startswith(f"Error: {path} is no table of models: ")
    assert said in done.stderr


def test_a_table_that_is_not_there_or_newer(monkeypatch, tmp_path):
    path = listed(monkeypatch, tmp_path, format=2)
    with pytest.raises(HubError, match="format should be 1, found '2'"):
        read_table()
    path.write_text("{")
    with pytest.raises(HubError, match="cannot be read"):
        read_table()
    path.unlink()
    with pytest.raises(
        HubError, match=r"the table of models that \$RIS_MODELS names, is not there"
    ):
        read_table()
    assert isinstance(read_table(TABLE), Table)


# ris-models


def test_list_and_show(monkeypatch, tmp_path):
    done = run("list")
    assert done.exit_code == 0, done.output
    for line in ("Models:", "  rela-swin-base ", "Parts of models:", "  sam-vit-b ", "Data sets:"):
        assert line in done.stdout
    names = [one["name"] for one in json.loads(run("list", "--json").stdout)]
    assert "rela-swin-tiny" in names

    shown = run("show", "rela-swin-base").stdout
    assert "family rela, preset rela-swin-base" in shown
    assert "licences: code mit, weights not stated" in shown
    assert "gRefCOCO val     cIoU   62.42" in shown
    assert "cannot be exported: it has a ResNet-50" in run("show", "rela-r50").stdout
    data = json.loads(run("show", "sam-vit-b", "--json").stdout)
    assert data["files"][0]["bytes"] == 375042383
    assert "note" not in data["licences"]  # what is not known is not there

    listed(monkeypatch, tmp_path, entry(kind="model", family="unheard"))
    assert "Of families that this version does not have: sam-x" in run("list").stdout
    assert json.loads(run("list", "--json").stdout) == []
    done = run("show", "sam-y")
    assert (done.exit_code, done.stderr.count("is it sam-x?")) == (2, 1)


def test_fetch_says_licence_and_source_and_then_where_the_files_are(hub, monkeypatch, tmp_path):
    repository = hub.repository("lab/sam", {"sam.pth": CONTENT})
    listed(monkeypatch, tmp_path, entry(licences={"weights": "mit", "note": "As its page says."}))
    done = run("fetch", "sam-x")
    assert done.exit_code == 0, done.output
    said = done.stderr.splitlines()
    assert said[:4] == [
        "sam-x: A part",
        "  from hf://lab/sam",
        "  licences: weights mit",
        "    As its page says.",
    ]
    assert "Download: sam.pth, 100%" in said[-1]
    path, commit, option = done.stdout.splitlines()
    assert Path(path).read_bytes() == CONTENT
    assert commit == f"  of lab/sam, commit {repository.branches['main']}"
    assert option == f"  --sam-checkpoint {path}"

    hub.sent()
    again = run("fetch", "sam-x", "--json")
    assert json.loads(again.stdout)["options"] == {"--sam-checkpoint": path}
    assert hub.sent() == 0
    assert "Verify: sam.pth\n" in again.stderr
    assert "Download" not in again.stderr


def test_a_role_with_several_files_is_their_folder(hub, monkeypatch, tmp_path):
    files = [{"role": "bert", "name": name, "repository": "lab/bert"} for name in ("a", "b")]
    hub.repository("lab/bert", {"a": b"1", "b": b"2"})
    listed(monkeypatch, tmp_path, entry(files=files))
    data = json.loads(run("fetch", "sam-x", "--json").stdout)
    folder = Path(data["options"]["--bert"])
    assert sorted(path.name for path in folder.iterdir()) == ["a", "b"]


def test_files_of_a_branch_that_moves_meanwhile_are_of_one_commit(hub, monkeypatch, tmp_path):
    files = [{"role": "bert", "name": name, "repository": "lab/bert"} for name in ("a", "b")]
    repository = hub.repository("lab/bert", {"a": b"1", "b": b"2"})
    first = repository.branches["main"]
    listed(monkeypatch, tmp_path, entry(files=files))
    table = read_table()

    def move(name, done, total):
        repository.commit({"b": b"3"})

    fetched = entries.fetch_entry(table.named("sam-x"), move)
    assert fetched.commits == {"lab/bert": first}
    assert fetched.files["b"].read_bytes() == b"2"


def test_out_is_a_folder_of_copies(hub, monkeypatch, tmp_path):
    """Whoever writes into one leaves the cache as it was."""
    hub.repository("lab/sam", {"sam.pth": CONTENT})
    listed(monkeypatch, tmp_path, entry())
    cached = Path(run("fetch", "sam-x").stdout.splitlines()[0])
    out = tmp_path / "out"
    out.mkdir()
    os.link(cached.resolve(), out / "sam.pth")
    for _ in range(2):
        done = run("fetch", "sam-x", "--out", out)
        assert done.exit_code == 0, done.output
        assert done.stdout.splitlines()[0] == str(out / "sam.pth")
        assert (out / "sam.pth").read_bytes() == CONTENT
        assert os.listdir(out) == ["sam.pth"]
        with (out / "sam.pth").open("r+b") as file:
            file.write(b"mine")
        assert cached.read_bytes() == CONTENT


def test_out_keeps_a_part_out_of_the_checkpoints_folder(hub, monkeypatch, tmp_path):
    """A folder is read as a whole: CLIP's file would be taken for a model's."""
    hub.repository("lab/lisa", {"part-1.bin": b"1", "part-2.bin": b"2", "config.json": b"{}"})
    hub.repository("lab/clip", {"model.safetensors": b"3"})
    files = [
        {"role": role, "name": name, "repository": f"lab/{where}"}
        for role, name, where in (
            ("checkpoint", "part-1.bin", "lisa"),
            ("checkpoint", "part-2.bin", "lisa"),
            ("beside", "config.json", "lisa"),
            ("clip", "model.safetensors", "clip"),
        )
    ]
    more = {"kind": "model", "family": "lisa"}
    listed(monkeypatch, tmp_path, entry(files=files, **more))
    out = tmp_path / "out"
    done = run("fetch", "sam-x", "--out", out, "--json")
    assert done.exit_code == 0, done.output
    clip = out / "clip" / "model.safetensors"
    options = {"--checkpoint": str(out), "--clip-checkpoint": str(clip)}
    assert json.loads(done.stdout)["options"] == options
    assert sorted(os.listdir(out)) == ["clip", "config.json", "part-1.bin", "part-2.bin"]


def test_a_file_that_may_be_absent(hub, monkeypatch, tmp_path):
    files = [
        {"role": "bert", "name": "vocab.txt", "repository": "lab/bert", "optional": True},
        {"role": "bert", "name": "model.bin", "repository": "lab/bert"},
    ]
    hub.repository("lab/bert", {"model.bin": CONTENT})
    listed(monkeypatch, tmp_path, entry(files=files))
    done = run("fetch", "sam-x", "--json")
    assert done.exit_code == 0, done.output
    assert list(json.loads(done.stdout)["files"]) == ["model.bin"]
    files[0].pop("optional")
    listed(monkeypatch, tmp_path, entry(files=files))
    done = run("fetch", "sam-x")
    assert "vocab.txt of lab/bert: " in done.stderr
    assert "has no such file" in done.stderr


def test_a_file_that_is_not_verified_is_named(hub, monkeypatch, tmp_path):
    file = {"role": "sam", "name": "sam.pth", "url": hub.url("download", CONTENT)}
    listed(monkeypatch, tmp_path, entry(files=[{**file, "sha256": "0" * 64}]))
    assert "is not verified" not in run("fetch", "sam-x").stderr
    monkeypatch.setattr("ris.runtime.hub.models._wrong", lambda entry, file: [])  # no https here
    listed(monkeypatch, tmp_path, entry(files=[file]))
    done = run("fetch", "sam-x")
    assert done.exit_code == 0, done.output
    assert "\nsam.pth: no hash is known, so it is not verified\n" in done.stderr
    assert Path(done.stdout.splitlines()[0]).name == "sam.pth"  # as the table calls it


def test_a_model_behind_a_page_says_how_to_go_on(hub, monkeypatch, tmp_path):
    done = run("fetch", "rela-swin-base")
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.rstrip().endswith(
        "then ris-export --model rela-swin-base --checkpoint gres_swin_base.pth"
    )


def test_what_a_person_has_to_fetch_is_said_behind_the_rest(hub, monkeypatch, tmp_path):
    files = [
        {"role": "sam", "name": "sam.pth", "repository": "lab/sam"},
        {"role": "clip", "name": "clip.pt", "page": "https://example.org/clip"},
    ]
    hub.repository("lab/sam", {"sam.pth": CONTENT})
    listed(monkeypatch, tmp_path, entry(files=files))
    done = run("fetch", "sam-x")
    assert done.exit_code == 2
    assert done.stdout.splitlines()[0].endswith("sam.pth")
    assert (
        "clip.pt of sam-x has to be fetched by hand, from https://example.org/clip;" in done.stderr
    )


def test_terms_are_accepted_by_their_word_alone(hub, monkeypatch, tmp_path):
    hub.repository("lab/sam", {"sam.pth": CONTENT})
    terms = {"word": "llama", "words": "It is for those who hold a right."}
    listed(monkeypatch, tmp_path, entry(terms=terms))
    done = run("fetch", "sam-x")
    assert done.exit_code == 2
    assert "say --accept-licence llama" in done.stderr
    assert run("fetch", "sam-x", "--accept-licence", "mit").exit_code == 2
    assert hub.requests == []
    assert run("fetch", "sam-x", "--accept-licence", "llama").exit_code == 0


def test_a_file_of_another_server(hub, monkeypatch, tmp_path):
    file = {"role": "sam", "name": "sam.pth", "url": hub.url("sam.pth", CONTENT)}
    path = tmp_path / "sam.pth"
    path.write_bytes(CONTENT)
    file |= {"bytes": len(CONTENT), "sha256": sha256_of(path)}
    listed(monkeypatch, tmp_path, entry(files=[file]))
    done = run("fetch", "sam-x")
    assert done.exit_code == 0, done.output
    assert Path(done.stdout.splitlines()[0]).read_bytes() == CONTENT
    hub.sent()
    assert run("fetch", "sam-x").exit_code == 0
    assert hub.sent() == 0


def test_ctrl_c_says_that_the_download_goes_on(hub, monkeypatch, tmp_path):
    hub.repository("lab/sam", {"sam.pth": CONTENT})
    listed(monkeypatch, tmp_path, entry())
    original = models.DownloadProgress.__call__

    def stop(self, name, done, total):
        original(self, name, done, total)
        if done:
            raise KeyboardInterrupt

    monkeypatch.setattr(models.DownloadProgress, "__call__", stop)
    done = run("fetch", "sam-x")
    assert done.exit_code == 130
    assert "What was downloaded is kept in the cache; the same command goes on from" in done.stderr


def test_a_bundle_has_no_out(hub):
    done = run("fetch", "hf://org/demo", "--out", "x")
    assert "a bundle stays in the cache, so leave --out out" in done.stderr
    assert hub.requests == []


def test_a_bundles_folder_is_the_first_line(hub):
    hub.folder("org/demo", BUILT_IN)
    done = run("fetch", "hf://org/demo")
    assert done.exit_code == 0, done.output
    assert (Path(done.stdout.strip()) / "manifest.json").is_file()
    assert "hf://org/demo: dfam, fp16, verified" in done.stderr
