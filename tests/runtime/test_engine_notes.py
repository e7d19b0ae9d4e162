"""What engines have to say to the user is printed: by `ris-infer -v`, and by `ris-compile`."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from PIL import Image

from ris.engines import Compiled
from ris.engines.onnxruntime import OnnxRuntimeEngine
from ris.runtime.commands.compile import main as compile_command
from ris.runtime.commands.infer import main as infer_command

WIDE = "TensorRT 10 computes 1 of 9 layers in FP32 that are no islands of the manifest: gemm_3"


@pytest.fixture
def noted(monkeypatch):
    """An engine whose compiled text encoder has a note."""

    def build(self, graph, progress=None, *, anew=False):
        notes = [WIDE] if graph.stage == "text_encoder" else []
        report = {"layers": {"fp16": 8, "fp32": 1}, "layers_from": "build log", "notes": notes}
        return Compiled(graph.path, report, 1.0, built_now=False)

    monkeypatch.setattr(OnnxRuntimeEngine, "build", build)


def test_infer_prints_the_notes_of_engines_where_it_says_what_runs(
    noted, tiny_bundle, picture, tmp_path
):
    Image.fromarray(picture).save(tmp_path / "park.png")
    given = [str(tmp_path / "park.png"), "left man", "--bundle", str(tiny_bundle)]
    given += ["--engine", "onnxruntime", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(infer_command, given)
    assert done.exit_code == 0, done.output
    assert WIDE not in done.output
    done = CliRunner().invoke(infer_command, [*given, "-v"])
    assert f"note: text_encoder: {WIDE}" in done.stderr
    assert done.stderr.count("note: ") == 1


def test_compile_warns_of_layers_that_are_wider_than_their_graph(noted, tiny_bundle):
    given = [str(tiny_bundle), "--engine", "onnxruntime"]
    done = CliRunner().invoke(compile_command, given)
    assert done.exit_code == 0, done.output
    assert f"Warning: text_encoder: {WIDE}" in done.stderr
    done = CliRunner().invoke(compile_command, [*given, "--json"])
    graphs = json.loads(done.stdout)["graphs"]
    assert graphs["text_encoder"]["notes"] == [WIDE]
    assert graphs["fusion"]["notes"] == []
