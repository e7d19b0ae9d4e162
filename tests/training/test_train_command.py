"""`ris-train` from the command line: scenes and data sets, resumed runs, bad input."""

from __future__ import annotations

import json
import pickle

import pytest
import torch
from accelerate import Accelerator
from click.testing import CliRunner
from PIL import Image
from safetensors import safe_open

from refer_files import write_refer
from ris.engines.errors import CheckpointError, RisError
from ris.reference.checkpoint import WeightFiles
from ris.training.command import main
from ris.training.devices import precision_of
from ris.training.initialise import fresh_model
from ris.training.options import DataOptions, parse_mix
from ris.training.prepare import require_encoders
from ris.training.recipe import RECIPES
from ris.training.run_folder import write_weights
from training_runs import TINY

FAST = "--preset tiny --workers 0 --threads 1 --log csv"
FEW = "--batch-images 2 --batch-expressions 2"
SMALL = ("--random-encoders", "--batch", 4, "--group", 2, "--validation-samples", 4)


def run(*arguments):
    fast = FAST if "--data" in arguments else f"{FAST} {FEW}"
    result = CliRunner().invoke(main, [*fast.split(), *map(str, arguments)])
    return result.exit_code, result.output


def log(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_scenes_then_on_from_where_it_stopped(tmp_path):
    out = tmp_path / "run"
    code, text = run("--out", out, "--steps", 3, "--stop", 1)
    assert code == 0, text
    assert "a new run, to step 3" in text
    assert ("computes in FP32" in text) == (precision_of("cpu") == "no")
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
    variant = ["--variant", "cls"] if name == "refcoco" else []
    code, text = run(*data, *out, *SMALL, *variant, "--features", tmp_path / "features")
    assert code == 2, text  # the released loader leaves run lengths out
    assert "named above; the model was trained on the others" in text
    assert "Wrote" in text
    last = log(tmp_path / "run")[-1]
    terms = {"mask_bce", "mask_dice", "dfam_bce", "dfam_dice", "sentence", "no_target"}
    assert set(last["losses"]) == terms
    figures = last["validation"]["all"]
    assert figures["count"] == 4
    assert ("gIoU" in figures) == (name == "grefcoco")
    assert ("oIoU" in figures) == (name == "refcoco")
    assert list((tmp_path / "features").rglob("*.npz"))


def test_a_set_without_a_val_split_says_what_to_validate_on(tmp_path):
    """Ref-ZOM has train and test alone."""
    references = write_refer(tmp_path, "ref-zom", splits=("train", "test"))
    path = tmp_path / "ref-zom" / "refs(final).p"
    path.write_bytes(pickle.dumps([one | {"source": "one"} for one in references], protocol=2))
    data = ["--data", "ref-zom", "--root", tmp_path, *SMALL, "--out", tmp_path / "run"]
    code, text = run(*data, "--steps", 1)
    assert code == 2
    assert "nothing to validate on in 'val'; it has test, train: give --validation with" in text
    assert "such as ref-zom:test" in text
    assert not (tmp_path / "run").exists()
    code, text = run(*data, "--validation", "ref-zom:test", "--steps", 1)
    assert "Wrote" in text, text
    assert "--data ref-zom --split test --root" in text
    assert "oIoU" in log(tmp_path / "run")[-1]["validation"]["all"]
    code, text = run(*data, "--validation", "ref-zom:testC", "--restart", "--dry-run")
    assert "missing: ref-zom has nothing to validate on in 'testC'; it has test, train" in text


def test_one_s_own_lines_train_mixed_with_a_data_set(tmp_path):
    write_refer(tmp_path, "grefcoco")
    Image.new("RGB", (40, 30), "red").save(tmp_path / "a.png")
    line = {"image": "a.png", "expression": "all of it", "mask": None}
    (tmp_path / "own.jsonl").write_text(json.dumps(line) + "\n")
    own = ["--data", f"{tmp_path / 'own.jsonl'}:3", "--data", "grefcoco", "--root", tmp_path]
    _, text = run(*own, *SMALL, "--out", tmp_path / "run", "--steps", 1)
    assert "Wrote" in text, text
    assert log(tmp_path / "run")[-1]["validation"]["all"]["N_acc"] in (0.0, 1.0)


def test_a_file_of_one_s_own_is_not_validated_on_what_it_trains_on(tmp_path):
    for name in "abc":
        Image.new("RGB", (40, 30), "red").save(tmp_path / f"{name}.png")
    line = {"expression": "all of it", "mask": None}
    rows = [json.dumps(line | {"image": f"{name}.png"}) for name in "abc"]
    (tmp_path / "own.jsonl").write_text("\n".join(rows) + "\n")
    own = ["--data", tmp_path / "own.jsonl", *SMALL, "--out", tmp_path / "run"]
    code, text = run(*own, "--steps", 1)
    assert code == 0, text
    assert "1 sentences of own.jsonl, about 1 of its images, are held out" in text
    assert log(tmp_path / "run")[-1]["validation"]["all"]["samples"] == 1
    code, text = run(*own, "--protocol", "lavt")
    assert (code, "--protocol counts published data sets" in text) == (2, True), text


def test_of_several_processes_the_main_one_says_what_was_left_out(tmp_path, monkeypatch):
    write_refer(tmp_path, "grefcoco")
    data = ["--data", "grefcoco", "--root", tmp_path, *SMALL, "--steps", 1]
    code, text = run(*data, "--out", tmp_path / "run", "--images", tmp_path / "images/train2014")
    assert code == 2, text
    assert f"--root {tmp_path} --images {tmp_path}/images/train2014 --protocol all" in text
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(Accelerator, "is_main_process", property(lambda self: False))
    code, text = run(*data, "--out", tmp_path / "second")
    assert (code, text) == (0, "")


def test_a_dry_run_says_what_is_missing_and_what_a_run_takes(tmp_path):
    write_refer(tmp_path, "grefcoco")
    data = ["--data", "grefcoco", "--root", tmp_path, "--out", tmp_path / "run", "--steps", 100]
    code, text = run(*data, "--dry-run")
    assert code == 2, text
    assert "missing: no file has the weights of SAM image encoder" in text
    assert "give --sam-checkpoint, --clip-checkpoint, --bert, or" in text
    code, text = run(*data, *SMALL, "--dry-run", "--features", tmp_path / "features")
    assert code == 0, text
    for said in ("million of them train", "are 33.3 passes", "memory: ", "disk: a state is"):
        assert said in text
    assert "the features of " in text
    assert "hours for 100 steps" in text
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "features").exists()


