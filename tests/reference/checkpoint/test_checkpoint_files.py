"""Weight files: every format opens without running anything, every damaged one is a sentence."""

from __future__ import annotations

import json
import pickle
import resource
import zipfile
from collections import OrderedDict
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from checkpoint_files import TINY, Payload, save_half, save_training_checkpoint, tiny_state
from ris.engines.errors import CheckpointError
from ris.reference.checkpoint import WeightFiles, load_model
from ris.reference.checkpoint.carried import read_carried
from ris.reference.checkpoint.files import open_weights


@pytest.fixture(scope="module")
def state():
    return tiny_state()


def write(kind, path, state):
    if kind == "detectron2":
        save_training_checkpoint(path, OrderedDict(state))
    elif kind == "state_dict, module.":
        torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}, "epoch": 3}, path)
    elif kind == "bare":
        torch.save(state, path)
    elif kind == "bare, compiled":
        torch.save({f"_orig_mod.module.{k}": v for k, v in state.items()}, path)
    elif kind == "old format":
        torch.save({"model": state}, path, _use_new_zipfile_serialization=False)
    elif kind == "safetensors":
        save_file(state, path)
    elif kind == "safetensors, half, model.":
        save_half(path, {f"model.{k}": v for k, v in state.items()})
    elif kind == "bfloat16":
        torch.save({"model": {k: v.bfloat16() for k, v in state.items()}}, path)


@pytest.mark.parametrize(
    ("kind", "tolerance"),
    [
        ("detectron2", 0),
        ("state_dict, module.", 0),
        ("bare", 0),
        ("bare, compiled", 0),
        ("old format", 0),
        ("safetensors", 0),
        ("safetensors, half, model.", 1e-3),
        ("bfloat16", 8e-3),
    ],
)
def test_every_wrapping_gives_the_same_model(tmp_path, state, kind, tolerance):
    path = tmp_path / "weights.any"  # told by content, not by name
    write(kind, path, state)
    model, inspection = load_model(WeightFiles(path))
    assert inspection.config == TINY
    for key, value in model.state_dict().items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, state[key], rtol=tolerance, atol=tolerance)
    assert not any(p.requires_grad for p in model.parameters())


def test_what_is_beside_the_weights_is_named(tmp_path, state):
    file = open_weights(save_training_checkpoint(tmp_path / "model_final.pth", state))
    assert file.beside == ("optimizer", "scheduler", "iteration")


def test_strided_and_shared_tensors(tmp_path):
    big = torch.randn(6, 8)
    torch.save({"a": big.t(), "b": big[1:3], "c": big}, tmp_path / "views.pth")
    entries = open_weights(tmp_path / "views.pth").entries
    for name, want in {"a": big.t(), "b": big[1:3], "c": big}.items():
        assert entries[name].shape == tuple(want.shape)
        read = entries[name].read()
        assert read.is_contiguous()
        torch.testing.assert_close(read, want.contiguous())


# --- damaged ---


def deflated(path, state, which):
    """torch.save's archive with those of its members compressed whose names `which` picks."""
    torch.save(state, path)
    with zipfile.ZipFile(path) as file:
        contents = {name: file.read(name) for name in file.namelist()}
    with zipfile.ZipFile(path, "w") as file:
        for name, data in contents.items():
            file.writestr(name, data, zipfile.ZIP_DEFLATED if which(name) else zipfile.ZIP_STORED)


def header(text):
    """A safetensors file with this header and four bytes of data."""
    return len(text).to_bytes(8, "little") + text + b"\0" * 4


