"""The disk that an export says it needs, and what it really takes at most."""

from __future__ import annotations

import dataclasses
import tempfile

import pytest
from disk_use import watched
from held_files import LEAST, UNTRAINED, Files

from ris.engines.errors import BundleError
from ris.export import bundle_writer, graph_writer, space
from ris.export.alone import kept_folder
from ris.export.bundle_writer import ExportOptions, export_bundle
from ris.export.families import DESIGNS
from ris.export.space import bundle_size, disk_needed, graph_sizes, require_disk
from ris.reference.families import FAMILIES
from traced import share_traces

MOST = 1.3
"""How much more than it takes an export may say that it needs."""

LISA, EVFSAM = ("lisa", "tiny-lisa"), ("evfsam", "tiny-evfsam")


def sizes(family, preset, precision="fp32", format=None):
    config = FAMILIES[family].presets[preset]
    stages = DESIGNS[family].stages(config)
    formats = {s.name: format for s in stages if s.narrow_weights} if format else {}
    return graph_sizes(stages, FAMILIES[family].empty_model(config), precision, formats)


@pytest.fixture(scope="module")
def reading(tmp_path_factory):
    """Gives LISA's model whose large matrices are read, always the same; it is traced once."""
    model, traces = Files(*LISA, tmp_path_factory.mktemp("files")).model(), {}
    original = graph_writer.trace_onnx

    def trace_onnx(module, stage, path, **options):
        if stage.name not in traces:
            traced = original(module, stage, path, **options)
            traces[stage.name] = traced, path.read_bytes()
        traced, graph = traces[stage.name]
        path.write_bytes(graph)
        return dataclasses.replace(traced, path=path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph_writer, "trace_onnx", trace_onnx)
        yield lambda: model


@pytest.mark.parametrize(
    ("model", "precision", "format", "files"),
    [
        (LISA, "fp32", None, "held by the model"),
        (LISA, "fp32", "int8", "read, rounded as they are written"),
        (LISA, "fp32", "int4", "read"),
        (LISA, "bf16", None, "read"),
        (LISA, "fp16", None, "held by the model"),
        (EVFSAM, "fp32", None, "held by the model"),
        (EVFSAM, "fp32", "int4", "held by the model"),
        (EVFSAM, "bf16", "int8", "held by the model"),
    ],
)
def test_what_is_said_is_enough_and_not_much_more_than_that(
    model, precision, format, files, reading, tmp_path, monkeypatch
):
    """Temporary files, of which FP16 makes copies, are on the same disk here."""
    share_traces()
    (family, preset), said = model, []
    out, copies = tmp_path / "out", tmp_path / "temporary"
    for folder in (out, copies):
        folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(copies))
    monkeypatch.setattr(space, "LEAST", LEAST)
    monkeypatch.setattr(bundle_writer, "require_disk", lambda out, needed: said.append(needed))
    for module in (graph_writer, space):
        monkeypatch.setattr(module, "DIRECT_FROM", 0 if "rounded" in files else 1 << 40)

    made, config = FAMILIES[family], FAMILIES[family].presets[preset]
    make = reading if "read" in files else lambda: made.made_up_model(config, 0)
    options = ExportOptions(precision=precision, weights={"": format} if format else {})
    with watched(out, copies) as use:
        export_bundle(
            make,
            config,
            out / "bundle",
            family=family,
            source=UNTRAINED,
            options=options,
        )
    [needed] = said
    assert use.peak <= needed <= MOST * use.peak, use.at


def test_what_two_graphs_share_counts_once_in_a_bundle():
    found = {one.stage: one for one in sizes(*LISA)}
    prefix, question = found["language_prefix"], found["language_question"]
    shared = sum(prefix.tensors[key] for key in set(prefix.tensors) & set(question.tensors))
    assert shared > question.written / 2
    whole = sum(one.written for one in found.values())
    assert bundle_size(list(found.values())) == whole - shared


def test_copies_on_another_disk_do_not_count(tmp_path, monkeypatch):
    found = sizes(*EVFSAM, precision="fp16")
    here = disk_needed(found, tmp_path / "bundle")
    monkeypatch.setattr(space, "_is_beside", lambda folder, out: False)
    assert disk_needed(found, tmp_path / "bundle") < here


def test_narrow_weights_that_are_rounded_at_once_need_little(tmp_path, monkeypatch):
    out = tmp_path / "bundle"
    afterwards = disk_needed(sizes(*LISA, format="int4"), out, kept=True)
    monkeypatch.setattr(space, "DIRECT_FROM", 0)
    monkeypatch.setattr(space, "LEAST", LEAST)
    config = FAMILIES["lisa"].presets["tiny-lisa"]
    stages = DESIGNS["lisa"].stages(config)
    formats = {s.name: "int4" for s in stages if s.narrow_weights}
    model = FAMILIES["lisa"].empty_model(config)
    at_once = graph_sizes(stages, model, "fp32", formats, large=True)
    assert disk_needed(at_once, out, kept=True) < 0.7 * afterwards


def test_what_a_stopped_export_left_counts_as_free(tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(space.shutil, "disk_usage", lambda folder: usage)
    out = tmp_path / "not-there" / "bundle"
    with pytest.raises(BundleError, match="the disk is too full: the export needs about"):
        require_disk(out, 1500)
    kept_folder(out).mkdir(parents=True)
    (kept_folder(out) / "stage.onnx.data").write_bytes(bytes(600))
    require_disk(out, 1500)
