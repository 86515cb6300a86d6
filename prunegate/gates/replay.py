"""Many small operations on tensors that stay where they are, launched at once on CUDA.

The gates' own work in a step is some hundred operations on vectors. Each costs the host more time to launch than the
GPU to carry out, so from the fourth time on they are replayed as one CUDA graph.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode

logger = logging.getLogger(__name__)

# Times that the operations are run one by one first: what they allocate and load for good must not be captured.
_WARM_UP = 3


class Replay:
    """Runs one function, as a CUDA graph where it can.

    The graph belongs to this process and these very tensors; a copy of this object has none yet.
    """

    def __init__(self) -> None:
        self._forget()

    def _forget(self, key: Hashable = None) -> None:
        self._key, self._calls = key, 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._result: Any = None
        self._refused = False

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._forget()

    def __call__(self, function: Callable[[], Any], tensors: Sequence[torch.Tensor], *constants: Hashable) -> Any:
        """What ``function()`` returns. Tensors that a graph gives back are overwritten by the next call.

        Args:
            function: Reads and writes these tensors alone, in place, and waits for nothing.
            tensors: While they lie where they are, the operations are the same.
            constants: While they are equal, too.
        """
        if tensors[0].device.type != "cuda" or not _can_be_captured():
            return function()
        key = (*(tensor.data_ptr() for tensor in tensors), *constants)
        if key != self._key:
            self._forget(key)
        self._calls += 1
        if self._calls <= _WARM_UP:
            return function()
        if self._graph is None and not self._refused:
            self._capture(function, tensors[0].device)
        if self._graph is None:
            return function()
        self._graph.replay()
        return self._result

    def _capture(self, function: Callable[[], Any], device: torch.device) -> None:
        graph, present = torch.cuda.CUDAGraph(), torch.cuda.current_stream(device)
        side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        side.wait_stream(present)
        with torch.cuda.stream(side):
            # Other threads may go on to use the device meanwhile, as those that load data do.
            graph.capture_begin(capture_error_mode="thread_local")
            try:
                try:
                    self._result = function()
                finally:
                    graph.capture_end()
            except RuntimeError as reason:  # another part of the program does what no capture allows
                logger.warning("gates: their operations are launched one by one, not at once: %s", reason)
                self._refused = True
        present.wait_stream(side)
        self._graph = None if self._refused else graph


def _can_be_captured() -> bool:
    """Whether nobody captures already, and nobody looks at single operations, as counters and fake tensors do."""
    return _get_current_dispatch_mode() is None and not torch.cuda.is_current_stream_capturing()
