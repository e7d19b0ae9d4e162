"""The manifests of tests/golden/bad_manifests.json, whose first lines say what a case is."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import format_1
import numpy as np

from conftest import GOLDEN, REPO
from ris.runtime.bundle import hash_files

DEMO = REPO / "runtime" / "demo-bundle"

CASES: dict[str, dict[str, Any]] = {
    case["name"]: case
    for case in json.loads((GOLDEN / "bad_manifests.json").read_text(encoding="utf-8"))["cases"]
}
"""By name."""

_PLACE = '"\u2603"'  # stands where text comes that is no value


def write(case: dict[str, Any], folder: Path) -> Path:
    """The demo's bundle with the case's manifest; its other files are links."""
    bundle = folder / "bundle"
    bundle.mkdir()
    if case.get("format") == 2:
        for file in DEMO.iterdir():
            (bundle / file.name).symlink_to(file)
    else:
        format_1.lay(bundle)
    manifest = bundle / "manifest.json"
    whole = manifest.read_bytes()
    manifest.unlink()
    special = case.get("special")
    if special == "folder":
        manifest.mkdir()
    elif special == "loop":
        manifest.symlink_to(manifest)
    elif special == "pipe":
        os.mkfifo(manifest)
    elif special == "2 GB":
        manifest.touch()
        os.truncate(manifest, 2 << 30)  # a hole, which takes no space
    elif special == "byte-order mark":
        manifest.write_bytes(b"\xef\xbb\xbf" + whole)
    elif "text" in case:
        text = case["text"] * case.get("times", 1)
        manifest.write_bytes(text.encode(case.get("encoding", "utf-8")))
    else:
        manifest.write_text(_changed(whole, case.get("changes", ())), encoding="utf-8")
    return bundle


def with_table(folder: Path, width: int, taken: int) -> Path:
    """The demo's bundle with a category of `width` numbers, and a stage that takes `taken`."""
    files = {"names": "categories.json", "features": "categories.npy"}
    bundle = write({"format": 2, "changes": []}, folder)
    (bundle / files["names"]).write_text('[{"name": "dog", "thing": true, "synonyms": []}]')
    np.save(bundle / files["features"], np.ones((1, width), np.float32))
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    manifest["host"]["categories"] = files | {"value": "category_feature"}
    manifest["files"] |= hash_files(bundle, files.values())
    about = {"value": "category_feature", "dtype": "float32", "shape": ["expressions", taken]}
    _at(manifest, ["stages", "text_encoder", "inputs"]).append({"name": "category"} | about)
    (bundle / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return bundle


def _changed(whole: bytes, changes: list[dict[str, Any]]) -> str:
    """A manifest with the changes, as text."""
    data = json.loads(whole)
    texts = []
    for change in changes:
        *way, last = change["at"]
        parent = _at(data, way)
        last = _key(parent, last)
        if change.get("remove"):
            del parent[last]
        elif "value" in change:
            parent[last] = change["value"]
        elif "as_at" in change:
            parent[last] = _at(data, change["as_at"])
        else:
            parent[last] = json.loads(_PLACE)
            deep = change.get("nested", 0)
            texts.append(change["raw"] * change.get("times", 1) if "raw" in change else "")
            texts[-1] = texts[-1] or "[" * deep + "]" * deep
    before, *after = json.dumps(data, ensure_ascii=False).split(_PLACE)
    return before + "".join(text + rest for text, rest in zip(texts, after, strict=True))


def _at(data: Any, way: list[str | int]) -> Any:
    """The value at the end of a way."""
    for step in way:
        data = data[_key(data, step)]
    return data


def _key(parent: Any, step: str | int) -> str | int:
    """Where a step leads: the name of a stage is its place among the stages."""
    if isinstance(parent, list) and isinstance(step, str):
        return [each["name"] for each in parent].index(step)
    return step
