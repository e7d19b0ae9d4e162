"""Golden files whose every array has to be compared, and modules with their weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.utils.hooks import RemovableHandle

from golden import inputs
from ris.reference.layers.worded_swin import WordedSwin

Rule = Callable[[str, tuple[int, ...]], np.ndarray]
"""A family's made-up tensor of a key and a shape."""


class GoldenFile:
    """A golden file that remembers which of its arrays were compared."""

    def __init__(self, path: Path) -> None:
        self.arrays = np.load(path)
        self.left = set(inputs.names(self.arrays))
        self.failures: list[str] = []
        self.worst: dict[str, tuple[float, float]] = {}

    def compare(self, name: str, got: torch.Tensor, most: float, p99: float = np.inf) -> None:
        """Notes a failure where an array differs by more, in its standard deviations.

        most: at the place where it differs most. p99: where 99 % of the places differ less.
        """
        self.left.discard(name)
        found = inputs.compare(self.arrays, name, got.detach().numpy())
        self.worst[name] = found["max"], found["p99"]
        if not (found["max"] <= most and found["p99"] <= p99):
            self.failures.append(f"{name}: {found}, accepted {most} and {p99}")

    def compare_absolute(self, name: str, got: torch.Tensor, most: float) -> None:
        """Notes a failure where an array differs by more, in its own units."""
        scale = inputs.compare(self.arrays, name, got.detach().numpy())["scale"]
        self.compare(name, got, most / scale)

    def equal(self, name: str, got: object) -> None:
        """Asserts that an array is the same to the bit."""
        np.testing.assert_array_equal(self.take(name), np.asarray(got), err_msg=name)

    def take(self, name: str) -> np.ndarray:
        """An array that is stored whole, to be compared by the caller."""
        self.left.discard(name)
        return self.arrays[name]

    def bits(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """A bool array that is stored as `numpy.packbits` made it."""
        packed = self.take(name)
        return np.unpackbits(packed, count=int(np.prod(shape))).reshape(shape).astype(bool)

    def finish(self) -> None:
        """Asserts that nothing differed, and that every array was compared."""
        assert not self.failures, "\n".join(self.failures)
        assert not self.left, f"arrays that no assertion looked at: {sorted(self.left)}"


class Seen(dict[str, torch.Tensor]):
    """What modules gave, by the golden files' names."""

    def outputs(self, module: torch.nn.Module, name: str) -> RemovableHandle:
        """Keeps what the module gives, the first of several, until the handle is removed."""

        def keep(module: torch.nn.Module, args: object, output: object) -> None:
            self[name] = output[0] if isinstance(output, tuple) else output

        return module.register_forward_hook(keep)

    def inputs(self, module: torch.nn.Module, name: str) -> RemovableHandle:
        """Keeps what the module takes, until the handle is removed."""
        return module.register_forward_pre_hook(lambda module, args: self.update({name: args[0]}))

    def backbone(self, backbone: WordedSwin) -> None:
        """Keeps what the patch embedding and the steps of every stage give."""
        self.outputs(backbone.patch_embed, "patch_embed")
        for index, stage in enumerate(backbone.stages()):
            self.outputs(stage.blocks[-1], f"stage{index}_blocks")
            self.outputs(stage.words.image_lang_att, f"stage{index}_language")
            self.outputs(stage.words.project_mm, f"stage{index}_fused")
            if stage.downsample is not None:
                self.outputs(stage.share, f"stage{index}_gate")
                self.inputs(stage.downsample, f"stage{index}_gated")
                self.outputs(stage.downsample, f"stage{index}_down")


def tensor(name: str, shape: tuple[int, ...], scale: float = 1.0) -> torch.Tensor:
    """The input of a golden file by its name."""
    return torch.from_numpy(inputs.tensor(name, shape, scale=scale))


def filled(module: torch.nn.Module, prefix: str, rule: Rule) -> torch.nn.Module:
    """The module with the golden weights of the keys below `prefix`."""
    state = {
        key: torch.from_numpy(np.array(rule(prefix + key, value.shape)))
        for key, value in module.state_dict().items()
    }
    module.load_state_dict(state)
    return module.eval().requires_grad_(False)
