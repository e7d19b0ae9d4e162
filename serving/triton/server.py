"""Starts a tritonserver that is installed here over a repository of ours, behind a guard.

It listens on the loopback address unless told otherwise, and loads nothing from elsewhere.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import numpy as np

from ris import pip_install
from ris.engines.errors import RisError
from ris.serving.triton.config import read_limits
from ris.serving.triton.guard import Address, Guard, Guarded, Sockets

__all__ = ["Address", "ServerDiedError", "TritonServer", "find_server", "instances_of"]

_CONTAINER = Path("/opt/tritonserver/bin/tritonserver")
# Runs a program that ends with this process: it is told to when its parent dies, and not when a
# process above was killed in the moment before.
_TIED = (
    "import ctypes, os, signal, sys; ctypes.CDLL(None).prctl(1, signal.SIGTERM);"
    " os.getppid() == int(sys.argv[1]) or sys.exit(1); os.execv(sys.argv[2], sys.argv[2:])"
)
_LONGEST_FOLDER = 80  # characters; the path of a Unix socket has 107 at most
_SHARED = Path("/dev/shm")
_LOOK_EVERY = 0.5  # seconds


class ServerDiedError(RisError):
    """A server that ended by itself; whoever started it may start another."""

    exit_code = 1


def find_server() -> tuple[Path, Path | None]:
    """The program tritonserver, and nvidia-pytriton's folder where the program is from there.

    Raises RisError where there is no server, or one that cannot run in this environment.
    """
    for package in ("aiohttp", "grpc"):
        if importlib.util.find_spec(package) is None:
            raise RisError(
                f"the guard in front of tritonserver needs {package}:"
                f" {pip_install('cpu', 'triton')}"
            )
    found = shutil.which("tritonserver") or (str(_CONTAINER) if _CONTAINER.exists() else None)
    if found:
        return Path(found), None

    spec = importlib.util.find_spec("pytriton")
    if spec is None or spec.origin is None:
        raise RisError(
            "there is no tritonserver here: use NVIDIA's container, or in an environment of its"
            f" own {pip_install('cpu', 'triton')}"
        )
    folder = Path(spec.origin).parent / "tritonserver"
    if not (folder / "python_backend_stubs" / _python_version()).is_dir():
        raise RisError(
            f"nvidia-pytriton has no Python {_python_version()} stub; use a Python that it has one"
            " for"
        )
    if int(np.__version__.split(".")[0]) >= 2:
        raise RisError(
            "nvidia-pytriton's Python backend needs numpy below 2, this environment has"
            f" {np.__version__}: requests would arrive as zeros; install it in an environment of"
            " its own"
        )
    return folder / "bin" / "tritonserver", folder


def _python_version() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"


class TritonServer:
    """A running server over `repository`. Use it in a `with` block: it is stopped at the end.

    Clients reach a guard (`ris.serving.triton.guard`), tritonserver listens for it alone.
    """

    def __init__(
        self, repository: Path, address: Address | None = None, log: IO[str] | None = None
    ) -> None:
        """log: where the server's own output goes; None: where this process's goes."""
        if not repository.is_dir():
            raise RisError(
                f"{repository}: no such model repository; write one with ris-serve triton"
            )
        self.address = address or Address()
        self._program, self._wheel = find_server()
        self._repository, self._log = repository, log
        above = None if len(tempfile.gettempdir()) < _LONGEST_FOLDER else "/tmp"
        # this user's alone, and with it the sockets
        self._folder = tempfile.TemporaryDirectory(prefix="ris-triton-", dir=above)
        self._sockets = Sockets(Path(self._folder.name))
        self._shared = f"ris-triton-{secrets.token_hex(8)}"
        self._process: subprocess.Popen[str] | None = None
        self._instances: set[int] = set()
        self._started = False

        limits, requests = read_limits(repository)
        self._guard = Guard(
            self.address, Guarded(self._sockets, limits, requests, self.why_not_ready)
        )

    def command(self) -> list[str]:
        """The server's command line. Nothing in it is secret."""
        at = self._sockets
        sockets = {"http": at.http, "grpc": at.folder / "grpc", "metrics": at.metrics}
        arguments = [
            str(self._program),
            f"--model-repository={self._repository.absolute()}",
            "--disable-auto-complete-config",
            "--exit-timeout-secs=20",
            *(f"--{name}-address=unix:{socket}" for name, socket in sockets.items()),
            *(f"--{name}-port=1" for name in sockets),  # of a socket it is a part of the name
            f"--backend-config=python,shm-region-prefix-name={self._shared}",
        ]
        if self._wheel:
            arguments.append(f"--backend-directory={self._backends(self._wheel)}")
        return arguments

    def _backends(self, wheel: Path) -> Path:
        """The wheel's Python backend, together with the stub for this Python.

        The wheel keeps the stubs elsewhere, one for each version of Python.
        """
        backends = Path(self._folder.name) / "backends"
        python = backends / "python"
        python.mkdir(parents=True, exist_ok=True)

        stub = wheel / "python_backend_stubs" / _python_version() / "triton_python_backend_stub"
        shared = [path for path in (wheel / "backends" / "python").iterdir() if path.is_file()]
        for file in [*shared, stub]:
            (python / file.name).symlink_to(file)
        stub.chmod(stub.stat().st_mode | 0o111)
        return backends

    def environment(self) -> dict[str, str]:
        """This process's, with what the server's Python needs to find the packages of this one."""
        env = dict(os.environ)
        # the Python inside the server ignores PYTHONPATH; it takes the environment of the first
        # python3 on the PATH
        env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), env.get("PATH", "")])
        if self._wheel:
            libraries = str(sysconfig.get_config_var("LIBDIR"))
            paths = filter(None, [libraries, env.get("LD_LIBRARY_PATH")])
            env["LD_LIBRARY_PATH"] = os.pathsep.join(paths)
        return env

    def start(self, seconds: float = 300) -> None:
        """Starts the server and waits until every model has answered its warm-up.

        Raises:
            RisError: Where the address cannot be listened at.
            ServerDiedError: Where the server ends, or is not ready after so many seconds.
        """
        self._guard.start()
        self._process = subprocess.Popen(
            [sys.executable, "-c", _TIED, str(os.getpid()), *self.command()],
            env=self.environment(),
            stdout=self._log,
            stderr=subprocess.STDOUT,
            text=True,
        )
        end = time.monotonic() + seconds
        while not self._is_up():
            if ended := self._ended():
                raise ServerDiedError(ended)
            if time.monotonic() > end:
                self.stop()
                raise ServerDiedError(
                    f"tritonserver was not ready after {seconds:.0f} s; its output says how far it"
                    " came"
                )
            time.sleep(0.2)
        self._started = True  # clients are told from now on: a death is seen from now on

    def _is_up(self) -> bool:
        """Whether all models are ready. It notes their instances, which may die from now on.

        It looks for them before it asks: what is ready when it answers may be dead when it is
        looked for.
        """
        if self._process:
            self._instances |= instances_of(self._process.pid)
        return self._says_ready()

    def _ended(self) -> str | None:
        """How tritonserver ended; None while it runs."""
        code = self._process.poll() if self._process else None
        if code is None:
            return None
        how = f"by signal {-code}" if code < 0 else f"with code {code}"
        return f"tritonserver ended {how}; its output says why"

    def why_not_ready(self) -> str | None:
        """Why the server is not ready whatever tritonserver says; None where it is well.

        tritonserver goes on to say that it is ready after an instance of a model has died.
        """
        if ended := self._ended():
            return ended
        if not self._started:
            return "the server has not started yet"
        if self._process and not all(
            is_instance(one, self._process.pid) for one in self._instances
        ):
            return "an instance of the model died; the output of tritonserver may say why"
        if problem := self._guard.problem:
            return f"the guard ended: {problem}"
        if self._guard.sick:
            return "an instance of the model hangs"
        return None

    def _says_ready(self) -> bool:
        """Whether tritonserver itself says that all models are ready."""
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(2)
                connection.connect(str(self._sockets.http))
                connection.sendall(b"GET /v2/health/ready HTTP/1.0\r\n\r\n")
                return connection.recv(64).split()[1:2] == [b"200"]
        except OSError:
            return False

    def ready(self) -> bool:
        """Whether the guard says that all models are ready."""
        try:
            url = f"http://{self.address.reach}:{self.address.http}/v2/health/ready"
            with urllib.request.urlopen(url, timeout=2) as response:
                return bool(response.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def metrics(self) -> dict[str, float]:
        """Triton's metrics that are about our models, by name with labels."""
        url = f"http://{self.address.reach}:{self.address.metrics}/metrics"
        with urllib.request.urlopen(url, timeout=10) as page:
            lines = page.read().decode().splitlines()
        parts = (line.rsplit(" ", 1) for line in lines if line and not line.startswith("#"))
        return {name: float(value) for name, value in parts if 'model="ris' in name}

    def wait(self) -> str:
        """Waits until the server or an instance of a model ends by itself; returns how."""
        while not (reason := self.why_not_ready()):
            time.sleep(_LOOK_EVERY)
        return reason

    def stop(self) -> None:
        """Lets the server finish what it has and ends it. May be called twice.

        One whose instance has died has nothing that it could finish.
        """
        is_well = not self.why_not_ready()
        self._guard.stop(20 if is_well else 0)  # tritonserver would wait for its connections
        if self._process and self._process.poll() is None:
            patience = 30 if is_well else 2
            self._process.terminate()
            try:
                self._process.wait(patience)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        for one in self._instances:
            if _parent(one) is not None:  # it hangs, or would see later that its server is gone
                with contextlib.suppress(ProcessLookupError):
                    os.kill(one, signal.SIGKILL)
        for region in _SHARED.glob(f"{self._shared}*"):  # a killed server leaves its memory there
            region.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.stop()
        self._folder.cleanup()


def instances_of(server: int) -> set[int]:
    """The processes of a tritonserver's Python models that live, by their numbers."""
    processes = (int(path.name) for path in Path("/proc").glob("[0-9]*"))
    return {process for process in processes if is_instance(process, server)}


def is_instance(process: int, server: int) -> bool:
    """Whether a process lives and is of a tritonserver's Python models."""
    return _parent(process) == server


def _parent(process: int) -> int | None:
    """The parent of a Python model's process; None where this is none that lives."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return None  # it ended
    name, rest = stat.split("(", 1)[1].rsplit(")", 1)
    state, parent = rest.split()[:2]
    # one that ended is there until its parent asks, which tritonserver does not
    return int(parent) if name.startswith("triton_python") and state not in "ZX" else None
