"""Learning how to correct a module's code, from runs of the cut model beside those of the dense one.

The code is the same in both, so calls are matched by their position in it. If a call of the cut model would not produce
the kept part of the dense run's result, its arguments are corrected, and the run continues.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from prunegate.compaction.attention_calls import attend_with
from prunegate.compaction.cut_sizes import CutSizes
from prunegate.compaction.needed_sizes import needed
from prunegate.compaction.resizing import resize
from prunegate.compaction.size_rules import (
    CannotRewriteError,
    Number,
    Observed,
    SizeRule,
    first_tensor,
    numbers_in,
    rules_for,
    shape_of,
)
from prunegate.groups import ExampleInputs, FakeTensors, Tape, Value, function_name, in_place_of, values_in
from prunegate.groups.following.code_places import CodePlace, place_in_code
from prunegate.groups.following.input_sizes import sizes_of
from prunegate.groups.following.running import run_watched
from prunegate.groups.following.size_calls import SIZED, SizeCall, is_scaled
from prunegate.groups.following.watch import Watch

logger = logging.getLogger(__name__)

# For each module, what was observed at each position in its code, by n-th call there.
_Seen = dict[str, dict[tuple[CodePlace, int], list[Observed]]]


def learned_rules(
    model: nn.Module, paths: Collection[str], runs: Sequence[CutSizes], inputs: ExampleInputs, kind: Any
) -> Mapping[str, tuple[SizeRule, ...]]:
    """Rules for the modules at ``paths`` of a cut model, and empty rules for submodules that these must not affect.

    Args:
        runs: The runs of the dense model after the cut, at all sizes and in all modes that were followed.
        kind: The kind of fake tensors.

    Raises:
        CannotRewriteError: Rules cannot describe what the code does.
    """
    seen: _Seen = defaultdict(lambda: defaultdict(list))
    for sizes in runs:
        _observe(model, paths, sizes, inputs, kind, seen)
    rules = {path: rules_for(list(seen[path].values())) for path in paths}
    shielded = {path for path, places in seen.items() if path not in rules and _reached(path, places.values(), rules)}
    return {**rules, **dict.fromkeys(shielded, ())}


def _reached(path: str, places: Iterable[Sequence[Observed]], rules: Mapping[str, tuple[SizeRule, ...]]) -> bool:
    """Whether rules of an enclosing module match calls of this one."""
    around = [rule for outer, some in rules.items() if path.startswith(f"{outer}." if outer else "") for rule in some]
    return any(
        rule.function == one.function and rule.fits(one.shape, one.given) and not rule.change.is_none
        for seen in places
        for one in seen
        for rule in around
    )


def _observe(
    model: nn.Module, paths: Collection[str], sizes: CutSizes, inputs: ExampleInputs, kind: Any, seen: _Seen
) -> None:
    fake_tensors = FakeTensors(kind)
    copied = _as_traced(fake_tensors.of_model(model).train(sizes.training), sizes.tape)
    for path in paths:
        resize(copied.get_submodule(path), ())  # to observe its code without rules
    given = sizes.variation.of(inputs).map(fake_tensors.of)
    learner = _Learner(sizes, frozenset(paths), seen, sizes_of(given))
    with run_watched(copied, learner, fake_tensors, sizes.variation.dropped):
        try:
            copied(*given.args, **given.kwargs)
        except CannotRewriteError:
            raise
        except Exception as error:  # a foreign forward may raise anything
            if learner.failed is not None:
                raise CannotRewriteError(str(learner.failed)) from error
            # Code outside of these modules may be at fault; try what was learned.
            logger.debug("learning stopped: %s: %s", type(error).__name__, error)


def _as_traced(model: nn.Module, tape: Tape) -> nn.Module:
    """The model with its tensors in the precisions of the trace, like its inputs."""
    dtypes = {source.name: tape.dtypes[number] for number, source in tape.sources.items() if source.kind == "stored"}
    for path, module in model.named_modules():
        for stored in (module._parameters, module._buffers):
            for name, tensor in stored.items():
                wanted = dtypes.get(f"{path}.{name}" if path else name)
                if tensor is not None and wanted is not None and tensor.dtype is not wanted:
                    stored[name] = in_place_of(tensor, tensor.detach().to(wanted))
    return model


class _Learner(Watch):
    """Traces a run of the cut model and corrects the calls of some modules.

    Attributes:
        failed: Why a call could not be corrected, or None.
    """

    def __init__(self, sizes: CutSizes, paths: frozenset[str], seen: _Seen, at: tuple[Any, Any]) -> None:
        super().__init__(None)
        self._sizes, self._paths, self._seen, self._at = sizes, paths, seen, at
        self.failed: Exception | None = None

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = function_name(func)
        if self.is_opaque or not (name in SIZED or is_scaled(name, args, kwargs)):
            return func(*args, **kwargs)
        key = self.frames[-1].key(place_in_code(func))
        call = self._sizes.tape.sized.get(key)
        places = self._seen[key.module]
        shape, given = shape_of(first_tensor(args, kwargs)), tuple(numbers_in((args, kwargs)))
        if key.module not in self._paths or call is None or call.function != name:
            places[key.place, key.repetition].append(_as_it_is(name, shape, given, self._at))
            return func(*args, **kwargs)
        try:
            wanted = needed(call, self._sizes, args, kwargs)
            cut = _cut_dims(call, self._sizes)
            observed = Observed(
                name, shape, cut, given, tuple(numbers_in((wanted.args, wanted.kwargs))), wanted.sections,
                wanted.positions, wanted.dim, wanted.heads, self._at,
            )  # fmt: skip
        except CannotRewriteError as error:
            self.failed = error
            raise
        places[key.place, key.repetition].append(observed)
        if wanted.sections is not None:
            tensor = first_tensor(args, kwargs)
            assert tensor is not None
            return torch.split(tensor, list(wanted.sections), wanted.dim)
        if wanted.heads is not None:
            return attend_with(wanted.heads, *args, **kwargs)
        result = func(*wanted.args, **wanted.kwargs)
        if wanted.positions is not None:
            chosen = torch.tensor(wanted.positions, dtype=torch.int64, device=result.device)
            result = result.index_select(wanted.dim, chosen)
        self._compare(name, call, result)
        return result

    def _compare(self, name: str, call: SizeCall, result: Any) -> None:
        if isinstance(call.result, Value) and isinstance(result, torch.Tensor):
            expected, kept = self._sizes.shape(call.result.number), self._sizes.kept(call.result.number)
            depends = [mask is None and not self._sizes.is_fixed for mask in kept]  # on values
            same = [a == b or free for a, b, free in zip(result.shape, expected, depends, strict=False)]
            if result.dim() != len(expected) or not all(same):
                self.failed = CannotRewriteError(f"{name} makes {tuple(result.shape)}, expected {expected}")
                raise self.failed


def _as_it_is(name: str, shape: tuple[int, ...] | None, given: tuple[Number, ...], at: tuple[Any, Any]) -> Observed:
    return Observed(name, shape, (False,) * len(shape or ()), given, given, at=at)


def _cut_dims(call: SizeCall, sizes: CutSizes) -> tuple[bool, ...]:
    """The dimensions along which the first tensor of a call was cut."""
    for value in values_in((call.args, call.kwargs))[:1]:
        return tuple(mask is not None for mask in sizes.kept(value.number))
    return ()
