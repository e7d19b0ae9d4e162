"""What runs in a part's process: sections, a line of JSON each, printed as soon as they are there.

    python -m tests.gpu_check.worker KIND ARGUMENTS

A section that fails says so and the next one runs. What cannot run on this machine at all, such as
an engine that is not installed, is skipped.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

DOUBLE = bool(os.environ.get("RIS_GPU_CHECK_DOUBLE"))
EXPRESSIONS = ("left man", "second car from the right")
COUNTS = (1, 3) if DOUBLE else (1, 2, 4, 8)
WARM_UP = 1 if DOUBLE else 3  # rounds that compile, warm up and capture
_ON_HOST = "dense_embedding"  # a resize between two stages, which the host does


def say(section: str, **more: Any) -> None:
    """Prints a section."""
    print(json.dumps({"section": section, **more}, default=str), file=_ANSWERS, flush=True)


@contextlib.contextmanager
def guarded(section: str) -> Iterator[None]:
    """Whatever is raised in the block is the section's problem, and no more."""
    try:
        yield
    except Exception as error:
        text = str(error).strip().splitlines() or [""]
        say(section, problem=f"{type(error).__name__}: {text[0]}")


def machine() -> None:
    """The GPU, its driver, and the versions of everything that matters."""
    from ris.runtime import system

    found: dict[str, Any] = {}
    with guarded("machine"):
        gpus = system.gpus()
        found["GPU"] = "; ".join(
            f"{g.name}, driver {g.driver}, {g.memory} MiB, {g.compute_capability}"
            for g in gpus.found
        ) or (gpus.note or "none")
        cpu = system.cpu()
        found["processor"] = f"{cpu.model}, {cpu.usable} cores"
        found["system"] = ", ".join(system.operating_system().values())
        names = (*system.ENGINE_PACKAGES, *system.EXPORT_PACKAGES)
        versions = system.versions(names)
        found["versions"] = ", ".join(f"{name} {version}" for name, version in versions.items())
        say("machine", found=found)


def export(precision: str, out: str) -> None:
    """The demo with gathers, in one precision."""
    options = ["--precision", precision, "--grid-sample", "gather", "--out", out, "--force"]
    _command("export", "ris.export.command", options)


def calibrate(bundle: str, out: str) -> None:
    """The INT8 bundle of an FP32 one, quickly: its plans and times count here, not its masks."""
    pictures = [str(file) for file in sorted(Path("examples").glob("*.jpg"))[:3]]
    asked = ["-e", "left man", "-e", "the dog"]
    options = ["int8", bundle, "--out", out, "--quick", "--max-iou-drop", "0.2", *pictures, *asked]
    _command("calibrate", "ris.calibration.command", options)


def _command(section: str, module: str, options: list[str]) -> None:
    """One of our commands in a process of its own."""
    with guarded(section):
        if importlib.util.find_spec("torch") is None and section == "export":
            say(section, skipped="PyTorch is not installed")
            return
        code = f"from {module} import main; main()"
        done = subprocess.run(
            [sys.executable, "-c", code, *options], capture_output=True, text=True
        )
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            say(section, problem=f"exit code {done.returncode}: {last}")
        else:
            say(section, found={"out": options[-1]})


def engine(engine: str, bundle: str, runs: int, device: str) -> None:
    """Everything about one engine and one bundle."""
    from ris.engines import create, select
    from ris.engines.base import EngineOptions
    from ris.runtime import load, open_bundle
    from ris.runtime.compile import compile_bundle, require_fit

    with guarded("load"):
        row = select(engine)
        opened = open_bundle(bundle)
        try:
            require_fit(opened, row)
        except Exception as error:
            say("load", skipped=str(error))
            return
        if reason := row.missing() or row.lacks_cuda():
            say("load", skipped=reason)
            return
        # compiled in the background of nobody: the first load would do the same
        with guarded("plans"):
            compiled = compile_bundle(opened, row, create(engine, EngineOptions(device=device)))
            if any(graph.layers for graph in compiled.values()):
                rows = [{"graph": name, **graph.to_dict()} for name, graph in compiled.items()]
                say("plans", found=rows)

        for cuda_graphs in (True, False) if "cuda_graphs" in row.options else (True,):
            before = _memory_used()
            start = time.perf_counter()
            with load(bundle, engine=engine, device=device, cuda_graphs=cuda_graphs) as model:
                shown = cuda_graphs if "cuda_graphs" in row.options else None
                loaded = time.perf_counter() - start
                say("load", found={"seconds": loaded, "cuda_graphs": shown})
                _model(model, runs, shown, before)


