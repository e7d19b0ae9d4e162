"""Folders, JSONL, Parquet and shards become the same tasks; parts hold every row once."""

from __future__ import annotations

import io
import json
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

pa = pytest.importorskip("pyarrow", reason='pyarrow is not installed: pip install ".[ray]"')
pq = pytest.importorskip("pyarrow.parquet")

from ris.engines.errors import ImageError, RisError  # noqa: E402
from ris.runtime.bundle import Bundle, open_bundle  # noqa: E402
from ris.serving.batch.addresses import place  # noqa: E402
from ris.serving.batch.asked import Given, Location  # noqa: E402
from ris.serving.batch.images import Images  # noqa: E402
from ris.serving.batch.inputs import group_by_image, read_sources  # noqa: E402
from ris.serving.batch.parts import DEATHS, Job  # noqa: E402
from ris.serving.batch.worker import Worker  # noqa: E402
from ris.serving.limits import Limits  # noqa: E402
from serving_helpers import picture_bytes  # noqa: E402


def tasks_of(*sources, expressions=(), category=None):
    return group_by_image(read_sources(sources, Given(tuple(expressions), category)))


def read(task):
    return Images(Limits()).read(task.location)


def test_a_folder_asks_everything_of_every_image(tmp_path):
    for name in ("b.png", "a.jpg", "deeper/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(picture_bytes(1))
    (tmp_path / "notes.txt").write_text("no image")
    tasks = tasks_of(tmp_path, expressions=["x", "y"])
    assert [(t.name, t.rows) for t in tasks] == [
        ("a.jpg", [0, 1]),
        ("b.png", [2, 3]),
        ("deeper/c.png", [4, 5]),
    ]
    with pytest.raises(RisError, match="nothing to look for"):
        tasks_of(tmp_path)


def test_lines_about_one_image_are_grouped_wherever_they_are(tmp_path):
    lines = [
        {"image": "a.png", "expression": "x", "mask": None},
        {"image": "b.png", "expression": ["y", "z"], "category": "person"},
        {"image": "a.png", "expression": "w"},
    ]
    path = tmp_path / "in.jsonl"
    good = "\n".join(json.dumps(line) for line in lines)
    path.write_text(good + '\n{broken\n\n{"image": 3, "expression": "x"}\n')
    tasks = tasks_of(path, category="auto")
    assert [(t.name, t.rows, t.expressions) for t in tasks[:2]] == [
        ("a.png", [0, 3], ["x", "w"]),
        ("b.png", [1, 2], ["y", "z"]),
    ]
    assert tasks[0].categories == ["auto", "auto"]
    assert tasks[1].categories == ["person", "person"]
    assert [(t.rows, t.location) for t in tasks[2:]] == [([4], None), ([5], None)]
    assert "line 4" in tasks[2].error
    assert "line 6: the image is not a name" in tasks[3].error


def test_a_table_of_paths_and_a_table_of_bytes(tmp_path):
    images = [picture_bytes(i) for i in range(3)]
    (tmp_path / "p.png").write_bytes(images[0])
    table = pa.table({"image": ["p.png", None], "expression": ["x", "y"]})
    pq.write_table(table, tmp_path / "paths.parquet")
    good, bad = tasks_of(tmp_path / "paths.parquet")
    assert read(good) == images[0]
    assert "row 1: there is no image" in bad.error

    structs = [{"bytes": image, "path": "x"} for image in images]
    table = pa.table({"image": structs, "expression": [["x", "y"], ["z"], ["w"]]})
    pq.write_table(table, tmp_path / "bytes.parquet", row_group_size=2)
    tasks = tasks_of(tmp_path / "bytes.parquet")
    assert [t.rows for t in tasks] == [[0, 1], [2], [3]]
    assert [read(t) for t in tasks] == images

    pq.write_table(pa.table({"picture": ["a"]}), tmp_path / "other.parquet")
    with pytest.raises(RisError, match="needs the columns image and expression, it has picture"):
        tasks_of(tmp_path / "other.parquet")


def test_texts_and_images_in_any_of_arrows_forms(tmp_path):
    (tmp_path / "p.png").write_bytes(picture_bytes(1))
    texts = pa.array(["left man", "the dog", "left man"])
    names = pa.array(["p.png"] * 3)
    lists = pa.array([["left man"], ["the dog"], ["left man"]], pa.large_list(pa.large_string()))
    forms = {
        "dictionary": (names.dictionary_encode(), texts.dictionary_encode()),
        "view": (names.cast(pa.string_view()), texts.cast(pa.string_view())),
        "large": (names.cast(pa.large_string()), lists),
    }
    for form, (image, expression) in forms.items():
        path = tmp_path / f"{form}.parquet"
        pq.write_table(pa.table({"image": image, "expression": expression}), path)
        [task] = tasks_of(path)
        assert (task.name, task.rows) == ("p.png", [0, 1, 2]), form
        assert task.expressions == ["left man", "the dog", "left man"]
        assert read(task) == picture_bytes(1)

    pictures = pa.array([picture_bytes(i) for i in (1, 2, 1)])
    for form, image in (
        ("dictionary", pictures.dictionary_encode()),
        ("view", pictures.cast(pa.binary_view())),
        ("large", pictures.cast(pa.large_binary())),
    ):
        path = tmp_path / f"{form}.parquet"
        pq.write_table(pa.table({"image": image, "expression": texts}), path)
        assert [read(task) for task in tasks_of(path)] == pictures.to_pylist()


def test_a_table_of_other_kinds_is_errors_of_its_rows(tmp_path):
    """A list where a text belongs, numbers, structs: no other question, and no traceback."""
    path = tmp_path / "t.parquet"
    columns = {
        "image": [["a.png"], ["b.png"]],
        "expression": [{"text": "x"}, {"text": "y"}],
    }
    pq.write_table(pa.table(columns), path)
    assert ["not a text or a list" in task.error for task in tasks_of(path)] == [True, True]
    pq.write_table(pa.table({**columns, "expression": ["x", "y"]}), path)
    for task in tasks_of(path):
        with pytest.raises(ImageError, match="has no image bytes"):
            read(task)


def test_a_dictionary_expands_by_a_cell_at_a_time(tmp_path):
    """10 GB of images in a file of some megabytes, and 1.6 GB of texts."""
    big = np.random.default_rng(0).bytes(2_000_000)
    rows = 5000
    codes = pa.array([0] * rows, pa.int32())
    image = pa.DictionaryArray.from_arrays(codes, pa.array([big]))
    text = pa.DictionaryArray.from_arrays(codes, pa.array(["x" * 300_000]))
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"image": image, "expression": text}), path)
    assert path.stat().st_size < 10_000_000

    before = pa.default_memory_pool().max_memory()
    images = Images(Limits())
    tasks = tasks_of(path)
    assert len(tasks) == rows
    assert all("300000 characters" in task.error for task in tasks)
    for row in (0, 1, 4000, 2):
        assert images.read(Location(str(path), row=row)) == big
    assert pa.default_memory_pool().max_memory() - before < 1_000_000_000


