"""Writes a model repository that tritonserver loads as it is: config.pbtxt from the manifest,
model.py, the bundle.

    REPOSITORY/ris/config.pbtxt        the model that clients ask
    REPOSITORY/ris/1/model.py          a few lines over ris.serving.triton.backend
    REPOSITORY/ris/1/bundle/           a copy of the bundle
    REPOSITORY/ris/warmup/image        a picture that every instance is asked before it is ready

With `graphs` each graph is a Triton model of its own, `ris_<stage>`, for the official container's
ONNX Runtime and TensorRT backends, and `ris` only prepares, asks them, and makes masks.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from ris.engines import TensorSpec
from ris.engines.errors import BundleError, RisError
from ris.runtime.bundle import ENGINES, MANIFEST, STAGES, Bundle
from ris.runtime.categories import AUTO
from ris.serving.limits import Limits

Graphs = Literal["onnx", "tensorrt"]
_BATCHED = (
    "sam_image_encoder",
    "clip_image_encoder",
    "text_encoder",
)  # one leading axis, the same for all tensors
_TYPES = {"float32": "TYPE_FP32", "int32": "TYPE_INT32"}

MODEL_PY = '''"""Written by ris-serve. The model is ris.serving.triton.backend of ris-runtime."""

from ris.serving.triton.backend import TritonPythonModel  # noqa: F401
'''


@dataclass(frozen=True)
class ServerOptions:
    """What is written into the configuration.

    instances: processes, each with a model and its own cache; engine to throughput: as in
    `ris.runtime.load`, device "cpu" or "cuda"; batch: requests that an instance is handed at once;
    delay_us: how long it waits for them; cached_images: encoded images that an instance keeps;
    join: ask the expressions of several requests about one image in one pass (faster on a GPU; the
    last bits of the logits then depend on who else asks); graphs: a Triton model for each graph,
    None for all in one process.
    """

    instances: int = 1
    engine: str = "auto"
    device: str = "cpu"
    threads: int | None = None
    compute: str | Mapping[str, str] | None = None
    overlap: bool | None = None
    low_memory: bool = False
    throughput: bool = False
    batch: int = 16
    delay_us: int = 0
    cached_images: int = 64
    join: bool = False
    graphs: Graphs | None = None
    limits: Limits = field(default_factory=Limits)


def write_repository(
    bundle: Bundle, out: Path, options: ServerOptions, *, force: bool = False
) -> list[str]:
    """Writes the repository, whole or not at all, and returns the names of its models.

    Raises RisError where the folder exists and is not to be replaced, and BundleError where
    `graphs` asks for plans that the bundle has not.
    """
    if out.exists() and not (force and _is_repository(out)):
        way = (
            "--force replaces it"
            if _is_repository(out)
            else "and is no repository of ours; choose another name"
        )
        raise RisError(f"{out} exists; {way}")
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        names = ["ris"]
        _write_front(bundle, partial / "ris", options)
        if options.graphs:
            for stage in STAGES:
                names.append(f"ris_{stage}")
                _write_graph(bundle, stage, partial / f"ris_{stage}", options)
        if out.exists():
            shutil.rmtree(out)
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return names


def _is_repository(folder: Path) -> bool:
    return (folder / "ris" / "1" / "model.py").is_file()


def _write_front(bundle: Bundle, folder: Path, options: ServerOptions) -> None:
    version = folder / "1"
    version.mkdir(parents=True)
    (version / "model.py").write_text(MODEL_PY)
    names = [MANIFEST, *bundle.hashes()]
    if options.graphs:  # the graphs are models of their own; the front needs what is around them
        graphs = {name for entry in bundle.manifest.graphs.values() for name in entry.sha256}
        names = [name for name in names if name not in graphs]
    else:
        engines = bundle.path / ENGINES
        names += [str(p.relative_to(bundle.path)) for p in engines.rglob("*") if p.is_file()]
    for name in names:
        _place(bundle.path / name, version / "bundle" / name)
    (folder / "warmup").mkdir()
    (folder / "warmup" / "image").write_bytes(_bytes_tensor(_picture()))
    (folder / "warmup" / "expression").write_bytes(_bytes_tensor(b"left man"))
    if bundle.manifest.categories is not None:
        (folder / "warmup" / "category").write_bytes(_bytes_tensor(AUTO.encode()))
    (folder / "config.pbtxt").write_text(front_config(bundle, options))


def _place(source: Path, target: Path) -> None:
    """A copy: onnx refuses weights in files that have hard links, the bundle's own too."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _bytes_tensor(data: bytes) -> bytes:
    """One element of a Triton BYTES tensor."""
    return struct.pack("<I", len(data)) + data


