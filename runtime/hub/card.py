"""The model card of a bundle: README.md as a Hub shows it, written from the manifest alone."""

from __future__ import annotations

import json
from collections.abc import Sequence

from ris.engines.text import one_line
from ris.runtime.bundle import Bundle
from ris.runtime.hub.address import Address
from ris.runtime.hub.models import Entry
from ris.runtime.manifest import Manifest
from ris.runtime.reference import family_choices
from ris.runtime.tolerance import END_TO_END

LIBRARY = "ris-runtime"
"""What the card's head has as `library_name`."""

_PRECISIONS = {"fp32": "FP32", "bf16": "bfloat16", "fp16": "FP16", "int8": "INT8"}


def model_card(bundle: Bundle, address: Address, licence: str, entry: Entry | None) -> str:
    """The text of README.md, with its YAML head.

    Args:
        bundle: The bundle.
        address: Where it will be.
        licence: The word that the publisher says, such as "apache-2.0".
        entry: The published model that it was made from; None where it was not exported by name.
    """
    manifest = bundle.manifest
    return "\n".join(
        [
            *_head(manifest, licence, entry),
            f"# {one_line(address.repository.partition('/')[2])}",
            "",
            "A bundle of ris-runtime: referring image segmentation, a picture and a phrase in, a"
            " mask out, without PyTorch.",
            "",
            *_warning(manifest),
            "| | |",
            "|---|---|",
            *(f"| {name} | {_cell(text)} |" for name, text in _facts(bundle, licence, entry)),
            "",
            "## How to run it",
            "",
            "```sh",
            f'ris-infer photo.jpg "left man"{_category(manifest)} --bundle {address}',
            "```",
            "",
            "```python",
            "from ris.runtime import load",
            "",
            f'with load("{address}") as model:',
            f'    mask = model.segment("photo.jpg", "left man"{_category_argument(manifest)}).mask',
            "```",
            "",
            "`ris-models fetch` prints the folder that it was downloaded to, which libris opens.",
            "",
            "## How it agrees with the reference",
            "",
            *_parity(manifest),
            "",
        ]
    )


def _head(manifest: Manifest, licence: str, entry: Entry | None) -> list[str]:
    lines = ["---", f"license: {licence}", f"library_name: {LIBRARY}"]
    lines += ["pipeline_tag: image-segmentation"]
    published = manifest.source.published
    repository = published.repository if published else None
    if repository is not None:
        lines.append(f"base_model: {json.dumps(repository)}")
        if manifest.precision == "int8":  # a Hub has no word for another form of the same numbers
            lines.append("base_model_relation: quantized")
    tags = ["referring-image-segmentation", "onnx", manifest.family.replace("_", "-")]
    return [*lines, "tags:", *(f"- {tag}" for tag in tags), "---", ""]


def _warning(manifest: Manifest) -> list[str]:
    if manifest.source.trained:
        return []
    return ["**The weights are made up. The masks mean nothing.**", ""]


def _facts(bundle: Bundle, licence: str, entry: Entry | None) -> list[tuple[str, str]]:
    manifest, source = bundle.manifest, bundle.manifest.source
    facts = [("family", f"`{manifest.family}`"), ("licence of this bundle", f"`{licence}`")]
    if entry is not None:
        stated = f"`{entry.licences.weights}`" if entry.licences.weights else "not stated"
        facts += [("made from", f"{entry.title} (`{entry.name}`){_unverified(manifest)}")]
        facts += [("licence of the weights", stated)]
        if entry.licences.code:
            facts.append(("licence of its authors' code", f"`{entry.licences.code}`"))
        if entry.licences.note:
            facts.append(("on the licences", entry.licences.note))
        if entry.terms:
            facts.append(("terms", entry.terms.words))
    if source.published and source.published.commit:
        facts.append(("revision of the weights", f"`{source.published.commit}`"))
    if source.checkpoint is not None:
        facts.append(("checkpoint", f"`{source.checkpoint}`, sha256 `{source.checkpoint_sha256}`"))
    facts += [
        (f"component {part.component}", f"`{part.file}`, sha256 `{part.sha256}`")
        for part in source.components
    ]
    facts.append(("precision", _precision(manifest)))
    facts += [(f"chosen: {name}", f"`{value}`") for name, value in _chosen(manifest)]
    facts.append(("says that nothing is there", "yes" if manifest.no_target else "no"))
    facts.append(("parameters", f"{sum(s.parameters for s in manifest.stages) / 1e6:.1f} M"))
    writer = manifest.writer.get("ris-runtime")
    if writer is not None:
        facts.append(("written by", f"ris-runtime {writer}"))
    return facts


def _unverified(manifest: Manifest) -> str:
    """Said of a model of which a file could not be held to a hash."""
    published = manifest.source.published
    verified = published is None or published.verified
    if verified is None:  # as it was before manifests said it
        verified = published is not None and published.commit is not None
    return "" if verified else ", not verified: no hash is published"


def _precision(manifest: Manifest) -> str:
    """The bundle's precision, and the stages that have another one."""
    whole = _PRECISIONS[manifest.precision]
    other = [s.name for s in manifest.stages if "*" in s.fp32_islands]
    return f"{whole}, but for {', '.join(other)} (FP32)" if other else whole


def _chosen(manifest: Manifest) -> list[tuple[str, str]]:
    """What was chosen of the family at the export, where PyTorch's side can tell."""
    fields = [choice.field for choice in family_choices()]
    return [(name, str(manifest.model[name])) for name in fields if name in manifest.model]


def _parity(manifest: Manifest) -> Sequence[str]:
    end = manifest.parity.get(END_TO_END)
    said = f"mask IoU {manifest.mask_iou:.6f} at the least"
    if end is not None:
        said += f", mask logits {end.relative:.1e} relative to the reference's"
    return [
        f"Measured at the export, on its golden picture: {said}. `ris-parity` measures it again.",
        "",
        "| output | relative error | largest difference |",
        "|---|---|---|",
        *(
            f"| {_cell(name)} | {row.relative:.1e} | {row.max_abs:.1e} |"
            for name, row in manifest.parity.items()
        ),
    ]


def _category(manifest: Manifest) -> str:
    return " --category auto" if manifest.categories is not None else ""


def _category_argument(manifest: Manifest) -> str:
    return ', category="auto"' if manifest.categories is not None else ""


def _cell(text: str) -> str:
    """Text that stays in its cell of the table, whatever a file is called."""
    return one_line(text).replace("|", "\\|")
