"""Bundles whose files are links answer on every engine: Hugging Face's cache, git-annex, DVC."""

from __future__ import annotations

import errno
import os
import shutil

import numpy as np
import pytest
from linked_folders import annex, folders, hub

from ris.engines import EngineOptions, create
from ris.engines.linked import linked_weights, without_links
from ris.runtime import open_bundle
from ris.runtime.parity import check_stage, graph_feeds, load_golden


@pytest.mark.parametrize("lay", [hub, annex, folders])
@pytest.mark.parametrize("name", ["tiny_bundle", "tiny_fp16_bundle"])
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_it_answers_as_the_bundle_itself(request, tmp_path, monkeypatch, engine, name, lay):
    pytest.importorskip(engine)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    bundle = open_bundle(lay(request.getfixturevalue(name), tmp_path / "laid"))
    graph, golden = bundle.graph("text_encoder"), load_golden(bundle)
    with create(engine).load(graph) as session:
        rows = check_stage("text_encoder", session, golden)
        assert all(row.relative < 2e-2 for row in rows.values())
        session.run(graph_feeds(graph, golden))


@pytest.mark.parametrize("crosses", [False, True])
def test_the_files_themselves_lie_beside_the_graph(tiny_bundle, tmp_path, monkeypatch, crosses):
    """Also where hard links would cross to another file system."""

    def refuse(source, target):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    if crosses:
        monkeypatch.setattr(os, "link", refuse)
    graph = open_bundle(hub(tiny_bundle, tmp_path / "hub")).graph("fusion")
    place = tmp_path / "place"
    place.mkdir()
    with without_links(graph, place) as path:
        files = sorted(path.parent.iterdir())
        assert [file.name for file in files] == ["fusion.onnx", "fusion.onnx.data"]
        assert not any(file.is_symlink() for file in files)
        assert path.read_bytes() == graph.path.read_bytes()
    assert not list(place.iterdir())

    [(name, weights)] = linked_weights(graph).items()
    assert name == "fusion.onnx.data"
    assert np.array_equal(weights, np.fromfile(tiny_bundle / "graphs" / name, np.uint8))


def test_a_bundle_without_links_is_read_as_it_is(tiny_bundle, tmp_path):
    graph = open_bundle(tiny_bundle).graph("fusion")
    with without_links(graph, tmp_path) as path:
        assert path == graph.path
    assert linked_weights(graph) == {}


def test_another_form_of_a_linked_graph_has_its_own_weights(tiny_bundle, tmp_path):
    """As calibration makes it: the same graph's name, elsewhere, with other data."""
    plain = open_bundle(tiny_bundle)
    graph = open_bundle(hub(tiny_bundle, tmp_path / "hub")).graph("text_encoder")
    feeds = graph_feeds(graph, load_golden(plain))
    other = shutil.copy(graph.path, tmp_path / graph.path.name)
    zeros = bytes(graph.path.with_name(f"{graph.path.name}.data").stat().st_size)
    (tmp_path / f"{graph.path.name}.data").write_bytes(zeros)
    engine = create("onnxruntime", EngineOptions("cpu"))

    def features(opened, graph, path):
        with opened(graph, path) as session:
            return session.run(feeds)["text_features"]

    wanted = features(engine.open, plain.graph("text_encoder"), other)
    assert np.abs(wanted - features(engine.open, graph, graph.path)).max() > 0.1
    assert np.array_equal(features(engine.open, graph, other), wanted)
    assert np.array_equal(features(engine.open_in_order, graph, other), wanted)


def test_what_openvino_refuses_is_said(tiny_bundle, tmp_path, monkeypatch):
    """The reason, not what OpenVINO was doing."""
    module = pytest.importorskip("ris.engines.openvino")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    graph = open_bundle(hub(tiny_bundle, tmp_path / "hub")).graph("fusion")
    engine = create("openvino", EngineOptions())
    with pytest.raises(module.EngineError, match="outside the base directory"):
        engine._compile(graph, graph.path, ["fp32"], False)
