"""Does an engine really run here? A one-node graph goes through it from file to result.

The graph is ONNX's protobuf written out by hand, since the runtime has no onnx package; a test
compares it with what that package writes.
"""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ris.engines.base import EngineOptions, Graph, TensorSpec, first_line
from ris.engines.errors import EngineError
from ris.engines.table import create, select
from ris.engines.wire import number, part, text

_INPUT, _OUTPUT = TensorSpec("x", "float32", (4,)), TensorSpec("y", "float32", (4,))
_FLOAT, _IR_VERSION, _OPSET = 1, 9, 20


@dataclass(frozen=True)
class Probe:
    """What the one-node graph showed of an engine on one device."""

    engine: str
    """The engine's name in the table."""

    device: str
    """The device, as `EngineOptions.device` names it."""

    version: str | None
    """The engine's version; None where it does not run."""

    providers: tuple[str, ...]
    """What executed the node, as in `SessionInfo.providers`; empty where it does not run."""

    problem: str | None
    """Why the engine does not run there, None where it does."""


def probe(name: str, device: str = "cpu") -> Probe:
    """Runs the one-node graph on an engine; what goes wrong is in the answer, nothing is raised."""
    try:
        if reason := select(name).unusable():
            raise EngineError(reason)
        engine = create(name, EngineOptions(device, threads=1))
        with tempfile.TemporaryDirectory(prefix="ris-probe-") as folder:
            path = Path(folder) / "probe.onnx"
            path.write_bytes(one_node_graph())
            graph = Graph("probe", path, (_INPUT,), (_OUTPUT,), cache=Path(folder))
            with engine.load(graph) as session:
                x = np.array([-1.5, 0, 0.25, 3], np.float32)
                y = session.run({"x": x})["y"]
                if not np.array_equal(y, x + x):
                    raise EngineError(f"it computes {y.tolist()} where {(x + x).tolist()} is right")
                return Probe(name, device, session.info.version, session.info.providers, None)
    except Exception as error:
        return Probe(name, device, None, (), first_line(error))


def probe_apart(name: str, device: str = "cpu", timeout: float = 120) -> Probe:
    """`probe` in a process of its own, so that an engine that crashes or hangs is an answer too.

    It waits for the answer for `timeout` seconds.
    """
    command = [sys.executable, "-P", "-m", "ris.engines.probe", name, device]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        return Probe(name, device, None, (), f"it did not answer within {timeout:.0f} seconds")

    try:
        data = json.loads(done.stdout.strip().splitlines()[-1])
        return Probe(**data | {"providers": tuple(data["providers"])})
    except (ValueError, IndexError, TypeError, KeyError):
        how = f"exit code {done.returncode}"
        if done.returncode < 0:
            how = f"signal {-done.returncode} ({signal.strsignal(-done.returncode)})"
        last = done.stderr.strip().splitlines()[-1:]
        return Probe(name, device, None, (), "; ".join([f"it crashed with {how}", *last]))


def one_node_graph() -> bytes:
    """A serialised ONNX model: y = x + x, float32 [4]."""
    # NodeProto: two inputs, output, operator
    node = text(1, "x") + text(1, "x") + text(2, "y") + text(4, "Add")
    # GraphProto: node, name, input, output
    graph = part(1, node) + text(2, "probe") + part(11, _value("x")) + part(12, _value("y"))
    # OperatorSetIdProto: domain, version
    opset = text(1, "") + number(2, _OPSET)
    # ModelProto: version of the format, graph, operator set
    return number(1, _IR_VERSION) + part(7, graph) + part(8, opset)


def _value(name: str) -> bytes:
    """A ValueInfoProto: the name, and the type float32 [4]."""
    shape = part(1, number(1, 4))
    tensor = number(1, _FLOAT) + part(2, shape)
    return text(1, name) + part(2, part(1, tensor))


if __name__ == "__main__":
    print(json.dumps(dataclasses.asdict(probe(*sys.argv[1:3]))))
