"""What runs when, as the manifest's stages and their axes say."""

from __future__ import annotations

from dataclasses import replace

from ris.runtime import open_bundle
from ris.runtime.bundle import BUILT_IN
from ris.runtime.manifest import Categories
from ris.runtime.manifest_kinds import Taken
from ris.runtime.wiring import Wiring, problems

MANIFEST = open_bundle(BUILT_IN).manifest


def test_the_demos_stages():
    wiring = Wiring(MANIFEST)
    assert wiring.image_stages == (
        "sam_image_encoder",
        "clip_image_encoder",
        "image_features",
    )
    assert wiring.question_stages == ("text_encoder", "fusion", "mask_decoder")
    assert wiring.text_stages == ("text_encoder",)
    assert sorted(wiring.kept) == [
        "image_embeddings",
        "object_masks",
        "object_queries",
        "pixel_queries",
        "pixel_values",
    ]
    assert list(wiring.resizes["fusion"]) == ["dense_embedding"]


def test_a_stage_that_takes_the_category_is_not_run_before_it_is_known():
    """Words are encoded ahead of the question, which names the category."""
    table = Categories("categories.json", "categories.npy", "category_feature")
    taken = Taken("category", "float32", ("expressions", 64), "category_feature")
    stages = [
        replace(stage, inputs=(*stage.inputs, taken)) if stage.name == "text_encoder" else stage
        for stage in MANIFEST.stages
    ]
    manifest = replace(MANIFEST.with_graphs(stages), host=replace(MANIFEST.host, categories=table))
    assert problems(manifest) == []
    assert Wiring(manifest).text_stages == ()
    assert Wiring(manifest).question_stages == Wiring(MANIFEST).question_stages
