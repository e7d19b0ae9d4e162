"""libris answers with LISA's bundles as Python does."""

from __future__ import annotations

import ctypes
import json
import shutil

import numpy as np
import pytest

from golden import inputs
from libris_helper import AskOptions, mask_iou
from ris.data.scenes import make_samples, make_scene
from ris.engines.errors import ExpressionError
from ris.runtime import load

FIRST = 5_000_000  # of scenes that no other test draws
SIZES = ((480, 640), (613, 427), (97, 200), (1200, 801))
RIS_ERROR_ARGUMENT = 1


def asked(number: int) -> tuple[np.ndarray, list[str]]:
    """A drawn scene, every other one cut to a portrait, and three expressions about it."""
    scene = make_scene(FIRST + number, "train", 160)
    image = scene.image[:, : 100 + number] if number % 2 else scene.image
    samples = make_samples(scene, FIRST + number, 2)
    texts = [*(one.expression for one in samples), " The THING Ünder it, "]
    return np.ascontiguousarray(image), texts


@pytest.fixture
def model(libris, lisa_bundle):
    opened = libris.open(lisa_bundle)
    yield opened
    libris.check(libris.abi.ris_close(opened))


@pytest.mark.parametrize("form", [None, "phrase", "sentence"])
def test_its_masks_are_pythons(libris, model, lisa_bundle, form):
    pictures = [asked(number) for number in range(10)]
    pictures += [(inputs.image(2, *size), ["left man", "Is it red?"]) for size in SIZES]
    with load(lisa_bundle, engine="onnxruntime") as python:
        for rgb, expressions in pictures:
            scene = libris.encode_image(model, rgb)
            answers = libris.ask(scene, expressions, form=form)
            want = python.encode_image(rgb).segment_many(expressions, form=form)
            for got, one in zip(answers, want, strict=True):
                np.testing.assert_allclose(got["logits"], one.logits, atol=1e-3)
                assert mask_iou(got["mask"], one.mask) >= 0.9999
                assert (got["no_target"], got["is_no_target"]) == (-1, False)
            libris.check(libris.abi.ris_free_scene(scene))


@pytest.mark.parametrize("precision", ["half", "bf16", "narrow"])
def test_it_keeps_keys_and_values_in_fp16(libris, precision, request):
    """Its masks are Python's; a scene is asked twice, as what it keeps is in its own memory."""
    bundle = request.getfixturevalue(f"lisa_{precision}_bundle")
    opened = libris.open(bundle)
    rgb, expressions = asked(3)
    scene = libris.encode_image(opened, rgb)
    with load(bundle, engine="onnxruntime") as python:
        kept = python.encode_image(rgb)
        assert kept.values["prefix_keys"].dtype == np.float16
        for texts in (expressions, expressions[::-1]):
            want = kept.segment_many(texts)
            for got, one in zip(libris.ask(scene, texts), want, strict=True):
                np.testing.assert_allclose(got["logits"], one.logits, atol=1e-3)
                assert mask_iou(got["mask"], one.mask) >= 0.9999
    libris.check(libris.abi.ris_free_scene(scene))
    libris.check(libris.abi.ris_close(opened))


def test_weights_in_8_bits_that_are_many_are_widened_in_each_run(
    libris, lisa_narrow_bundle, tmp_path
):
    """As LISA-7B's; the manifest says of these that there are so many. Without VNNI, too."""
    many = shutil.copytree(lisa_narrow_bundle, tmp_path / "many")
    manifest = json.loads((many / "manifest.json").read_text())
    [stage] = (one for one in manifest["stages"] if one["name"] == "language_prefix")
    assert stage["weights"]["format"] == "int8"
    stage["weights"]["elements"] = 6_500_000_000
    (many / "manifest.json").write_text(json.dumps(manifest))
    opened = libris.open(many)
    rgb, expressions = asked(3)
    scene = libris.encode_image(opened, rgb)
    with load(lisa_narrow_bundle, engine="onnxruntime") as python:
        want = python.encode_image(rgb).segment_many(expressions)
        for got, one in zip(libris.ask(scene, expressions), want, strict=True):
            np.testing.assert_allclose(got["logits"], one.logits, atol=1e-3)
            assert mask_iou(got["mask"], one.mask) >= 0.9999
    libris.check(libris.abi.ris_free_scene(scene))
    libris.check(libris.abi.ris_close(opened))