def test_a_web_dataset_shard_is_read_in_place(tmp_path):
    images = [picture_bytes(i) for i in range(3)]
    members = [
        ("d/000.png", images[0]),
        ("d/000.txt", b"left man\nthe dog\n"),
        ("d/001.json", b'{"expression": "x"}'),
        ("d/001.png", images[1]),
        ("d/002.png", images[2]),
        ("d/002.json", b"{broken"),
    ]
    shard = tmp_path / "s.tar"
    with tarfile.open(shard, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))

    tasks = tasks_of(shard)
    assert [(t.name, t.expressions) for t in tasks[:2]] == [
        ("s.tar/d/000.png", ["left man", "the dog"]),
        ("s.tar/d/001.png", ["x"]),
    ]
    assert [read(t) for t in tasks[:2]] == images[:2]
    assert tasks[2].location is None
    (tmp_path / "no.tar").write_bytes(b"not a tar file at all")
    with pytest.raises(RisError, match="uncompressed tar"):
        tasks_of(tmp_path / "no.tar")


def test_an_address_without_fsspecs_paths_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "upath", None)
    with pytest.raises(RisError, match=r's3://a/b needs fsspec\'s paths: pip install ".*cpu,ray'):
        place("s3://a/b")
    assert place("a/b") == Path("a/b")


