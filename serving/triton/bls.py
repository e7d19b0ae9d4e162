"""Sessions that ask other models of the same server, one for each graph.

Triton calls this business logic scripting.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import triton_python_backend_utils as pb_utils

from ris.engines import Session, SessionInfo, Value
from ris.engines.base import DeviceValue
from ris.engines.errors import EngineError
from ris.runtime.bundle import Bundle


class TritonSession(Session):
    """A graph that the server runs as the model `ris_<stage>`. Values go through host memory."""

    def _run(self, feeds: Mapping[str, Value]) -> dict[str, np.ndarray]:
        inputs = []
        for spec in self.graph.inputs:
            value = feeds[spec.name]
            array = value.numpy() if isinstance(value, DeviceValue) else value
            inputs.append(pb_utils.Tensor(spec.name, np.ascontiguousarray(array)))

        names = [spec.name for spec in self.graph.outputs]
        request = pb_utils.InferenceRequest(
            model_name=f"ris_{self.graph.stage}",
            requested_output_names=names,
            inputs=inputs,
            preferred_memory=pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU, 0),
        )
        response = request.exec()
        if response.has_error():
            raise EngineError(f"{self.graph.stage}: {response.error().message()}")
        return {
            name: pb_utils.get_output_tensor_by_name(response, name).as_numpy() for name in names
        }

    def _close(self) -> None:
        pass  # the server owns the model


def triton_sessions(bundle: Bundle, graphs: str) -> dict[str, Session]:
    """A session for each stage. The models may still be loading: the first request tells."""
    info = SessionInfo(engine=f"triton {graphs}", version="", device="server", providers=(graphs,))
    return {stage: TritonSession(bundle.graph(stage), info) for stage in bundle.stages}
