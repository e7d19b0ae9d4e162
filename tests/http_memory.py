"""What hostile requests make `ris-serve http` take, beside the ceiling that it computes.

    python tests/http_memory.py ris-bundle

Everything is as large as the limits allow, from many clients at once: pictures in the formats that
take most to decode, masks in every form, JSON with base64, tiny texts by the million,
answers that nobody fetches.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import socket
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from http_helper import Client, Process, form

WIDTH, HEIGHT = 8000, 6250  # 50 megapixels
TEXTS = [f"the thing {number}" for number in range(8)]  # masks of so many are kept at once


def pictures(kinds):
    """Files of 50 megapixels whose decoding takes most."""
    row = np.random.default_rng(0).integers(0, 256, (1, WIDTH, 3), dtype=np.uint8)
    colours = np.broadcast_to(row, (HEIGHT, WIDTH, 3))
    turned = Image.Exif()
    turned[0x112] = 6
    made = {
        "WEBP": (lambda: Image.fromarray(colours), {"method": 0}),
        "PNG": (lambda: Image.fromarray(colours).convert("RGBA"), {"compress_level": 1}),
        "TIFF": (
            lambda: Image.fromarray(np.zeros((HEIGHT, WIDTH), np.float32)),
            {"compression": "tiff_lzw"},
        ),
        "JPEG": (lambda: Image.fromarray(colours), {"quality": 30, "progressive": True}),
    }
    for kind in kinds:
        image, options = made[kind]
        buffer = io.BytesIO()
        image().save(buffer, kind, exif=turned, **options)
        yield kind, buffer.getvalue()


class Watch:
    """The most memory that the server had, sampled."""

    def __init__(self, pid):
        self._process, self.most = psutil.Process(pid), 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()

    def _look(self):
        while not self._stop.wait(0.01):
            self.most = max(self.most, self._process.memory_info().rss)

    def stop(self):
        self._stop.set()
        self._thread.join()


def hostile(port, files):
    """Functions that each send one request, and return its status or what broke."""
    forms = (["rle"], ["polygons", "coco"], ["png"], ["rle", "png"])
    for (kind, data), answer in zip(files, forms, strict=False):
        yield (
            f"50 megapixels, {kind}",
            lambda d=data, a=answer: Client(port).segment(d, TEXTS, answer=a),
        )
    encoded = base64.b64encode(b"x" * 31_000_000).decode()
    yield "JSON of 41 MB", lambda: Client(port).segment_json(image=encoded, expression=TEXTS)
    small = b'{"expression": [' + b'"ab",' * 8_000_000 + b'""]}'
    yield (
        "8 million texts",
        lambda: Client(port).ask("POST", "/v1/segment", small, Content_Type="application/json"),
    )
    yield "a file of 31 MB", lambda: Client(port).segment(b"x" * 31_000_000, TEXTS)
    line = io.BytesIO()
    Image.new("L", (65_535, 760)).save(line, "PNG")
    yield "a wide picture", lambda: Client(port).segment(line.getvalue(), TEXTS)


def never_fetched(port, image, count):
    """Asks for long answers, and does not read them."""
    held = []
    body, kind = form(image, TEXTS, answer=["rle", "polygons", "coco", "png"])
    head = f"POST /v1/segment HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\n"
    for _ in range(count):
        raw = socket.create_connection(("127.0.0.1", port))
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        held.append(raw)
    return held


def attempt(send):
    try:
        return str(send().status)
    except OSError as error:
        return type(error).__name__


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--kinds", nargs="*", default=["WEBP", "PNG", "TIFF", "JPEG"])
    given = parser.parse_args()
    files = list(pictures(given.kinds))
    print({kind: f"{len(data) / 1e6:.1f} MB" for kind, data in files})
    with (
        tempfile.TemporaryDirectory() as folder,
        Process(given.bundle, Path(folder) / "log", "--max-seconds", "300") as server,
    ):
        port = server.port
        ceiling = next(e for e in server.events if e["event"] == "serving")["memory_ceiling_mb"]
        # what the engine itself takes for 32 expressions is no part of the ceiling
        Client(port).segment(small_picture(), TEXTS)
        before = psutil.Process(server.process.pid).memory_info().rss
        watch, began = Watch(server.process.pid), time.monotonic()
        sends = [one for _ in range(given.rounds) for one in hostile(port, files)]
        left = never_fetched(port, small_picture(), 8)
        with ThreadPoolExecutor(given.clients) as pool:
            found = list(pool.map(lambda one: (one[0], attempt(one[1])), sends))
        for raw in left:
            raw.close()
        watch.stop()
        well = Client(port).segment(small_picture(), TEXTS[:2]).status
    counted: dict[str, Counter] = {}
    for name, status in found:
        counted.setdefault(name, Counter())[status] += 1
    for name, statuses in counted.items():
        print(f"  {name}: {dict(statuses)}")
    took = (watch.most - before) / 1e6
    report = {
        "before_mb": round(before / 1e6),
        "most_mb": round(watch.most / 1e6),
        "requests_took_mb": round(took),
        "ceiling_mb": ceiling,
        "seconds": round(time.monotonic() - began),
        "after": well,
    }
    print(json.dumps(report))
    if took > ceiling or well != 200:
        raise SystemExit("above the ceiling")


def small_picture():
    buffer = io.BytesIO()
    Image.effect_noise((1200, 900), 90).convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()


if __name__ == "__main__":
    main()