def test_what_is_no_source_is_said(tmp_path):
    with pytest.raises(RisError, match="no such file or folder"):
        tasks_of(tmp_path / "absent")
    (tmp_path / "x.csv").write_text("a")
    with pytest.raises(RisError, match="is not a folder"):
        tasks_of(tmp_path / "x.csv")


@pytest.fixture
def job(tmp_path):
    for i in range(5):
        (tmp_path / f"{i}.png").write_bytes(picture_bytes(i))
    (tmp_path / "2.png").write_bytes(b"broken")
    job = Job(tmp_path / "out")
    job.write_plan(tasks_of(tmp_path, expressions=["left man", "  "]), 4, {})
    return job


def answers(job):
    return pq.read_table(job.folder).sort_by("row").to_pylist()


def worker(job, bundle: Bundle, **more):
    running = {"engine": "onnxruntime", "device": "cpu", "threads": 1, "compute": None}
    return Worker(str(job.folder), str(bundle.path), running, Limits(), 0.5, **more)


def test_a_worker_does_parts_and_records_failures_by_row(job, served_bundle, served_model):
    assert job.planned()["parts"] == 3
    done = worker(job, open_bundle(served_bundle))({"part": [0, 1, 2]})
    assert done["rows"].sum() == 10
    rows = answers(job)
    assert [row["row"] for row in rows] == list(range(10))
    expected = served_model.segment(job.folder.parent / "0.png", "left man")
    assert rows[0]["rle"] == dict(expected.rle())
    assert rows[0]["error"] is None
    assert "the expression is empty" in rows[1]["error"]
    assert "can be read" in rows[4]["error"]
    assert rows[4]["rle"] is None
    assert job.open_parts(3) == []
    assert not list((job.folder / "_running").iterdir())


def test_rows_say_their_form_where_the_model_has_some(job, formed_bundle, formed_model):
    bundle = open_bundle(formed_bundle)
    worker(job, bundle)({"part": [0]})
    worker(job, bundle, form="sentence")({"part": [1]})
    columns = ["row", "image", "expression", "category", "form", "rle"]
    assert pq.read_schema(job.file(0)).names[: len(columns)] == columns
    rows = answers(job)
    for number, form in ((0, "phrase"), (6, "sentence")):
        row = rows[number]
        image = job.folder.parent / row["image"]
        expected = formed_model.segment(image, "left man", form=form)
        assert (row["form"], row["rle"]) == (form, dict(expected.rle()))
    assert rows[1]["form"] is None  # it could not be asked


def test_an_image_that_kills_workers_is_given_up(job, served_bundle, monkeypatch):
    class KilledError(BaseException):
        pass

    doing = worker(job, open_bundle(served_bundle))
    honest, tried = doing._image, []

    def image(task, *more):
        if task.name == "1.png":
            tried.append(1)
            raise KilledError
        return honest(task, *more)

    monkeypatch.setattr(doing, "_image", image)
    for _ in range(DEATHS):
        with pytest.raises(KilledError):
            doing({"part": [0]})
        assert job.open_parts(3) == [0, 1, 2]
    doing({"part": [0, 1, 2]})
    assert len(tried) == DEATHS
    rows = answers(job)
    assert [row["row"] for row in rows] == list(range(10))
    assert [row["row"] for row in rows if "given up" in (row["error"] or "")] == [2, 3]
