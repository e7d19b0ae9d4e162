"""`ris-eval compare`: the differences, how sure they are, and the report."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from refer_files import write_refer
from ris.engines.errors import RisError
from ris.evaluation.command import main
from ris.evaluation.compare import Expression, Run, bootstrap, compare_runs
from ris.evaluation.metrics import SCENES, Tally
from ris.evaluation.report import write_report

SAMPLES = {"data": "scenes", "split": None, "samples": 2000, "root": None, "images": None}


def masks_of(share, targeted=True):
    """A truth of 100 pixels, of which the mask has this share."""
    mask = np.zeros((20, 20), bool)
    truth = np.zeros((20, 20), bool)
    truth.flat[:100] = targeted
    mask.flat[: round(100 * share)] = True
    return mask, truth


def run_of(name, shares, per_image=4, refused=(), no_target=None):
    tally, asked = Tally(), []
    for i, share in enumerate(shares):
        tally.add(*masks_of(share), i in refused, True)
        kind = "plain" if i % 2 else "position"
        asked.append(Expression(f"heldout-{i // per_image}", f"thing {i}", kind, True))
    return Run(
        name=name,
        samples=SAMPLES,
        where="the image's own size",
        expressions=tuple(asked),
        figures=tally.figures(),
        no_target=tuple(no_target if i in refused else None for i in range(len(shares))),
        masks=lambda i: masks_of(shares[i]),
    )


def test_differences_and_their_intervals():
    rng = np.random.default_rng(0)
    shares = rng.uniform(0.3, 0.9, 400)
    first, same = run_of("first", shares), run_of("same", shares)
    better = run_of("better", shares + 0.05)
    noisy = run_of("noisy", np.clip(shares + rng.normal(0, 0.1, 400), 0, 1))
    found = compare_runs([first, same, better, noisy], SCENES)
    miou = [own["miou"] for own in found.differences]
    assert (miou[0].value, miou[0].low, miou[0].high) == (0, 0, 0)
    assert miou[1].value == pytest.approx(0.05, abs=2e-3)
    # the same gain everywhere: paired draws see it exactly
    assert miou[1].high - miou[1].low < 2e-3
    assert miou[2].low < miou[2].value < miou[2].high
    spread = np.std(noisy.figures.intersection - first.figures.intersection) / 100
    assert miou[2].high - miou[2].low == pytest.approx(2 * 1.96 * spread / np.sqrt(400), rel=0.15)
    assert found.scores[0]["all"]["miou"] == pytest.approx(np.mean(np.round(100 * shares) / 100))
    assert found.scores[0].keys() == {"all", "plain", "position"}
    again = compare_runs([first, same, better, noisy], SCENES)
    assert again.differences == found.differences


def test_images_are_drawn_whole():
    """Expressions of an image that fail together make the interval wider than independent ones."""
    rng = np.random.default_rng(1)
    flags = np.repeat(rng.random(100) < 0.5, 4)
    first, other = [0.8] * 400, np.where(flags, 0.8, 0.2)
    widths = {}
    for per_image in (4, 1):
        runs = [run_of("a", first, per_image), run_of("b", other, per_image)]
        miou = compare_runs(runs, SCENES).differences[0]["miou"]
        widths[per_image] = miou.high - miou.low
    assert widths[4] == pytest.approx(2 * widths[1], rel=0.2)


def test_images_may_come_in_any_order():
    """Data sets ask reference by reference, so that an image's expressions lie apart."""
    rng = np.random.default_rng(2)
    shares, other = rng.uniform(0, 1, (2, 40))
    order = rng.permutation(40)
    images = np.array([f"{i // 4}" for i in range(40)])
    sorted_, mixed = (
        bootstrap(
            list(images[rows]), [run_of("x", s[rows]).figures for s in (shares, other)], SCENES, 50
        )
        for rows in (np.arange(40), order)
    )
    for metric, own in sorted_[0].items():
        there = mixed[0][metric]
        assert (own.value, own.low, own.high) == pytest.approx(
            (there.value, there.low, there.high), nan_ok=True
        )


def test_other_samples_are_refused():
    a = run_of("a", [0.5] * 8)
    words = "'a' and 'b' were not asked the same: 8 and 4 expressions, 4 of them"
    with pytest.raises(RisError, match=words):
        compare_runs([a, run_of("b", [0.5] * 4)], SCENES)
    truth = np.array([99, *a.figures.truth[1:]])
    other = replace(a, name="c", figures=replace(a.figures, truth=truth))
    with pytest.raises(RisError, match="2 of them in one only"):
        compare_runs([a, other], SCENES)


