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
from ris.runtime.commands import parity as parity_command
from ris.runtime.commands.running import Running
from ris.runtime.computing import VARIABLE, as_written, settle

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
        "fault": None,
    }


def test_an_iou_below_the_accepted_says_why_it_will_do(bundle_copy, has_bf16, measures):
    measures(GOOD | {"mask_iou": 0.97, "flipped": 0.0004})
    choice = settled(bundle_copy)
    assert choice.taken == "bf16"
    assert choice.why.endswith(
        "an IoU of 0.9700 with the reference's (accepted from 0.985), or from less where as few"
        " pixels differ, 0.040% here"
    )


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


def test_it_is_measured_again_on_another_cpu_of_the_same_name(
    bundle_copy, has_bf16, measures, monkeypatch
):
    """A hypervisor may call all of its CPUs alike."""
    calls = measures(GOOD)
    for features in ({"avx512_bf16", "sse"}, {"avx512_bf16", "mmx"}, {"avx512_bf16", "amx_bf16"}):
        monkeypatch.setattr(computing, "cpu_features", lambda has=features: frozenset(has))
        settled(bundle_copy)
    assert len(calls) == 2


def test_force_measures_again(bundle_copy, has_bf16, measures):
    measures(GOOD)
    assert settled(bundle_copy).taken == "bf16"
    measures(SLOW)
    opened, row = open_bundle(bundle_copy), select("openvino")
    assert settle(opened, row, EngineOptions(), anew=True).choice.taken == "fp32"
    assert settled(bundle_copy).taken == "fp32"  # it is in the place of what was measured before
    measures(GOOD)
    done = CliRunner().invoke(
        compile_command.main, [str(bundle_copy), "--engine", "openvino", "--force", "--json"]
    )
    assert "compute auto: bf16, since" in done.stderr


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


def test_what_cannot_be_measured_now_is_fp32_and_not_kept(bundle_copy, has_bf16, measures):
    measures(EngineError("no memory"))
    choice = settled(bundle_copy)
    assert choice.words == "fp32, since what bfloat16 costs here could not be measured: no memory"
    assert not list(bundle_copy.glob("engines/*/auto-compute.plan"))


def test_a_reference_that_cannot_be_read_is_found_once(bundle_copy, has_bf16, monkeypatch):
    """It would come again at every start, and `build=False` would ask for what does not help."""
    tried = []

    def unreadable(bundle):
        tried.append(bundle)
        raise BundleError("golden.npz cannot be read")

    monkeypatch.setattr(computing, "load_golden", unreadable)
    monkeypatch.setattr(engine_module.OpenVinoEngine, "gain", lambda *given: 3.0)
    done = CliRunner().invoke(compile_command.main, [str(bundle_copy), "--engine", "openvino"])
    why = "what bfloat16 costs here could not be measured: golden.npz cannot be read"
    assert f"Warning: compute auto: fp32, since {why}" in done.stderr
    choice = settled(bundle_copy, build=False)
    assert (choice.taken, choice.why) == ("fp32", why)
    assert len(tried) == 1


def test_an_engine_without_a_choice_says_so(tiny_bundle, monkeypatch):
    monkeypatch.setenv(VARIABLE, "bf16")  # it is for those that have one
    with load(tiny_bundle, engine="onnxruntime") as model:
        assert model.choice.words == "fp32, since onnxruntime leaves no choice"
        assert {info.precision for info in model.sessions.values()} == {"fp32"}
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


def test_parity_asks_the_graphs_and_not_what_auto_takes(
    bundle_copy, has_bf16, measures, monkeypatch
):
    """Its tolerance would be that of bfloat16; what `auto` takes has passed that before."""
    calls = measures(GOOD)
    options = [str(bundle_copy), "--engine", "openvino"]
    done = CliRunner().invoke(parity_command.main, options)
    assert done.exit_code == 0, done.output
    assert "compute: fp32\n" in done.stderr
    assert "(accepted from 0.999" in done.stdout
    assert calls == []

    opened, row = open_bundle(bundle_copy), select("openvino")
    assert as_written(opened, row, "auto") == {"*": "fp32"}
    stages = tuple(
        replace(stage, precision="bf16" if stage.name == "fusion" else "fp16")
        for stage in opened.manifest.stages
    )
    narrow = replace(opened, manifest=replace(opened.manifest, stages=stages))
    assert as_written(narrow, row, "cpu") == {"*": "fp32", "fusion": "bf16"}
    monkeypatch.setattr(engine_module.OpenVinoEngine, "computes", lambda self: ["fp32"])
    assert as_written(narrow, row, "cpu") == "fp32"
    assert as_written(opened, select("onnxruntime"), "auto") is None

    for asked in (Running("openvino", "cpu", None, "auto"), Running("openvino", "cpu", None, None)):
        monkeypatch.setenv(VARIABLE, "bf16")
        assert parity_command._as_asked(asked, bundle_copy) is asked


def test_the_doctor_measures_nothing_unless_it_checks(bundle_copy, has_bf16, measures, monkeypatch):
    if select().name != "openvino":
        pytest.skip("OpenVINO is not what auto takes here")
    calls = measures(SLOW)
    probed = Probe("openvino", "cpu", "1.0", ("CPU",), None)
    monkeypatch.setattr(doctor, "probe_apart", lambda name, device: probed)
    found = doctor.examine(bundle_copy)
    assert "  compute auto: not measured here yet\n" in doctor_command._as_text(
        doctor.as_dict(found), False
    )
    assert calls == []
    assert found.healthy
    [note] = [note for note in found.notes if "was not measured here yet" in note]
    assert "run ris-compile; the graphs were opened in fp32" in note
    assert found.bundle.compute["taken"] is None
    assert {graph.computes_in for graph in found.bundle.graphs.values()} == {"fp32"}

    found = doctor.examine(bundle_copy, check=True)
    assert len(calls) == 1
    assert found.bundle.compute["taken"] == "fp32"
    assert found.bundle.checked.computes_in == ("fp32",)
    assert not any("not measured" in note for note in found.notes)


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
