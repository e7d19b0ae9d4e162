"""`ris-export --checkpoint`: the plan, the bundle, and parity and timing against the same files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from checkpoint_files import TINY, Payload, below, save_training_checkpoint, tiny_state, without
from ris.export.command import main
from ris.reference.families import FAMILIES
from ris.runtime import load, open_bundle
from ris.runtime.bundle import sha256_of
from ris.runtime.commands.bench import main as bench
from ris.runtime.commands.parity import main as parity
from ris.runtime.manifest import manifest_from_dict


def run(command, *arguments):
    return CliRunner().invoke(command, [str(a) for a in arguments])


def weight_options(files):
    return ["--checkpoint", files / "model_final.pth", "--sam-checkpoint", files / "sam.pth"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A checkpoint without SAM's encoder, SAM's own file, a BERT folder, and other checkpoints."""
    folder = tmp_path_factory.mktemp("files")
    state = tiny_state()
    save_training_checkpoint(folder / "model_final.pth", without(state, "sam.image_encoder."))
    torch.save(below(state, "sam."), folder / "sam.pth")
    save_training_checkpoint(folder / "category.pth", tiny_state(TINY.with_category_query()))
    save_training_checkpoint(folder / "other.pth", tiny_state(seed=4))
    words = Path(__file__).parents[2] / "reference" / "data" / "tiny-vocab.txt"
    (folder / "bert").mkdir()
    (folder / "bert" / "vocab.txt").write_text(words.read_text() + "zebra\n")
    return folder


@pytest.fixture(scope="module")
def bundle(files, tmp_path_factory):
    out = tmp_path_factory.mktemp("bundle") / "ris-bundle"
    done = run(main, *weight_options(files), "--bert", files / "bert", "--out", out)
    assert done.exit_code == 0, done.output
    assert "Made from model_final.pth, cls variant." in done.output
    assert "Model: tiny, cls variant with a no-target head" in done.output
    assert "made up" not in done.output
    return out


def test_the_manifest_says_what_it_was_made_from(files, bundle):
    source = open_bundle(bundle).manifest.source
    assert (source.kind, source.trained, source.seed) == ("checkpoint", True, None)
    assert source.checkpoint == "model_final.pth"
    assert source.checkpoint_sha256 == sha256_of(files / "model_final.pth")
    [component] = source.components
    assert (component.component, component.file) == ("sam", "sam.pth")
    assert component.sha256 == sha256_of(files / "sam.pth")
    assert str(files) not in (bundle / "manifest.json").read_text()


def test_manifests_before_component_files_are_still_read(bundle):
    data = json.loads((bundle / "manifest.json").read_text())
    del data["source"]["components"]
    assert manifest_from_dict(data).source.components == ()


def test_the_vocabulary_is_that_of_the_bert_folder(bundle, picture):
    with load(bundle) as model:
        assert "zebra" in (bundle / "tokenizer.json").read_text()
        assert model.segment(picture, "left man").mask.shape == picture.shape[:2]


