"""Writes a model repository that tritonserver loads as it is.

    REPOSITORY/ris/config.pbtxt        the model that clients ask
    REPOSITORY/ris/1/model.py          a few lines over ris.serving.triton.backend
    REPOSITORY/ris/1/bundle/           a copy of the bundle
    REPOSITORY/ris/warmup/image        a picture that every instance is asked before it is ready

With `graphs` each graph is a Triton model of its own, `ris_<stage>`, for the official container's
ONNX Runtime and TensorRT backends, and `ris` only prepares, asks them, and makes masks.
"""

from __future__ import annotations

import io
import shutil
import struct
from pathlib import Path

from PIL import Image

from ris.engines.entry import map_checked, read_sidecar
from ris.engines.errors import BundleError, RisError
from ris.engines.temporary import recover_folder, replace_folder, temporary_folder
from ris.runtime.bundle import ENGINES, MANIFEST, Bundle
from ris.runtime.bundle_folder import behind_links, require_movable
from ris.runtime.categories import AUTO
from ris.runtime.computing import computes_by_stage
from ris.serving.answering import gradient_picture
from ris.serving.triton.config import ServerOptions, front_config, graph_config

MODEL_PY = '''"""Written by ris-serve. The model is ris.serving.triton.backend of ris-runtime."""

from ris.serving.triton.backend import TritonPythonModel  # noqa: F401
'''
"""The model.py of `ris`."""


def write_repository(
    bundle: Bundle, out: Path, options: ServerOptions, *, force: bool = False
) -> list[str]:
    """Writes the repository, whole or not at all, and returns the names of its models.

    Args:
        bundle: What the models run. Its files are copied.
        out: The repository's folder. Where it is a link, what it leads to is replaced.
        options: What is written into the configuration.
        force: Replace a repository that is there.

    Raises:
        RisError: Where the folder exists and is not to be replaced, and where the disk refuses.
        BundleError: Where `graphs` asks for TensorRT plans that the bundle does not have.
        EngineError: Where the options name a graph that the bundle does not have.
        ExpressionError: Where they name a form that it does not have.
    """
    computes_by_stage(options.running.compute, bundle)  # it says what is no graph
    bundle.manifest.host.text.form_named(options.form)  # and this, what is no form
    target = behind_links(out)
    try:
        recover_folder(target, _keep_nothing)
        _check_free(out, force)
        target.parent.mkdir(parents=True, exist_ok=True)
        with temporary_folder(target) as folder:
            names = ["ris"]
            _write_front(bundle, folder / "ris", options)
            if options.graphs:
                for stage in bundle.stages:
                    names.append(f"ris_{stage}")
                    _write_graph(bundle, stage, folder / f"ris_{stage}", options)
            replace_folder(target, folder, _keep_nothing)
    except OSError as error:
        raise RisError(
            f"{error.filename or out}: {error.strerror or error}; nothing was written"
        ) from None
    return names


def _keep_nothing(old: Path, new: Path) -> None:
    """All of the old repository goes."""


def _check_free(out: Path, force: bool) -> None:
    """Raises RisError where `out` is there and may not be replaced."""
    if not out.exists():
        return
    require_movable(out)
    ours = (out / "ris" / "1" / "model.py").is_file()
    if not ours:
        raise RisError(f"{out} exists; and is no repository of ours; choose another name")
    if not force:
        raise RisError(f"{out} exists; --force replaces it")


def _write_front(bundle: Bundle, folder: Path, options: ServerOptions) -> None:
    """The model that clients ask."""
    version = folder / "1"
    version.mkdir(parents=True)
    (version / "model.py").write_text(MODEL_PY)
    for name in _front_files(bundle, options):
        _place(bundle.path / name, version / "bundle" / name)

    warmup = folder / "warmup"
    warmup.mkdir()
    (warmup / "image").write_bytes(_bytes_tensor(_picture()))
    (warmup / "expression").write_bytes(_bytes_tensor(b"left man"))
    if bundle.manifest.categories is not None:
        (warmup / "category").write_bytes(_bytes_tensor(AUTO.encode()))

    (folder / "config.pbtxt").write_text(front_config(bundle, options))


def _front_files(bundle: Bundle, options: ServerOptions) -> list[str]:
    """The bundle's files that `ris` needs, by their names in it."""
    names = [MANIFEST, *bundle.hashes()]
    if options.graphs:  # the graphs are models of their own; `ris` needs what is around them
        graphs = {name for entry in bundle.manifest.graphs.values() for name in entry.sha256}
        return [name for name in names if name not in graphs]

    engines = bundle.path / ENGINES
    return names + [str(p.relative_to(bundle.path)) for p in engines.rglob("*") if p.is_file()]


def _write_graph(bundle: Bundle, stage: str, folder: Path, options: ServerOptions) -> None:
    """The model of one graph."""
    version = folder / "1"
    version.mkdir(parents=True)
    entry = bundle.manifest.graphs[stage]
    if options.graphs == "tensorrt":
        _place(compiled_plan(bundle, stage), version / "model.plan")
    else:
        for name in entry.sha256:
            # external data is looked for beside the graph under the name that the graph has for it
            target = "model.onnx" if name == entry.file else Path(name).name
            _place(bundle.path / name, version / target)

    (folder / "config.pbtxt").write_text(graph_config(bundle, stage, options))


def compiled_plan(bundle: Bundle, stage: str) -> Path:
    """The TensorRT plan that ris-compile has put into the bundle.

    Raises BundleError where there is none, or several, and PlanError where it is not trusted.
    """
    hashes = bundle.manifest.graphs[stage].sha256
    current = {Path(name).name: value for name, value in hashes.items()}
    found = []
    for sidecar in sorted((bundle.path / ENGINES).glob(f"*/{stage}.json")):
        about = read_sidecar(sidecar)
        recipe = about["recipe"] if isinstance(about, dict) else {}
        if recipe.get("engine") == "tensorrt" and recipe.get("onnx") == current:
            found.append(sidecar.with_suffix(".plan"))

    if len(found) == 1 and found[0].is_file():
        map_checked(found[0], "tensorrt")  # the server loads it as it is
        return found[0]
    if found:
        way = "leave one: they are for several machines"
    else:
        way = "compile it with ris-compile --engine tensorrt"
    raise BundleError(f"{bundle.path} has {len(found)} TensorRT plans of {stage}; {way}")


def _place(source: Path, target: Path) -> None:
    """A copy: onnx refuses weights in files that have hard links, the bundle's own too."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _bytes_tensor(data: bytes) -> bytes:
    """One element of a Triton BYTES tensor."""
    return struct.pack("<I", len(data)) + data


def _picture() -> bytes:
    """A gradient, as a PNG file.

    Where bytes do not arrive as they were sent, it is no image, and the model is not loaded.
    """
    buffer = io.BytesIO()
    Image.fromarray(gradient_picture()).save(buffer, "PNG")
    return buffer.getvalue()
