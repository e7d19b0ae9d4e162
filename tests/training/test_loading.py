"""Batches are the same with any number of workers and processes, and from any step on."""

from __future__ import annotations

import os
import pickle
import shutil
import signal
from collections import namedtuple
from dataclasses import replace

import pytest
import torch

from ris.data.scenes.as_refer import write_as_refer
from ris.engines.errors import RisError
from ris.reference.dfam.config import PRESETS
from ris.reference.tokenizer import tokenizer_from
from ris.training.data import batches, packed
from ris.training.loading import Loading
from ris.training.reading import read_for_training
from ris.training.refer_source import ReferSource, ReferSubset
from ris.training.scene_source import SceneSource

TINY = PRESETS["tiny"]
STEPS = 5
QUIET = Loading(workers=0, say=lambda sentence: None)


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizer_from(None, TINY)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    root = tmp_path_factory.mktemp("made-up")
    write_as_refer(root, "grefcoco", {"train": 10, "val": 2}, side=96)
    data = read_for_training("grefcoco", "train", root=root)
    return ReferSource([(data, 1.0)], TINY.sam.image_size, 8, 2)


def values(batch):
    """All of a batch that a step depends on, as bytes and numbers that can be compared."""
    targets = batch.targets
    tensors = [batch.squares, batch.input_ids, batch.category, targets.union, *targets.objects]
    tensors += [targets.targeted, targets.image_index]
    return batch.group, batch.about.places, [tensor.numpy().tobytes() for tensor in tensors]


def run(source, tokenizer, loading=QUIET, first=0, last=STEPS):
    steps = batches(source, TINY, tokenizer, first, last, loading)
    return [[values(batch) for batch in step] for step in steps]


@pytest.fixture(scope="module")
def whole(source, tokenizer):
    found = run(source, tokenizer)
    assert [[group for group, _, _ in step] for step in found] == [[0, 1, 2, 3]] * STEPS
    return found


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("pipes", [False, True])
def test_workers_change_nothing(source, tokenizer, whole, workers, pipes):
    assert run(source, tokenizer, replace(QUIET, workers=workers, pipes=pipes)) == whole


def test_a_resumed_run_sees_what_it_would_have_seen(source, tokenizer, whole):
    assert run(source, tokenizer, replace(QUIET, workers=1), first=3) == whole[3:]


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_the_groups_of_the_same_steps(source, tokenizer, whole, processes):
    shares = [
        run(source, tokenizer, replace(QUIET, rank=rank, processes=processes))
        for rank in range(processes)
    ]
    for step in range(STEPS):
        together = sorted(group for share in shares for group in share[step])
        assert together == whole[step]


def test_groups_that_cannot_be_shared_are_refused(source, tokenizer):
    with pytest.raises(RisError, match="3 processes cannot share the 4 groups of a step evenly"):
        run(source, tokenizer, replace(QUIET, processes=3))


def test_scenes_are_cut_into_parts_which_processes_share(tokenizer):
    scenes = SceneSource("train", 128, 4, 2)
    parted = replace(QUIET, parts=2)
    (together,) = batches(scenes, TINY, tokenizer, 0, 1, parted)
    assert [batch.group for batch in together] == [0, 1]
    assert [len(batch.squares) for batch in together] == [2, 2]
    for rank in range(2):
        (own,) = batches(scenes, TINY, tokenizer, 0, 1, replace(parted, rank=rank, processes=2))
        assert [batch.group for batch in own] == [rank]
        assert torch.equal(own[0].squares, together[rank].squares)
        assert torch.equal(own[0].targets.same, together[rank].targets.same)


def test_a_batch_of_which_nothing_is_left_is_no_group(tokenizer, source, monkeypatch):
    monkeypatch.setattr(ReferSource, "batch", lambda *args: None)
    assert run(source, tokenizer, replace(QUIET, workers=1)) == [[]] * STEPS


def test_a_packed_batch_is_the_batch(source, tokenizer):
    ((batch, *_),) = batches(source, TINY, tokenizer, 0, 1, QUIET)
    there = packed(batch)
    assert values(pickle.loads(there)) == values(batch)
    size = batch.squares.nbytes + 2 * batch.targets.union.nbytes
    assert len(there) < 2 * size, "a view is not packed with all that it is a part of"


@pytest.fixture
def shared(monkeypatch):
    """Sets the free bytes of /dev/shm; None: it is not there."""
    usage = namedtuple("usage", "total used free")

    def set_free(free):
        def disk_usage(path):
            if free is None:
                raise FileNotFoundError(path)
            return usage(free, 0, free)

        monkeypatch.setattr(shutil, "disk_usage", disk_usage)

    return set_free


def test_small_shared_memory_is_said_and_gone_around(source, tokenizer, whole, shared):
    shared(2**16)
    said = []
    loading = Loading(workers=2, say=said.append)
    assert run(source, tokenizer, loading) == whole
    assert len(said) == 1
    assert "/dev/shm has 0 MB free and 2 workers need" in said[0]
    assert "--shm-size" in said[0]
    assert loading.fitting(source.batch_bytes).pipes


def test_enough_shared_memory_is_used_and_none_is_no_error(source, shared):
    said = []
    loading = Loading(workers=2, say=said.append)
    shared(2**36)
    assert loading.fitting(source.batch_bytes) == loading
    assert said == []
    shared(None)
    assert loading.fitting(source.batch_bytes).workers == 0
    assert "there is no /dev/shm" in said[0]


def test_ctrl_c_leaves_the_workers_to_their_process(source, tokenizer):
    steps = batches(source, TINY, tokenizer, 0, STEPS, replace(QUIET, workers=1))
    next(steps)
    workers = [int(name) for name in children() if name]
    assert workers
    for process in workers:
        os.kill(process, signal.SIGINT)
    assert len(list(steps)) == STEPS - 1


@pytest.mark.parametrize("pipes", [False, True])
def test_what_a_worker_refuses_is_one_sentence(source, tokenizer, monkeypatch, pipes):
    def refuse(*args):
        raise RisError("nothing can be used")

    monkeypatch.setattr(ReferSource, "batch", refuse)
    with pytest.raises(RisError, match=r"^nothing can be used$"):
        run(source, tokenizer, replace(QUIET, workers=1, pipes=pipes))


def test_a_worker_that_dies_is_one_sentence(source, tokenizer, monkeypatch):
    monkeypatch.setattr(ReferSource, "batch", lambda *args: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(RisError, match=r"has ended \(DataLoader worker.*fewer --workers need less"):
        run(source, tokenizer, replace(QUIET, workers=1))


def children():
    path = f"/proc/self/task/{os.getpid()}/children"
    with open(path) as file:
        return file.read().split()


def test_a_validation_subset_comes_through_the_loader(source, tokenizer):
    subset = ReferSubset(source._all.sets[0], TINY.sam.image_size, 7, group=3)
    steps = list(batches(subset, TINY, tokenizer, 0, subset.steps, replace(QUIET, workers=1)))
    assert [len(batch.about.places) for (batch,) in steps] == [3, 3, 1]
