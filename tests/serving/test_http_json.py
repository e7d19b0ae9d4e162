"""JSON of hostile clients: what it takes is booked before it is parsed."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

for needed in ("fastapi", "uvicorn", "prometheus_client", "fastapi_offline"):
    pytest.importorskip(needed, reason='not installed: pip install ".[http]"')

import json_memory  # noqa: E402
from http_helper import serving, wait_until  # noqa: E402
from ris.serving.http import reading  # noqa: E402
from ris.serving.http.labelling.label_config import (  # noqa: E402
    LabelConfigError,
    read_label_config,
)
from ris.serving.http.labelling.tasks import Task  # noqa: E402
from ris.serving.http.reading import json_bytes  # noqa: E402
from ris.serving.http.settings import BODY_COPIES  # noqa: E402
from serving_helpers import picture_bytes  # noqa: E402

FREE = 250_000  # bytes that every request may take besides
LONG = b"a" * 1_000_000
WIDE = "\u5de6".encode()


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="no peak of memory")
def test_no_shape_of_json_takes_more_than_is_booked():
    paths = [str(Path(json_memory.__file__).parent), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    command = [sys.executable, json_memory.__file__]
    done = subprocess.run(command, capture_output=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found) > 30
    spare = FREE + 2_000_000  # a process that does anything takes a megabyte
    assert not {name: one for name, one in found.items() if one[1] > one[2] + spare}


@pytest.mark.parametrize(
    ("body", "beside"),
    [
        (b'{"image":"%s","expression":["left man"]}' % LONG, 0),
        (b'{"image":"%s","expression":"%s"}' % (LONG, WIDE * 1000), 0),
        (b'{"image":"%s","expression":"\\u5de6"}' % LONG, 0),
        (b'{"image":"%s\\u002b\\u00e9"}' % LONG, 0),  # as .NET writes base64
        (b'{"image":"%s%s"}' % (LONG, WIDE), 5_000_000),
        (b'{"image":"%s\\u5de6"}' % LONG, 5_000_000),
        (b'{"image":"%s\\"\\u5de6"}' % LONG, 5_000_000),  # a quote in the text
        (b'{"image":"\\u5de6\\\\\\"%s"}' % LONG, 5_000_000),
        (b'{"image":"%s","a":"\\u5de6%s"}' % (LONG, b'""' * 200_000), 5_000_000),
        (b"[" * 100_000, 60_000_000),
        (b'{"":1,' * 100_000, 180_000_000),
    ],
)
def test_what_is_booked_for_json_beside_its_copies(body, beside):
    found = json_bytes(body) - BODY_COPIES * len(body)
    assert found >= beside - FREE
    assert found <= (1.5 * beside + FREE if beside else 0)


@pytest.fixture(scope="module")
def running(served_bundle):
    with serving(served_bundle) as server:
        yield server


def test_json_that_does_not_fit_into_the_memory_is_refused_before_it_is_parsed(
    running, monkeypatch
):
    service = running.service
    monkeypatch.setattr(service.door, "most_bytes", 70_000_000)
    monkeypatch.setattr(service.door, "bytes", 60_000_000)
    found = running.client().segment_json(expression=[[]] * 50_000)
    assert found.status == 503
    assert found.message.startswith("requests, and answers")
    wait_until(lambda: service.door.requests == 0 and service.door.bytes == 60_000_000)

    monkeypatch.setattr(service.door, "most_bytes", 10_000_000)
    monkeypatch.setattr(service.door, "bytes", 0)
    found = running.client().segment_json(expression=[[]] * 50_000)
    assert (found.status, found.message[:11]) == (413, "the request"), "it never fits"
    wait_until(lambda: service.door.requests == service.door.bytes == 0)

    image = base64.b64encode(picture_bytes(1)).decode()
    found = running.client().segment_json(image=image, expression=["left man", "\u5de6"])
    assert found.status == 200


def test_a_large_body_that_is_alone_is_let_in_with_honest_json(running, monkeypatch):
    monkeypatch.setattr(running.service.door, "most_bytes", 1000)
    image = base64.b64encode(picture_bytes(1)).decode()
    assert running.client().segment_json(image=image, expression="\u5de6").status == 200


def test_what_is_booked_stays_as_long_as_the_thread_that_it_is_booked_for():
    """A client that goes while its JSON is parsed would free it for others."""
    goes_on, done = threading.Event(), []

    def parse():
        assert goes_on.wait(60)
        done.append("parsed")

    async def run():
        task = asyncio.ensure_future(reading._to_its_end(parse))
        await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.sleep(0.05)
        assert not task.done()
        goes_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert done

    asyncio.run(run())


def test_an_image_in_other_letters_than_base64s_is_refused_as_it_is_read(running):
    image = "data:image/png;base64," + base64.b64encode(picture_bytes(1)).decode() + "\u5de6"
    found = running.client().segment_json(image=image, expression=["left man"])
    assert (found.status, found.message) == (400, "image is not base64")


def test_of_a_task_nothing_is_kept_that_is_not_asked_for():
    data = {"image": "data:,", "more": {"a": [{}] * 9}, "phrases": ["a", {"b": 1}], "n": 5}
    task = Task(id={"nested": 1}, data=data)
    kept = task.only({"image", "phrases", "n", "none"})
    assert kept.data == {"image": "data:,", "phrases": ["a"], "n": None}
    assert kept.id is None
    assert Task(id=7).only(()).id == 7


def test_a_configuration_of_very_many_tags_is_refused():
    with pytest.raises(LabelConfigError, match="has 30001 tags"):
        read_label_config("<View>" + "<a/>" * 30_000)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"expression": [1] * 1000}, "expression.0: Input should be a valid string"),
        ({"expression": "x", "answer": ["x"] * 1000}, "answer.0: Input should be 'rle', "),
        ({"expression": "x", "more": 1}, "more: Extra inputs are not permitted"),
        ({}, "expression: Field required"),
    ],
)
def test_json_that_is_not_as_it_should_be_is_one_sentence(running, fields, said):
    found = running.client().segment_json(**fields)
    assert (found.status, found.message[: len(said)]) == (400, said)


def test_what_is_no_json_is_one_sentence(running):
    found = running.client().ask("POST", "/v1/segment", b"{", Content_Type="application/json")
    assert (found.status, found.message[:14]) == (400, "Invalid JSON: ")
