"""Bundles of a made-up family, whose graphs are a few nodes each: other stages than `dfam` has.

`write(folder, "chained")`: an image stage takes another one's output, a question takes an image of
the host as it is, the host resizes a value between two stages, and no stage decides "no target".
`write(folder, "whole")`: one stage, which sees the image and the words; none runs once an image.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from conftest import REPO
from ris.engines import TensorSpec
from ris.runtime.bundle import MANIFEST, Bundle, hash_files, open_bundle
from ris.runtime.host import HostSide, resize_picture
from ris.runtime.loading import open_model
from ris.runtime.manifest import (
    FORMAT_VERSION,
    PICTURE,
    Answer,
    GraphEntry,
    Host,
    HostImage,
    Manifest,
    Operations,
    Resize,
    Source,
    Text,
)
from ris.runtime.manifest_kinds import Taken
from ris.runtime.model import Model
from ris.runtime.parity import check_model, load_golden

EXPRESSIONS = ("left man", "the red ball")
TOKENS = 12
_MEAN, _STD = (0.5, 0.4, 0.3), (0.3, 0.25, 0.2)
_TYPES = {"float32": TensorProto.FLOAT, "int32": TensorProto.INT32}

IMAGE = Taken("picture_in", "float32", ("images", 3, 32, 32), "image")
ICON = Taken("icon", "float32", ("images", 3, 16, 16), "icon")
IDS = Taken("ids", "int32", ("expressions", TOKENS), "ids")
MASK = Taken("is_word", "float32", ("expressions", TOKENS), "is_word")
WHICH = Taken("which", "int32", ("expressions",), "which")
SEEN = TensorSpec("seen", "float32", ("images", 4, 8, 8))
POOLED = TensorSpec("pooled", "float32", ("images", 4, 4, 4))
WORDS = TensorSpec("words", "float32", ("expressions", 4))
ROUGH = TensorSpec("rough", "float32", ("expressions", 4, 4, 4))
FINE = TensorSpec("fine", "float32", ("expressions", 4, 8, 8))
LOGITS = TensorSpec("logits", "float32", ("expressions", 1, 8, 8))

_WEIGHTS: dict[str, Any] = {
    "kernel": np.random.default_rng(0).normal(0, 0.3, (4, 3, 4, 4)).astype(np.float32),
    "table": np.random.default_rng(1).normal(0, 1, (30000, 4)).astype(np.float32),
    "spatial": np.array([2, 3]),
    "channel": np.array([1]),
    "last": np.array([2]),
}


def write(folder: Path, kind: str) -> Path:
    """A bundle, FP32, in a new folder.

    Args:
        folder: The folder.
        kind: "chained" or "whole".
    """
    (folder / "graphs").mkdir(parents=True)
    shutil.copyfile(REPO / "runtime" / "demo-bundle" / "tokenizer.json", folder / "tokenizer.json")
    stages = _chained(folder) if kind == "chained" else _whole(folder)
    (folder / "golden.npz").touch()
    bundle = Bundle(folder, _manifest(folder, kind, stages))
    with open_model(bundle, engine="onnxruntime") as model:
        np.savez(folder / "golden.npz", **_golden(model))
        rows = check_model(model, load_golden(bundle)).rows
    manifest = replace(_manifest(folder, kind, stages), parity=rows)
    (folder / MANIFEST).write_text(manifest.to_json())
    return open_bundle(folder).path


def _chained(folder: Path) -> list[GraphEntry]:
    brightness = [_node("ReduceMean", "icon spatial", "means"), _chosen("means", "mean")]
    brightness.append(_node("ReduceMean", "mean channel", "brightness"))
    return [
        _stage(folder, "look", [IMAGE], SEEN, _look("seen"), int8_by_default=True, bfloat16=True),
        _stage(folder, "pool", [_taken(SEEN)], POOLED, [_pool()]),
        _stage(folder, "read", [IDS, MASK], WORDS, _read()),
        _stage(
            folder,
            "find",
            [_taken(POOLED), ICON, _taken(WORDS), WHICH],
            ROUGH,
            [
                _chosen("pooled", "own"),
                *brightness,
                *_times_words("own", "product"),
                _node("Add", "product brightness", "rough"),
            ],
        ),
        _stage(
            folder,
            "draw",
            [_taken(FINE, "maps"), _taken(SEEN), WHICH],
            LOGITS,
            [
                _chosen("seen", "own"),
                _node("Mul", "maps own", "product"),
                _node("ReduceSum", "product channel", "logits"),
            ],
        ),
    ]


def _whole(folder: Path) -> list[GraphEntry]:
    nodes = [*_look("seen"), _chosen("seen", "own"), *_read(), *_times_words("own", "product")]
    nodes.append(_node("ReduceSum", "product channel", "logits"))
    return [_stage(folder, "everything", [IMAGE, IDS, MASK, WHICH], LOGITS, nodes)]


def _look(output: str) -> list[onnx.NodeProto]:
    conv = _node("Conv", "picture_in kernel", "maps_", strides=[4, 4])
    return [conv, _node("Relu", "maps_", output)]


def _pool() -> onnx.NodeProto:
    return _node("AveragePool", "seen", "pooled", kernel_shape=[2, 2], strides=[2, 2])


def _read() -> list[onnx.NodeProto]:
    return [
        _node("Gather", "table ids", "embedded"),
        _node("Unsqueeze", "is_word last", "weight"),
        _node("Mul", "embedded weight", "weighted"),
        _node("ReduceMean", "weighted channel", "words", keepdims=0),
    ]


def _times_words(maps: str, output: str) -> list[onnx.NodeProto]:
    wide = _node("Unsqueeze", "words spatial", "words_")
    return [wide, _node("Mul", f"{maps} words_", output)]


def _chosen(value: str, output: str) -> onnx.NodeProto:
    """The row of each expression's image."""
    return _node("Gather", f"{value} which", output, axis=0)


