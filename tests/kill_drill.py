"""Commands killed (-9) at random moments: what was there before stays whole, and the same goes on.

    python tests/kill_drill.py --kills 100

Each job begins with something that it must not lose. It is killed several times at moments drawn
over its whole duration, checked after each, then left to end and compared with a run that nobody
killed. Prints a table, and ends with 1 where something was lost.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil

from serving_helpers import picture_bytes

KILLS_IN_A_ROW = 5
HERE = Path(__file__).resolve()
COMMANDS = Path(sys.executable).parent


class LostError(Exception):
    """Something that must survive a kill did not."""


@dataclass
class Job:
    """A command, what must survive its death, and what it must end with."""

    name: str
    """For the table."""

    command: list[str]
    """What is started, killed and started again."""

    prepare: Callable[[], None]
    """Brings the folder into the state before the first start."""

    survives: Callable[[], object]
    """Checks what was there before, raising LostError; what it returns must never shrink."""

    result: Callable[[], str]
    """A digest of what the command leaves when it ends well."""

    seconds: float = 0.0
    """What it takes undisturbed."""

    expected: str = ""
    """`result` of the undisturbed run."""

    kills: int = 0
    """How often it was killed."""

    ends: int = 0
    """How often it was left to end, and ended as it should."""

    ended_first: int = 0
    """How often it had ended before it was to be killed."""

    lost: list[str] = field(default_factory=list)
    """What went wrong, a sentence each."""


def digest(files: dict[str, bytes]) -> str:
    """One hash of files by name."""
    found = hashlib.sha256()
    for name, data in sorted(files.items()):
        found.update(f"{name}\0{len(data)}\0".encode() + data)
    return found.hexdigest()


def start(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    """Starts a command of this environment, its output going to a file."""
    program = COMMANDS / command[0]
    with log.open("wb") as output:
        return subprocess.Popen([program, *command[1:]], stdout=output, stderr=output)


def kill_tree(process: subprocess.Popen[bytes]) -> None:
    """Kills a process and all that it started, at once, as a machine does that loses power."""
    try:
        below = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        below = []
    process.send_signal(signal.SIGKILL)
    for child in below:
        try:
            child.kill()
        except psutil.NoSuchProcess:
            continue
    process.wait()
    psutil.wait_procs(below, timeout=20)


def run_whole(job: Job, log: Path) -> float:
    """Runs the command to its end; returns the seconds. Raises LostError where it fails."""
    begin = time.monotonic()
    process = start(job.command, log)
    if process.wait(timeout=1800) != 0:
        said = log.read_text(errors="replace").strip().splitlines()[-3:]
        raise LostError(f"the command fails: {' '.join(said)}")
    return time.monotonic() - begin


def kill_once(job: Job, moment: float, log: Path) -> bool:
    """Starts the command and kills it after `moment` seconds; False where it had ended."""
    process = start(job.command, log)
    try:
        code = process.wait(timeout=moment)
    except subprocess.TimeoutExpired:
        kill_tree(process)
        return True
    if code != 0:
        said = log.read_text(errors="replace").strip().splitlines()[-3:]
        raise LostError(f"it did not go on: {' '.join(said)}")
    return False


def drill(job: Job, kills: int, chance: random.Random, log: Path) -> None:
    """Kills the job so often, in rows, and lets it end after each row."""
    job.prepare()
    job.seconds = run_whole(job, log)
    job.expected = job.result()
    while job.kills < kills and not job.lost:
        job.prepare()
        before = job.survives()
        try:
            for _ in range(min(KILLS_IN_A_ROW, kills - job.kills)):
                if kill_once(job, chance.uniform(0, job.seconds), log):
                    job.kills += 1
                else:
                    job.ended_first += 1
                before = _not_less(before, job.survives())
            run_whole(job, log)
            _not_less(before, job.survives())
            if job.result() != job.expected:
                raise LostError("it ended with something else than the run that nobody killed")
            job.ends += 1
        except LostError as error:
            job.lost.append(str(error))


def _not_less(before: object, after: object) -> object:
    if isinstance(before, dict) and isinstance(after, dict):
        for name, data in before.items():
            if after.get(name) != data:
                raise LostError(f"{name} was there and is changed or gone")
    elif isinstance(before, int) and isinstance(after, int) and after < before:
        raise LostError(f"there were {before}, there are {after}")
    return after


def bundle_is_one_of(out: Path, *known: str) -> None:
    """Raises LostError where the folder is no whole bundle, or none of those known."""
    from ris.engines.errors import RisError
    from ris.runtime.bundle import MANIFEST, open_bundle

    try:
        open_bundle(out)
    except RisError as error:
        raise LostError(f"the bundle is not whole: {error}") from None
    found = hashlib.sha256((out / MANIFEST).read_bytes()).hexdigest()
    if known and found not in known:
        raise LostError(f"{out} is neither the old bundle nor the new one")


def manifest_of(bundle: Path) -> str:
    return hashlib.sha256((bundle / "manifest.json").read_bytes()).hexdigest()


def copy_anew(source: Path, target: Path) -> None:
    """The folder `target` becomes a copy of `source`, and its hidden siblings go."""
    for old in [target, *target.parent.glob(f".{target.name}.*")]:
        if old.is_dir():
            shutil.rmtree(old)
        else:
            old.unlink(missing_ok=True)
    shutil.copytree(source, target)


def no_leftovers(target: Path) -> None:
    """Raises LostError where a command that ended left hidden siblings of its target."""
    left = [p.name for p in target.parent.glob(f".{target.name}.*")]
    if left:
        raise LostError(f"left behind beside {target.name}: {', '.join(left)}")


def export_job(folder: Path) -> Job:
    """`ris-export --force` over a bundle of another model."""
    before, out = folder / "export-before", folder / "export" / "bundle"
    one = ["ris-export", "--preset", "tiny", "--variant", "category", "--out", str(before)]
    subprocess.run([COMMANDS / one[0], *one[1:]], check=True, capture_output=True)
    known = [manifest_of(before)]

    def survives() -> object:
        bundle_is_one_of(out, *known) if len(known) > 1 else bundle_is_one_of(out)
        return None

    def result() -> str:
        no_leftovers(out)
        if len(known) == 1:
            known.append(manifest_of(out))
        return manifest_of(out)

    command = ["ris-export", "--preset", "tiny", "--out", str(out), "--force"]
    return Job("export", command, lambda: copy_anew(before, out), survives, result)


def compile_job(folder: Path, tiny: Path) -> Job:
    """`ris-compile` into a bundle that has other compiled graphs already."""
    before, out = folder / "compile-before", folder / "compile" / "bundle"
    shutil.copytree(tiny, before)
    base = ["ris-compile", "--engine", "openvino"]
    first = [*base, str(before), "--max-expressions", "1"]
    subprocess.run([COMMANDS / first[0], *first[1:]], check=True, capture_output=True)
    compiled = sorted(str(p.relative_to(before)) for p in (before / "engines").glob("*/*"))

    def survives() -> object:
        bundle_is_one_of(out, manifest_of(tiny))
        return {name: (out / name).read_bytes() for name in compiled if (out / name).exists()}

    def result() -> str:
        found = [COMMANDS / "ris-compile", str(out), "--engine", "openvino", "--no-build"]
        if subprocess.run(found, capture_output=True).returncode != 0:
            raise LostError("what was compiled is not found again")
        left = [p.name for p in (out / "engines").iterdir() if ".partial" in p.name]
        if left:
            raise LostError(f"left behind: {', '.join(left)}")
        folders = [p for p in (out / "engines").iterdir() if not p.name.startswith(".")]
        return f"{len(folders)} compiled graphs"

    command = [*base, str(out)]
    return Job("compile", command, lambda: copy_anew(before, out), survives, result)


def calibrate_job(folder: Path, tiny: Path) -> Job:
    """`ris-calibrate int8 --force` over an INT8 bundle that was calibrated otherwise."""
    before, out = folder / "int8-before", folder / "int8" / "bundle"
    base = ["ris-calibrate", "int8", str(tiny), "--samples", "16", "--max-iou-drop", "0.5"]
    first = [*base, "--calibrator", "minmax", "--quick", "--out", str(before)]
    subprocess.run([COMMANDS / first[0], *first[1:]], check=True, capture_output=True)
    known: list[str] = []

    def prepare() -> None:
        copy_anew(before, out)
        report = out.with_name(out.name + "-report")
        shutil.rmtree(report, ignore_errors=True)

    def survives() -> object:
        bundle_is_one_of(tiny)
        bundle_is_one_of(out, manifest_of(before), *known)
        return None

    def result() -> str:
        no_leftovers(out)
        if not known:
            known.append(manifest_of(out))
        return manifest_of(out)

    command = [*base, "--calibrator", "percentile", "--out", str(out), "--force"]
    return Job("calibrate", command, prepare, survives, result)


def evaluate_job(folder: Path) -> Job:
    """`ris-eval --out`: the images that were answered stay answered."""
    out = folder / "eval" / "results"

    def lines() -> list[bytes]:
        file = out / "results.jsonl"
        return file.read_bytes().splitlines(keepends=True) if file.exists() else []

    def survives() -> object:
        whole = [line for line in lines() if line.endswith(b"\n")]
        for line in whole:
            json.loads(line)
        return len(whole)

    command = ["ris-eval", "--data", "scenes", "--samples", "240", "--engine", "onnxruntime"]
    command += ["--threads", "1", "--out", str(out)]
    return Job(
        "evaluation",
        command,
        lambda: shutil.rmtree(out, ignore_errors=True),
        survives,
        lambda: digest({"results": b"".join(lines())}),
    )


def batch_job(folder: Path) -> Job:
    """`ris-batch`: parts that are done stay as they are."""
    source, out = folder / "batch" / "rows.jsonl", folder / "batch" / "out"
    source.parent.mkdir()
    rows = []
    for number in range(120):
        (source.parent / f"{number}.png").write_bytes(picture_bytes(number))
        rows.append(json.dumps({"image": f"{number}.png", "expression": ["left man", "the dog"]}))
    source.write_text("\n".join(rows) + "\n", encoding="utf-8")

    def parts() -> dict[str, bytes]:
        return {file.name: file.read_bytes() for file in out.glob("part-*.parquet")}

    def result() -> str:
        left = sorted(p.name for p in out.iterdir() if not p.name.startswith("part-"))
        if left != ["_plan"]:
            raise LostError(f"left behind: {', '.join(left)}")
        return digest(parts())

    command = ["ris-batch", str(source), "--out", str(out), "--part-rows", "8"]
    command += ["--engine", "onnxruntime", "--threads", "1"]
    return Job("batch", command, lambda: shutil.rmtree(out, ignore_errors=True), parts, result)


def train_job(folder: Path) -> Job:
    """A training run with a state after every third step; its steps never go back."""
    out = folder / "train" / "run"

    def survives() -> object:
        import torch

        found = sorted(out.glob("state-*.pt"))
        if not found:
            return 0
        try:
            return int(torch.load(found[-1], weights_only=True)["step"])
        except Exception as error:  # torch raises many kinds
            raise LostError(f"{found[-1]} cannot be read: {error}") from None

    def result() -> str:
        from safetensors.numpy import load_file

        # the tensors, as safetensors writes its metadata in any order
        weights = load_file(out / "model.safetensors")
        return digest({name: value.tobytes() for name, value in weights.items()})

    def prepare() -> None:
        shutil.rmtree(out, ignore_errors=True)

    command = ["python", str(HERE), "--train", str(out)]
    return Job("training", command, prepare, survives, result)


def train(out: Path) -> None:
    """The training job's own command: the tiny model on drawn scenes, 30 steps."""
    import torch

    from ris.reference.dfam.config import PRESETS
    from ris.reference.tokenizer import tokenizer_from
    from ris.training.initialise import fresh_model
    from ris.training.loop import Trainer
    from ris.training.options import HardwareOptions, RunOptions
    from ris.training.recipe import RECIPES
    from ris.training.samples import Sources
    from ris.training.scene_source import SceneSource

    torch.set_num_threads(1)
    tiny = PRESETS["tiny"]
    small = {"images": 2, "expressions": 2, "steps": 30, "warmup": 2, "lessons": 0, "parts": 1}
    recipe = replace(RECIPES["demo"], **small)
    source = SceneSource("train", tiny.sam.image_size, recipe.images, recipe.expressions)
    sources = Sources(source, source, validation_steps=1)
    run = Trainer(
        out,
        recipe,
        lambda: fresh_model(tiny, 0, recipe.objective),
        sources,
        tokenizer_from(None, tiny),
        HardwareOptions(workers=0),
        RunOptions(trackers=("csv",)),
    )
    run.resume()
    run.run(log_every=2, save_every=3, validate_every=10)


