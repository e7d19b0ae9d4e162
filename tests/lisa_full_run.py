"""LISA-7B at full size with made-up weights: files in the released layout, exports, runs.

    python tests/lisa_full_run.py files FOLDER
    python tests/lisa_full_run.py export FOLDER int4
    python tests/lisa_full_run.py export FOLDER int4-bf16
    python tests/lisa_full_run.py run FOLDER int4 openvino
    python tests/lisa_full_run.py run FOLDER int4 openvino bf16
    python tests/lisa_full_run.py pytorch 32
    python tests/lisa_full_run.py tensorrt FOLDER int4
    python tests/lisa_full_run.py graph FOLDER int4 language_question 32
    python tests/lisa_full_run.py run-graph FOLDER int4 language_question-32-int4.onnx openvino 19

`files` writes two shards, bfloat16 and float32, the files beside them, and CLIP's: 17 GB. `export`
and `run` are processes of their own; they print their peak memory. A bundle is named by the
language model's weights and, behind a dash, by `--precision` where that is not fp32. Times of `run`
are of one run, so that they compare with each other. `tensorrt` compiles the question's graph with
four layers for TensorRT-RTX, which needs no GPU for that. `pytorch` times PyTorch eager in
bfloat16, with so many layers of the language model, all of whose matrices are in memory. `graph`
writes one graph alone, of matrices that are drawn as they are read, and `run-graph` runs it, a
question's with so many tokens (several numbers: one after the other). Only `export` and `run` need
the files. No test runs this: docs/measurements has what came out.
"""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lisa_helper import (
    added_tokens_of,
    official_keys,
    settings_of,
    write_clip,
    write_json,
)
from lisa_vocabulary import write_vocabulary
from torch._subclasses.fake_tensor import FakeTensorMode

from conftest import GOLDEN, REPO
from ris.engines import EngineOptions, Graph, TensorSpec, create
from ris.export.families import DESIGNS
from ris.export.families.design import StageDesign
from ris.export.held import LEAST, HeldBack, held_back
from ris.export.narrow_values import full_edges, halve_edges, halve_kept
from ris.export.onnx_writer import trace_onnx
from ris.reference.checkpoint.entries import Entry
from ris.reference.lisa.config import PRESETS, LisaConfig
from ris.reference.lisa.deterministic import _GAINS, make_tensor
from ris.reference.lisa.model import LisaModel, empty_model
from ris.runtime import load, open_bundle

CONFIG = PRESETS["lisa-7b"]
LAST_OF_THE_FIRST = "model.layers.23."
ASKED = ["left man", "the broccoli closest to the ketchup bottle"] * 5
_DRAWN = 1 << 22  # elements from which on a matrix is drawn in a faster way


def write_files(folder: Path) -> None:
    """The released folder and CLIP's file."""
    model = folder / "LISA-7B-v1"
    model.mkdir(parents=True, exist_ok=True)
    keys = official_keys()
    first = [key for key in keys if _shard(key) == 1]
    second = [key for key in keys if _shard(key) == 2]
    places = {}
    for number, names in enumerate((first, second), 1):
        path = model / f"pytorch_model-{number:05}-of-00002.bin"
        _write_shard(path, {name: keys[name] for name in names})
        places |= dict.fromkeys(names, path.name)
        print(f"{path.name}: {path.stat().st_size:,} bytes", flush=True)
    write_json(model / "pytorch_model.bin.index.json", {"metadata": {}, "weight_map": places})
    write_json(model / "config.json", settings_of(CONFIG))
    write_json(model / "added_tokens.json", added_tokens_of(CONFIG))
    write_vocabulary(GOLDEN / "lisa" / "tokenizer_small.model", model / "tokenizer.model")
    write_clip(folder / "clip.safetensors", CONFIG)


def _shard(key: str) -> int:
    """The shard of a key: the layers up to 23, and the table, are in the first."""
    if key == "model.embed_tokens.weight":
        return 1
    if not key.startswith("model.layers."):
        return 2
    return 1 if int(key.split(".")[2]) <= int(LAST_OF_THE_FIRST.split(".")[2]) else 2


