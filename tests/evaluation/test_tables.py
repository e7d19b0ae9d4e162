"""`ris-eval tables`: cells, their differences, what is missing, and going on after a stop."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from ris.evaluation.command import main
from ris.evaluation.table_specs import read_spec

REPO = Path(__file__).resolve().parent.parent.parent
GOLDEN = REPO / "tests" / "golden" / "evaluation"

SPEC = """
root = "{root}"

[[systems]]
id = "theirs"
name = "ReLA"
answers = "{root}/predictions-{{data}}.jsonl"

[[systems]]
id = "ours"
name = "Ours"
bundle = "{bundle}"

[[systems]]
id = "nobody"
answers = "nowhere/{{data}}-{{split}}.jsonl"

[[tables]]
title = "Table <1>"
systems = ["theirs", "ours", "nobody"]

[[tables.columns]]
data = "refcoco"
splits = ["val", "testA"]
metrics = ["oIoU", "mIoU"]

[[tables.columns]]
data = "grefcoco"
split = "testA"
metrics = ["gIoU", "T_acc"]

[[histograms]]
title = "Figure 1"
systems = ["theirs", "ours"]
data = "refcoco"
split = "val"
"""


def run(*arguments):
    done = CliRunner().invoke(main, ["tables", *map(str, arguments)])
    return done.exit_code, done.stdout, done.stderr


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny_bundle):
    """The folder of the tables, the file, and what was printed."""
    folder = tmp_path_factory.mktemp("tables")
    spec = folder / "tables.toml"
    spec.write_text(SPEC.format(root=GOLDEN, bundle=tiny_bundle))
    return folder / "out", spec, run(spec, "--out", folder / "out")


def cells_of(out):
    found = json.loads((out / "tables.json").read_text())
    [table] = found["tables"]
    return {row["system"]: row["cells"] for row in table["rows"]}


def test_every_cell_is_the_evaluators_figure(made):
    out, _, (code, text, err) = made
    assert (code, "6 of 18 cells and 0 histograms are missing or not whole" in err) == (2, True), (
        err
    )
    wanted = json.loads((GOLDEN / "metrics.json").read_text())
    for cell in cells_of(out)["ReLA"]:
        author = {"lavt": "LAVT", "rela": "ReLA"}[cell["protocol"]]
        where = f"{cell['data']}/{cell['split_by']}/{cell['split']}"
        figures = wanted[author][where]["metrics"]
        assert cell["value"] == pytest.approx(figures[cell["metric"]], abs=1e-9), where
    first = cells_of(out)["ReLA"][0]
    assert (first["published"]["value"], first["difference"]) == (73.82, None)
    assert "published 73.82" in text


def test_differences_have_their_intervals(made):
    out, *_ = made
    rows = cells_of(out)
    for own, first in zip(rows["Ours"], rows["ReLA"], strict=True):
        difference = own["difference"]
        assert difference["value"] == pytest.approx(own["value"] - first["value"])
        assert difference["low"] <= difference["value"] <= difference["high"]


def test_what_is_missing_is_said_cell_by_cell(made):
    out, *_ = made
    for cell in cells_of(out)["nobody"]:
        assert cell["value"] is None
        assert re.search(rf"file of answers .*{cell['split']}\.jsonl is missing", cell["missing"])
    page = (out / "tables.html").read_text()
    assert "Table &lt;1&gt;" in page
    assert "Table <1>" not in page
    assert page.count("data:image/png") == 1
    assert not re.search(r"""(src|href)\s*=\s*["'](?!data:)""", page)
    rows = list(csv.DictReader((out / "tables.csv").open()))
    assert len(rows) == 18
    assert rows[0]["source"].startswith("ReLA's paper")
    text = (out / "tables.md").read_text()
    assert "| nobody | missing |" in text
    found = json.loads((out / "tables.json").read_text())
    [figure] = found["histograms"]
    assert {name: sum(bins) for name, bins in figure["systems"].items()} == {"ReLA": 35, "Ours": 35}


def test_a_stopped_run_goes_on(made):
    """Counts are kept as long as the files are the same; answers are asked once."""
    out, spec, _ = made
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert "asking" in made[2][2]
    kept = out / "counts" / "theirs-refcoco-unc-val-lavt.npz"
    kept.unlink()
    damaged = out / "counts" / "ours-refcoco-unc-val-lavt.npz"
    damaged.write_bytes(before[damaged][:100])
    code, _, err = run(spec, "--out", out)
    assert code == 2
    assert "ReLA, refcoco val: counting by lavt" in err
    assert "Ours, refcoco val: counting by lavt" in err
    assert "ReLA, refcoco testA: counting" not in err
    assert "asking" not in err
    for name in ("tables.md", "tables.csv", "tables.json", "tables.html"):
        assert (out / name).read_bytes() == before[out / name], name