def main() -> None:
    """Runs the drill and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100, help="in all, shared by the jobs")
    parser.add_argument("--jobs", nargs="*", metavar="JOB", help="only these, in this order")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.train:
        train(args.train)
        return

    chance = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tiny = folder / "tiny"
        made = [COMMANDS / "ris-export", "--preset", "tiny", "--out", tiny]
        subprocess.run(made, check=True, capture_output=True)
        makers: dict[str, Callable[[], Job]] = {
            "export": lambda: export_job(folder),
            "compile": lambda: compile_job(folder, tiny),
            "calibrate": lambda: calibrate_job(folder, tiny),
            "evaluation": lambda: evaluate_job(folder),
            "batch": lambda: batch_job(folder),
            "training": lambda: train_job(folder),
        }
        chosen = [makers[job] for job in args.jobs or makers]
        shares = [args.kills // len(chosen)] * len(chosen)
        shares[0] += args.kills - sum(shares)

        jobs = []
        for make, kills in zip(chosen, shares, strict=True):
            job = make()
            drill(job, kills, chance, folder / "log")
            jobs.append(job)
            print(
                f"{job.name:11} {job.seconds:6.1f} s whole, {job.kills} kills"
                f" ({job.ended_first} ended before), {job.ends} times ended well"
                + (f"; LOST: {'; '.join(job.lost)}" if job.lost else ""),
                flush=True,
            )
    sys.exit(1 if any(job.lost for job in jobs) else 0)


if __name__ == "__main__":
    main()