def test_a_dry_run_counts_lessons_and_the_steps_after_them(tmp_path):
    out = ["--out", tmp_path / "run", "--dry-run", "--validate-every", 50]
    code, text = run(*out, "--steps", 400, "--lessons", 100)
    assert code == 0, text
    lesson, step, validation, whole = text[text.index("time: ") :].split("; ")
    assert "hours for 100 lessons" in lesson
    assert "hours for 300 steps" in step
    assert "hours for 6" in validation
    assert "hours in all" in whole
    code, text = run(*out, "--steps", 400, "--lessons", 0)
    assert "hours for 400 steps" in text
    assert "lesson" not in text[text.index("time: ") :]


def test_random_encoders_are_refused_unless_asked_for(tmp_path):
    write_refer(tmp_path)
    code, text = run("--data", "refcoco", "--root", tmp_path, "--out", tmp_path / "run")
    assert code == 2, text
    parts = "SAM image encoder, SAM prompt encoder, SAM mask decoder, CLIP image tower, BERT"
    assert f"{parts}, with which the recipe supplement begins" in " ".join(text.split())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("prefix", "part", "option"),
    [
        ("text_encoder.", "BERT", "--bert"),
        ("sam.mask_decoder.", "SAM mask decoder", "--sam-checkpoint"),
        ("sam.prompt_encoder.", "SAM prompt encoder", "--sam-checkpoint"),
    ],
)
def test_what_trains_needs_its_file_too(tmp_path, prefix, part, option):
    """The supplement's recipe trains BERT and SAM's mask decoder, from trained weights."""
    model, path = fresh_model(TINY, 0), tmp_path / "lacking.safetensors"
    weights = {k: v for k, v in model.state_dict().items() if not k.startswith(prefix)}
    write_weights(path, weights, model, {})
    files = WeightFiles(checkpoint=path)
    with pytest.raises(CheckpointError, match=f"weights of {part}, with .*: give {option}, or"):
        require_encoders(TINY, RECIPES["supplement"], files)
    require_encoders(TINY, RECIPES["demo"], files)
    write_weights(path, model.state_dict(), model, {})
    require_encoders(TINY, RECIPES["supplement"], files)


def test_the_variant_is_the_data_set_s_own():
    def variant(*names):
        return DataOptions(parse_mix(names)).variant

    assert variant("refcoco") == variant("refcoco+") == variant("refcocog") == "category"
    assert variant("refcoco", "refcocog:2") == "category"
    assert variant("grefcoco") == variant("scenes") == variant("own.jsonl") == "cls"
    assert variant("refcoco", "grefcoco:0.5") == "cls"
    assert parse_mix(["a:b.jsonl", "refcoco:2"]) == (("a:b.jsonl", 1.0), ("refcoco", 2.0))


def test_a_validation_may_name_a_split():
    def judged(validation, *names):
        data = DataOptions(parse_mix(names or ("refcoco",)), validation=validation)
        return data.validates_on, data.validation_split

    assert judged(None) == judged("refcoco") == judged("refcoco:") == ("refcoco", "val")
    assert judged("ref-zom:test") == ("ref-zom", "test")
    assert judged("a:b.jsonl") == ("a:b.jsonl", "val")
    assert judged(None, "own.jsonl") == (None, "val")
    with pytest.raises(RisError, match="--data ref-zom needs --root"):
        DataOptions(parse_mix(["own.jsonl"]), validation="ref-zom:test").check()