def _write_shard(path: Path, keys: dict[str, dict]) -> None:
    """A file of torch.save, without its tensors in memory: the values are put in afterwards."""
    kinds = {key: getattr(torch, about["released"]) for key, about in keys.items()}
    state = {key: torch.empty(keys[key]["shape"], dtype=kinds[key]) for key in keys}
    with torch.serialization.skip_data():
        torch.save(state, path)
    with FakeTensorMode():
        places = torch.load(path, weights_only=True)
    with path.open("r+b") as file:
        for index, (key, about) in enumerate(keys.items()):
            values = _values(key, tuple(about["shape"]), index).to(kinds[key])
            file.seek(places[key].untyped_storage()._checkpoint_offset)
            file.write(values.contiguous().view(torch.uint8).reshape(-1).numpy().data)


def _values(key: str, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    if key.startswith("lm_head.") or key.endswith("inv_freq"):
        return torch.zeros(shape)
    if np.prod(shape) < _DRAWN:
        return torch.from_numpy(np.array(make_tensor(key.removeprefix("model."), shape)))
    gain = next((gain for part, gain in _GAINS.items() if part in key), 1.0)
    scale = 0.02 if "embed_tokens" in key else gain * shape[-1] ** -0.5
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return drawn.mul_(scale)


def export(folder: Path, bundle: str) -> None:
    """The bundle, by the command, and what it took."""
    model, out = folder / "LISA-7B-v1", folder / bundle
    format, _, precision = bundle.partition("-")
    command = [
        *(Path(sys.executable).parent / "ris-export", "--checkpoint", model),
        *("--clip-checkpoint", folder / "clip.safetensors"),
        *("--vocabulary", model / "tokenizer.model", "--weight-format", format, "--out", out),
        *("--precision", precision or "fp32"),
    ]
    start = time.perf_counter()
    done = subprocess.run([str(part) for part in command], check=False)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        sys.exit(done.returncode)
    sizes = {file.name: file.stat().st_size for file in sorted((out / "graphs").iterdir())}
    taken = {"seconds": time.perf_counter() - start, "processor": used.ru_utime + used.ru_stime}
    print(json.dumps({"peak_gb": used.ru_maxrss / 1e6, "bytes": sizes, **taken}, indent=1))


def run(folder: Path, bundle: str, engine: str, compute: str, int8_activations: bool) -> None:
    """First mask, next expression alone and in tens, and what the picture costs the LLaMA."""
    rgb = np.load(folder / "picture.npy") if (folder / "picture.npy").exists() else _picture()
    began = time.perf_counter()
    with load(
        folder / bundle, engine=engine, compute=compute, int8_activations=int8_activations
    ) as model:
        loaded = time.perf_counter() - began
        for stage, info in model.sessions.items():
            print(f"{stage}: {info.engine} {info.computes}")
        scene, firsts, alone, tens, prefix = None, [], [], [], []
        for _ in range(3):
            start = time.perf_counter()
            scene = model.encode_image(rgb)
            answer = scene.segment(ASKED[0])
            firsts.append(time.perf_counter() - start)
            prefix.append(scene.timings["image.language_prefix"])
            for asked in ASKED[:3]:
                start = time.perf_counter()
                scene.segment(asked)
                alone.append(time.perf_counter() - start)
            start = time.perf_counter()
            scene.segment_many(ASKED)
            tens.append(time.perf_counter() - start)
        assert np.isfinite(answer.logits).all()
        memory = _memory()
    found = {"first mask": firsts, "next": alone, "ten": tens, "language_prefix": prefix}
    medians = {name: statistics.median(values) for name, values in found.items()}
    print(json.dumps({"load": loaded, **medians, **memory}, indent=1))


@torch.no_grad()
def run_pytorch(layers: int) -> None:
    """PyTorch eager in bfloat16: a first mask, and a next expression as the authors' code has it.

    That is the whole pass over what stands in front of the question, too; SAM's and CLIP's
    features are kept. Beside it the same model with keys and values kept. Weights are drawn.
    """
    config = dataclasses.replace(CONFIG, llama=dataclasses.replace(CONFIG.llama, layers=layers))
    model = empty_model(config)
    state = {
        name: torch.empty(value.shape, dtype=torch.bfloat16).normal_(0, 0.02)
        for name, value in model.state_dict().items()
    }
    model.load_state_dict(state, assign=True)
    del state
    inputs = {
        "sam": torch.randn(1, 3, 1024, 1024, dtype=torch.bfloat16),
        "clip": torch.randn(1, 3, 224, 224, dtype=torch.bfloat16),
    }
    ids, last = torch.full((1, 19), 338), torch.tensor([18])
    end = model.embed_tokens.weight[config.tokens.im_end].expand(1, 1, -1)
    front = model.embed_tokens(torch.tensor([config.constant_ids]))

    def whole(tokens: torch.Tensor) -> torch.Tensor:
        rows = torch.cat([front, tokens, end, model.embed_tokens(ids)], 1)
        return model.state_at(rows, last + rows.shape[1] - ids.shape[1])

    taken: dict[str, list[float]] = {}

    def timed(name: str, call: Callable[..., Any], *given: Any) -> Any:
        start = time.perf_counter()
        found = call(*given)
        taken.setdefault(name, []).append(time.perf_counter() - start)
        return found

    for _ in range(3):
        embeddings = timed("sam", model.encode_sam, inputs["sam"])
        tokens = timed(
            "clip", lambda image: model.project(model.encode_clip(image)), inputs["clip"]
        )
        hidden = timed("language, whole pass", whole, tokens)
        timed("decoder", model.decode_masks, embeddings, model.sparse_prompt(hidden))
        prefix = timed("language, picture", model.read_picture, tokens)
        timed("language, question", model.read_question, ids, last, prefix)
    medians = {name: statistics.median(values) for name, values in taken.items()}
    print(json.dumps({"layers": layers, **medians, **_memory()}, indent=1))


def write_graph(folder: Path, stage_name: str, format: str, layers: int) -> Graph:
    """One of the language model's graphs, of so many layers, rounded as it is written.

    Its matrices are drawn as they are read, so that no files are needed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = dataclasses.replace(CONFIG, llama=dataclasses.replace(CONFIG.llama, layers=layers))
    model = _drawn_model(config, folder)
    held = held_back(model)
    assert held is not None
    start = time.perf_counter()
    stage = _stage(config, stage_name)
    path = folder / f"{stage_name}-{layers}-{format}.onnx"
    with torch.no_grad():
        module = held.build(lambda: stage.build(model, "gather"))
    traced = trace_onnx(module, full_edges(stage), path, one_image=True, held=held)
    begun = time.perf_counter()
    narrow, stored = traced.quantised(format)
    narrow.write()
    halve_edges(path, stage)
    report = {
        "traced_seconds": begun - start,
        "written_seconds": time.perf_counter() - begun,
        "matrices": len(stored.matrices),
        "weights": sum(one.rows * one.columns for one in stored.matrices),
        "error": stored.error,
        "bytes": narrow.data.stat().st_size,
        "largest_matrix_gb": max(4e-9 * one.rows * one.columns for one in stored.matrices),
    }
    print(json.dumps({"graph": path.name, **report, **_memory()}, indent=1), flush=True)
    return _graph_of(stage, path, format)


def compile_question(folder: Path, format: str, layers: int = 4) -> None:
    """The question's graph with a few layers, compiled by TensorRT-RTX; nothing runs."""
    graph = write_graph(folder, "language_question", format, layers)
    start = time.perf_counter()
    built = create("tensorrt-rtx", EngineOptions()).build(graph)
    plan = {"seconds": time.perf_counter() - start, "plan": built.artifact.stat().st_size}
    print(json.dumps({**plan, "report": built.report}, indent=1))


def run_graph(path: Path, format: str, engine: str, tokens: list[int], rounds: bool) -> None:
    """How long one of these graphs takes alone, on made-up inputs; a question's in tens, too.

    tokens: of a question; its row is as long as the runtime would make it.
    """
    layers = int(path.stem.split("-")[1])
    config = dataclasses.replace(CONFIG, llama=dataclasses.replace(CONFIG.llama, layers=layers))
    stage = _stage(config, path.stem.split("-")[0])
    graph = _graph_of(stage, path, format)
    options = EngineOptions("cpu", max_expressions=10, int8_activations=rounds)
    start, times = time.perf_counter(), {}
    with create(engine, options).load(graph) as session:
        times["load"] = time.perf_counter() - start
        calls = [(1, 0, 0)]
        if stage.lengths:
            rows = [(asked, min(n for n in stage.lengths if n >= asked)) for asked in tokens]
            calls = [(count, *row) for row in rows for count in (1, 10)]
        for count, asked, length in calls:
            sizes = {"images": 1, "expressions": count, "tokens": length}
            feeds = {spec.name: _made_up(spec, sizes, asked) for spec in stage.inputs}
            taken = []
            for _ in range(4):
                start = time.perf_counter()
                values = session.run(feeds).values()
                taken.append(time.perf_counter() - start)
            assert all(np.isfinite(value).all() for value in values)
            times[f"{count} of {asked} in {length}" if length else "1"] = min(taken)
        said = session.info.computes
    print(
        json.dumps({"graph": path.name, "engine": engine, "computes": said, **times, **_memory()})
    )


def _stage(config: LisaConfig, name: str) -> StageDesign:
    """A graph whose matrices are narrow; keys and values of a picture are FP16 then."""
    stages = DESIGNS["lisa"].stages(config)
    narrow = [one.name for one in stages if one.narrow_weights]
    return next(one for one in halve_kept(stages, "fp32", narrow) if one.name == name)


def _graph_of(stage: StageDesign, path: Path, format: str) -> Graph:
    return Graph(
        *(stage.name, path, stage.inputs, stage.outputs),
        cache=path.parent,
        weights=format,
        lengths=stage.lengths,
    )


def _made_up(spec: TensorSpec, sizes: Mapping[str, int], tokens: int) -> np.ndarray:
    """An input of a graph: questions of so many tokens, and values of about 1."""
    shape = [sizes[axis] if isinstance(axis, str) else axis for axis in spec.shape]
    if spec.dtype == "int32":
        return np.full(shape, 338, np.int32)
    if spec.name == "text_mask":
        return np.tile((np.arange(shape[1]) < tokens).astype(np.float32), (shape[0], 1))
    return np.random.default_rng(0).standard_normal(shape).astype(spec.dtype)


def _drawn_model(config: LisaConfig, folder: Path) -> LisaModel:
    """The language model without its large matrices, which are drawn when they are read."""
    model, entries, state = empty_model(config), {}, {}
    for index, (key, value) in enumerate(model.state_dict().items()):
        if not key.startswith(("layers.", "norm.", "embed_tokens.", "text_hidden_fcs.")):
            continue
        shape = tuple(value.shape)
        draw = partial(_values, f"model.{key}", shape, index)
        if value.numel() < LEAST or key.startswith("embed_tokens."):
            state[key] = draw()
        else:
            entries[key] = Entry(shape, torch.float32, folder, (draw,), mapped=False)
    model.load_state_dict(state, assign=True, strict=False)
    HeldBack(model, entries)
    return model


def _picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)


