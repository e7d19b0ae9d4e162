"""What cannot be asked or read costs its own row of a batch, with its own reason."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

pa = pytest.importorskip("pyarrow", reason='pyarrow is not installed: pip install ".[ray]"')
pq = pytest.importorskip("pyarrow.parquet")

from ris.engines.errors import EngineError, ImageError, RisError  # noqa: E402
from ris.serving.batch.asked import Given  # noqa: E402
from ris.serving.batch.images import Images  # noqa: E402
from ris.serving.batch.inputs import group_by_image, read_sources  # noqa: E402
from ris.serving.batch.parts import Job, fingerprint  # noqa: E402
from ris.serving.batch.worker import Worker  # noqa: E402
from ris.serving.limits import Limits  # noqa: E402
from serving_helpers import picture_bytes  # noqa: E402

RUNNING = {"engine": "onnxruntime", "device": "cpu", "threads": 1, "compute": None}
IMAGE = picture_bytes(1)


def tasks_of(*sources, expressions=("given",), **options):
    return group_by_image(read_sources(sources, Given(tuple(expressions)), **options))


def shard(path, *members):
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def said(tasks):
    """The name of each task's image, and its expressions or its error."""
    return [(task.name, task.error or task.expressions) for task in tasks]


def test_a_key_ends_at_the_first_dot_and_no_image_vanishes(tmp_path):
    members = [
        ("photo.v2.jpg", IMAGE),
        ("photo.v2.txt", b"left man"),
        ("0002.jpg", IMAGE),
        ("0002.seg.png", IMAGE),
        ("0002.txt", b"\xef\xbb\xbfthe dog\xe2\x80\xa8by the door\r\n"),
        ("both.jpg", IMAGE),
        ("both.json", b'{"caption": "x"}'),
        ("both.txt", b"the tree"),
        ("pair.left.jpg", IMAGE),
        ("pair.right.jpg", IMAGE),
        ("pair.txt", b"car"),
    ]
    assert said(tasks_of(shard(tmp_path / "s.tar", *members))) == [
        ("s.tar/photo.v2.jpg", ["left man"]),
        ("s.tar/0002.jpg", ["the dog\u2028by the door"]),
        ("s.tar/both.jpg", ["the tree"]),
        ("s.tar/pair.left.jpg", ["car"]),
        ("s.tar/pair.right.jpg", ["car"]),
    ]


def test_members_that_cannot_be_used_are_rows(tmp_path):
    members = [
        ("._0.jpg", b"AppleDouble"),
        ("__MACOSX/0.jpg", b"AppleDouble"),
        ("README", b"no extension"),
        ("0.jpg", IMAGE),
        ("1.txt", b"left man"),
        ("2.jpg", IMAGE),
        ("2.png", IMAGE),
        ("3.jpg", IMAGE),
        ("3.json", b"[" * 100_000),
        ("4.jpg", IMAGE),
        ("4.txt", b"caf\xe9"),
        ("5.jpg", IMAGE),
        ("5.txt", b"x" * 1_000_001),
        ("6.jpg", IMAGE),
        ("6.json", b"[]"),
        ("7.jpg", IMAGE),
        ("7.json", b'{"expression": "x", "more": "' + b"y" * 1_000_000 + b'"}'),
        ("8.jpg", IMAGE),
        ("8.json", b'{"expression": {"text": "x"}}'),
        ("9.jpg", IMAGE),
        ("9.txt", b"x" * 200_000),
    ]
    found = said(tasks_of(shard(tmp_path / "s.tar", *members)))
    assert [entry for entry in found if isinstance(entry[1], list)] == [
        ("s.tar/0.jpg", ["given"]),
        ("s.tar/2.jpg", ["given"]),
    ]
    reasons = dict(entry for entry in found if isinstance(entry[1], str))
    assert {name: reason.split(": ", 1)[1][:40] for name, reason in reasons.items()} == {
        "s.tar/1.txt": "there is no image beside it",
        "s.tar/2.png": "the sample has another image, 2.jpg",
        "s.tar/3.jpg": "nested too deeply",
        "s.tar/4.jpg": "not UTF-8 (byte 4)",
        "s.tar/5.jpg": "its .txt has more than 1 MB",
        "s.tar/6.jpg": "the JSON is not an object",
        "s.tar/7.jpg": "its .json has more than 1 MB",
        "s.tar/8.jpg": "the expression is not a text or a list o",
        "s.tar/9.jpg": "the expression has 200000 characters",
    }


