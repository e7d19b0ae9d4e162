"""Exports of families unlike `dfam`: what a design says is checked, kept, and never guessed."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
import toy_family
from onnx import TensorProto, helper
from torch import nn

from ris.calibration.int8.options import Int8Options
from ris.calibration.int8.quantise import quantise_bundle
from ris.calibration.numerics import emulated
from ris.calibration.samples import scene_set
from ris.engines import TensorSpec
from ris.engines.errors import BundleError, ParityError
from ris.export.bundle_writer import (
    ExportOptions,
    ExportResult,
    _write_categories,
    export_bundle,
)
from ris.export.command import _print_next
from ris.export.families import DESIGNS
from ris.export.fp16 import ACCEPTED, _error
from ris.export.onnx_writer import name_input, write_onnx
from ris.reference.families import FAMILIES
from ris.runtime import load, open_bundle
from ris.runtime.manifest import Answer, Categories, Source, StageParity

CONFIG = toy_family.ToyConfig()
LOOK, POINT = toy_family.DESIGN.stages(CONFIG)
HOST = toy_family.DESIGN.host(CONFIG)
ASKED = ["left man", "the red ball", "second car from the right"]


@pytest.fixture
def export(tmp_path, monkeypatch):
    """Exports the toy with another design, and returns the bundle."""

    def run(precision="fp32", family=None, **changed):
        family = family or toy_family.Toy()
        design = {name: lambda config, it=it: it for name, it in changed.items()}
        monkeypatch.setitem(FAMILIES, "toy", family)
        monkeypatch.setitem(DESIGNS, "toy", replace(toy_family.DESIGN, **design))
        out = tmp_path / f"toy-{precision}"
        export_bundle(
            lambda: family.made_up_model(CONFIG, 0),
            CONFIG,
            out,
            family="toy",
            source=Source("deterministic", False, 0, None, None),
            options=ExportOptions(precision=precision),
        )
        return open_bundle(out)

    return run


def toy():
    return toy_family.Toy().made_up_model(CONFIG, 0)


def axes_of(bundle, stage):
    graph = onnx.load(bundle.graph(stage).path, load_external_data=False).graph
    return {
        value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }


# what a design may not say


def test_a_design_that_contradicts_itself_is_a_sentence_before_the_work(export, tmp_path):
    class Untouched(toy_family.Toy):
        def made_up_model(self, config, seed):
            raise AssertionError("the weights were made")

    with pytest.raises(BundleError) as caught:
        export(family=Untouched(), host=replace(HOST, resizes={}))
    assert str(caught.value) == (
        "the design of the family toy contradicts itself: the stage 'point' takes the value"
        " 'wide_features', which nothing gives"
    )
    assert not list(tmp_path.iterdir())


class TwoImages(toy_family.Look):
    """Writes the number of images that it was traced with."""

    def forward(self, image):
        return super().forward(image).unflatten(0, (2, -1)).flatten(0, 1).reshape(2, 16, 8, 8)


class ThreeExpressions(toy_family.Point):
    """Gives as many rows as it was traced with."""

    def forward(self, maps, ids, whose):
        return super().forward(maps, ids, whose)[:1].expand(3, -1, -1, -1)


@pytest.mark.parametrize(
    ("kind", "stage", "words"),
    [
        (TwoImages, LOOK, "the input 'image' is [2, 3, 32, 32], not [images, 3, 32, 32]"),
        (TwoImages, LOOK, "the output 'features' is [2, 16, 8, 8], not [images, 16, 8, 8]"),
        (ThreeExpressions, POINT, "the output 'logits' is [3, 1, 16, 16], not [expressions, 1,"),
    ],
)
def test_a_module_that_fixes_an_axis_is_refused(tmp_path, kind, stage, words):
    with pytest.raises(ParityError) as caught:
        write_onnx(kind(toy()).eval(), stage, tmp_path / "g.onnx")
    assert words in str(caught.value)
    assert str(caught.value).startswith(f"{stage.name} was not traced as its stage says: ")


def test_what_lies_at_a_graphs_ends_keeps_its_name(tmp_path):
    """bfloat16 begins at a computed value; the names of a graph's ends are the stage's."""

    def value(name):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, [2])

    nodes = [
        helper.make_node("Relu", ["x"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["b"], name="second"),
        helper.make_node("Relu", ["b"], ["y"], name="third"),
    ]
    path = tmp_path / "g.onnx"
    ends = [value("x")], [value("y"), value("b")]
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", *ends)), path)
    scopes = {name: [f"m.{name}", name] for name in ("first", "second", "third")}
    before = path.read_bytes()
    for module, read in (("first", "x"), ("third", "b")):
        with pytest.raises(ValueError, match=f"{module} reads {read}, an input or output"):
            name_input(path, scopes, module, "fused")
        assert path.read_bytes() == before
    name_input(path, scopes, "second", "fused")
    assert [list(node.input) for node in onnx.load(path).graph.node] == [["x"], ["fused"], ["b"]]


# what a design may say


class OfOneImage(nn.Module):
    """The question's stage, without the number of an image."""

    def __init__(self, model):
        super().__init__()
        self.words, self.project = model.words, model.project

    def forward(self, maps, ids):
        real = (ids != toy_family.PAD).to(maps)[..., None]
        word = (self.words(ids.long()) * real).sum(1) / real.sum(1)
        found = self.project(word)[:, None] @ maps.flatten(2)
        return found.unflatten(2, tuple(maps.shape[2:]))


