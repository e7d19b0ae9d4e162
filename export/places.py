"""Where a matrix is: its name in the model, by which a file of levels is read.

Two matrices may be equal and have different inputs, so that their levels differ. What tells them
apart is the layer that multiplies with them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn


def layer_places(model: nn.Module, stage: str, module: nn.Module) -> dict[str, str]:
    """The names of the matrices of a stage's linear layers, by the layers' paths in its module.

    A layer of the model's has its parameter's name there. One that the module made itself has that
    of its first path, behind the stage's name.

    Args:
        model: The model.
        stage: The stage's name.
        module: What the stage builds of the model.
    """
    names = {id(layer): path for path, layer in model.named_modules()}
    for path, layer in module.named_modules():
        names.setdefault(id(layer), f"{stage}.{path}")
    return {
        path: f"{names[id(layer)]}.weight"
        for path, layer in module.named_modules(remove_duplicate=False)
        if isinstance(layer, nn.Linear)
    }


def node_places(scopes: Mapping[str, Sequence[str]], layers: Mapping[str, str]) -> dict[str, str]:
    """The names of the matrices of linear layers, by the nodes that the layers were traced to.

    Args:
        scopes: For every node the paths of the modules it came from, outermost first, its own name
            last.
        layers: As of `layer_places`.
    """
    inner = {node: modules[-2] for node, modules in scopes.items() if len(modules) > 1}
    return {node: layers[path] for node, path in inner.items() if path in layers}
