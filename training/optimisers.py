"""The optimisers of a run: what trains, which of it decays, and which of it Muon updates."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ris.reference.dfam.keys import BERT
from ris.reference.dfam.model import RISModel
from ris.training.recipe import Objective, Recipe

READERS = 5.0
"""The pretext's linear layers learn at this multiple of the rate.

They start from nothing where the encoders need not.
"""


def set_trained(model: RISModel, recipe: Recipe) -> None:
    """Freezes what the recipe does not train, and sets the dropout that BERT has in training."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(recipe.trains(name, model.config))
    for module in model.bert.modules():
        if isinstance(module, nn.Dropout):
            module.p = recipe.bert_dropout


def make_optimisers(
    model: RISModel, heads: nn.Module | None, recipe: Recipe
) -> list[torch.optim.Optimizer]:
    """AdamW, and Muon where the recipe has it, for every parameter that requires a gradient.

    heads: the pretext's linear layers, or None. Each parameter group has its multiple of the rate
    as "times" (`set_rate`).
    """
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    inner = [p for name, p in trained if recipe.muon and _is_inner(name, p)]
    others = [(name, p) for name, p in trained if not (recipe.muon and _is_inner(name, p))]
    readers = heads.parameters() if heads else []

    keep = undecayed(model, recipe.objective)
    groups = [
        _group((p for name, p in others if name not in keep), recipe.weight_decay),
        _group((p for name, p in others if name in keep), 0.0),
        _group(readers, 0.0, READERS),
    ]
    adamw = torch.optim.AdamW(groups, lr=recipe.learning_rate)
    if not inner:
        return [adamw]

    group = {"params": inner, "times": recipe.muon}
    # updates whose root mean square is that of AdamW's at the same rate
    muon = torch.optim.Muon(
        [group], weight_decay=recipe.weight_decay, adjust_lr_fn="match_rms_adamw"
    )
    return [adamw, muon]


def undecayed(model: RISModel, objective: Objective) -> set[str]:
    """The names of the parameters that do not decay.

    In the released code these are PyTorch's own norms and tables outside BERT. Biases, scales, the
    channel norms of maps and all of BERT do decay. In the demo whatever is no matrix, and tables.
    """
    if objective == "demo":
        return {name for name, p in model.named_parameters() if not _is_matrix(name, p)}
    return {
        f"{prefix}.{name}"
        for prefix, module in model.named_modules()
        # exactly these: LayerNorm2d is none of PyTorch's norms
        if type(module) in (nn.LayerNorm, nn.GroupNorm, nn.Embedding)
        and not prefix.startswith(BERT)
        for name, _ in module.named_parameters(recurse=False)
    }


def set_rate(optimisers: Iterable[torch.optim.Optimizer], rate: float) -> None:
    """Sets the learning rate of every parameter group: its own multiple of `rate`."""
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["lr"] = group["times"] * rate


def _group(
    parameters: Iterable[nn.Parameter], weight_decay: float, times: float = 1.0
) -> dict[str, Any]:
    return {"params": list(parameters), "weight_decay": weight_decay, "times": times}


def _is_matrix(name: str, parameter: Tensor) -> bool:
    """Whether it is a matrix or a filter: no norm, bias, scale or lookup table."""
    tables = ("embed", "token", "_embedding")
    return parameter.ndim >= 2 and not any(part in name for part in tables)


def _is_inner(name: str, parameter: Tensor) -> bool:
    """Whether Muon may update it: the matrices of linear layers, with two exceptions.

    Not narrow ones, whose rows are single outputs rather than directions, and not those that say
    where deformable attention looks.
    """
    matrix = parameter.ndim == 2 and name.endswith("weight") and _is_matrix(name, parameter)
    looks = "sampling_offsets" in name or "attention_weights" in name
    return matrix and min(parameter.shape) >= 32 and not looks
