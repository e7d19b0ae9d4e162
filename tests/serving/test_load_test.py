"""A load test asks for what its servers need first, and loses nothing that is done."""

from __future__ import annotations

import json
import socket
import sys
from types import ModuleType

import pytest
from click.testing import CliRunner

for needed in ("fastapi", "uvicorn", "prometheus_client", "fastapi_offline"):
    pytest.importorskip(needed, reason='not installed: pip install ".[http]"')

import ris.serving.http.load_test as http_load  # noqa: E402
import ris.serving.triton.load_test as triton_load  # noqa: E402
from ris.engines.errors import RisError  # noqa: E402
from ris.serving.triton.command import main  # noqa: E402
from ris.serving.triton.load_report import Half, LoadReport  # noqa: E402
from ris.serving.triton.load_test import LoadRequest, Loop, ask_halves  # noqa: E402
from serving_helpers import free_ports  # noqa: E402

HALF = Half(4, 4, 10.0, 20.0, 5.0, 9.0, 0, 0, 0)
REPORT = LoadReport(2, HALF, HALF, None)
COMMANDS = (["load-test"], ["load-test", "--http"], ["load-test-http", "--triton"])


@pytest.fixture
def port(monkeypatch):
    """The first of Triton's ports, on a machine that has all that Triton needs, as far as it is
    asked."""
    monkeypatch.setattr(triton_load, "find_server", lambda: None)
    for name in ("tritonclient", "tritonclient.http", "tritonclient.grpc"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    return next(first for first in iter(lambda: free_ports(1)[0], None) if three_are_free(first))


def three_are_free(first):
    try:
        for number in range(first, first + 3):
            socket.create_server(("127.0.0.1", number)).close()
    except (OSError, OverflowError):
        return False
    return True


@pytest.fixture
def steps(monkeypatch):
    """What was begun of a load test; none of it does anything."""
    begun = []

    def step(name, result):
        def begin(*arguments):
            begun.append(name)
            if isinstance(result, Exception):
                raise result
            return result

        return begin

    for module in (triton_load, http_load):
        monkeypatch.setattr(module, "loops_over", step("loop", ([], None)))
        monkeypatch.setattr(module, "ask_triton", step("triton", RisError("Triton is ill")))
    monkeypatch.setattr(http_load, "_ask_http", step("http", REPORT))
    return begun


def run(bundle, port, *arguments):
    [command, *options] = arguments
    given = [command, str(bundle), *options, "--port", str(port)]
    return CliRunner().invoke(main, given)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("lacking", ["server", "client", "port"])
def test_what_triton_needs_is_asked_before_the_loop(
    demo, port, steps, monkeypatch, command, lacking
):
    said = {
        "server": "there is no tritonserver here",
        "client": "the load test needs tritonclient.",
        "port": f"nothing can listen at 127.0.0.1, port {port + 2}",
    }

    def no_server():
        raise RisError(said["server"])

    if lacking == "server":
        monkeypatch.setattr(triton_load, "find_server", no_server)
    if lacking == "client":
        for name in ("http", "grpc"):
            monkeypatch.setitem(sys.modules, f"tritonclient.{name}", None)
    with socket.socket() as taken:
        if lacking == "port":
            taken.bind(("127.0.0.1", port + 2))
            taken.listen()
        done = run(demo, port, *command)
    assert done.exit_code == 2, done.output
    assert said[lacking] in done.output
    assert steps == []


@pytest.fixture
def demo():
    """A bundle that nothing opens: the built-in one."""
    from ris.runtime.commands.console import find_bundle

    return find_bundle(None)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_loop_begins_where_nothing_is_missing(demo, port, steps, command):
    assert "Triton is ill" in run(demo, port, *command).output
    assert steps == ["loop", *(["http"] if "--triton" in command else []), "triton"]


def test_the_report_of_http_is_printed_where_triton_fails(demo, port, steps):
    done = run(demo, port, "load-test-http", "--triton")
    assert done.exit_code == 2
    assert "http: 2 clients" in done.stdout
    assert "Error: Triton is ill" in done.stderr

    done = run(demo, port, "load-test-http", "--triton", "--json")
    assert done.exit_code == 2
    found = json.loads(done.stdout)
    assert list(found) == ["http"]
    assert found["http"]["distinct"]["server_per_second"] == 20.0


def test_a_half_is_said_where_the_other_fails(capsys):
    requests = [LoadRequest(bytes([i]), ("x",)) for i in range(3)]
    loop = Loop(requests, [[([1, 1], "0")]] * 3, 2.0)
    looks = iter([0.0, 1.0])

    def hits():
        try:
            return next(looks)
        except StopIteration:
            raise RisError("the server is gone") from None

    with pytest.raises(RisError, match="the server is gone"):
        ask_halves([loop, loop], 2, lambda: lambda request: [([1, 1], "0")], hits, "Triton")
    said = capsys.readouterr().err
    assert "Triton, an image each: 3 requests, 3 images: plain loop 1.5 requests/s" in said
    assert "1 found in the cache; 0 errors, 0 different" in said


def test_the_loop_is_said_before_a_server_is_asked(served_bundle, capsys):
    from ris.runtime.commands.running import Running

    running = Running("onnxruntime", "cpu", threads=1, compute="fp32")
    loops, _ = triton_load.loops_over(served_bundle, running, 2, triton_load.patient_limits(1))
    said = capsys.readouterr().err
    for kind, loop in zip(("an image each", "repeated images"), loops, strict=True):
        assert f"Plain runtime, {kind}: {len(loop.requests) / loop.seconds:.1f} requests/s" in said
