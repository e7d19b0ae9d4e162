"""A batch whose input, bundle and answers are in S3, as moto has it on this machine."""

from __future__ import annotations

import urllib.request

import pytest

pytest.importorskip("pyarrow", reason='pyarrow is not installed: pip install ".[ray]"')
upath = pytest.importorskip("upath", reason='not installed: pip install ".[ray]"')
pytest.importorskip("s3fs", reason='s3fs is not installed: pip install ".[dev]"')
server = pytest.importorskip("moto.server", reason='moto is not installed: pip install ".[dev]"')

import fsspec  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402

from ris.engines.errors import RisError  # noqa: E402
from ris.serving.batch.addresses import local_bundle, place  # noqa: E402
from ris.serving.batch.asked import Given  # noqa: E402
from ris.serving.batch.run import BatchOptions, plan_batch  # noqa: E402
from ris.serving.batch.worker import Worker  # noqa: E402
from ris.serving.limits import Limits  # noqa: E402
from serving_helpers import picture_bytes, shard_bytes, table_bytes  # noqa: E402

RUNNING = {"engine": "onnxruntime", "device": "cpu", "threads": 1, "compute": None}
GIVEN = Given(("left man",))
ADDRESS = "s3://bucket/ris-bundle"


@pytest.fixture
def s3(monkeypatch):
    """A server that can be stopped, with a bucket."""
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    url = f"http://{host}:{port}"
    urllib.request.urlopen(f"{url}/moto-api/reset", data=b"").close()  # moto's state is one for all
    for name, value in {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "1",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    fsspec.filesystem("s3").clear_instance_cache()
    fsspec.filesystem("s3").mkdir("bucket")
    yield running
    running.stop()
    fsspec.filesystem("s3").clear_instance_cache()


@pytest.fixture
def sources(s3, served_bundle):
    """A folder, a table and a shard; a bundle stands beside them."""
    bucket = place("s3://bucket")
    (bucket / "photos" / "a.png").write_bytes(picture_bytes(0))
    (bucket / "photos" / "b.png").write_bytes(picture_bytes(3))
    (bucket / "t.parquet").write_bytes(table_bytes())
    (bucket / "s.tar").write_bytes(shard_bytes())
    lines = '{"image": "photos/a.png", "expression": "x"}\n'
    lines += '{"image": "s3://bucket/absent.png", "expression": "y"}\n'
    (bucket / "in.jsonl").write_bytes(lines.encode())
    bucket.fs.put(str(served_bundle), "bucket/ris-bundle", recursive=True)
    return [bucket / name for name in ("photos", "in.jsonl", "t.parquet", "s.tar")]


def worker(job, sources):
    given = [str(source) for source in sources]
    return Worker(str(job.folder), ADDRESS, RUNNING, Limits(), 0.5, sources=given)


def rows_of(job, parts):
    found = []
    for part in range(parts):
        with job.file(part).open("rb") as file:
            found += pq.read_table(file).to_pylist()
    return sorted(found, key=lambda row: row["row"])


def test_input_bundle_and_answers_are_in_s3(sources):
    out, options = place("s3://bucket/out"), BatchOptions(rows_per_part=2)
    with local_bundle(ADDRESS) as bundle:
        job, parts = plan_batch(out, bundle, sources, GIVEN, options)
        assert plan_batch(out, bundle, sources, GIVEN, options)[1] == parts, "it goes on"
    assert job.open_parts(parts) == list(range(parts))
    assert list(worker(job, sources)({"part": range(parts)})["failed"]) == [""] * parts
    assert job.open_parts(parts) == []

    rows = rows_of(job, parts)
    asked = ["left man", "left man", "x", "y", "a tree", "the dog"]
    assert [row["expression"] for row in rows] == asked
    assert [bool(row["rle"]) for row in rows] == [True, True, True, False, True, True]
    assert "absent.png: no such image file" in rows[3]["error"]
    job.tidy()
    assert {path.name.split("-")[0] for path in out.iterdir()} == {"_plan", "part"}

    place("s3://bucket/absent.png").write_bytes(picture_bytes(5))
    again = worker(job, sources)({"part": range(parts), "again": [True] * parts})
    assert (again["rows"].sum(), again["errors"].sum()) == (1, 0)

    place("s3://bucket/t.parquet").write_bytes(table_bytes() + b" ")
    with local_bundle(ADDRESS) as bundle, pytest.raises(RisError, match="with other files"):
        plan_batch(out, bundle, sources, GIVEN, options)


def test_a_bucket_that_goes_away_is_no_images_fault(s3, sources, tmp_path):
    """The answers are elsewhere: what fails is the images' storage."""
    with local_bundle(ADDRESS) as bundle:
        job, _ = plan_batch(tmp_path / "out", bundle, sources[:1], GIVEN, BatchOptions())
    doing = worker(job, sources[:1])
    s3.stop()
    [failed] = doing({"part": [0]})["failed"]
    assert "a.png cannot be read" in failed
    assert job.open_parts(1) == [0]


def test_what_is_not_there_is_one_sentence(s3):
    with (
        pytest.raises(RisError, match="s3://bucket/nothing cannot be read"),
        local_bundle("s3://bucket/nothing"),
    ):
        pass
