"""JSON lines: what ris-infer is asked, and data sets of one's own."""

from __future__ import annotations

import functools
import io
import random
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fuzz.json_tree import mutated_encoding, mutated_json, write
from fuzz.kinds import Input, Kind, require
from fuzz.mutate import mutate
from fuzz.picture_files import BITS, HEIGHT, RGB, WIDTH, good_files
from ris.data.datasets.lines import read_lines
from ris.data.samples import AnnotatedImage, refer_images
from ris.runtime.masks import encode_rle
from ris.runtime.requests import read_jsonl

NAME = "lines.jsonl"


def mutated_lines(rows: list[Any], rng: random.Random) -> bytes:
    """JSON lines with a bad one among them, or with bad ends of lines."""
    how = rng.random()
    lines = [write(row, escape=rng.random() < 0.5) for row in rows]
    for _ in range(rng.choice((1, 1, 2))):
        which = rng.randrange(len(lines))
        lines[which] = mutated_json(rows[which % len(rows)], rng)
        if rng.random() < 0.1:
            lines.insert(which, rng.choice((b"", b"  ", b"\xff", b"{", b"null", b"[1]")))
    end = rng.choice((b"\n", b"\n", b"\n", b"\r\n", b"\n\n", "\u2028".encode(), b"\x0c"))
    data = end.join(lines)
    if how > 0.8:
        data = mutated_encoding(data, rng) if rng.random() < 0.5 else mutate(data, rng)
    return data


REQUESTS: list[dict[str, Any]] = [
    {"image": "1.jpg", "expression": "left man"},
    {"image": "1.jpg", "expression": ["the dog", "a \u2028 line of trees", "ein Hündchen"]},
    {"image": "below/2.png", "expression": "red box", "category": "person"},
    {"image": "below/2.png", "expression": ["a", "b"], "category": ["cat", "auto"]},
    {"image": "3 with space.jpg", "expression": "🦓 behind the fence"},
]


def _make_requests(rng: random.Random, control: bool) -> Input:
    if not control:
        return Input({NAME: mutated_lines(REQUESTS, rng)})
    end = rng.choice((b"\n", b"\r\n"))
    data = end.join(write(row, escape=rng.random() < 0.5) for row in REQUESTS)
    expected = [
        ("1.jpg", ("left man", "the dog", "a \u2028 line of trees", "ein Hündchen"), None),
        ("below/2.png", ("red box", "a", "b"), ("person", "cat", "auto")),
        ("3 with space.jpg", ("🦓 behind the fence",), None),
    ]
    return Input({NAME: rng.choice((b"", b"\xef\xbb\xbf")) + data}, expected=expected)


def _ask(folder: Path, expected: Any) -> list[str]:
    skipped: list[str] = []
    requests = read_jsonl(folder / NAME, skipped.append)
    require(bool(requests or skipped), "no requests and no error")
    for request in requests:
        require(len(request.expressions) > 0, "a request without expressions")
        for text in request.expressions:
            require(bool(text.strip()), "a blank expression")
            text.encode("utf-8")
        names = request.categories
        require(names is None or len(names) == len(request.expressions), "other categories")
    if expected is not None:
        found = [(str(r.image.relative_to(folder)), r.expressions, r.categories) for r in requests]
        require(found == expected, f"{found}")
    return skipped


@functools.cache
def _pictures() -> dict[str, bytes]:
    """Two pictures and a mask."""
    return {
        "1.png": good_files("png")[0].data,
        "2.jpg": good_files("jpeg")[0].data,
        "masks/1.png": _png(Image.fromarray(BITS.astype(np.uint8) * 255)),
    }


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


@functools.cache
def _annotated() -> list[dict[str, Any]]:
    return [
        {"image": "1.png", "expression": "left man", "mask": "masks/1.png"},
        {"image": "2.jpg", "expression": "the dog", "mask": dict(encode_rle(BITS))},
        {"image": "2.jpg", "expression": "a zebra", "mask": None, "category": "zebra"},
        {
            "image": "1.png",
            "expression": "a row",
            "mask": {"size": [HEIGHT, WIDTH], "counts": [3, 4, HEIGHT * WIDTH - 7]},
        },
    ]


def _other_masks(rng: random.Random) -> bytes:
    """The mask as people save theirs."""
    grey = Image.fromarray(BITS.astype(np.uint8) * 255)
    ways = (
        lambda: _png(grey.convert("RGBA")),
        lambda: _png(grey.convert("LA")),
        lambda: _png(grey.convert("1")),
        lambda: _png(grey.convert("P")),
        lambda: _png(Image.fromarray(BITS.astype(np.uint16) * 65535)),
        lambda: _png(Image.fromarray(RGB)),
        lambda: _png(grey.resize((WIDTH + 1, HEIGHT))),
        lambda: rng.choice(good_files("jpeg")).data,
        lambda: rng.choice(good_files("tiff")).data,
    )
    return rng.choice(ways)()


def _make_evaluation(rng: random.Random, control: bool) -> Input:
    files = dict(_pictures())
    files[NAME] = b"\n".join(map(write, _annotated()))
    if control:
        area = int(BITS.sum())
        expected = [
            ("1.png", [("left man", area), ("a row", 4)]),
            ("2.jpg", [("the dog", area), ("a zebra", 0)]),
        ]
        return Input(files, expected=expected)
    how = rng.random()
    if how < 0.6:
        files[NAME] = mutated_lines(_annotated(), rng)
    if how > 0.5:
        name = rng.choice(("1.png", "2.jpg", "masks/1.png", "masks/1.png"))
        files[name] = _other_masks(rng) if rng.random() < 0.3 else mutate(files[name], rng)
    return Input(files)


def _evaluate(folder: Path, expected: Any) -> list[str]:
    skipped: list[str] = []
    data = read_lines(folder / NAME, skipped.append)
    found = annotated(refer_images(data, skipped=skipped.append))
    require(expected is None or found == expected, f"{found}")
    return skipped


def annotated(images: Any) -> list[tuple[str, list[tuple[str, int]]]]:
    """(image, [(expression, pixels of its mask)]) of what a data set gives, after checks."""
    found = []
    for image in images:
        _check(image)
        found.append((image.name, [(t.expression, int(t.mask.sum())) for t in image.truths]))
    return found


def _check(image: AnnotatedImage) -> None:
    rgb = image.rgb
    require(rgb.dtype == np.uint8 and rgb.ndim == 3 and rgb.shape[2] == 3, f"{rgb.shape}")
    require(bool(image.truths), "an image without expressions")
    for truth in image.truths:
        require(truth.mask.dtype == np.bool_, f"a mask of {truth.mask.dtype}")
        require(truth.mask.shape == rgb.shape[:2], "a mask of another size")
        require(bool(truth.expression.strip()), "a blank expression")
        truth.expression.encode("utf-8")


KINDS = {
    "requests-jsonl": Kind(_make_requests, _ask),
    "evaluation-jsonl": Kind(_make_evaluation, _evaluate),
}
