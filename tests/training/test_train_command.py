"""`ris-train` from the command line: scenes and data sets, resumed runs, bad input."""

from __future__ import annotations

import json

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from refer_files import write_refer
from ris.training.command import main
from ris.training.loop import computes_bf16

FAST = "--preset tiny --batch-images 2 --batch-expressions 2 --workers 0 --threads 2"


def run(*arguments):
    result = CliRunner().invoke(main, [*FAST.split(), *map(str, arguments)])
    return result.exit_code, result.output


def log(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_scenes_then_on_from_where_it_stopped(tmp_path):
    out = tmp_path / "run"
    code, text = run("--out", out, "--steps", 3, "--stop", 1)
    assert code == 0, text
    assert "a new run, to step 3" in text
    assert ("computes in FP32" in text) == (not computes_bf16(torch.device("cpu")))
    code, text = run("--out", out, "--steps", 3)
    assert code == 0, text
    assert "goes on at step 1" in text
    assert log(out)[-1]["step"] == 3
    assert log(out)[-1]["validation"]["all"]["samples"] == 25 * 4
    assert Image.open(out / "log.png").width > 1000
    assert f"ris-export --checkpoint {out / 'model.safetensors'}" in text
    code, text = run("--out", out, "--steps", 1, "--restart")
    assert code == 0, text
    assert log(tmp_path / "run.old")[-1]["step"] == 3
    assert log(out)[-1]["step"] == 1
    assert "mask" not in log(out)[-1]["losses"]  # the encoders' lessons come first
    # from given weights, without lessons, on other scenes
    further = ["--checkpoint", out / "model.safetensors", "--lessons", 0, "--steps", 1]
    for seed in (0, 1):
        code, text = run("--out", tmp_path / f"seed{seed}", *further, "--seed", seed)
        assert code == 0, text
        assert "tensors come from the files" in text
    first, second = (log(tmp_path / f"seed{seed}")[-1]["losses"] for seed in (0, 1))
    assert first["mask"] != second["mask"]


@pytest.mark.parametrize("name", ["refcoco", "grefcoco"])
def test_data_sets_in_their_own_files(tmp_path, name):
    """The same command on RefCOCO's and gRefCOCO's files, frozen encoders' features stored."""
    write_refer(tmp_path, name)
    data, out = ["--data", name, "--root", tmp_path], ["--out", tmp_path / "run", "--steps", 3]
    code, text = run(*data, *out, "--features", tmp_path / "features")
    assert code == 0, text
    last = log(tmp_path / "run")[-1]
    assert set(last["losses"]) == {"mask", "dfam", "vl", "no_target"}
    assert last["validation"]["all"]["samples"] > 0
    assert ("n_acc" in last["validation"]["all"]) == (name == "grefcoco")
    assert len(list((tmp_path / "features").rglob("*.npz"))) == 3  # the training split's images


def test_bad_input_is_a_sentence(tmp_path):
    refcoco = ["--data", "refcoco", "--root", tmp_path]

    def check(sentence, *arguments):
        code, text = run(*arguments, "--out", tmp_path / "run")
        assert (code, sentence in text) == (2, True), text

    check("--lessons belong to --data scenes", *refcoco, "--lessons", 5)
    check("needs --root", "--data", "refcoco")
    check("draws its own images", "--features", tmp_path)
    check("list of references is missing", *refcoco)
    if not torch.cuda.is_available():
        check("sees no CUDA device", "--device", "cuda")
    check("COCO categories", "--variant", "category")

    write_refer(tmp_path)
    check("needs its table", *refcoco, "--variant", "category")
    for image in (tmp_path / "images" / "train2014").iterdir():
        image.unlink()
    check("none of the 3 images is in", *refcoco)
    assert not (tmp_path / "run").exists()


def test_a_missing_and_a_damaged_picture_are_named_and_the_others_learnt(tmp_path):
    write_refer(tmp_path)
    pictures = tmp_path / "images" / "train2014"
    (pictures / "COCO_train2014_000000000001.jpg").unlink()
    (pictures / "COCO_train2014_000000000003.jpg").write_bytes(b"no image")
    data = ["--data", "refcoco", "--root", tmp_path, "--batch-images", 2]
    code, text = run(*data, "--out", tmp_path / "run", "--steps", 1)
    assert code == 2, text
    assert "COCO_train2014_000000000001.jpg is not in" in text
    assert "COCO_train2014_000000000003.jpg is not an image" in text
    assert "2 left out, named above; the model was trained on the others" in text
    assert (tmp_path / "run" / "model.safetensors").exists()
