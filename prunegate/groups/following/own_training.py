"""Whether a model's own code does more in training than to drop at random what it computes anyway.

Runs in training mode are made without following them, which is quick. What counts is which functions are called, and
where in the code: if nothing but noise and dropping is new, training says nothing about which channels go together.
"""

from __future__ import annotations

import inspect
import logging
from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from types import CodeType, FunctionType
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from prunegate.groups.following.code_places import line_in_code
from prunegate.groups.following.inputs import ExampleInputs
from prunegate.groups.following.lines_run import Functions, as_called
from prunegate.groups.following.maskable import function_name
from prunegate.groups.following.running import running_unfollowed
from prunegate.groups.following.source_code import is_of
from prunegate.groups.torch_workarounds.copies import copy_with, the_same
from prunegate.groups.torch_workarounds.draws import Dropped, ScalarDraws
from prunegate.groups.torch_workarounds.fake_tensors import FakeTensors

logger = logging.getLogger(__name__)

# New in training, these work on each entry by itself.
_HARMLESS = frozenset(
    """add add_ iadd radd sub sub_ isub rsub mul mul_ imul rmul div div_ truediv itruediv rtruediv floor floor_ lt gt le
    ge item to type_as clone detach contiguous float half double dropout dropout_ bernoulli bernoulli_ rand_like
    randn_like empty_like zeros_like ones_like uniform_ normal_ get size dim numel is_floating_point bool""".split()
)
# So do tensors of these, of one number for each sample.
_MAKING = frozenset("new_zeros new_ones new_empty new_full zeros ones empty full rand randn".split())


class OwnTraining(NamedTuple):
    """What code of a model, other than torch's own layers, does in training and did not do in a run in eval mode.

    Attributes:
        does_more: It does something that has to do with channels.
        skips: It skips some of what eval mode does, where a draw says so.
    """

    does_more: bool = False
    skips: bool = False


class _Recorder(TorchFunctionMode):
    """Notes which functions a run calls, and where.

    Args:
        before: What another run called.
        samples: How many samples the run is on.

    Attributes:
        calls: How often each was called.
        more: Whether one was called that has to do with channels, and that the other run did not call there.
    """

    def __init__(self, before: Functions, samples: int) -> None:
        super().__init__()
        self._before, self._samples = before, samples
        self.calls: Counter[Any] = Counter()
        self.more = False

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name, result = function_name(func), func(*args, **kwargs)
        call = as_called(name, args, kwargs, line_in_code(func))
        self.calls[call] += 1
        self.more = self.more or (call not in self._before and not self._is_harmless(name, result))
        return result

    def _is_harmless(self, name: str, result: Any) -> bool:
        if name not in _MAKING or not isinstance(result, torch.Tensor):
            return name in _HARMLESS
        return all(size == 1 for size in result.shape[1:]) and result.shape[:1].numel() in (1, self._samples)


def own_training(model: nn.Module, inputs: ExampleInputs, usual: Functions, fake_tensors: FakeTensors) -> OwnTraining:
    """What training does beyond a run in eval mode, as quick runs in training mode show.

    Args:
        model: Its tensors are ``fake_tensors``.
        usual: What the run in eval mode called.
    """
    if not _may_differ_in_training(model):
        return OwnTraining()
    kept = _recorded(model, inputs, usual, fake_tensors, "none")
    if kept is None:
        return OwnTraining(does_more=True)
    recorder, draws = kept
    ways: tuple[Dropped, ...] = ("even", "odd") if draws else ()
    others = [_recorded(model, inputs, usual, fake_tensors, way) for way in ways]
    return OwnTraining(recorder.more, any(other is None or other[0].calls != recorder.calls for other in others))


def _recorded(
    model: nn.Module, inputs: ExampleInputs, usual: Functions, fake_tensors: FakeTensors, dropped: Dropped
) -> tuple[_Recorder, int] | None:
    """What a run in training mode calls, and how many single numbers it draws; None if the run fails."""
    inputs = inputs.alone() if inputs.batch_size() > 1 else inputs.alone().doubled()
    inputs = inputs.map(fake_tensors.of)
    recorder, draws = _Recorder(usual, inputs.batch_size()), ScalarDraws(dropped)
    try:
        with running_unfollowed(fake_tensors), draws, recorder:
            copy_with(model, the_same).train()(*inputs.args, **inputs.kwargs)
    except Exception as error:  # a foreign forward may raise anything
        logger.info("a run in training mode failed: %s", error)
        return None
    return recorder, draws.count


def _may_differ_in_training(model: nn.Module) -> bool:
    """Whether code of the model, other than torch's own layers, looks at which mode it is in, as far as that shows."""
    classes: set[Any] = {type(module) for module in model.modules()}
    if any(map(_looks_at_training, classes)):
        return True
    return any(m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m) for m in model.modules())


@lru_cache(maxsize=4096)
def _looks_at_training(cls: type) -> bool:
    return any(
        "train" in vars(base) or any(map(_names_training, vars(base).values()))
        for base in cls.__mro__
        if not is_of(base, "torch.") and base is not object
    )


def _names_training(member: Any) -> bool:
    """Whether a function, or one of those of Python code that it calls by name, names the mode."""
    pending, known = [member], set[int]()
    while pending:
        one = pending.pop()
        if isinstance(one, property):
            pending += [one.fget, one.fset]
            continue
        one = getattr(one, "__func__", one)  # of a static or class method
        function = inspect.unwrap(one) if callable(one) else None
        if not isinstance(function, FunctionType) or is_of(function, "torch.") or id(function) in known:
            continue
        known.add(id(function))
        codes = [function.__code__]
        while codes:
            code = codes.pop()
            if "training" in code.co_names or "training" in code.co_consts:
                return True
            codes += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
            pending += [function.__globals__.get(name) for name in code.co_names]
    return False
