"""A batch whose input, bundle and answers are in fsspec's memory: no path of this machine."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("pyarrow", reason='pyarrow is not installed: pip install ".[ray]"')
pq = pytest.importorskip("pyarrow.parquet")
upath = pytest.importorskip("upath", reason='not installed: pip install ".[ray]"')

from ris.engines.errors import RisError  # noqa: E402
from ris.serving.batch import grouping, images  # noqa: E402
from ris.serving.batch.addresses import beside, local_bundle, place  # noqa: E402
from ris.serving.batch.asked import Given  # noqa: E402
from ris.serving.batch.run import BatchOptions, plan_batch  # noqa: E402
from ris.serving.batch.worker import Worker  # noqa: E402
from ris.serving.limits import Limits  # noqa: E402
from serving_helpers import picture_bytes, shard_bytes, table_bytes  # noqa: E402

RUNNING = {"engine": "onnxruntime", "device": "cpu", "threads": 1, "compute": None}
GIVEN = Given(("left man",))


@pytest.fixture
def memory():
    """An empty bucket."""
    folder = place("memory://bucket")
    yield folder
    folder.fs.rm("/bucket", recursive=True)


def put(folder, **files):
    for name, data in files.items():
        folder.joinpath(name.replace("__", "/").replace("_", ".")).write_bytes(data)


@pytest.fixture
def sources(memory):
    """A folder, JSON lines, a table and a shard."""
    lines = [
        {"image": "photos/a.png", "expression": "x"},
        {"image": "memory://bucket/photos/b.png", "expression": "y"},
        {"image": "absent.png", "expression": "z"},
    ]
    put(
        memory,
        photos__a_png=picture_bytes(0),
        photos__b_png=picture_bytes(3),
        photos__notes_txt=b"no image",
        in_jsonl="\n".join(map(json.dumps, lines)).encode(),
        t_parquet=table_bytes(),
        s_tar=shard_bytes(),
    )
    return [memory / name for name in ("photos", "in.jsonl", "t.parquet", "s.tar")]


def worker(job, bundle, **options):
    return Worker(str(job.folder), str(bundle), RUNNING, Limits(), 0.5, **options)


@pytest.mark.parametrize("most", [0, 100], ids=["on-disk", "in-memory"])
def test_a_batch_in_memory_is_a_batch(memory, sources, served_bundle, monkeypatch, most):
    monkeypatch.setattr(grouping, "_IN_MEMORY", most)
    memory.fs.put(str(served_bundle), "/bucket/ris-bundle", recursive=True)
    out, options = memory / "out", BatchOptions(rows_per_part=2)
    with local_bundle("memory://bucket/ris-bundle") as bundle:
        job, parts = plan_batch(out, bundle, sources, GIVEN, options)
    assert parts == 4
    doing = worker(job, "memory://bucket/ris-bundle", sources=[str(one) for one in sources])
    assert list(doing({"part": range(parts)})["failed"]) == [""] * parts
    assert job.open_parts(parts) == []

    counts = [job.counts(part) for part in range(parts)]
    assert [sum(one) for one in zip(*counts, strict=True)] == [7, 1]
    rows = {}
    for part in range(parts):
        with job.file(part).open("rb") as file:
            rows |= {row["row"]: row for row in pq.read_table(file).to_pylist()}
    assert [rows[i]["expression"] for i in range(7)] == [
        *("left man", "left man", "x", "y", "z", "a tree", "the dog")
    ]
    assert "absent.png: no such image file" in rows[4]["error"]
    assert rows[0]["rle"]

    job.tidy()
    assert {path.name.split("-")[0] for path in out.iterdir()} == {"_plan", "part"}
    put(memory, absent_png=picture_bytes(5))
    again = doing({"part": range(parts), "again": [True] * parts})
    assert again["rows"].sum() == 1
    assert again["errors"].sum() == 0


def test_another_input_is_refused_and_a_restart_begins_anew(memory, sources, served_bundle):
    out, options = memory / "out", BatchOptions()
    plan_batch(out, served_bundle, sources, GIVEN, options)
    put(memory, t_parquet=table_bytes() + b" ")
    with pytest.raises(RisError, match="has a batch with other files"):
        plan_batch(out, served_bundle, sources, GIVEN, options)
    before = (out / "_plan" / "plan.json").read_bytes()
    with pytest.raises(RisError, match="no such file or folder"):
        plan_batch(out, served_bundle, [memory / "absent"], GIVEN, options, restart=True)
    assert (out / "_plan" / "plan.json").read_bytes() == before
    put(out, **{"part-00000_parquet": b"answers"})
    job, parts = plan_batch(out, served_bundle, sources[:1], GIVEN, options, restart=True)
    assert job.open_parts(parts) == [0], "the answers of the earlier batch are gone"


def test_storage_that_fails_never_makes_a_row(memory, sources, served_bundle, monkeypatch):
    job, _ = plan_batch(memory / "out", served_bundle, sources[:1], GIVEN, BatchOptions())
    doing = worker(job, served_bundle)

    class ClientError(Exception):
        """What botocore raises is no OSError."""

    def open_(*arguments, **options):
        raise ClientError("SlowDown: please reduce your request rate")

    monkeypatch.setattr(type(memory.fs), "_open", open_)
    [failed] = doing({"part": [0]})["failed"]
    assert "SlowDown" in failed
    monkeypatch.undo()
    assert job.open_parts(1) == [0]


def test_an_object_that_may_not_be_read_costs_its_own_rows(
    memory, sources, served_bundle, monkeypatch
):
    job, _ = plan_batch(memory / "out", served_bundle, sources[:1], GIVEN, BatchOptions())
    doing = worker(job, served_bundle, sources=[str(sources[0])])
    honest = type(memory.fs)._open

    def open_(fs, path, *arguments, **options):
        if path.endswith("a.png"):
            raise PermissionError("Access Denied")
        return honest(fs, path, *arguments, **options)

    monkeypatch.setattr(type(memory.fs), "_open", open_)
    done = doing({"part": [0]})
    assert (list(done["failed"]), list(done["errors"])) == ([""], [1])

    monkeypatch.setattr(images, "_exists", lambda path: False)  # of credentials that ran out
    job.file(0).unlink()
    [failed] = doing({"part": [0]})["failed"]
    assert "photos is not there on a worker's machine" in failed


def test_a_workers_copy_of_the_bundle_is_the_planned_one_and_whole(memory, sources, served_bundle):
    address, out = "memory://bucket/ris-bundle", memory / "out"
    memory.fs.put(str(served_bundle), "/bucket/ris-bundle", recursive=True)
    job, _ = plan_batch(out, served_bundle, sources[:1], GIVEN, BatchOptions())
    damaged = memory / "ris-bundle" / "tokenizer.json"
    kept = damaged.read_bytes()
    damaged.write_bytes(kept + b" ")
    [failed] = worker(job, address)({"part": [0]})["failed"]
    assert "tokenizer.json is not the file that was exported" in failed
    damaged.write_bytes(kept)

    manifest = memory / "ris-bundle" / "manifest.json"
    manifest.write_bytes(manifest.read_bytes() + b" ")
    [failed] = worker(job, address)({"part": [0]})["failed"]
    assert "is not the one that the batch was planned for" in failed
    assert job.open_parts(1) == [0]


def test_a_worker_that_ends_leaves_no_copy_of_the_bundle(
    memory, sources, served_bundle, monkeypatch, tmp_path
):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    memory.fs.put(str(served_bundle), "/bucket/ris-bundle", recursive=True)
    job, _ = plan_batch(memory / "out", served_bundle, sources[:1], GIVEN, BatchOptions())
    doing = worker(job, "memory://bucket/ris-bundle")
    assert list(tmp_path.glob("ris-bundle-*"))
    ended = []
    monkeypatch.setattr("os._exit", ended.append)
    doing._leave()
    assert ended == [1]
    assert not list(tmp_path.glob("ris-bundle-*"))


def test_a_dead_worker_puts_a_remote_part_under_suspicion(memory, sources, served_bundle):
    job, _ = plan_batch(memory / "out", served_bundle, sources[:1], GIVEN, BatchOptions())
    journal = job.journal(0)
    assert journal.is_slow
    journal.begin(0, 1)
    assert [job.journal(0).deaths(image) for image in (0, 1)] == [1, 1]
    doing = worker(job, served_bundle)
    assert list(doing({"part": [0]})["failed"]) == [""]


def test_addresses_that_cannot_be_used_are_one_sentence():
    with pytest.raises(RisError, match="nosuch://x cannot be used: Unsupported filesystem"):
        place("nosuch://x")
    assert str(beside(place("memory://a/b.jsonl"), "c/d.png")) == "memory://a/c/d.png"
    assert str(beside(place("memory://a/b.jsonl"), "memory://e/f.png")) == "memory://e/f.png"
    with (
        pytest.raises(RisError, match="memory://nowhere cannot be read"),
        local_bundle("memory://nowhere"),
    ):
        pass
