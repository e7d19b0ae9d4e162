"""Manifests of format 1 in the form of format 2.

Format 1 knew one family. Its five graphs, and what the host did between them, were in the code that
read it; here they are said.
"""

from __future__ import annotations

from typing import Any

FAMILY = "dfam"
"""The family of every bundle of format 1."""

GOLDEN_NAMES = {"square": "sam_image"}
"""Images in a golden.npz of format 1 whose value has another name.

Calibration copies the file, so it may also lie beside a manifest of format 2.
"""

# for each stage what it takes (name in the graph -> value, where that differs), and what a
# precision may do to it
_STAGES: dict[str, tuple[dict[str, str], dict[str, Any]]] = {
    "sam_image_encoder": ({"image": "sam_image"}, {"bfloat16": True, "int8_by_default": True}),
    "clip_image_encoder": ({"image": "clip_image"}, {"bfloat16": True, "int8_by_default": True}),
    "text_encoder": ({}, {}),
    "fusion": ({}, {"bfloat16": True, "bfloat16_from": "fused"}),
    "mask_decoder": ({"dense_prompt": "dense_embedding"}, {}),
}

_IMAGES = {
    "sam_image": ("sam", {"of": "picture", "filter": "bilinear", "antialias": True, "levels": 255}),
    "clip_image": (
        "clip",
        {"of": "sam_image", "filter": "bicubic", "antialias": False, "levels": 1},
    ),
}
_FILTERS = {"sam": "pillow-bilinear-uint8", "clip": "bicubic"}
_TAKEN_OVER = (
    "writer",
    "source",
    "model",
    "precision",
    "golden",
    "files",
    "parity",
    "mask_iou",
)


def as_format_2(data: dict[str, Any]) -> dict[str, Any]:
    """What a manifest of format 1 says, as format 2 says it.

    What is missing or of another kind is handed on as it is, for the reader of format 2 to tell.

    Args:
        data: The parsed JSON.
    """
    found = {name: data[name] for name in _TAKEN_OVER if name in data}
    graphs = data.get("graphs")
    found |= {"format_version": 2, "family": FAMILY}
    found["host"] = _host(data)
    found["stages"] = graphs
    if isinstance(graphs, dict):
        found["stages"] = [
            _stage(name, graphs[name], *known) for name, known in _STAGES.items() if name in graphs
        ]
    return found | {"answer": _answer(data)}


def _stage(name: str, entry: Any, values: dict[str, str], rules: dict[str, Any]) -> Any:
    """A graph's entry as a stage's."""
    if not isinstance(entry, dict):
        return entry
    inputs = entry.get("inputs")
    if isinstance(inputs, list):
        inputs = [_input(spec, values) for spec in inputs]
    return {**entry, **rules, "name": name, "inputs": inputs}


def _input(spec: Any, values: dict[str, str]) -> Any:
    if not isinstance(spec, dict) or not isinstance(spec.get("name"), str):
        return spec
    return {**spec, "value": values.get(spec["name"], spec["name"])}


def _host(data: dict[str, Any]) -> dict[str, Any]:
    host: dict[str, Any] = {"image_index": "image_index", "categories": None}
    images = data.get("preprocess")
    if isinstance(images, dict):
        host["images"] = {
            name: _image(key, images[key], about)
            for name, (key, about) in _IMAGES.items()
            if key in images
        }
    host["text"] = _with(data.get("text"), pad_id=0, ids="input_ids", mask="text_mask")
    if data.get("categories") is not None:
        host["categories"] = _with(data["categories"], value="category_feature")
    resize = data.get("dense_prompt")
    if isinstance(resize, dict):
        resize = {"of": "dense_prompt", "size": resize.get("target")} | {
            name: resize[name] for name in ("interpolation",) if name in resize
        }
    host["resizes"] = {"dense_embedding": resize}
    return host


def _image(key: str, square: Any, about: dict[str, Any]) -> Any:
    if not isinstance(square, dict):
        return square
    made = {**square, **about, "fit": "square"}
    written = made.pop("interpolation", None)
    return made if written == _FILTERS[key] else {**made, "filter": written}


def _with(entry: Any, **more: Any) -> Any:
    return {**entry, **more} if isinstance(entry, dict) else entry


def _answer(data: dict[str, Any]) -> Any:
    answer = _with(data.get("postprocess"), mask_logits="mask_logits", no_target_logits=None)
    if isinstance(answer, dict):
        head = data.get("no_target")
        if head is not False:
            # True names the head's output; anything else is no name, which the reader says
            answer["no_target_logits"] = "no_target_logits" if head is True else 0
    return answer
