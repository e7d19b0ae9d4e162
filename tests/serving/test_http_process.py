"""`ris-serve http` as a process: signals, workers that die, what is said at the start."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

for needed in ("fastapi", "uvicorn", "prometheus_client", "fastapi_offline"):
    pytest.importorskip(needed, reason='not installed: pip install ".[http]"')

import psutil  # noqa: E402

import http_hanging  # noqa: E402
from conftest import REPO  # noqa: E402
from http_helper import COMMAND, PATIENCE, Client, Process, wait_until  # noqa: E402
from ris.runtime.commands.running import Running  # noqa: E402
from serving_helpers import free_ports, picture_bytes  # noqa: E402


def served(bundle, port, number):
    return Client(port).segment(picture_bytes(number, 400, 300), ["left man", "the dog"])


def test_what_was_begun_is_answered_when_the_server_is_told_to_end(served_bundle, tmp_path):
    with Process(served_bundle, tmp_path / "log", "--parallel", "1") as server:
        port = server.port

        def inside():
            page = Client(port).get("/metrics").body.decode()
            return float(re.search(r"^ris_requests_inside (.+)$", page, re.MULTILINE)[1])

        with ThreadPoolExecutor(16) as pool:
            taken = [pool.submit(served, served_bundle, port, number) for number in range(16)]
            wait_until(lambda: inside() >= 4)
            server.process.send_signal(signal.SIGTERM)
            # who had not connected yet is refused a connection, and that alone
            statuses = [one.result().status for one in taken if not one.exception()]
            refused = [type(one.exception()) for one in taken if one.exception()]
        assert len(statuses) >= 4
        assert set(statuses) == {200}
        assert all(issubclass(one, ConnectionError) for one in refused)
        assert server.process.wait(PATIENCE) == 0
    asked = [event for event in server.events if event.get("path") == "/v1/segment"]
    assert len({event["request_id"] for event in asked}) == len(asked) == len(statuses)
    assert all(event["stages"]["queue"] >= 0 for event in asked)


def test_a_hang_up_reloads_the_bundle(served_bundle, tmp_path):
    with Process(served_bundle, tmp_path / "log") as server:
        first = served(served_bundle, server.port, 1).json
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: any(event["event"] == "reloaded" for event in server.events))
        second = served(served_bundle, server.port, 1).json
        assert not second["from_cache"]
        assert first["answers"] == second["answers"]


def test_a_worker_that_is_killed_is_started_anew(served_bundle, tmp_path):
    with Process(served_bundle, tmp_path / "log", "--workers", "2") as server:
        port = server.port
        wait_until(lambda: len(server.workers) == 2)
        before = server.workers
        [wanted] = {served(served_bundle, port, 1).json["answers"][0]["rle"]["counts"]}
        # a request is counted after its answer, by the worker that is about to die, perhaps
        counted = 'ris_http_requests_total{route="/v1/segment",status="200"} '
        wait_until(lambda: f"{counted}1.0" in Client(port).get("/metrics").body.decode())
        dead = min(before)
        os.kill(dead, signal.SIGKILL)
        wait_until(lambda: len(server.workers - {dead}) == 2)

        assert served(served_bundle, port, 1).json["answers"][0]["rle"]["counts"] == wanted
        # of all workers, the dead one's past among them
        wait_until(lambda: f"{counted}2.0" in Client(port).get("/metrics").body.decode())
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(PATIENCE) == 0


def test_a_worker_whose_engine_hangs_is_killed_and_replaced(served_bundle, tmp_path):
    command = [sys.executable, "-c", "import http_hanging; http_hanging.main()", served_bundle]
    paths = [str(REPO / "tests"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    log = tmp_path / "log"
    with Process(served_bundle, log, command=command, env=environment) as server:
        port = server.port
        wait_until(lambda: len(server.workers) == 2)
        before = server.workers
        with contextlib.suppress(OSError):  # the worker may be gone before it answers
            asked = Client(port).segment(picture_bytes(1, http_hanging.WIDTH), ["left man"])
            assert asked.status == 504
        wait_until(lambda: len(server.workers) == 2 and server.workers != before)
        assert len(server.workers & before) == 1, "the other one goes on"

        def answered():
            with contextlib.suppress(OSError):
                return Client(port).segment(picture_bytes(2), ["left man"]).status == 200

        wait_until(answered)
        assert "the engine hangs; this process ends" in server.text
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(PATIENCE) == 0


def test_workers_end_with_their_supervisor(served_bundle, tmp_path):
    with Process(served_bundle, tmp_path / "log", "--workers", "2") as server:
        assert server.port
        children = psutil.Process(server.process.pid).children(recursive=True)
        server.process.kill()
        gone, alive = psutil.wait_procs(children, timeout=60)
        assert len(gone) >= 2
        assert not alive


def run(*arguments, **environment):
    command = [sys.executable, "-c", COMMAND, "http", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=PATIENCE, env={**os.environ, **environment}
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "nowhere"),
        (["{bundle}", "--host", "192.0.2.1"], "nothing can listen at 192.0.2.1"),
        (["{bundle}", "--token-file", "{empty}"], "a token is a line of ASCII characters"),
        (["{bundle}", "--engine", "onnxruntime", "--device", "cuda:7"], "CUDA"),
        (["{bundle}", "--compute", "made_up=fp32"], "made_up"),
        (
            ["{bundle}", "--compute", "made_up=fp32", "--workers", "2"],
            "a worker could not start; its log says why",
        ),
    ],
)
def test_what_cannot_be_served_is_one_sentence(served_bundle, tmp_path, arguments, said):
    (tmp_path / "empty").write_text("\n")
    given = [one.format(bundle=served_bundle, empty=tmp_path / "empty") for one in arguments]
    done = run(*given, "--port", "0")
    assert done.returncode == 2
    [error] = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert said in error
    assert "Traceback" not in done.stderr


def test_a_port_that_is_taken_is_one_sentence(served_bundle):
    import socket

    [port] = free_ports(1)
    with socket.create_server(("127.0.0.1", port)):
        done = run(served_bundle, "--port", port)
        # before a bundle is looked for, which may be a download
        missing = run("nowhere", "--port", port)
    for refused in (done, missing):
        assert refused.returncode == 2
        assert f"Error: nothing can listen at 127.0.0.1, port {port}" in refused.stderr


def test_a_token_is_never_an_option(served_bundle):
    """Whoever lists the processes of a machine reads their arguments."""
    assert "--token " not in run("--help").stdout
    assert "RIS_HTTP_TOKEN" in run("--help").stdout
    done = run(served_bundle, "--token", "secret")
    assert done.returncode == 2
    assert "No such option" in done.stderr


def test_a_token_of_the_environment_is_asked(served_bundle, tmp_path):
    environment = {**os.environ, "RIS_HTTP_TOKEN": "secret"}
    with Process(served_bundle, tmp_path / "log", env=environment) as server:
        port = server.port
        assert Client(port).get("/metrics").status == 401
        assert Client(port, "secret").get("/metrics").status == 200
    assert "secret" not in server.text


def test_the_load_test_finds_the_loops_masks(served_bundle):
    from ris.serving.http.load_test import HttpLoadOptions, run_http_load_test

    running = Running("onnxruntime", "cpu", threads=1, compute="fp32")
    options = HttpLoadOptions(
        requests=8, clients=2, workers=1, parallel=2, triton=False, port=18000
    )
    [(_, report)] = run_http_load_test(served_bundle, running, options)
    report.check()
    assert (report.distinct.images, report.repeated.images) == (4, 1)
    assert report.distinct.cache_hits == 0
    assert report.repeated.cache_hits >= 3
