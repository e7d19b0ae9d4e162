"""Names of the table where commands take paths: which are names, what is fetched, what is not."""

from __future__ import annotations

import io
import json
import re
import stat
import zipfile
from pathlib import Path

import pytest

from ris.runtime import HubError
from ris.runtime.commands.named_files import with_named
from ris.runtime.hub import unpacked
from ris.runtime.hub.given import entry_given, given_names
from ris.runtime.hub.unpacked import inner_folder, unpack

CONTENT = b"weights" * 1000
FILES = [
    {"role": "checkpoint", "name": "model.bin", "repository": "lab/whole"},
    {"role": "beside", "name": "vocabulary.model", "repository": "lab/whole"},
    {"role": "clip", "name": "clip.pt", "repository": "lab/whole"},
]


def archive(files):
    """A zip archive with these files."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as opened:
        for name, content in files.items():
            opened.writestr(name, content)
    return made.getvalue()


@pytest.fixture
def here(tmp_path, monkeypatch):
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def listed(here, monkeypatch):
    """Writes a table with a part, a whole model and a data set, each changed by the arguments."""

    def write(part=None, whole=None, data=None):
        sam = [{"role": "sam", "name": "sam.pth", "repository": "lab/sam"}]
        entries = [
            {"name": "sam-x", "kind": "part", "title": "A part", "files": sam, **(part or {})},
            {"name": "whole", "kind": "model", "title": "A model", "family": "dfam"}
            | {"files": FILES, **(whole or {})},
            {"name": "pairs", "kind": "data", "title": "Pairs", "files": [], **(data or {})},
        ]
        path = here / "table.json"
        given = [{"licences": {"weights": "mit"}, **one} for one in entries]
        path.write_text(json.dumps({"format": 1, "entries": given}))
        monkeypatch.setenv("RIS_MODELS", str(path))

    return write


def test_a_path_that_is_there_is_no_name(here, listed):
    listed()
    assert entry_given(Path("sam-x")).name == "sam-x"
    for path in ("sam-y", "sub/sam-x", here / "sam-x"):
        assert entry_given(Path(path)) is None
    (here / "sam-x").write_bytes(b"")
    assert entry_given(Path("sam-x")) is None
    assert entry_given(None) is None


def test_what_is_there_needs_no_table(here, monkeypatch):
    monkeypatch.setenv("RIS_MODELS", str(here / "none.json"))
    (here / "sam.pth").write_bytes(b"")
    assert given_names({"sam": here / "sam.pth", "bert": None}).entries == ()
    with pytest.raises(HubError, match="the table of models"):
        given_names({"sam": Path("sam-x")})


def test_a_named_part_is_said_fetched_and_a_path(hub, here, listed, capsys):
    listed()
    hub.repository("lab/sam", {"sam.pth": CONTENT})
    own = here / "own.pt"
    own.write_bytes(b"mine")
    names = given_names({"sam": Path("sam-x"), "clip": own})
    assert [file.name for file in names.missing()] == ["sam.pth"]
    assert hub.requests == []

    found = with_named({"sam": Path("sam-x"), "clip": own, "bert": None})
    assert (found["clip"], found["bert"]) == (own, None)
    assert found["sam"].read_bytes() == CONTENT
    said = capsys.readouterr().err
    assert said.index("licences: weights mit") < said.index("Download: sam.pth")
    assert "  from hf://lab/sam" in said
    assert names.missing() == ()


def test_of_a_model_a_part_alone_is_fetched_and_a_checkpoint_with_what_is_beside_it(
    hub, here, listed
):
    listed()
    hub.repository(
        "lab/whole", {"model.bin": CONTENT, "vocabulary.model": b"v", "clip.pt": b"c" * 700}
    )
    whole = Path("whole")
    [path] = given_names({"clip": whole}).fetch().values()
    assert sorted(file.name for file in path.parent.iterdir()) == ["clip.pt"]
    [path] = given_names({"checkpoint": whole}, family="dfam").fetch().values()
    assert path.read_bytes() == CONTENT
    assert (path.parent / "vocabulary.model").read_bytes() == b"v"


TERMS = {"terms": {"word": "llama", "words": "It is for those who hold a right."}}
BY_HAND = {"files": [{"role": "sam", "name": "sam.pth", "page": "https://example.org"}]}


@pytest.mark.parametrize(
    ("changes", "given", "said"),
    [
        ({}, {"bert": "sam-x"}, "sam-x has no file for --bert; it is a part of models: A part"),
        (
            {"whole": {"family": "rela"}},
            {"checkpoint": "whole"},
            "whole is of the family rela,",
        ),
        ({"whole": {"refused": "is old"}}, {"clip": "whole"}, "cannot be taken as --clip-checkpo"),
        ({"part": TERMS}, {"sam": "sam-x"}, "`ris-models fetch sam-x --accept-licence llama`"),
        ({"part": BY_HAND}, {"sam": "sam-x"}, "then give its path as --sam-checkpoint"),
    ],
)
def test_names_that_cannot_be_taken_ask_nobody(hub, here, listed, changes, given, said):
    listed(**changes)
    paths = {role: Path(name) for role, name in given.items()}
    with pytest.raises(HubError) as refused:
        given_names(paths, family="dfam")
    assert said in str(refused.value)
    assert hub.requests == []


def test_a_data_sets_archive_is_unpacked_once(hub, here, listed):
    content = archive({"pairs/refs(unc).p": b"1", "pairs/instances.json": b"2"})
    listed(data={"files": [_file(hub, content)]})
    names = given_names({}, {"root": Path("pairs"), "images": Path("pairs")})
    paths = names.fetch()
    assert (paths["root"] / "pairs" / "instances.json").read_bytes() == b"2"
    assert paths["images"] == paths["root"] / "pairs"  # the folder that has the files
    (paths["images"] / "instances.json").unlink()
    hub.sent()
    assert names.fetch() == paths
    assert not (paths["images"] / "instances.json").exists()
    assert hub.sent() == 0


def test_what_is_no_data_set_is_no_folder_of_one(here, listed):
    listed(data={"files": [{"role": None, "name": "a.json", "page": "https://example.org/a"}]})
    with pytest.raises(HubError, match="sam-x is a part of models, and no data set"):
        given_names({}, {"root": Path("sam-x")})
    with pytest.raises(HubError, match=r"org/a; then give the folder as --root"):
        given_names({}, {"root": Path("pairs")})
    with pytest.raises(HubError, match=r"then give the folder as ROOT"):
        given_names({}, {"ROOT": Path("pairs")})


def test_an_archive_that_would_write_elsewhere_or_is_none(hub, here, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name, content, said in (
        (
            "a.zip",
            archive({"fine": b"1", "../outside": b"2"}),
            "outside of it: '../outside'",
        ),
        ("b.zip", archive({"/outside": b"2"}), "outside of it: '/outside'"),
        ("c.zip", b"no archive", "is no archive that can be unpacked"),
        ("d.zip", archive({"a": b"1" * 500})[:-30], "is no archive that can be unpacked"),
    ):
        path = here / name
        path.write_bytes(content)
        with pytest.raises(HubError, match=re.escape(said)):
            unpack(path, name)
    left = tmp_path / "cache" / "ris-runtime" / "unpacked"
    assert list(left.iterdir()) == []
    assert not (left.parent / "outside").exists()


def test_an_unpacking_that_fails_leaves_nothing(hub, here, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = here / "a.zip"
    path.write_bytes(archive({"a": b"1", "b": b"2"}))

    def full(name, done, total):
        raise OSError(28, "No space left on device")

    with pytest.raises(HubError, match=r"a cannot be unpacked .*free some space, or set XDG_CACHE"):
        unpack(path, "a", full)
    assert list((tmp_path / "cache" / "ris-runtime" / "unpacked").iterdir()) == []
    assert (unpack(path, "a") / "b").read_bytes() == b"2"
    monkeypatch.setattr(unpacked.shutil, "disk_usage", lambda path: type("D", (), {"free": 1}))
    path.write_bytes(archive({"a": b"1", "b": b"22"}))
    with pytest.raises(HubError, match="a needs 1 MB more than the disk"):
        unpack(path, "a")


def test_links_of_an_archive_are_plain_files(here, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    link = zipfile.ZipInfo("link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(here / "a.zip", "w") as opened:
        opened.writestr(link, "/etc/passwd")
    found = unpack(here / "a.zip", "a") / "link"
    assert not found.is_symlink()
    assert found.read_text() == "/etc/passwd"


def test_the_inner_folder_is_the_one_with_files(tmp_path):
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    for name in ("1.jpg", "2.jpg"):
        (inner / name).write_bytes(b"")
    assert inner_folder(tmp_path) == inner


def _file(hub, content):
    import hashlib

    return {
        "role": None,
        "name": "pairs.zip",
        "url": hub.url("pairs.zip", content),
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