def _model(model: Any, runs: int, cuda_graphs: bool | None, before: float | None) -> None:
    """The sections of an open model."""
    loaded = _memory_used()
    if cuda_graphs is not False:
        with guarded("parity"):
            say("parity", found=_parity(model))
    with guarded("time"):
        say("time", found={"cuda_graphs": cuda_graphs, **_time(model, runs)})
    with guarded("batch"):
        say("batch", found={"cuda_graphs": cuda_graphs, "each": _batch(model, runs)})
    with guarded("memory"):
        found = {"before": before, "loaded": loaded, "asked": _memory_used()}
        say("memory", found={"cuda_graphs": cuda_graphs, **found})
    with guarded("runs"):
        say("runs", found=_what_runs(model))
    if cuda_graphs is not False:
        with guarded("prompt"):
            # the host's seconds are what a bundle whose graph resizes could save
            times = _time(model, min(runs, 5))
            say("prompt", found={"host": times["prompt_on_host"], "device": "not measured"})


def _parity(model: Any) -> dict[str, Any]:
    from ris.runtime.parity import check_model, load_golden
    from ris.runtime.tolerance import END_TO_END

    report = check_model(model, load_golden(model.bundle))
    rows = {name: row.relative for name, row in report.rows.items()}
    alone = {name: value for name, value in rows.items() if not name.startswith("end_to_end")}
    worst = max(alone, key=lambda name: alone[name], default=None)
    return {
        "mask_iou": report.mask_iou,
        "mask_logits": rows.get(END_TO_END),
        "worst": f"{worst} {alone[worst]:.1e}" if worst else None,
        "failures": list(report.failures),
    }


def _picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (1024, 1024, 3), dtype=np.uint8)


def _categories(model: Any, count: int) -> dict[str, Any]:
    return {"categories": ["person"] * count} if model.bundle.manifest.categories else {}


def _time(model: Any, runs: int) -> dict[str, Any]:
    """Median milliseconds of a first mask, of a next expression, and of the stages."""
    picture, first, following, stages = _picture(), [], [], []
    for turn in range(runs + WARM_UP):
        start = time.perf_counter()
        scene = model.encode_image(picture, expressions=EXPRESSIONS[:1])
        answer = scene.segment_many(EXPRESSIONS[:1], **_categories(model, 1))[0]
        middle = time.perf_counter()
        scene.segment_many(EXPRESSIONS[1:], **_categories(model, 1))
        end = time.perf_counter()
        if turn >= WARM_UP:
            first.append(middle - start)
            following.append(end - middle)
            stages.append(answer.timings)
    names = {name for timings in stages for name in timings}
    each = {n: _ms([t.get(n, 0.0) for t in stages]) for n in sorted(names)}
    return {
        "first_mask": _ms(first),
        "next_expression": _ms(following),
        "stages": each,
        "prompt_on_host": next((ms for name, ms in each.items() if _ON_HOST in name), None),
    }


