"""Scenes and expressions.

What an expression means is worked out here a second time, from its text and the masks.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from ris.data.scenes import KINDS, WEIGHTS, make_samples, make_scene, target_mask, vocabulary_words
from ris.data.scenes.backgrounds import FAMILIES, hue_of
from ris.data.scenes.glyph_table import sources
from ris.data.scenes.glyphs import all_variants, picture, variants_of
from ris.data.scenes.scene import MIN_VISIBLE, random_stream
from ris.training.augment import warped
from ris.training.recipe import RECIPES

SPLITS = ("train", "heldout")
SCENES = 150  # of each split
PLURALS = {
    "people": "person",
    "men": "man",
    "women": "woman",
    "children": "child",
    "ladies": "lady",
    "gentlemen": "gentleman",
}
MEANS = {
    **{kind: {kind} for kind in KINDS},
    "guy": {"man"},
    "gentleman": {"man"},
    "lady": {"woman"},
    "kid": {"child"},
    "person": {"man", "woman", "child"},
    "automobile": {"car"},
    "bike": {"bicycle"},
    "seat": {"chair"},
    "mug": {"cup"},
    "slice": {"pizza"},
}
LOOKS = {
    ("car", "red"): "car-red|suv-red|front-red",
    ("car", "blue"): "car-blue|suv-blue|front-blue",
    ("car", "green"): "car-green|suv-green|front-green",
    ("car", "yellow"): "taxi|taxi-front",
    ("apple", "red"): "red-.*",
    ("apple", "green"): "green-.*",
    ("book", "red"): "closed-(red|dark)",
    ("book", "green"): "green-.*",
    ("book", "blue"): "blue-.*",
    ("cat", "black"): "black-cat-.*",
    ("cat", "orange"): "face|grin|wry|kiss|tear|pouting|weary|smile|joy|hearts|cat-(plain|ginger)",
    ("man", "bearded"): "beard-.*",
}
ORDINALS = {"first": 1, "second": 2, "third": 3, "fourth": 4, "fifth": 5}
COUNTS = {"two": 2, "three": 3, "four": 4, "five": 5, "both": 2}
FURTHEST = {  # word -> axis, and whether the smallest coordinate wins
    **dict.fromkeys(("left", "leftmost"), (0, True)),
    **dict.fromkeys(("right", "rightmost"), (0, False)),
    **dict.fromkeys(("top", "topmost", "upper", "highest"), (1, True)),
    **dict.fromkeys(("bottom", "bottommost", "lower", "lowest"), (1, False)),
}
LARGE, SMALL = {"biggest", "largest", "bigger", "larger"}, {"smallest", "littlest", "smaller"}
RELATION = re.compile(
    r" (next to|beside|near|above|over|below|under|to the left of|left of|to the right of|right of)"
    r" (?:the|an?) "
)


@pytest.fixture(scope="module")
def samples():
    """(split, scene, its samples) for SCENES scenes of both splits."""
    scenes = [(split, make_scene(i, split)) for split in SPLITS for i in range(SCENES)]
    return [(split, scene, make_samples(scene, 5, 6)) for split, scene in scenes]


def centre(thing):
    ys, xs = np.nonzero(thing.mask)
    return xs.mean(), ys.mean()


def singular(word):
    if word in PLURALS:
        return PLURALS[word]
    if word in ("bus", "buses"):
        return "bus"
    return word[:-1] if word.endswith("s") else word


def named(scene, text):
    """The indices of the objects that the first noun of the text is said of."""
    words = [singular(w) for w in text.split()]
    at = next(i for i, word in enumerate(words) if word in MEANS or word in ("boy", "girl"))
    if words[at] in ("boy", "girl"):
        children = [i for i, o in enumerate(scene.objects) if o.kind == "child"]
        return [i for i in children if scene.objects[i].variant.startswith(words[at])]
    found = [i for i, o in enumerate(scene.objects) if o.kind in MEANS[words[at]]]
    look = LOOKS.get((words[at], words[at - 1])) if at else None
    return [i for i in found if re.fullmatch(look, scene.objects[i].variant)] if look else found


def meant(scene, text):
    """The targets, worked out from the text.

    Margins are asserted, so that no person would choose otherwise.
    """
    side = scene.image.shape[0]
    centres = [centre(o) for o in scene.objects]
    if relation := RELATION.search(text):
        return related(scene, text, relation, centres, side)
    words = text.split()
    if "and" in words:
        return sorted({i for part in text.split(" and ") for i in only(named(scene, part))})
    found = named(scene, text)
    if not found:
        return []
    if ordinal := next((ORDINALS[w] for w in words if w in ORDINALS), None):
        axis, low = FURTHEST[words[-1]]
        order = sorted(found, key=lambda i: centres[i][axis], reverse=not low)
        if ordinal > len(order):
            return []
        gaps = [abs(centres[a][axis] - centres[b][axis]) for a, b in pairwise(order)]
        assert min(gaps) >= 0.06 * side, text
        return [order[ordinal - 1]]
    if {"middle", "center"} & set(words):
        return middle(found, centres, side)
    if where := next((FURTHEST[w] for w in words if w in FURTHEST), None):
        axis, low = where
        along = sorted((centres[i][axis] if low else side - centres[i][axis], i) for i in found)
        rival = along[1][0] if len(along) > 1 else side / 2
        assert rival - along[0][0] >= 0.12 * side - 1e-6, text
        return [along[0][1]]
    if (large := bool(LARGE & set(words))) or SMALL & set(words):
        sizes = sorted(((scene.objects[i].size, i) for i in found), reverse=large)
        assert max(sizes[0][0], sizes[1][0]) >= 1.25 * min(sizes[0][0], sizes[1][0]), text
        areas = sorted((int(scene.objects[i].mask.sum()), i) for i in found)
        assert areas[-1 if large else 0][1] == sizes[0][1], text
        return [sizes[0][1]]
    if count := next((COUNTS[w] for w in words if w in COUNTS), None):
        assert len(found) == count, text
        return found
    if {"all", "every", "each"} & set(words):
        assert len(found) >= 2, text
        return found
    return only(found)


def only(found):
    assert len(found) == 1
    return found


def middle(found, centres, side):
    assert len(found) == 3
    spread = [np.ptp([centres[i][axis] for i in found]) for axis in (0, 1)]
    axis = int(spread[1] > spread[0])
    order = sorted(found, key=lambda i: centres[i][axis])
    assert min(np.diff([centres[i][axis] for i in order])) >= 0.12 * side
    assert spread[1 - axis] <= 0.6 * spread[axis]
    return [order[1]]


def related(scene, text, relation, centres, side):
    """The one in the half-plane (or the nearest), 12 % of the side past the anchor."""
    found, anchors = named(scene, text[: relation.start()]), named(scene, text[relation.end() :])
    if not found or not anchors:
        return []
    (anchor,) = only(anchors)
    away = {i: np.subtract(centres[i], centres[anchor]) for i in found}
    how = relation[1]
    if how in ("next to", "beside", "near"):
        first, *others = sorted(found, key=lambda i: np.hypot(*away[i]))
        assert abs(away[first][1]) <= abs(away[first][0]), text
        sizes = {i: scene.objects[i].size + scene.objects[anchor].size for i in found}
        reach = {i: np.hypot(*away[i]) / sizes[i] for i in found}
        assert reach[first] <= 0.75, text
        assert all(reach[i] >= 1 for i in others), text
        return [first]
    axis = 0 if "left" in how or "right" in how else 1
    sign = -1 if re.search("left|above|over", how) else 1
    ahead = {i: sign * away[i][axis] for i in found}
    aside = {i: abs(away[i][1 - axis]) for i in found}
    there = [i for i in found if ahead[i] >= 0.12 * side and aside[i] <= ahead[i]]
    for i in set(found) - set(there):
        assert ahead[i] <= 0.02 * side or aside[i] >= 3 * ahead[i], text
    return only(there)


def test_every_expression_means_its_targets(samples):
    checked = Counter()
    for split, scene, made in samples:
        for sample in made:
            about = (split, scene.seed, sample)
            assert meant(scene, sample.expression) == list(sample.targets), about
            checked[sample.kind] += 1
            if sample.mirrored is not None:
                assert meant(scene, sample.mirrored) == list(sample.mirrored_targets)
                assert sample.mirrored_targets != sample.targets
                assert sample.mirrored != sample.expression
                checked["mirrored"] += 1
    assert min(checked.values()) >= 100


def test_training_asks_what_is_true_of_its_warped_scenes():
    kinds = Counter()
    for seed in range(60):
        scene = warped(make_scene(seed, "train"), np.random.default_rng(seed))
        for sample in make_samples(scene, seed, 6, WEIGHTS | RECIPES["demo"].mix):
            assert meant(scene, sample.expression) == list(sample.targets), (seed, sample)
            kinds[sample.kind] += 1
    assert kinds["no_target"] > 60
    assert min(kinds.values()) > 10


def test_no_target_only_where_there_is_none(samples):
    for _, scene, made in samples:
        for sample in made:
            assert (sample.kind == "no_target") == (not sample.targets)
            mask = target_mask(scene, sample)
            assert mask.dtype == np.bool_
            assert mask.shape == scene.image.shape[:2]
            assert mask.sum() == sum(scene.objects[i].area for i in sample.targets)


def test_expressions_of_a_scene_are_distinct_and_mixed(samples):
    share = Counter(sample.kind for _, _, made in samples for sample in made)
    total = sum(share.values())
    asked = {
        "plain": 0.22,
        "position": 0.26,
        "ordinal": 0.09,
        "relation": 0.13,
        "size": 0.08,
        "several": 0.1,
        "no_target": 0.12,
    }
    for kind, wanted in asked.items():
        assert abs(share[kind] / total - wanted) < 0.05, (kind, share)
    for _, _, made in samples:
        assert len({sample.expression for sample in made}) == len(made) == 6


def test_masks_are_disjoint_and_mostly_visible(samples):
    counts = Counter()
    for _, scene, _ in samples:
        counts[len(scene.objects)] += 1
        assert scene.image.dtype == np.uint8
        assert scene.image.shape == (256, 256, 3)
        assert np.sum([o.mask for o in scene.objects], axis=0).max() == 1
        for thing in scene.objects:
            assert thing.area == thing.mask.sum()
            assert thing.centre == pytest.approx(centre(thing))
            ys, xs = np.nonzero(thing.mask)
            assert max(np.ptp(xs), np.ptp(ys)) >= 28
    assert set(counts) == set(range(2, 9))
    largest = [max(Counter(o.kind for o in scene.objects).values()) for _, scene, _ in samples]
    assert sum(count > 1 for count in largest) > 0.6 * len(samples)


def test_what_covers_leaves_two_thirds(monkeypatch):
    """The last object drawn covers others; what they had before is seen by drawing without it."""
    from ris.data.scenes import scene as module

    before = {}
    place = module._place

    def spy(rng, plan, solid, labels, full):
        corner = place(rng, plan, solid, labels, full)
        if corner is not None:
            before[len(full)] = int(solid.sum())
        return corner

    monkeypatch.setattr(module, "_place", spy)
    covered = 0
    for seed in range(60):
        before.clear()
        for i, thing in enumerate(make_scene(seed).objects):
            assert thing.area >= MIN_VISIBLE * before[i]
            covered += thing.area < before[i]
    assert covered > 10


def digest(seeds):
    total = hashlib.sha256()
    for split in SPLITS:
        for seed in seeds:
            scene = make_scene(seed, split)
            total.update(scene.image.tobytes())
            for thing in scene.objects:
                total.update(thing.mask.tobytes())
            total.update(repr(make_samples(scene, 1, 8)).encode())
    return total.hexdigest()


def test_the_same_seed_gives_the_same_bytes_in_another_process():
    code = f"""
