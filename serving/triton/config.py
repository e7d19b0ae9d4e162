"""The text of config.pbtxt, from the manifest and the options: of `ris`, and of a graph's model."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from ris.engines import TensorSpec
from ris.engines.devices import CUDA, index_of, kind_of
from ris.engines.errors import BundleError
from ris.runtime.bundle import Bundle
from ris.runtime.commands.running import Running
from ris.runtime.cost import expressions_at_once
from ris.runtime.manifest import GraphEntry, Manifest
from ris.runtime.wiring import runs_once_an_image
from ris.serving.limits import Limits

Graphs = Literal["onnx", "tensorrt"]
"""What runs the graphs where each is a Triton model of its own."""

_SETTINGS = re.compile(r'key: "ris" value \{ string_value: ("(?:[^"\\]|\\.)*") \}')
_TYPES = {"float32": "TYPE_FP32", "float16": "TYPE_FP16", "int32": "TYPE_INT32"}


@dataclass(frozen=True)
class ServerOptions:
    """How Triton runs the model: what is written into the configuration."""

    running: Running
    """What runs the bundle in an instance; its device "auto" means "cpu" here (`device`)."""

    instances: int = 1
    """Processes, each with a model and a cache of its own."""

    batch: int = 16
    """Requests that an instance is handed at once."""

    delay_us: int = 0
    """Microseconds that an instance waits for them."""

    cached_images: int = 64
    """Encoded images that an instance keeps."""

    join: bool = False
    """Ask the expressions of several requests about one image in one pass.

    Faster on a GPU. The last bits of the logits then depend on the other requests in the pass.
    """

    graphs: Graphs | None = None
    """Run each graph as a Triton model of its own. None: all in one process."""

    limits: Limits = field(default_factory=Limits)
    """What a request may be."""

    form: str | None = None
    """The form of requests that name none. None: the model's own choice."""

    @property
    def device(self) -> str:
        """The device of an instance: "cpu" where `running` leaves it open.

        The configuration names the kind of an instance, CPU or GPU, so the device is settled when
        it is written.
        """
        return "cpu" if self.running.device == "auto" else kind_of(self.running.device)

    @property
    def kind(self) -> str:
        """An instance group's kind, and the number of the GPU where one was asked for.

        Triton shows an instance its own GPU alone, which then is the first one there.
        """
        if self.device != CUDA:
            return "KIND_CPU"
        numbered = self.running.device != CUDA
        return f"KIND_GPU gpus: [ {index_of(self.running.device)} ]" if numbered else "KIND_GPU"


def front_config(bundle: Bundle, options: ServerOptions) -> str:
    """config.pbtxt of the model that clients ask."""
    manifest, limits = bundle.manifest, options.limits
    kind = "KIND_CPU" if options.graphs else options.kind
    microseconds = round(limits.seconds * 1e6)
    return f"""# written by ris-serve from the bundle's manifest
name: "ris"
backend: "python"
max_batch_size: {options.batch}
{_repeated("input", _front_inputs(manifest))}
{_repeated("output", _front_outputs(manifest))}
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
{_front_warmup(manifest, options)}{_parameter("ris", json.dumps(_settings(options)))}"""


def _front_inputs(manifest: Manifest) -> list[str]:
    inputs = [
        _tensor("image", "TYPE_STRING", [1]),
        _tensor("expression", "TYPE_STRING", [-1], ragged=True),
    ]
    if manifest.categories is not None:
        inputs.append(_tensor("category", "TYPE_STRING", [-1], ragged=True, optional=True))
    inputs.append(_tensor("no_target_threshold", "TYPE_FP32", [1], optional=True))
    if manifest.host.drawn:
        inputs.append(_tensor("seed", "TYPE_INT32", [1], optional=True))
    if manifest.host.text.forms:
        inputs.append(_tensor("form", "TYPE_STRING", [1], optional=True))
    return inputs


def _front_outputs(manifest: Manifest) -> list[str]:
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
    if manifest.categories is not None:
        outputs.append(_tensor("category_asked", "TYPE_STRING", [-1]))
    if manifest.host.text.forms:
        outputs.append(_tensor("form_asked", "TYPE_STRING", [-1]))
    return outputs


def _front_warmup(manifest: Manifest, options: ServerOptions) -> str:
    # asked before the graphs' own models are there, it could not answer: those have warm-ups of
    # their own then
    if options.graphs:
        return ""

    names = ["image", "expression", *(["category"] if manifest.categories is not None else [])]
    inputs = "".join(
        f"    inputs {{ key: {_q(name)} value {{ data_type: TYPE_STRING dims: [ 1 ]"
        f" input_data_file: {_q(name)} }} }}\n"
        for name in names
    )
    return _warmup(inputs, 1)


def _settings(options: ServerOptions) -> dict[str, Any]:
    """What the model inside the server reads (ris.serving.triton.backend)."""
    running = options.running
    return {
        "engine": running.engine,
        "device": options.device,
        "threads": running.threads,
        "compute": running.compute,
        "overlap": running.overlap,
        "low_memory": running.low_memory,
        "throughput": running.throughput,
        "cached_images": options.cached_images,
        "join": options.join,
        "form": options.form,
        "graphs": options.graphs,
        "limits": asdict(options.limits),
        "requests": options.limits.waiting + options.batch * options.instances,
    }


