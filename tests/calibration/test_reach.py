"""What runs anew where a graph has changed: what the masks depend on, and nothing else."""

from __future__ import annotations

import made_up_family
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from stages import STAGES

from ris.calibration.int8.chain import Chain
from ris.calibration.numerics.reach import Reach, inputs_behind
from ris.calibration.samples import scene_set
from ris.runtime import BUILT_IN, open_bundle

SAM, CLIP, FEATURES, TEXT, FUSION, DECODER = STAGES


def test_the_masks_need_no_fusion_for_another_sam():
    """What the fusion takes of SAM's encoder, through a stage, decides "no target" alone."""
    reach = Reach(open_bundle(BUILT_IN, verify=False))
    assert reach.touched([SAM]) == [SAM, DECODER]
    assert reach.touched([CLIP]) == [CLIP, FEATURES, FUSION, DECODER]
    assert reach.touched([TEXT]) == [TEXT, FUSION, DECODER]
    assert reach.touched([DECODER]) == [DECODER]
    assert reach.touched([DECODER, SAM, CLIP]) == [SAM, CLIP, FEATURES, FUSION, DECODER]
    assert reach.touched([]) == []


def test_stages_of_another_family(made_up_bundle):
    """Through a stage that takes another's output, and through a resize."""
    reach = Reach(open_bundle(made_up_bundle))
    if made_up_bundle.name == "whole":
        assert reach.touched(["everything"]) == ["everything"]
        return
    assert reach.touched(["look"]) == ["look", "pool", "find", "draw"]
    assert reach.touched(["pool"]) == ["pool", "find", "draw"]
    assert reach.touched(["read"]) == ["read", "find", "draw"]
    assert reach.touched(["draw"]) == ["draw"]


def branching(path):
    """One output of a branch that takes `b` from outside, one of `a` alone, one of nothing."""

    def inner(name, given):
        value = helper.make_tensor_value_info(name, TensorProto.FLOAT, [1])
        return helper.make_graph([helper.make_node("Neg", [given], [name])], name, [], [value])

    nodes = [
        helper.make_node(
            "If", ["c"], ["one"], then_branch=inner("x", "b"), else_branch=inner("y", "one_a")
        ),
        helper.make_node("Neg", ["one_a"], ["two"]),
        helper.make_node("Neg", ["k"], ["three"]),
    ]
    nodes.insert(0, helper.make_node("Abs", ["a"], ["one_a"]))
    kinds = {"a": TensorProto.FLOAT, "b": TensorProto.FLOAT, "c": TensorProto.BOOL}
    inputs = [helper.make_tensor_value_info(name, kind, [1]) for name, kind in kinds.items()]
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1])
        for name in ("one", "two", "three")
    ]
    weight = helper.make_tensor("k", TensorProto.FLOAT, [1], [1.0])
    model = helper.make_model(helper.make_graph(nodes, "g", inputs, outputs, [weight]))
    onnx.checker.check_model(model)
    onnx.save_model(model, path)
    return path


def test_branches_take_what_is_outside(tmp_path):
    found = inputs_behind(branching(tmp_path / "a.onnx"))
    assert found == {"one": {"a", "b", "c"}, "two": {"a"}, "three": set()}


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chain")
    bundle = open_bundle(made_up_family.write(folder / "chained", "chained"))
    made = Chain(bundle, scene_set(3), folder / "recorded")
    made.record()
    return made


def test_a_chain_is_fed_as_the_model_is(chain):
    """Recorded masks are those of the runtime, and so are those of what is run anew."""
    from ris.runtime import load

    sample = chain.samples[0]
    with load(chain.bundle.path, engine="onnxruntime") as model:
        found = model.encode_image(sample.rgb).segment_many(sample.expressions)
    recorded = chain.recorded(0, "draw")["logits"]
    np.testing.assert_allclose(recorded[:, 0], [r.logits for r in found], rtol=1e-5, atol=1e-5)


def test_what_has_not_changed_is_not_run(chain, monkeypatch):
    """The same graphs again: the masks are the same, and only what lies behind is opened."""
    opened = []
    right = Chain.open

    def noted(self, stage, path=None):
        opened.append(stage)
        return right(self, stage, path)

    monkeypatch.setattr(Chain, "open", noted)
    for stage, behind in (("pool", ["pool", "find", "draw"]), ("draw", ["draw"])):
        path = chain.bundle.graph(stage).path
        assert chain.score({stage: path}).iou == 1
        assert opened == behind
        opened.clear()
