"""What only a GPU can show: plans load, masks agree with the reference, graphs are captured.

An engine that does not run here, for want of a package, a library or a GPU that it supports, is
skipped with its reason. `make gpu-check` shows the same reasons, and times what runs.
"""

from __future__ import annotations

import threading

import pytest

from ris.engines import TABLE
from ris.engines.cuda import driver_problem
from ris.engines.errors import EngineError
from ris.engines.probe import probe_apart
from ris.runtime import load
from ris.runtime.parity import check_model, load_golden

ROWS = [row for row in TABLE if "cuda" in row.devices]
"""ONNX Runtime's CUDA provider too, which is no row of its own."""


@pytest.fixture(scope="module", autouse=True)
def gpu():
    if problem := driver_problem():
        pytest.skip(problem)


@pytest.fixture(scope="module", params=ROWS, ids=lambda row: row.name)
def row(request):
    """An engine that runs the one-node graph here, in a process that may crash."""
    if reason := request.param.missing() or request.param.lacks_cuda():
        pytest.skip(reason)
    if reason := probe_apart(request.param.name, "cuda").problem:
        pytest.skip(f"{request.param.name} does not run here: {reason}")
    return request.param


@pytest.fixture
def model(row, tiny_gather_bundle, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with load(tiny_gather_bundle, engine=row.name, device="cuda") as model:
        yield model


def test_parity_holds(model):
    report = check_model(model, load_golden(model.bundle))
    assert not report.failures


def test_from_the_second_call_on_it_is_a_cuda_graph(model, picture):
    first, second, third = (model.segment(picture, "left man") for _ in range(3))
    assert (first.mask == second.mask).all()
    assert (second.mask == third.mask).all()
    for session in model.open_sessions.values():
        assert not session.notes


def test_values_stay_on_the_device(model, picture):
    scene = model.encode_image(picture)
    other = model.encode_image(picture[:, ::-1])
    before = scene.segment("left man").logits
    other.segment("left man")
    assert (scene.segment("left man").logits == before).all()


def test_what_padding_adds_changes_no_answer(model, picture):
    scene = model.encode_image(picture)
    asked = ["left man", "the dog", "a tree", "the red ball", "sky"]
    for count in (3, 5):
        for _ in range(3):
            together = scene.segment_many(asked[:count])
        for expression, answer in zip(asked, together, strict=False):
            alone = scene.segment(expression)
            assert (answer.mask != alone.mask).mean() < 0.01


def test_threads(model, picture):
    scene = model.encode_image(picture)
    expected = scene.segment("left man").logits
    wrong = []

    def ask():
        wrong.extend([] if (scene.segment("left man").logits == expected).all() else [1])

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_gpu_that_is_not_there_is_a_sentence(row, tiny_gather_bundle):
    with pytest.raises(EngineError, match="there is no GPU 99: the driver sees"):
        load(tiny_gather_bundle, engine=row.name, device="cuda:99")