def test_a_key_may_stand_anywhere_in_a_shard(tmp_path):
    """An image whose text comes later is asked that, and not what was given."""
    members = [
        ("a.jpg", IMAGE),
        ("b.jpg", IMAGE),
        ("./c.jpg", IMAGE),
        ("d/a.jpg", IMAGE),
        ("b.json", b'{"expression": "the dog", "category": null}'),
        ("a.txt", b"left man"),
        ("c.txt", b"the tree"),
    ]
    path = shard(tmp_path / "s.tar", *members)
    tasks = group_by_image(read_sources([path], Given(("given",), "person")))
    assert said(tasks) == [
        ("s.tar/a.jpg", ["left man"]),
        ("s.tar/b.jpg", ["the dog"]),
        ("s.tar/./c.jpg", ["the tree"]),
        ("s.tar/d/a.jpg", ["given"]),
    ]
    assert {name for task in tasks for name in task.categories} == {"person"}


def test_links_in_a_shard_are_followed(tmp_path):
    """GNU tar writes the second name of a file as a link: its text is not what was given."""
    path = tmp_path / "s.tar"
    links = [
        ("d/1.txt", tarfile.LNKTYPE, "d/0.txt"),
        ("d/1.jpg", tarfile.SYMTYPE, "./0.jpg"),
        ("d/2.jpg", tarfile.SYMTYPE, "/etc/passwd"),
        ("d/3.txt", tarfile.LNKTYPE, "gone.txt"),
    ]
    with tarfile.open(path, "w") as tar:
        for name, data in [("d/0.jpg", IMAGE), ("d/0.txt", b"left man"), ("d/3.jpg", IMAGE)]:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        for name, kind, target in links:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            tar.addfile(info)
    tasks = tasks_of(path)
    assert said(tasks) == [
        ("s.tar/d/0.jpg", ["left man"]),
        ("s.tar/d/3.jpg", "s.tar/d/3.jpg: its .txt: it is a link to nothing in the shard"),
        ("s.tar/d/1.jpg", ["left man"]),
        ("s.tar/d/2.jpg", "s.tar/d/2.jpg: it is a link to nothing in the shard"),
    ]
    assert Images(Limits()).read(tasks[2].location) == IMAGE


def test_what_is_there_twice_is_not_guessed(tmp_path):
    members = [
        ("0.jpg", IMAGE),
        ("0.jpg", picture_bytes(2)),
        ("0.txt", b"left man"),
        ("1.v2.jpg", IMAGE),
        ("1.v2.png", IMAGE),
        ("1.v2.txt", b"the dog"),
        ("2.jpg", IMAGE),
        ("2.txt", b"left man"),
        ("2.TXT", b"right man"),
    ]
    assert said(tasks_of(shard(tmp_path / "s.tar", *members))) == [
        ("s.tar/0.jpg", ["left man"]),
        ("s.tar/0.jpg", "s.tar/0.jpg: the sample has another image, 0.jpg"),
        ("s.tar/1.v2.jpg", ["the dog"]),
        ("s.tar/1.v2.png", "s.tar/1.v2.png: the sample has another image, 1.v2.jpg"),
        ("s.tar/2.jpg", "s.tar/2.jpg: its .txt is there twice"),
    ]


def test_an_image_whose_text_may_be_lost_is_not_asked_what_was_given(tmp_path):
    members = [("0.jpg", IMAGE), ("0.txt", b"left man"), ("1.jpg", IMAGE), ("1.txt", b"the dog")]
    path = shard(tmp_path / "s.tar", *members)
    with tarfile.open(path) as tar:
        end = tar.getmembers()[3].offset
    path.write_bytes(path.read_bytes()[: end + 100])
    first, second, third = tasks_of(path)
    assert first.expressions == ["left man"]
    assert second.error.endswith("the shard ends too early, and the text beside it may be lost")
    assert "s.tar cannot be read as an uncompressed tar file" in third.error


