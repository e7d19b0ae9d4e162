"""Graphs that the tests have traced before, so that none is traced a dozen times.

Tracing is most of what an export of the tiny model costs (25 s for the fusion alone), and the
bundles of the tests differ in little: precision, checkpoint, one graph of five. `share_traces`
puts a cache in front of `ris.export.onnx_writer.write_onnx`. An entry's key has everything that a
trace depends on: the code of `ris.export` and `ris.reference`, the exporter's versions, and the
module with its weights. What a test changes in memory is in the key as well.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import json
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

from conftest import REPO

FOLDER = REPO / "build" / "traced"
"""Where the graphs are kept, each in a folder named by its key."""

_KEPT = 60  # entries; a run of all tests makes about 30


def share_traces() -> None:
    """From here on `export_bundle` takes what was traced before; may be called twice."""
    from ris.export import bundle_writer

    if not hasattr(bundle_writer.write_onnx, "traces"):
        bundle_writer.write_onnx = shared(bundle_writer.write_onnx)


def shared(trace: Any) -> Any:
    """`trace` behind the cache; `.traces` is the function itself."""

    @functools.wraps(trace)
    def write_onnx(module: Any, signature: Any, path: Path) -> dict[str, list[str]]:
        FOLDER.mkdir(parents=True, exist_ok=True)
        key = _key(module, signature, path)
        entry = FOLDER / key
        with (FOLDER / f".{key}.lock").open("w") as lock:
            # two processes that need the same graph: the second waits for the first one's
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (entry / "scopes.json").exists():
                shutil.rmtree(entry, ignore_errors=True)
                entry.mkdir()
                scopes = trace(module, signature, path)
                for file in path.parent.glob(f"{path.name}*"):
                    shutil.copyfile(file, entry / file.name)
                (entry / "scopes.json").write_text(json.dumps(scopes))
                _forget_old()
        for file in entry.glob(f"{path.name}*"):
            shutil.copyfile(file, path.with_name(file.name))
        (entry / "scopes.json").touch()
        return json.loads((entry / "scopes.json").read_text())

    write_onnx.traces = trace  # type: ignore[attr-defined]
    return write_onnx


def _key(module: Any, signature: Any, path: Path) -> str:
    """A hash of everything that a trace depends on."""
    told = hashlib.sha256(_code().encode())
    told.update(repr((path.name, signature, type(module).__qualname__)).encode())

    for name, part in module.named_modules():
        simple = {
            key: value
            for key, value in vars(part).items()
            if isinstance(value, int | float | str | tuple | type(None))
        }
        told.update(repr((name, type(part).__qualname__, sorted(simple.items()))).encode())
        code = getattr(type(part).forward, "__code__", None)  # which a test may have replaced
        if code is not None:
            told.update(code.co_code + repr(code.co_names).encode())

    for name, tensor in module.state_dict().items():
        told.update(repr((name, tensor.dtype, tuple(tensor.shape))).encode())
        told.update(tensor.detach().contiguous().numpy().tobytes())
    return told.hexdigest()[:32]


@functools.cache
def _code() -> str:
    """The exporter: our files, and the versions of what they stand on."""
    told = hashlib.sha256()
    for room in ("export", "reference"):
        for file in sorted((REPO / room).rglob("*.py")):
            told.update(str(file.relative_to(REPO)).encode() + file.read_bytes())
    packages = ("torch", "onnx", "onnxscript", "onnx-ir", "segment-anything", "open_clip_torch")
    told.update(repr([metadata.version(name) for name in packages]).encode())
    return told.hexdigest()


def _forget_old() -> None:
    """Deletes the entries that were not used for longest."""
    entries = [entry for entry in FOLDER.iterdir() if (entry / "scopes.json").exists()]
    entries.sort(key=lambda entry: (entry / "scopes.json").stat().st_mtime)
    for entry in entries[:-_KEPT]:
        shutil.rmtree(entry, ignore_errors=True)
