"""libris over stages of no family: two images, values of several kinds, resizes, a padding id."""

from __future__ import annotations

import ctypes
import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image
from tokenizers import Tokenizer

from conftest import REPO
from libris_helper import Options
from ris.runtime.bundle import sha256_of
from ris.runtime.interpolate import resize_maps, resize_rows

TOKENIZER = REPO / "runtime" / "demo-bundle" / "tokenizer.json"
SIDE, SMALL, TOKENS, PAD = 16, 8, 12, 7
KINDS = {"float32": TensorProto.FLOAT, "int32": TensorProto.INT32}


def tensor(name, dtype, *shape, value=None):
    """An input, or an output where there is no value."""
    return {"name": name, "dtype": dtype, "shape": list(shape)} | (
        {"value": value} if value else {}
    )


def node(operation, inputs, output, **attributes):
    return helper.make_node(operation, inputs.split(), [output], **attributes)


# once an image: maps that are resized for a question, and whole numbers
LOOK = {
    "name": "look",
    "inputs": [tensor("pixels", "float32", "images", 3, SMALL, SMALL, value="thumb")],
    "outputs": [
        tensor("maps", "float32", "images", 3, SMALL, SMALL),
        tensor("bright", "int32", "images", 1),
    ],
    "nodes": [
        node("Add", "pixels pixels", "maps"),
        node("ReduceMean", "pixels", "mean", axes=[1, 2, 3], keepdims=0),
        node("Reshape", "mean rows", "column"),
        node("Cast", "column", "bright", to=TensorProto.INT32),
    ],
}
# for each question, of the expressions alone
READ = {
    "name": "read",
    "inputs": [
        tensor("ids", "int32", "expressions", TOKENS, value="tokens"),
        tensor("mask", "float32", "expressions", TOKENS, value="words"),
    ],
    "outputs": [tensor("weight", "float32", "expressions", 1, 1, 1)],
    "nodes": [
        node("Cast", "ids", "numbers", to=TensorProto.FLOAT),
        node("Mul", "numbers mask", "kept"),
        node("ReduceSum", "kept axes", "sum"),
        node("Reshape", "sum maps_of_one", "weight"),
    ],
}
# the picture itself, what was kept of it, and what was read
DRAW = {
    "name": "draw",
    "inputs": [
        tensor("weight", "float32", "expressions", 1, 1, 1, value="weight"),
        tensor("wide", "float32", "images", 3, SIDE, SIDE, value="wide"),
        tensor("photo", "float32", "images", 3, SIDE, SIDE, value="photo"),
        tensor("bright", "int32", "images", 1, value="bright"),
    ],
    "outputs": [tensor("drawn", "float32", "expressions", 1, SIDE, SIDE)],
    "nodes": [
        node("Add", "wide photo", "both"),
        node("ReduceMean", "both", "grey", axes=[1], keepdims=1),
        node("Mul", "grey weight", "weighed"),
        node("Cast", "bright", "level", to=TensorProto.FLOAT),
        node("Reshape", "level maps_of_one", "levels"),
        node("Sub", "weighed levels", "drawn"),
    ],
}
IMAGE = {"fit": "square", "mean": [0, 0, 0], "std": [1, 1, 1]}
HOST = {
    "images": {
        "photo": IMAGE
        | {"of": "picture", "size": SIDE, "filter": "bilinear", "antialias": True, "levels": 1}
        | {"mean": [0.5, 0.25, 0.125], "std": [0.5, 0.25, 0.5]},
        "thumb": IMAGE
        | {"of": "photo", "size": SMALL, "filter": "bilinear", "antialias": False, "levels": 255},
    },
    "text": {
        "tokenizer": "tokenizer.json",
        "max_tokens": TOKENS,
        "pad_id": PAD,
        "ids": "tokens",
        "mask": "words",
    },
    "image_index": None,
    "categories": None,
    "resizes": {"wide": {"of": "maps", "size": SIDE, "interpolation": "bilinear"}},
}


