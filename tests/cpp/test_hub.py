"""libris opens what `ris-models fetch` downloaded: a folder of links into a cache."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from click.testing import CliRunner

from libris_helper import mask_iou
from ris.runtime import BUILT_IN, load
from ris.runtime.commands.models import main

EXPRESSIONS = ["left man", "the tree"]


def test_the_folder_that_is_printed(libris, hub, picture):
    hub.folder("org/demo", BUILT_IN)
    done = CliRunner().invoke(main, ["fetch", "hf://org/demo@main"])
    assert done.exit_code == 0, done.output
    folder = Path(done.stdout.strip())
    assert (folder / "manifest.json").is_symlink()

    model = libris.open(folder)
    scene = libris.encode_image(model, picture)
    got = libris.ask(scene, EXPRESSIONS)
    with load("hf://org/demo@main", engine="onnxruntime") as python:
        assert python.bundle.path == folder
        want = python.encode_image(picture).segment_many(EXPRESSIONS)
    for answer, expected in zip(got, want, strict=True):
        assert mask_iou(answer["mask"], expected.mask) >= 0.9999
        np.testing.assert_allclose(answer["logits"], expected.logits, rtol=0, atol=1e-3)
    libris.check(libris.abi.ris_free_scene(scene))
    libris.check(libris.abi.ris_close(model))