def read_limits(repository: Path) -> tuple[Limits, int]:
    """What `_settings` wrote into a repository: the limits, and how many requests are taken in.

    Those of `Limits` without options where there is no model of ours.
    """
    try:
        text = (repository / "ris" / "config.pbtxt").read_text(encoding="utf-8")
        [value] = _SETTINGS.findall(text)
        settings = json.loads(json.loads(value))
        return Limits(**settings["limits"]), int(settings["requests"])
    except (OSError, ValueError, KeyError, TypeError):
        usual = Limits()
        return usual, usual.waiting


def graph_config(bundle: Bundle, stage: str, options: ServerOptions) -> str:
    """config.pbtxt of one graph.

    Triton's own batches are for graphs whose first axis counts the same in all tensors. It may
    count images in some, and expressions in others.

    Raises BundleError for a graph that Triton's backend would compute less exactly.
    """
    entry = bundle.manifest.graphs[stage]
    if entry.weights and options.graphs == "onnx":
        # its ONNX Runtime would round what narrow weights are multiplied with, and cannot be told
        raise BundleError(
            f"the weights of {stage} are narrow, and Triton's own ONNX Runtime computes them less"
            " exactly than this bundle was checked; leave --graphs onnx out"
        )
    batched = _is_batched(entry)
    # 0: tensors without a batch axis
    largest = _largest_batch(entry, options, bundle.manifest) if batched else 0

    tensorrt = options.graphs == "tensorrt"
    backend = 'platform: "tensorrt_plan"' if tensorrt else 'backend: "onnxruntime"'
    kind = "KIND_GPU" if tensorrt and options.kind == "KIND_CPU" else options.kind
    batching = "dynamic_batching { }\n" if largest > 1 else ""
    threads = ""
    if options.graphs == "onnx" and options.running.threads:
        threads = _parameter("intra_op_thread_count", str(options.running.threads))

    sizes = {"tokens": next(iter(bundle.manifest.host.text.lengths), 1)}
    zeros = "".join(_zeros(spec, batched, sizes) for spec in entry.inputs)
    return f"""# written by ris-serve from the bundle's manifest
name: "ris_{stage}"
{backend}
max_batch_size: {largest}
{_repeated("input", [_graph_tensor(spec, batched) for spec in entry.inputs])}
{_repeated("output", [_graph_tensor(spec, batched) for spec in entry.outputs])}
instance_group [ {{ count: {options.instances} kind: {kind} }} ]
{batching}{threads}{_warmup(zeros, 1 if batched else 0)}"""


def _is_batched(entry: GraphEntry) -> bool:
    """Whether all tensors have one leading axis of variable length, and it is the same for all."""
    tensors = (*entry.inputs, *entry.outputs)
    axes = {spec.shape[0] if len(spec.shape) > 1 else None for spec in tensors}
    inner = (axis for spec in tensors for axis in spec.shape[1:])
    return axes in ({"images"}, {"expressions"}) and all(isinstance(axis, int) for axis in inner)


def _largest_batch(entry: GraphEntry, options: ServerOptions, manifest: Manifest) -> int:
    if not runs_once_an_image(entry):
        return expressions_at_once(manifest)
    # a plan was compiled for a single image, as ris-compile does unless it is told otherwise
    return 1 if options.graphs == "tensorrt" else 8


def _zeros(spec: TensorSpec, batched: bool, sizes: Mapping[str, int]) -> str:
    """A warm-up input of zeros; an axis of variable length has that of `sizes`, or 1."""
    dims = [sizes.get(axis, 1) if isinstance(axis, str) else axis for axis in spec.shape]
    value = (
        f"{{ data_type: {_TYPES[spec.dtype]} {_dims(dims[1:] if batched else dims)} zero_data:"
        " true }"
    )
    return f"    inputs {{ key: {_q(spec.name)} value {value} }}\n"


def _graph_tensor(spec: TensorSpec, batched: bool) -> str:
    dims = [-1 if isinstance(axis, str) else axis for axis in spec.shape]
    return _tensor(spec.name, _TYPES[spec.dtype], dims[1:] if batched else dims)


# The pieces of protobuf's text format


def _q(text: str) -> str:
    """A string as protobuf's text format writes it."""
    return json.dumps(text)


def _dims(dims: list[int]) -> str:
    return f"dims: [ {', '.join(map(str, dims))} ]"


def _tensor(
    name: str, kind: str, dims: list[int], *, ragged: bool = False, optional: bool = False
) -> str:
    """An input or output; kind: Triton's name of the type; dims: without the batch axis."""
    more = (" allow_ragged_batch: true" if ragged else "") + (" optional: true" if optional else "")
    return f"{{ name: {_q(name)} data_type: {kind} {_dims(dims)}{more} }}"


def _repeated(field_name: str, items: list[str]) -> str:
    return f"{field_name} [\n  " + ",\n  ".join(items) + "\n]"


def _parameter(key: str, value: str) -> str:
    return f"parameters {{ key: {_q(key)} value {{ string_value: {_q(value)} }} }}\n"


def _warmup(inputs: str, batch: int) -> str:
    return f"""model_warmup [
  {{
    name: "one"
    batch_size: {batch}
{inputs}  }}
]
"""
