"""Bundles of made-up weights, for the fixtures and for tests that need one of another model."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType
from typing import Any


def export_made_up(
    folder: Path,
    config: Any,
    precision: Any = "fp32",
    sampling: Any = "native",
    family: str = "dfam",
    resizing: Any = "host",
    weights: Any = MappingProxyType({}),
) -> Path:
    """The bundle of a model with the weights of seed 0, in a folder of `folder`."""
    from ris.export.bundle_writer import ExportOptions, export_bundle
    from ris.reference.families import FAMILIES
    from ris.runtime.manifest import Source
    from traced import share_traces

    share_traces()
    source = Source(
        kind="deterministic", trained=False, seed=0, checkpoint=None, checkpoint_sha256=None
    )
    out = folder / "ris-bundle"
    export_bundle(
        lambda: FAMILIES[family].made_up_model(config, 0),
        config,
        out,
        family=family,
        source=source,
        options=ExportOptions(
            precision=precision, sampling=sampling, resizing=resizing, weights=weights
        ),
    )
    return out
