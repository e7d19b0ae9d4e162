"""What a batch run reads: web-dataset shards and Parquet tables."""

from __future__ import annotations

import functools
import io
import json
import random
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fuzz.json_tree import mutated_json
from fuzz.kinds import Input, Kind, require
from fuzz.mutate import mutate
from fuzz.picture_files import good_files
from fuzz.verdict import complaint
from ris.engines.errors import RisError
from ris.serving.batch.images import Images
from ris.serving.batch.inputs import Given, group_by_image, read_sources
from ris.serving.limits import Limits

GIVEN = Given(("left man",))

Members = list[tuple[str, bytes]]


@functools.cache
def _members() -> Members:
    picture = good_files("jpeg")[0].data
    return [
        ("a/1.jpg", picture),
        ("a/1.txt", "the dog\nein Hündchen\n".encode()),
        ("a/2.png", good_files("png")[0].data),
        (
            "a/2.json",
            json.dumps({"expression": ["red box", "tree"], "category": "person"}).encode(),
        ),
        ("b/3.jpg", picture),
    ]


def _tar(members: Members, form: int = tarfile.GNU_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


SIZES = (b"00000000000\0", b"77777777777\0", b"00010000000\0", b"-0000000001\0", b"99999999999\0")
SIZES += (b"\x80" + b"\xff" * 11, b"\xff" * 12, b"\x80" + bytes(10) + b"\1", b"            ")
FIELDS = {0: 100, 100: 8, 136: 12, 148: 8, 156: 1, 157: 100, 257: 8, 345: 155}


def _mutated_header(data: bytes, rng: random.Random) -> bytes:
    """A tar file with another header of a member, whose checksum is right."""
    heads = [at for at in range(0, len(data), 512) if data[at + 257 : at + 262] == b"ustar"]
    at = rng.choice(heads)
    block = bytearray(data[at : at + 512])
    match rng.choice(("size", "size", "kind", "kind", "field")):
        case "size":
            block[124:136] = rng.choice(SIZES)
        case "kind":
            block[156:157] = rng.choice(
                (b"x", b"g", b"L", b"K", b"S", b"V", b"0", b"1", b"2", b"5")
            )
        case "field":
            start, size = rng.choice(list(FIELDS.items()))
            field = mutate(bytes(block[start : start + size]), rng)
            block[start : start + size] = field[:size].ljust(size, b"\0")
    block[148:156] = b" " * 8
    block[148:156] = f"{sum(block):06o}\0 ".encode()
    return data[:at] + bytes(block) + data[at + 512 :]


def _make_shard(rng: random.Random, control: bool) -> Input:
    form = rng.choice((tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT))
    members = list(_members())
    if control:
        expected = [
            ("a/1.jpg", ("the dog", "ein Hündchen")),
            ("a/2.png", ("red box", "tree")),
            ("b/3.jpg", ("left man",)),
        ]
        return Input({"shard.tar": _tar(members, form)}, expected=expected)
    how = rng.random()
    if how < 0.5:
        data = _tar(members, form)
        changed = mutate(data, rng) if how < 0.2 else _mutated_header(data, rng)
        return Input({"shard.tar": changed})
    which = rng.randrange(len(members))
    name, content = members[which]
    if name.endswith(".json") and how < 0.9:
        content = mutated_json(json.loads(content), rng)
    elif how < 0.8:
        content = mutate(content, rng)
    else:
        stem, _, suffix = name.partition(".")
        names = (f"{stem}.v2.{suffix}", f".{name}", stem, name.upper(), "a/1.txt", "x" * 120 + name)
        name = rng.choice((*names, f"a\u2028b.{suffix}", f"../{name}", f"\x1b[1m.{suffix}"))
    members[which] = name, content
    if how > 0.95:
        rng.shuffle(members)
    return Input({"shard.tar": _tar(members)})


def _asked(path: Path, expected: Any, names: list[str]) -> list[str]:
    """Reads a source and the bytes of its images; the errors of its lines are sentences."""
    lines = list(read_sources([path], GIVEN))
    images = Images(Limits())
    sentences = []
    for line in lines:
        if line.error is not None:
            sentences.append(line.error)
            continue
        require(line.location is not None, "neither a place nor an error")
        require(bool(line.expressions), "a line without expressions")
        require(line.categories is None or len(line.categories) == len(line.expressions), "names")
        try:
            assert line.location is not None
            Limits().decode(images.read(line.location))
        except RisError as error:  # the worker puts it into the row, and the row names the image
            wrong = complaint(f"{path.name}: {error}", names)
            require(not wrong, f"{wrong}: {error}")
    tasks = group_by_image(lines)
    require(sum(len(task.rows) for task in tasks) == sum(len(a.expressions) for a in lines), "rows")
    if expected is not None:
        found = [(a.name.removeprefix("shard.tar/"), a.expressions) for a in lines]
        require(found == expected, f"{found}")
    return sentences


def _read_shard(folder: Path, expected: Any) -> list[str]:
    return _asked(folder / "shard.tar", expected, ["shard.tar"])


@functools.cache
def _table(kind: str) -> bytes:
    pictures = [good_files("jpeg")[0].data, good_files("png")[0].data]
    columns = {
        "bytes": {"image": pictures, "expression": ["left man", "the dog"]},
        "struct": {
            "image": [{"bytes": p, "path": "x"} for p in pictures],
            "expression": ["a", "b"],
        },
        "lists": {"image": pictures, "expression": [["left man", "tree"], ["the dog"]]},
        "category": {"image": pictures, "expression": ["a", "b"], "category": ["cat", None]},
    }[kind]
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file, compression="none" if kind == "lists" else "snappy")
    return file.getvalue()


def _make_table(rng: random.Random, control: bool) -> Input:
    data = _table(rng.choice(("bytes", "struct", "lists", "category")))
    if control:
        rows = [("table.parquet, row 0", ("left man",)), ("table.parquet, row 1", ("the dog",))]
        return Input({"table.parquet": _table("bytes")}, expected=rows)
    if rng.random() < 0.5:  # the end of the file describes it
        cut = len(data) - rng.choice((8, 100, 600))
        return Input({"table.parquet": data[:cut] + mutate(data[cut:], rng)})
    return Input({"table.parquet": mutate(data, rng)})


def _read_table(folder: Path, expected: Any) -> list[str]:
    return _asked(folder / "table.parquet", expected, ["table.parquet"])


KINDS = {
    "shard-tar": Kind(_make_shard, _read_shard),
    "parquet-table": Kind(_make_table, _read_table),
}
