"""Graphs that the tests have traced before, so that none is traced a dozen times.

Tracing is most of what an export of the tiny model costs, the fusion's above all, and the
bundles of the tests differ in little: precision, checkpoint, one graph of several. `share_traces`
puts a cache in front of `ris.export.onnx_writer.write_onnx`. An entry's key has everything that a
trace depends on: the code of `ris.export` and `ris.reference`, the exporter's versions, and the
module with its weights, and every function of ours as it is in memory, which a test may have
replaced. A command in a process of its own traces anew, and a test compares the bytes of both.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import json
import shutil
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from conftest import REPO

FOLDER = REPO / "build" / "traced"
"""Where the graphs are kept, each in a folder named by its key."""

_KEPT = 300  # entries; a run of all tests makes some 100, of 3 MB on average
_LARGEST = 30e6  # numbers in a module


def share_traces() -> None:
    """From here on `export_bundle` takes what was traced before; may be called twice."""
    from ris.export import graph_writer

    if not hasattr(graph_writer.write_onnx, "traces"):
        graph_writer.write_onnx = shared(graph_writer.write_onnx)


def shared(trace: Any) -> Any:
    """`trace` behind the cache; `.traces` is the function itself."""

    @functools.wraps(trace)
    def write_onnx(
        module: Any, stage: Any, path: Path, *, one_image: bool = False
    ) -> dict[str, list[str]]:
        if sum(tensor.numel() for tensor in module.state_dict().values()) > _LARGEST:
            # full size: gigabytes, and traced once anyway
            return trace(module, stage, path, one_image=one_image)
        FOLDER.mkdir(parents=True, exist_ok=True)
        key = _key(module, stage, path, one_image)
        entry = FOLDER / key
        with (FOLDER / f".{key}.lock").open("w") as lock:
            # two processes that need the same graph: the second waits for the first one's
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (entry / "scopes.json").exists():
                _forget_old()
                shutil.rmtree(entry, ignore_errors=True)
                entry.mkdir()
                scopes = trace(module, stage, path, one_image=one_image)
                for file in path.parent.glob(f"{path.name}*"):
                    shutil.copyfile(file, entry / file.name)
                (entry / "partial.json").write_text(json.dumps(scopes))
                (entry / "partial.json").rename(entry / "scopes.json")  # whole, or not there
            for file in entry.glob(f"{path.name}*"):
                shutil.copyfile(file, path.with_name(file.name))
            (entry / "scopes.json").touch()
            return json.loads((entry / "scopes.json").read_text())

    write_onnx.traces = trace  # type: ignore[attr-defined]
    return write_onnx


def _key(module: Any, stage: Any, path: Path, one_image: bool) -> str:
    """A hash of everything that a trace depends on."""
    told = hashlib.sha256(_code().encode())
    signature = (path.name, stage.inputs, stage.outputs, type(module).__qualname__, one_image)
    told.update(repr(signature).encode())

    for name, part in module.named_modules():
        simple = {
            key: value
            for key, value in vars(part).items()
            if isinstance(value, int | float | str | tuple | type(None))
        }
        told.update(repr((name, type(part).__qualname__, sorted(simple.items()))).encode())
    for name, function in _functions(module):
        told.update(name.encode() + _bytecode(function.__code__))

    for name, tensor in module.state_dict().items():
        told.update(repr((name, tensor.dtype, tuple(tensor.shape))).encode())
        told.update(tensor.detach().contiguous().numpy().tobytes())
    return told.hexdigest()[:32]


def _functions(module: Any) -> list[tuple[str, Any]]:
    """The module's methods, and the functions of the rooms that models are made of."""
    holders = {
        f"class {kind.__qualname__}": kind
        for part in module.modules()
        for kind in type(part).__mro__
    }
    holders |= {
        name: loaded
        for name, loaded in sys.modules.items()
        if name.startswith(("ris.export.", "ris.reference."))
    }
    found = [
        (f"{holder}.{name}", value)
        for holder, namespace in holders.items()
        for name, value in vars(namespace).items()
        if hasattr(value, "__code__")
    ]
    return sorted(found, key=lambda pair: pair[0])


def _bytecode(code: Any) -> bytes:
    """What a function does, constants and nested functions included; not where it stands."""
    constants = [
        _bytecode(value) if hasattr(value, "co_code") else _text(value) for value in code.co_consts
    ]
    return code.co_code + repr(code.co_names).encode() + b"|".join(constants)


def _text(value: Any) -> bytes:
    """A constant, the same in every process: sets of strings have another order in each."""
    return repr(sorted(map(repr, value)) if isinstance(value, frozenset) else value).encode()


@functools.cache
def _code() -> str:
    """The exporter: our files, and the versions of what they stand on."""
    told = hashlib.sha256()
    for room in ("export", "reference"):
        for file in sorted((REPO / room).rglob("*.py")):
            told.update(str(file.relative_to(REPO)).encode() + file.read_bytes())
    packages = (
        *("torch", "torchvision", "onnx", "onnxscript", "onnx-ir"),
        *("transformers", "segment-anything", "open_clip_torch"),
    )
    versions = [sys.version, *(metadata.version(name) for name in packages)]
    told.update(repr(versions).encode())
    return told.hexdigest()


def _forget_old() -> None:
    """Deletes the entries that were not used for longest."""
    entries = [entry for entry in FOLDER.iterdir() if (entry / "scopes.json").exists()]
    entries.sort(key=lambda entry: (entry / "scopes.json").stat().st_mtime)
    for entry in entries[:-_KEPT]:
        shutil.rmtree(entry, ignore_errors=True)
