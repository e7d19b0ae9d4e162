"""The table of engines. Validation, help texts, error messages and `auto` all read it; there is no
second list.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
from dataclasses import dataclass, fields, replace

from ris import pip_install
from ris.engines.base import Engine, EngineOptions, first_line
from ris.engines.cuda import driver_problem
from ris.engines.errors import EngineError
from ris.engines.processor import cpu_features

COMPUTES = ("fp32", "bf16", "fp16")
# what every engine honours; the rest has to be in its row
_COMMON_OPTIONS = ("device", "threads", "strict", "max_batch", "max_expressions", "build")


@dataclass(frozen=True)
class EngineSpec:
    """A row: name, devices, precisions its graphs may have, the pip extras that bring it, and where
    it lives.

    distributions: the packages on the index that bring the import `package`; at most one may be
    installed. needs_gathers: its GridSample is not to be trusted, so it takes graphs that sample
    with gathers only; options: which EngineOptions it honours beyond the common ones;
    auto_features: CPU features without which "auto" passes over it, since only with them it was
    measured to be faster than the rows below; fixed_shapes: devices on which a graph for a single
    expression, whose every shape is known, was measured to be faster than one for several.
    """

    name: str
    devices: tuple[str, ...]
    precisions: tuple[str, ...]
    extras: tuple[str, ...]
    package: str
    distributions: tuple[str, ...]
    module: str
    needs_gathers: bool = False
    options: tuple[str, ...] = ()
    auto_features: tuple[str, ...] = ()
    fixed_shapes: tuple[str, ...] = ()

    def installed(self) -> dict[str, str]:
        """Version by name of the distributions that are installed."""
        found = {}
        for name in self.distributions:
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                found[name] = importlib.metadata.version(name)
        return found

    def conflict(self) -> str | None:
        """Why the installation cannot be trusted: two distributions that overwrite each other's
        files.
        """
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
            choices = " or ".join(pip_install(extra) for extra in self.extras)
            return f"the package {self.package!r} is not installed; {choices}"
        return None

    def unusable(self) -> str | None:
        """Why the engine cannot run graphs here: not installed, or no device that it runs on."""
        return self.missing() or (None if "cpu" in self.devices else driver_problem())

    def passed_over(self, device: str) -> str | None:
        """Why "auto" does not take the row for `device` here, or None where it may."""
        if device not in ("auto", *self.devices):
            return f"it has no device {device!r}"
        if reason := self.unusable():
            return reason
        lacking = (
            []
            if device not in ("auto", "cpu")
            else [f for f in self.auto_features if f not in cpu_features()]
        )
        return f"this CPU has no {', '.join(lacking)}, with which it is faster" if lacking else None


# in the order in which "auto" takes them
TABLE: tuple[EngineSpec, ...] = (
    EngineSpec(
        name="openvino",
        devices=("cpu", "gpu", "npu"),
        precisions=("fp32", "bf16", "fp16"),
        extras=("openvino",),
        package="openvino",
        distributions=("openvino",),
        module="ris.engines.openvino",
        options=("compute", "low_memory", "throughput"),
        auto_features=("avx512f",),
        fixed_shapes=("cpu",),
    ),
    EngineSpec(
        name="onnxruntime",
        devices=("cpu", "cuda"),
        precisions=("fp32", "bf16", "fp16"),
        extras=("cpu", "gpu"),
        package="onnxruntime",
        distributions=("onnxruntime", "onnxruntime-gpu"),
        module="ris.engines.onnxruntime",
        options=("low_memory",),
    ),
    EngineSpec(
        name="tensorrt",
        devices=("cuda",),
        precisions=("fp32", "fp16"),
        extras=("tensorrt",),
        package="tensorrt",
        distributions=("tensorrt-cu12", "tensorrt-cu13"),
        module="ris.engines.tensorrt",
        needs_gathers=True,
        options=("workspace", "version_compatible", "hardware_compatible", "strip_weights"),
    ),
    EngineSpec(
        name="onnxruntime-tensorrt",
        devices=("cuda",),
        precisions=("fp32", "fp16"),
        extras=("gpu",),
        package="onnxruntime",
        distributions=("onnxruntime", "onnxruntime-gpu"),
        module="ris.engines.onnxruntime_tensorrt",
        needs_gathers=True,
        options=("workspace", "hardware_compatible"),
    ),
    EngineSpec(
        name="tensorrt-rtx",
        devices=("cuda",),
        precisions=("fp32", "fp16"),
        extras=("tensorrt-rtx",),
        package="tensorrt_rtx",
        distributions=("tensorrt-rtx-cu12", "tensorrt-rtx-cu13"),
        module="ris.engines.tensorrt_rtx",
        needs_gathers=True,
        options=("workspace",),
    ),
)

ENGINE_NAMES: tuple[str, ...] = ("auto", *(row.name for row in TABLE))
DEVICE_NAMES: tuple[str, ...] = (
    "auto",
    *dict.fromkeys(device for row in TABLE for device in row.devices),
)


def select(name: str = "auto", device: str = "auto") -> EngineSpec:
    """The row called `name`; "auto" is the first one of the table that is installed, has a device
    here, has `device` unless that is "auto" too, and is known to be faster here than the rows below
    it.

    Raises EngineError for an unknown name and for an engine that is not installed: asked for by
    name, never replaced.
    """
    if name == "auto":
        for row in TABLE:
            if row.passed_over(device) is None:
                return row
        raise EngineError(
            "no engine runs here: " + "; ".join(f"{r.name}: {r.passed_over(device)}" for r in TABLE)
        )
    for row in TABLE:
        if row.name == name:
            if reason := row.missing():
                raise EngineError(f"engine {name!r} cannot run here: {reason}")
            return row
    raise EngineError(f"there is no engine {name!r}; this version has {', '.join(ENGINE_NAMES)}")


def create(name: str = "auto", options: EngineOptions | None = None) -> Engine:
    """An engine ready to compile and open graphs.

    Raises EngineError as `select` does, for a device that the engine has not, and for an option it
    does not honour.
    """
    options = options or EngineOptions()
    row = select(name, options.device)
    if options.device == "auto":
        options = replace(options, device=row.devices[0])
    if options.device not in row.devices:
        raise EngineError(
            f"engine {row.name!r} has no device {options.device!r}; it has {', '.join(row.devices)}"
        )
    honoured = (*_COMMON_OPTIONS, *row.options)
    asked = [
        f.name
        for f in fields(options)
        if f.name not in honoured and getattr(options, f.name) != f.default
    ]
    if asked:
        raise EngineError(
            f"engine {row.name!r} has no option {', '.join(asked)}; leave it out, or ask for an"
            " engine that has"
        )
    if options.compute not in (None, *COMPUTES):
        raise EngineError(
            f"there is no precision {options.compute!r}; known are {', '.join(COMPUTES)}"
        )
    if min(options.max_batch, options.max_expressions) < 1:
        raise EngineError(
            f"max_batch and max_expressions must be at least 1, got {options.max_batch} and"
            f" {options.max_expressions}"
        )
    try:
        make = importlib.import_module(row.module).ENGINE
    except Exception as error:
        raise EngineError(
            f"engine {row.name!r} is installed but broken: {first_line(error)}; install"
            f" {row.package!r} again"
        ) from error
    engine: Engine = make(options)
    return engine
