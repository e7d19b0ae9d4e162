"""`ris-infer`: files, folders, JSON lines; every format; one clear sentence for each mistake."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from pycocotools import mask as coco

from ris.engines import select
from ris.runtime import load
from ris.runtime.commands.infer import main


@pytest.fixture
def here(tmp_path, monkeypatch, picture):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RIS_BUNDLE", raising=False)
    Image.fromarray(picture).save("park.png")
    return tmp_path


@pytest.fixture
def infer(here, tiny_bundle):
    def run(*arguments, bundle=tiny_bundle):
        options = ["--bundle", str(bundle)] if bundle else []
        return CliRunner().invoke(main, [*map(str, arguments), *options])

    return run


def files(folder):
    return sorted(p.relative_to(folder).as_posix() for p in Path(folder).rglob("*") if p.is_file())


def test_mask_and_overlay_by_default(infer, here, tiny_bundle, picture):
    done = infer("park.png", "left man", "the dog")
    assert done.exit_code == 0, done.output
    names = [f"park.{e}.{k}.png" for e in ("left-man", "the-dog") for k in ("mask", "overlay")]
    assert files("ris-output") == names
    assert all(f"wrote ris-output/{name}" in done.output for name in names)
    assert '"left man"' in done.output
    assert "made-up weights" in done.output
    with load(tiny_bundle) as model:
        want = model.encode_image(picture).segment_many(["left man", "the dog"])[0]
    mask = np.asarray(Image.open("ris-output/park.left-man.mask.png"))
    np.testing.assert_array_equal(mask, want.mask.astype(np.uint8) * 255)
    assert Image.open("ris-output/park.left-man.overlay.png").size == (640, 480)


def test_rle_json_and_npy(infer, here):
    formats = ["--format", "rle", "--format", "json", "--format", "npy"]
    done = infer("park.png", "left man", *formats, "--out", "a/b", "--engine", "onnxruntime")
    assert done.exit_code == 0, done.output
    mask = np.load("a/b/park.left-man.npy")
    assert mask.dtype == np.bool_
    rle = json.loads(Path("a/b/park.left-man.rle.json").read_text())
    np.testing.assert_array_equal(coco.decode({**rle, "counts": rle["counts"].encode()}), mask)
    report = json.loads(Path("a/b/park.left-man.json").read_text())
    assert report["rle"] == rle
    assert report["mask_pixels"] == mask.sum()
    assert report["precision"]["fusion"] == "fp32"
    assert report["engine"]["fusion"]["providers"] == ["CPUExecutionProvider"]
    assert report["engine"]["fusion"]["computes_in"] == "fp32"
    assert report["trained"] is False


def test_json_lines_on_standard_output(infer):
    done = infer("park.png", "left man", "tree", "--json")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["expression"] for line in lines] == ["left man", "tree"]


def test_verbose_says_what_runs_where(infer):
    done = infer("park.png", "man", "-v")
    assert f"fusion: fp32 graph on {select().name}" in done.output
    assert "milliseconds: image.load" in done.output
    assert "\nonce an image: sam_image_encoder, clip_image_encoder, image_features, " in done.output


def test_verbose_says_where_each_expression_costs_the_whole_network(infer, made_up_bundle):
    done = infer("park.png", "man", "tree", "-v", bundle=made_up_bundle)
    assert done.exit_code == 0, done.output
    whole = "no graph runs once an image: each expression costs the whole network"
    assert (whole in done.output) == (made_up_bundle.name == "whole")


def test_compute_is_for_graphs_that_the_bundle_has(infer):
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    options = ["--engine", "openvino", "--compute", "bf16", "--compute", "decoder=fp32"]
    refused = infer("park.png", "man", *options)
    assert refused.exit_code == 2
    assert "there is no graph decoder; there are sam_image_encoder, " in refused.output
    for text in ("decoder=fp8", "=fp32", "decoder="):
        refused = infer("park.png", "man", "--compute", text)
        assert f"'{text}' is neither a precision (auto, fp32, bf16, fp16) nor" in refused.output


def test_folders_and_several_images(infer, here):
    (here / "photos" / "deep").mkdir(parents=True)
    for name in ("photos/a.png", "photos/deep/a.jpg", "b.png"):
        Image.new("RGB", (40, 30), "red").save(name)
    (here / "photos" / "notes.txt").write_text("not an image")
    done = infer("photos", "b.png", "left man", "--format", "mask")
    assert done.exit_code == 0, done.output
    assert files("ris-output") == [
        "a.left-man-2.mask.png",
        "a.left-man.mask.png",
        "b.left-man.mask.png",
    ]


def test_a_jsonl_file(infer, here):
    lines = [
        {"image": "park.png", "expression": "left man"},
        {"image": "park.png", "expression": ["tree", "tree!"]},
    ]
    Path("requests.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    done = infer("requests.jsonl", "--format", "mask")
    assert done.exit_code == 0, done.output
    assert files("ris-output") == [
        "park.left-man.mask.png",
        "park.tree-2.mask.png",
        "park.tree.mask.png",
    ]


def test_one_bad_image_does_not_stop_the_others(infer, here):
    (here / "photos").mkdir()
    Image.new("RGB", (40, 30)).save("photos/a.png")
    (here / "photos" / "b.jpg").write_text("text")
    Image.new("RGB", (40, 30)).save("photos/c.png")
    done = infer("photos", "-e", "left man", "--format", "mask")
    assert done.exit_code == 2
    assert files("ris-output") == ["a.left-man.mask.png", "c.left-man.mask.png"]
    assert "Error: photos/b.jpg is not an image" in done.output
    assert "1 left out, named above; 2 answers about 2 of 3 images" in done.output


def test_the_bundle_is_found(here, infer, tiny_bundle, monkeypatch):
    monkeypatch.setenv("RIS_BUNDLE", str(tiny_bundle))
    assert infer("park.png", "man", bundle=None).exit_code == 0
    monkeypatch.delenv("RIS_BUNDLE")
    (here / "ris-bundle").symlink_to(tiny_bundle)
    assert infer("park.png", "man", bundle=None).exit_code == 0


def test_categories(infer, tiny_category_bundle):
    asked = ["park.png", "left man", "tree"]
    done = infer(*asked, "--category", "person", bundle=tiny_category_bundle)
    assert done.exit_code == 0, done.output
    assert "no-target" not in done.output
    done = infer("park.png", "left man", bundle=tiny_category_bundle)
    assert done.exit_code == 2
    assert "--category person" in done.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nosuch.jpg", "man"], "nosuch.jpg: no such image file"),
        (["text.jpg", "man"], "text.jpg is not an image that can be read"),
        (["cut.jpg", "man"], "cut.jpg is damaged or cut short"),
        (["left man", "tree"], "left man: no such image file"),
        (["park.png", ""], "the expression is empty"),
        (["park.png", "word " * 10_000], "50000 characters"),
        (["park.png"], "nothing to look for"),
        (["empty", "man"], "empty has no images"),
        (["bad.jsonl"], "bad.jsonl, line 1: not JSON"),
        (["nosuch.jsonl"], "nosuch.jsonl cannot be read"),
        (["park.png", "man", "--format", "gif"], "'gif' is not one of"),
        (["park.png", "man", "--engine", "tensorflow"], "'tensorflow' is not one of"),
        (["park.png", "man", "--device", "cuda"], "no CUDAExecutionProvider"),
        (["park.png", "man", "--threads", "0"], "0 is not in the range"),
        (["park.png", "man", "--category", "person"], "does not ask by category"),
    ],
)
def test_one_sentence_for_each_mistake(infer, here, arguments, message):
    Path("text.jpg").write_text("text")
    noise = np.random.default_rng(0).integers(0, 256, (99, 99, 3), dtype=np.uint8)
    Image.fromarray(noise).save("whole.jpg")
    Path("cut.jpg").write_bytes(Path("whole.jpg").read_bytes()[:2000])
    Path("empty").mkdir()
    Path("bad.jsonl").write_text("not json\n")
    done = infer(*arguments)
    assert done.exit_code == 2
    assert message in done.output
    assert "Traceback" not in done.output
    assert not Path("ris-output").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format", "coco", "--out", "file/masks"], "file is no folder"),
        (["--form", "typo"], "leave the form 'typo' out"),
        (["--seed", "3"], "leave seed and draws out"),
    ],
)
def test_what_is_known_at_once_is_said_before_the_model_is_loaded(
    infer, here, monkeypatch, arguments, message
):
    (here / "file").touch()
    monkeypatch.setattr("ris.runtime.commands.running.load", lambda *a, **k: pytest.fail("loaded"))
    done = infer("park.png", "left man", *arguments)
    assert (done.exit_code, message in done.output) == (2, True), done.output


def test_a_full_disk_keeps_what_was_there(infer, monkeypatch):
    def contents():
        return {name: (Path("ris-output") / name).read_bytes() for name in files("ris-output")}

    assert infer("park.png", "man").exit_code == 0
    before = contents()

    def full(self, *arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    done = infer("park.png", "man")
    assert done.exit_code == 2
    assert "Error: cannot write ris-output: No space left on device" in done.output
    assert contents() == before


def test_debug_shows_the_traceback(infer):
    done = infer("nosuch.jpg", "man", "--debug")
    assert "Error: nosuch.jpg" in done.output


def test_the_installed_command(here, tiny_bundle):
    command = Path(sys.executable).parent / "ris-infer"
    done = subprocess.run(
        [command, "park.png", "left man", "--bundle", tiny_bundle],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "wrote ris-output/park.left-man.mask.png" in done.stdout


def test_a_draft_of_a_photo(infer, here, picture):
    """A mask and an overlay of the photo's own size, though it was decoded smaller."""
    Image.fromarray(picture).resize((1280, 960)).save(here / "large.jpg", quality=95)
    done = infer("large.jpg", "left man", "--draft")
    assert done.exit_code == 0, done.output
    sizes = {Image.open(file).size for file in (here / "ris-output").glob("large.*.png")}
    assert sizes == {(1280, 960)}
    assert len(list((here / "ris-output").glob("large.*.png"))) == 2