def damaged_files(folder, state):
    """name -> (function that writes it, part of the sentence)."""
    old_format = {"_use_new_zipfile_serialization": False}
    payload = Payload(folder / "ran")

    def pickled(value, **options):
        return lambda path: torch.save(value, path, **options)

    def text(content):
        return lambda path: path.write_bytes(content)

    def with_record(name, content):
        def write(path):
            torch.save(state, path)
            with zipfile.ZipFile(path) as file:
                contents = {entry: file.read(entry) for entry in file.namelist()}
            with zipfile.ZipFile(path, "w") as file:
                for entry, data in contents.items():
                    file.writestr(entry, content if entry.endswith(f"/{name}") else data)

        return write

    def truncated(write):
        def write_part(path):
            write(path)
            path.write_bytes(path.read_bytes()[:-5000])

        return write_part

    def archive(path):
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("readme.txt", "hello")

    def compressed(path):
        deflated(path, state, lambda name: True)

    return {
        "compressed": (compressed, "was compressed after it was saved"),
        "missing": (lambda path: None, "no such file"),
        "folder": (lambda path: path.mkdir(), "; give the weight file in it"),
        "empty": (text(b""), "is empty; download or copy it again"),
        "pointer": (
            text(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n"),
            "is a git-lfs pointer",
        ),
        "page": (text(b"<!DOCTYPE html><html>not found"), "is no weight file but a web page"),
        "text": (text(b"weights, please"), "is no weight file but something else"),
        "zip": (archive, "is a zip archive without weights"),
        "npz": (
            lambda path: np.savez(path.open("wb"), a=np.zeros(3)),
            "is a zip archive without weights",
        ),
        "numpy pickle": (
            text(pickle.dumps({"model": {"a": np.zeros(3)}})),
            "nothing of it was run",
        ),
        "list": (pickled([torch.zeros(3)]), "holds a list; expected a state dict"),
        "no tensors": (pickled({"model": {"a": 3}}), "holds no tensors"),
        "code": (
            pickled({"model": state, "x": payload}),
            "is a pickle that needs posix.system",
        ),
        "old code": (
            pickled({"model": state, "x": payload}, **old_format),
            "is a pickle that needs posix.system",
        ),
        "plain pickle code": (text(pickle.dumps(payload, protocol=2)), "nothing of it was run"),
        "plain pickle code, new": (text(pickle.dumps(payload)), "nothing of it was run"),
        "module": (
            pickled({"model": torch.nn.Linear(3, 3)}),
            "needs torch.nn.modules.linear.Linear",
        ),
        "truncated": (truncated(pickled(state)), "is truncated or damaged"),
        "truncated old": (truncated(pickled(state, **old_format)), "is truncated or damaged"),
        "truncated.safetensors": (
            truncated(lambda path: save_file(state, path)),
            "is a truncated or damaged safetensors file of",
        ),
        "header.safetensors": (
            text(b"\xff" * 100),
            "is a truncated or damaged safetensors file of 100 bytes",
        ),
        "sparse": (pickled({"a": torch.eye(3).to_sparse()}), "a is sparse or quantised"),
        "odd name": (
            pickled({"a\n\x1b" * 999: torch.eye(3).to_sparse()}),
            "\\n\\x1ba\\n\\x1b is sparse or quantised",
        ),
        "odd names": (
            pickled({"a\n" * 9: torch.eye(3), "module." + "a\n" * 9: torch.eye(3)}),
            "; save the state dict of one model alone",
        ),
        "kind.safetensors": (
            text(
                header(
                    b'{"\\n\\u001b": {"dtype": "F8_E5M2", "shape": [4], "data_offsets": [0, 4]}}'
                )
            ),
            "\\n\\x1b is stored as F8_E5M2",
        ),
        "byte order": (
            with_record("byteorder", b"little" + b"\0" * 40),
            "(Unknown endianness type: little\\x00\\x00",
        ),
        "config": (
            pickled({"model": state, "ris_config": {"colour": 1}}),
            "unknown model configuration fields: colour",
        ),
        "config value": (
            pickled({"model": state, "ris_config": TINY.to_dict() | {"query": "colour"}}),
            "query is 'colour', not one of category, cls",
        ),
        "config size": (
            pickled({"model": state, "ris_config": TINY.to_dict() | {"heads": 10**30}}),
            "heads is 1000000000000000000000000000000, not from 0 to",
        ),
        "config layers": (
            pickled({"model": state, "ris_config": TINY.to_dict() | {"deformable_layers": 10**6}}),
            "deformable_layers is 1000000, not from 0 to 256",
        ),
        "config number": (
            pickled({"model": state, "ris_config": TINY.to_dict() | {"ffn_width": "64"}}),
            "ffn_width is '64', not a whole number",
        ),
        "blocks": (
            pickled({"model": state | {"sam.image_encoder.blocks.999999999.a": torch.zeros(3)}}),
            "no model has more than 256",
        ),
        "pickle compressed": (
            lambda path: deflated(path, state, lambda name: name.endswith("data.pkl")),
            "was compressed after it was saved",
        ),
        "long header.safetensors": (
            text(b"\xff" * 7 + b"\x7f{}"),
            "is a truncated or damaged safetensors file of",
        ),
        "nan header.safetensors": (
            text(header(b'{"a": {"dtype": "F32", "shape": [NaN], "data_offsets": [0, 4]}}')),
            "is a truncated or damaged safetensors file of",
        ),
        "overlap.safetensors": (
            text(
                header(
                    b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},'
                    b' "b": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}'
                )
            ),
            "is a truncated or damaged safetensors file of",
        ),
        "deep config.safetensors": (
            lambda path: save_file(state, path, {"ris_config": "[" * 100_000}),
            "its metadata entry ris_config is not JSON",
        ),
        "config kind": (
            pickled({"model": state, "ris_config": 3}),
            "its entry ris_config is a int; expected a dict",
        ),
        "config json.safetensors": (
            lambda path: save_file(state, path, {"ris_config": "{"}),
            "its metadata entry ris_config is not JSON",
        ),
    }


@pytest.mark.parametrize("name", list(damaged_files(Path(), {})))
def test_one_sentence_for_each_damaged_file(tmp_path, state, name):
    make, sentence = damaged_files(tmp_path, state)[name]
    path = tmp_path / name
    make(path)
    before = sorted(p.name for p in tmp_path.iterdir())

    with pytest.raises(CheckpointError) as caught:
        load_model(WeightFiles(path))
    message = str(caught.value)

    assert sentence in message
    assert message.startswith(str(path))
    assert message.isprintable()
    assert len(message) < len(str(path)) + 300
    assert sorted(p.name for p in tmp_path.iterdir()) == before  # no payload ran
    assert not (tmp_path / "ran").exists()