def write_graph(stage, path):
    def infos(specs):
        return [
            helper.make_tensor_value_info(spec["name"], KINDS[spec["dtype"]], spec["shape"])
            for spec in specs
        ]

    constants = {"rows": [-1, 1], "axes": [1], "maps_of_one": [-1, 1, 1, 1]}
    used = {name for one in stage["nodes"] for name in one.input}
    stored = [
        helper.make_tensor(name, TensorProto.INT64, [len(values)], values)
        for name, values in constants.items()
        if name in used
    ]
    inputs, outputs = infos(stage["inputs"]), infos(stage["outputs"])
    graph = helper.make_graph(stage["nodes"], stage["name"], inputs, outputs, stored)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path
    )


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """A bundle of three stages that belong to no family."""
    folder = tmp_path_factory.mktemp("stages")
    (folder / "tokenizer.json").write_bytes(TOKENIZER.read_bytes())
    (folder / "golden.npz").touch()
    stages = []
    for stage in (LOOK, READ, DRAW):
        file = f"{stage['name']}.onnx"
        write_graph(stage, folder / file)
        known = {"file": file, "precision": "fp32", "sampling": None}
        hashes = {"sha256": {file: sha256_of(folder / file)}}
        stages.append({k: v for k, v in stage.items() if k != "nodes"} | known | hashes)
    manifest = {
        "format_version": 2,
        "family": "drawing",
        "source": {"kind": "deterministic", "trained": False},
        "model": {},
        "precision": "fp32",
        "host": HOST,
        "stages": stages,
        "answer": {
            "mask_logits": "drawn",
            "no_target_logits": None,
            "interpolation": "bilinear",
            "threshold": 0.0,
        },
        "golden": "golden.npz",
        "files": {name: sha256_of(folder / name) for name in ("tokenizer.json", "golden.npz")},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def expected(rgb, expressions):
    """The logits by the same steps in Python, float32 [N, side, side]."""
    levels = np.asarray(Image.fromarray(rgb).resize((SIDE, SIDE), Image.Resampling.BILINEAR))
    about = HOST["images"]["photo"]
    photo = (levels / np.float32(255) - about["mean"]) / about["std"]
    tall = resize_rows(levels, SMALL, "bilinear").transpose(1, 0, 2)
    thumb = resize_rows(tall, SMALL, "bilinear").transpose(2, 1, 0)
    wide = resize_maps(2 * thumb, SIDE, SIDE, "bilinear")
    grey = (wide + photo.transpose(2, 0, 1)).mean(0)
    tokenizer = Tokenizer.from_file(str(TOKENIZER))
    ids = [tokenizer.encode(expression).ids[:TOKENS] for expression in expressions]
    return np.stack([grey * sum(i for i in row if i != PAD) - int(thumb.mean()) for row in ids])


def test_what_stages_take_from_each_other(libris, bundle, picture):
    expressions = ["left man", "the red ball on the right of the second car, behind it"]
    model = libris.open(bundle)
    for rgb in (picture, np.ascontiguousarray(picture[:70, ::-1])):
        scene = libris.encode_image(model, rgb)
        want = expected(rgb, expressions)
        for _ in range(2):
            for answer, logits in zip(libris.ask(scene, expressions), want, strict=True):
                np.testing.assert_allclose(answer["logits"], logits, rtol=1e-4, atol=1e-2)
                assert answer["no_target"] == -1
                assert not answer["is_no_target"]
        libris.check(libris.abi.ris_free_scene(scene))
    libris.check(libris.abi.ris_close(model))


def test_rows_are_filled_with_the_bundles_padding(libris, bundle, picture):
    model = libris.open(bundle)
    ids, count = (ctypes.c_int32 * TOKENS)(), ctypes.c_size_t()
    room = ctypes.c_size_t(TOKENS)
    libris.check(libris.abi.ris_tokenize(model, b"left man", ids, room, ctypes.byref(count)))
    own = Tokenizer.from_file(str(TOKENIZER)).encode("left man").ids
    assert list(ids) == own + [PAD] * (TOKENS - len(own))

    scene, result = libris.encode_image(model, picture), ctypes.c_void_p()
    padding = (ctypes.c_int32 * 2)(PAD, PAD)
    asked = (scene, padding, ctypes.c_size_t(1), ctypes.c_size_t(2), None, ctypes.byref(result))
    assert libris.abi.ris_ask_tokens(*asked) != 0
    assert b"nothing but padding (7)" in libris.abi.ris_last_error()
    libris.check(libris.abi.ris_close(model))


def test_graphs_are_named_as_the_bundle_has_them(libris, bundle):
    model, text = libris.open(bundle), ctypes.c_char_p()
    libris.check(libris.abi.ris_info(model, ctypes.byref(text)))
    info = json.loads(text.value)
    assert (info["format_version"], info["family"]) == (2, "drawing")
    assert set(info["graphs"]) == {"look", "read", "draw"}
    assert info["mask_logits"] == [SIDE, SIDE]
    assert info["no_target"] is False
    libris.check(libris.abi.ris_close(model))

    for providers, refused in (
        (b"cpu,draw=cpu", b""),
        (b"cpu,paint=cpu", b"no graph 'paint'; there are look, read, draw"),
    ):
        options = Options(ctypes.sizeof(Options), providers, verify=1, max_expressions=8)
        path, model = str(bundle).encode(), ctypes.c_void_p()
        status = libris.abi.ris_open(path, ctypes.byref(options), ctypes.byref(model))
        assert (status == 0) == (refused == b"")
        assert refused in libris.abi.ris_last_error()
        if status == 0:
            libris.check(libris.abi.ris_close(model))
