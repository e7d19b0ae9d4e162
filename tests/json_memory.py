"""What parsing hostile JSON takes, beside what is booked for it: each body in a process of its own.

    python tests/json_memory.py     # prints JSON: name, bytes of the body, taken, booked

Both count the body itself.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ris.engines.errors import RisError
from ris.serving.http.labelling import tasks
from ris.serving.http.reading import SegmentRequest, json_bytes, validated

PARTS = 30_000
LENGTH = 3_000_000
Body = tuple[Callable[[bytes], Any], bytes, int | None]


def _segment(body: bytes) -> Any:
    return validated(body, SegmentRequest)


def bodies() -> dict[str, Body]:
    """Name: what parses it, the body, and bytes of a part where they are not the usual ones."""
    lists = {
        "texts": b'"",',
        "lists": b"[],",
        "objects": b"{},",
        "numbers": b"1,",
        "": b'{"a":{}},',
    }
    made: dict[str, Body] = {
        f"{field} {name}": (_segment, b'{"%s":[%s""]}' % (field.encode(), part * PARTS), None)
        for field in ("expression", "category", "answer", "image")
        for name, part in lists.items()
    }
    keys = b",".join(b'"%x":1' % i for i in range(PARTS))
    long = b"a" * LENGTH
    for name, text in {
        "unknown fields": b"{%s}" % keys,
        "an image": b'{"image":"%s"}' % long,
        "an image with one wide character": '{"image":"a😀'.encode() + long + b'"}',
        "the same, escaped": b'{"image":"\\ud83d\\ude00\\"%s"}' % long,
        "an unknown field": b'{"b":"%s"}' % long,
        "an unknown field, wide": '{"b":"😀'.encode() + long + b'"}',
        "escapes alone": b'{"image":"%s"}' % (b"\\u4e2d" * (LENGTH // 6)),
    }.items():
        made[name] = (_segment, text, None)
    for name, part in {
        "tasks": b"{},",
        "tasks with data": b'{"data":{"a":1}},',
        "no tasks": b"1,",
    }.items():
        text = b'{"label_config":"x","tasks":[%s{}]}' % (part * PARTS)
        made[name] = (tasks.read_order, text, tasks.PART_BYTES)
    result = b'{"label_config":"x","tasks":[],"params":{"context":{"result":[%s{}]}}}'
    made["results"] = (tasks.read_order, result % (b"{}," * PARTS), tasks.PART_BYTES)
    made["setup"] = (tasks.check_setup, b'{"a":{%s}}' % keys, tasks.PART_BYTES)
    return made


def _memory(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def taken(parse: Callable[[bytes], Any], body: bytes) -> int:
    """Bytes that this process takes more at its peak, the body among them."""
    before = _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    with contextlib.suppress(RisError):
        parse(body)
    return _memory("VmHWM") - before + len(body)


def in_a_child(parse: Callable[[bytes], Any], body: bytes) -> int:
    """The same, measured in a process of its own."""
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writes, str(taken(parse, body)).encode())
        os._exit(0)
    os.close(writes)
    with os.fdopen(reads, "rb") as pipe:
        found = int(pipe.read())
    os.waitpid(child, 0)
    return found


def main() -> None:
    for parse in (_segment, tasks.read_order, tasks.check_setup):  # what is imported late
        with contextlib.suppress(RisError):
            parse(b'{"label_config":"x","tasks":[],"expression":[1]}')
    found = {}
    for name, (parse, body, part_bytes) in bodies().items():
        booked = json_bytes(body) if part_bytes is None else json_bytes(body, part_bytes)
        found[name] = [len(body), in_a_child(parse, body), booked]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