def test_the_report(tmp_path):
    """Self-contained, escaped, with the right pictures and files."""
    first = run_of("<one>", [0.9, 0.8, 0.7, 0.6])
    second = run_of("two", [0.9, 0.1, 0.7, 0.5], refused=(0,), no_target=0.9)
    found = compare_runs([first, second], SCENES, resamples=20)
    assert found.worst(10) == [0, 1, 3]
    assert found.ious[1].tolist() == [0.0, 0.1, 0.7, 0.5]
    asked = []

    def picture(name):
        asked.append(name)
        return np.zeros((40, 40, 3), np.uint8)

    files = write_report(found, tmp_path, 2, picture)
    page = files[0].read_text()
    assert asked == ["heldout-0", "heldout-0"]
    assert "<one>" not in page
    assert "&lt;one&gt;" in page
    assert "(refused)" in page
    # nothing is fetched from anywhere
    assert not re.search(r"""(src|href)\s*=\s*["'](?!data:)""", page)
    pictures = [base64.b64decode(code) for code in re.findall(r"base64,([^\"]+)", page)]
    # histograms, curve, scatter; truth and two masks for each case
    assert len(pictures) == 3 + 2 * 3
    for picture in pictures:
        Image.open(io.BytesIO(picture)).verify()
    panels = [np.asarray(Image.open(io.BytesIO(p)).convert("RGB")) for p in pictures[3:]]
    assert not panels[2].any()  # refused: the picture alone
    assert (panels[0].max(-1) > 0).sum() == 100
    report = json.loads(files[1].read_text())
    giou = report["runs"][1]["against_first"]["giou"]
    assert giou["value"] == pytest.approx((0 + 0.1 + 0.7 + 0.5 - 3.0) / 4)
    rows = list(csv.reader(files[2].open()))
    assert rows[0][:4] == ["image", "expression", "kind", "targeted"]
    assert rows[0][4:] == ["iou: <one>", "iou: two", "no target: <one>", "no target: two"]
    assert rows[1] == ["heldout-0", "thing 0", "position", "1", "0.900000", "0.000000", "", "0.9"]
    assert len(rows) == 5


def run(*arguments):
    result = CliRunner().invoke(main, ["compare", *map(str, arguments)])
    return result.exit_code, result.stdout, result.stderr


def test_two_precisions_side_by_side(tmp_path, tiny_bundle, tiny_fp16_bundle):
    out = tmp_path / "report"
    options = ("--samples", 24, "--out", out, "--worst", 3)
    code, text, err = run(tiny_bundle, tiny_fp16_bundle, *options)
    assert code == 0, err
    assert "report.html" in text
    report = json.loads((out / "report.json").read_text())
    assert [r["name"].split(", ")[1] for r in report["runs"]] == ["fp32", "fp16"]
    assert abs(report["runs"][1]["against_first"]["miou"]["value"]) < 0.01
    assert (out / "report.html").stat().st_size > 50_000
    # the answers are kept: the same comparison again asks nothing, and folders compare like bundles
    results = sorted(out.glob("answers/*/results.jsonl"))
    times = [path.stat().st_mtime_ns for path in results]
    folders = sorted((out / "answers").iterdir())
    code, text, err = run(*folders, "--out", tmp_path / "second", "--json")
    assert code == 0, err
    assert json.loads(text) == report
    assert sorted(out.glob("answers/*/results.jsonl")) == results
    assert [path.stat().st_mtime_ns for path in results] == times


def test_samples_have_what_answers_to_a_data_set_say_of_no_target(tmp_path):
    """A probability, a decision, two logits; nothing where an answer says nothing of it."""
    write_refer(tmp_path, "grefcoco")
    references = json.loads((tmp_path / "grefcoco" / "grefs(unc).json").read_text())
    asked = [
        {"ref_id": reference["ref_id"], "sent_id": sentence["sent_id"], "mask": None}
        for reference in references
        if reference["split"] == "val"
        for sentence in reference["sentences"]
    ]
    said = ({"no_target": 0.25}, {"no_target": True}, {"nt_logits": [1.0, 1.0]}, {})
    rows = [row | said[number % 4] for number, row in enumerate(asked)]
    theirs, plain = tmp_path / "theirs.jsonl", tmp_path / "plain.jsonl"
    theirs.write_text("\n".join(map(json.dumps, rows)))
    plain.write_text("\n".join(map(json.dumps, asked)))
    out = tmp_path / "report"
    data = ("--data", "grefcoco", "--root", tmp_path, "--out", out)
    code, _, errors = run(theirs, plain, *data)
    assert (out / "samples.csv").exists(), (code, errors)
    with (out / "samples.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    columns = [row["no target: theirs.jsonl"] for row in found]
    assert set(columns) == {"0.25", "1.0", "0.5", ""}
    assert {row["no target: plain.jsonl"] for row in found} == {""}


def test_bad_input_is_a_sentence(tmp_path, tiny_bundle):
    for arguments, words in (
        ((tiny_bundle,), "two models or more"),
        ((tiny_bundle, tmp_path), "neither a bundle nor a folder"),
        ((tiny_bundle, tmp_path / "nosuch"), "does not exist"),
    ):
        code, _, err = run(*arguments, "--samples", 4, "--out", tmp_path / "out")
        assert (code, words in " ".join(err.split())) == (2, True), err