def test_a_source_that_ends_too_early_costs_a_row(tmp_path):
    whole = shard(tmp_path / "a.tar", ("0.jpg", IMAGE), ("1.jpg", IMAGE * 20)).read_bytes()
    (tmp_path / "a.tar").write_bytes(whole[: len(IMAGE) + 2048])
    good = shard(tmp_path / "b.tar", ("2.jpg", IMAGE))
    found = tasks_of(tmp_path / "a.tar", good, tmp_path / "absent")
    assert [task.name for task in found if not task.error] == ["a.tar/0.jpg", "b.tar/2.jpg"]
    errors = [task.error for task in found if task.error]
    assert "a.tar cannot be read as an uncompressed tar file" in errors[0]
    assert "absent: no such file or folder" in errors[1]


def test_lines_and_table_rows_that_are_no_text(tmp_path):
    path = tmp_path / "in.jsonl"
    lines = [b"[" * 100_000, b'{"image": "a.png", "expression": "caf\xe9"}', b'"x"']
    path.write_bytes(b"\n".join([*lines, b'{"image": "a.png", "expression": "x\\u2028y"}\r\n']))
    found = tasks_of(path)
    assert [task.error and task.error.split(": ")[1] for task in found] == [
        "nested too deeply",
        "not UTF-8 (byte 38)",
        'not of the form {"image"',
        None,
    ]

    texts = pa.array([b"left man", b"caf\xe9", b"the dog"], pa.binary()).view(pa.string())
    table = pa.table({"image": ["a.png"] * 3, "expression": texts})
    pq.write_table(table, tmp_path / "t.parquet")
    found = tasks_of(tmp_path / "t.parquet")
    assert said(found) == [
        ("a.png", ["left man", "the dog"]),
        ("t.parquet, row 1", "t.parquet, row 1: not UTF-8"),
    ]


def test_what_a_folder_has_and_is_not_taken_is_noted(tmp_path):
    (tmp_path / "a.png").write_bytes(IMAGE)
    (tmp_path / "._a.png").write_bytes(b"AppleDouble")
    (tmp_path / "b.cr2").write_bytes(b"raw")
    noted = []
    assert [task.name for task in tasks_of(tmp_path, noted=noted.append)] == ["a.png"]
    assert len(noted) == 1
    assert "1 .cr2 file" in noted[0]


@pytest.fixture
def job(tmp_path):
    """A plan of one part: a name that is not UTF-8, and half an emoji."""
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / os.fsdecode(b"caf\xe9.png")).write_bytes(IMAGE)
    assert len(fingerprint([folder])) == 64
    lines = folder / "in.jsonl"
    rows = [
        {"image": "caf\udce9.png", "expression": ["left man", "cut \ud83d"]},
        {"image": "\ud83d.png", "expression": "x"},
    ]
    lines.write_text("\n".join(map(json.dumps, rows)))
    job = Job(tmp_path / "out")
    job.write_plan(tasks_of(lines), 10, {})
    return job


def worker(job, bundle):
    return Worker(str(job.folder), str(bundle), RUNNING, Limits(), 0.5)


def test_half_an_emoji_is_an_error_of_its_row(job, served_bundle):
    done = worker(job, served_bundle)({"part": [0]})
    assert list(done["failed"]) == [""]
    rows = pq.read_table(job.folder).sort_by("row").to_pylist()
    assert [(row["image"], row["expression"]) for row in rows] == [
        ("caf\ufffd.png", "left man"),
        ("caf\ufffd.png", "cut \ufffd"),
        ("\ufffd.png", "x"),
    ]
    assert rows[0]["error"] is None
    assert rows[1]["error"] == "the expression is not valid Unicode text"
    assert "no such image file" in rows[2]["error"]


def test_a_fault_of_ours_costs_one_image(job, served_bundle, monkeypatch):
    ours = worker(job, served_bundle)

    def fault(image):
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(ours._answerer, "scene", fault)
    ours({"part": [0]})
    rows = pq.read_table(job.folder).sort_by("row").to_pylist()
    assert rows[0]["error"] == "internal error: ZeroDivisionError: division by zero"


def test_what_is_no_fault_of_an_image_leaves_its_part_open(job, served_bundle, monkeypatch):
    ours = worker(job, served_bundle)

    def lost(image):
        raise EngineError("the device is lost")

    monkeypatch.setattr(ours._answerer, "scene", lost)
    assert list(ours({"part": [0]})["failed"]) == ["the device is lost (at caf\ufffd.png)"]
    assert job.open_parts(1) == [0]

    nowhere = worker(job, job.folder / "no-bundle")
    assert "no-bundle" in nowhere({"part": [0]})["failed"][0]