def _picture() -> bytes:
    """A gradient. Where bytes do not arrive as they were sent, it is no image, and the model is not
    loaded.
    """
    x = np.linspace(0, 255, 96, dtype=np.uint8)
    rgb = np.stack(
        [np.tile(x, (64, 1)), np.tile(x[::-1], (64, 1)), np.tile(x[:64, None], (1, 96))], axis=2
    )
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, "PNG")
    return buffer.getvalue()


def front_config(bundle: Bundle, options: ServerOptions) -> str:
    """config.pbtxt of the model that clients ask."""
    manifest = bundle.manifest
    limits = options.limits
    asks_category = manifest.categories is not None
    inputs = [
        _tensor("image", "TYPE_STRING", [1]),
        _tensor("expression", "TYPE_STRING", [-1], ragged=True),
    ]
    if asks_category:
        inputs.append(_tensor("category", "TYPE_STRING", [-1], ragged=True, optional=True))
    inputs.append(_tensor("no_target_threshold", "TYPE_FP32", [1], optional=True))
    outputs = [
        _tensor("rle_counts", "TYPE_STRING", [-1]),
        _tensor("rle_size", "TYPE_INT32", [2]),
        _tensor("score", "TYPE_FP32", [-1]),
        _tensor("is_no_target", "TYPE_BOOL", [-1]),
        _tensor("note", "TYPE_STRING", [-1]),
        _tensor("from_cache", "TYPE_BOOL", [1]),
        _tensor("mask", "TYPE_UINT8", [-1, -1, -1]),
    ]
    if manifest.no_target:
        outputs.append(_tensor("no_target", "TYPE_FP32", [-1]))
    if asks_category:
        outputs.append(_tensor("category_asked", "TYPE_STRING", [-1]))
    settings = {
        "engine": options.engine,
        "device": options.device,
        "threads": options.threads,
        "compute": options.compute,
        "overlap": options.overlap,
        "low_memory": options.low_memory,
        "throughput": options.throughput,
        "cached_images": options.cached_images,
        "join": options.join,
        "graphs": options.graphs,
        "limits": asdict(limits),
    }
    kind = "KIND_GPU" if options.device == "cuda" and not options.graphs else "KIND_CPU"
    microseconds = round(limits.seconds * 1e6)
    warm = "".join(
        _warmup(name) for name in ("image", "expression", *(["category"] if asks_category else []))
    )
    # asked before the graphs' own models are there, it could not answer: those have warm-ups of
    # their own then
    warmup = "" if options.graphs else _warmups(warm, 1)
    return f"""# written by ris-serve from the bundle's manifest
name: "ris"
backend: "python"
max_batch_size: {options.batch}
{_repeated("input", inputs)}
{_repeated("output", outputs)}
instance_group [ {{ count: {options.instances} kind: {kind} }} ]
dynamic_batching {{
  max_queue_delay_microseconds: {options.delay_us}
  default_queue_policy {{
    timeout_action: REJECT
    default_timeout_microseconds: {microseconds}
    allow_timeout_override: false
    max_queue_size: {limits.waiting}
  }}
}}
{warmup}parameters {{ key: "ris" value {{ string_value: {_q(json.dumps(settings))} }} }}
"""


def _q(text: str) -> str:
    """A string as protobuf's text format writes it."""
    return json.dumps(text)


