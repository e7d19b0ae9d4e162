"""One file per engine behind one contract (`base`) and one table (`table`)."""

from ris.engines.base import Engine, EngineOptions, Graph, Session, SessionInfo, TensorSpec
from ris.engines.table import DEVICE_NAMES, ENGINE_NAMES, TABLE, EngineSpec, create, select

__all__ = [
    "DEVICE_NAMES",
    "ENGINE_NAMES",
    "TABLE",
    "Engine",
    "EngineOptions",
    "EngineSpec",
    "Graph",
    "Session",
    "SessionInfo",
    "TensorSpec",
    "create",
    "select",
]
