"""Labelling configurations: what is read of them, and the sentences for the rest."""

from __future__ import annotations

import pytest

from ris.serving.http.labelling.label_config import LabelConfigError, read_label_config

CONFIG = """<View>
  <TextArea name="prompt" toName="image" value="$phrase"/>
  <Image name="image" value="$picture"/>
  <BrushLabels name="mask" toName="image">
    <Label value="Person" predicted_values="left man, right man" category="person"/>
    <View><Label value="Brown dog" alias="dog"/></View>
  </BrushLabels>
  <PolygonLabels name="outline" toName="image"><Label value="tree"/><Label value="Person"/>
  </PolygonLabels>
  <RectangleLabels name="other" toName="elsewhere"><Label value="box"/></RectangleLabels>
  <TextArea name="answer" toName="image"/>
</View>"""


def test_picture_labels_and_text_fields_are_found():
    config = read_label_config(CONFIG)
    assert (config.image, config.field, config.answer) == ("image", "picture", True)
    assert config.prompts == {"prompt": "phrase"}
    assert [(label.name, label.control, label.kind) for label in config.labels] == [
        ("Person", "mask", "brushlabels"),
        ("dog", "mask", "brushlabels"),
        ("tree", "outline", "polygonlabels"),
    ]


def test_a_label_is_asked_by_its_predicted_values_or_its_value():
    person, dog, tree = read_label_config(CONFIG).labels
    assert (person.phrases, person.category) == (("left man", "right man"), "person")
    assert (dog.phrases, dog.category) == (("Brown dog",), None)
    assert tree.phrases == ("tree",)


@pytest.mark.parametrize(
    ("typed", "label", "phrase"),
    [
        ("left man", "Person", "left man"),  # the first label, as none is named
        ("the tree behind the person", "tree", "the tree behind the person"),
        ("the person by the tree", "Person", "the person by the tree"),
        ("a brown dog", "dog", "a brown dog"),
        ("dogged", "Person", "dogged"),
        ("dog: the one on the left", "dog", "the one on the left"),
        ("TREE:the large one", "tree", "the large one"),
        ("colour: red", "Person", "colour: red"),
    ],
)
def test_a_typed_phrase_finds_its_label(typed, label, phrase):
    found, asked = read_label_config(CONFIG).label_for(typed)
    assert (found.name, asked) == (label, phrase)


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ("<View>", "the labelling configuration is not valid XML: no element found: line 1"),
        ("<View/>", 'the labelling configuration has no <Image name="image" value="$image"/>'),
        ('<View><Image name="i" value="photo.jpg"/></View>', "<Image> of the labelling"),
        ('<View><Image name="i" value="$x"/></View>', "has no labels to mark in i: it needs"),
        (
            '<View><Image name="i" value="$x"/><BrushLabels name="m" toName="i"/></View>',
            "has no labels to mark in i",
        ),
        (
            '<View><Image name="i" value="$x"/><BrushLabels name="m" toName="i">'
            + "".join(f'<Label value="{number}"/>' for number in range(1001)),
            "not valid XML",
        ),
        (
            '<View><Image name="i" value="$x"/><BrushLabels name="m" toName="i">'
            + "".join(f'<Label value="{number}"/>' for number in range(1001))
            + "</BrushLabels></View>",
            "has more than 1000 labels",
        ),
        (
            '<View><Image name="i" value="$x"/>'
            + '<BrushLabels name="m" toName="i">' * 101
            + "</BrushLabels>" * 101
            + "</View>",
            "has more than 100 tags with labels",
        ),
        ('<!DOCTYPE a [<!ENTITY b "c">]><View/>', "has a document type, which is not read"),
    ],
)
def test_what_has_no_place_for_a_mask_is_a_sentence(config, sentence):
    with pytest.raises(LabelConfigError) as raised:
        read_label_config(config)
    assert sentence in str(raised.value)
