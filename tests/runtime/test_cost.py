"""What runs once an image, in words: the same for every family, from the manifest alone."""

from __future__ import annotations

from dataclasses import replace

from ris.runtime import open_bundle
from ris.runtime.cost import once_an_image_words, operations_in


def test_the_share_is_of_one_image_and_one_expression(tiny_bundle):
    bundle = open_bundle(tiny_bundle)
    operations = operations_in(bundle.manifest)
    assert list(operations) == list(bundle.stages)
    stages = bundle.wiring.image_stages
    share = sum(operations[stage] for stage in stages) / sum(operations.values())
    said = once_an_image_words(stages, operations)
    assert said.startswith(f"once an image: {', '.join(stages)}, {share:.0%} of a first mask's ")


def test_what_was_not_counted_is_not_said(tiny_bundle):
    """Operations may be absent from a manifest."""
    manifest = open_bundle(tiny_bundle).manifest
    first, *others = manifest.stages
    stages = (replace(first, operations=None), *others)
    assert operations_in(replace(manifest, stages=stages)) == {}
    assert once_an_image_words(("a", "b"), {}) == "once an image: a, b"


def test_rounding():
    said = once_an_image_words(("a",), {"a": 10, "b": 190})
    assert said == (
        "once an image: a, 5% of a first mask's operations; each expression costs the rest"
    )
    assert once_an_image_words((), {"b": 1}).endswith("each expression costs the whole network")