def test_parity_and_bench_take_the_very_files(files, bundle):
    given = weight_options(files)
    done = run(parity, bundle, "--reference", *given, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["mask_iou"] >= 0.9999
    done = run(bench, bundle, "--pytorch", *given, "--runs", "1", "--cold", "1", "--json")
    assert done.exit_code == 0, done.output
    assert "PyTorch eager FP32" in [one["name"] for one in json.loads(done.stdout)["alternatives"]]

    other = files / "other.pth"
    checkpoint, sam = given[:2], given[2:]
    lacking = (
        "give --checkpoint model_final.pth and --sam-checkpoint sam.pth, or compare with its golden"
    )
    another = "given as --checkpoint, is not the model_final.pth that"
    whole = "is a checkpoint of the whole model; expected SAM's weights"
    wrong = {
        (): lacking,
        tuple(checkpoint): "give --sam-checkpoint sam.pth",
        ("--checkpoint", other, *sam): another,
        (*checkpoint, "--sam-checkpoint", other): whole,
    }
    for arguments, sentence in wrong.items():
        for command, flag in ((parity, "--reference"), (bench, "--pytorch")):
            done = run(command, bundle, flag, *arguments)
            assert done.exit_code == 2
            assert sentence in done.output, (arguments, done.output)

    done = run(parity, bundle, *given)
    assert done.exit_code == 2
    assert "--checkpoint and the component files need --reference" in done.output


def test_made_up_weights_need_no_files(files, tiny_bundle):
    done = run(parity, tiny_bundle, "--reference", "--checkpoint", files / "other.pth")
    assert done.exit_code == 2
    assert "was made with made-up weights; leave --checkpoint and the others out" in done.output


def test_a_dry_run_says_everything_and_writes_nothing(files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = [*weight_options(files), "--bert", files / "bert", "--precision", "fp16"]
    done = run(main, *given, "--dry-run")
    assert done.exit_code == 0, done.output
    for text in (
        "model_final.pth: torch.save, 483 tensors; ",
        "beside the weights, not read: optimizer, scheduler, iteration",
        "\nFamily: dfam\nModel: tiny, cls",
        "Model: tiny, cls variant with a no-target head, as the released code has it",
        "(read off the keys and shapes)",
        "  SAM 256 px, 48 wide, 3 blocks; CLIP 84 px, 64 wide, 3 blocks; BERT 48 wide, 2 layers, ",
        " 2 layers, 320 words\n  dense prompt ",
        "SAM image encoder    51 tensors from sam.pth",
        "SAM image encoder: from sam.pth, SAM ViT (48 wide, 3 blocks); the checkpoint has none",
        "SAM mask decoder: the checkpoint's trained tensors are kept, sam.pth gives none",
        "not loaded: 0 dead tensors",
        "vocab.txt",
        "Plan: ris-bundle, fp16, about",
        "mask_decoder        fp32",
        "GB of memory",
        "Would work; nothing was written.",
    ):
        assert text in done.output, text
    assert list(tmp_path.iterdir()) == []


def test_the_plan_is_what_is_written(files, bundle):
    done = run(main, *weight_options(files), "--out", "nowhere", "--dry-run", "--json")
    assert done.exit_code == 0
    report = json.loads(done.stdout)
    manifest = open_bundle(bundle).manifest
    assert report["model"] == manifest.model
    assert report["family"] == manifest.family == "dfam"
    assert report["plan"]["works"]
    assert report["files"]["keys"]["fits"]
    assert report["files"]["parts"]["SAM image encoder"] == {"sam.pth": 51}
    for stage in report["plan"]["graphs"]:
        written = manifest.graphs[stage["stage"]].parameters
        # position tables are spelled out in graphs, small ones too
        assert written <= stage["parameters"] * 1.75, stage
        assert stage["parameters"] <= written * 1.2, stage


def test_a_dry_run_of_files_that_do_not_work(files, tmp_path):
    state = without(tiny_state(), "sam.image_encoder.")
    del state["lang_mlp.weight"]
    broken = save_training_checkpoint(tmp_path / "broken.pth", {**state, "strange": torch.zeros(1)})
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").write_text("mine")
    arguments = ["--checkpoint", broken, "--dry-run", "--out", tmp_path / "taken"]
    done = run(main, *arguments)
    assert done.exit_code == 2
    for text in (
        "SAM image encoder: 51 missing: sam.image_encoder.pos_embed",
        "text projection: 1 missing: lang_mlp.weight",
        "other: 1 unexpected: strange",
        "Would not work: ",
        "SAM image encoder: --sam-checkpoint would bring it",
        "taken exists and is not a bundle",
    ):
        assert text in done.output, text
    done = run(main, *arguments, "--json")
    assert done.exit_code == 2
    report = json.loads(done.stdout)
    assert not report["plan"]["works"]
    assert len(report["files"]["keys"]["missing"]) == 52
    assert report["files"]["keys"]["unexpected"] == ["strange"]

    nosuch = tmp_path / "nosuch.pth"
    done = run(main, "--checkpoint", nosuch, "--dry-run", "--json")
    assert done.exit_code == 2
    assert json.loads(done.stdout)["plan"]["problems"] == [f"{nosuch}: no such file"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["broken.pth", "taken"]


def test_a_checkpoint_is_taken_for_the_family_that_is_named(files, tmp_path):
    """A file without a sign of its family is refused, and with --family said to lack them."""
    signs = FAMILIES["dfam"].signs
    part = save_training_checkpoint(tmp_path / "part.pth", without(tiny_state(), *signs))
    done = run(main, "--checkpoint", part, "--dry-run")
    assert done.exit_code == 2
    assert "is of no family of models that is known here; it is nearest to dfam: " in done.output
    done = run(main, "--checkpoint", part, "--family", "dfam", "--dry-run")
    assert done.exit_code == 2
    assert "Family: dfam\nModel: tiny, cls variant" in done.output
    assert "PWAM: 12 missing: adaptor_clip.fusion." in done.output

    done = run(main, "--family", "dfam", "--dry-run")
    assert done.exit_code == 2
    assert "--family says what --checkpoint is of; give that too" in done.output


@pytest.mark.parametrize("arguments", [["--preset", "tiny"], ["--random-weights", "0"]])
def test_dry_runs_without_a_checkpoint(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run(main, *arguments, "--dry-run")
    assert done.exit_code == 0
    assert "made-up weights, seed 0 (untrained)" in done.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--random-weights", "0"], "--random-weights and weight files contradict each other"),
        (
            ["--variant", "category"],
            "is the cls variant (it has a no-target head), which contradicts --variant category",
        ),
        (
            ["--preset", "vitb-vitl336"],
            "other.pth is tiny, which contradicts --preset vitb-vitl336",
        ),
        (["--supplement"], "is as the released code has it, which contradicts --supplement"),
        (
            ["--sam-checkpoint", "other.pth"],
            "is a checkpoint of the whole model; expected SAM's weights",
        ),
        (["--family", "rala"], "there is no family of models 'rala'; known are dfam, rela"),
        (["--checkpoint", "evil.pth"], "needs posix.system, which is more than weights"),
    ],
)
def test_one_sentence_for_each_contradiction(files, tmp_path, monkeypatch, arguments, sentence):
    monkeypatch.chdir(files)
    torch.save({"model": Payload(tmp_path / "ran")}, "evil.pth")
    done = run(main, "--checkpoint", "other.pth", *arguments, "--out", tmp_path / "out")
    assert done.exit_code == 2
    assert sentence in done.output
    assert done.output.count("Error:") == 1
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "ran").exists()


def test_what_agrees_is_no_contradiction(files):
    agreeing = ["--variant", "category", "--preset", "tiny"]
    given = ["--checkpoint", files / "category.pth", *agreeing]
    done = run(main, *given, "--dry-run", "--out", "nowhere")
    assert done.exit_code == 0, done.output
    assert "category variant without no-target head" in done.output


def test_a_category_checkpoint(files, tmp_path, picture):
    bundle = tmp_path / "bundle"
    given = ["--checkpoint", files / "category.pth", "--precision", "fp16"]
    done = run(main, *given, "--out", bundle)
    assert done.exit_code == 0, done.output
    assert "--category person" in done.output
    with load(bundle) as model:
        assert model.segment(picture, "left man", category="person").mask.shape == picture.shape[:2]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--precision", "fp16", "--fp32", "decoder"], "there is no graph 'decoder' to keep FP32"),
        (["--weight-format", "text=int8"], "there is no graph 'text' whose weights"),
        (["--weight-format", "int8"], "does not say which graphs narrow weights are for"),
    ],
)
def test_a_graph_that_there_is_not_is_said_before_files_are_hashed(
    files, tmp_path, monkeypatch, options, said
):
    monkeypatch.setattr("ris.export.sources.sha256_of", lambda path: pytest.fail("hashed first"))
    done = run(main, *weight_options(files), *options, "--out", tmp_path / "bundle")
    assert done.exit_code == 2
    assert said in done.stderr
    assert not (tmp_path / "bundle").exists()
