"""Triton's model without a server: whose fault costs whom, whose clock runs when, and what is kept.

What Triton brings is played by a double of `triton_python_backend_utils`.
"""

from __future__ import annotations

import importlib
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from ris.engines.errors import EngineError
from ris.serving import watchdog
from ris.serving.answering import Answerer
from ris.serving.limits import Limits
from serving_helpers import picture_bytes

NAMES = ("rle_counts", "rle_size", "score", "no_target", "is_no_target", "note", "from_cache")


class TritonError(Exception):
    INVALID_ARG, UNAVAILABLE, CANCELLED, INTERNAL = (
        "invalid",
        "unavailable",
        "cancelled",
        "internal",
    )

    def __init__(self, message, code=INTERNAL):
        super().__init__(message)
        self.code = code


class Request:
    """A request; what was sent for it is in `sent`."""

    def __init__(self, image, *texts, names=NAMES):
        self.tensors = {"image": [image], "expression": [text.encode() for text in texts]}
        self.names, self.sent, self.cancelled = names, [], False

    def requested_output_names(self):
        return list(self.names)

    def is_cancelled(self):
        return self.cancelled

    def get_response_sender(self):
        return SimpleNamespace(send=lambda response, flags: self.sent.append(response))

    @property
    def said(self):
        [response] = self.sent
        return str(response.error)

    @property
    def found(self):
        [response] = self.sent
        assert response.error is None, response.error
        return dict(response.tensors)


def tensor(request, name):
    values = request.tensors.get(name)
    if values is None:
        return None
    return SimpleNamespace(as_numpy=lambda: np.array([values], np.object_))


