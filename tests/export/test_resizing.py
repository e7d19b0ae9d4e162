"""A bundle whose mask decoder resizes the dense prompt itself answers as one whose host does it."""

from __future__ import annotations

import numpy as np
import pytest
from made_up_exports import export_made_up

from golden import inputs
from ris.engines.errors import RisError
from ris.reference.dfam.config import PRESETS
from ris.reference.rela.config import PRESETS as RELA
from ris.runtime import load, open_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inside")
    return export_made_up(folder, PRESETS["tiny"], resizing="graph")


def logits(bundle, engine):
    with load(bundle, engine=engine) as model:
        scene = model.encode_image(inputs.image(0))
        results = scene.segment_many(["left man", "the dog"], no_target_threshold=None)
        return np.stack([one.logits for one in results]), results[0].timings


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_the_masks_are_those_of_the_host_s_resize(bundle, tiny_bundle, engine):
    pytest.importorskip("openvino" if engine == "openvino" else "onnxruntime")
    got, timings = logits(bundle, engine)
    want, steps = logits(tiny_bundle, engine)
    np.testing.assert_allclose(got, want, atol=2e-5 * want.std())
    assert set(steps) - set(timings) == {"dense_embedding"}, "no visit to the host is left"


def test_the_manifest_says_that_the_graph_takes_the_grid(bundle, tiny_bundle):
    manifest, before = open_bundle(bundle).manifest, open_bundle(tiny_bundle).manifest
    assert before.host.resizes
    assert not manifest.host.resizes
    [taken] = [s for s in manifest.graphs["mask_decoder"].inputs if s.name == "dense_prompt"]
    [given] = [s for s in manifest.graphs["fusion"].outputs if s.name == "dense_prompt"]
    assert (taken.value, taken.shape) == ("dense_prompt", given.shape)


def test_a_family_that_resizes_nothing_refuses_it(tmp_path):
    with pytest.raises(RisError, match="leave --resizing graph out"):
        export_made_up(tmp_path, RELA["tiny-rela"], family="rela", resizing="graph")
