"""Kept features: by content, in float16 whether read or computed, whole or not there."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from ris.data.datasets import read_lines
from ris.engines.errors import RisError
from ris.reference.dfam.config import PRESETS
from ris.reference.tokenizer import tokenizer_from
from ris.training import features as module
from ris.training.data import batches
from ris.training.features import FeatureStore, store_need, store_sentence
from ris.training.forward import encode
from ris.training.initialise import fresh_model
from ris.training.loading import Loading
from ris.training.refer_source import ReferSource
from ris.training.samples import StoredImage

TINY = PRESETS["tiny"]
SHAPES = (
    (TINY.prompt_width, TINY.sam.grid, TINY.sam.grid),
    (TINY.clip.grid**2, TINY.clip.width),
)


@pytest.fixture(scope="module")
def model():
    return fresh_model(TINY, 0).eval()


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizer_from(None, TINY)


def folder_of(path, seed, names=("a.png", "b.png")):
    """Pictures of noise, each asked about twice."""
    path.mkdir()
    rng = np.random.default_rng(seed)
    rows = []
    for name in names:
        Image.fromarray(rng.integers(0, 256, (40, 60, 3), np.uint8)).save(path / name)
        rows += [{"image": name, "expression": text, "mask": None} for text in ("x", "y")]
    (path / "own.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return ReferSource([(read_lines(path / "own.jsonl"), 1.0)], TINY.sam.image_size, 4, 2)


def encoded(source, model, tokenizer, store, steps=2, workers=0):
    """What the model gets to see of each image of some steps, in float32."""
    loading = Loading(workers=workers, features=store)
    found = []
    for step in batches(source, TINY, tokenizer, 0, steps, loading):
        for batch in step:
            with torch.no_grad():
                found.append((len(batch.squares), *store.encode(model, batch)))
    return found


def assert_equal(some, others):
    for one, other in zip(some, others, strict=True):
        assert torch.equal(one[1], other[1])
        assert torch.equal(one[2], other[2])


def test_computed_and_read_features_are_equal_to_the_bit(tmp_path, model, tokenizer):
    source = folder_of(tmp_path / "p", 0)
    first = encoded(source, model, tokenizer, FeatureStore(tmp_path / "f", model))
    assert sum(squares for squares, _, _ in first) >= 2
    for _, embeddings, tokens in first:
        assert embeddings.dtype == tokens.dtype == torch.float32
        assert torch.equal(embeddings, embeddings.half().float())
    for workers in (0, 1):
        again = encoded(source, model, tokenizer, FeatureStore(tmp_path / "f", model), 2, workers)
        assert all(squares == 0 for squares, _, _ in again), "no picture is decoded again"
        assert_equal(first, again)
    assert len(list((tmp_path / "f").rglob("*.npz"))) == 2


def test_a_half_filled_folder_gives_the_same(tmp_path, model, tokenizer):
    source = folder_of(tmp_path / "p", 0)
    whole = encoded(source, model, tokenizer, FeatureStore(tmp_path / "f", model))
    next((tmp_path / "f").rglob("*.npz")).unlink()
    again = encoded(source, model, tokenizer, FeatureStore(tmp_path / "f", model))
    assert {squares for squares, _, _ in again} == {0, 1}
    assert_equal(whole, again)


def test_other_pictures_of_the_same_names_are_other_features(tmp_path, model, tokenizer):
    store = FeatureStore(tmp_path / "f", model)
    some = encoded(folder_of(tmp_path / "p", 0), model, tokenizer, store)
    others = encoded(folder_of(tmp_path / "q", 1), model, tokenizer, store)
    assert not torch.equal(some[0][1], others[0][1])
    assert len(list((tmp_path / "f").rglob("*.npz"))) == 4


def test_the_same_picture_elsewhere_is_not_encoded_again(tmp_path, model, tokenizer):
    store = FeatureStore(tmp_path / "f", model)
    encoded(folder_of(tmp_path / "p", 0), model, tokenizer, store)
    found = encoded(folder_of(tmp_path / "q", 0, ("c.png", "d.png")), model, tokenizer, store)
    assert all(squares == 0 for squares, _, _ in found)


def test_frozen_encoders_take_image_by_image(model, monkeypatch):
    """So neither their memory nor their numbers depend on the size of the group."""
    sides = TINY.sam.image_size, TINY.clip.image_size
    squares = [torch.randn(3, 3, side, side, generator=torch.manual_seed(0)) for side in sides]
    sizes, whole = [], model.encode_sam

    def counted(images):
        sizes.append(len(images))
        return whole(images)

    monkeypatch.setattr(model, "encode_sam", counted)
    together = encode(model, *squares, trained=False)
    assert sizes == [1, 1, 1]
    for i in range(3):
        alone = encode(model, *(images[i : i + 1] for images in squares), trained=False)
        for one, all_of_them in zip(alone, together, strict=True):
            assert not all_of_them.requires_grad
            assert torch.equal(one[0], all_of_them[i])
    assert encode(model, *squares, trained=True)[0].requires_grad
    assert sizes[-1] == 3


def test_features_belong_to_weights_and_precision(tmp_path, model):
    folders = {
        FeatureStore(tmp_path, model).folder,
        FeatureStore(tmp_path, fresh_model(TINY, 1)).folder,
        FeatureStore(tmp_path, model, "bf16").folder,
    }
    assert len(folders) == 3


def image(value=1.0, shapes=SHAPES):
    sam, clip = (np.full(shape, value, np.float16) for shape in shapes)
    return StoredImage(sam, clip, (40, 60, 6))


def test_what_is_damaged_is_not_there(tmp_path, model):
    store = FeatureStore(tmp_path, model)
    assert store.read("a" * 64) is None
    store.write("a" * 64, image())
    found = store.read("a" * 64)
    np.testing.assert_array_equal(found.embeddings, image().embeddings)
    assert found.frame == (40, 60, 6)
    path = next(store.folder.glob("*.npz"))
    whole = path.read_bytes()
    for torn in (b"", b"torn", whole[: len(whole) // 2], whole[:-30]):
        path.write_bytes(torn)
        assert store.read("a" * 64) is None
    store.write("a" * 64, image(shapes=((4, 2, 2), (9, 3))))
    assert store.read("a" * 64) is None


def test_a_full_disk_is_one_sentence(tmp_path, model, monkeypatch):
    def full(path, save):
        raise OSError(28, "No space left on device")

    store = FeatureStore(tmp_path, model)
    monkeypatch.setattr(module, "write_atomically", full)
    with pytest.raises(RisError, match=r"npz cannot be written: No space left on device"):
        store.write("a" * 64, image())


def test_what_float16_cannot_hold_is_refused(tmp_path, model, tokenizer, monkeypatch):
    source, store = folder_of(tmp_path / "p", 0), FeatureStore(tmp_path / "f", model)
    huge = torch.full((1, *SHAPES[0]), 1e6), torch.zeros(1, *SHAPES[1])
    monkeypatch.setattr(module, "encode", lambda *args, **options: huge)
    with pytest.raises(RisError, match="does not fit into float16; run without --features"):
        encoded(source, model, tokenizer, store)


def test_the_need_is_said(tmp_path, model, monkeypatch):
    store = FeatureStore(tmp_path, model)
    store.write("a" * 64, image())
    size = next(store.folder.glob("*.npz")).stat().st_size
    assert store_need(TINY, 10) == pytest.approx(10 * size, rel=0.02)
    full = PRESETS["vitb-vitl336"]
    assert store_need(full, 1) == pytest.approx(3.28e6, rel=0.01)
    nowhere = tmp_path / "not" / "there"
    assert "take 55.7 GB in" in store_sentence(nowhere, full, 16_994)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: Free())
    assert store_sentence(nowhere, full, 16_994).endswith("10.0 GB are free, which is not enough")


class Free:
    free = 10**10