@pytest.fixture
def backend(monkeypatch):
    utils = SimpleNamespace(
        get_input_tensor_by_name=tensor,
        Tensor=lambda name, value: (name, value),
        InferenceResponse=lambda output_tensors=(), error=None: SimpleNamespace(
            tensors=output_tensors, error=error
        ),
        TritonError=TritonError,
        TRITONSERVER_RESPONSE_COMPLETE_FINAL=1,
        Logger=SimpleNamespace(log_error=lambda text: None),
    )
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", utils)
    for name in ("ris.serving.triton.bls", "ris.serving.triton.backend"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    module = importlib.import_module("ris.serving.triton.backend")
    yield module
    for name in ("ris.serving.triton.bls", "ris.serving.triton.backend"):
        sys.modules.pop(name, None)


@pytest.fixture
def model(backend, served_model):
    """The model, which may be given other limits."""
    made = backend.TritonPythonModel()
    made._outputs = {*NAMES, "mask"}
    made._metrics = SimpleNamespace(count=lambda answerer: None)

    def limited(join=False, **limits):
        made._join = join
        made._limits = Limits(**limits)
        made._answerer = Answerer(served_model, made._limits)
        return made

    return limited


def counts(model, image, texts):
    scene, _ = model._answerer.scene(image)
    return [answer.rle()["counts"].encode() for answer in model._answerer.ask(scene, texts)]


@pytest.mark.parametrize("join", [False, True])
def test_each_request_gets_its_own_answers(model, join):
    ours = model(join)
    images = [picture_bytes(1), picture_bytes(2)]
    asked = [
        Request(images[0], "left man", "the dog"),
        Request(images[1], "the dog"),
        Request(images[0], "a red car", names=("mask", "rle_counts")),
    ]
    assert ours.execute(asked) == [None] * 3
    both = counts(ours, images[0], ["left man", "the dog"])
    assert asked[0].found["rle_counts"][0].tolist() == both
    assert asked[1].found["rle_counts"][0].tolist() == counts(ours, images[1], ["the dog"])
    assert asked[0].found["rle_size"].tolist() == [[64, 96]]
    assert asked[2].found["mask"].shape == (1, 1, 64, 96)
    assert set(asked[2].found) == {"mask", "rle_counts"}


def test_an_answer_is_sent_before_the_next_request_is_asked(model):
    ours = model()
    first, second = Request(picture_bytes(1), "x"), Request(picture_bytes(2), "y")
    honest, seen = ours._answerer.scene, []

    def scene(image):
        seen.append(len(first.sent))
        return honest(image)

    ours._answerer.scene = scene
    ours.execute([first, second])
    assert seen == [0, 1]
    assert second.found["score"].shape == (1, 1)


@pytest.mark.parametrize("join", [False, True])
def test_an_exception_that_nobody_foresaw_costs_its_own_request(model, join):
    ours = model(join)
    image = picture_bytes(1)
    honest = ours._answerer.each

    def each(scene, expressions, *more):
        if "the dog" in expressions:
            raise ZeroDivisionError("division by zero")
        return honest(scene, expressions, *more)

    ours._answerer.each = each
    asked = [Request(image, "left man"), Request(image, "the dog"), Request(image, "a red car")]
    broken = Request(image, "x")
    broken.tensors["expression"] = None
    ours.execute([*asked, broken])
    assert asked[0].found["score"].shape == (1, 1)
    assert asked[1].said == "500: internal error: ZeroDivisionError: division by zero"
    assert asked[2].found["score"].shape == (1, 1)
    assert broken.said.startswith("500: internal error: AttributeError")


def test_a_requests_clock_begins_with_its_own_work(backend, model, monkeypatch):
    """What is before it in the batch takes three quarters of the time; so does it."""
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    ours = model(seconds=60)
    honest = ours._answerer.scene

    def scene(image):
        now[0] += 45
        return honest(image)

    ours._answerer.scene = scene
    asked = [Request(picture_bytes(i), "left man") for i in range(3)]
    ours.execute(asked)
    assert asked[0].found["score"].shape == (1, 1)
    assert asked[1].found["score"].shape == (1, 1)
    assert asked[2].said == "504: the request waited longer than 60 s"


def test_too_many_pixels_times_expressions_are_refused_before_any_work(model):
    ours = model(answer_pixels=30_000, mask_bytes=13_000)
    ours._answerer.scene = lambda image: pytest.fail("there was work")
    image = picture_bytes(1, 100, 70)
    many, masks = Request(image, *"abcde"), Request(image, "a", "b", names=("mask",))
    ours.execute([many, masks])
    assert "413: 5 masks of 0.0 megapixels are more than the 0.03 megapixels" in many.said
    assert "413: 2 masks of 0.0 megapixels are more than the 0.013 MB that are sent" in masks.said
    del ours._answerer.scene
    few = Request(image, "a", "b")
    ours.execute([few])
    assert few.found["score"].shape == (1, 2)


def test_who_hung_up_is_not_asked_for(model):
    ours = model()
    gone, here = Request(picture_bytes(1), "x"), Request(picture_bytes(1), "y")
    gone.cancelled = True
    ours.execute([gone, here])
    assert gone.said == "the request was cancelled"
    assert here.found["score"].shape == (1, 1)


@pytest.mark.parametrize("is_well", [True, False])
def test_an_engine_that_fails_at_everything_ends_the_instance(backend, model, monkeypatch, is_well):
    ours = model()
    ended = []
    monkeypatch.setattr("os._exit", ended.append)
    monkeypatch.setattr(ours._answerer, "is_well", lambda: is_well)

    def lost(image):
        raise EngineError("the device is lost")

    monkeypatch.setattr(ours._answerer, "scene", lost)
    asked = Request(picture_bytes(1), "x")
    ours.execute([asked])
    assert asked.said == "500: the device is lost"
    assert ended == ([] if is_well else [1])


@pytest.mark.parametrize(("limit", "longest"), [(60, 180), (1, 60)])
def test_an_engine_that_does_not_come_back_ends_the_instance(
    backend, model, monkeypatch, limit, longest
):
    """By Python's own watchdog, which is set for each piece of work and for nothing else."""
    ours = model(seconds=limit)
    set_to, work = [0], []
    monkeypatch.setattr(
        watchdog.faulthandler,
        "dump_traceback_later",
        lambda seconds, exit, file: set_to.append(seconds * exit),
    )
    monkeypatch.setattr(
        watchdog.faulthandler, "cancel_dump_traceback_later", lambda: set_to.append(0)
    )
    honest = ours._answerer.scene

    def scene(image):
        work.append(set_to[-1])
        if len(work) == 3:
            raise EngineError("the device is lost")
        return honest(image)

    monkeypatch.setattr(ours._answerer, "scene", scene)
    monkeypatch.setattr(ours._answerer, "is_well", lambda: work.append(set_to[-1]) or True)
    asked = [Request(picture_bytes(number), "left man") for number in range(3)]
    ours.execute(asked)
    assert work == [longest] * 4, "three requests, and the picture of the house"
    assert set_to == [0, *[longest, 0] * 4]


def test_nobody_pays_for_those_that_he_was_joined_with(model):
    """A pass of several requests has no more expressions than one request may have."""
    ours = model(join=True, expressions=4)
    image = picture_bytes(1)
    honest, passes = ours._answerer.each, []

    def each(scene, expressions, *more):
        passes.append(len(expressions))
        return honest(scene, expressions, *more)

    ours._answerer.each = each
    asked = [Request(image, "a", "b", "c"), Request(image, "d", "e"), Request(image, "f", "  ")]
    ours.execute(asked)
    assert passes == [3, 4]
    assert asked[1].found["score"].shape == (1, 2)
    assert asked[2].said.startswith("400: the expression is empty")


@pytest.mark.parametrize("join", [False, True])
def test_each_request_is_asked_in_its_own_form(model, formed_model, join):
    """What names none is asked in the server's, together with what names that one."""
    ours = model(join)
    names = ("rle_counts", "form_asked")
    ours._outputs = {*names}
    ours._answerer = Answerer(formed_model, ours._limits, form="sentence")
    passes, honest = [], ours._answerer.each

    def each(scene, expressions, *more):
        passes.append(len(expressions))
        return honest(scene, expressions, *more)

    ours._answerer.each = each
    image = picture_bytes(1)
    asked = [Request(image, "Left man", names=names) for _ in range(4)]
    for request, form in zip(asked[1:], (b"phrase", b"sentence", b"riddle"), strict=True):
        request.tensors["form"] = [form]
    ours.execute(asked)
    scene, _ = ours._answerer.scene(image)
    for request, form in zip(asked[:3], ("sentence", "phrase", "sentence"), strict=True):
        wanted = scene.segment("Left man", form=form).rle()["counts"]
        assert request.found["form_asked"].tolist() == [[form.encode()]]
        assert request.found["rle_counts"].tolist() == [[wanted.encode()]]
    assert passes == ([2, 1] if join else [1, 1, 1])
    assert asked[3].said == "400: there is no form 'riddle'; the model has phrase and sentence"
