"""The training run: steps, averaged weights, validation, and a state on disk that a killed run goes
on from.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from ris.engines.errors import CheckpointError, RisError
from ris.engines.processor import cpu_features
from ris.reference.model import RISModel
from ris.training.data import Batch, Source, batches
from ris.training.features import FeatureStore
from ris.training.forward import ask, encode
from ris.training.losses import total_loss
from ris.training.measure import measure
from ris.training.pretext import PretextHeads, pretext_loss, sentence_loss
from ris.training.recipe import Recipe

STATE, LOG, WEIGHTS = "state.pt", "log.jsonl", "model.safetensors"
READERS = 5.0
"""The pretext's linear layers learn at so many times the rate: they start from nothing where the
encoders need not.
"""


@dataclass(frozen=True)
class Progress:
    """One line of the log: the step just done (counted from 1), the losses by name, the rate,
    seconds since the last line, and the validation's figures where there was one."""

    step: int
    losses: dict[str, float]
    rate: float
    seconds: float
    validation: dict[str, dict[str, float]] | None = None


def computes_bf16(device: torch.device) -> bool:
    """Whether `device` has instructions for bfloat16; a CPU without them emulates it, at a fifth of
    FP32's speed.
    """
    return device.type != "cpu" or not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(
        cpu_features()
    )


def _decays(name: str, parameter: Tensor) -> bool:
    """Weight decay is for matrices: not for norms, biases, scales and lookup tables
    (docs/reference/models/dfam.md 20).
    """
    return parameter.ndim >= 2 and not any(
        part in name for part in ("embed", "token", "_embedding")
    )


def _inner(name: str, parameter: Tensor) -> bool:
    """Whether Muon may update it: the matrices of linear layers, but not narrow ones, whose rows
    are outputs by name rather than directions, nor those that say where deformable attention
    looks."""
    matrix = parameter.ndim == 2 and name.endswith("weight") and _decays(name, parameter)
    return (
        matrix
        and min(parameter.shape) >= 32
        and "sampling_offsets" not in name
        and "attention_weights" not in name
    )


