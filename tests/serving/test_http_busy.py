"""`ris-serve http` where it is busy, fails, or opens its bundle anew."""

from __future__ import annotations

import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

for needed in ("fastapi", "uvicorn", "prometheus_client", "fastapi_offline"):
    pytest.importorskip(needed, reason='not installed: pip install ".[http]"')

from http_helper import RUNNING, Client, form, serving, wait_until  # noqa: E402
from ris.engines.errors import RisError  # noqa: E402
from ris.runtime import load  # noqa: E402
from ris.serving.http.settings import HttpSettings  # noqa: E402
from ris.serving.limits import Limits  # noqa: E402
from serving_helpers import picture_bytes  # noqa: E402

PICTURE = picture_bytes(1)

# The queue


class Held:
    """A model whose images wait until they may go on."""

    def __init__(self, bundle):
        self.bundle, self.go, self.waiting = bundle, threading.Event(), 0
        self.fault = None

    def open(self):
        model = load(self.bundle, **vars(RUNNING))
        encode, opened = model.encode_image, []

        def encode_image(*args, **more):
            if opened:  # the first is the server's own
                self.waiting += 1
                assert self.go.wait(120)
            if self.fault:
                raise self.fault
            opened.append(True)
            return encode(*args, **more)

        model.encode_image = encode_image
        return model


@pytest.fixture
def held(served_bundle):
    model = Held(served_bundle)
    yield model
    model.go.set()


def in_background(pool, running, number, **more):
    return pool.submit(lambda: Client(running.port).segment(picture_bytes(number), ["x"], **more))


def test_a_full_queue_refuses_and_recovers(held):
    settings = HttpSettings(limits=Limits(waiting=2), parallel=1)
    with ThreadPoolExecutor(8) as pool, serving(held.bundle, settings, held.open) as running:
        taken = [in_background(pool, running, number) for number in range(3)]
        wait_until(lambda: running.service.door.requests == 3)
        reply = running.client().segment(picture_bytes(9), ["x"])
        assert reply.status == 503
        assert reply.message == "3 requests are waiting already"
        assert 1 <= int(reply.headers["retry-after"]) <= 60
        assert running.client().get("/ready").status == 200
        held.go.set()
        assert [one.result().status for one in taken] == [200] * 3
        assert running.client().segment(picture_bytes(9), ["x"]).status == 200


def test_one_client_cannot_take_all_places(held):
    settings = HttpSettings(parallel=1, per_client=1)
    with ThreadPoolExecutor(2) as pool, serving(held.bundle, settings, held.open) as running:
        taken = in_background(pool, running, 1)
        wait_until(lambda: running.service.door.requests == 1)
        reply = running.client().segment(picture_bytes(2), ["x"])
        assert (reply.status, reply.message) == (
            429,
            "1 requests of this client are waiting already",
        )
        assert int(reply.headers["retry-after"]) >= 1
        held.go.set()
        assert taken.result().status == 200


def test_a_client_that_goes_leaves_the_queue(held):
    settings = HttpSettings(parallel=1)
    with ThreadPoolExecutor(2) as pool, serving(held.bundle, settings, held.open) as running:
        service = running.service
        taken = in_background(pool, running, 1)
        wait_until(lambda: held.waiting == 1)

        body, kind = form(picture_bytes(2), ["x"])
        with socket.create_connection(("127.0.0.1", running.port)) as raw:
            head = f"POST /v1/segment HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\n"
            raw.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            wait_until(lambda: service.waiting == 1)
        wait_until(lambda: service.waiting == 0 and service.door.requests == 1)

        held.go.set()
        assert taken.result().status == 200
        assert held.waiting == 1  # the model never saw the second image


def test_a_request_out_of_time_is_told_and_leaves(held):
    settings = HttpSettings(parallel=1)
    with ThreadPoolExecutor(2) as pool, serving(held.bundle, settings, held.open) as running:
        taken = in_background(pool, running, 1)
        wait_until(lambda: held.waiting == 1)
        reply = running.client().segment(picture_bytes(2), ["x"], timeout=0.2)
        assert reply.status == 504
        assert "took longer than 0.2 s" in reply.message
        assert running.service.waiting == 0
        held.go.set()
        assert taken.result().status == 200


def test_a_thread_that_nobody_waits_for_keeps_its_turn(held):
    """Its memory is still in use: the next one must not begin."""
    settings = HttpSettings(parallel=1)
    with ThreadPoolExecutor(2) as pool, serving(held.bundle, settings, held.open) as running:
        assert running.client().segment(picture_bytes(1), ["x"], timeout=0.3).status == 504
        assert running.service.running == 1
        taken = in_background(pool, running, 2)
        wait_until(lambda: running.service.waiting == 1)
        held.go.set()
        assert taken.result().status == 200


# Failures


def test_an_error_of_ours_costs_its_own_request(held):
    held.go.set()
    with serving(held.bundle, open_model=held.open) as running:
        client = running.client()
        held.fault = KeyError("a mistake in the code")
        reply = client.segment(picture_bytes(1), ["x"])
        assert reply.status == 500
        assert "mistake" not in reply.message
        assert reply.json["error"]["request_id"] == reply.headers["x-request-id"]
        held.fault = None
        assert running.client().segment(picture_bytes(1), ["x"]).status == 200
        wait_until(lambda: running.service.door.requests == running.service.running == 0)


def test_an_engine_that_fails_again_and_again_makes_the_server_unhealthy(held):
    held.go.set()
    with serving(held.bundle, open_model=held.open) as running:
        client = running.client()
        held.fault = RuntimeError("CUDA error 700")
        for number in range(3):
            assert client.get("/health").status == 200
            reply = client.segment(picture_bytes(number), ["x"])
            assert (reply.status, reply.message) == (500, "the engine failed: CUDA error 700")
        assert client.get("/health").status == client.get("/ready").status == 503
        held.fault = None
        assert client.segment(picture_bytes(1), ["x"]).status == 200
        assert client.get("/health").status == client.get("/ready").status == 200


# Reloads


def test_a_reload_loses_no_request(held):
    models = []

    def open_model():
        models.append(held.open())
        return models[-1]

    settings = HttpSettings(token="t")
    with ThreadPoolExecutor(2) as pool, serving(held.bundle, settings, open_model) as running:
        client = running.client("t")
        taken = pool.submit(lambda: Client(running.port, "t").segment(picture_bytes(1), ["x"]))
        wait_until(lambda: held.waiting == 1)
        assert client.ask("POST", "/v1/reload").status == 200
        assert running.service.answerer.model is models[1]
        held.go.set()
        assert taken.result().status == 200
        assert not client.segment(picture_bytes(1), ["x"]).json["from_cache"]  # another model's
        wait_until(lambda: closed(models[0]))
        assert not closed(models[1])


def closed(model):
    try:
        model.encode_image(np.zeros((8, 8, 3), np.uint8))
    except RisError:
        return True
    return False


def test_a_reload_that_fails_leaves_the_model_alone(served_bundle):
    found = [served_bundle]

    def open_model():
        return load(found[0], **vars(RUNNING))

    with serving(served_bundle, HttpSettings(token="t"), open_model) as running:
        client = running.client("t")
        before = client.segment(PICTURE, ["left man"]).json["answers"]
        found[0] = served_bundle / "nowhere"
        reply = client.ask("POST", "/v1/reload")
        assert reply.status == 500
        assert "nowhere" in reply.message
        assert client.get("/ready").status == 200
        assert client.segment(PICTURE, ["left man"]).json["answers"] == before
