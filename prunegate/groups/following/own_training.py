"""Whether a model's own code does more in training than to drop at random what it computes anyway.

Runs in training mode are made without following them, which is quick. What counts is which functions are called, and
where in the code: if nothing but noise and dropping is new, training says nothing about which channels go together.
Where few modules look at the mode, only these run, on inputs of the forms that they had in eval mode: if they return
the same forms again, the rest of the model runs as it did.
"""

from __future__ import annotations

import ast
import inspect
import logging
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache
from types import CodeType, FunctionType, ModuleType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from prunegate.groups.following.code_places import line_in_code
from prunegate.groups.following.inputs import ExampleInputs
from prunegate.groups.following.lines_run import Functions, as_called
from prunegate.groups.following.maskable import function_name
from prunegate.groups.following.outputs import Form, forms_of, names_of_state
from prunegate.groups.following.running import running_unfollowed
from prunegate.groups.following.source_code import definition, is_of
from prunegate.groups.following.tape import Record, Span, Tape, Value, map_tensors, map_values, values_in
from prunegate.groups.torch_workarounds.copies import copy_with, modules_by_path, the_same
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


def own_training(
    model: nn.Module,
    inputs: ExampleInputs,
    usual: Functions,
    returned: Collection[Form],
    fake_tensors: FakeTensors,
    tape: Tape | None = None,
    ran: Collection[str] = (),
) -> OwnTraining:
    """What training does beyond a run in eval mode, as quick runs in training mode show.

    Args:
        model: Its tensors are ``fake_tensors``.
        usual: What the run in eval mode called.
        returned: What it returned. What training returns besides counts as well, also if eval mode computes it.
        tape, ran: The run in eval mode, and the paths of the modules that ran.
    """
    outermost = _modules_that_look(model)
    if not outermost:
        return OwnTraining()
    if tape is not None and fake_tensors.kind != "real" and inputs.batch_size() > 1:
        calls = _calls_of(outermost, tape, ran)
        if calls is not None and _only_drops(calls, tape, usual, fake_tensors, inputs.batch_size()):
            return OwnTraining()
    kept = _recorded(model, inputs, usual, fake_tensors, "none")
    if kept is None or not kept[2].issubset(returned):
        return OwnTraining(does_more=True)
    recorder, draws, _ = kept
    ways: tuple[Dropped, ...] = ("even", "odd") if draws else ()
    others = [_recorded(model, inputs, usual, fake_tensors, way) for way in ways]
    return OwnTraining(recorder.more, any(other is None or other[0].calls != recorder.calls for other in others))


def _calls_of(
    modules: Mapping[str, nn.Module], tape: Tape, ran: Collection[str]
) -> list[tuple[nn.Module, Span]] | None:
    """The calls of these modules; None if they were not recorded, or if they are most of the run."""
    calls = [
        (modules[span.target], span) for span in tape.spans if isinstance(span.target, str) and span.target in modules
    ]
    num_operations = sum(span.last - span.first for _, span in calls)
    recorded = {span.target for _, span in calls}
    if 2 * num_operations > len(tape.operations) or any(path in ran for path in modules if path not in recorded):
        return None
    return calls


def _only_drops(
    calls: Sequence[tuple[nn.Module, Span]], tape: Tape, usual: Functions, fake_tensors: FakeTensors, samples: int
) -> bool:
    """Whether modules only drop entries or add noise when they are called in training mode."""

    def like(value: Value) -> torch.Tensor:
        form = torch.empty(tape.shapes[value.number], dtype=tape.dtypes[value.number], device="meta")
        return fake_tensors.of(form)

    recorder, draws = _Recorder(usual, samples), ScalarDraws("none")
    copies = {id(module): copy_with(module, the_same).train() for module, _ in calls}
    if any(_has_objects((span.args, span.kwargs)) for _, span in calls):
        return False
    arguments = [(map_values(span.args, like), map_values(span.kwargs, like)) for _, span in calls]
    try:
        with running_unfollowed(fake_tensors), draws, recorder:
            for (module, span), (args, kwargs) in zip(calls, arguments, strict=True):
                result = copies[id(module)](*args, **kwargs)
                expected = [(tape.shapes[v.number], tape.dtypes[v.number]) for v in values_in(span.result)]
                if expected != _forms(result):
                    return False
    except Exception as error:  # a foreign forward may raise anything
        logger.info("a module did not run by itself in training mode: %s", error)
        return False
    return not recorder.more and not draws.count