def torchscript_with(path, pickled, **records):
    """A TorchScript archive with a data.pkl of one's own."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("m/data.pkl", pickled)
        file.writestr("m/constants.pkl", b"\x80\x02).")
        file.writestr("m/version", "3\n")
        for name, data in records.items():
            file.writestr(f"m/data/{name}", data)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (
            b"cposix\nsystem\n(X\x09\x00\x00\x00touch rantR.",
            "needs posix.system, which is more than weights",
        ),
        (b"cbuiltins\neval\n(X\x04\x00\x00\x001+1itR.", "needs builtins.eval"),
        (b"ctorch\nload\n)R.", "needs torch.load"),
        (
            b"ctorch.jit._pickle\nbuild_tensor_from_id\n)R.",
            "needs torch.jit._pickle.build_tensor_from_id",
        ),
        (b"cto\x1brch\nload\n)R.", r"needs to\\x1brch.load"),
        (b"garbage", "is a damaged TorchScript archive"),
        (b"", "is a damaged TorchScript archive"),
    ],
)
def test_a_torchscript_archive_is_only_read(tmp_path, monkeypatch, data, sentence):
    monkeypatch.chdir(tmp_path)
    torchscript_with(tmp_path / "clip.pt", data)
    with pytest.raises(CheckpointError, match=sentence):
        open_weights(tmp_path / "clip.pt")
    assert [p.name for p in tmp_path.iterdir()] == ["clip.pt"]


def test_a_large_index_in_a_pickle_takes_no_memory(tmp_path):
    """The unpickler in C would fill 64 GB with nothing."""
    torchscript_with(tmp_path / "clip.pt", b"\x80\x02}r\xff\xff\xff\x7f.")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError):
        open_weights(tmp_path / "clip.pt")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20  # of KB


@pytest.mark.parametrize(
    ("offset", "shape", "stride"),
    [(0, (5,), (1,)), (3, (4,), (1,)), (-1, (1,), (1,)), (0, (2,), (-1,)), (0, (4,), (2,))],
)
def test_a_torchscript_tensor_stays_in_its_record(tmp_path, offset, shape, stride):
    data = (
        b"\x80\x02c__torch__\nM\n)\x81}X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n("
        b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
        b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ"
        + b"".join(pickle.dumps(v, 2)[2:-1] for v in (offset, shape, stride))
        + b"\x89)tRsb."
    )
    torchscript_with(tmp_path / "clip.pt", data, **{"0": np.zeros(4, np.float32).tobytes()})
    with pytest.raises(CheckpointError, match="is a damaged TorchScript archive"):
        open_weights(tmp_path / "clip.pt")


def test_carried_configuration_wins(tmp_path, state):
    """Heads cannot be seen in the weights; the configuration of a checkpoint says them."""
    config = replace(TINY, preset="mine", heads=4, deformable_points=8)
    torch.save({"model": state, "ris_config": config.to_dict()}, tmp_path / "a.pth")
    model, inspection = load_model(WeightFiles(tmp_path / "a.pth"))
    assert inspection.carried_config
    assert model.config == config
    save_file(state, tmp_path / "b.safetensors", {"ris_config": json.dumps(config.to_dict())})
    assert load_model(WeightFiles(tmp_path / "b.safetensors"))[0].config == config


def test_a_carried_configuration_is_checked_against_the_shapes(tmp_path, state):
    config = replace(TINY, ffn_width=64, no_target="none")
    torch.save({"model": state, "ris_config": config.to_dict()}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError) as caught:
        load_model(WeightFiles(tmp_path / "a.pth"))
    assert "linear1.weight is [128, 64], expected [64, 64]" in str(caught.value)
    assert "DFAM: 4 unexpected: decoder.nt_embed.layers.0.weight" in str(caught.value)


@dataclass(frozen=True)
class Sizes:
    """A configuration with a field of each kind."""

    depths: tuple[int, ...] = (2, 2)
    rate: float = 0.5
    biased: bool = True

    @classmethod
    def from_dict(cls, data):
        return cls(**data)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"depths": (2, 10**6)}, "depths is (2, 1000000), not from 0 to 256"),
        ({"rate": "0.5"}, "rate is '0.5', not a finite number"),
        ({"rate": True}, "rate is True, not a finite number"),
        ({"rate": float("nan")}, "rate is nan, not a finite number"),
        ({"biased": 1}, "biased is 1, not true or false"),
    ],
)
def test_each_field_of_a_carried_configuration_is_of_its_kind(data, words):
    with pytest.raises(CheckpointError) as caught:
        read_carried(Sizes, data, "a.pth")
    assert words in str(caught.value)
    assert read_carried(Sizes, {"rate": 1, "biased": False}, "a.pth").rate == 1


def test_impossible_sizes_are_a_sentence(tmp_path, state):
    config = replace(TINY, heads=7)
    torch.save({"model": state, "ris_config": config.to_dict()}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="its sizes make no model"):
        load_model(WeightFiles(tmp_path / "a.pth"))
