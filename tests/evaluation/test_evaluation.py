"""The samples, the pass over them, and `ris-eval` on a bundle and on the PyTorch model."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from refer_files import write_refer
from ris.data.datasets import read_refer
from ris.data.samples import AnnotatedImage, Truth, refer_images, scene_images
from ris.engines.errors import CheckpointError
from ris.evaluation.asking import open_reference
from ris.evaluation.command import main
from ris.evaluation.features import FeatureCache
from ris.evaluation.results import ResultsFolder, read_results
from ris.evaluation.run import Answer, ask_image, evaluate
from ris.reference.families import FAMILIES
from ris.runtime import Model, load, open_bundle
from ris.runtime.commands.running import Running
from ris.runtime.loading import open_model
from ris.runtime.masks import PLAIN, Rle, decode_rle
from ris.runtime.reference import family_choices

RUNNING = Running("auto", "cpu", threads=1, compute=None)


def logits(mask):
    return np.where(mask, 1, -1).astype(np.float32)


class Knows:
    """Answers everything with its truth, or, where `deaf`, as if the words were not swapped."""

    square, rule = 256, PLAIN

    def __init__(self, images, deaf=False):
        self.answers = {}
        for image in images:
            for truth in image.truths:
                own = Answer(logits(truth.mask), float(not truth.targeted))
                self.answers[image.rgb.tobytes(), truth.expression] = own
            for truth in image.truths:
                if truth.mirrored:
                    text, mask = truth.mirrored
                    other = Answer(logits(truth.mask if deaf else mask), 0.0)
                    self.answers.setdefault((image.rgb.tobytes(), text), other)

    def answer(self, rgb, expressions, categories):
        return [self.answers[rgb.tobytes(), text] for text in expressions]


def test_a_perfect_model_scores_one_and_a_deaf_one_is_found_out():
    images = list(scene_images("heldout", 60))
    assert sum(len(image.truths) for image in images) == 60
    found = evaluate(Knows(images), images)
    assert set(found.kinds["all"].values()) == {60.0, 1.0}
    assert sum(figures["samples"] for figures in found.kinds.values()) == 120
    assert found.mirrored.pairs > 3
    assert (found.mirrored.right, found.mirrored.moved) == (1.0, 1.0)
    deaf = evaluate(Knows(images, deaf=True), images)
    assert deaf.mirrored.moved < 0.2
    assert deaf.mirrored.right == pytest.approx(0.5, abs=0.1)


def test_data_sets_come_at_their_own_size(tmp_path):
    write_refer(tmp_path, "grefcoco")
    images = list(refer_images(read_refer(tmp_path, "grefcoco", "val")))
    assert [image.name[-6:] for image in images] == ["02.jpg", "04.jpg", "06.jpg"]
    others = refer_images(read_refer(tmp_path, "grefcoco", "val"), {images[0].name})
    assert [image.name[-6:] for image in others] == ["04.jpg", "06.jpg"]
    assert {truth.mask.shape for image in images for truth in image.truths} == {(96, 120)}
    assert {truth.targeted for truth in images[0].truths} == {True, False}


def run(*arguments):
    result = CliRunner().invoke(main, [*map(str, arguments), "--json"])
    return result.exit_code, result.stdout, result.stderr


def test_a_bundle_scores_what_its_reference_scores(tmp_path, tiny_bundle):
    """The same made-up weights through the runtime and through PyTorch: the same figures."""
    from ris.reference.dfam.config import PRESETS
    from ris.reference.dfam.deterministic import deterministic_model

    weights = tmp_path / "tiny.pth"
    model = deterministic_model(PRESETS["tiny"])
    torch.save({"model": model.state_dict(), "ris_config": PRESETS["tiny"].to_dict()}, weights)
    code, text, err = run(tiny_bundle, "--samples", 20)
    assert code == 0, err
    ours = json.loads(text)
    code, text, err = run("--pytorch", "--checkpoint", weights, "--samples", 20)
    assert code == 0, err
    theirs = json.loads(text)
    assert ours["kinds"].keys() == theirs["kinds"].keys()
    for kind, figures in ours["kinds"].items():
        assert figures == pytest.approx(theirs["kinds"][kind], abs=2e-3), kind


def test_a_category_bundle_on_a_data_set(tmp_path, tiny_category_bundle):
    write_refer(tmp_path)
    code, text, err = run(tiny_category_bundle, "--data", "refcoco", "--root", tmp_path)
    # a run-length code where polygons are expected is what LAVT's loader stops at
    assert (code, "lavt would stop at 3 references, as its loader does" in err) == (2, True), err
    found = json.loads(text)
    assert (found["protocol"], found["compared_at"], found["metrics"]["count"]) == ("lavt", 480, 6)


def test_the_table_says_what_its_columns_mean(tiny_bundle):
    result = CliRunner().invoke(main, [str(tiny_bundle), "--samples", "8", "--at", "480"])
    assert result.exit_code == 0, result.output
    assert "masks compared at 480x480" in result.output
    assert "miou: mean IoU of the targeted expressions" in result.output


def test_a_reference_says_its_family(tmp_path):
    """Answers of the same files as another family are other answers."""
    from ris.reference.dfam.config import PRESETS
    from ris.reference.dfam.deterministic import deterministic_model

    weights = tmp_path / "model.pth"
    torch.save(deterministic_model(PRESETS["tiny"]).state_dict(), weights)
    for family in (None, "dfam"):
        with open_reference({"checkpoint": weights}, family, {}, RUNNING) as opened:
            assert opened.about["family"] == "dfam"
            assert "chosen" not in opened.about
    useless = "--lang-weight is of no use to the family dfam"
    with (
        pytest.raises(CheckpointError, match=useless),
        open_reference({"checkpoint": weights}, None, {"lang_weight": "stored"}, RUNNING),
    ):
        pass


def test_a_reference_says_what_was_chosen(tmp_path):
    """Of a family with choices: other answers, and so a folder of answers of their own."""
    from ris.reference.rela.config import PRESETS
    from ris.reference.rela.deterministic import deterministic_model

    weights = tmp_path / "model.pth"
    stored = replace(PRESETS["tiny-rela"], lang_weight="stored")
    torch.save(deterministic_model(stored).state_dict(), weights)
    image = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    found = {}
    for chosen, used in (({}, "zero"), ({"lang_weight": "stored"}, "stored")):
        with open_reference({"checkpoint": weights}, None, chosen, RUNNING) as opened:
            assert opened.about["chosen"] == {"lang_weight": used}
            assert opened.name == f"model.pth, PyTorch FP32 on cpu, lang_weight {used}"
            [answer] = opened.segmenter.answer(image, ["red ball"], [None])
            found[used] = answer.logits
    assert np.abs(found["zero"] - found["stored"]).max() > 1e-3


def test_a_choice_is_an_option(tiny_bundle):
    assert family_choices(), "an old installation, without the entry point `families`: make again"
    for arguments, words in (
        ((tiny_bundle, "--lang-weight", "stored"), "--lang-weight needs --pytorch"),
        (("--pytorch", "--lang-weight", "half"), "'half' is not one of 'zero', 'stored'"),
    ):
        code, _, err = run(*arguments)
        assert (code, words in err) == (2, True), err


def test_bad_input_is_a_sentence(tmp_path, tiny_bundle):
    pytorch = ("--pytorch", "--checkpoint", "x.pth")
    no_folder = tiny_bundle / "manifest.json" / "x"
    for arguments, words in (
        ((tiny_bundle, "--pytorch"), "not both"),
        ((tiny_bundle, "--checkpoint", "x.pth"), "need --pytorch"),
        ((tiny_bundle, "--family", "dfam"), "--family says what --checkpoint is of"),
        ((*pytorch, "--family", "rala"), f"'rala'; known are {', '.join(FAMILIES)}"),
        ((tiny_bundle, "--data", "refcoco"), "needs --root"),
        ((tiny_bundle, "--root", tmp_path), "brings its own images"),
        ((tiny_bundle, "--data", "flickr"), "known are scenes, refcoco"),
        ((tiny_bundle, "--data", "nosuch.jsonl"), "nosuch.jsonl cannot be read"),
        ((tiny_bundle, "--data", "x.jsonl", "--split", "val"), "has no splits"),
        ((*pytorch, "--features", tmp_path), "does not go with --pytorch"),
        ((*pytorch, "--engine", "openvino"), "--device and --threads alone go with"),
        ((*pytorch, "--device", "npu"), "runs on the CPU or on a CUDA GPU"),
        ((tiny_bundle, "--protocol", "lavt"), "they count data sets, not --data scenes"),
        ((tiny_bundle, "--data", "refcoco", "--root", tmp_path, "--at", "480"), "its own size"),
        ((tiny_bundle, "--split-by", "umd"), "belong to data sets"),
        ((tiny_bundle, "--restart"), "there is no --out"),
        ((tiny_bundle, "--split", "testA"), "train and heldout"),
        (("--pytorch",), "no weight files were given"),
        ((tiny_bundle, "--samples", 4, "--out", no_folder), "cannot be written"),
        ((tiny_bundle, "--data", "refcoco", "--root", tmp_path), "list of references is missing"),
    ):
        code, _, err = run(*arguments)
        assert (code, words in err) == (2, True), err


def scores(bundle, *arguments):
    code, text, err = run(bundle, *arguments)
    assert code == 0, err
    return json.loads(text)["kinds"]["all"]


def test_where_masks_are_compared(tmp_path):
    """A mask that is right at the image's own size stays right in a square: half stays half."""
    rgb = np.zeros((30, 50, 3), np.uint8)
    left = np.zeros((30, 50), bool)
    left[:, :25] = True
    truth = Truth("left half", left, True, None, "position", ("right half", ~left))

    class Left:
        square, rule = 64, PLAIN

        def answer(self, rgb, expressions, categories):
            low = np.tile(np.where(np.arange(16) < 8, 1, -1).astype(np.float32), (16, 1))
            return [Answer(low if text == "left half" else -low, None) for text in expressions]

    for at, (height, width) in (("image", (30, 50)), ("model", (64, 64)), ("480", (480, 480))):
        result = ask_image(Left(), AnnotatedImage("x", rgb, (truth,)), at)
        [answer] = result.answers
        assert (answer.height, answer.width) == (height, width)
        assert answer.intersection == answer.predicted == answer.truth == height * width // 2
        assert (answer.swapped.shared, answer.swapped.intersection) == (0, height * width // 2)
        mask = decode_rle(Rle(size=[height, width], counts=answer.mask))
        np.testing.assert_array_equal(mask[:, : width // 2], True)


def test_a_stopped_evaluation_goes_on(tmp_path, tiny_bundle):
    """Stopped in the middle of a line even: the figures are those of an uninterrupted run."""
    whole = ("--samples", 40, "--out", tmp_path / "whole")
    want = scores(tiny_bundle, *whole)
    lines = (tmp_path / "whole" / "results.jsonl").read_text().splitlines(keepends=True)
    part = tmp_path / "part"
    shutil.copytree(tmp_path / "whole", part)
    (part / "results.jsonl").write_text("".join(lines[:4]) + lines[4][:50])
    code, text, err = run(tiny_bundle, "--samples", 40, "--out", part)
    assert code == 0, err
    assert "goes on after 16 of 40 expressions" in err
    assert json.loads(text)["kinds"]["all"] == want
    assert (part / "results.jsonl").read_text() == "".join(lines)
    assert scores(tiny_bundle, *whole) == want  # nothing left to do
    code, _, err = run(tiny_bundle, "--samples", 41, "--out", part)
    assert (code, "has results of another evaluation (samples was" in err) == (2, True), err
    assert scores(tiny_bundle, "--samples", 4, "--out", part, "--restart")["samples"] == 4
    (part / "results.jsonl").write_text("{}\n")
    code, _, err = run(tiny_bundle, "--samples", 4, "--out", part)
    assert (code, "line 1 is damaged" in err) == (2, True), err


def test_a_killed_process_loses_nothing(tmp_path, tiny_bundle):
    program = Path(sys.executable).parent / "ris-eval"
    command = [program, tiny_bundle, "--samples", "4000", "--out", tmp_path / "out"]
    results = tmp_path / "out" / "results.jsonl"
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 120
        while not (results.exists() and results.read_text().count("\n") > 3):
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        process.kill()
    images = list(read_results(tmp_path / "out"))
    assert len(images) >= 2
    setup = json.loads((tmp_path / "out" / "run.json").read_text())
    folder = ResultsFolder(tmp_path / "out", setup)
    assert list(folder.done) == [f"heldout-{n}" for n in range(len(images))]


def test_memory_does_not_grow_with_the_masks(tmp_path):
    """Results are kept slim: a thousand images' masks would be 260 MB."""
    images = list(scene_images("heldout", 8))
    folder = ResultsFolder(tmp_path, {"name": "x"})
    tracemalloc.start()
    evaluate(Knows(images), (image for _ in range(50) for image in images), folder=folder)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    folder.close()
    assert sum(len(r.answers) for r in read_results(tmp_path)) == 400
    assert peak < 8e6


def test_features_are_encoded_once(tmp_path, tiny_bundle, monkeypatch):
    """A second evaluation over the same images runs no encoder and gives the same figures."""
    runs = []
    original = Model.encode_image

    def counted(self, rgb):
        runs.append(1)
        return original(self, rgb)

    monkeypatch.setattr(Model, "encode_image", counted)
    plain = scores(tiny_bundle, "--samples", 20)
    assert len(runs) == 5
    for expected in (5, 0):
        runs.clear()
        code, text, err = run(tiny_bundle, "--samples", 20, "--features", tmp_path / "f")
        assert code == 0, err
        assert f"{5 - expected} images were encoded before, {expected} were not" in err
        assert (json.loads(text)["kinds"]["all"], len(runs)) == (plain, expected)
    size = max(path.stat().st_size for path in (tmp_path / "f").iterdir())
    damaged = next((tmp_path / "f").iterdir())
    damaged.write_bytes(damaged.read_bytes()[:500])
    _, text, err = run(tiny_bundle, "--samples", 20, "--features", tmp_path / "f")
    assert "4 images were encoded before, 1 were not" in err
    assert json.loads(text)["kinds"]["all"] == plain
    # bounded: three entries fit, the ones used last stay
    with load(tiny_bundle) as model:
        cache = FeatureCache(tmp_path / "small", int(3.2 * size))
        shots = [image.rgb for image in scene_images("heldout", 20)]
        for number, shot in enumerate(shots):
            cache.encode(model, shot)
            for path in (tmp_path / "small").glob("*.npz"):
                os.utime(path, (path.stat().st_mtime - 10,) * 2)  # clocks may be coarse
            assert len(list((tmp_path / "small").iterdir())) == (1, 2, 3, 2, 3)[number]
        again = FeatureCache(tmp_path / "small", int(3.2 * size))
        again.encode(model, shots[-1])
        assert (again.hits, again.misses) == (1, 0)
        FeatureCache(tmp_path / "none", 10).encode(model, shots[0])
        assert list((tmp_path / "none").iterdir()) == []


def test_features_of_other_families(made_up_bundle, tmp_path, monkeypatch):
    """Kept is what stages that run once an image gave; without such stages there is nothing."""
    rgb = next(scene_images("heldout", 1)).rgb
    whole = made_up_bundle.name == "whole"
    with load(made_up_bundle, engine="onnxruntime") as model:
        cache = FeatureCache(tmp_path / "f", 10**9)
        first = cache.encode(model, rgb)
        files = list((tmp_path / "f").iterdir())
        assert len(files) == (0 if whole else 1)
        if not whole:
            assert set(np.load(files[0])) == {"seen", "pooled"}  # not the host's own image
            monkeypatch.setattr(Model, "encode_image", None)
        again = cache.encode(model, rgb)
        assert (cache.hits, cache.misses) == ((0, 0) if whole else (1, 1))
        assert again.values.keys() == first.values.keys()
        answers = [scene.segment("left man").logits for scene in (first, again)]
        np.testing.assert_array_equal(*answers)
    _, _, err = run(made_up_bundle, "--samples", 4, "--features", tmp_path / "f")
    said = "--features keeps nothing: no stage of this model runs once an image"
    assert (said in err) == whole


def test_features_of_another_host(toy_bundle, tmp_path, monkeypatch):
    """An entry holds resized maps, and what questions take; another resize is another entry."""
    rgb = next(scene_images("heldout", 1)).rgb
    bundle = open_bundle(toy_bundle)
    resizes = {"wide_features": replace(bundle.manifest.host.resizes["wide_features"], size=24)}
    host = replace(bundle.manifest.host, resizes=resizes)
    other = replace(bundle, manifest=replace(bundle.manifest, host=host))
    cache = FeatureCache(tmp_path / "f", 10**9)
    sizes = []
    for one in (bundle, other, bundle):
        with open_model(one, engine="onnxruntime") as model:
            sizes.append(cache.encode(model, rgb).values["wide_features"].shape[-1])
    assert sizes == [16, 24, 16]
    assert (cache.hits, cache.misses) == (1, 2)

    monkeypatch.setattr(bundle.wiring, "kept", ())
    with open_model(bundle, engine="onnxruntime") as model:
        assert not cache.encode(model, rgb).values
    assert (cache.hits, cache.misses) == (1, 3)
    assert len(list((tmp_path / "f").iterdir())) == 3


def test_two_processes_share_a_folder_of_features(tmp_path, tiny_bundle):
    program = Path(sys.executable).parent / "ris-eval"
    options = ("--samples", "24", "--features", tmp_path / "f", "--threads", "1", "--json")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    both = [subprocess.Popen([program, tiny_bundle, *options], **pipes) for _ in range(2)]
    outputs = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert outputs[0][0] == outputs[1][0]
    assert {path.suffix for path in (tmp_path / "f").iterdir()} == {".npz"}