import sys; sys.path.insert(0, {str(__file__.rsplit("/", 1)[0])!r})
from test_scenes import digest
print(digest([0, 1, 2**40]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == digest([0, 1, 2**40]), done.stderr


def test_seeds_and_splits_differ():
    images = {make_scene(seed, split, 64).image.tobytes() for seed in range(20) for split in SPLITS}
    assert len(images) == 40
    numbers = ((0,), (1,), (2**32,), (0, 0), (0, 1))
    streams = [random_stream(split, *n) for split in SPLITS for n in numbers]
    draws = {stream.integers(2**62) for stream in streams}
    assert len(draws) == 10


def test_splits_share_no_picture_and_no_background():
    seen = {split: set() for split in SPLITS}
    for variant in all_variants():
        seen[variant.split].add(picture(variant).tobytes())
    assert not seen["train"] & seen["heldout"]
    names = [(v.kind, v.name) for v in all_variants()]
    assert len(set(names)) == len(names)
    for kind in KINDS:
        assert len(variants_of(kind, "train")) >= 2
        assert len(variants_of(kind, "heldout")) >= 1
    assert not set(FAMILIES["train"]) & set(FAMILIES["heldout"])
    rng = np.random.default_rng(0)
    sectors = {split: {int(hue_of(rng, split) // 30) for _ in range(300)} for split in SPLITS}
    assert len(sectors["train"]) == len(sectors["heldout"]) == 6
    assert not sectors["train"] & sectors["heldout"]


def test_the_index_is_what_the_table_says():
    """Whoever edits the table has to run build_atlas."""
    assert [(s.kind, s.variant, s.split, s.hue, s.gain, s.look) for s in sources()] == [
        (v.kind, v.name, v.split, v.hue, v.gain, v.look) for v in all_variants()
    ]


def test_scenes_draw_only_their_own_variants(samples):
    own = {(v.kind, v.name): v.split for v in all_variants()}
    for split, scene, _ in samples:
        assert {own[o.kind, o.variant] for o in scene.objects} == {split}


def test_held_out_phrasings_never_occur_in_training_but_their_words_do():
    said = {"train": set(), "heldout": set()}
    for split, count in (("train", 450), ("heldout", 120)):
        for i in range(count):
            made = make_samples(make_scene(i, split, 64), 0, 14)
            said[split] |= {sample.expression for sample in made}
    assert not said["train"] & said["heldout"]
    words = {split: {w for text in texts for w in text.split()} for split, texts in said.items()}
    assert words["heldout"] <= words["train"]
    assert words["train"] <= set(vocabulary_words())
    assert len(set(vocabulary_words()) - words["train"]) <= 3  # the rarest plurals
    assert vocabulary_words() == sorted(set(vocabulary_words()))


def test_hundreds_of_expressions_a_scene():
    made = make_samples(make_scene(3), 0, 300)
    assert len({sample.expression for sample in made}) == 300


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="0 or more"):
        make_scene(-1)
    with pytest.raises(ValueError, match="64 pixels"):
        make_scene(0, size=32)
    with pytest.raises(ValueError, match="heldout"):
        make_scene(0, "test")
    with pytest.raises(ValueError, match="1000"):
        make_samples(make_scene(0), 0, 10**5)


def test_other_sizes():
    for size in (64, 128, 384):
        scene = make_scene(4, "train", size)
        assert scene.image.shape == (size, size, 3)
        assert scene.objects[0].mask.shape == (size, size)
        assert make_samples(scene, 0, 4)


def test_the_sheet_is_written(tmp_path):
    arguments = ["--out", str(tmp_path), "--count", "2", "--split", "heldout"]
    command = [sys.executable, "-m", "ris.data.scenes", *arguments]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    assert Image.open(tmp_path / "sheet-heldout.png").size == (5 * 256, 2 * (256 + 16))
    assert Image.open(tmp_path / "scene-heldout-1.png").size == (256, 256)
