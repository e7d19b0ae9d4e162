"""A bundle's small files: manifest, tokenizer, categories, golden arrays; and a compiled plan."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import math
import random
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import format_1
import numpy as np

from fuzz.json_tree import mutated_json
from fuzz.kinds import Input, Kind, require
from fuzz.mutate import mutate
from fuzz.pickles import mutated_pickle
from ris.engines import EngineOptions
from ris.engines.cache import obtain
from ris.engines.entry import read_checked
from ris.engines.errors import ExpressionError
from ris.engines.recipe import Recipe
from ris.reference.dfam.categories import category_entries
from ris.runtime.bundle import BUILT_IN, MANIFEST, Bundle, open_bundle
from ris.runtime.categories import read_table
from ris.runtime.parity import load_golden
from ris.runtime.text import ExpressionTokenizer

CORPUS = Path(__file__).parents[2] / "cpp" / "tests" / "corpus"

MAX_TOKENS = 35


def large_files(version: int) -> dict[str, Path]:
    """The files of the demo's bundle in format 1 or 2, by name, without its manifest."""
    if version == 1:
        files = format_1.files()
    else:
        found = (p for p in BUILT_IN.rglob("*") if p.is_file() and "engines" not in p.parts)
        files = {str(p.relative_to(BUILT_IN)): p for p in found}
    return {name: path for name, path in files.items() if name != MANIFEST}


@functools.cache
def manifest(version: int, nodes: int) -> Any:
    """The demo's manifest of a format, 1 or 2.

    nodes: that it has of each graph, so that a mutation hits other fields as often.
    """
    if version == 1:
        data = format_1.manifest()
        graphs = data["graphs"].values()
    else:
        data = json.loads((BUILT_IN / MANIFEST).read_text(encoding="utf-8"))
        graphs = data["stages"]
    for graph in graphs:
        graph["fp32_islands"] = dict(list(graph["fp32_islands"].items())[:nodes])
    return data


def _make_manifest(rng: random.Random, control: bool) -> Input:
    version = rng.choice((1, 2))
    data = manifest(version, nodes=3)
    text = json.dumps(data).encode() if control else mutated_json(data, rng)
    return Input({MANIFEST: text}, large_files(version), True if control else None)


def _open(folder: Path, expected: Any) -> list[str]:
    bundle = open_bundle(folder, verify=False)
    known = bundle.hashes()
    manifest, host = bundle.manifest, bundle.manifest.host
    named = [host.text.tokenizer, manifest.golden]
    if host.categories is not None:
        named += [host.categories.names, host.categories.features]
    for stage in bundle.stages:
        graph = bundle.graph(stage)
        named.append(str(graph.path.relative_to(folder)))
        require(all(name in known for name in graph.sha256), "a graph's file without a hash")
    for name in named:
        require(name in known, f"{name!r} was not hashed")
    require(math.isfinite(manifest.answer.threshold), "a threshold that is no number")
    require((manifest.mask_rule.letterbox or 1) > 0, "a letterbox without pixels")
    for drawn in host.drawn.values():
        require(0 < math.prod(drawn.shape) <= 1 << 24, "random numbers without a shape")
    require(manifest.side > 0, "no square of the picture")
    for square in host.images.values():
        require(square.size > 0, "a square without pixels")
        require(all(map(math.isfinite, (*square.mean, *square.std))), "no numbers")
        require(len(square.mean) == len(square.std) == 3, "not three channels")
        require(all(square.std), "a division by zero")
    require(host.text.max_tokens > 0, "no tokens")
    open_bundle(folder, verify=True)
    return []


@functools.cache
def _tokenizers() -> list[Any]:
    """One of each kind of vocabulary: BERT's, then SentencePiece's."""
    corpus = [CORPUS / f"tokenizer-{kind}" for kind in ("unigram", "bpe")]
    texts = [(BUILT_IN / "tokenizer.json").read_text(encoding="utf-8")]
    texts += [path.read_text(encoding="utf-8")[1:] for path in corpus]  # behind libris's letter
    return [json.loads(text) for text in texts]


def _make_tokenizer(rng: random.Random, control: bool) -> Input:
    if control:
        return Input({"tokenizer.json": json.dumps(_tokenizers()[0]).encode()}, expected=4)
    return Input({"tokenizer.json": mutated_json(rng.choice(_tokenizers()), rng)})


def _tokenize(folder: Path, expected: Any) -> list[str]:
    tokenize = ExpressionTokenizer(folder / "tokenizer.json", MAX_TOKENS)
    for expression in ("left man", "the dog [PAD] ein Hündchen 🦓 A½", "a " * 60):
        with contextlib.suppress(ExpressionError):  # no words in it, by a damaged vocabulary
            tokens = tokenize([expression])
            require(tokens.ids.shape == tokens.mask.shape == (1, MAX_TOKENS), "another shape")
            require(tokens.ids.dtype == np.int32, "another type")
            if expected is not None and expression == "left man":
                require(int(tokens.mask.sum()) == expected, f"{tokens.ids}")
    return []


@functools.cache
def _categories() -> Any:
    return category_entries(134)


def _features(rows: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, rows)
    return file.getvalue()


