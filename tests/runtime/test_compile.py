"""Compiled graphs that do not load are compiled again, once; `ris-compile --force` does so to all.

And an environment without UTF-8 compiles, asks and reports as any other.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from ris.engines import EngineOptions, create
from ris.engines.errors import EngineError
from ris.engines.recipe import file_hash
from ris.engines.trust import seal
from ris.runtime import load, open_bundle
from ris.runtime.commands.compile import main
from ris.runtime.parity import graph_feeds, load_golden

COMMANDS = Path(sys.executable).parent
pytest.importorskip("openvino")


@pytest.fixture(scope="module")
def compiled(tiny_bundle, tmp_path_factory):
    """A bundle that is compiled for OpenVINO."""
    bundle = tmp_path_factory.mktemp("compiled") / "bündel ñ"
    shutil.copytree(tiny_bundle, bundle, ignore=shutil.ignore_patterns("engines"))
    done = compile_bundle(bundle)
    assert all(graph["built_now"] for graph in done.values())
    return bundle


def compile_bundle(bundle, *options):
    command = [str(bundle), "--engine", "openvino", "--json", *options]
    done = CliRunner().invoke(main, command, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)["graphs"]


def refuse(artifact):
    """Makes a plan that this user's key vouches for and OpenVINO refuses."""
    data = bytearray(artifact.read_bytes())
    data[4096:4196] = bytes(100)  # where its first blob begins
    artifact.write_bytes(data)
    sidecar = json.loads(artifact.with_suffix(".json").read_text())
    del sidecar["tag"]
    sidecar |= {"sha256": file_hash(artifact)}
    artifact.with_suffix(".json").write_text(json.dumps(seal(sidecar)))


def test_a_plan_that_the_engine_refuses_is_compiled_again(compiled):
    bundle = open_bundle(compiled)
    graph, engine = bundle.graph("text_encoder"), create("openvino")
    built = engine.build(graph)
    refuse(built.artifact)
    with pytest.raises(EngineError, match=r"text_encoder.plan: OpenVINO cannot import.*again"):
        create("openvino", EngineOptions(build=False)).load(graph)

    said = []
    with engine.load(graph, lambda stage, what, done: said.append(f"{stage}: {what}")) as session:
        session.run(graph_feeds(graph, load_golden(bundle)))
    assert said[0].startswith("text_encoder: not used: ")
    assert said[1:] == ["text_encoder: compiling"]
    with engine.load(graph, lambda *progress: pytest.fail("it was compiled again")):
        pass


def test_what_cannot_be_compiled_into_something_that_loads_is_an_error(compiled, monkeypatch):
    """It is tried once more, not for ever."""
    graph, engine = open_bundle(compiled).graph("text_encoder"), create("openvino")
    builds, build = [], engine.build
    refuse(build(graph).artifact)

    def build_badly(graph, progress, *, anew=False):
        found = build(graph, progress, anew=anew)
        builds.append(found.built_now)
        if found.built_now:
            refuse(found.artifact)
        return found

    monkeypatch.setattr(engine, "build", build_badly)
    with pytest.raises(EngineError, match="OpenVINO cannot import what it compiled"):
        engine.load(graph)
    assert builds == [False, True]
    build(graph, anew=True)


def test_all_are_compiled_again_where_that_is_asked(compiled):
    assert not any(graph["built_now"] for graph in compile_bundle(compiled).values())
    assert all(graph["built_now"] for graph in compile_bundle(compiled, "--force").values())
    refused = CliRunner().invoke(main, [str(compiled), "--force", "--no-build"])
    assert refused.exit_code == 2
    assert "--force compiles all graphs and --no-build none" in refused.output


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("name", ["tiny_bundle", "tiny_fp16_bundle"])
def test_a_bundle_whose_name_is_no_utf8(name, engine, request, tmp_path, picture):
    """Python then has surrogates in its path, which not every engine's bindings take."""
    pytest.importorskip(engine)
    bundle = request.getfixturevalue(name)
    there = shutil.copytree(bundle, tmp_path / os.fsdecode(b"b\xfcndel"))
    with load(bundle, engine=engine) as model, load(there, engine=engine) as same:
        want = model.segment(picture, "left man").logits
        np.testing.assert_array_equal(same.segment(picture, "left man").logits, want)


@pytest.mark.parametrize("command", ["ris-infer", "ris-doctor", "ris-compile"])
def test_a_locale_without_utf8_is_no_obstacle(compiled, tmp_path, picture, command):
    from PIL import Image

    Image.fromarray(picture).save(tmp_path / "bäume.png")
    arguments = {
        "ris-infer": [tmp_path / "bäume.png", "linker Bäume", "--engine", "openvino", "--bundle"],
        "ris-doctor": ["--json"],
        "ris-compile": ["--engine", "openvino"],
    }[command]
    environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [COMMANDS / command, *arguments, compiled],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
