"""What `auto` computes in: bfloat16 where it pays and the masks bear it, FP32 else; and it is said.

Whether this CPU has bfloat16, and how fast it is, is made up, but for what is marked.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
from click.testing import CliRunner
from PIL import Image
from stages import BF16_STAGES, STAGES

from ris.engines import EngineOptions, select
from ris.engines.errors import BundleError, EngineError
from ris.engines.probe import Probe
from ris.runtime import computing, doctor, load, open_bundle
from ris.runtime.commands import compile as compile_command
from ris.runtime.commands import doctor as doctor_command
from ris.runtime.commands import infer as infer_command
from ris.runtime.computing import VARIABLE, settle

openvino = pytest.importorskip("openvino", reason="OpenVINO is not installed")
from ris.engines import openvino as engine_module  # noqa: E402 - it needs OpenVINO
from ris.engines import openvino_layers  # noqa: E402

BF16 = "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
needs_bf16 = pytest.mark.skipif(not BF16, reason="this CPU has no bfloat16")

GOOD = {"gain": 3.0, "mask_iou": 0.99, "accepted": 0.985, "failures": []}
BAD = GOOD | {"mask_iou": 0.97, "failures": ["mask IoU 0.97000, accepted from 0.985"]}
SLOW = {"gain": 0.6, "mask_iou": None, "accepted": None, "failures": []}


@pytest.fixture(autouse=True)
def nothing_asked(monkeypatch, tmp_path):
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def has_bf16(monkeypatch):
    """A CPU that says it has bfloat16; what is compiled for it is compiled for this one."""
    monkeypatch.setattr(engine_module.OpenVinoEngine, "computes", lambda self: ["fp32", "bf16"])
    if not BF16:
        monkeypatch.setitem(engine_module._CAPABILITIES, "bf16", "FP32")
        monkeypatch.setitem(engine_module._HINTS, "bf16", "f32")


@pytest.fixture
def measures(monkeypatch):
    """Sets what a measurement finds, and counts them."""
    calls = []

    def say(found):
        def measure(*given):
            calls.append(given)
            if isinstance(found, Exception):
                raise found
            return found

        monkeypatch.setattr(computing, "_measure", measure)
        return calls

    return say


def settled(bundle, compute=None, **options):
    opened = bundle if isinstance(bundle, computing.Bundle) else open_bundle(bundle)
    return settle(opened, select("openvino"), EngineOptions(**options), compute).choice


@pytest.mark.parametrize(
    ("found", "taken", "why"),
    [
        (GOOD, "bf16", "bfloat16 products are 3.0 times as fast as FP32 ones here and the masks"),
        (BAD, "fp32", "out of tolerance: mask IoU 0.97000"),
        (SLOW, "fp32", "bfloat16 products are 0.6 times as fast as FP32 ones here"),
    ],
)
def test_it_takes_bf16_where_that_pays_and_the_masks_bear_it(
    bundle_copy, has_bf16, measures, found, taken, why
):
    measures(found)
    choice = settled(bundle_copy)
    assert (choice.asked, choice.taken) == ("auto", taken)
    assert why in choice.why
    assert choice.words.startswith(f"{taken}, since ")
    narrow = {stage: "bf16" for stage in BF16_STAGES if taken == "bf16"}
    assert choice.by_stage == dict.fromkeys(STAGES, "fp32") | narrow
    assert choice.to_dict() == {
        "asked": "auto",
        "taken": taken,
        "why": choice.why,
        **{name: found[name] for name in ("gain", "mask_iou", "accepted")},
    }


def test_it_is_measured_once_and_kept_with_the_compiled_graphs(bundle_copy, has_bf16, measures):
    calls = measures(GOOD)
    first = settled(bundle_copy)
    assert settled(bundle_copy, threads=1) == first
    assert settled(bundle_copy, build=False) == first
    assert len(calls) == 1
    [record] = bundle_copy.glob("engines/*/auto-compute.plan")
    assert json.loads(record.read_text()) == GOOD

    # what somebody wrote there is no measurement of this user's
    record.write_text(json.dumps(GOOD | {"mask_iou": 1.0}))
    settled(bundle_copy)
    opened = open_bundle(bundle_copy)  # and another model is measured by itself
    settled(replace(opened, manifest=replace(opened.manifest, writer={})))
    assert len(calls) == 3


def test_without_bfloat16_in_the_cpu_or_in_the_bundle_nothing_is_measured(
    tiny_bundle, measures, monkeypatch
):
    calls = measures(GOOD)
    monkeypatch.setattr(engine_module.OpenVinoEngine, "computes", lambda self: ["fp32"])
    choice = settled(tiny_bundle)
    assert choice.words == "fp32, since this CPU does not multiply bfloat16"

    opened = open_bundle(tiny_bundle)
    stages = tuple(replace(stage, bfloat16=False) for stage in opened.manifest.stages)
    none = replace(opened, manifest=replace(opened.manifest, stages=stages))
    choice = settled(none)
    assert choice.words == "fp32, since no graph of the bundle is precise enough in bfloat16"
    assert set(choice.by_stage.values()) == {"fp32"}
    assert calls == []


def test_what_is_asked_for_is_obeyed_and_not_measured(bundle_copy, has_bf16, measures, monkeypatch):
    calls = measures(BAD)
    choice = settled(bundle_copy, "bf16")
    assert choice.words == "bf16, as asked"
    assert {s for s, one in choice.by_stage.items() if one == "bf16"} == set(BF16_STAGES)
    assert set(settled(bundle_copy, "fp32").by_stage.values()) == {"fp32"}
    named = settled(bundle_copy, dict.fromkeys(BF16_STAGES, "bf16"))
    assert named.by_stage == dict.fromkeys(STAGES, "fp32") | dict.fromkeys(BF16_STAGES, "bf16")
    monkeypatch.setenv(VARIABLE, "fp32")
    assert set(settled(bundle_copy).by_stage.values()) == {"fp32"}
    assert settled(bundle_copy, "bf16").taken == "bf16"
    assert calls == []

    assert settled(bundle_copy, "auto").taken == "fp32"  # over what the environment says
    single = settled(bundle_copy, {"*": "auto", "fusion": "bf16"})
    assert single.by_stage == dict.fromkeys(STAGES, "fp32") | {"fusion": "bf16"}
    assert len(calls) == 1
    monkeypatch.setenv(VARIABLE, "half")
    with pytest.raises(EngineError, match="RIS_COMPUTE: there is no precision 'half'; known are"):
        settled(bundle_copy)


def test_nothing_is_measured_where_nothing_may_be_compiled(bundle_copy, has_bf16, measures):
    calls = measures(GOOD)
    with pytest.raises(EngineError, match=r"not measured here yet; run ris-compile, or say it"):
        settled(bundle_copy, build=False)
    assert settled(bundle_copy, "fp32", build=False).taken == "fp32"
    assert calls == []


def test_what_cannot_be_measured_is_fp32_and_not_kept(bundle_copy, has_bf16, measures):
    measures(BundleError("golden.npz cannot be read"))
    choice = settled(bundle_copy)
    assert choice.words == (
        "fp32, since what bfloat16 costs here could not be measured: golden.npz cannot be read"
    )
    assert not list(bundle_copy.glob("engines/*/auto-compute.plan"))


def test_an_engine_without_a_choice_says_so(tiny_bundle, monkeypatch):
    monkeypatch.setenv(VARIABLE, "bf16")  # it is for those that have one
    with load(tiny_bundle, engine="onnxruntime") as model:
        assert model.choice.taken is None
        assert model.choice.words.endswith("since onnxruntime leaves no choice")
    with load(tiny_bundle, engine="onnxruntime", compute="fp32") as model:  # which it is
        assert model.choice.words == "fp32, as asked"
        assert {info.precision for info in model.sessions.values()} == {"fp32"}
    with pytest.raises(EngineError, match="'onnxruntime' has no option compute"):
        load(tiny_bundle, engine="onnxruntime", compute="bf16")


@needs_bf16
@pytest.mark.parametrize("name", ["tiny_bundle", "tiny_fp16_bundle"])
def test_what_runs_is_what_was_chosen(request, name, tmp_path, monkeypatch):
    """Measured in earnest, on a CPU that has bfloat16, whatever it gains there."""
    monkeypatch.setattr(openvino_layers, "bf16_gain", lambda: 2.0)
    monkeypatch.setattr(engine_module, "bf16_gain", lambda: 2.0)
    ignored = shutil.ignore_patterns("engines")
    bundle = shutil.copytree(request.getfixturevalue(name), tmp_path / "bundle", ignore=ignored)
    said = []
    with load(bundle, engine="openvino", progress=lambda *event: said.append(event[1])) as model:
        assert model.choice.taken == "bf16"
        assert 0.985 <= model.choice.mask_iou < 0.9999
        ran = {stage: info.precision for stage, info in model.sessions.items()}
        assert ran == dict.fromkeys(STAGES, "fp32") | dict.fromkeys(BF16_STAGES, "bf16")
    assert said.count("compiling") == len(STAGES)  # once, for the measurement and for what runs
    assert said[-1] == "checking the masks in bfloat16"
    said.clear()

    monkeypatch.setattr(computing, "check_model", lambda *given: pytest.fail("it is measured"))
    with load(bundle, engine="openvino", progress=lambda *event: said.append(event)) as model:
        assert model.choice.taken == "bf16"
        assert said == []


def test_how_much_faster_is_by_the_best_of_each(monkeypatch):
    """The clock is made up: FP32 takes 6, 4, 4, ... seconds and bfloat16 3, 1, 1, ..."""
    spent = iter([6, 3, *[4, 1] * 20])
    clock = [0.0]

    class Request:
        def infer(self, *given, **named):
            clock[0] += next(spent)

    class Core:
        def compile_model(self, model, device, settings):
            assert settings["INFERENCE_NUM_THREADS"] == 1
            return self

        def create_infer_request(self):
            return Request()

    monkeypatch.setattr(openvino_layers.openvino, "Core", Core)
    monkeypatch.setattr(openvino_layers.time, "perf_counter", lambda: clock[0])
    assert openvino_layers.bf16_gain.__wrapped__() == 4.0


def test_the_commands_say_what_was_chosen_and_why(
    bundle_copy, has_bf16, measures, monkeypatch, tmp_path
):
    measures(SLOW)
    probed = Probe("openvino", "cpu", "1.0", ("CPU",), None)
    monkeypatch.setattr(doctor, "probe_apart", lambda name, device: probed)
    monkeypatch.chdir(tmp_path)
    bundle = str(bundle_copy)
    why = "fp32, since bfloat16 products are 0.6 times as fast as FP32 ones here"

    def run(command, *arguments):
        done = CliRunner().invoke(command, arguments, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done

    compiled = run(compile_command.main, bundle, "--engine", "openvino")
    assert f"compute auto: {why}" in compiled.stderr
    picture = str(tmp_path / "park.png")
    Image.new("RGB", (64, 48), "red").save(picture)
    options = [picture, "man", "--bundle", bundle, "--engine", "openvino"]
    assert f"compute auto: {why}" in run(infer_command.main, *options, "-v").stderr
    told = json.loads(run(infer_command.main, *options, "--json").stdout)["compute"]
    assert (told["asked"], told["taken"], told["gain"]) == ("auto", "fp32", 0.6)
    if select().name == "openvino":
        assert f"compute auto: {why}" in run(doctor_command.main, bundle).stdout
        told = json.loads(run(doctor_command.main, bundle, "--json").stdout)["bundle"]
        assert told["compute"]["why"] == why.removeprefix("fp32, since ")
        assert told["graphs"]["fusion"]["computes_in"] == "fp32"