def test_on_from_a_checkpoint_in_its_own_architecture(tmp_path):
    """Without a preset: the sizes, the variant and the supplement's choices are the file's."""
    first, second = tmp_path / "first", tmp_path / "second"
    code, text = run("--out", first, "--steps", 1, "--supplement")
    assert code == 0, text
    fast = [word for word in f"{FAST} {FEW}".split() if word not in ("--preset", "tiny")]
    words = [*fast, "--checkpoint", first / "model.safetensors", "--lessons", 0, "--steps", 1]
    result = CliRunner().invoke(main, [*map(str, words), "--out", str(second)])
    assert result.exit_code == 0, result.output
    assert "tensors come from the files" in result.output
    configs = []
    for folder in (first, second):
        with safe_open(folder / "model.safetensors", "pt") as file:
            configs.append(json.loads(file.metadata()["ris_config"]))
    assert configs[0] == configs[1]
    assert configs[1]["sparse_branch"] == "additive"


def test_a_lower_rate_from_the_command_line(tmp_path):
    out = tmp_path / "run"
    run("--out", out, "--steps", 2, "--stop", 1, "--lessons", 0)
    code, text = run("--out", out, "--steps", 2, "--lessons", 0, "--learning-rate", 1e-6)
    assert code == 0, text
    assert [line["note"] for line in log(out)][-2:] == ["learning rate 0.0006 -> 1e-06", None]


def test_bad_input_is_a_sentence(tmp_path):
    refcoco = ["--data", "refcoco", "--root", tmp_path]

    def check(sentence, *arguments):
        code, text = run(*arguments, "--out", tmp_path / "run")
        assert (code, sentence in text) == (2, True), text

    check("--lessons belong to --data scenes", *refcoco, "--lessons", 5)
    check("needs --root", "--data", "refcoco")
    check("draws its own images", "--features", tmp_path)
    check("draws its own images", "--root", tmp_path)
    check("cannot be mixed", "--data", "scenes", *refcoco)
    for option in ("--batch", "--group", "--validation-samples"):
        check(f"{option} belongs to data sets", option, 4)
    for option in ("--batch-images", "--batch-expressions"):
        check(f"{option} belongs to --data scenes", *refcoco, option, 4)
    check("known are scenes, refcoco", "--data", "coco")
    check("the weight is a number above 0, as in refcoco:2", "--data", "refcoco:0")
    check("list of references is missing", *refcoco)
    if not torch.cuda.is_available():
        check("sees no CUDA device", "--device", "cuda")
    check("COCO categories", "--variant", "category")
    check("--best-by nothing: this validation has samples", "--best-by", "nothing")

    write_refer(tmp_path)
    check("needs its table", *refcoco, "--random-encoders")
    for image in (tmp_path / "images" / "train2014").iterdir():
        image.unlink()
    check("none of the 3 images is in", *refcoco)
    assert not (tmp_path / "run").exists()


def test_device_and_folder_are_asked_for_before_anything_is_fetched(tmp_path, monkeypatch):
    monkeypatch.setattr("ris.training.command._with_named", lambda *a, **k: pytest.fail("fetched"))
    named = ["--sam-checkpoint", "sam-vit-b"]
    (tmp_path / "file").touch()
    code, text = run(*named, "--out", tmp_path / "file" / "run")
    assert (code, "file is no folder" in text) == (2, True), text
    code, text = run(*named, "--device", "cdua", "--out", tmp_path / "run")
    assert (code, "--device cdua: there is no such device" in text) == (2, True), text


def test_a_picture_that_cannot_be_drawn_ends_no_run(tmp_path, monkeypatch):
    def fail(*given):
        raise OSError("no space left")

    monkeypatch.setattr("ris.training.plot.plot_log", fail)
    code, text = run("--out", tmp_path / "run", "--steps", 1)
    assert code == 0, text
    assert f"{tmp_path / 'run' / 'log.png'} was not drawn: no space left" in text
    assert (tmp_path / "run" / "state-00000001.pt").exists()


def test_a_missing_and_a_damaged_picture_are_named_and_the_others_learnt(tmp_path):
    write_refer(tmp_path)
    pictures = tmp_path / "images" / "train2014"
    (pictures / "COCO_train2014_000000000001.jpg").unlink()
    (pictures / "COCO_train2014_000000000003.jpg").write_bytes(b"no image")
    data = ["--data", "refcoco", "--root", tmp_path, "--variant", "cls", *SMALL]
    code, text = run(*data, "--out", tmp_path / "run", "--steps", 2)
    assert code == 2, text
    assert "COCO_train2014_000000000001.jpg is not in" in text
    assert "COCO_train2014_000000000003.jpg is not an image" in text
    assert "left out, named above; the model was trained on the others" in text
    assert (tmp_path / "run" / "model.safetensors").exists()
