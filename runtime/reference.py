"""PyTorch's side of a comparison, for the few commands that ask for it; the runtime does without.

Two modules offer it, and a third says what may be chosen of a model. They are found by the entry
points of the group `ris_runtime.pytorch`, so that the commands import nothing of them.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from ris import pip_install
from ris.engines.errors import RisError

if TYPE_CHECKING:
    from ris.runtime.bundle import Bundle

GROUP = "ris_runtime.pytorch"
"""The group of the entry points."""

Files = Mapping[str, Path | None]
"""Weight files by the names `checkpoint`, `sam`, `clip` and `bert`."""


class Choice(Protocol):
    """What weights do not say and a person may choose, of `ris.reference.family`."""

    @property
    def field(self) -> str:
        """Its name."""

    @property
    def values(self) -> tuple[str, ...]:
        """What it may be; the first is the default."""

    @property
    def words(self) -> str:
        """What it chooses, for the help text."""

    @property
    def option(self) -> str:
        """Its name on the command line."""


class Families(Protocol):
    """What the entry point `families` offers; importing it needs no PyTorch."""

    FAMILIES: Mapping[str, Any]
    """Every family by its name."""

    def all_choices(self) -> tuple[Choice, ...]:
        """What a person may choose of any family, each field once."""


class PyTorchReference(Protocol):
    """What the entry point `reference` offers."""

    def require_files(self, bundle: Bundle, files: Files) -> None:
        """Raises CheckpointError where the files are not those that the bundle was made from."""

    def live_reference(
        self,
        bundle: Bundle,
        image: NDArray[np.uint8],
        expressions: Sequence[str],
        categories: Sequence[str] | None,
        files: Files | None = None,
    ) -> dict[str, NDArray[Any]]:
        """Every stage's arrays for one image, for `ris-parity --reference`.

        Args:
            bundle: A bundle of the same model.
            image: RGB [H, W, 3].
            expressions: What to ask.
            categories: A category for each expression; None for models that do not ask by category.
            files: The weight files of a bundle that was made from a checkpoint; None for others.

        Returns:
            The arrays that `ris.runtime.parity` describes.
        """

    def timed_reference(
        self,
        bundle: Bundle,
        image: NDArray[np.uint8],
        expressions: tuple[str, str],
        threads: int | None,
        files: Files | None = None,
        compiled: bool = False,
        precision: str = "fp32",
    ) -> Callable[[], tuple[float, float]]:
        """The model ready to be timed, for `ris-bench --pytorch`.

        Args:
            bundle: A bundle of the same model.
            image: RGB [H, W, 3].
            expressions: What to ask first, and what next.
            threads: CPU threads; None for PyTorch's own choice.
            files: The weight files of a bundle that was made from a checkpoint; None for others.
            compiled: Compile the blocks that repeat with `torch.compile`, at the first call.
            precision: "fp32", or "bf16": autocast, the weights of layers that multiply converted
                once.

        Returns:
            What measures once: the seconds of a first mask, and of a next expression.
        """

    def ReferenceSegmenter(  # noqa: N802
        self,
        files: Files,
        threads: int | None = None,
        device: str = "auto",
        family: str | None = None,
        chosen: Mapping[str, str] | None = None,
    ) -> Any:
        """The model of weight files, which answers questions, for `ris-eval --pytorch`.

        Args:
            files: The weight files.
            threads: CPU threads; None: all cores.
            device: "cpu", "cuda", "gpu", or "auto" for a CUDA GPU where there is one.
            family: The name of the checkpoint's family; None for what its keys say.
            chosen: What was chosen of the family's `choices`, by field; None for nothing.
        """

    def calibrate_weights(
        self,
        model: Mapping[str, Any],
        samples: Callable[[], Any],
        out: Path,
        running: Mapping[str, Any],
    ) -> Mapping[str, tuple[float, float]]:
        """Writes levels for a model's matrices, for `ris-calibrate weights`.

        Args:
            model: What the command line says of the model and of its matrices' formats, by the
                fields of `ris.export.request.Request`.
            samples: Makes a `ris.calibration.samples.SampleSet`, when the options are found to fit
                together.
            out: The file to write.
            running: The fields of `ris.export.weight_calibration.Running`.

        Returns:
            By matrix what rounding it changed in its products: with the nearest levels, and with
            those of the file.
        """


class PyTorchProducts(Protocol):
    """What the entry point `products` offers."""

    def products(
        self, left: np.ndarray, right: np.ndarray, threads: int | None
    ) -> dict[str, Callable[[], Any]]:
        """PyTorch's matrix products by precision, for the benchmark's floor."""


def family_choices() -> tuple[Choice, ...]:
    """What a person may choose of any family, as the entry point `families` says.

    Empty where no installed package has it: commands ask while they are imported.
    """
    for entry in metadata.entry_points(group=GROUP, name="families"):
        return cast(Families, entry.load()).all_choices()
    return ()


def family_names() -> tuple[str, ...]:
    """The names of the families that can be exported, as the entry point `families` says.

    Empty where no installed package has it.
    """
    for entry in metadata.entry_points(group=GROUP, name="families"):
        return tuple(cast(Families, entry.load()).FAMILIES)
    return ()


def pytorch_reference() -> PyTorchReference:
    """The entry point `reference`. Raises RisError where no installed package has it."""
    return cast(PyTorchReference, _load("reference"))


def pytorch_products() -> PyTorchProducts:
    """The entry point `products`. Raises RisError where no installed package has it."""
    return cast(PyTorchProducts, _load("products"))


def require_pytorch(flag: str) -> None:
    """Raises RisError, naming the flag, where PyTorch is not installed."""
    if importlib.util.find_spec("torch") is None:
        raise RisError(f"{flag} needs PyTorch: {pip_install('cpu', 'export')}")


def _load(name: str) -> Any:
    for entry in metadata.entry_points(group=GROUP, name=name):
        return entry.load()
    raise RisError(f"no installed package has the entry point {name!r} of {GROUP}; install again")
