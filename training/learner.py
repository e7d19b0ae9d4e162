"""What learns: the model, its optimisers and its averaged weights, and one step of all three."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ris.engines.errors import CheckpointError
from ris.reference.dfam.model import RISModel
from ris.training.data import Batch
from ris.training.optimisers import make_optimisers, set_rate
from ris.training.pretext import PretextHeads
from ris.training.recipe import Recipe
from ris.training.run_folder import digest
from ris.training.step import Encode, GroupLoss, keep_fewer_activations, seed_group


@dataclass(frozen=True)
class Step:
    """What one step did."""

    losses: dict[str, float]
    """The loss terms by name, weighted: means over all groups of the step."""

    norm: float
    """The L2 norm of the gradient before it was clipped."""

    changed: bool
    """Whether the weights moved. They do not where loss or gradient is not finite."""

    hopeless: bool
    """Whether they did not, and a smaller loss scale would be no help."""


class Stopped(KeyboardInterrupt):
    """All processes of the run leave together, between two steps."""


class Learner:
    """A model that trains.

    Args:
        model: The model, with its starting values.
        heads: The layers of the pretext terms, or None.
        recipe: What the run does.
        accelerator: The device, and the run's other processes.
        encode: The image encoders, or what they have stored.
        fewer_activations: Whether to compute activations anew on the way back (gradient
            checkpointing).
    """

    def __init__(
        self,
        model: RISModel,
        heads: PretextHeads | None,
        recipe: Recipe,
        accelerator: Accelerator,
        encode: Encode,
        *,
        fewer_activations: bool = False,
    ) -> None:
        self.model, self.heads, self.recipe, self.accelerator = model, heads, recipe, accelerator
        self.step = 0
        self.updating = False
        """Whether the weights are being changed: half an update is no state to resume."""

        self.leaving = False
        """Whether this process is asked to leave; the next step of all raises `Stopped`."""

        if fewer_activations:
            keep_fewer_activations(model)
        self._losses: Callable[..., tuple[Tensor, dict[str, float]]] = accelerator.prepare(
            GroupLoss(model, heads, recipe, encode)
        )
        self.trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.parameters = [*self.trained.values(), *(heads.parameters() if heads else ())]
        self.optimisers = make_optimisers(model, heads, recipe)
        self.average: dict[str, Tensor] | None = None
        if recipe.ema:
            self.average = {name: p.detach().clone() for name, p in self.trained.items()}
        self._frozen_digest: str | None = None

    # --- one step ---

    def train_step(self, groups: Sequence[Batch], *, lesson: bool = False) -> Step:
        """One step over this process's groups of it, and the other processes' of theirs.

        Args:
            groups: The groups that can be used; where a process has none, nothing is learnt.
            lesson: Whether only the pretext terms are learnt that need no decoder.

        Raises:
            Stopped: In place of the step, in every process, where one of them is `leaving`.
        """
        set_rate(self.optimisers, self.recipe.rate(self.step))
        own = [group.to(self.accelerator.device, non_blocking=True) for group in groups]
        agreed = self._over_processes({"none": float(not own), "stop": float(self.leaving)})
        if agreed["stop"]:
            raise Stopped
        if agreed["none"]:
            self.step += 1
            return Step({}, 0.0, changed=False, hopeless=False)
        losses = self._over_processes(self._gradients(own, lesson))
        scaler = self.accelerator.scaler
        if scaler is not None:
            for optimiser in self.optimisers:
                scaler.unscale_(optimiser)
        norm = float(nn.utils.clip_grad_norm_(self.parameters, self.recipe.clip_norm))

        finite = math.isfinite(norm) and all(map(math.isfinite, losses.values()))
        scale = scaler.get_scale() if scaler is not None else 1.0
        self.updating = True
        if finite:
            for optimiser in self.optimisers:
                scaler.step(optimiser) if scaler is not None else optimiser.step()
        if scaler is not None:
            scaler.update()
        self.step += 1
        if finite:
            self._average()
        self.updating = False
        return Step(losses, norm, changed=finite, hopeless=not finite and scale <= 1)

    def _gradients(self, groups: Sequence[Batch], lesson: bool) -> dict[str, float]:
        """Leaves in each parameter the mean of the gradients of all the step's groups.

        Returns the loss terms: the means of the whole step are those over the processes.
        """
        for optimiser in self.optimisers:
            optimiser.zero_grad()
        count, objects = float(len(groups)), sum(group.targets.count for group in groups)
        mean = self._over_processes({"groups": count, "objects": float(objects)})
        terms: dict[str, float] = {}
        for i, group in enumerate(groups):
            points = seed_group(self.recipe.seed, self.step, group.group, group.squares.device)
            last = i == len(groups) - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self._losses):
                loss, found = self._losses(group, mean["objects"] / mean["groups"], points, lesson)
                self.accelerator.backward(loss / mean["groups"])
            for name, value in found.items():
                terms[name] = terms.get(name, 0.0) + value / mean["groups"]
        return terms

    def _over_processes(self, values: Mapping[str, float]) -> dict[str, float]:
        """The means of figures over the processes, which all have the same ones."""
        if self.accelerator.num_processes == 1:
            return dict(values)
        own = torch.tensor(list(values.values()), dtype=torch.float64)
        mean: Tensor = self.accelerator.reduce(own.to(self.accelerator.device), "mean")
        return dict(zip(values, mean.tolist(), strict=True))

    @torch.no_grad()
    def _average(self) -> None:
        """Moves the averaged weights towards the model's."""
        if self.average is None:
            return
        # the average forgets its random start faster than its last weights
        decay = min(self.recipe.ema, (1 + self.step) / (10 + self.step))
        for name, value in self.trained.items():
            self.average[name].lerp_(value, 1 - decay)

    # --- weights and state ---

    def trained_weights(self) -> dict[str, Tensor]:
        """What trains, by its key: averaged where the recipe keeps an average."""
        return dict(self.average or {k: p.detach() for k, p in self.trained.items()})

    def weights(self) -> dict[str, Tensor]:
        """The whole model's state dict, to use: averaged where the recipe keeps an average."""
        return self.model.state_dict() | self.trained_weights()

    @contextlib.contextmanager
    def weights_to_use(self) -> Iterator[None]:
        """Gives the model the averaged weights, where there are some, for the block."""
        if self.average is None:
            yield
            return
        own = {name: p.detach().clone() for name, p in self.trained.items()}
        try:
            self.model.load_state_dict(self.average, strict=False)
            yield
        finally:
            self.model.load_state_dict(own, strict=False)

    def is_finite(self) -> bool:
        """Whether every weight that trains is a finite number."""
        norms = [torch.linalg.vector_norm(p.detach()) for p in self.parameters]
        return bool(torch.isfinite(torch.stack(norms)).all())

    def config(self) -> dict[str, object]:
        """The model's configuration as JSON gives it back: lists where it has tuples."""
        config: dict[str, object] = json.loads(json.dumps(self.model.config.to_dict()))
        return config

    def frozen_digest(self) -> str:
        """The hash of all that does not train, which no state holds."""
        if self._frozen_digest is None:
            state = self.model.state_dict()
            self._frozen_digest = digest({k: v for k, v in state.items() if k not in self.trained})
        return self._frozen_digest

    def state(self) -> dict[str, Any]:
        """All that a resumed run needs besides what it began with."""
        scaler = self.accelerator.scaler
        return {
            "step": self.step,
            "recipe": self.recipe.to_dict(),
            "config": self.config(),
            "trained": {name: p.detach() for name, p in self.trained.items()},
            "frozen": self.frozen_digest(),
            "heads": self.heads.state_dict() if self.heads is not None else None,
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            "average": self.average,
            "scaler": scaler.state_dict() if scaler is not None else None,
        }

    def load(self, state: Mapping[str, Any], source: str) -> None:
        """Goes on from a state; its learning rate becomes the recipe's.

        Args:
            state: What `state` gave.
            source: Where it is from, for messages.

        Raises:
            CheckpointError: For a state of another recipe, model or start.
        """
        same_recipe = _comparable(state["recipe"]) == _comparable(self.recipe.to_dict())
        if not same_recipe or state["config"] != self.config():
            raise CheckpointError(
                f"{source} belongs to another recipe or preset; give another folder or --restart"
            )
        same_frozen = state["frozen"] == self.frozen_digest()
        if not same_frozen or state["trained"].keys() != self.trained.keys():
            raise CheckpointError(
                f"{source} was trained beside other frozen weights; give the weight files that the"
                " run began with"
            )
        self.recipe = replace(self.recipe, learning_rate=state["recipe"]["learning_rate"])
        self.model.load_state_dict(state["trained"], strict=False)
        if self.heads is not None:
            self.heads.load_state_dict(state["heads"])
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        if self.average is not None:
            for name, value in state["average"].items():
                self.average[name].copy_(value)
        if self.accelerator.scaler is not None and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.step = state["step"]


def _comparable(recipe: Mapping[str, Any]) -> str:
    """The recipe without its length and rate, as text: a run may be longer and slower."""
    may_change = ("steps", "decay", "drops", "learning_rate")
    return json.dumps({k: v for k, v in recipe.items() if k not in may_change}, sort_keys=True)
