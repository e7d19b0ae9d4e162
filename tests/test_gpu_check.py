"""`make gpu-check` over doubles: all that a GPU must show is asked; no failure costs the rest."""

from __future__ import annotations

import json
import subprocess
import time

import pytest

from tests.gpu_check import __main__ as gpu_check
from tests.gpu_check import worker
from tests.gpu_check.report import Finding, Report


def sections(report, name):
    return [
        section["found"]
        for finding in report["findings"]
        for section in finding["sections"]
        if section["section"] == name and "found" in section
    ]


def test_a_dry_run_asks_everything_and_gets_the_right_masks(tiny_gather_bundle, tmp_path):
    """Plans that ONNX Runtime runs in the double's memory: all of the session really happens."""
    out = tmp_path / "gpu-check"
    given = ["--engine", "tensorrt", "--engine", "onnxruntime", "--runs", "1", "--no-tests"]
    given += ["--double", "--no-export", "--bundle", str(tiny_gather_bundle), "--out", str(out)]
    assert gpu_check.main(given) == 0
    report = json.loads(out.with_suffix(".json").read_text())
    assert report["double"]

    [parity] = sections(report, "parity")
    assert parity["failures"] == []
    assert parity["mask_iou"] > 0.99
    [plans] = sections(report, "plans")
    assert all("fused_attention" in plan for plan in plans)
    for name in ("time", "batch", "memory"):
        assert [found["cuda_graphs"] for found in sections(report, name)] == [True, False]
    assert all(found["asked"] > found["loaded"] for found in sections(report, "memory"))
    assert not any(graph["notes"] for found in sections(report, "runs") for graph in found)
    [reference] = sections(report, "pytorch")
    assert reference["first_mask"] > 0

    text = out.with_suffix(".md").read_text()
    assert "A dry run over doubles" in text
    for title in ("Parity", "Plans", "Time", "Expressions together", "Memory", "PyTorch"):
        assert f"## {title}" in text
    assert "| onnxruntime, ris-bundle |" in text  # which says that it cannot run here, and why
    assert "has no CUDAExecutionProvider" in text


def test_a_check_in_which_nothing_could_run_has_not_passed(monkeypatch, tmp_path, capsys):
    found = [{"section": "load", "skipped": "no GPU"}, {"section": "tests", "skipped": "6 skipped"}]
    monkeypatch.setattr(
        gpu_check, "run", lambda part, *given: Finding(part.name, "", 0, None, found)
    )
    given = ["--no-export", "--out", str(tmp_path / "gpu-check")]
    assert gpu_check.main(given) == 1
    assert "no engine ran a bundle here" in capsys.readouterr().err
    assert gpu_check.main([*given, "--only", "tests"]) == 0

    found.append({"section": "parity", "found": {"mask_iou": 1.0}})
    assert gpu_check.main(given) == 0


@pytest.mark.parametrize(
    ("code", "last", "kind"),
    [
        (0, "6 skipped in 0.1s", "skipped"),
        (5, "no tests ran in 0.1s", "skipped"),
        (0, "5 passed, 1 skipped in 3.0s", "found"),
        (1, "1 failed, 5 passed in 3.0s", "problem"),
    ],
)
def test_tests_that_were_all_skipped_are_skipped(monkeypatch, code, last, kind):
    said = []
    done = subprocess.CompletedProcess([], code, last, "")
    monkeypatch.setattr(worker.subprocess, "run", lambda *given, **options: done)
    monkeypatch.setattr(worker, "say", lambda section, **more: said.append(more))
    worker.tests()
    [section] = said
    assert list(section) == [kind]


def test_all_engines_precisions_and_forms_of_pytorch_are_asked():
    asked = [part.name for part in gpu_check.parts(gpu_check.parse(["--bundle", "full-fp16"]))]
    for engine in ("tensorrt", "onnxruntime-tensorrt", "tensorrt-rtx", "onnxruntime"):
        for bundle in ("full-fp16", "demo-fp16", "demo-fp32", "demo-bf16", "demo-int8"):
            assert f"{engine}, {bundle}" in asked
    assert {"PyTorch eager, full-fp16", "torch.compile, full-fp16", "tests"} <= set(asked)
    assert "openvino, demo-fp16" not in asked


@pytest.mark.parametrize(
    ("kind", "given", "said"),
    [
        ("nothing", {}, "its process ended with exit code 1; KeyError: 'nothing'"),
        ("engine", {}, "its process ended with exit code 1; TypeError"),
    ],
)
def test_a_part_that_crashes_is_a_finding(kind, given, said):
    finding = gpu_check.run(gpu_check.Part("it", kind, 60, given), 60, double=False)
    assert finding.problem.startswith(said)
    assert finding.failed


def test_a_section_that_fails_leaves_the_others(tmp_path):
    given = {"engine": "onnxruntime", "bundle": str(tmp_path), "runs": 1, "device": "cuda"}
    finding = gpu_check.run(gpu_check.Part("it", "engine", 60, given), 60, double=False)
    assert finding.problem is None
    [section] = finding.sections
    assert section["problem"].startswith("BundleError")
    assert finding.failed


def test_a_part_that_hangs_is_ended(monkeypatch):
    monkeypatch.setattr(gpu_check, "SHORTEST", 0.01)
    start = time.monotonic()
    finding = gpu_check.run(gpu_check.Part("it", "machine", 60), 0.01, double=False)
    assert finding.problem.startswith("it took more than 0 s")
    assert time.monotonic() - start < 30


def test_without_time_the_rest_is_named_and_what_was_found_is_kept(tmp_path):
    out = tmp_path / "gpu-check"
    assert gpu_check.main(["--minutes", "0", "--no-export", "--out", str(out)]) == 1
    report = json.loads(out.with_suffix(".json").read_text())
    problems = [finding["problem"] for finding in report["findings"]]
    assert problems
    assert set(problems) == {"not run: no time was left"}
    assert (
        "| machine | 0.0 | not run: no time was left (0.0 s) |"
        in out.with_suffix(".md").read_text()
    )


def test_tables_survive_what_stands_in_them():
    row = {"graph": "a|b", "layers": {"fp16": 3}, "notes": ["one\ntwo"], "seconds": 1.23456}
    found = [{"section": "plans", "found": [row]}, {"section": "time", "problem": "it failed"}]
    report = Report(double=False, findings=[Finding("it", "engine", 2.0, None, found)])
    text = report.markdown()
    assert "| it | a\\|b |  | fp16 3 |  | 1.235 |  | one two |" in text
    assert "| it | 2.0 | time: it failed (2.0 s) |" in text
    assert report.failed
