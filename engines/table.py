"""The table of engines. Validation, help texts, error messages and `auto` all read it; there is no second list."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
from dataclasses import dataclass

from ris.engines.base import Engine, EngineOptions, first_line
from ris.engines.errors import EngineError


@dataclass(frozen=True)
class EngineSpec:
    """A row: name, devices, precisions its graphs may have, the pip extras that bring it, and where it lives.

    distributions: the packages on the index that bring the import `package`; at most one may be installed.
    """

    name: str
    devices: tuple[str, ...]
    precisions: tuple[str, ...]
    extras: tuple[str, ...]
    package: str
    distributions: tuple[str, ...]
    module: str

    def installed(self) -> dict[str, str]:
        """Version by name of the distributions that are installed."""
        found = {}
        for name in self.distributions:
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                found[name] = importlib.metadata.version(name)
        return found

    def conflict(self) -> str | None:
        """Why the installation cannot be trusted: two distributions that overwrite each other's files."""
        installed = self.installed()
        if len(installed) < 2:
            return None
        return (
            f"{' and '.join(installed)} are both installed and overwrite each other; "
            f"pip uninstall {' '.join(installed)}, then install one of them again"
        )

    def missing(self) -> str | None:
        """Why the engine cannot be used here, or None where its package is installed."""
        if importlib.util.find_spec(self.package) is None:
            choices = " or ".join(f'pip install "ris-runtime[{extra}]"' for extra in self.extras)
            return f"the package {self.package!r} is not installed; {choices}"
        return None


TABLE: tuple[EngineSpec, ...] = (
    EngineSpec(
        name="onnxruntime",
        devices=("cpu", "cuda"),
        precisions=("fp32", "fp16"),
        extras=("cpu", "gpu"),
        package="onnxruntime",
        distributions=("onnxruntime", "onnxruntime-gpu"),
        module="ris.engines.onnxruntime",
    ),
)

ENGINE_NAMES: tuple[str, ...] = ("auto", *(row.name for row in TABLE))
DEVICE_NAMES: tuple[str, ...] = tuple(dict.fromkeys(device for row in TABLE for device in row.devices))


def select(name: str = "auto") -> EngineSpec:
    """The row called `name`; "auto" is the first one that is installed.

    Raises EngineError for an unknown name and for an engine that is not installed: asked for by name, never replaced.
    """
    if name == "auto":
        for row in TABLE:
            if row.missing() is None:
                return row
        raise EngineError("no engine is installed: " + "; ".join(f"{row.name}: {row.missing()}" for row in TABLE))
    for row in TABLE:
        if row.name == name:
            if reason := row.missing():
                raise EngineError(f"engine {name!r} cannot run here: {reason}")
            return row
    raise EngineError(f"there is no engine {name!r}; this version has {', '.join(ENGINE_NAMES)}")


def create(name: str = "auto", options: EngineOptions | None = None) -> Engine:
    """An engine ready to open graphs. Raises EngineError as `select` does, and for a device the engine has not."""
    row = select(name)
    options = options or EngineOptions()
    if options.device not in row.devices:
        raise EngineError(f"engine {row.name!r} has no device {options.device!r}; it has {', '.join(row.devices)}")
    try:
        make = importlib.import_module(row.module).ENGINE
    except Exception as error:
        raise EngineError(
            f"engine {row.name!r} is installed but broken: {first_line(error)}; install {row.package!r} again"
        ) from error
    engine: Engine = make(options)
    return engine