def test_nothing_that_can_be_read_is_an_error(tmp_path):
    (tmp_path / "no.tar").write_bytes(b"no tar")
    with pytest.raises(RisError, match=r"no\.tar cannot be read.*; .*absent: no such file"):
        tasks_of(tmp_path / "no.tar", tmp_path / "absent")


def test_the_command_says_how_many_rows_have_no_answer(tmp_path, served_bundle):
    pytest.importorskip("ray", reason='Ray is not installed: pip install ".[ray]"')
    (tmp_path / os.fsdecode(b"caf\xe9.png")).write_bytes(IMAGE)
    command = [Path(sys.executable).parent / "ris-batch", ".", "-e", "left man", "-e", " "]
    options = ["--bundle", served_bundle, "--engine", "onnxruntime", "--out", "out"]
    done = subprocess.run([*command, *options], cwd=tmp_path, capture_output=True, timeout=300)
    assert done.returncode == 2, done.stderr
    assert b"2 rows, 1 of them errors" in done.stdout
    assert b"Error: 1 of 2 rows have no answer; their column `error` says why" in done.stderr


def header_with(tar, size):
    """The tar file with another size in the header of its first member."""
    block = bytearray(tar[:512])
    block[124:136] = size
    block[148:156] = b" " * 8
    block[148:156] = f"{sum(block):06o}\0 ".encode()
    return bytes(block) + tar[512:]


@pytest.mark.parametrize(
    "size", [b"\x80" + b"\xff" * 11, b"\xff" * 12, b"\xff" * 10 + b"\xfd\0", b"77777777777\0"]
)
def test_a_size_that_no_file_has_is_one_sentence(tmp_path, size):
    """Too large, or negative, which would be read again and again."""
    path = shard(tmp_path / "s.tar", ("a.jpg", IMAGE), ("a.txt", b"left man"))
    path.write_bytes(header_with(path.read_bytes(), size))
    with pytest.raises(RisError, match=r"s\.tar cannot be read as an uncompressed tar"):
        tasks_of(path)


def test_names_of_members_do_not_break_a_line(tmp_path):
    members = [("a\u2028b.json", b"{}"), ("\x1b[1m.txt", b"x"), ("x" * 3000 + ".txt", b"x")]
    tasks = tasks_of(shard(tmp_path / "s.tar", *members))
    assert len(tasks) == 3
    assert [task.name.removeprefix("s.tar/") for task in tasks] == [name for name, _ in members]
    assert all(task.error.isprintable() and len(task.error) < 300 for task in tasks)
    assert tasks[0].error == r"s.tar/a\u2028b.json: there is no image beside it"


def test_what_arrow_says_of_a_damaged_table_is_one_line(tmp_path):
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"image": [IMAGE] * 3, "expression": ["x"] * 3}), path)
    whole = path.read_bytes()
    for place in range(len(whole) - 600, len(whole), 7):
        path.write_bytes(whole[:place] + b"\xff\x0f" + whole[place + 2 :])
        try:
            said = [task.error for task in tasks_of(path) if task.error]
        except RisError as error:
            said = [str(error)]
        assert all(sentence.isprintable() and len(sentence) < 500 for sentence in said)


def test_a_damaged_image_column_is_an_error_of_its_row(tmp_path):
    path = tmp_path / "t.parquet"
    columns = {"image": [IMAGE * 3] * 2, "expression": ["x", "y"]}
    pq.write_table(pa.table(columns), path, compression="snappy", use_dictionary=False)
    tasks = tasks_of(path)
    whole = path.read_bytes()
    places = pq.ParquetFile(path).metadata.row_group(0).column(0)
    start = places.data_page_offset
    images = Images(Limits())
    said = set()
    for place in range(start, start + 60):
        path.write_bytes(whole[:place] + b"\xff" + whole[place + 1 :])
        try:
            Images(Limits()).read(tasks[1].location)
        except ImageError as error:
            said.add(str(error))
    assert any("t.parquet cannot be read: " in sentence for sentence in said)
    assert all(sentence.isprintable() and "t.parquet" in sentence for sentence in said)

    # a table that was written anew meanwhile, with fewer rows
    pq.write_table(pa.table({"image": [IMAGE], "expression": ["x"]}), path)
    with pytest.raises(ImageError, match=r"t\.parquet has fewer rows than it says"):
        images.read(tasks[1].location)
