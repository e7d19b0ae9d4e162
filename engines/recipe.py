"""What a compiled graph depends on: the key under which it is kept, and hashes of files."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from io import BufferedReader
from pathlib import Path
from typing import Any

from ris.engines.base import Graph
from ris.engines.errors import EngineError
from ris.engines.text import echoed


def operating_system() -> str:
    """OS and architecture, as in "Linux-x86_64"."""
    return f"{platform.system()}-{platform.machine()}"


@dataclass(frozen=True)
class Recipe:
    """Everything a compiled graph depends on."""

    stage: str
    """The graph's stage."""

    onnx: Mapping[str, str]
    """The sha256 of the graph's files by file name."""

    engine: str
    """The engine's name in the table."""

    version: str
    """The engine's whole version."""

    device: str
    """Compute capability or CPU features; "none" for what is compiled ahead of time for any GPU."""

    profiles: Mapping[str, Any]
    """The shapes that it is compiled for: smallest, usual and largest by input, or fixed axes."""

    options: Mapping[str, Any]
    """The options that change the artifact."""

    platform: str = field(default_factory=operating_system)
    """OS and architecture."""

    @property
    def key(self) -> str:
        """The name of the folder: the first 32 hexadecimal digits of a sha256."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:32]

    def to_dict(self) -> dict[str, Any]:
        """The recipe as JSON, as it stands in a sidecar."""
        data: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return data


def graph_hashes(graph: Graph) -> dict[str, str]:
    """The sha256 of the graph's files by file name.

    They are the graph's own hashes where it has them; otherwise its ONNX file and the .data file
    beside that are read.

    Raises:
        EngineError: Where a file cannot be read.
    """
    if graph.sha256:
        return {Path(name).name: value for name, value in graph.sha256.items()}

    data = graph.path.with_name(graph.path.name + ".data")
    try:
        files = [graph.path, data] if data.exists() else [graph.path]
        return {file.name: file_hash(file) for file in files}
    except OSError as error:
        raise EngineError(
            f"{graph.stage}: {graph.path} cannot be read ({error.strerror}); export it again"
        ) from None


def file_hash(path: Path) -> str:
    """The sha256 of a file; computed again only where the file is another or has changed since."""
    with path.open("rb") as file:
        return hash_of(file)


def hash_of(file: BufferedReader) -> str:
    """`file_hash` of an open file, from its beginning."""
    about = os.fstat(file.fileno())
    version = about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns
    if version not in _HASHES:
        if len(_HASHES) >= _REMEMBERED:
            _HASHES.clear()
        file.seek(0)
        _HASHES[version] = hashlib.file_digest(file, "sha256").hexdigest()
    return _HASHES[version]


_HASHES: dict[tuple[int, ...], str] = {}
_REMEMBERED = 64
_NAMED = 6  # the most differences that a message names


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """The fields in which two recipes differ, with both values; empty where they are equal.

    `found` may be of a foreign sidecar; of many fields the first are named.
    """
    parts = []
    for name in sorted({*found, *wanted}):
        a, b = found.get(name), wanted.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            parts += [
                f"{name}.{key} ({_short(a.get(key))}, here {_short(b.get(key))})"
                for key in sorted({*a, *b})
                if a.get(key) != b.get(key)
            ]
        elif a != b:
            parts.append(f"{name} ({_short(a)}, here {_short(b)})")
    more = [f"and {len(parts) - _NAMED} more"] if len(parts) > _NAMED else []
    return ", ".join([*map(echoed, parts[:_NAMED]), *more])


def _short(value: Any) -> str:
    """A value of a recipe for people; hashes by their first digits."""
    text = "none" if value is None else echoed(str(value))
    return f"{text[:8]}…" if len(text) == 64 and " " not in text else text
