"""Pictures, ports and processes for the serving tests."""

from __future__ import annotations

import io
import socket
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image


def picture_bytes(seed: int, width: int = 96, height: int = 64, kind: str = "PNG") -> bytes:
    """An image file of smooth noise."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    small.resize((width, height), Image.Resampling.BICUBIC).save(buffer, kind)
    return buffer.getvalue()


def pictures_in(folder: Path) -> Path:
    """The folder, made, with six pictures in it: 0.png to 5.png."""
    folder.mkdir()
    for i in range(6):
        (folder / f"{i}.png").write_bytes(picture_bytes(i))
    return folder


def shard_bytes() -> bytes:
    """A web-dataset shard of one picture and its text."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in [("0.jpg", picture_bytes(1)), ("0.txt", b"the dog")]:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def table_bytes() -> bytes:
    """A Parquet table of one picture and its expression."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(pa.table({"image": [picture_bytes(2)], "expression": ["a tree"]}), buffer)
    return buffer.getvalue()


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