def _forms(tree: Any) -> list[tuple[tuple[int, ...], torch.dtype]]:
    forms: list[tuple[tuple[int, ...], torch.dtype]] = []
    map_tensors(tree, lambda tensor: forms.append((tuple(tensor.shape), tensor.dtype)))
    return forms


def _has_objects(tree: Any) -> bool:
    """Whether recorded arguments contain objects that would have to be made anew."""
    if isinstance(tree, dict):
        return any(map(_has_objects, tree.values()))
    return any(map(_has_objects, tree)) if isinstance(tree, list | tuple) else isinstance(tree, Record)


def _recorded(
    model: nn.Module, inputs: ExampleInputs, usual: Functions, fake_tensors: FakeTensors, dropped: Dropped
) -> tuple[_Recorder, int, frozenset[Form]] | None:
    """What a run in training mode calls, how many single numbers it draws, what it returns; None if the run fails."""
    inputs = inputs.alone() if inputs.batch_size() > 1 else inputs.alone().doubled()
    inputs = inputs.map(fake_tensors.of)
    recorder, draws = _Recorder(usual, inputs.batch_size()), ScalarDraws(dropped)
    try:
        with running_unfollowed(fake_tensors), draws, recorder:
            outputs = copy_with(model, the_same).train()(*inputs.args, **inputs.kwargs)
    except Exception as error:  # a foreign forward may raise anything
        logger.info("a run in training mode failed: %s", error)
        return None
    return recorder, draws.count, forms_of(outputs, names_of_state(model))


def _modules_that_look(model: nn.Module) -> dict[str, nn.Module]:
    """The outermost modules whose code, other than that of torch's own layers, looks at which mode it is in.

    What hooks and replaced forwards do does not show, so they count as if they looked.
    """
    modules = modules_by_path(model)
    classes: set[Any] = {type(module) for _, module in modules}
    looking = {cls for cls in classes if _looks_at_training(cls)}
    outermost: dict[str, nn.Module] = {}
    inside: tuple[str, ...] = ()
    for path, module in modules:  # a module comes before those in it
        looks = (
            type(module) in looking or module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)
        )
        if looks and not (inside and path.startswith(inside)):
            outermost[path] = module
            inside = (*inside, f"{path}." if path else "")
    return outermost


@lru_cache(maxsize=4096)
def _looks_at_training(cls: type) -> bool:
    return any(
        "train" in vars(base) or any(map(_asks_for_training, vars(base).values()))
        for base in cls.__mro__
        if not is_of(base, "torch.") and base is not object
    )


def _asks_for_training(member: Any) -> bool:
    """Whether a function, or one of those of Python code that it calls by name, looks at the mode.

    To hand it on to dropout is not to look at it.
    """
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
        codes, names = [function.__code__], False
        while codes:
            code = codes.pop()
            names = names or "training" in code.co_names or "training" in code.co_consts
            codes += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
            pending += [function.__globals__.get(name) for name in code.co_names]
        if names and not _hands_on(function):
            return True
    return False


def _hands_on(function: FunctionType) -> bool:
    """Whether all that a function does with the mode is to hand it to dropout, or to functions that do the same."""
    tree = definition(function.__code__)
    if tree is None:
        return False
    handed: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = _called(node.func, function)
            by_place = _names_of(called)[: len(node.args)]
            given = [*zip(by_place, node.args, strict=False), *((k.arg, k.value) for k in node.keywords)]
            modes = [value for name, value in given if _is_mode(value) and name == "training"]
            if modes and (called in _DROPOUT or (isinstance(called, FunctionType) and _hands_on(called))):
                handed.update(map(id, modes))
    return all(
        id(node) in handed
        for node in ast.walk(tree)
        if _is_mode(node) or (isinstance(node, ast.Constant) and node.value == "training")
    )


def _is_mode(node: ast.AST) -> bool:
    return (isinstance(node, ast.Attribute) and node.attr == "training") or (
        isinstance(node, ast.Name) and node.id == "training"
    )


def _called(expression: ast.expr, function: FunctionType) -> Any:
    """The object that an expression in a function's code calls, as far as its module's names show it."""
    if isinstance(expression, ast.Name):
        return function.__globals__.get(expression.id)
    if isinstance(expression, ast.Attribute) and isinstance(expression.value, ast.Name):
        holder = function.__globals__.get(expression.value.id)
        return getattr(holder, expression.attr, None) if isinstance(holder, ModuleType) else None
    return None


def _names_of(called: Any) -> list[str]:
    if not isinstance(called, FunctionType):
        return []
    return list(inspect.signature(called).parameters)


_DROPOUT = (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout)
