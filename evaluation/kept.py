"""Answers of a bundle that are all there: they are counted without opening the bundle again.

Beside the answers asked.json says what they depend on, as far as it is known without opening a
bundle: its manifest, which has the hashes of all graphs, the options that say how it runs, the
installed engines and the machine. Where one of these differs, the bundle is opened.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ris import __version__
from ris.data.datasets.refer_files import ReferFiles
from ris.engines import TABLE
from ris.engines.errors import RisError
from ris.engines.temporary import write_atomically
from ris.evaluation.answers import all_answered, to_ask
from ris.evaluation.asking import model_id
from ris.evaluation.results import PREDICTIONS, read_setup, writing
from ris.evaluation.sources import SampleSource
from ris.runtime.commands.running import Running

ASKED = "asked.json"
"""The file in a folder of answers that says what they depend on."""


def dependencies(bundle: Path, running: Running, source: SampleSource) -> dict[str, Any] | None:
    """What a bundle's answers depend on, as JSON; None where its manifest cannot be read.

    Args:
        bundle: The bundle; of its files the manifest alone is read.
        running: How it runs.
        source: What it is asked.
    """
    try:
        model = model_id(bundle)
    except OSError:
        return None
    found = {
        "model": model,
        "samples": source.to_dict(),
        "running": vars(running),
        "engines": {name: version for row in TABLE for name, version in row.installed().items()},
        "version": __version__,
        "machine": platform.node(),
    }
    whole: dict[str, Any] = json.loads(json.dumps(found))
    return whole


def kept_answers(
    folder: Path, needs: dict[str, Any] | None, files: ReferFiles, split: str, names: Sequence[str]
) -> Path | None:
    """The file of answers of a folder, where it has them all; None where the bundle is needed.

    Args:
        folder: The folder.
        needs: What `dependencies` gave.
        files: The data set.
        split: The split that is asked.
        names: The evaluators whose texts are asked.
    """
    path = folder / PREDICTIONS
    try:
        known = json.loads((folder / ASKED).read_bytes())
        same = known == {"needs": needs, "setup": read_setup(folder)}
    except (OSError, ValueError, RisError):
        return None
    if needs is None or not same or not path.exists():
        return None
    return path if all_answered(path, to_ask(files, split, names)) else None


def note_asked(folder: Path, needs: dict[str, Any] | None) -> None:
    """Writes what a folder's answers depend on.

    Raises RisError where it cannot be written.
    """
    text = json.dumps({"needs": needs, "setup": read_setup(folder)}, indent=1) + "\n"
    with writing(folder):
        write_atomically(folder / ASKED, lambda file: file.write(text.encode()))
