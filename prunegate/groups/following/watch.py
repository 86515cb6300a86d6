"""Tracks the running module and maskable torch function, to give every call an address.

A *call address* identifies one function call in a model: the module whose forward makes it, the function's name, its
position in the code, and that it is the n-th call of the function since the module's forward started. With it, a mask
is matched to its call when the gated model runs (`prunegate.gates.call_sites`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any

from torch import nn
from torch.overrides import TorchFunctionMode

from prunegate.groups.following.code_places import CodePlace, frame_of_call, lines_of, lines_of_call, place_of
from prunegate.groups.following.lines_run import LinesRun
from prunegate.groups.following.maskable import MASKABLE, function_name
from prunegate.groups.following.size_calls import SIZED, SizeCall, SizeCallKey, is_scaled
from prunegate.groups.following.tape import Span, Tape, Value, holds
from prunegate.groups.torch_workarounds.copies import modules_by_path


@dataclass(frozen=True)
class CallAddress:
    """One call of a torch function in the model's code.

    Attributes:
        index: Index of the call among the module's calls of the function, from 1.
        code: Its position in the code.
    """

    module: str
    function: str
    index: int
    code: CodePlace | None = None


@dataclass(slots=True)
class Frame:
    """A running module: its path, and how often each function had been called when it started.

    Attributes:
        number: Number of earlier calls of the module.
        places: Number of calls so far at each position in its code.
        calls: The same for the calls of maskable functions.
    """

    path: str
    before: Mapping[str, int] = field(default_factory=dict)
    span: Span | None = None
    rule: Any = None
    number: int = 0
    places: dict[CodePlace, int] = field(default_factory=dict)
    calls: Counter[tuple[str, CodePlace]] = field(default_factory=Counter)

    def key(self, place: CodePlace) -> SizeCallKey:
        """The key of the next call at a position."""
        repetition = self.places.get(place, 0)
        self.places[place] = repetition + 1
        return SizeCallKey(self.path, self.number, place, repetition)


# Functions that are replayed whole: they take no sizes, and their training behaviour or fused kernel would be lost if
# they were inlined.
_WHOLE = frozenset(
    """_weight_norm scaled_dot_product_attention dropout dropout1d dropout2d dropout3d alpha_dropout
    feature_alpha_dropout""".split()
)


class Watch(TorchFunctionMode):
    """Tracks the stack of running modules and the outermost running function, and records both on the tape.

    Attributes:
        is_opaque: A module or function with its own rule is running, so the operations inside are ignored.
        totals: For each module and function, the largest number of calls per call of the module: in total, and at each
            position in the code.
        lines: Collects the lines of the run, if needed.
        on_module_end: Called when a module ends that is not inside an opaque one, with its rule, arguments and output.
        on_function_end: The same for a function with a rule, with its name before the arguments.
    """

    def __init__(
        self,
        tape: Tape | None,
        rule_of: Callable[[type[nn.Module]], Any] = lambda cls: None,
        function_rules: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        """Start outside of every module.

        Args:
            rule_of: Returns the rule of a module class, or None.
            function_rules: The rules of functions, by name.
        """
        super().__init__()
        self.frames = [Frame("")]
        self._counts: dict[str, int] = dict.fromkeys(MASKABLE, 0)
        self._calls: Counter[str] = Counter()
        self.totals: dict[tuple[str, str, CodePlace | None], int] = {}
        self._code: CodePlace | None = None
        self.is_opaque = False
        self.lines: LinesRun | None = None
        self.on_module_end: Callable[[nn.Module, Any, Any, Any, Any], None] = lambda *call: None
        self.on_function_end: Callable[[Any, str, Any, Any, Any], None] = lambda *call: None
        self._rule_of, self._function_rules = rule_of, function_rules
        self._function: str | None = None
        self.arguments: tuple[Any, ...] = ()
        self._tape = tape

    @property
    def module(self) -> str:
        """Path of the module whose forward is running."""
        return self.frames[-1].path

    @property
    def ran(self) -> set[str]:
        """Paths of the modules that ran."""
        return {"", *self._calls}

    @property
    def address(self) -> CallAddress | None:
        """The address of the running maskable function, if any."""
        name = self._function
        if name is None:
            return None
        frame = self.frames[-1]
        return CallAddress(frame.path, name, self._counts[name] - frame.before.get(name, 0), self._code)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = function_name(func)
        frame = frame_of_call(func)
        if self.lines is not None:
            self.lines.add_function(name, args, kwargs, lines_of(frame))
        is_sized = self._tape is not None and not self.is_opaque and (name in SIZED or is_scaled(name, args, kwargs))
        if not is_sized and name not in self._counts and name not in _WHOLE:
            return func(*args, **kwargs)
        place = place_of(frame)
        if is_sized and self._tape is not None:
            return self._sized(self._tape, name, place, func, args, kwargs)
        return self._called(name, place, func, args, kwargs)

    def _sized(
        self, tape: Tape, name: str, place: CodePlace, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Any
    ) -> Any:
        key = self.frames[-1].key(place)
        call = tape.sized[key] = SizeCall(name, tape.refer(args), tape.refer(kwargs))
        result = self._called(name, place, func, args, kwargs)
        call.result = tape.refer(result)
        return result

    def _called(
        self, name: str, place: CodePlace, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if name not in self._counts and name not in _WHOLE:
            return func(*args, **kwargs)
        if name in self._counts:
            self._counts[name] += 1
            self._function, self.arguments = name, args
            self._code = place
            self.frames[-1].calls[name, place] += 1
        span = None
        if self._tape is not None and name in _WHOLE and not self.is_opaque:
            span = Span(func, self._tape.refer(args), self._tape.refer(kwargs), len(self._tape.operations))
            self._tape.spans.append(span)
        rule = None if self.is_opaque else self._function_rules.get(name)
        try:
            self.is_opaque = self.is_opaque or rule is not None
            result = func(*args, **kwargs)
            if rule is not None:
                self.on_function_end(rule, name, args, kwargs, result)
        finally:
            self._function, self.arguments = None, ()
            if rule is not None:
                self.is_opaque = False
        if span is not None and self._tape is not None:
            _finish(span, self._tape, result)
        return result

    @contextmanager
    def modules_of(self, model: nn.Module) -> Iterator[None]:
        """Track the calls of the modules of ``model``, which is a temporary copy."""
        handles = []
        called_through = []
        for path, module in modules_by_path(model):
            if module._forward_pre_hooks or module._forward_hooks:
                # The user's hooks count as the caller's code, so these run between them and the forward.
                handles.append(module.register_forward_pre_hook(partial(self._enter, path), with_kwargs=True))
                handles.append(module.register_forward_hook(self._leave, with_kwargs=True))
            else:  # where torch looks for a compiled forward, which is much faster than two hooks
                vars(module)["_compiled_call_impl"] = self._through(path, module)
                called_through.append(module)
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            for module in called_through:
                del vars(module)["_compiled_call_impl"]

    def _through(self, path: str, module: nn.Module) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self._enter(path, module, args, kwargs)
            output = module._call_impl(*args, **kwargs)  # type: ignore[no-untyped-call]
            self._leave(module, args, kwargs, output)
            return output

        return call

    def _enter(self, path: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        if self.lines is not None:
            self.lines.add(lines_of_call())
        frame = Frame(path, self._counts.copy(), number=self._calls[path])
        self._calls[path] += 1
        if self._tape is not None and not self.is_opaque:
            frame.span = Span(path, self._tape.refer(args), self._tape.refer(kwargs), len(self._tape.operations))
            self._tape.spans.append(frame.span)
        self.frames.append(frame)
        if not self.is_opaque:
            frame.rule = self._rule_of(type(module))
            self.is_opaque = frame.rule is not None

    def _count_up(self, frame: Frame) -> None:
        for name, code in frame.calls:
            _most(self.totals, (frame.path, name, code), frame.calls[name, code])
            _most(self.totals, (frame.path, name, None), self._counts[name] - frame.before.get(name, 0))

    def _leave(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        frame = self.frames[-1]
        self._count_up(frame)
        if frame.rule is not None:
            self.is_opaque = False
        if not self.is_opaque:
            self.on_module_end(module, frame.rule, args, kwargs, output)
        self.frames.pop()
        span = frame.span
        if span is not None and self._tape is not None:
            _finish(span, self._tape, output)


def _most(totals: dict[tuple[str, str, CodePlace | None], int], key: Any, count: int) -> None:
    totals[key] = max(totals.get(key, 0), count)


def _finish(span: Span, tape: Tape, result: Any) -> None:
    span.last, span.until = len(tape.operations), len(tape.spans)
    before = tape.refer(result)
    if isinstance(before, Value):
        span.returns_argument = holds(span.args, before) or holds(span.kwargs, before)
    span.result = tape.renumber(result)
