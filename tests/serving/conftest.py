"""What the serving tests share.

Where PyTorch is not installed, $RIS_TEST_BUNDLE and $RIS_TEST_CATEGORY_BUNDLE name the bundles.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest


def _bundle(request, variable, fixture):
    """The bundle that the variable names, else that of the fixture, which PyTorch exports."""
    if given := os.environ.get(variable):
        return Path(given).absolute()
    pytest.importorskip("torch", reason=f"no PyTorch to export a bundle with, and no ${variable}")
    return request.getfixturevalue(fixture)


@pytest.fixture(scope="session")
def served_bundle(request):
    """A bundle with a no-target head: $RIS_TEST_BUNDLE, or the tiny one."""
    return _bundle(request, "RIS_TEST_BUNDLE", "tiny_bundle")


@pytest.fixture(scope="session")
def served_category_bundle(request):
    """A bundle that asks by category: $RIS_TEST_CATEGORY_BUNDLE, or the tiny one."""
    return _bundle(request, "RIS_TEST_CATEGORY_BUNDLE", "tiny_category_bundle")


@pytest.fixture(scope="session")
def served_model(served_bundle):
    from ris.runtime import load

    with load(served_bundle, engine="onnxruntime", threads=1) as model:
        yield model


@pytest.fixture(scope="session")
def formed_bundle(served_bundle, tmp_path_factory):
    """The bundle, asked in the form phrase, its own choice, or in the form sentence."""
    from ris.runtime import open_bundle
    from ris.runtime.bundle import MANIFEST
    from ris.runtime.manifest_text import Form

    folder = tmp_path_factory.mktemp("formed") / "bundle"
    shutil.copytree(served_bundle, folder)
    manifest = open_bundle(folder).manifest
    forms = {
        "phrase": Form("where is ", " now?", lower=True),
        "sentence": Form("", " Show it.", lower=False),
    }
    text = replace(manifest.host.text, forms=forms, form="phrase")
    formed = replace(manifest, host=replace(manifest.host, text=text))
    (folder / MANIFEST).write_text(formed.to_json(), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def formed_model(formed_bundle):
    from ris.runtime import load

    with load(formed_bundle, engine="onnxruntime", threads=1) as model:
        yield model