def test_of_a_bundle_whose_answers_are_all_there_the_manifest_is_enough(tmp_path, tiny_bundle):
    """Its graphs may be gone; one whose manifest or way of running is another is opened."""
    bundle, spec, out = tmp_path / "bundle", tmp_path / "tables.toml", tmp_path / "out"
    shutil.copytree(tiny_bundle, bundle)
    columns = 'columns = [{ data = "refcoco", split = "val", metric = "mIoU" }]'
    spec.write_text(
        f'root = "{GOLDEN}"\n[[systems]]\nid = "x"\nbundle = "bundle"\n'
        f'[[tables]]\ntitle = "T"\nsystem = "x"\n{columns}\n'
    )
    command = (spec, "--out", out, "--engine", "onnxruntime")
    assert run(*command)[0] == 0
    whole = cells_of(out)
    for graph in bundle.rglob("*.onnx"):
        graph.unlink()
    code, _, err = run(*command)
    assert (code, cells_of(out), "asking" in err) == (0, whole, False), err

    def refused(*more):
        code, _, err = run(*command, *more)
        return (code, cells_of(out)["x"][0]["value"], "asking" in err) == (2, None, True)

    assert refused("--restart")
    assert refused("--low-memory")
    answers = out / "answers" / "x-refcoco-unc-val" / "predictions.jsonl"
    text = answers.read_text()
    answers.write_text(text[: text.rindex("{")])
    assert refused()
    answers.write_text(text)
    assert run(*command)[0] == 0
    manifest = bundle / "manifest.json"
    manifest.write_text(manifest.read_text() + "\n")
    assert refused()
    manifest.unlink()
    assert refused()


def test_a_mask_picture_that_changed_is_counted_anew(tmp_path):
    """Answers may name pictures: their file is the same, what it means is not."""
    asked = json.loads((GOLDEN / "questions.json").read_text())["LAVT"]["refcoco/unc/val"]
    rows = [{"sent_id": q["sent_id"], "mask": {"480": "mask.png"}} for q in asked]
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = tmp_path / "tables.toml"
    columns = 'columns = [{ data = "refcoco", split = "val", metric = "mIoU" }]'
    spec.write_text(
        f'root = "{GOLDEN}"\n[[systems]]\nid = "x"\nanswers = "answers.jsonl"\n'
        f'[[tables]]\ntitle = "T"\nsystem = "x"\n{columns}\n'
    )
    values = []
    for rows_in in (480, 240, 240):
        mask = np.zeros((480, 480), np.uint8)
        mask[:rows_in] = 255
        if len(values) < 2:
            Image.fromarray(mask).save(tmp_path / "mask.png")
        code, _, err = run(spec, "--out", tmp_path / "out")
        assert code == 0, err
        values.append(cells_of(tmp_path / "out")["x"][0]["value"])
        assert ("counting by lavt" in err) == (len(values) < 3)
    assert values[0] != values[1] == values[2]


def test_without_data_every_cell_says_so(tmp_path):
    code, _, err = run(REPO / "examples" / "supplement.toml", "--out", tmp_path)
    assert code == 2
    assert re.search(r"Error: 86 of 86 cells and 2 histograms are missing or not whole", err), err
    found = json.loads((tmp_path / "tables.json").read_text())
    cells = [cell for table in found["tables"] for row in table["rows"] for cell in row["cells"]]
    assert all("list of references is missing" in cell["missing"] for cell in cells)
    stated = {(c["data"], c["split"], c["published"]["value"]) for c in cells if c["published"]}
    assert {("refcoco", "val", 73.82), ("refcoco", "val", 74.8)} <= stated


def test_mistakes_in_the_file_are_a_sentence(tmp_path):
    good = SPEC.format(root=GOLDEN, bundle="b")
    for old, new, words in (
        ('root = "', 'rot = "', "'rot' is unknown"),
        ('"oIoU", "mIoU"', '"gIoU"', "lavt has no figure 'gIoU' on refcoco; it has oIoU"),
        ('data = "grefcoco"', 'data = "flickr"', "data 'flickr' is unknown"),
        ('bundle = "b"', "", "systems 2: give one of bundle and answers"),
        ('systems = ["theirs", "ours", "nobody"]', 'system = "x"', "there is no system 'x'"),
        ("{data}", "{dat}", "may have {data}, {split_by} and {split}"),
        ("splits = [", "splits = [1, ", "split must be a text, or splits a list of texts"),
        ('split = "testA"', 'split = "testA"\nprotocol = "lavt"', "lavt does not count grefcoco"),
        ("[[tables]]", "[[tables]", "cannot be read"),
    ):
        assert old in good, old
        spec = tmp_path / "tables.toml"
        spec.write_text(good.replace(old, new))
        code, _, err = run(spec, "--out", tmp_path / "out")
        assert (code, words in err) == (2, True), err


def test_published_figures_are_whole():
    """Every figure that comes with the package has a source and a known place."""
    found = read_spec(REPO / "examples" / "supplement.toml").published
    assert len(found) > 30
    for (_, _, _, _, metric), published in found.items():
        assert metric in ("oIoU", "cIoU", "gIoU")
        assert 30 < published.value < 100
        assert published.source


@pytest.mark.parametrize(
    ("family", "figures"),
    [
        ("rela", [[62.42, 63.60], [57.73, 56.86]]),
        ("cgformer", [[74.75, 77.37, 70.64, 64.54, 71.00, 57.14, 64.68, 65.09]]),
    ],
)
def test_published_figures_stand_beside_a_bundle(family, figures, tmp_path):
    code, _, _ = run(REPO / "examples" / f"{family}.toml", "--out", tmp_path)
    assert code == 2  # there is neither data nor a bundle
    [table] = json.loads((tmp_path / "tables.json").read_text())["tables"]
    stated = [
        [cell["published"]["value"] for cell in row["cells"] if cell["published"]]
        for row in table["rows"]
    ]
    assert stated == figures
