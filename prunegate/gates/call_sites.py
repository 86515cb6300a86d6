"""Gate sites that are function calls of the model instead of weights.

A module with such calls gets its own class, whose forward runs the module's forward under a mode that identifies calls
as tracing did, and replaces the marked ones by their masked form. The masks are buffers of the module that are empty
except during a call (`prunegate.gates.binding`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import nn

from prunegate.gates.masked_functions import call_masked
from prunegate.gates.running import RunningMode, running_modes
from prunegate.groups import MaskedCall
from prunegate.groups.following.code_places import CodePlace, place_in_code
from prunegate.groups.following.maskable import MASKABLE
from prunegate.groups.torch_workarounds.copies import COPIED_BY_ATTRIBUTES

# `prunegate.groups.function_name`, as far as needed here, in a form that compilers can trace.
_OPERATORS = {f"__{name}__": name for name in MASKABLE}
_CALLS, _MASK = "_prunegate_calls", "_prunegate_mask_"


class Marked(NamedTuple):
    """Function calls of a module that are masked; see `MaskedCall`."""

    function: str
    place: int
    numbers: tuple[int, ...]
    codes: tuple[CodePlace, ...]
    is_every: bool


class MaskCalls(RunningMode):
    """Masks the marked function calls while a module's forward runs.

    Calls are identified by their position in the code. If the calls at a position differ, or under a compiler, which
    does not know the position, they are identified by the number of earlier calls of the function.

    Args:
        masks: For each call its mask, which broadcasts over the argument.
        counts: How often each function has been called so far.
    """

    def __init__(self, calls: Sequence[Marked], masks: Sequence[torch.Tensor], counts: Mapping[str, int]) -> None:
        super().__init__()
        self.calls, self.masks, self.counts = calls, masks, dict(counts)
        self._marked: dict[str, list[tuple[Marked, torch.Tensor]]] = {}
        for call, mask in zip(calls, masks, strict=True):
            self._marked.setdefault(call.function, []).append((call, mask))

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        name = _OPERATORS.get(name, name)
        self.count(name)
        masks = self._masks_of(name, func) if name in self._marked else {}
        if not masks:
            return func(*args, **(kwargs or {}))  # the modes of outer modules count it when it reaches them
        for mode in running_modes():
            if mode is not self:
                mode.count(name)
        # Calls inside a masked form are not the model's.
        with torch._C.DisableTorchFunction():
            return call_masked(name, func, args, kwargs or {}, masks)

    def _masks_of(self, name: str, func: Callable[..., Any]) -> dict[int, torch.Tensor]:
        """Masks of the current call of a function, by index of the argument."""
        results: dict[int, torch.Tensor] = {}
        code = None
        for call, mask in self._marked[name]:
            if call.is_every:
                is_meant = True
            elif call.codes and not torch.compiler.is_compiling():
                code = code or place_in_code(func)
                is_meant = code in call.codes
            else:
                is_meant = self.counts[name] in call.numbers
            if is_meant:
                results[call.place] = results[call.place] * mask if call.place in results else mask
        return results

    def count(self, name: str) -> None:
        """Count a call of a function."""
        self.counts[name] = self.counts.get(name, 0) + 1

    def again(self) -> MaskCalls:
        """A mode that continues from the current position of this one."""
        return MaskCalls(self.calls, self.masks, self.counts)


def install_call_sites(model: nn.Module, calls: Sequence[MaskedCall]) -> list[tuple[str, MaskedCall]]:
    """Make the modules of ``model`` with masked calls apply their masks.

    Returns:
        For each call, the name of the buffer that holds its mask while it runs, in the shape of the call's units.
    """
    by_module: dict[str, list[MaskedCall]] = {}
    for call in calls:
        by_module.setdefault(call.module, []).append(call)
    placed = []
    for path, own in by_module.items():
        module = model.get_submodule(path)
        cls: Any = type(module)
        module.__class__ = _masking_class(cls)
        vars(module)[_CALLS] = tuple(
            Marked(call.function, call.place, call.indices, call.codes, call.is_every) for call in own
        )
        for number, call in enumerate(own):
            module.register_buffer(f"{_MASK}{number}", None, persistent=False)
            placed.append((f"{path}.{_MASK}{number}".removeprefix("."), call))
    return placed


def remove_call_sites(model: nn.Module) -> None:
    """Restore the class and forward of every module."""
    for module in model.modules():
        calls = vars(module).pop(_CALLS, None)
        if calls is not None:
            module.__class__ = type(module).__bases__[0]
            for number in range(len(calls)):
                del module._buffers[f"{_MASK}{number}"]


@lru_cache(maxsize=4096)
def _masking_class(cls: Any) -> type[nn.Module]:
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls = getattr(self, _CALLS)
        masks = [getattr(self, f"{_MASK}{number}") for number in range(len(calls))]
        if masks[0] is None:  # the model is called, not the gated model
            return cls.forward(self, *args, **kwargs)
        with MaskCalls(calls, masks, {}):
            return cls.forward(self, *args, **kwargs)

    def reduce(self: Any, protocol: int) -> Any:
        # Like its original class, which pickle finds by name; this class is created again on loading.
        made, arguments, *state = cls.__reduce_ex__(self, protocol)
        return _unpickled, (cls, made, tuple(cls if a is type(self) else a for a in arguments)), *state

    body = {"forward": forward, "__reduce_ex__": reduce, "__module__": cls.__module__, "__qualname__": cls.__qualname__}
    return type(cls.__name__, (cls,), {**body, "__doc__": cls.__doc__, COPIED_BY_ATTRIBUTES: True})


def _unpickled(cls: Any, made: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    masking = _masking_class(cls)
    return made(*(masking if argument is cls else argument for argument in arguments))
