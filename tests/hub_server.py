"""A small Hub on loopback: the endpoints that huggingface_hub really uses, and their faults.

Large files are redirected to a second server, as the real Hub does with its storage. `Hub.requests`
has what was asked, so that tests count bytes. Uploads are in `hub_uploads`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import socket
import threading
import time
import types
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import hub_uploads

LARGE = 512
"""From how many bytes on a file lies in the large-file storage."""

TOKEN = "hf_loopback"
"""The token that this Hub knows."""

_RESOLVE = re.compile(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
_ERRORS = {"RepoNotFound", "RevisionNotFound", "EntryNotFound", "GatedRepo"}


@dataclass
class Repository:
    """The files of each commit, and the branches."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    private: bool = False

    def commit(
        self, files: dict[str, bytes], branch: str = "main", gone: Collection[str] = ()
    ) -> str:
        """A new commit with these files beside what the branch had; its 40 digits.

        gone: the files of the branch that it does not have.
        """
        before = self.files(branch) or {}
        kept = {name: content for name, content in before.items() if name not in gone}
        content = repr((sorted(self.branches.items()), len(self.commits), sorted(files)))
        sha = hashlib.sha1(content.encode()).hexdigest()
        self.commits[sha] = {**kept, **files}
        self.branches[branch] = sha
        return sha

    def sha(self, revision: str) -> str | None:
        """The commit that a branch or a commit is; None where there is none."""
        return self.branches.get(revision, revision if revision in self.commits else None)

    def files(self, revision: str) -> dict[str, bytes] | None:
        """The files of a branch or a commit."""
        return self.commits.get(self.sha(revision) or "")


@dataclass
class Fault:
    """Something that goes wrong with requests whose path has `part`."""

    part: str
    status: int | None = None
    code: str | None = None
    """X-Error-Code, of those that huggingface_hub knows."""

    break_after: int | None = None
    """How many bytes come before the connection is cut."""

    spoilt: bool = False
    """Whether the bytes that come are others."""

    headers: dict[str, str] = field(default_factory=dict)
    """Headers that the answer about a file of a repository has in place of its own."""

    seconds: float = 0
    """How long the answer takes to begin."""

    times: int = 1 << 30
    """How often it still goes wrong."""


@dataclass
class Seen:
    """A request that was answered."""

    method: str
    path: str
    range: str | None
    login: bool
    status: int = 0
    sent: int = 0
    """Bytes of content that went out."""


class Hub:
    """The state of both servers."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.storage: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.requests: list[Seen] = []
        self.web: dict[str, bytes] = {}
        self.lock = threading.Lock()
        self.endpoint = self.cdn = ""

    def repository(self, name: str, files: dict[str, bytes] | None = None) -> Repository:
        """The repository of a name, "datasets/..." for a data set; with these files if given."""
        repository = self.repositories.setdefault(name, Repository())
        if files is not None:
            repository.commit(files)
        for content in (files or {}).values():
            self.storage[hashlib.sha256(content).hexdigest()] = content
        return repository

    def folder(self, name: str, folder: Path, below: str = "") -> Repository:
        """A repository with the files of a folder, below a folder of it."""
        files = {
            f"{below}{path.relative_to(folder).as_posix()}": path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        return self.repository(name, files)

    def url(self, name: str, content: bytes) -> str:
        """The address of a file that is served as by any other server."""
        self.web[f"/web/{name}"] = content
        return f"{self.cdn}/web/{name}"

    def fails(self, part: str, **how: Any) -> Fault:
        """Requests whose path has `part` fail from now on."""
        fault = Fault(part, **how)
        self.faults.append(fault)
        return fault

    def sent(self) -> int:
        """The bytes of content that went out since the last call."""
        with self.lock:
            total = sum(seen.sent for seen in self.requests if seen.method == "GET")
            self.requests.clear()
        return total

    def ranges(self) -> list[str]:
        """The ranges that were asked for, without the questions where the file is."""
        asked = [seen for seen in self.requests if not _RESOLVE.fullmatch(seen.path)]
        return [seen.range for seen in asked if seen.range is not None]

    def use(self, monkeypatch: Any, home: Path) -> None:
        """This process and its children talk to this Hub alone, with a cache of their own."""
        import huggingface_hub
        from huggingface_hub import constants

        environment = {"HF_ENDPOINT": self.endpoint, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1"}
        environment |= {"HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1", "XDG_CACHE_HOME": str(home)}
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        for name in ("HF_HUB_OFFLINE", "RIS_MODELS", "RIS_BUNDLE", "HTTP_PROXY", "HTTPS_PROXY"):
            monkeypatch.delenv(name, raising=False)
        # read when huggingface_hub was imported
        template = f"{self.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        settings = {"ENDPOINT": self.endpoint, "HUGGINGFACE_CO_URL_TEMPLATE": template}
        settings |= {"HF_HUB_CACHE": str(home / "hub"), "HF_HUB_OFFLINE": False}
        settings |= {"HF_HUB_DISABLE_XET": True, "DOWNLOAD_CHUNK_SIZE": 1 << 12}
        for name, value in settings.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setattr(huggingface_hub.HfApi, "__init__", _api(self.endpoint))
        _without_waiting(monkeypatch)
        _loopback_alone(monkeypatch)


def _api(endpoint: str) -> Any:
    """HfApi's constructor, whose own default is the endpoint of its import."""
    from huggingface_hub import HfApi

    original = HfApi.__init__

    def init(self: Any, *arguments: Any, **options: Any) -> None:
        original(self, *arguments, **{"endpoint": endpoint, **options})

    return init