def _make_categories(rng: random.Random, control: bool) -> Input:
    rows = np.linspace(-1, 1, 134 * 4, dtype=np.float32).reshape(134, 4)
    files = {
        "categories.json": json.dumps(_categories()).encode(),
        "categories.npy": _features(rows),
    }
    if control:
        return Input(files, expected="dog")
    if rng.random() < 0.7:
        files["categories.json"] = mutated_json(_categories(), rng)
    else:
        others = (
            rows.T,
            rows[:5],
            rows.astype(np.float64),
            rows[0],
            rows.astype("U"),
            rows * np.nan,
        )
        features = _features(rng.choice(others)) if rng.random() < 0.3 else files["categories.npy"]
        files["categories.npy"] = mutate(features, rng)
    return Input(files)


def _read_categories(folder: Path, expected: Any) -> list[str]:
    table, features = read_table(folder / "categories.json", folder / "categories.npy")
    require(features.dtype == np.float32 and features.ndim == 2, f"{features.dtype}")
    require(len(features) == len(table.names), "not a row for each category")
    for expression in ("the dog", "left man", "\ud800", "a wide " * 40):
        with contextlib.suppress(ExpressionError):
            guess = table.guess(expression)
            require(0 <= table.row(guess.category) < len(features), "a category without a row")
            if expected is not None and expression == "the dog":
                require(guess.category == expected, guess.category)
    with contextlib.suppress(ExpressionError):
        table.known("dgo")
    return []


@functools.cache
def _arrays() -> bytes:
    """The demo's golden arrays, no axis longer than three."""
    with np.load(BUILT_IN / "golden.npz") as arrays:
        short = {name: array[(slice(3),) * array.ndim] for name, array in arrays.items()}
    file = io.BytesIO()
    np.savez_compressed(file, **short)
    return file.getvalue()


def mutated_zip(data: bytes, rng: random.Random, compression: int) -> bytes:
    """A zip archive with a member changed, renamed, doubled or gone; its checksums are right."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    places = list(range(len(members)))
    pickles = [at for at in places if members[at][0].endswith("data.pkl")]
    which = rng.choice(pickles if pickles and rng.random() < 0.5 else places)
    name, content = members[which]
    match rng.choice(("change", "change", "change", "change", "name", "drop", "double")):
        case "change":
            change = mutated_pickle if name.endswith(".pkl") else mutate
            members[which] = name, change(content, rng)
        case "name":
            members[which] = rng.choice((name + "x", "../" + name, "", "a/" + name)), content
        case "drop":
            del members[which]
        case "double":
            members.append((name.replace("2", "3"), content))
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in members:
            archive.writestr(zipfile.ZipInfo(name), content, compression)
    return file.getvalue()


def _make_golden(rng: random.Random, control: bool) -> Input:
    if control:
        return Input({"golden.npz": _arrays()}, expected="mask_logits")
    zipped = rng.random() < 0.5
    data = mutated_zip(_arrays(), rng, zipfile.ZIP_DEFLATED) if zipped else mutate(_arrays(), rng)
    return Input({"golden.npz": data})


@functools.cache
def _built_in() -> Any:
    return open_bundle(BUILT_IN, verify=False).manifest


def _read_golden(folder: Path, expected: Any) -> list[str]:
    arrays = load_golden(Bundle(folder, _built_in()))
    require(all(isinstance(array, np.ndarray) for array in arrays.values()), "no arrays")
    require(expected is None or expected in arrays, f"{sorted(arrays)}")
    return []


@functools.cache
def _plan() -> dict[str, bytes]:
    """A compiled graph with its sidecar, as the cache writes them."""
    recipe = Recipe(
        stage="fusion",
        onnx={"fusion.onnx": "a" * 64},
        engine="tensorrt",
        version="10.16.1.11",
        device="sm_89",
        profiles={"x": [[1, 4], [1, 4], [8, 4]]},
        options={"workspace": None},
    )

    def build(artifact: Path) -> dict[str, Any]:
        artifact.write_bytes(bytes(range(256)) * 20)
        return {"layers": {"fp16": 3}}

    with tempfile.TemporaryDirectory() as folder:
        made = obtain(recipe, Path(folder), build, EngineOptions()).artifact
        return {file.name: file.read_bytes() for file in made.parent.iterdir()}


def _make_plan(rng: random.Random, control: bool) -> Input:
    files = dict(_plan())
    if control:
        return Input(files, expected=files["fusion.plan"])
    if rng.random() < 0.7:
        files["fusion.json"] = mutated_json(json.loads(files["fusion.json"]), rng)
    else:
        name = rng.choice(sorted(files))
        files[name] = mutate(files[name], rng)
    return Input(files)


def _read_plan(folder: Path, expected: Any) -> list[str]:
    data = read_checked(folder / "fusion.plan", "tensorrt")
    require(data == _plan()["fusion.plan"], "another plan than was compiled")
    require(expected is None or data == expected, "another plan")
    return []


KINDS = {
    "bundle-manifest": Kind(_make_manifest, _open),
    "bundle-tokenizer": Kind(_make_tokenizer, _tokenize),
    "bundle-categories": Kind(_make_categories, _read_categories),
    "bundle-golden": Kind(_make_golden, _read_golden),
    "bundle-plan": Kind(_make_plan, _read_plan),
}