def test_short_and_long_questions_are_pythons(libris, model, lisa_bundle):
    """Rows of every length: each question alone, all at once, and as padded token ids."""
    texts = ["man", "man " * 20, "man " * 30, "man " * 50]
    picture = inputs.image(2, 97, 200)
    scene = libris.encode_image(model, picture)
    with load(lisa_bundle, engine="onnxruntime") as python:
        tokenize = python._graphs.host.tokenize
        lengths = [tokenize([text], "sentence").ids.shape[1] for text in texts]
        assert lengths == [24, 32, 40, 64]
        asking = python.encode_image(picture)
        together = libris.ask(scene, texts, form="sentence")
        for text, neighbour in zip(texts, together, strict=True):
            want = asking.segment(text, form="sentence")
            alone = libris.ask(scene, [text], form="sentence")[0]
            for answer in (alone, neighbour, ask_ids(libris, model, scene, text.encode())):
                np.testing.assert_allclose(answer["logits"], want.logits, atol=1e-3)
                assert mask_iou(answer["mask"], want.mask) >= 0.9999
    libris.check(libris.abi.ris_free_scene(scene))


def ask_ids(libris, model, scene, text):
    """The answer to a sentence's ids, which are padded to the longest row."""
    count, ids = ctypes.c_size_t(), (ctypes.c_int32 * 64)()
    arguments = ids, ctypes.c_size_t(64), ctypes.byref(count)
    libris.check(libris.abi.ris_tokenize_form(model, text, b"sentence", *arguments))
    result, one = ctypes.c_void_p(), ctypes.c_size_t(1)
    given = scene, ids, one, ctypes.c_size_t(64), None, ctypes.byref(result)
    libris.check(libris.abi.ris_ask_tokens(*given))
    [answer] = libris.answers(result, 1)
    return answer


def test_the_forms_are_in_its_info(libris, model):
    text = ctypes.c_char_p()
    libris.check(libris.abi.ris_info(model, ctypes.byref(text)))
    assert json.loads(text.value)["forms"] == ["phrase", "sentence"]


def test_what_cannot_be_asked_is_refused_with_pythons_words(libris, model, lisa_bundle):
    picture = inputs.image(2, 97, 200)
    scene = libris.encode_image(model, picture)
    cases = [("a very long one " * 9, None), ("the [SEG] thing", None), ("left man", "question")]
    with load(lisa_bundle, engine="onnxruntime") as python:
        asking = python.encode_image(picture)
        for text, form in cases:
            with pytest.raises(ExpressionError) as caught:
                asking.segment(text, form=form)
            with pytest.raises(AssertionError) as found:
                libris.ask(scene, [text], form=form)
            _, _, said = str(caught.value).rpartition("' ")  # both cut what they quote
            assert said in str(found.value)
    libris.check(libris.abi.ris_free_scene(scene))
    with pytest.raises(AssertionError, match="more than 100 times as long as it is wide"):
        libris.encode_image(model, np.zeros((4, 401, 3), np.uint8))


def test_token_ids_are_a_whole_question(libris, model):
    count, ids = ctypes.c_size_t(), (ctypes.c_int32 * 64)()
    arguments = ids, ctypes.c_size_t(64), ctypes.byref(count)
    libris.check(libris.abi.ris_tokenize_form(model, b"left man", b"sentence", *arguments))
    sentence = list(ids)
    libris.check(libris.abi.ris_tokenize(model, b"left man", *arguments))
    assert list(ids) != sentence
    assert count.value == 64
    scene = libris.encode_image(model, inputs.image(2, 97, 200))
    how = AskOptions(ctypes.sizeof(AskOptions), None, 0.5, 0, 0, 0, 0, b"phrase")
    result = ctypes.c_void_p()
    one = ctypes.c_size_t(1)
    status = libris.abi.ris_ask_tokens(
        scene, ids, one, ctypes.c_size_t(64), ctypes.byref(how), ctypes.byref(result)
    )
    assert status == RIS_ERROR_ARGUMENT
    expected = "token ids are a whole question; leave the form 'phrase' out"
    assert libris.abi.ris_last_error().decode() == expected
    libris.check(libris.abi.ris_free_scene(scene))
