"""What goes in and out of a session: arrays, values on the device, changes by the host."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np


class DeviceValue(ABC):
    """An array that stayed on the device.

    `Session.run_and_keep` returns it, and another session of the same engine takes it as an input.
    The value owns its device memory. `close` gives the memory back, and so does Python when nothing
    refers to the value any more.
    """

    shape: tuple[int, ...]
    """The length of each axis."""

    dtype: np.dtype
    """The dtype of the elements."""

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    @abstractmethod
    def numpy(self) -> np.ndarray:
        """A copy on the host.

        Raises:
            EngineError: Where the copy fails or the value is closed.
        """

    @abstractmethod
    def close(self) -> None:
        """Gives the device memory back; may be called twice."""


Value = np.ndarray | DeviceValue
"""What goes in and out of a session: an array, or a value that stayed on the device."""


@dataclass(frozen=True)
class HostStep:
    """A change that the host makes to an output before another graph takes it.

    It works map by map, so that a device can send and fetch some maps while the host changes
    others.
    """

    function: Callable[[np.ndarray], np.ndarray]
    """float32 [n, h, w] -> [n, H, W]; each map is changed without regard to the others."""

    size: tuple[int, int]
    """(H, W), the size of a map after the change."""

    def __call__(self, value: np.ndarray) -> np.ndarray:
        """value [..., h, w] -> [..., H, W]."""
        maps = value.reshape(-1, *value.shape[-2:])
        return self.function(maps).reshape(*value.shape[:-2], *self.size)


NO_STEPS: Mapping[str, HostStep] = {}
"""The `host_steps` of a run whose outputs the host does not change."""
