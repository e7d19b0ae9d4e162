"""Checkpoints in several files with an index, as transformers writes large ones."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from checkpoint_files import TINY, refused, tiny_state
from ris.engines.errors import CheckpointError
from ris.reference.checkpoint import WeightFiles, inspect, load_model
from ris.reference.checkpoint.shards import open_shards

INDEX = "pytorch_model.bin.index.json"
FILES = ("pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin")


@pytest.fixture(scope="module")
def state():
    return tiny_state()


def write(folder, state, names=FILES, index=INDEX, save=torch.save):
    """Shards of the same number of tensors, and their index."""
    folder.mkdir(exist_ok=True)
    keys, places = list(state), {}
    cut = len(keys) // len(names) + 1
    for i, name in enumerate(names):
        part = keys[i * cut : (i + 1) * cut]
        save({key: state[key] for key in part}, folder / name)
        places |= dict.fromkeys(part, name)
    (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


def safetensors(state, path):
    save_file({key: value.contiguous() for key, value in state.items()}, path)


@pytest.mark.parametrize("kind", ["pickles", "safetensors", "index", "one file of a folder"])
def test_the_same_model_comes_out(state, tmp_path, kind):
    folder = tmp_path / "model"
    if kind == "safetensors":
        names = ("model-00001-of-00003.safetensors", "b.safetensors", "c.safetensors")
        write(folder, state, names, "model.safetensors.index.json", safetensors)
    elif kind == "one file of a folder":
        folder.mkdir()
        safetensors(state, folder / "model.safetensors")
    else:
        write(folder, state)
    given = folder / INDEX if kind == "index" else folder
    model, found = load_model(WeightFiles(given))
    assert found.config == TINY
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key]), key
    files = sorted(path for path in folder.iterdir() if path.suffix != ".json")
    assert found.files_used == set(files)
    if kind == "one file of a folder":
        assert found.weights == {"checkpoint": folder / "model.safetensors"}
    else:
        assert {path.name for path in found.weights.values()} <= {
            INDEX,
            "model.safetensors.index.json",
        }
        assert f"in {len(files)} files, {len(state)} tensors" in next(iter(found.formats.values()))


def test_what_stands_before_every_name_is_taken_off_of_all_files_together(state, tmp_path):
    """The first file alone has no name without it; a language model's head is beside the model."""
    whole = {f"model.{key}": value for key, value in state.items()}
    whole["lm_head.weight"] = torch.zeros(3)
    entries = open_shards(write(tmp_path / "a", whole) / INDEX).entries
    assert set(entries) == {*state, "lm_head.weight"}
    whole["other.weight"] = torch.zeros(3)
    assert set(open_shards(write(tmp_path / "b", whole) / INDEX).entries) == set(whole)


def test_tensors_stay_in_their_files(state, tmp_path):
    """As pieces of mapped files, in the file's own dtype, until one is read."""
    half = {key: value.bfloat16() for key, value in state.items()}
    mixed = half | {key: state[key] for key in list(state)[::2]}
    entries = open_shards(write(tmp_path / "a", mixed) / INDEX).entries
    assert all(entry.mapped for entry in entries.values())
    assert {key: entry.dtype for key, entry in entries.items()} == {
        key: value.dtype for key, value in mixed.items()
    }
    for key, entry in entries.items():
        assert torch.equal(entry.read(), mixed[key].float())


def sentence(folder):
    with pytest.raises(CheckpointError) as caught:
        inspect(WeightFiles(folder))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_missing_or_damaged_file_is_named(state, tmp_path):
    folder = write(tmp_path / "a", state)
    content = (folder / FILES[1]).read_bytes()
    (folder / FILES[1]).unlink()
    assert sentence(folder) == (
        f"{folder / FILES[1]}, which {INDEX} names, is missing; download it into the same folder"
    )
    (folder / FILES[1]).write_bytes(content[:-5000])
    assert sentence(folder).startswith(f"{folder / FILES[1]} is truncated or damaged")
    (folder / FILES[1]).write_text("version https://git-lfs.github.com/spec/v1\n")
    assert "is a git-lfs pointer" in sentence(folder)


def test_files_of_two_models_are_refused(state, tmp_path):
    folder = write(tmp_path / "a", state)
    part = torch.load(folder / FILES[1])
    lost = list(part)[:2]
    torch.save({key: value for key, value in part.items() if key not in lost}, folder / FILES[1])
    assert sentence(folder) == (
        f"{folder / FILES[1]} lacks {lost[0]}, which {INDEX} says it has (2 tensors in all); the"
        " files are not of one model, download them again"
    )
    for name in FILES:
        torch.save(torch.load(folder / name) | {"twice": torch.zeros(1)}, folder / name)
    assert sentence(folder) == (
        f"twice is in {folder / FILES[0]} and in {folder / FILES[1]}, and {INDEX} does not say"
        " which is meant; download the files again"
    )


def test_the_index_says_which_of_two_is_meant(state, tmp_path):
    """A tensor that another file has, too, is not that of the model."""
    folder = write(tmp_path / "a", state)
    first = next(iter(torch.load(folder / FILES[0])))
    stray = torch.load(folder / FILES[1]) | {first: torch.zeros(1)}
    torch.save(stray, folder / FILES[1])
    assert torch.equal(open_shards(folder / INDEX).entries[first].read(), state[first])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("weights", "cannot be read as JSON"),
        ("[]", "is no JSON object"),
        ("{}", "is no index of weights, as it has no weight_map"),
        ('{"weight_map": {"a": "../b.bin"}}', "names '../b.bin', which is no file beside it"),
        ('{"weight_map": {"a": "/etc/passwd"}}', "names '/etc/passwd', which is no file beside it"),
        ('{"weight_map": {"a": 3}}', "names 3, which is no file beside it"),
        ('{"weight_map": {"a": ".."}}', "names '..', which is no file beside it"),
    ],
)
def test_a_bad_index_is_refused(tmp_path, text, words):
    (tmp_path / INDEX).write_text(text)
    assert sentence(tmp_path).startswith(f"{tmp_path / INDEX} {words}")


def test_an_index_of_thousands_of_files_is_refused(tmp_path):
    places = {str(i): f"{i}.bin" for i in range(1001)}
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": places}))
    assert sentence(tmp_path) == f"{tmp_path / INDEX} names 1001 files, no model has more than 1000"


def test_one_of_several_files_is_refused(state, tmp_path):
    folder = write(tmp_path / "a", state)
    assert refused(checkpoint=folder / FILES[0]) == (
        f"{folder / FILES[0]} is file 1 of 2; give the folder that holds all of them and their"
        " index, a file whose name ends in .index.json"
    )
    alone = tmp_path / "model-00001-of-00001.safetensors"
    safetensors(state, alone)
    assert inspect(WeightFiles(alone)).keys.fits


def test_a_folder_without_weights_is_refused(tmp_path):
    assert sentence(tmp_path) == (
        f"{tmp_path} is a folder without {INDEX}, model.safetensors or pytorch_model.bin; give the"
        " weight file in it"
    )
