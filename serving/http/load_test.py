"""The same requests to `ris-serve http`, to Triton where it is installed, and in a plain loop."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ris.engines.errors import RisError
from ris.runtime.commands.running import Running, as_arguments
from ris.serving.triton.load_report import LoadReport
from ris.serving.triton.load_test import (
    Answers,
    Connect,
    LoadOptions,
    LoadRequest,
    Loop,
    ask_halves,
    ask_triton,
    loops_over,
    patient_limits,
    require_triton,
)

_PATIENCE = 600.0  # seconds
_BOUNDARY = "ris-load-test"


@dataclass(frozen=True)
class HttpLoadOptions:
    """How many ask how much, and whom."""

    requests: int
    """Requests in both halves together."""

    clients: int
    """Clients that ask at once."""

    workers: int
    """Processes of the HTTP server."""

    parallel: int
    """Questions that each of them asks its model at once."""

    triton: bool
    """Ask Triton as well."""

    port: int
    """The first of three ports for Triton; the HTTP server takes any that is free."""

    @property
    def for_triton(self) -> LoadOptions:
        """The same for Triton, over HTTP."""
        return LoadOptions(self.requests, self.clients, self.workers, True, self.port)


def run_http_load_test(
    bundle: Path, running: Running, options: HttpLoadOptions
) -> Iterator[tuple[str, LoadReport]]:
    """Runs the loop, and then lets the clients at each server in turn.

    Yields:
        Each server, "http" and "triton" where it is asked, with its report, once it is done: the
        next one may fail.

    Raises:
        RisError: Where something that Triton needs is missing, which is seen before the loop, and
            where the loop fails or a server does not start.
    """
    if options.triton:
        require_triton(options.for_triton)
    limits = patient_limits(options.clients)
    loops, category = loops_over(bundle, running, options.requests, limits)
    yield "http", _ask_http(bundle, running, options, loops, category)
    if options.triton:
        yield "triton", ask_triton(bundle, running, options.for_triton, loops, category)


def _ask_http(
    bundle: Path,
    running: Running,
    options: HttpLoadOptions,
    loops: list[Loop],
    category: str | None,
) -> LoadReport:
    with http_server(bundle, running, options) as port:
        connect = http_clients(port, category)
        return ask_halves(loops, options.clients, connect, lambda: _hits(port), "ris-serve http")


@contextmanager
def http_server(bundle: Path, running: Running, options: HttpLoadOptions) -> Iterator[int]:
    """`ris-serve http` in a process of its own; gives its port."""
    limits = patient_limits(options.clients)
    command = [
        *(sys.executable, "-c", "from ris.serving.triton.command import main; main()"),
        *("http", str(bundle), "--port", "0", "--log-level", "warning"),
        *as_arguments(running),
        *("--workers", str(options.workers), "--parallel", str(options.parallel)),
        *("--max-queue", str(limits.waiting), "--max-seconds", str(limits.seconds)),
    ]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stderr=log)
        try:
            yield _port(process, log.fileno())
        finally:
            process.terminate()
            process.wait(60)


def _port(process: subprocess.Popen[bytes], log: int) -> int:
    """Waits until the server is ready; its first line says where it listens."""
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end:
        text = Path(f"/proc/self/fd/{log}").read_text("utf-8", "replace")
        if process.poll() is not None:
            raise RisError(f"the server ended with code {process.returncode}: {text[-500:]}")
        where = [line for line in text.splitlines() if line.startswith("http://")]
        if where:
            port = int(where[0].split()[0].rpartition(":")[2])
            try:
                if _get(port, "/ready")[0] == 200:
                    return port
            except OSError:
                pass  # it listens once the model is loaded
        time.sleep(0.1)
    raise RisError("the server was not ready in time")


def _get(port: int, path: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def _hits(port: int) -> int:
    prefix = 'ris_image_cache_total{found="hit"} '
    lines = _get(port, "/metrics")[1].splitlines()
    return sum(round(float(line.removeprefix(prefix))) for line in lines if line.startswith(prefix))


def http_clients(port: int, category: str | None) -> Connect:
    """Clients of the server, each with a connection that is kept."""

    def connect() -> Callable[[LoadRequest], Answers]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_PATIENCE)

        def ask(request: LoadRequest) -> Answers:
            headers = {"Content-Type": f"multipart/form-data; boundary={_BOUNDARY}"}
            connection.request("POST", "/v1/segment", _form(request, category), headers)
            response = connection.getresponse()
            body = json.loads(response.read())
            if response.status != 200:
                raise RisError(f"{response.status}: {body['error']['message']}")
            masks = [answer["rle"] for answer in body["answers"]]
            return [(mask["size"], mask["counts"]) for mask in masks]

        return ask

    return connect


def _form(request: LoadRequest, category: str | None) -> bytes:
    fields = [("expression", text) for text in request.expressions]
    if category:
        fields.append(("category", category))
    head = 'Content-Disposition: form-data; name="{}"{}\r\n\r\n'
    parts = [head.format("image", '; filename="image"').encode() + request.image]
    parts += [head.format(name, "").encode() + value.encode() for name, value in fields]
    line = f"--{_BOUNDARY}\r\n".encode()
    return b"".join(line + part + b"\r\n" for part in parts) + f"--{_BOUNDARY}--\r\n".encode()
