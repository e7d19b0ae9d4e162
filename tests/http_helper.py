"""A server over a bundle on loopback, in a thread or a process of its own, and a client for it."""

from __future__ import annotations

import contextlib
import http.client
import json
import subprocess
import sys
import threading
import time
import urllib.parse
from dataclasses import dataclass, field

import psutil
import uvicorn

from ris.runtime import load
from ris.runtime.commands.running import Running
from ris.serving.http.app import create_app
from ris.serving.http.server import Serving, listen, uvicorn_config
from ris.serving.http.service import Service
from ris.serving.http.settings import HttpSettings

RUNNING = Running("onnxruntime", "cpu", threads=1, compute=None)
PATIENCE = 120  # seconds


@dataclass
class Reply:
    """What a server answered."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def message(self):
        return self.json["error"]["message"]


def form(image, expressions, **fields):
    """A form's body and its type. A field that is a list stands there once for each entry."""
    boundary = "ris-test-boundary"
    parts = []
    if image is not None:
        head = b'Content-Disposition: form-data; name="image"; filename="x"\r\n\r\n'
        parts.append(head + image)
    for name, value in {"expression": list(expressions), **fields}.items():
        for one in value if isinstance(value, list) else [value]:
            head = f'Content-Disposition: form-data; name="{name}"\r\n\r\n{one}'
            parts.append(head.encode())
    body = b"".join(b"--" + boundary.encode() + b"\r\n" + part + b"\r\n" for part in parts)
    return body + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"


class Client:
    """One connection, kept alive."""

    def __init__(self, port, token=None):
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}

    def ask(self, method, path, body=None, **headers):
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self._connection.request(method, path, body, {**self._headers, **named})
        answer = self._connection.getresponse()
        found = {name.lower(): value for name, value in answer.getheaders()}
        return Reply(answer.status, found, answer.read())

    def get(self, path, **headers):
        return self.ask("GET", path, **headers)

    def segment(self, image, expressions, accept="application/json", **fields):
        body, kind = form(image, expressions, **fields)
        return self.ask("POST", "/v1/segment", body, Content_Type=kind, Accept=accept)

    def segment_json(self, **fields):
        body = json.dumps(fields).encode()
        return self.ask("POST", "/v1/segment", body, Content_Type="application/json")

    def close(self):
        self._connection.close()


@dataclass
class Server:
    """A server in a thread."""

    port: int
    service: Service
    clients: list[Client] = field(default_factory=list)

    def client(self, token=None):
        self.clients.append(Client(self.port, token))
        return self.clients[-1]


@contextlib.contextmanager
def serving(bundle, settings=None, open_model=None):
    """A server in a thread. open_model: in place of opening the bundle."""
    served = Serving(str(bundle), RUNNING, settings or HttpSettings(), log_level="error")
    service = Service(open_model or (lambda: load(bundle, **vars(RUNNING))), served.settings)
    listening = listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn_config(served, create_app(service)))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    port = listening.getsockname()[1]
    thread.start()
    running = Server(port, service)
    try:
        wait_until(lambda: server.started or not thread.is_alive())
        assert server.started
        yield running
    finally:
        for client in running.clients:
            client.close()
        server.should_exit = True
        thread.join(PATIENCE)
        assert not thread.is_alive()


def wait_until(holds, seconds=PATIENCE):
    """Fails where it does not hold after so many seconds."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.02)


def is_worker(process):
    """Whether a process of psutil is a worker that lives."""
    try:
        return any("spawn_main" in word for word in process.cmdline())
    except psutil.Error:  # gone, or a zombie
        return False


COMMAND = "import sys; from ris.serving.triton.command import main; main(sys.argv[1:])"


class Process:
    """`ris-serve http` in a process of its own; `lines` is its log as it stands."""

    def __init__(self, bundle, log, *options, command=None, **more):
        """command: in place of `ris-serve http` with the options."""
        if command is None:
            command = [sys.executable, "-c", COMMAND, "http", str(bundle), "--port", "0"]
            command += ["--engine", "onnxruntime", "--threads", "1", *options]
        self._log = log
        with log.open("w") as file:
            self.process = subprocess.Popen(command, stderr=file, **more)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self.process.kill()

    @property
    def text(self):
        return self._log.read_text()

    @property
    def events(self):
        """The lines of the log that are JSON."""
        return [json.loads(line) for line in self.text.splitlines() if line.startswith("{")]

    @property
    def port(self):
        """Waits until the server is ready."""
        wait_until(lambda: "http://" in self.text or self.process.poll() is not None)
        found = next(line for line in self.text.splitlines() if line.startswith("http://"))
        port = urllib.parse.urlparse(found.split()[0]).port
        wait_until(lambda: self._ready(port))
        return port

    @property
    def workers(self):
        """The processes of the workers that live."""
        return {one.pid for one in psutil.Process(self.process.pid).children() if is_worker(one)}

    def _ready(self, port):
        assert self.process.poll() is None, self.text
        try:
            return Client(port).get("/ready").status == 200
        except OSError:
            return False