def test_a_family_that_asks_about_one_image(export, toy_bundle, picture):
    """Nothing says which of several images a question is about, so the graph has one."""
    point = replace(
        POINT,
        inputs=POINT.inputs[:2],
        build=lambda model, sampling: OfOneImage(model).eval(),
    )
    bundle = export(stages=(LOOK, point), host=replace(HOST, image_index=None))
    assert axes_of(bundle, "look")["image"] == ["images", 3, 32, 32]  # it may have several
    assert axes_of(bundle, "point") == {
        "maps": [1, 16, 16, 16],
        "ids": ["expressions", 9],
        "logits": ["expressions", 1, 16, 16],
    }
    with load(bundle.path, engine="onnxruntime") as model:
        got = model.encode_image(picture).segment_many(ASKED)
    with load(toy_bundle, engine="onnxruntime") as model:
        want = model.encode_image(picture).segment_many(ASKED)
    for one, other in zip(got, want, strict=True):
        np.testing.assert_allclose(one.logits, other.logits, atol=1e-5)


def test_files_in_folders(export, tmp_path):
    """The tokenizer, the table and what calibration makes of a bundle."""
    host = replace(HOST, text=replace(HOST.text, tokenizer="text/of/words.json"))
    bundle = export(host=host)
    assert set(bundle.manifest.files) == {"golden.npz", "text/of/words.json"}
    options = Int8Options(calibrator="minmax", max_iou_drop=0.5, sensitivity=False)
    quantise_bundle(bundle, scene_set(2), tmp_path / "int8", options)
    assert (tmp_path / "int8" / "text" / "of" / "words.json").is_file()
    with emulated(export("fp16", host=host)) as exact:
        assert (exact.path / "text" / "of" / "words.json").is_file()

    files = Categories("tables/names/c.json", "tables/rows/c.npy", "category")
    _write_categories(tmp_path, files, [{"name": "ball"}], np.zeros((1, 4), np.float32))
    assert json.loads((tmp_path / files.names).read_text()) == [{"name": "ball"}]
    assert np.load(tmp_path / files.features).shape == (1, 4)


def test_the_next_command_names_a_category_of_the_table(toy_bundle, tmp_path, capsys):
    (tmp_path / "c.json").write_text('[{"name": "barn owl", "thing": true, "synonyms": []}]')
    manifest = open_bundle(toy_bundle).manifest
    host = replace(manifest.host, categories=Categories("c.json", "c.npy", "category"))
    _print_next(ExportResult(tmp_path, replace(manifest, host=host), None), None)
    assert "\"left man\" --category 'barn owl' --bundle " in capsys.readouterr().out


# the no-target logits below FP32


class Refusing(toy_family.ToyModel):
    """Decides by the difference of two layers that FP16 cannot tell from each other."""

    def __init__(self, config):
        super().__init__(config)
        self.refuse, self.accept = (nn.Linear(config.width, 2, bias=False) for _ in range(2))

    def decide(self, tokens):
        real = (tokens != toy_family.PAD).float()[..., None]
        word = (self.words(tokens) * real).sum(1) / real.sum(1)
        return self.refuse(word) - self.accept(word)


class RefusingToy(toy_family.Toy):
    def empty_model(self, config, **options):
        with torch.device("meta"):
            return Refusing(config).eval()

    def made_up_model(self, config, seed):
        model = Refusing(config).eval().requires_grad_(False)
        model.load_state_dict(toy().state_dict(), strict=False)
        generator = torch.Generator().manual_seed(seed)
        rows = torch.rand(2, config.width, generator=generator) + 1
        model.accept.weight.copy_(rows)
        model.refuse.weight.copy_(rows + 1e-4)
        return model

    def ask(self, model, values):
        return super().ask(model, values) | {"refusals": model.decide(values["tokens"])}


class PointAndRefuse(toy_family.Point):
    def __init__(self, model):
        super().__init__(model)
        self.refuse, self.accept = model.refuse, model.accept

    def forward(self, maps, ids, whose):
        real = (ids != toy_family.PAD).to(maps)[..., None]
        word = (self.words(ids.long()) * real).sum(1) / real.sum(1)
        return super().forward(maps, ids, whose), self.refuse(word) - self.accept(word)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_the_size_of_the_no_target_error_is_not_judged(export, precision):
    """Nor does it make islands. What the head decides is judged of the whole bundle."""
    refusals = TensorSpec("refusals", "float32", ("expressions", 2))
    point = replace(
        POINT,
        outputs=(*POINT.outputs, refusals),
        build=lambda model, sampling: PointAndRefuse(model).eval(),
        whole={},
    )
    answer = Answer("logits", "refusals", "bilinear", 4.5)
    bundle = export(precision, RefusingToy(), stages=(LOOK, point), answer=answer)
    entry = bundle.manifest.graphs["point"]
    assert entry.precision == precision
    assert bundle.manifest.parity["point.refusals"].relative > 10 * ACCEPTED
    assert not [why for why in entry.fp32_islands.values() if "without it the error" in why]


def test_a_no_target_error_that_is_not_finite_counts():
    def row(relative):
        return StageParity(relative, relative, relative, 1.0)

    assert _error({"a.x": row(0.1), "a.y": row(3.0)}, ("a.y", {})) == 0.1
    assert _error({"a.x": row(0.1), "a.y": row(3.0)}, (None, {})) == 3.0
    assert _error({"a.x": row(0.1), "a.y": row(np.inf)}, ("a.y", {})) == np.inf
    assert _error({"a.y": row(3.0)}, ("a.y", {})) == 0.0


@pytest.mark.parametrize(("relative", "accepted"), [(0.04, True), (0.06, False)])
def test_behind_a_threshold_an_error_counts_by_what_is_accepted_there(relative, accepted):
    rows = {"a.x": StageParity(relative, relative, relative, 1.0)}
    assert (_error(rows, (None, {"a.x": 5e-2})) <= ACCEPTED) == accepted
    assert _error(rows, (None, {"a.x": 1e-3})) == pytest.approx(relative)