def _without_waiting(monkeypatch: Any) -> None:
    """huggingface_hub's pauses before a new attempt."""
    from huggingface_hub import file_download
    from huggingface_hub.utils import _http

    quick = types.SimpleNamespace(**{**vars(time), "sleep": lambda seconds: None})
    for module in (file_download, _http):
        monkeypatch.setattr(module, "time", quick)


def _loopback_alone(monkeypatch: Any) -> None:
    """No socket of this process goes anywhere else."""
    original = socket.socket.connect

    def connect(self: socket.socket, address: Any) -> None:
        local = self.family == socket.AF_UNIX or str(address[0]) in ("127.0.0.1", "::1")
        assert local, f"a test asked {address}"
        original(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect)


@contextlib.contextmanager
def serving() -> Iterator[Hub]:
    """A Hub that answers during the block."""
    hub = Hub()
    with contextlib.ExitStack() as stack:
        for name in ("endpoint", "cdn"):
            handler = type("Handler", (_Handler,), {"hub": hub})
            server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
            server.daemon_threads = True
            thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
            thread.start()
            stack.callback(server.server_close)
            stack.callback(server.shutdown)
            setattr(hub, name, f"http://127.0.0.1:{server.server_address[1]}")
        yield hub


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *arguments: Any) -> None:
        pass

    def handle_one_request(self) -> None:
        with contextlib.suppress(ConnectionError, BrokenPipeError):
            super().handle_one_request()

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = self._chunks()
        path = unquote(urlsplit(self.path).path)
        login = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        self.seen = Seen(self.command, path, self.headers.get("Range"), login)
        with self.hub.lock:
            self.hub.requests.append(self.seen)
        fault = self._fault(path)
        if fault is not None and fault.seconds:
            time.sleep(fault.seconds)
        if fault is not None and fault.status is not None:
            self.error(fault.status, fault.code)
        elif path.startswith("/cdn/") and self.command in ("HEAD", "GET"):
            self._content(self.hub.storage[path.removeprefix("/cdn/")], {}, fault)
        elif path in self.hub.web:
            self._content(self.hub.web[path], {}, fault)
        elif found := _RESOLVE.fullmatch(path):
            self._resolve(f"{found[1] or ''}{found[2]}", found[3], found[4], fault)
        else:
            hub_uploads.answer(self, path, parse_qs(urlsplit(self.path).query), body)

    def _chunks(self) -> bytes:
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _fault(self, path: str) -> Fault | None:
        with self.hub.lock:
            for fault in self.hub.faults:
                if fault.part in path and fault.times > 0:
                    fault.times -= 1
                    return fault
        return None

    def _resolve(self, name: str, revision: str, file: str, fault: Fault | None) -> None:
        repository = self.hub.repositories.get(name)
        if repository is None or (repository.private and not self.seen.login):
            return self.error(401, "RepoNotFound")
        files = repository.files(revision)
        if files is None:
            return self.error(404, "RevisionNotFound")
        commit = {"X-Repo-Commit": str(repository.sha(revision))}
        if file not in files:
            return self.error(404, "EntryNotFound", commit)
        content = files[file]
        if len(content) < LARGE:
            etag = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            about = {**commit, "ETag": f'"{etag}"', **(fault.headers if fault else {})}
            return self._content(content, about, fault)
        sha256 = hashlib.sha256(content).hexdigest()
        linked = {"X-Linked-Etag": f'"{sha256}"', "X-Linked-Size": str(len(content))}
        place = {"Location": f"{self.hub.cdn}/cdn/{sha256}"}
        self.send(302, b"", {**commit, **linked, **place, **(fault.headers if fault else {})})

    def _content(self, content: bytes, headers: dict[str, str], fault: Fault | None) -> None:
        """A file, or the range of it that was asked for."""
        if fault is not None and fault.spoilt:
            content = bytes([content[0] ^ 1]) + content[1:]
        status, start = 200, 0
        if found := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or ""):
            status, start = 206, int(found[1])
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self.send(status, content[start:], headers, None if fault is None else fault.break_after)

    def send(
        self,
        status: int,
        content: bytes,
        headers: dict[str, str],
        break_after: int | None = None,
    ) -> None:
        """An answer; break_after: the connection is cut behind so many bytes of it."""
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.seen.status = status
        if self.command == "HEAD":
            return
        sent = content if break_after is None else content[:break_after]
        self.wfile.write(sent)
        self.seen.sent = len(sent)
        if len(sent) < len(content):
            self.wfile.flush()
            self.close_connection = True
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)

    def json(self, data: Any, status: int = 200) -> None:
        """An answer in JSON."""
        self.send(status, json.dumps(data).encode(), {"Content-Type": "application/json"})

    def error(self, status: int, code: str | None, headers: dict[str, str] | None = None) -> None:
        """An answer that is no success."""
        assert code is None or code in _ERRORS
        known = {} if code is None else {"X-Error-Code": code}
        self.send(status, b"", {**known, **(headers or {})})
