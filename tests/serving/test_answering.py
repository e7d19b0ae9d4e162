"""Encoded images are kept and shared, and one bad expression does not cost the others."""

from __future__ import annotations

import threading
import time
import weakref

import numpy as np
import pytest

from ris.engines.errors import ExpressionError, ImageError
from ris.runtime.segmentation import Segmentation
from ris.serving.answering import Answerer, SceneCache
from ris.serving.limits import LimitError, Limits
from serving_helpers import picture_bytes


def test_threads_that_want_one_image_encode_it_once():
    cache, encoded = SceneCache(2), []

    def encode():
        encoded.append(1)
        time.sleep(0.05)
        return "scene"

    found = []
    threads = [
        threading.Thread(target=lambda: found.append(cache.get(b"k", encode))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(encoded) == 1
    assert sorted(found) == [("scene", False)] + [("scene", True)] * 7
    assert (cache.hits, cache.misses) == (7, 1)


def test_the_least_recently_asked_image_goes_first():
    cache = SceneCache(2)
    for key in (b"a", b"b", b"a", b"c"):
        cache.get(key, lambda: "scene")
    assert cache.get(b"a", lambda: "new") == ("scene", True)
    assert cache.get(b"b", lambda: "new") == ("new", False)
    assert len(cache) == 2


def test_nothing_is_kept_with_room_for_nothing():
    cache = SceneCache(0)
    assert cache.get(b"a", lambda: "scene") == ("scene", False)
    assert len(cache) == 0


def test_an_image_that_fails_is_not_kept():
    cache = SceneCache(2)

    def fail():
        raise ImageError("broken")

    for _ in range(2):
        with pytest.raises(ImageError):
            cache.get(b"a", fail)
    assert (cache.misses, len(cache)) == (2, 0)


def test_answers_are_the_runtimes_own(served_model):
    answerer = Answerer(served_model)
    image = picture_bytes(3)
    scene, known = answerer.scene(image)
    again, known_again = answerer.scene(bytes(image))
    assert (known, known_again) == (False, True)
    assert scene is again
    [found] = answerer.ask(scene, ["left man"])
    expected = served_model.segment(answerer.limits.decode(image), "left man")
    assert isinstance(found, Segmentation)
    np.testing.assert_array_equal(found.mask, expected.mask)


def test_a_bad_expression_is_told_apart(served_model):
    answerer = Answerer(served_model)
    scene, _ = answerer.scene(picture_bytes(3))
    first, bad, last = answerer.ask(scene, ["left man", "   ", "the dog"])
    assert isinstance(first, Segmentation)
    assert isinstance(bad, ExpressionError)
    assert isinstance(last, Segmentation)


def test_a_request_that_takes_too_long_is_ended_between_passes(served_model):
    answerer = Answerer(served_model, Limits(seconds=0))
    scene, _ = answerer.scene(picture_bytes(3))
    with pytest.raises(LimitError, match="took longer"):
        answerer.ask(scene, ["left man"], deadline=answerer.limits.deadline())


def test_no_more_masks_are_held_than_those_of_one_pass(served_model, monkeypatch):
    answerer = Answerer(served_model)
    scene, _ = answerer.scene(picture_bytes(3))
    texts = [f"thing {i}" for i in range(2 * served_model.max_expressions + 1)]
    expected = [answer.rle() for answer in answerer.ask(scene, texts)]
    kept, most, found = [], 0, []
    for answer in answerer.each(scene, texts):
        kept = [ref for ref in kept if ref() is not None] + [weakref.ref(answer)]
        most = max(most, len(kept))
        found.append(answer.rle())
    assert found == expected
    assert most <= 2, "an answer that was taken is let go before the next but one"


def test_an_engine_that_fails_at_everything_is_not_well(served_model, monkeypatch):
    answerer = Answerer(served_model)
    assert answerer.is_well()

    def lost(*arguments):
        raise RuntimeError("CUDA error: device lost")

    monkeypatch.setattr(served_model, "_ask", lost)
    assert not answerer.is_well()


def test_a_question_is_asked_in_its_own_form_or_the_answerers(formed_model):
    def asked(usual, form=None):
        answerer = Answerer(formed_model, form=usual)
        scene, _ = answerer.scene(picture_bytes(3))
        [answer] = answerer.ask(scene, ["Left man"], form=form)
        return answerer.form, answer.form, answer.rle()

    scene = formed_model.encode_image(Limits().decode(picture_bytes(3)))
    one, other = (scene.segment("Left man", form=form) for form in ("phrase", "sentence"))
    assert one.rle() != other.rle()
    assert asked(None) == ("phrase", "phrase", one.rle())
    assert asked("sentence") == ("sentence", "sentence", other.rle())
    assert asked("sentence", "phrase") == ("sentence", "phrase", one.rle())


def test_an_answerer_has_no_form_that_its_model_has_not(formed_model, served_model):
    with pytest.raises(ExpressionError, match="no form 'riddle'; the model has phrase and senten"):
        Answerer(formed_model, form="riddle")
    with pytest.raises(ExpressionError, match="asks every expression as it is; leave the form"):
        Answerer(served_model, form="phrase")
    assert Answerer(served_model).form is None
