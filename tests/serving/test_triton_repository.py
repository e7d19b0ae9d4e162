"""The model repository that is written from a bundle, without a server over it."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from ris.engines.errors import BundleError, EngineError, ExpressionError, RisError
from ris.engines.recipe import file_hash, operating_system
from ris.engines.trust import seal
from ris.runtime import open_bundle
from ris.runtime.commands.running import Running
from ris.serving.triton.config import ServerOptions
from ris.serving.triton.repository import compiled_plan, write_repository


def options(**more):
    return ServerOptions(Running("onnxruntime", "cpu", threads=1, compute=None), **more)


def test_a_repository_is_for_graphs_and_forms_that_the_bundle_has(served_bundle, tmp_path):
    running = Running(engine="openvino", device="cpu", threads=None, compute={"decoder": "bf16"})
    with pytest.raises(EngineError, match="there is no graph decoder; there are sam_image_enc"):
        write_repository(open_bundle(served_bundle), tmp_path / "m", ServerOptions(running))
    with pytest.raises(ExpressionError, match="leave the form 'sentence' out"):
        write_repository(open_bundle(served_bundle), tmp_path / "m", options(form="sentence"))
    assert list(tmp_path.iterdir()) == []


def test_a_repository_is_whole_or_not_there(served_bundle, tmp_path, monkeypatch):
    bundle = open_bundle(served_bundle)
    out = tmp_path / "models"
    write_repository(bundle, out, options())
    assert open_bundle(out / "ris" / "1" / "bundle").manifest == bundle.manifest
    with pytest.raises(RisError, match="--force replaces it"):
        write_repository(bundle, out, options())
    monkeypatch.setattr("ris.serving.triton.repository.front_config", lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_repository(bundle, out, options(), force=True)
    assert (out / "ris" / "config.pbtxt").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["models"]
    (tmp_path / "other").mkdir()
    with pytest.raises(RisError, match="no repository of ours"):
        write_repository(bundle, tmp_path / "other", options(), force=True)


def test_the_bundle_stays_its_owners(served_bundle, tmp_path):
    """No links into it: onnx refuses weights in files that have several names."""
    write_repository(open_bundle(served_bundle), tmp_path / "models", options())
    copied = {p.name: p for p in (tmp_path / "models").rglob("*") if p.is_file()}
    for path in served_bundle.glob("graphs/*"):
        assert path.stat().st_nlink == 1
        assert copied[path.name].read_bytes() == path.read_bytes()


def test_of_what_is_around_the_graphs_only_hashed_files_are_opened(served_bundle, tmp_path):
    """As `ris` opens it where each graph is a model of its own."""
    bundle = open_bundle(served_bundle)
    write_repository(bundle, tmp_path / "models", options(graphs="onnx"))
    around = tmp_path / "models" / "ris" / "1" / "bundle"
    assert open_bundle(around, graphs=False).manifest == bundle.manifest
    tokenizer = around / bundle.manifest.host.text.tokenizer
    tokenizer.write_bytes(tokenizer.read_bytes() + b" ")
    with pytest.raises(BundleError, match="is not the file that was exported"):
        open_bundle(around, graphs=False)


def test_plans_are_found_by_what_they_were_compiled_from(served_bundle, tmp_path):
    bundle = open_bundle(served_bundle)
    copy = dataclasses.replace(bundle, path=Path(shutil.copytree(served_bundle, tmp_path / "copy")))
    with pytest.raises(BundleError, match="0 TensorRT plans of fusion; compile it"):
        compiled_plan(copy, "fusion")

    hashes = bundle.manifest.graphs["fusion"].sha256
    current = {Path(name).name: value for name, value in hashes.items()}
    recipes = {
        "a": {"engine": "tensorrt", "onnx": current},
        "b": {"engine": "tensorrt", "onnx": {"fusion.onnx": "0"}},
        "c": {"engine": "openvino", "onnx": current},
    }
    for key, recipe in recipes.items():
        folder = copy.path / "engines" / key
        folder.mkdir(parents=True)
        (folder / "fusion.plan").write_bytes(b"plan")
        about = {"recipe": recipe | {"platform": operating_system()}, "report": {}, "seconds": 1.0}
        about["sha256"] = file_hash(folder / "fusion.plan")
        (folder / "fusion.json").write_text(json.dumps(seal(about)))
    plan = copy.path / "engines" / "a" / "fusion.plan"
    assert compiled_plan(copy, "fusion") == plan
    plan.write_bytes(b"wicked")
    with pytest.raises(EngineError, match="damaged"):
        compiled_plan(copy, "fusion")
    shutil.copytree(copy.path / "engines" / "a", copy.path / "engines" / "d")
    with pytest.raises(BundleError, match="2 TensorRT plans of fusion; leave one"):
        compiled_plan(copy, "fusion")
