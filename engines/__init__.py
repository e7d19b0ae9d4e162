"""The engines: one file for each, one contract (`base`) and one table (`table`)."""

from ris.engines.base import (
    Compiled,
    DeviceValue,
    Engine,
    EngineOptions,
    Graph,
    HostStep,
    Progress,
    Session,
    SessionInfo,
    TensorSpec,
    Value,
    silent,
)
from ris.engines.table import (
    COMPUTES,
    DEVICE_NAMES,
    ENGINE_NAMES,
    TABLE,
    EngineSpec,
    create,
    select,
)

__all__ = [
    "COMPUTES",
    "DEVICE_NAMES",
    "ENGINE_NAMES",
    "TABLE",
    "Compiled",
    "DeviceValue",
    "Engine",
    "EngineOptions",
    "EngineSpec",
    "Graph",
    "HostStep",
    "Progress",
    "Session",
    "SessionInfo",
    "TensorSpec",
    "Value",
    "create",
    "select",
    "silent",
]