def _memory() -> dict[str, float]:
    """The peak of this process in GB; what of it is no file's."""
    status = Path("/proc/self/status").read_text()
    lines = dict(line.split(":", 1) for line in status.splitlines())
    wanted = {"peak_gb": "VmHWM", "now_anonymous_gb": "RssAnon", "now_files_gb": "RssFile"}
    return {name: int(lines[key].split()[0]) / 1e6 for name, key in wanted.items()}


if __name__ == "__main__":
    os.chdir(REPO)
    what, place, *more = sys.argv[1:]
    if what == "files":
        write_files(Path(place))
    elif what == "export":
        export(Path(place), more[0])
    elif what == "tensorrt":
        compile_question(Path(place), more[0])
    elif what == "graph":
        write_graph(Path(place), more[1], more[0], int(more[2]))
    elif what == "run-graph":
        asked = [int(one) for one in more[3:] if one.isdigit()] or [19]
        run_graph(Path(place) / more[1], more[0], more[2], asked, "--int8-activations" in more)
    elif what == "pytorch":
        with torch.autocast("cpu", torch.bfloat16):
            run_pytorch(int(place))
    else:
        assert open_bundle(Path(place) / more[0], verify=False)
        compute = next((word for word in more[2:] if not word.startswith("--")), "fp32")
        run(Path(place), more[0], more[1], compute, "--int8-activations" in more)
