"""The auto-annotation function, as `cvat-cli task auto-annotate` uses it.

CVAT's server is no package: what it would send is a picture, and what it would take are the shapes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image

from ris.engines.errors import EngineError, ExpressionError, RisError
from ris.serving.cvat import PhraseFunction, Wanted, create, read_phrases


@dataclass(frozen=True)
class Said:
    """What CVAT says about a picture."""

    frame_name: str = "park.jpg"
    conf_threshold: float | None = None
    conv_mask_to_poly: bool = False


@pytest.fixture(scope="module")
def park(picture):
    return Image.fromarray(picture).resize((120, 90))


def test_phrases_stand_behind_their_labels():
    assert read_phrases("person=left man|right man; dog=the brown dog;tree;") == [
        Wanted("person", ("left man", "right man")),
        Wanted("dog", ("the brown dog",)),
        Wanted("tree", ("tree",)),
    ]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "there is nothing to look for"),
        ("dog=", "dog= is not a label and its phrase"),
        ("=the dog", "=the dog is not a label"),
        ("dog;dog=the dog", "the label dog is there twice"),
    ],
)
def test_phrases_that_say_nothing_are_a_sentence(text, sentence):
    with pytest.raises(RisError, match=sentence):
        read_phrases(text)


def test_numbers_out_of_range_are_a_sentence(served_model):
    with pytest.raises(RisError, match="no_target is a probability"):
        PhraseFunction(served_model, read_phrases("dog"), 2, 1)
    with pytest.raises(RisError, match="the tolerance is a number"):
        PhraseFunction(served_model, read_phrases("dog"), 0.5, -1)


def test_a_phrase_that_no_picture_can_be_asked_is_told_at_once(served_category_bundle):
    with pytest.raises(ExpressionError, match="category"):
        create(str(served_category_bundle), "thing=xyzzy", engine="onnxruntime", threads=1)


def test_an_error_names_the_picture(served_model, park, monkeypatch):
    function = PhraseFunction(served_model, read_phrases("dog"), 0.5, 1)

    def fail(image):
        raise EngineError("the engine failed: no memory")

    monkeypatch.setattr(served_model, "encode_image", fail)
    with pytest.raises(EngineError, match=r"park\.jpg: the engine failed: no memory"):
        function.detect(Said(), park)


@pytest.fixture(scope="module")
def cvat():
    """The real SDK."""
    return pytest.importorskip(
        "cvat_sdk.auto_annotation", reason='not installed: pip install ".[cvat]"'
    )


@pytest.fixture(scope="module")
def function(served_bundle, cvat):
    """As cvat-cli makes it of `--function-module ris.serving.cvat` and `-p`."""
    phrases = "person=left man|the man; dog"
    return create(bundle=str(served_bundle), phrases=phrases, engine="onnxruntime", threads=1)


@pytest.fixture(scope="module")
def answers(served_model, park):
    return served_model.encode_image(park).segment_many(["left man", "the man", "dog"])


def test_the_spec_has_the_labels(function, cvat):
    assert isinstance(function.spec, cvat.DetectionFunctionSpec)
    labels = [(label.name, label.id, label.type) for label in function.spec.labels]
    assert labels == [("person", 0, "mask"), ("dog", 1, "mask")]


def test_masks_are_the_local_runtimes(function, park, answers):
    from cvat_sdk.masks import decode_mask

    shapes = function.detect(Said(), park)
    wanted = [
        (label, answer) for label, answer in zip((0, 0, 1), answers, strict=True) if answer.box
    ]
    assert [shape.label_id for shape in shapes] == [label for label, _ in wanted]
    for shape, (_, answer) in zip(shapes, wanted, strict=True):
        assert shape.type.value == "mask"
        mask = decode_mask(shape.points, image_width=120, image_height=90)
        np.testing.assert_array_equal(mask, answer.mask)


def test_polygons_are_made_where_cvat_wants_them(function, park, answers):
    shapes = function.detect(Said(conv_mask_to_poly=True), park)
    wanted = [part.joined() for answer in answers for part in answer.polygons(1.0)]
    assert len(shapes) == len(wanted) > 0
    for shape, ring in zip(shapes, wanted, strict=True):
        assert shape.type.value == "polygon"
        np.testing.assert_array_equal(np.reshape(shape.points, (-1, 2)), ring)


def test_what_is_below_the_threshold_is_left_out(function, park):
    assert function.detect(Said(conf_threshold=1.0), park) == []


def test_cvats_own_driver_takes_the_shapes(function, park):
    """What `annotate_task` does between the picture and the upload."""
    import logging

    from cvat_sdk import models
    from cvat_sdk.auto_annotation import driver

    for polygons in (False, True):
        labels = [
            models.Label(name=name, id=number, type="any", attributes=[], sublabels=[])
            for number, name in ((31, "person"), (32, "dog"), (33, "tree"))
        ]
        mapper = driver._AnnotationMapper(
            logging.getLogger("cvat"),
            function.spec.labels,
            labels,
            allow_unmatched_labels=False,
            conv_mask_to_poly=polygons,
        )
        shapes = function.detect(Said(conv_mask_to_poly=polygons), park)
        tags, remapped = mapper.validate_and_remap(shapes, 5)
        assert not tags
        assert {shape.label_id for shape in remapped} <= {31, 32}
        assert {shape.frame for shape in remapped} == {5}


def test_phrases_are_asked_in_the_form_that_was_given(formed_bundle, formed_model, park):
    ways = {"engine": "onnxruntime", "threads": 1}
    for form, wanted in (("", "phrase"), ("sentence", "sentence")):
        made = create(str(formed_bundle), "dog", **ways, form=form)
        [answer] = made._answers(park)
        expected = formed_model.segment(park, "dog", form=wanted)
        assert (answer.form, answer.rle()) == (wanted, expected.rle())
    with pytest.raises(ExpressionError, match="there is no form 'riddle'"):
        create(str(formed_bundle), "dog", **ways, form="riddle")
