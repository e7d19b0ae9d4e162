"""`ris-export --engine`: what cannot compile is said first; what was compiled stays."""

from __future__ import annotations

import importlib.util

import pytest
from click.testing import CliRunner

from ris.engines import select
from ris.export.command import main
from ris.runtime.bundle import ENGINES, MANIFEST, open_bundle
from ris.runtime.bundle_folder import building


def export(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


def test_an_engine_that_is_missing_is_one_sentence_and_nothing_is_written(tmp_path):
    if importlib.util.find_spec("tensorrt") is not None:
        pytest.skip("this machine has tensorrt")
    out = tmp_path / "bundle"
    done = export("--engine", "tensorrt", "--out", out)
    assert done.exit_code == 2
    assert done.output == (
        "Error: engine 'tensorrt' cannot run here: the package 'tensorrt' is not installed; "
        'pip install ".[tensorrt]"\n'
    )
    assert not list(tmp_path.iterdir())


def test_grid_sample_nodes_and_tensorrt_contradict_each_other(tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")
    engine = ["--engine", "tensorrt-rtx", "--grid-sample", "native"]
    done = export(*engine, "--out", tmp_path / "bundle")
    assert done.exit_code == 2
    sentence = "engine 'tensorrt-rtx' needs --grid-sample gather; leave --grid-sample out"
    assert sentence in done.output
    assert not list(tmp_path.iterdir())


def test_an_engine_without_the_precision_is_said_before_anything_is_written(tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")
    engine = ["--engine", "tensorrt-rtx", "--precision", "bf16"]
    done = export("--preset", "tiny", *engine, "--out", tmp_path / "bundle")
    assert done.exit_code == 2
    assert "engine 'tensorrt-rtx' does not run bf16 graphs; it runs fp32, fp16" in done.output
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("weights", [["--preset", "tiny"], ["--sam-checkpoint", "sam-vit-b"]])
def test_where_no_bundle_can_be_written_is_said_before_anything_is_fetched(
    tmp_path, monkeypatch, weights
):
    monkeypatch.setattr("ris.export.command._fetch_parts", lambda *a: pytest.fail("fetched"))
    (tmp_path / "file").touch()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").touch()
    assert "file is no folder" in export(*weights, "--out", tmp_path / "file" / "b").output
    assert "exists and is not a bundle" in export(*weights, "--out", tmp_path / "mine").output


def test_auto_says_what_it_took(tmp_path):
    done = export("--preset", "tiny", "--engine", "auto", "--dry-run", "--out", tmp_path / "bundle")
    assert done.exit_code == 0
    assert f"--engine auto: {select().name}" in done.output


def test_an_export_compiles_for_the_engine_with_gathers(tmp_path, monkeypatch):
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    out = tmp_path / "bundle"
    engine = ["--engine", "tensorrt-rtx", "--max-expressions", 2]
    done = export("--preset", "tiny", "--precision", "fp16", *engine, "--out", out)
    assert done.exit_code == 0, done.output
    assert "6 of 6 graphs compiled" in done.output
    assert open_bundle(out).manifest.graphs["fusion"].sampling == "gather"
    assert len(list((out / ENGINES).glob("*/*.plan"))) == 6


def test_what_was_compiled_outlives_the_bundle_that_is_replaced(tmp_path):
    """The same export gives the same graphs, and compiled graphs are found by content."""
    out = tmp_path / "bundle"
    with building(out, overwrite=False) as folder:
        (folder / MANIFEST).write_text("first")
    (out / ENGINES / "key").mkdir(parents=True)
    with building(out, overwrite=True) as folder:
        (folder / MANIFEST).write_text("second")
    assert (out / MANIFEST).read_text() == "second"
    assert (out / ENGINES / "key").is_dir()
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]