class Trainer:
    """A run in a folder: the state to go on from (`state.pt`), a log (`log.jsonl`) and the weights
    so far (`model.safetensors`: the averaged ones where the recipe keeps them)."""

    def __init__(
        self,
        folder: Path,
        recipe: Recipe,
        make_model: Callable[[], RISModel],
        source: Source,
        validation: Source,
        tokenizer: Tokenizer,
        *,
        lesson_source: Source | None = None,
        validation_steps: int = 25,
        workers: int = 1,
        device: str = "cpu",
        features: Path | None = None,
    ) -> None:
        self.folder, self.recipe = folder, recipe
        self.source, self.validation, self.tokenizer = source, validation, tokenizer
        self.lesson_source = lesson_source
        self.validation_steps, self.workers = validation_steps, workers
        self.device = torch.device(device)
        self.bf16 = recipe.bf16 and computes_bf16(self.device)
        self.model = make_model().to(self.device)
        self.step = 0
        self._updating = False
        config = self.model.config
        heads = PretextHeads(config.prompt_width, config.clip.width, source.kinds)
        self.heads = heads.to(self.device) if recipe.weights.pretext and source.kinds else None
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(not name.startswith(recipe.frozen))
        self.trains_encoders = any(
            p.requires_grad
            for p in [
                *self.model.sam.image_encoder.parameters(),
                *self.model.clip_dense.parameters(),
            ]
        )
        if features is not None and self.trains_encoders:
            raise RisError("stored features need frozen image encoders; the recipe trains them")
        self.features = FeatureStore(features, self.model) if features is not None else None
        trained = [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]
        readers = list(self.heads.parameters()) if self.heads else []
        inner = [p for n, p in trained if recipe.muon and _inner(n, p)]
        others = [(n, p) for n, p in trained if not (recipe.muon and _inner(n, p))]
        groups = [
            {
                "params": [p for n, p in others if _decays(n, p)],
                "weight_decay": recipe.weight_decay,
                "times": 1.0,
            },
            {
                "params": [p for n, p in others if not _decays(n, p)],
                "weight_decay": 0.0,
                "times": 1.0,
            },
            {"params": readers, "weight_decay": 0.0, "times": READERS},
        ]
        self.parameters = [*(p for _, p in trained), *readers]
        self.optimisers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(groups, lr=recipe.learning_rate)
        ]
        if inner:  # updates as large, root of the mean square, as AdamW's are at the same rate
            group = {"params": inner, "times": recipe.muon}
            decay = recipe.weight_decay
            self.optimisers += [
                torch.optim.Muon([group], weight_decay=decay, adjust_lr_fn="match_rms_adamw")
            ]
        if self.device.type == "cpu" and recipe.parts > 1:
            each = max(1, torch.get_num_threads() // recipe.parts)
            self._threads = ThreadPoolExecutor(
                recipe.parts, initializer=lambda: torch.set_num_threads(each)
            )
        self.average: dict[str, Tensor] | None = None
        if recipe.ema:
            self.average = {
                k: v.detach().clone()
                for k, v in self.model.state_dict().items()
                if v.is_floating_point()
            }

    # --- the state on disk ---

    def resume(self) -> bool:
        """Goes on from the folder's state, if it has one. Raises CheckpointError where that is
        another recipe's.
        """
        path = self.folder / STATE
        if not path.exists():
            return False
        try:
            state = torch.load(path, weights_only=True, map_location=self.device)
        except Exception as error:
            raise CheckpointError(
                f"{path} cannot be read ({type(error).__name__}); remove it to start anew"
            ) from error
        if json.dumps(state["recipe"] | {"steps": 0, "decay": 0}, sort_keys=True) != json.dumps(
            self.recipe.to_dict() | {"steps": 0, "decay": 0}, sort_keys=True
        ) or state["config"] != json.loads(json.dumps(self.model.config.to_dict())):
            raise CheckpointError(
                f"{path} belongs to another recipe or preset; give another folder or --restart"
            )
        self.model.load_state_dict(state["model"])
        if self.heads is not None:
            self.heads.load_state_dict(state["heads"])
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self.average = state["average"]
        self.step = state["step"]
        self._cut_log()
        return True

    def save(self) -> None:
        """Writes the state and the weights, each to a temporary file that then takes the old one's
        place.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        state = {
            "step": self.step,
            "recipe": self.recipe.to_dict(),
            "config": json.loads(json.dumps(self.model.config.to_dict())),
            "model": self.model.state_dict(),
            "heads": self.heads.state_dict() if self.heads is not None else None,
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            "average": self.average,
        }
        temporary = self.folder / (STATE + ".part")
        torch.save(state, temporary)
        os.replace(temporary, self.folder / STATE)
        write_weights(self.folder / WEIGHTS, self.weights(), self.model, {"step": str(self.step)})

    def weights(self) -> dict[str, Tensor]:
        """The state dict to use: averaged where the recipe keeps averages."""
        return self.model.state_dict() | (self.average or {})

    def _log(self, line: Progress) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / LOG).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line.__dict__) + "\n")

    def _cut_log(self) -> None:
        """Drops what the log says of steps that the state does not know: they will run again."""
        path = self.folder / LOG
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        kept = [line for line in lines if _complete(line) and json.loads(line)["step"] <= self.step]
        temporary = path.with_name(LOG + ".part")
        temporary.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        os.replace(temporary, path)

    # --- steps ---

    def train_step(self, batch: Batch) -> dict[str, float]:
        """One optimiser step; the losses by name. Raises RisError where the loss is no longer a
        number.
        """
        recipe = self.recipe
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = group["times"] * recipe.rate(self.step)
        batch = batch.to(self.device)
        parts = batch.split(recipe.parts)
        if self.device.type == "cpu" and len(parts) > 1:
            found = list(self._threads.map(self._part_gradients, parts))
        else:
            found = [self._part_gradients(part) for part in parts]
        losses = {name: sum(loss[name] for loss, _ in found) / len(found) for name in found[0][0]}
        if not math.isfinite(sum(losses.values())):
            raise RisError(
                f"the loss is not finite at step {self.step}: {losses}; resume with a lower"
                " learning rate"
            )
        for parameter, *gradients in zip(self.parameters, *(g for _, g in found), strict=True):
            given = [g for g in gradients if g is not None]
            parameter.grad = torch.stack(given).sum(0).div_(len(found)) if given else None
        nn.utils.clip_grad_norm_(self.parameters, recipe.clip_norm)
        self._updating = True
        for optimiser in self.optimisers:
            optimiser.step()
        self.step += 1
        self._average()
        self._updating = False
        return losses

    def _part_gradients(self, batch: Batch) -> tuple[dict[str, float], tuple[Tensor | None, ...]]:
        """The losses of one part of a batch, by name, and the gradient of each trained
        parameter.
        """
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            if self.features is not None:
                embeddings, tokens = self.features.encode(self.model, batch)
            else:
                embeddings, tokens = encode(
                    self.model, batch.image, batch.clip_image, self.trains_encoders
                )
            if (
                self.lesson_source is not None
                and self.heads is not None
                and self.step < self.recipe.lessons
            ):
                taught = pretext_loss(self.heads, embeddings, tokens, batch.targets)
                sentences = self.model.encode_words(batch.input_ids)[1][:, 0]
                taught["sentence"] = sentence_loss(self.heads, sentences, batch.targets)
                loss = self.recipe.weights.pretext * torch.stack(list(taught.values())).sum()
                losses = {name: float(value.detach()) for name, value in taught.items()}
                return losses, torch.autograd.grad(loss, self.parameters, allow_unused=True)
            out = ask(
                self.model,
                embeddings,
                tokens,
                batch.input_ids,
                batch.targets.image_index,
                batch.category,
            )
            loss, losses = total_loss(
                self.model, self.heads, out, batch.targets, self.recipe.weights
            )
        return losses, torch.autograd.grad(loss, self.parameters, allow_unused=True)

    @torch.no_grad()
    def _average(self) -> None:
        if self.average is None:
            return
        # the average forgets its random start faster than its last weights
        decay = min(self.recipe.ema, (1 + self.step) / (10 + self.step))
        for name, value in self.model.state_dict().items():
            if name in self.average:
                self.average[name].lerp_(value, 1 - decay)

    def validate(self) -> dict[str, dict[str, float]]:
        """`measure` of the weights to use, on the validation source."""
        own = {k: v.clone() for k, v in self.model.state_dict().items()}
        self.model.load_state_dict(self.weights())
        try:
            return measure(
                self.model,
                self.validation,
                self.tokenizer,
                self.validation_steps,
                bf16=self.bf16,
                workers=self.workers,
            )
        finally:
            self.model.load_state_dict(own)

    def _batches(self, last: int) -> Iterator[Batch]:
        """The batches of the steps from here to `last`: lessons first, then expressions."""
        recipe, config = self.recipe, self.model.config
        lessons = min(recipe.lessons, last) if self.lesson_source is not None else 0
        if self.lesson_source is not None and self.step < lessons:
            yield from batches(
                self.lesson_source, config, self.tokenizer, self.step, lessons, workers=self.workers
            )
        yield from batches(
            self.source,
            config,
            self.tokenizer,
            max(self.step, lessons),
            last,
            unknown_words=recipe.unknown_words,
            workers=self.workers,
        )

    def run(
        self,
        *,
        log_every: int = 20,
        save_every: int = 200,
        validate_every: int = 500,
        stop: int | None = None,
        report: Callable[[Progress], None] = lambda line: None,
    ) -> None:
        """Trains to the recipe's last step (or `stop`); Ctrl-C saves the state before it leaves.

        report: called with every line of the log. Raises RisError where the loss is no longer a
        number.
        """
        last = min(self.recipe.steps, stop or self.recipe.steps)
        self.model.train()
        sums: dict[str, float] = {}
        counted, since = 0, time.perf_counter()
        try:
            for batch in self._batches(last):
                for name, value in self.train_step(batch).items():
                    sums[name] = sums.get(name, 0.0) + value
                counted += 1
                done = self.step == last
                due = (
                    self.step % validate_every == 0 and self.step > self.recipe.lessons
                )  # no masks to learn before
                checked = self.validate() if due or done else None
                if checked is not None or self.step % log_every == 0:
                    seconds, since = time.perf_counter() - since, time.perf_counter()
                    means = {name: value / counted for name, value in sums.items()}
                    line = Progress(
                        self.step, means, self.recipe.rate(self.step - 1), seconds, checked
                    )
                    sums, counted = {}, 0
                    self._log(line)
                    report(line)
                if self.step % save_every == 0 or done:
                    self.save()
        except KeyboardInterrupt:
            if (
                not self._updating
            ):  # half an update is no state to go on from: the last saved one is
                self.save()
            raise


def _complete(line: str) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def write_weights(
    path: Path, weights: dict[str, Tensor], model: RISModel, notes: dict[str, Any]
) -> None:
    """A safetensors file with the official key names that `ris-export --checkpoint` reads; it names
    its own sizes.
    """
    temporary = path.with_name(path.name + ".part")
    metadata = {"ris_config": json.dumps(model.config.to_dict()), **notes}
    save_file(
        {k: v.detach().contiguous() for k, v in weights.items()}, temporary, metadata=metadata
    )
    os.replace(temporary, path)
