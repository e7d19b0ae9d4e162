"""Graphs whose files are links, as Hugging Face's cache and git-annex lay them.

There each file is a link to one that is named by its hash, in another folder. Engines look for a
graph's weights beside it, and some refuse those that really lie elsewhere.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ris.engines.base import Graph


@contextlib.contextmanager
def without_links(graph: Graph, folder: Path) -> Iterator[Path]:
    """The graph's ONNX file, with all of its files really beside it.

    Where one of them is a link, they are put into a new folder during the block: as hard links to
    the files themselves, or as copies where the file system has no such links or they would cross
    it.

    Args:
        graph: The graph.
        folder: Where the new folder may be made; best on the graph's own file system.

    Raises:
        OSError: Where a file cannot be read, or the folder cannot be written.
    """
    names = _names(graph)
    if not _has_links(graph, names):
        yield graph.path
        return

    with tempfile.TemporaryDirectory(prefix=".graph-", dir=folder) as made:
        for name in names:
            source, target = (graph.path.parent / name).resolve(), Path(made) / name
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(source, target)
            except OSError:
                shutil.copyfile(source, target)
        yield Path(made) / graph.path.name


def linked_weights(graph: Graph) -> dict[str, NDArray[np.uint8]]:
    """The graph's data files, mapped into memory, by the names that the graph has for them.

    Empty where none of the graph's files is a link, so that the engine finds them itself.

    Raises:
        OSError: Where a file cannot be read.
    """
    names = _names(graph)
    if not _has_links(graph, names):
        return {}
    data = [name for name in names if name != graph.path.name]
    return {name: np.memmap(graph.path.parent / name, np.uint8, "r") for name in data}


def _has_links(graph: Graph, names: list[str]) -> bool:
    """Whether one of the graph's files really lies elsewhere than beside it."""
    beside = graph.path.parent.resolve()
    return any((graph.path.parent / name).resolve() != beside / name for name in names)


def _names(graph: Graph) -> list[str]:
    """The names of the graph's files, from its own folder."""
    for root in graph.path.parents:
        if any(root / name == graph.path for name in graph.sha256):
            folder = graph.path.parent.relative_to(root)
            return [str(Path(name).relative_to(folder)) for name in graph.sha256]
    data = graph.path.name + ".data"
    there = [data] if graph.path.with_name(data).exists() else []
    return [graph.path.name, *there]
