"""The table of engines.

Validation, help texts, error messages and `auto` all read it; there is no second list.
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
from ris.engines.devices import CUDA, kind_of, require_device
from ris.engines.errors import EngineError
from ris.engines.processor import cpu_features

COMPUTES = ("fp32", "bf16", "fp16")
"""What `EngineOptions.compute` takes."""

# what every engine honours; any other option has to be in its row
_COMMON_OPTIONS = ("device", "threads", "strict", "max_batch", "max_expressions", "build", "exact")


@dataclass(frozen=True)
class EngineSpec:
    """A row of the table: what is known about an engine before it is imported."""

    name: str
    """What `engine=` and `--engine` take."""

    devices: tuple[str, ...]
    """The devices that it runs on; the first is its "auto"."""

    precisions: tuple[str, ...]
    """The precisions that its graphs may have."""

    extras: tuple[str, ...]
    """The pip extras that bring it; one of them is enough."""

    package: str
    """The package that it imports."""

    distributions: tuple[str, ...]
    """The distributions on the index that bring `package`; at most one may be installed."""

    module: str
    """Our module with its `ENGINE`."""

    needs_gathers: bool = False
    """Whether it takes only graphs that sample by gathers, since its GridSample is not reliable."""

    options: tuple[str, ...] = ()
    """The fields of `EngineOptions` that it honours beyond those that every engine honours."""

    auto_features: tuple[str, ...] = ()
    """CPU features without which "auto" passes over it.

    Only with them it was measured to be faster than the rows below.
    """

    cuda_provider: str | None = None
    """The provider of ONNX Runtime that it needs on a CUDA GPU; None for other packages."""

    fixed_shapes: tuple[str, ...] = ()
    """Devices on which it is faster where every shape is known.

    There a graph for one expression was measured to be faster than one for several.
    """

    def installed(self) -> dict[str, str]:
        """The distributions that are installed, with the version of each."""
        found = {}
        for name in self.distributions:
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                found[name] = importlib.metadata.version(name)
        return found

    def conflict(self) -> str | None:
        """Why the installation cannot be trusted, or None where it can.

        Two distributions of one package overwrite each other's files.
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

    def lacks_cuda(self) -> str | None:
        """Why the engine, which is installed, does not run on a CUDA GPU here; None where it may.

        An onnxruntime for CPUs has the same name as one for GPUs, so its providers are asked.
        """
        if self.cuda_provider is not None:
            try:
                from ris.engines.onnxruntime import provider_problem

                problem = provider_problem(self.cuda_provider)
            except Exception as error:
                return f"it is installed but broken: {first_line(error)}"
            if problem:
                return problem
        return driver_problem()

    def passed_over(self, device: str) -> str | None:
        """Why "auto" does not take the row for `device` here, or None where it may."""
        kind = kind_of(device)
        if kind not in ("auto", *self.devices):
            return f"it has no device {device!r}"
        if reason := self.unusable() or (self.lacks_cuda() if kind == CUDA else None):
            return reason
        if kind not in ("auto", "cpu"):
            return None
        lacking = [name for name in self.auto_features if name not in cpu_features()]
        return f"this CPU has no {', '.join(lacking)}, with which it is faster" if lacking else None


TABLE: tuple[EngineSpec, ...] = (
    EngineSpec(
        name="openvino",
        devices=("cpu", "gpu", "npu"),
        precisions=("fp32", "bf16", "fp16"),
        extras=("openvino",),
        package="openvino",
        distributions=("openvino",),
        module="ris.engines.openvino",
        options=("compute", "low_memory", "throughput", "int8_activations"),
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
        options=("low_memory", "int8_activations"),
        cuda_provider="CUDAExecutionProvider",
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
        options=(
            "workspace",
            "version_compatible",
            "hardware_compatible",
            "strip_weights",
            "cuda_graphs",
        ),
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
        cuda_provider="TensorrtExecutionProvider",
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
        options=("workspace", "cuda_graphs"),
    ),
)

"""The engines, in the order in which "auto" takes them."""

ENGINE_NAMES: tuple[str, ...] = ("auto", *(row.name for row in TABLE))
"""What `engine=` and `--engine` take."""

DEVICE_NAMES: tuple[str, ...] = (
    "auto",
    *dict.fromkeys(device for row in TABLE for device in row.devices),
)
"""What `device=` and `--device` take, and "cuda:1" and so on for one of several GPUs."""


def select(name: str = "auto", device: str = "auto") -> EngineSpec:
    """The row called `name`, or the row that "auto" takes.

    "auto" takes the first row that is installed, has a device here, and has `device` here (unless
    that is "auto" too). Where it would run on the CPU, the CPU also needs the row's
    `auto_features`. An engine that is asked for by name is never replaced by another.

    Raises:
        EngineError: For an unknown name or device, for an engine that is not installed, and where
            "auto" finds none.
    """
    require_device(device, DEVICE_NAMES)
    if name == "auto":
        for row in TABLE:
            if row.passed_over(device) is None:
                return row
        reasons = "; ".join(f"{row.name}: {row.passed_over(device)}" for row in TABLE)
        raise EngineError(f"no engine runs here: {reasons}")

    for row in TABLE:
        if row.name == name:
            if reason := row.missing():
                raise EngineError(f"engine {name!r} cannot run here: {reason}")
            return row
    raise EngineError(f"there is no engine {name!r}; this version has {', '.join(ENGINE_NAMES)}")


def create(name: str = "auto", options: EngineOptions | None = None) -> Engine:
    """An engine that is ready to compile and open graphs.

    Raises:
        EngineError: As in `select`; for a device that the engine does not have, and for an option
            that it does not honour or that is out of range; for an installation that is broken.
    """
    options = options or EngineOptions()
    row = select(name, options.device)
    if options.device == "auto":
        options = replace(options, device=row.devices[0])
    _require_honoured(options, row)
    try:
        make = importlib.import_module(row.module).ENGINE
    except Exception as error:
        raise EngineError(
            f"engine {row.name!r} is installed but broken: {first_line(error)}; install"
            f" {row.package!r} again"
        ) from error
    engine: Engine = make(options)
    return engine


def _require_honoured(options: EngineOptions, row: EngineSpec) -> None:
    """Raises EngineError for options that the engine does not honour or that are out of range."""
    if kind_of(options.device) not in row.devices:
        raise EngineError(
            f"engine {row.name!r} has no device {options.device!r}; it has {', '.join(row.devices)}"
        )

    honoured = (*_COMMON_OPTIONS, *row.options)
    refused = [
        field.name
        for field in fields(options)
        if field.name not in honoured and getattr(options, field.name) != field.default
    ]
    if refused:
        raise EngineError(
            f"engine {row.name!r} has no option {', '.join(refused)}; leave it out, or ask for an"
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
