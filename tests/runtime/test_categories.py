"""Categories by name: the bundle's table, guesses from the head noun, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from ris.reference.dfam.categories import COCO_PANOPTIC, COCO_THINGS, SYNONYMS, category_entries
from ris.runtime import BundleError, ExpressionError, load
from ris.runtime.categories import Category, CategoryTable
from ris.runtime.commands.infer import main

GUESSES = {
    "man on the left": "person",
    "second car from the left": "car",
    "woman in red holding a dog": "person",
    "the dog held by the woman": "dog",
    "hot dog": "hot dog",
    "two hot dogs": "hot dog",
    "traffic lights": "traffic light",
    "cell phone next to the laptop": "cell phone",
    "potted plants": "potted plant",
    "people": "person",
    "men": "person",
    "the women wearing hats": "person",
    "children playing": "person",
    "policemen": "person",
    "buses": "bus",
    "knives": "knife",
    "sheep": "sheep",
    "mice": "mouse",
    "puppies": "dog",
    "ladies": "person",
    "doggies": "dog",
    "benches": "bench",
    "calves": "cow",
    "skis": "skis",
    "ski": "skis",
    "scissors": "scissors",
    "geese": "bird",
    "guy": "person",
    "lady": "person",
    "kid": "person",
    "boy": "person",
    "girl": "person",
    "tennis player": "person",
    "bike": "bicycle",
    "motorbike": "motorcycle",
    "motor bike": "motorcycle",
    "dirt bikes": "motorcycle",
    "sofa": "couch",
    "television": "tv",
    "TV": "tv",
    "phone": "cell phone",
    "plane": "airplane",
    "doughnut": "donut",
    "plant": "potted plant",
    "fridge": "refrigerator",
    "table": "dining table",
    "pick up truck": "truck",
    "bus driver": "person",
    "man blue tie": "person",
    "black and white cat": "cat",
    "standing man": "person",
    "that man who runs": "person",
    "all the other cats": "cat",
    "slice of pizza": "pizza",
    "couple of bananas": "banana",
    "couple on the couch": "person",
    "back of the chair": "chair",
    "one of the men": "person",
    "bowl of soup": "bowl",
    "left side, guy in blue": "person",
    "orange": "orange",
    "left orange on top": "orange",
    "orange bottle": "bottle",
    "man in orange": "person",
    "man w/ dog": "person",
    "THE LEFT MAN!": "person",
    "baseball bat": "baseball bat",
    "batter": "person",
    "wine-glass": "wine glass",
    "teddy bear": "teddy bear",
    "brown bear": "bear",
    "dog's owner, the man": "person",
    "3rd zebra from left": "zebra",
    "ｍａｎ": "person",
    "man": "person",
}

REFUSED = [
    "left",
    "the one on the left",
    "man's hat",
    "in front of the man",
    "orange shirt",
    "人",
    "tree",
    "!?",
    "of man",
]


@pytest.fixture(scope="module")
def table():
    return CategoryTable(
        tuple(Category(e["name"], e["thing"], tuple(e["synonyms"])) for e in category_entries(134))
    )


def test_the_synonyms_are_in_order():
    assert len(COCO_THINGS) == 80
    assert len(COCO_PANOPTIC) == 134
    assert set(SYNONYMS) <= set(COCO_THINGS)
    every = [word for words in SYNONYMS.values() for word in words]
    assert len(every) == len(set(every))  # no word means two things
    assert not set(every) & set(COCO_PANOPTIC)
    assert all(word == word.lower() and "-" not in word for word in every)


@pytest.mark.parametrize(("expression", "category"), GUESSES.items())
def test_guesses(table, expression, category):
    guess = table.guess(expression)
    assert guess.category == category
    assert guess.word in expression.lower() or expression == "ｍａｎ" or "-" in expression


@pytest.mark.parametrize("name", COCO_THINGS)
def test_every_thing_and_synonym_is_guessed(table, name):
    for word in (name, *SYNONYMS.get(name, ())):
        assert table.guess(f"the big {word} on the left, beside nothing").category == name
        assert table.known(name).word is None


@pytest.mark.parametrize("expression", REFUSED)
def test_what_cannot_be_guessed(table, expression):
    message = r"no category could be guessed from .* the nearest are "
    with pytest.raises(ExpressionError, match=message):
        table.guess(expression)


def test_the_nearest_names(table):
    nearest = {
        "persom": "person",
        "Person": "person",
        "lady": "person",
        "motorbikes": "motorcycle",
    }
    for wrong, near in nearest.items():
        message = f"there is no category '{wrong}'; the nearest are {near}"
        with pytest.raises(ExpressionError, match=message):
            table.known(wrong)
    with pytest.raises(ExpressionError, match="nearest are giraffe"):
        table.guess("girafe on the left")


def test_the_table_travels_in_the_bundle(tiny_category_bundle):
    entries = json.loads((tiny_category_bundle / "categories.json").read_text())
    assert entries == category_entries(134)
    with load(tiny_category_bundle) as model:
        assert model.categories == COCO_PANOPTIC


@pytest.mark.parametrize("text", ["{", '["person"]', '[{"name": "person"}]', "7"])
def test_a_damaged_table(tmp_path, text):
    (tmp_path / "categories.json").write_text(text)
    with pytest.raises(BundleError, match=r"categories\.json .*export the bundle again"):
        CategoryTable.read(tmp_path / "categories.json")


def test_auto_asks_what_the_name_asks(tiny_category_bundle, picture):
    with load(tiny_category_bundle) as model:
        scene = model.encode_image(picture)
        texts = ["left man", "the red ball", "left man"]
        guessed = scene.segment_many(texts, categories=["auto", "auto", "car"])
        named = scene.segment_many(texts, categories=["person", "sports ball", "car"])
        for a, b in zip(guessed, named, strict=True):
            np.testing.assert_array_equal(a.logits, b.logits)
            assert a.category == b.category
        assert [r.category_word for r in guessed] == ["man", "ball", None]
        assert "guessed the category person from 'man'" in guessed[0].notes
        assert not named[0].notes
        with pytest.raises(ExpressionError, match="could be guessed from 'left'"):
            scene.segment("left", category="auto")


def test_auto_does_nothing_where_no_category_is_asked(tiny_bundle, picture):
    with load(tiny_bundle) as model:
        result = model.segment(picture, "left man", category="auto")
        assert result.category is None
        assert result.category_word is None


@pytest.fixture
def infer(tmp_path, monkeypatch, picture, tiny_category_bundle):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(picture).save("park.png")
    return lambda *arguments: CliRunner().invoke(
        main, [*arguments, "--bundle", str(tiny_category_bundle)]
    )


def test_the_command_says_what_it_guessed(infer):
    done = infer("park.png", "left man", "--category", "auto")
    assert done.exit_code == 0, done.output
    assert "guessed the category person from 'man'" in done.stderr
    done = infer("park.png", "left man", "--category", "auto", "--json")
    [line] = map(json.loads, done.stdout.splitlines())
    assert (line["category"], line["category_guessed_from"]) == ("person", "man")
    Path("requests.jsonl").write_text(
        '{"image": "park.png", "expression": "two dogs", "category": "auto"}\n'
    )
    done = infer("requests.jsonl", "--json", "--format", "json")
    assert json.loads(done.stdout)["category"] == "dog"
    report = json.loads(Path("ris-output/park.two-dogs.json").read_text())
    assert report["category_guessed_from"] == "dogs"


def test_the_command_refuses_in_a_sentence(infer):
    how = "too (--category person), or have it guessed (--category auto)"
    cases = [
        ([], f"name each object's COCO category {how}"),
        (["persom"], "there is no category 'persom'; the nearest are person"),
        (["person", "dog"], "1 expressions need as many categories, got 2"),
    ]
    for names, message in cases:
        options = [option for name in names for option in ("--category", name)]
        done = infer("park.png", "left man", *options)
        assert done.exit_code == 2
        assert message in done.stderr
    done = infer("park.png", "the left one", "--category", "auto")
    assert done.exit_code == 2
    assert "no category could be guessed from 'the left one'" in done.stderr
    assert not Path("ris-output").exists()
