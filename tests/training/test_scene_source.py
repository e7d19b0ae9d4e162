"""Drawn scenes as training sees them: warped, repainted, asked for what is not there."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from PIL import Image

from ris.data.scenes import make_scene
from ris.data.scenes.glyphs import all_variants, picture, variants_of
from ris.training.augment import APART, repainted, warped
from ris.training.recipe import RECIPES
from ris.training.scene_source import SceneSource


def test_varied_scenes_differ_and_come_again():
    plain, varied = SceneSource("train", 96, 8, 2), SceneSource("train", 96, 8, 2, augment=True)
    a, b, again = plain.batch(1), varied.batch(1), varied.batch(1)
    np.testing.assert_array_equal(b.images, again.images)
    np.testing.assert_array_equal(b.masks, again.masks)
    assert (a.images != b.images).mean() > 0.5
    kept = [np.array_equal(x, y) for x, y in zip(a.things, b.things, strict=True)]
    assert 1 <= sum(kept) <= 7, "about half the scenes are warped"
    for before, after in zip(a.things, b.things, strict=True):
        assert set(np.unique(before)) == set(np.unique(after))
        assert ((before > 0) == (after > 0)).mean() > 0.9


def test_warped_masks_follow_the_picture():
    """A scene whose picture is its masks stays that."""
    warps = 0
    for seed in range(12):
        scene = make_scene(seed, "train", 192)
        drawn = np.zeros((192, 192, 3), np.uint8)
        for i, thing in enumerate(scene.objects):
            drawn[thing.mask] = 30 * (i + 1)
        after = warped(replace(scene, image=drawn), np.random.default_rng(seed))
        warps += after.image is not drawn
        for i, thing in enumerate(after.objects):
            ys, xs = np.nonzero(thing.mask)
            assert thing.area == len(xs)
            assert thing.centre == (xs.mean(), ys.mean())
            same = np.abs(after.image[thing.mask][:, 0].astype(int) - 30 * (i + 1)) < 16
            # thin things are mostly border
            assert same.mean() > (0.8 if thing.area >= 400 else 0.5)
    assert 3 <= warps <= 9


def test_what_is_not_there_is_asked_for_where_a_source_says_so():
    batches = [
        SceneSource("train", 96, 60, 6, mix=mix).batch(0) for mix in (None, RECIPES["demo"].mix)
    ]
    shares = [1 - batch.present.mean() for batch in batches]
    assert shares[0] < 0.17 < 0.22 < shares[1] < 0.35


def test_no_varied_object_comes_near_a_held_out_variant():
    """Repainted glyphs against every held-out one of their kind and outline.

    At all their pixels, in any light.
    """
    rng, lights = np.random.default_rng(0), np.linspace(0.8, 1.25, 10)[:, None, None]
    repainted_ones = 0
    for variant in (v for v in all_variants() if v.split == "train"):
        shown = np.asarray(picture(variant))
        solid = shown[..., 3] > 127
        own = shown[solid][:, :3].astype(np.float32)
        painted = [repainted(own, variant.kind, variant.name, rng) for _ in range(3)]
        repainted_ones += sum(not np.array_equal(own, new) for new in painted)
        for other in variants_of(variant.kind, "heldout"):
            pixels = np.asarray(
                picture(other).resize(shown.shape[1::-1], Image.Resampling.BILINEAR)
            )
            if ((pixels[..., 3] > 127) ^ solid).sum() > 0.1 * solid.sum():
                continue  # another outline

            def away(colours, there=pixels[solid][:, :3]):
                lit = np.clip(colours * lights, 0, 255)
                return np.sqrt(((lit - there) ** 2).mean((1, 2))).min()

            names = (variant.kind, variant.name, other.name)
            for new in painted:
                assert away(new) > min(APART, away(own)) - 2, names
    assert repainted_ones > 300
