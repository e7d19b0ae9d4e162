"""Which stages run anew where some graphs have changed: those that the masks then depend on.

An output need not depend on every input of its graph. What depends on what is read off the nodes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import onnx

from ris.runtime import Bundle


class Reach:
    """What the mask logits of a bundle depend on."""

    def __init__(self, bundle: Bundle) -> None:
        """Reads the graphs' nodes."""
        manifest = bundle.manifest
        self._behind: dict[str, dict[str, set[str]]] = {}
        for stage in manifest.stages:
            takes = {spec.name: spec.value for spec in stage.inputs}
            found = inputs_behind(bundle.file(stage.file))
            self._behind[stage.name] = {
                output: {takes[name] for name in names} for output, names in found.items()
            }
        self._resized = {resize.of: name for name, resize in manifest.host.resizes.items()}
        self._wanted = self._behind_masks(manifest.answer.mask_logits)

    def touched(self, changed: Iterable[str]) -> list[str]:
        """The stages to run anew where the graphs of the `changed` ones are others, in order."""
        changed, moved, touched = set(changed), set[str](), []
        for stage, outputs in self._behind.items():
            new = {
                name
                for name, behind in outputs.items()
                if self._handed_on(name) in self._wanted
                and (stage in changed or not behind.isdisjoint(moved))
            }
            if new or stage in changed:
                touched.append(stage)
            moved.update(map(self._handed_on, new))
        return touched

    def _behind_masks(self, logits: str) -> set[str]:
        """The values that the mask logits depend on, and these themselves."""
        wanted = {logits}
        for outputs in reversed(self._behind.values()):
            for name, behind in outputs.items():
                if self._handed_on(name) in wanted:
                    wanted |= behind
        return wanted

    def _handed_on(self, output: str) -> str:
        """The value that others take of an output: a resized one has a name of its own."""
        return self._resized.get(output, output)


def inputs_behind(path: Path) -> dict[str, set[str]]:
    """The inputs that each output of an ONNX graph depends on, by name."""
    graph = onnx.load(path, load_external_data=False).graph
    behind = {given.name: {given.name} for given in graph.input}
    for node in graph.node:  # in order: what a node takes is there before it
        found = set[str]().union(*(behind.get(name, ()) for name in _taken(node)))
        behind.update(dict.fromkeys(node.output, found))
    return {output.name: behind.get(output.name, set()) for output in graph.output}


def _taken(node: onnx.NodeProto) -> Iterator[str]:
    """What a node takes, also inside its branches."""
    yield from node.input
    for attribute in node.attribute:
        for inner in (attribute.g, *attribute.graphs):
            for each in inner.node:
                yield from _taken(each)
