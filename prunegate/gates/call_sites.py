"""Gate sites that are no weights: function calls of the model that must leave units out.

A module with such calls gets a class of its own whose forward runs the module's forward under a mode
that counts calls as tracing did, and swaps the marked ones for their masked form. Nothing else is
touched, so it costs nothing elsewhere, and recomputation by activation checkpointing meets it too.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from prunegate.gates.masked_functions import call_masked
from prunegate.groups import MaskedCall, function_name

_ATTRIBUTE = "_masked_calls"


class CallSites:
    """The masked calls of one module, and the masks they use until the next are set."""

    def __init__(self, calls: Sequence[MaskedCall]) -> None:
        self.calls = list(calls)
        self.masks: tuple[torch.Tensor, ...] = ()

    def at(self, function: str, index: int) -> dict[int, torch.Tensor]:
        """Masks of the how-manieth call of a function, by number of the argument."""
        found: dict[int, torch.Tensor] = {}
        for call, mask in zip(self.calls, self.masks, strict=False):
            if call.address.function == function and call.address.index == index:
                shaped = mask.reshape(call.units.shape)
                found[call.place] = found[call.place] * shaped if call.place in found else shaped
        return found

    def __getstate__(self) -> dict[str, Any]:
        """Without the masks: they may belong to an autograd graph, which cannot be copied."""
        return {"calls": self.calls, "masks": ()}


class _MaskCalls(TorchFunctionMode):
    """Counts the calls of every function while a module's forward runs, and masks those that are marked."""

    _local = threading.local()

    def __init__(self, sites: CallSites) -> None:
        super().__init__()
        self._sites = sites
        self._marked = {call.address.function for call in sites.calls}
        self._counts: Counter[str] = Counter()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = function_name(func)
        self._counts[name] += 1
        masks = self._sites.at(name, self._counts[name]) if name in self._marked else {}
        if not masks:
            return func(*args, **(kwargs or {}))  # the modes of outer modules count it as it passes them
        for mode in self._running():
            if mode is not self:
                mode._counts[name] += 1
        # What a masked form calls itself is not the model's.
        with torch._C.DisableTorchFunction():
            return call_masked(name, func, args, kwargs or {}, masks)

    @classmethod
    def _running(cls) -> list[_MaskCalls]:
        """The modes of all running modules, in this thread."""
        if not hasattr(cls._local, "modes"):
            cls._local.modes = []
        modes: list[_MaskCalls] = cls._local.modes
        return modes

    def __enter__(self) -> _MaskCalls:
        self._running().append(self)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exception: Any) -> None:
        self._running().remove(self)
        super().__exit__(*exception)  # type: ignore[no-untyped-call]


def install_call_sites(model: nn.Module, calls: Sequence[MaskedCall]) -> list[CallSites]:
    """Make the modules of ``model`` that issue masked calls heed masks."""
    by_module: dict[str, list[MaskedCall]] = {}
    for call in calls:
        by_module.setdefault(call.address.module, []).append(call)
    installed = []
    for path, own in by_module.items():
        module = model.get_submodule(path)
        sites = CallSites(own)
        setattr(module, _ATTRIBUTE, sites)
        module.__class__ = _masking_class(type(module))
        installed.append(sites)
    return installed


def remove_call_sites(model: nn.Module) -> None:
    """Give every module its own class and forward back."""
    for module in model.modules():
        if _ATTRIBUTE in vars(module):
            delattr(module, _ATTRIBUTE)
            module.__class__ = type(module).__bases__[0]


def _masking_class(cls: type[nn.Module]) -> type[nn.Module]:
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        sites = getattr(self, _ATTRIBUTE)
        if not sites.masks:
            return cls.forward(self, *args, **kwargs)
        with _MaskCalls(sites):
            return cls.forward(self, *args, **kwargs)

    return type(cls.__name__, (cls,), {"forward": forward, "__module__": cls.__module__})
