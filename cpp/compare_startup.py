"""Start-up, first mask and memory of libris beside the Python runtime: the same bundle, picture,
engine and threads.

    .venv/bin/python cpp/compare_startup.py ris-bundle --build build/cpp

Each run is a process of its own; the two take turns, so that a busy machine is busy for both. Times
count from before the process starts. Prints medians, and the ratio of libris to Python.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

CHILD = """
import json, sys, time
import numpy as np
from PIL import Image
from ris.runtime import load
bundle, picture, expression, threads = sys.argv[1:]
model = load(bundle, engine="onnxruntime", threads=int(threads))
opened = time.monotonic()
rgb = np.asarray(Image.open(picture))
read = time.monotonic()
mask = model.encode_image(rgb).segment(expression).mask
asked = time.monotonic()
print(json.dumps({"opened": opened, "read": read, "asked": asked, "inside": int(mask.sum())}))
"""


def run(command: list[str]) -> dict[str, float]:
    """One process: seconds to the opened bundle and to the first mask, and peak memory in MB."""
    start = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    text = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"{command[0]} failed")
    said = json.loads(text)
    return {
        "start-up, seconds": said["opened"] - start,
        "first mask after it, seconds": said["asked"] - said["read"],
        "first mask from the start, seconds": said["asked"] - start,
        "peak memory, MB": usage.ru_maxrss / 1024,
        "inside": said["inside"],
    }


def main() -> None:
    """Runs both in turns and prints the medians."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument(
        "--build", type=Path, default=Path("build/cpp"), help="a build with -DRIS_BUILD_TESTS=ON"
    )
    parser.add_argument("--picture", type=Path, default=Path("examples/park.jpg"))
    parser.add_argument("--expression", default="left man")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print the medians as JSON")
    options = parser.parse_args()
    program = options.build / "tests" / "ris-first-mask"
    if not program.is_file():
        parser.error(f"{program} is not there; build it with make cpp")
    if options.runs < 1:
        parser.error("--runs should be at least 1")
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / "picture.ppm"
        Image.open(options.picture).convert("RGB").save(picture)
        arguments = [str(options.bundle), str(picture), options.expression, str(options.threads)]
        commands = {
            "libris": [str(program), *arguments],
            "Python": [sys.executable, "-c", CHILD, *arguments],
        }
        seen: dict[str, list[dict[str, float]]] = {name: [] for name in commands}
        for number in range(options.runs + 1):  # the first fills the disk's cache
            for name, command in commands.items():
                found = run(command)
                if number:
                    seen[name].append(found)
    medians = {
        name: {key: statistics.median(one[key] for one in runs) for key in runs[0]}
        for name, runs in seen.items()
    }
    inside = {name: found.pop("inside") for name, found in medians.items()}
    if options.json:
        print(json.dumps(medians, indent=2))
        return
    print(f"medians of {options.runs} runs, {options.threads} threads; pixels inside: {inside}")
    print(f"{'':38}{'libris':>10}{'Python':>10}{'ratio':>8}")
    for key, mine in medians["libris"].items():
        theirs = medians["Python"][key]
        print(f"{key:38}{mine:10.3f}{theirs:10.3f}{mine / theirs:8.2f}")


if __name__ == "__main__":
    main()
