"""Starts a tritonserver that is installed here over a repository of ours.

It listens on the loopback address unless told otherwise, and loads nothing from elsewhere.
"""

from __future__ import annotations

import importlib.util
import os
import secrets
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import numpy as np

from ris import pip_install
from ris.engines.errors import RisError

_CONTAINER = Path("/opt/tritonserver/bin/tritonserver")
# what a client could change the server or read its memory with; each needs a key, which is made up
# at each start and told to nobody
_CLOSED = ("shared-memory", "model-repository", "trace", "logging")


@dataclass(frozen=True)
class Address:
    """Where a server listens."""

    host: str = "127.0.0.1"
    """The address to listen at; "0.0.0.0" lets other machines in."""

    http: int = 8000
    """The HTTP port."""

    grpc: int = 8001
    """The gRPC port."""

    metrics: int = 8002
    """The port of the metrics, over HTTP."""

    @property
    def reach(self) -> str:
        """The host to connect to from this machine."""
        return "127.0.0.1" if self.host == "0.0.0.0" else self.host


def find_server() -> tuple[Path, Path | None]:
    """The program tritonserver, and nvidia-pytriton's folder where the program is from there.

    Raises RisError where there is no server, or one that cannot run in this environment.
    """
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
    """A running server over `repository`. Use it in a `with` block: it is stopped at the end."""

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
        self._folder = tempfile.TemporaryDirectory(prefix="ris-triton-")
        self._process: subprocess.Popen[str] | None = None

    def command(self) -> list[str]:
        """The server's command line."""
        at = self.address
        key = secrets.token_hex(16)
        closed = ",".join(_CLOSED)
        arguments = [
            str(self._program),
            f"--model-repository={self._repository.absolute()}",
            "--disable-auto-complete-config",
            "--exit-timeout-secs=20",
            *(f"--{name}-address={at.host}" for name in ("http", "grpc", "metrics")),
            *(f"--{name}-port={getattr(at, name)}" for name in ("http", "grpc", "metrics")),
            f"--http-restricted-api={closed}:ris-key={key}",
            f"--grpc-restricted-protocol={closed}:ris-key={key}",
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

        Raises RisError where it ends, or is not ready after so many seconds.
        """
        self._process = subprocess.Popen(
            self.command(),
            env=self.environment(),
            stdout=self._log,
            stderr=subprocess.STDOUT,
            text=True,
        )
        end = time.monotonic() + seconds
        while not self.ready():
            if self._process.poll() is not None:
                raise RisError(
                    f"tritonserver ended with code {self._process.returncode}; its output says why"
                )
            if time.monotonic() > end:
                self.stop()
                raise RisError(
                    f"tritonserver was not ready after {seconds:.0f} s; its output says how far it"
                    " came"
                )
            time.sleep(0.2)

    def ready(self) -> bool:
        """Whether the server says that all models are ready."""
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

    def wait(self) -> int:
        """Waits until the server ends by itself, and returns its exit code."""
        assert self._process is not None
        return self._process.wait()

    def stop(self) -> None:
        """Lets the server finish what it has and ends it. May be called twice."""
        if self._process and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

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
