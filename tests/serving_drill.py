"""Servers and batches whose processes are killed or whose engines are sick: what is lost and heals.

    python tests/serving_drill.py triton BUNDLE    # in the environment of make test-serving
    python tests/serving_drill.py memory BUNDLE    # in the same: the most hostile requests
    python tests/serving_drill.py batch BUNDLE     # in the environment of make test

Prints tables, and ends with 1 where an answer was lost or differs, or where nothing healed.
`make serving-drill` runs all three.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from serving_helpers import free_ports, picture_bytes

COMMANDS = Path(sys.executable).parent
CLIENTS = 8
SECONDS = 300  # until a server has healed
# the written model, with an engine that fails while a file is there
SICK = """
from pathlib import Path
from ris.serving.triton.backend import TritonPythonModel as Honest

class TritonPythonModel(Honest):
    def initialize(self, args):
        super().initialize(args)
        model = self._answerer.model

        def sickened(honest):
            def call(*arguments, **more):
                if Path({flag!r}).exists():
                    raise RuntimeError("CUDA error: device lost")
                return honest(*arguments, **more)
            return call

        model.encode_image, model._ask = sickened(model.encode_image), sickened(model._ask)
"""


class Served:
    """`ris-serve start`, started again whenever it ends, as a supervisor does."""

    def __init__(self, folder: Path, bundle: Path, options: list[str]) -> None:
        self.folder = folder
        self.flag = folder / "sick"
        self.http, self.grpc, self.metrics = free_ports(3)
        models = folder / "models"
        write = [COMMANDS / "ris-serve", "triton", bundle, "--out", models, *options]
        subprocess.run([str(word) for word in write], check=True, stdout=subprocess.DEVNULL)
        (models / "ris" / "1" / "model.py").write_text(SICK.format(flag=str(self.flag)))
        ports = [f"--http-port={self.http}", f"--grpc-port={self.grpc}"]
        ports += [f"--metrics-port={self.metrics}"]
        self._command = [str(COMMANDS / "ris-serve"), "start", str(models), *ports]
        self.ends: list[int] = []
        self._stop = threading.Event()
        self._log = (folder / "log").open("w")
        self._thread = threading.Thread(target=self._supervise)
        self.process: subprocess.Popen[bytes] | None = None

    def _supervise(self) -> None:
        while not self._stop.is_set():
            self.process = subprocess.Popen(self._command, stdout=self._log, stderr=self._log)
            while self.process.poll() is None and not self._stop.wait(0.1):
                pass
            if self._stop.is_set():
                self.process.terminate()
                self.process.wait(60)
                return
            self.ends.append(self.process.returncode)
            self.flag.unlink(missing_ok=True)

    def __enter__(self) -> Served:
        self._thread.start()
        wait_until(self.is_ready)
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()
        self._log.close()

    def is_ready(self) -> bool:
        with suppress(OSError):
            url = f"http://127.0.0.1:{self.http}/v2/health/ready"
            with urllib.request.urlopen(url, timeout=10) as found:
                return bool(found.status == 200)
        return False

    def processes(self) -> dict[str, psutil.Process]:
        """ris-serve, tritonserver and its instance."""
        assert self.process is not None
        command = psutil.Process(self.process.pid)
        [server] = command.children()
        [instance] = server.children()
        return {"ris-serve": command, "tritonserver": server, "instance": instance}


def wait_until(condition: Callable[[], bool], seconds: float = SECONDS) -> float:
    begin = time.monotonic()
    while not condition():
        if time.monotonic() - begin > seconds:
            raise SystemExit("it did not heal")
        time.sleep(0.05)
    return time.monotonic() - begin


def asking(http: int) -> Callable[..., dict[str, np.ndarray]]:
    """A client over HTTP."""
    import tritonclient.http as triton

    client = triton.InferenceServerClient(f"127.0.0.1:{http}", network_timeout=600.0)

    def ask(image: bytes, texts: list[str], names: list[str]) -> dict[str, np.ndarray]:
        inputs = []
        for name, values in (("image", [image]), ("expression", [t.encode() for t in texts])):
            inputs.append(triton.InferInput(name, [1, len(values)], "BYTES"))
            inputs[-1].set_data_from_numpy(np.array([values], np.object_))
        outputs = [triton.InferRequestedOutput(name) for name in names]
        found = client.infer("ris", inputs, outputs=outputs)
        return {name: found.as_numpy(name) for name in names}

    return ask


class Load:
    """Clients that ask until they are told to stop, and ask again what has failed."""

    def __init__(self, http: int) -> None:
        self.images = [picture_bytes(seed, 320, 240) for seed in range(16)]
        ask = asking(http)
        self._right = [self._counts(ask, image) for image in self.images]
        self._http, self._stop = http, threading.Event()
        self._threads = [threading.Thread(target=self._work, args=(i,)) for i in range(CLIENTS)]
        self.tally: Counter[str] = Counter()

    @staticmethod
    def _counts(ask: Callable[..., dict[str, np.ndarray]], image: bytes) -> list[bytes]:
        return list(ask(image, ["left man", "the dog"], ["rle_counts"])["rle_counts"][0])

    def _work(self, number: int) -> None:
        ask = asking(self._http)
        while not self._stop.is_set():
            number = (number + 5) % len(self.images)
            while True:
                try:
                    found = self._counts(ask, self.images[number])
                except Exception:  # refused, or cut off
                    self.tally["told"] += 1
                    time.sleep(0.1)
                    if self._stop.is_set():
                        return
                else:
                    self.tally["right" if found == self._right[number] else "wrong"] += 1
                    break

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def under_load(served: Served, name: str, strike: Callable[[], object]) -> list[str]:
    """Strikes under load, and waits until the server has healed. Returns a row."""
    ends = len(served.ends)
    with Load(served.http) as load:
        wait_until(lambda: load.tally["right"] > 40)
        before = {process.pid for process in served.processes().values()}
        strike()
        seen = wait_until(lambda: not served.is_ready())
        healed = wait_until(served.is_ready)
        left = sum(psutil.pid_exists(pid) for pid in before)
        right = load.tally["right"]
        wait_until(lambda: load.tally["right"] > right + 40)
    code = served.ends[ends]
    told = f"{load.tally['told']} times, then answered"
    if load.tally["wrong"] or code == 0 or left:
        raise SystemExit(f"{name}: {dict(load.tally)}, code {code}, {left} processes left")
    return [name, f"{seen:.1f}", f"exit code {code}", f"{healed:.1f}", told, "0"]


def triton(bundle: Path) -> None:
    """Kills each of the processes, makes the engine sick, and sends what crashes tritonserver."""
    options = ["--engine", "onnxruntime", "--threads", "1"]
    rows, regions = [], shared_regions()
    with tempfile.TemporaryDirectory() as folder, Served(Path(folder), bundle, options) as served:
        for name in ("instance", "tritonserver", "ris-serve"):

            def kill(name: str = name) -> None:
                served.processes()[name].kill()

            rows.append(under_load(served, f"{name}, killed (-9)", kill))
        rows.append(under_load(served, "engine that fails at everything", served.flag.touch))

        with Load(served.http) as load:
            refused = Counter(brackets(served.http) for _ in range(20))
            wait_until(lambda: load.tally["right"] > 40)
        if load.tally["wrong"] or load.tally["told"] or set(refused) != {400}:
            raise SystemExit(f"brackets: {dict(load.tally)}, {dict(refused)}")
        rows.append(["150 kB of nested brackets, 20 times", "–", "goes on", "–", "never", "0"])
    wait_until(lambda: shared_regions() <= regions, 60)  # memory that nobody would give back
    columns = ["what happened", "not ready after s", "ris-serve", "ready again after s"]
    print(table([*columns, "clients were told to ask again", "wrong answers"], rows))


def shared_regions() -> set[str]:
    """The shared memory of our servers, by name."""
    return {path.name for path in Path("/dev/shm").glob("ris-triton-*")}


def brackets(http: int) -> int:
    """The status of a request that a bare tritonserver ends at."""
    url = f"http://127.0.0.1:{http}/v2/models/ris/infer"
    try:
        urllib.request.urlopen(urllib.request.Request(url, data=b"[" * 150_000), timeout=60)
    except urllib.error.HTTPError as error:
        return error.code
    return 200


def flat_picture(width: int, height: int) -> bytes:
    """A PNG file of few bytes and many pixels."""
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(buffer, "PNG")
    return buffer.getvalue()


HOSTILE: dict[str, tuple[Callable[[int], bytes], int, list[str]]] = {
    "50 megapixels, 32 expressions, masks too (refused)": (
        lambda number: flat_picture(10_000, 5_000 - number),
        32,
        ["mask"],
    ),
    "50 megapixels, 8 expressions, run lengths": (
        lambda number: flat_picture(10_000, 5_000 - number),
        8,
        ["rle_counts"],
    ),
    "50 megapixels, a mask": (lambda number: flat_picture(10_000, 5_000 - number), 1, ["mask"]),
    "files of 32 MB": (
        lambda number: flat_picture(100, 100 + number) + bytes(31_990_000),
        32,
        ["rle_counts"],
    ),
}
"""An image by the number of the client, how many expressions, and the outputs."""


def memory(bundle: Path) -> None:
    """The most memory of all processes together while 80 clients ask the worst that is allowed.

    All limits are the usual ones, but for the seconds: those that wait longer are told so.
    """
    rows = []
    for name, (image_of, count, names) in HOSTILE.items():
        options = ["--engine", "onnxruntime", "--max-seconds", "15"]
        with tempfile.TemporaryDirectory() as folder, Served(Path(folder), bundle, options) as here:
            with measured(here.process.pid) as seen:
                time.sleep(1)
                base = seen[0]
                said = hostile(here.http, image_of, count, names)
            alive = here.is_ready() and not here.ends
        said_in_words = ", ".join(f"{times} {word}" for word, times in sorted(said.items()))
        rows.append([name, said_in_words, f"{base / 1e6:.0f}", f"{max(seen) / 1e6:.0f}"])
        if not alive:
            raise SystemExit(f"{name}: the server died")
        print(rows[-1], flush=True)
    print(table(["80 clients at once ask", "they get", "MB before", "MB at most"], rows))


def hostile(
    http: int, image_of: Callable[[int], bytes], count: int, names: list[str]
) -> Counter[str]:
    """80 clients ask once; how many were answered and what the others were told."""
    said: Counter[str] = Counter()
    images = [image_of(number) for number in range(8)]

    def work(number: int) -> None:
        texts = [f"thing {number} {i}" for i in range(count)]
        try:
            asking(http)(images[number % len(images)], texts, names)
            said["answers"] += 1
        except Exception as error:
            said[str(error).split(":")[0].split("] ")[-1]] += 1

    threads = [threading.Thread(target=work, args=(number,)) for number in range(80)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return said


@contextmanager
def measured(pid: int):
    """Samples the memory of a process and all below it, in bytes; shared pages count once."""
    seen, stop = [all_of(pid)], threading.Event()

    def sample() -> None:
        while not stop.wait(0.05):
            seen.append(all_of(pid))

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()


def all_of(pid: int) -> int:
    """The proportional set size of a process and all below it."""
    total = 0
    with suppress(psutil.Error):
        top = psutil.Process(pid)
        for process in [top, *top.children(recursive=True)]:
            with suppress(OSError, ValueError):
                text = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
                total += 1024 * int(text.split("\nPss:")[1].split()[0])
    return total


def batch(bundle: Path) -> None:
    """Kills a worker and the driver, and has engines that are sick, for a while or at one image."""
    import batch_drill

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        found = batch_drill.drill(bundle, Path(folder), 2000, 2, 40)
        said = f"{found['errors']} errors, of broken images"
        rows.append(["a worker, then the driver, killed (-9)", f"{found['rows']} once", said, "0"])
    for name, sick, errors in (
        ("an engine that fails at everything in its first three processes", "at first", 0),
        ("an engine that fails at one image, wherever it is tried", "at 3.png", 1),
        ("the same, and its device is lost by it", "at 3.png, lost", 1),
        ("an engine that never comes back from one image", "hangs at 3.png", 1),
        ("an engine that fails at everything for ever", "for ever", 0),
    ):
        with tempfile.TemporaryDirectory() as folder:
            report = sick_batch(bundle, Path(folder), sick)
        whole = sick != "for ever"
        expected = {"rows": 12 * whole, "errors": errors * whole, "open_parts": 0 if whole else 6}
        if {key: report[key] for key in expected} != expected:
            raise SystemExit(f"{name}: {report}")
        said = f"{report['errors']} errors" + (", of that image" if errors else "")
        rows.append([name, f"{report['rows']} once", said, str(report["open_parts"])])
    print(table(["what happened", "rows", "rows with an error", "parts that stay open"], rows))


def sick_batch(bundle: Path, folder: Path, sick: str) -> dict[str, int]:
    """A batch of twelve images in six parts, by a worker whose engine is sick."""
    source = folder / "in"
    source.mkdir()
    for number in range(12):
        (source / f"{number}.png").write_bytes(picture_bytes(number))
    program = f"import serving_drill; serving_drill.run_sick({str(folder)!r}, {sick!r})"
    arguments = [str(source), "-e", "left man", "--bundle", str(bundle), "--part-rows", "2"]
    arguments += ["--max-seconds", "10"]
    arguments += [
        "--engine",
        "onnxruntime",
        "--threads",
        "1",
        "--out",
        str(folder / "out"),
        "--json",
    ]
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        text=True,
        timeout=600,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        raise SystemExit(done.stderr)
    found: dict[str, int] = json.loads(lines[0])
    return found


def run_sick(folder: str, sick: str) -> None:
    """`ris-batch` with workers that `sicken` has made."""
    import ray

    import ris.serving.batch.run as batch_run
    from ris.serving.batch.command import main as command

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    batch_run.Worker = sicken(batch_run.Worker, Path(folder), sick)
    command()


def sicken(honest: type, folder: Path, sick: str) -> type:
    """A worker whose engine fails as `sick` says; a file for each process counts those."""

    class Sick(honest):  # type: ignore[misc]
        def __init__(self, *given, **options) -> None:
            super().__init__(*given, **options)
            (folder / f"process-{os.getpid()}").touch()
            number = len(list(folder.glob("process-*")))
            lost = sick == "for ever" or (sick == "at first" and number <= 3)
            model, encode, take = self._model, self._model.encode_image, self._ahead.take
            state = {"lost": lost, "at": ""}

            def taking(location):
                found = take(location)
                state["at"] = Path(location.file).name
                return found

            def encoding(pixels):
                at, state["at"] = state["at"], ""
                while sick.startswith("hangs") and at and at in sick:
                    time.sleep(600)
                bad = sick.startswith("at ") and at and at in sick
                state["lost"] = state["lost"] or (bad and sick.endswith("lost"))
                if bad or state["lost"]:
                    raise RuntimeError("CUDA error: device lost")
                return encode(pixels)

            model.encode_image, self._ahead.take = encoding, taking

    return Sick


def table(columns: list[str], rows: list[list[str]]) -> str:
    """Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["triton", "memory", "batch"])
    parser.add_argument("bundle", type=Path)
    args = parser.parse_args()
    {"triton": triton, "memory": memory, "batch": batch}[args.what](args.bundle.absolute())


if __name__ == "__main__":
    main()
