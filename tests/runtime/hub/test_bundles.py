"""Bundles on a Hub: wherever a bundle is taken, verified, and opened where they were put."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from ris.engines import EngineSpec
from ris.runtime import BUILT_IN, BundleError, HubError, load, open_bundle
from ris.runtime.bundle import sha256_of
from ris.runtime.commands import bench, doctor, infer, models, parity
from ris.runtime.commands import compile as compile_command
from ris.runtime.hub import bundles
from ris.runtime.hub.address import parse
from ris.runtime.hub.bundles import fetch_bundle

ADDRESS = "hf://org/demo@v1"
RUN = {"engine": "onnxruntime", "device": "cpu"}


@pytest.fixture
def published(hub):
    """The demo's bundle as org/demo, at the tag v1."""
    repository = hub.folder("org/demo", BUILT_IN)
    repository.branches["v1"] = repository.branches["main"]
    return repository


@pytest.fixture
def photo(tmp_path, picture, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(picture).save("photo.png")
    return tmp_path / "photo.png"


def run(command, *arguments):
    return CliRunner().invoke(command, [str(a) for a in arguments], catch_exceptions=False)


def test_a_mask_from_an_address(hub, published, picture):
    steps = []
    with load(ADDRESS, progress=lambda *step: steps.append(step), **RUN) as model:
        found = model.segment(picture, "left man").mask
        assert model.bundle.path.name == published.branches["v1"]
    with load(BUILT_IN, **RUN) as model:
        np.testing.assert_array_equal(found, model.segment(picture, "left man").mask)
    assert {what for _, what, _ in steps} == {"downloading"}
    assert hub.sent() == sum(p.stat().st_size for p in BUILT_IN.rglob("*") if p.is_file())


def test_the_second_time_nothing_is_sent(hub, published, monkeypatch):
    from huggingface_hub import constants

    first = open_bundle(ADDRESS)
    hub.sent()
    assert open_bundle(ADDRESS) == first
    assert open_bundle(Path(ADDRESS)) == first
    assert [seen.path for seen in hub.requests] == ["/org/demo/resolve/v1/manifest.json"] * 2
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert open_bundle(ADDRESS) == first


def test_what_the_bundle_has_beside_its_manifest_is_not_fetched(hub, published):
    published.commit({"huge.bin": bytes(1000)})
    folder = fetch_bundle(parse("hf://org/demo"))
    assert not (folder / "huge.bin").exists()


def test_a_folder_of_a_repository(hub, picture):
    hub.folder("org/several", BUILT_IN, below="small/fp16/")
    assert open_bundle("hf://org/several/small/fp16").manifest.precision == "fp16"
    with pytest.raises(HubError) as caught:
        open_bundle("hf://org/several")
    said = str(caught.value)
    assert said.startswith("hf://org/several has no manifest.json, so it is not a bundle; name the")


@pytest.mark.parametrize("variable", [False, True])
def test_commands_take_an_address(hub, published, photo, monkeypatch, variable):
    bundle = ["--bundle", ADDRESS]
    if variable:
        monkeypatch.setenv("RIS_BUNDLE", ADDRESS)
        bundle = []
    asked = [photo, "left man", *bundle, "--json", "--engine", "onnxruntime", "--out", "out"]
    done = run(infer.main, *asked)
    assert done.exit_code == 0, done.output
    assert "Download: manifest.json, 100%" in done.stderr
    assert json.loads(done.stdout)["expression"] == "left man"


@pytest.mark.parametrize("command", [parity.main, doctor.main])
def test_commands_with_an_argument_take_one(hub, published, photo, command):
    engine = ["--engine", "onnxruntime"] if command is parity.main else []
    done = run(command, ADDRESS, *engine)
    assert done.exit_code == 0, done.output


def test_what_compares_bundles_takes_addresses(hub, photo):
    """They get as far as the Hub, which has none."""
    pytest.importorskip("matplotlib")
    from ris.evaluation.compare_command import compare

    done = run(compare, "hf://org/one", "hf://org/two", "--samples", "1", "--out", "report")
    assert done.exit_code == 2
    assert "manifest.json of org/one: " in done.stderr
    done = run(bench.main, BUILT_IN, "--engine", "onnxruntime@hf://org/one")
    assert done.exit_code == 2
    assert "manifest.json of org/one: " in done.stderr


def test_compiled_graphs_do_not_go_into_the_shared_cache(hub, published, tmp_path):
    pytest.importorskip("openvino")
    bundle = open_bundle(ADDRESS)
    assert all(bundle.graph(stage).cache is None for stage in bundle.stages)
    done = run(compile_command.main, ADDRESS, "--engine", "openvino")
    assert done.exit_code == 0, done.output
    assert not (bundle.path / "engines").exists()


def test_a_file_that_is_not_the_manifests_is_not_opened(hub, published):
    """It was put there in place of the right one, so the Hub's own hash is no help."""
    published.commit({"tokenizer.json": b"{}" + bytes(1000)}, "v1")
    with pytest.raises(HubError) as caught:
        load(ADDRESS)
    said = str(caught.value)
    assert said.startswith("tokenizer.json of org/demo at ")
    assert "the manifest of hf://org/demo@v1 names" in said
    assert not list(fetched_blobs(b"{}" + bytes(1000)))


def fetched_blobs(content):
    from huggingface_hub import constants

    blobs = Path(constants.HF_HUB_CACHE).rglob("blobs/*")
    return (path for path in blobs if path.read_bytes() == content)


def test_a_small_file_that_is_not_the_manifests_is_removed(hub, published):
    published.commit({"graphs/fusion.onnx": b"no graph"}, "v1")
    with pytest.raises(HubError, match="is not the file that the manifest of hf://org/demo@v1"):
        load(ADDRESS)
    assert not list(fetched_blobs(b"no graph"))


def test_a_bundle_that_was_damaged_in_the_cache(hub, published):
    """Opening it says how to mend it, and that mends it."""
    bundle = open_bundle(ADDRESS)
    blob = bundle.file("tokenizer.json").resolve()
    blob.write_bytes(b"{}")
    with pytest.raises(BundleError) as caught:
        open_bundle(ADDRESS)
    way_out = f"ris-models fetch hf://org/demo@{published.branches['v1']}"
    assert str(caught.value).endswith(f"(sha256 differs). Fetch it again: {way_out}")

    done = run(models.main, "fetch", way_out.split()[-1])
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[0] == str(bundle.path)
    assert open_bundle(ADDRESS) == bundle


def test_a_manifest_that_is_none(hub):
    hub.repository("org/bad", {"manifest.json": b'{"format_version": 99}'})
    with pytest.raises(BundleError, match=r"hf://org/bad: .* has format version 99"):
        load("hf://org/bad")
    hub.repository("org/worse", {"manifest.json": b"[]"})
    with pytest.raises(BundleError, match=r"is damaged: .*; tell those who published it"):
        load("hf://org/worse")


def test_a_manifest_that_is_too_large_is_not_downloaded(hub, monkeypatch):
    monkeypatch.setattr(bundles, "LARGEST", 1 << 20)
    hub.repository("org/huge", {"manifest.json": bytes((1 << 20) + 1)})
    with pytest.raises(HubError, match=r"^manifest\.json of org/huge has more than 1 MB$"):
        load("hf://org/huge")
    assert hub.sent() == 0


def test_a_relative_folder_of_the_cache_is_known_as_one(hub, published, monkeypatch):
    monkeypatch.chdir(open_bundle(ADDRESS).path)
    bundle = open_bundle(".")
    assert all(bundle.graph(stage).cache is None for stage in bundle.stages)


def test_names_in_a_manifest_stay_inside_the_bundle(hub, tmp_path):
    bundle = shutil.copytree(BUILT_IN, tmp_path / "copy")
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["files"]["../../outside"] = sha256_of(bundle / "golden.npz")
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    hub.folder("org/escape", bundle)
    with pytest.raises(BundleError, match="the name of a file inside the bundle"):
        load("hf://org/escape")
    assert not any("outside" in seen.path for seen in hub.requests)


def test_an_option_that_load_does_not_know_downloads_nothing(hub, published):
    with pytest.raises(TypeError):
        load(ADDRESS, nonsense=1)
    assert hub.requests == []


def test_no_address(hub):
    with pytest.raises(HubError, match="hf://name is no address on a Hub"):
        load("hf://name")


@pytest.mark.parametrize(
    ("engine", "device", "reason"),
    [
        ("tensorrt", "auto", "there is no driver"),
        ("onnxruntime", "cuda:1", "it has no CUDA"),
        ("onnxruntime", "npu", "it has no device 'npu'; it has cpu, cuda"),
    ],
)
def test_an_engine_that_cannot_run_is_said_before_a_download(
    hub, published, photo, monkeypatch, engine, device, reason
):
    monkeypatch.setattr(EngineSpec, "missing", lambda row: None)
    monkeypatch.setattr("ris.engines.table.driver_problem", lambda: "there is no driver")
    monkeypatch.setattr(EngineSpec, "lacks_cuda", lambda row: "it has no CUDA")
    given = ("--bundle", ADDRESS, "--engine", engine, "--device", device)
    done = run(infer.main, "photo.png", "left man", *given)
    assert done.exit_code == 2
    assert f"engine {engine!r} cannot run here: {reason}" in done.stderr
    assert not hub.sent()
