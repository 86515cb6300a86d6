"""Replaying many small operations on the same tensors as one CUDA graph.

A step of the gates is about a hundred operations on vectors. Launching each takes longer than running it, so from the
fourth time on they are replayed as one CUDA graph.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode

logger = logging.getLogger(__name__)

# Number of eager runs before capturing, as persistent allocations and module loading must not be captured.
_WARM_UP = 3


class Replay:
    """Runs one function, as a CUDA graph if possible.

    The graph belongs to this process and these tensors; a copy of this object starts without one.
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
        """Return ``function()``. Tensors returned by a graph are overwritten by the next call.

        Args:
            function: Reads and writes only these tensors, in place, without synchronisation.
            tensors: The graph is valid as long as their addresses do not change.
            constants: The graph is valid as long as they are equal.
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
            # Other threads, such as data loaders, may use the device meanwhile.
            graph.capture_begin(capture_error_mode="thread_local")
            try:
                try:
                    self._result = function()
                finally:
                    graph.capture_end()
            except RuntimeError as reason:  # another part of the program does something that capturing forbids
                logger.warning("gates: operations are launched one by one instead of as a CUDA graph: %s", reason)
                self._refused = True
        present.wait_stream(side)
        self._graph = None if self._refused else graph


def _can_be_captured() -> bool:
    """Whether no capture is running, and no mode observes single operations, as counters and fake tensors do."""
    return _get_current_dispatch_mode() is None and not torch.cuda.is_current_stream_capturing()