def _tensor(
    name: str, kind: str, dims: list[int], *, ragged: bool = False, optional: bool = False
) -> str:
    more = (" allow_ragged_batch: true" if ragged else "") + (" optional: true" if optional else "")
    return f"{{ name: {_q(name)} data_type: {kind} dims: [ {', '.join(map(str, dims))} ]{more} }}"


def _repeated(field_name: str, items: list[str]) -> str:
    return f"{field_name} [\n  " + ",\n  ".join(items) + "\n]"


def _warmups(inputs: str, batch: int) -> str:
    return f"""model_warmup [
  {{
    name: "one"
    batch_size: {batch}
{inputs}  }}
]
"""


def _warmup(name: str) -> str:
    return (
        f"    inputs {{ key: {_q(name)} value {{ data_type: TYPE_STRING dims: [ 1 ]"
        f" input_data_file: {_q(name)} }} }}\n"
    )


def _write_graph(bundle: Bundle, stage: str, folder: Path, options: ServerOptions) -> None:
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


def graph_config(bundle: Bundle, stage: str, options: ServerOptions) -> str:
    """config.pbtxt of one graph. Encoders take Triton's own batches; fusion and decoder have axes
    of two kinds.
    """
    entry = bundle.manifest.graphs[stage]
    batched = stage in _BATCHED
    # a plan was compiled for a single image, as ris-compile does unless it is told otherwise
    largest = 0 if not batched else 1 if options.graphs == "tensorrt" and "image" in stage else 8
    backend = (
        'platform: "tensorrt_plan"' if options.graphs == "tensorrt" else 'backend: "onnxruntime"'
    )
    kind = "KIND_GPU" if options.device == "cuda" or options.graphs == "tensorrt" else "KIND_CPU"
    batching = "dynamic_batching { }\n" if largest > 1 else ""
    threads = ""
    if options.graphs == "onnx" and options.threads:
        threads = (
            f'parameters {{ key: "intra_op_thread_count" value {{ string_value: "{options.threads}"'
            " } }\n"
        )
    zeros = "".join(_zeros(spec, batched) for spec in entry.inputs)
    return f"""# written by ris-serve from the bundle's manifest
name: "ris_{stage}"
{backend}
max_batch_size: {largest}
{_repeated("input", [_graph_tensor(spec, batched) for spec in entry.inputs])}
{_repeated("output", [_graph_tensor(spec, batched) for spec in entry.outputs])}
instance_group [ {{ count: {options.instances} kind: {kind} }} ]
{batching}{threads}{_warmups(zeros, 1 if batched else 0)}"""


def _zeros(spec: TensorSpec, batched: bool) -> str:
    dims = [1 if isinstance(axis, str) else axis for axis in spec.shape][1 if batched else 0 :]
    value = (
        f"{{ data_type: {_TYPES[spec.dtype]} dims: [ {', '.join(map(str, dims))} ] zero_data:"
        " true }"
    )
    return f"    inputs {{ key: {_q(spec.name)} value {value} }}\n"


def _graph_tensor(spec: TensorSpec, batched: bool) -> str:
    dims = [-1 if isinstance(axis, str) else axis for axis in spec.shape]
    return _tensor(spec.name, _TYPES[spec.dtype], dims[1:] if batched else dims)


def compiled_plan(bundle: Bundle, stage: str) -> Path:
    """The TensorRT plan that ris-compile has put into the bundle. Raises BundleError for none, or
    for several.
    """
    found = []
    for sidecar in sorted((bundle.path / ENGINES).glob(f"*/{stage}.json")):
        try:
            recipe = json.loads(sidecar.read_text())["recipe"]
        except (OSError, ValueError, KeyError):
            continue
        current = {
            Path(name).name: value for name, value in bundle.manifest.graphs[stage].sha256.items()
        }
        if recipe.get("engine") == "tensorrt" and recipe.get("onnx") == current:
            found.append(sidecar.with_suffix(".plan"))
    if len(found) == 1 and found[0].is_file():
        return found[0]
    way = (
        "compile it with ris-compile --engine tensorrt"
        if not found
        else "leave one: they are for several machines"
    )
    raise BundleError(f"{bundle.path} has {len(found)} TensorRT plans of {stage}; {way}")
