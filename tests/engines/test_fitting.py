"""Which compiled graphs serve a run that asks for something else."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ris.engines import Graph, TensorSpec
from ris.engines.fitting import ANY_AMPERE, largest, misfit, most_expressions
from ris.engines.recipe import Recipe

OPTIONS = {
    "build_version": 2,
    "workspace": None,
    "version_compatible": False,
    "hardware_compatible": False,
    "strip_weights": False,
}
WANTED = Recipe(
    stage="fusion",
    onnx={"fusion.onnx": "a" * 64},
    engine="tensorrt",
    version="10.16.1.11, library 10.16.1.11, cu13",
    device="sm_90, NVIDIA H200, 132 SMs, 140 GiB",
    profiles={"x": [[1, 4], [1, 4], [1, 4]], "index": [[1], [1], [3]]},
    options=OPTIONS,
)
LARGER = {"x": [[1, 4], [1, 4], [2, 4]], "index": [[1], [1], [8]]}


def found(**changed):
    return replace(WANTED, **changed).to_dict()


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"profiles": LARGER},
        {"options": OPTIONS | {"workspace": 2**20, "strip_weights": True}},
        {"options": OPTIONS | {"version_compatible": True}, "version": "10.14.0.1, library, cu12"},
        {"options": OPTIONS | {"hardware_compatible": True}, "device": ANY_AMPERE},
    ],
)
def test_what_does_all_that_is_asked_serves(changed):
    assert not misfit(found(**changed), WANTED)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"onnx": {"fusion.onnx": "b" * 64}}, "onnx.fusion.onnx"),
        ({"engine": "tensorrt-rtx"}, "engine"),
        ({"device": "sm_90, NVIDIA H200, 16 SMs, 18 GiB"}, "device"),
        ({"device": ANY_AMPERE}, "device"),  # it does not say that it was compiled so
        ({"version": "10.14.0.1"}, "version"),
        (
            {"options": OPTIONS | {"version_compatible": True}, "version": "11.4.0.106"},
            "version",  # later ones run on none before
        ),
        ({"options": OPTIONS | {"build_version": 1}}, "options.build_version"),
        ({"profiles": {"x": LARGER["x"]}}, "profiles.index"),
        ({"profiles": LARGER | {"index": [[1], [1], [2]]}}, "profiles.index"),
        ({"profiles": LARGER | {"index": [[2], [2], [8]]}}, "profiles.index"),
        ({"profiles": LARGER | {"index": "8"}}, "profiles.index"),
        ({"profiles": LARGER | {"index": [[1, 1], [1, 1], [8, 8]]}}, "profiles.index"),
        ({"platform": "Linux-riscv64"}, "platform"),
    ],
)
def test_what_lacks_something_is_named(changed, named):
    assert named in misfit(found(**changed), WANTED)


@pytest.mark.parametrize("name", ["version_compatible", "hardware_compatible", "strip_weights"])
def test_what_a_run_asks_for_must_be_there(name):
    asked = replace(WANTED, options=OPTIONS | {name: True})
    assert f"options.{name}" in misfit(found(), asked)
    assert not misfit(asked.to_dict(), asked)


def test_the_gpu_must_be_one_of_those_that_compatible_plans_are_for():
    plan = found(options=OPTIONS | {"hardware_compatible": True}, device=ANY_AMPERE)
    for device, serves in (("sm_80, A, 1 SMs", True), ("sm_120, B", True), ("sm_75, T4", False)):
        assert bool(misfit(plan, replace(WANTED, device=device))) is not serves


def test_limits_are_read_off_the_shapes():
    x = TensorSpec("x", "float32", ("images", 4))
    index = TensorSpec("index", "int32", ("expressions",))
    graph = Graph("fusion", None, (x, index), ())
    assert most_expressions(LARGER, graph) == 8
    assert most_expressions(LARGER, replace(graph, inputs=(x,))) is None
    assert largest(LARGER) == 16
    assert largest({"x": "all"}) < largest({}) == largest(None) == 0


def test_what_openvino_fixed_less_of_serves_and_the_closest_comes_first():
    both = replace(WANTED, engine="openvino", profiles={"images": 1, "expressions": 1})
    for fixed in ({}, {"images": 1}, {"expressions": 1}, dict(both.profiles)):
        assert not misfit(both.to_dict() | {"profiles": fixed}, both)
    images = replace(both, profiles={"images": 1})
    assert "profiles.expressions" in misfit(both.to_dict(), images)  # it takes one alone
    assert "profiles.images" in misfit(both.to_dict() | {"profiles": {"images": 2}}, both)
    assert "profiles.images" in misfit(both.to_dict() | {"profiles": {"images": [1]}}, both)
    assert largest({"images": 1, "expressions": 1}) < largest({"images": 1}) < largest({})

    tensorrt = replace(both, engine="tensorrt")  # whose plans have a range of each input
    assert "profiles.expressions" in misfit(
        tensorrt.to_dict() | {"profiles": {"images": 1}}, tensorrt
    )
