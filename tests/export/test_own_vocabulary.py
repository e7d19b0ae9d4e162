"""A checkpoint whose words are its own is not exported with others."""

from __future__ import annotations

import pytest
from evfsam_helper import save

from ris.engines.errors import CheckpointError
from ris.export.bundle_writer import export_bundle
from ris.export.live_reference import ReferenceSegmenter
from ris.export.plan import make_plan
from ris.export.sources import from_files, made_up
from ris.reference.checkpoint import WeightFiles
from ris.reference.families import FAMILIES

EVFSAM = FAMILIES["evfsam"]
TINY = EVFSAM.presets["tiny-evfsam"]
LACKS = "there is no sentencepiece.bpe.model beside it"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "pytorch_model.bin"
    return save(path, EVFSAM.made_up_model(TINY, 3).state_dict())


def problems(source, out, vocabulary=None) -> list[str]:
    """What the plan of an export says is wrong."""
    given = vocabulary or source.vocabulary
    return list(make_plan(source, "fp32", out, given, lambda: None).problems)


def test_it_is_refused_before_anything_is_written(checkpoint, tmp_path):
    source = from_files(WeightFiles(checkpoint))
    (problem,) = problems(source, tmp_path / "out")
    assert LACKS in problem
    with pytest.raises(CheckpointError, match=LACKS):
        export_bundle(
            lambda: pytest.fail("the weights are read"),
            source.config,
            tmp_path / "out",
            family=source.family,
            source=source.describe(),
        )
    assert not (tmp_path / "out").exists()
    with pytest.raises(CheckpointError, match=LACKS):
        ReferenceSegmenter({"checkpoint": checkpoint})


def test_a_vocabulary_from_elsewhere_is_taken(checkpoint, tmp_path):
    path = tmp_path / "tokenizer.json"
    EVFSAM.tokenizer(None, TINY).save(str(path))
    assert problems(from_files(WeightFiles(checkpoint)), tmp_path / "out", path) == []


def test_made_up_weights_need_none(tmp_path):
    assert problems(made_up("tiny-evfsam", 0), tmp_path / "out") == []