def _batch(model: Any, runs: int) -> dict[str, float]:
    """Median milliseconds for each of several expressions together."""
    scene, found = model.encode_image(_picture()), {}
    for count in COUNTS:
        asked = [f"{EXPRESSIONS[i % 2]} {i}" for i in range(count)]
        seconds = []
        for turn in range(-(-runs // 4) + WARM_UP):
            start = time.perf_counter()
            scene.segment_many(asked, **_categories(model, count))
            if turn >= WARM_UP:
                seconds.append((time.perf_counter() - start) / count)
        found[str(count)] = _ms(seconds)
    return found


def _ms(seconds: list[float]) -> float:
    return 1000 * statistics.median(seconds)


def _what_runs(model: Any) -> list[dict[str, Any]]:
    return [
        {
            "graph": stage,
            "precision": session.info.precision or model.bundle.manifest.graphs[stage].precision,
            "where": session.info.where,
            "notes": session.notes,
        }
        for stage, session in model.open_sessions.items()
    ]


def _memory_used() -> float | None:
    """MiB of the GPU that are taken, by whomever; None where nobody tells."""
    try:
        from ris.engines import cuda

        runtime = cuda.load()
        error, free, total = runtime.cudaMemGetInfo()
        return None if int(error) else (total - free) / 2**20
    except Exception:
        return None


def pytorch(bundle: str, runs: int, device: str, compiled: bool) -> None:
    """The PyTorch model of a bundle of made-up or built-in weights, in FP16 and bfloat16."""
    for precision in ("bfloat16",) if DOUBLE else ("float16", "bfloat16"):
        with guarded("pytorch"):
            if importlib.util.find_spec("torch") is None:
                say("pytorch", skipped="PyTorch is not installed")
                return
            import torch

            if not torch.cuda.is_available() and not DOUBLE:
                say("pytorch", skipped=f"PyTorch {torch.__version__} finds no CUDA GPU")
                return
            run = _reference(bundle, "cpu" if DOUBLE else device, precision, compiled)
            for _ in range(WARM_UP):
                run()
            rounds = [run() for _ in range(runs)]
            memory = None if DOUBLE else torch.cuda.max_memory_allocated() / 2**20
            found = {
                "precision": precision,
                "first_mask": _ms([first for first, _ in rounds]),
                "next_expression": _ms([following for _, following in rounds]),
                "memory": memory,
            }
            say("pytorch", found=found)


def _reference(
    bundle: str, device: str, precision: str, compiled: bool
) -> Callable[[], tuple[float, float]]:
    """PyTorch ready to be timed: seconds of a first mask, and of a next expression."""
    import torch
    from tokenizers import Tokenizer

    from ris.export.families import DESIGNS
    from ris.export.reference_pass import text_values
    from ris.export.sources import rebuild_model
    from ris.reference.checkpoint import WeightFiles
    from ris.reference.families import family_named
    from ris.runtime import open_bundle

    opened = open_bundle(bundle, verify=False)
    manifest = opened.manifest
    family = family_named(manifest.family)
    model = rebuild_model(opened, WeightFiles()).to(device)
    if compiled:
        for block in DESIGNS[manifest.family].repeated(model):
            block.compile(dynamic=False)
    tokenizer = Tokenizer.from_file(str(opened.file(manifest.host.text.tokenizer)))
    picture = _picture()
    category = "person" if manifest.categories else None

    def here(values: Any) -> dict[str, Any]:
        return {name: value.to(device) for name, value in values.items()}

    def ask(encoded: Any, expression: str) -> None:
        host = manifest.host
        texts = text_values(family, model, tokenizer, host, [expression], [category])
        out = family.ask(model, {**encoded, **here(texts)})
        out[manifest.answer.mask_logits].float().cpu()  # which waits for the GPU

    def run() -> tuple[float, float]:
        kind = torch.device(device).type
        with torch.no_grad(), torch.autocast(kind, getattr(torch, precision)):
            start = time.perf_counter()
            images = here(family.prepare(model, picture))
            encoded = images | family.encode(model, images)
            ask(encoded, EXPRESSIONS[0])
            middle = time.perf_counter()
            ask(encoded, EXPRESSIONS[1])
        return middle - start, time.perf_counter() - middle

    return run


def tests() -> None:
    """The tests that need a GPU."""
    with guarded("tests"):
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "--durations=0"]
        files = ["tests/engines/test_tensorrt_gpu.py"]
        done = subprocess.run([*command, *files], capture_output=True, text=True)
        last = (done.stdout.strip().splitlines() or [done.stderr.strip()[-200:]])[-1]
        if done.returncode not in (0, 5):  # 5: none was collected
            say("tests", problem=last)
        elif done.returncode == 5 or " passed" not in last:
            say("tests", skipped=last)
        else:
            say("tests", found={"result": last})


KINDS: dict[str, Callable[..., None]] = {
    function.__name__: function for function in (machine, export, calibrate, engine, pytorch, tests)
}

_ANSWERS: Any = sys.stdout


def main() -> None:
    global _ANSWERS
    _ANSWERS = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints is no section
    if DOUBLE:
        from tests.gpu_check import double

        double.install()
    KINDS[sys.argv[1]](**json.loads(sys.argv[2]))


if __name__ == "__main__":
    main()
