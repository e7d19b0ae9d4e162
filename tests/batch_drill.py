"""A batch under fire: broken images, a worker killed, then the driver, then the batch goes on.

    python tests/batch_drill.py BUNDLE --rows 20000 --workers 2

Prints what it found and ends with an error where a row is missing, twice, or wrongly failed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pyarrow.parquet as pq

from serving_helpers import picture_bytes

PER_IMAGE = 4  # rows
EVERY = 100  # one image in so many is broken


def write_input(folder: Path, rows: int) -> tuple[Path, set[int]]:
    """Writes images and a JSONL file; returns the file and the rows whose image is broken."""
    (folder / "images").mkdir(parents=True)
    expressions = ["left man", "the dog", "a red car", "the tall tree on the right"]
    broken: set[int] = set()
    path = folder / "rows.jsonl"
    with path.open("w") as file:
        for row in range(rows):
            image = row // PER_IMAGE
            name = f"images/{image}.png"
            is_broken = image % EVERY == 7
            if row % PER_IMAGE == 0:
                data = picture_bytes(image)
                (folder / name).write_bytes(data[: len(data) // 2] if is_broken else data)
            if is_broken:
                broken.add(row)
            line = {"image": name, "expression": expressions[row % PER_IMAGE]}
            file.write(json.dumps(line) + "\n")
    return path, broken


def start(arguments: list[str]) -> subprocess.Popen[bytes]:
    program = Path(sys.executable).parent / "ris-batch"
    return subprocess.Popen([program, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def parts_in(out: Path) -> int:
    return len(list(out.glob("part-*.parquet")))


def wait_for_parts(out: Path, count: int, process: subprocess.Popen[bytes], seconds: float) -> None:
    end = time.monotonic() + seconds
    while parts_in(out) < count:
        if process.poll() is not None:
            raise SystemExit(f"ris-batch ended early:\n{process.communicate()[0].decode()}")
        if time.monotonic() > end:
            process.kill()
            raise SystemExit(f"{count} parts were not there after {seconds} s")
        time.sleep(0.05)


def workers_of(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The actors' processes below a driver."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if any("MapWorker" in part for part in child.cmdline()):
                found.append(child)
        except psutil.Error:
            continue  # ended meanwhile
    return found


def drill(
    bundle: Path, folder: Path, rows: int, workers: int, part_rows: int, seconds: float = 900
) -> dict[str, int]:
    """Runs it all and returns what it found.

    Args:
        bundle: The model.
        folder: For input and answers.
        rows: Rows of the batch.
        workers: Workers that run at once.
        part_rows: Rows of one file.
        seconds: The most that one step may take.

    Raises:
        AssertionError: Where a row is missing, twice, or wrongly failed.
    """
    source, broken = write_input(folder, rows)
    out = folder / "out"
    arguments = [str(source), "--bundle", str(bundle), "--out", str(out)]
    arguments += ["--workers", str(workers), "--threads", "1", "--engine", "onnxruntime"]
    arguments += ["--part-rows", str(part_rows)]
    parts = -(-rows // part_rows)

    kill_worker_and_driver(arguments, out, parts, seconds)
    at_kill = parts_in(out)
    assert at_kill < parts, "the driver was done before it was killed; use more rows"

    second = start(arguments)
    said = second.communicate(timeout=seconds)[0].decode()
    assert second.returncode == (2 if broken else 0), said
    assert "parts are done already" in said
    check(out, rows, broken)
    return {
        "rows": rows,
        "errors": len(broken),
        "parts": parts,
        "parts_when_the_driver_was_killed": at_kill,
    }


def kill_worker_and_driver(arguments: list[str], out: Path, parts: int, seconds: float) -> None:
    """Starts the batch, kills a worker after an eighth of the parts, the driver after half."""
    driver = start(arguments)
    wait_for_parts(out, max(1, parts // 8), driver, seconds)
    os.kill(workers_of(driver)[0].pid, signal.SIGKILL)

    before = parts_in(out)
    wait_for_parts(out, max(before + 1, parts // 2), driver, seconds)
    driver.kill()
    driver.wait()


def check(out: Path, rows: int, broken: set[int]) -> None:
    """Every row is there once, and those with a broken image, and no others, have an error."""
    left = {path.name.split("-")[0] for path in out.iterdir()}
    assert left == {"_plan", "part"}, f"something is left behind: {left}"

    table = pq.read_table(out, columns=["row", "error", "rle"]).sort_by("row")
    assert table["row"].to_pylist() == list(range(rows)), "a row is missing or there twice"

    said = table["error"].to_pylist()
    errors = {row for row, error in enumerate(said) if error}
    assert errors == broken, f"{len(errors)} rows have errors, {len(broken)} are broken"
    assert all("can be read" in error or "damaged" in error for error in said if error)

    masks = table["rle"].to_pylist()
    assert all((mask is None) == (row in broken) for row, mask in enumerate(masks))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--part-rows", type=int, default=256)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bundle = args.bundle.absolute()
        found = drill(bundle, Path(folder), args.rows, args.workers, args.part_rows, 36_000)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