def _node(kind: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, inputs.split(), [output], name=f"node_{output}", **attributes)


def _taken(spec: TensorSpec, name: str | None = None) -> Taken:
    return Taken(name or spec.name, spec.dtype, spec.shape, spec.name)


def _stage(
    folder: Path,
    name: str,
    inputs: Sequence[Taken],
    output: TensorSpec,
    nodes: Sequence[onnx.NodeProto],
    **rules: bool,
) -> GraphEntry:
    """Writes a graph."""
    used = {given for node in nodes for given in node.input}
    weights = [numpy_helper.from_array(w, key) for key, w in _WEIGHTS.items() if key in used]
    values = [_value(spec) for spec in inputs], [_value(output)]
    graph = helper.make_graph(nodes, name, *values, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 10
    onnx.checker.check_model(model)
    file = f"graphs/{name}.onnx"
    data = f"{name}.onnx.data"
    onnx.save_model(
        model, folder / file, save_as_external_data=True, location=data, size_threshold=256
    )
    files = [file, *([f"graphs/{data}"] if (folder / "graphs" / data).exists() else [])]
    return GraphEntry(
        name=name,
        file=file,
        sha256=hash_files(folder, files),
        precision="fp32",
        fp32_islands={},
        inputs=tuple(inputs),
        outputs=(output,),
        parameters=sum(_WEIGHTS[key].size for key in _WEIGHTS if key in used),
        sampling=None,
        operations=Operations(0, 1000, 10),
        **rules,
    )


def _value(spec: TensorSpec) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(spec.name, _TYPES[spec.dtype], spec.shape)


def _manifest(folder: Path, kind: str, stages: Sequence[GraphEntry]) -> Manifest:
    images = {"image": HostImage(PICTURE, "square", 32, "bilinear", True, 1, _MEAN, _STD)}
    resizes = {}
    if kind == "chained":
        images["icon"] = HostImage("image", "square", 16, "bilinear", False, 255, _MEAN, _STD)
        resizes["fine"] = Resize("rough", 8, "bilinear")
    text = Text("tokenizer.json", TOKENS, 0, "ids", "is_word")
    return Manifest(
        format_version=FORMAT_VERSION,
        family=f"made_up_{kind}",
        writer={},
        source=Source("deterministic", False, 0, None, None),
        model={"kind": kind},
        precision="fp32",
        host=Host(images, text, "which", None, resizes),
        stages=tuple(stages),
        answer=Answer("logits", None, "bilinear", 0.0),
        golden="golden.npz",
        files=hash_files(folder, ["tokenizer.json", "golden.npz"]),
        parity={},
        mask_iou=1.0,
    )


def _golden(model: Model) -> dict[str, Any]:
    """What the graphs themselves give for a picture of noise."""
    rgb = np.random.default_rng(2).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    host = HostSide(model.bundle)
    values: dict[str, Any] = {**host.images(rgb), **host.texts(host.tokenize(EXPRESSIONS))}
    for stage, session in model.open_sessions.items():
        inputs = model.bundle.manifest.graphs[stage].inputs
        outputs = session.run({spec.name: values[spec.value] for spec in inputs})
        values |= outputs | host.resized(stage, outputs)
    values["image"] = resize_picture(rgb, (32, 32))
    return {"rgb": rgb, "expressions": np.array(EXPRESSIONS), **values}
