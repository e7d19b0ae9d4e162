"""What only a GPU can show: plans load, masks agree with the reference, graphs are captured."""

from __future__ import annotations

import threading

import pytest

from ris.engines import TABLE
from ris.engines.cuda import driver_problem
from ris.runtime import load
from ris.runtime.parity import check_model, load_golden

pytestmark = pytest.mark.skipif(driver_problem() is not None, reason=str(driver_problem()))


@pytest.fixture(params=[row for row in TABLE if row.devices == ("cuda",)], ids=lambda row: row.name)
def model(request, tiny_gather_bundle, tmp_path, monkeypatch):
    if reason := request.param.unusable():
        pytest.skip(reason)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with load(tiny_gather_bundle, engine=request.param.name) as model:
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
