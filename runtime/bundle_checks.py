"""What a bundle must have beyond the kinds of its manifest's values, before anything is opened.

Only files whose hashes are in the manifest are opened, and a graph has the inputs and outputs that
the runtime gives and takes.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from pathlib import Path

from ris.engines import TensorSpec
from ris.runtime.manifest import GraphEntry, Manifest
from ris.runtime.onnx_weights import data_files

_INTEGERS = {"input_ids", "image_index"}  # the only tensors that are int32


def problems(manifest: Manifest) -> list[str]:
    """What is wrong with a manifest whose values are of the right kinds, in sentences."""
    signatures = _signatures(manifest)
    if missing := [stage for stage in signatures if stage not in manifest.graphs]:
        return [f"no graph {', '.join(missing)}"]
    found = list(_unhashed(manifest))
    for stage, (inputs, outputs) in signatures.items():
        entry = manifest.graphs[stage]
        found += _misfit(f"graphs.{stage}.inputs", entry.inputs, inputs)
        found += _misfit(f"graphs.{stage}.outputs", entry.outputs, outputs)
    return found


def unhashed_data(entry: GraphEntry, path: Path) -> list[str]:
    """A sentence for each file that the ONNX file at `path` would open and the manifest lacks.

    Raises:
        BundleError: Where it is no ONNX file.
    """
    folder = posixpath.dirname(entry.file)
    return [
        f"{entry.file} keeps weights in {name!r}, which has no sha256 in the manifest"
        for name in data_files(path)
        if posixpath.join(folder, name) not in entry.sha256
    ]


def _unhashed(manifest: Manifest) -> Iterator[str]:
    """A sentence for each field that names a file without a hash."""
    named = {"text.tokenizer": manifest.text.tokenizer, "golden": manifest.golden}
    if manifest.categories is not None:
        named["categories.names"] = manifest.categories.names
        named["categories.features"] = manifest.categories.features
    places = {field: (name, manifest.files) for field, name in named.items()}
    for stage, entry in manifest.graphs.items():
        places[f"graphs.{stage}.file"] = (entry.file, entry.sha256)
    for field, (name, hashes) in places.items():
        if name not in hashes:
            yield f"{field} is {name!r}, which has no sha256 in the manifest"


def _misfit(field: str, specs: tuple[TensorSpec, ...], wanted: list[str]) -> list[str]:
    """A sentence where the tensors are not those that the runtime gives or takes."""
    expected = [(name, "int32" if name in _INTEGERS else "float32") for name in wanted]
    if sorted((spec.name, spec.dtype) for spec in specs) == sorted(expected):
        return []
    words = ", ".join(f"{name} ({dtype})" for name, dtype in expected)
    return [f"{field} should be {words}"]


def _signatures(manifest: Manifest) -> dict[str, tuple[list[str], list[str]]]:
    """The names of inputs and outputs by stage (docs/reference/design.md, The five graphs)."""
    head, by_category = manifest.no_target, manifest.categories is not None
    question = ["clip_tokens", "text_features", "text_mask", "image_index"]
    question += ["image_embeddings"] * head + ["category_feature"] * by_category
    prompts = ["dense_prompt", "sparse_prompt"]
    return {
        "sam_image_encoder": (["image"], ["image_embeddings"]),
        "clip_image_encoder": (["image"], ["clip_tokens"]),
        "text_encoder": (["input_ids"], ["text_features"]),
        "fusion": (question, [*prompts, *["no_target_logits"] * head]),
        "mask_decoder": (["image_embeddings", *prompts, "image_index"], ["mask_logits"]),
    }
