"""Run a model once, without arithmetic, and find its channel groups."""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    UnsupportedOperatorException,
)
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves

from prunegate.errors import TraceError
from prunegate.groups.analysis import Analysis
from prunegate.groups.constraints import Constraints, Pin
from prunegate.groups.inputs import ExampleInputs
from prunegate.groups.solve import solve
from prunegate.groups.tape import Source, Tape
from prunegate.groups.tracer import Tracer
from prunegate.groups.values import Values
from prunegate.groups.watch import Watch

logger = logging.getLogger(__name__)


class Trace:
    """The constraints of one model's run; `analysis` may be asked for repeatedly as groups get refused."""

    def __init__(self, model: nn.Module, inputs: ExampleInputs) -> None:
        """Follow the channels of ``model`` through a run on ``inputs``.

        The run is on a copy whose tensors are fake: nothing is computed, no weights are needed and the
        model is not touched. Where a shape depends on values, the run is repeated with real tensors.

        Raises:
            TraceError: The model does not run on these inputs.
        """
        self.constraints = Constraints()
        self._values = Values(self.constraints)
        self._batch_size = inputs.batch_size()
        self.tape = Tape()
        self._again: tuple[Tape | None] | None = None
        self.is_fake = True
        try:
            self._follow(model, inputs, FakeTensorMode(allow_non_fake_inputs=True))
        except (
            DataDependentOutputException,
            DynamicOutputShapeException,
            UnsupportedOperatorException,
        ) as reason:
            logger.info("tracing on real tensors: %s", reason)
            self.constraints = Constraints()
            self._values = Values(self.constraints)
            self.tape = Tape()
            self.is_fake = False
            self._follow(model, inputs, None)
        self.tape.close()
        self._used = self._values.used
        del self._values  # it keeps every tensor of the run alive

    def __deepcopy__(self, memo: dict[int, Any]) -> Trace:
        """Itself: what a run said does not change."""
        return self

    def _follow(self, model: nn.Module, inputs: ExampleInputs, fake_mode: FakeTensorMode | None) -> None:
        copied = shadow(model, fake_mode)
        named: dict[str, torch.Tensor] = dict(copied.named_parameters())
        self._parameters = list(named)
        named.update(copied.named_buffers())
        self._shapes = {name: tuple(t.shape) for name, t in named.items()}
        for name, tensor in named.items():
            kind = "parameter" if name in self._parameters else "buffer"
            self._values.add_leaf(tensor, kind, name, range(tensor.dim()))
            self.tape.add(tensor, self._values.labels(tensor), Source("stored", name))
        self._run(copied.eval(), inputs, fake_mode, self.tape)
        if self._unused():
            # Heads that only training runs read channels too; what they ask for must hold as well.
            costs = len(self.constraints.contractions)
            try:
                self._run(copied.train(), inputs.doubled(), fake_mode, None)
            except TraceError as reason:
                logger.info("training mode could not be followed: %s", reason)
            del self.constraints.contractions[costs:]

    def _run(
        self, model: nn.Module, inputs: ExampleInputs, fake_mode: FakeTensorMode | None, tape: Tape | None
    ) -> None:
        watch = Watch(tape)
        if fake_mode is not None:
            inputs = inputs.map(lambda t: fake(t, fake_mode))
        for tensor in inputs.tensors():
            self._values.set(tensor, ())
            if tape is not None:
                tape.add(tensor, (), Source("input"))
        try:
            with run_watched(model, watch, fake_mode), Tracer(self._values, watch, tape):
                outputs = model(*inputs.args, **inputs.kwargs)
        except (DataDependentOutputException, DynamicOutputShapeException, UnsupportedOperatorException):
            raise
        except Exception as error:
            raise TraceError(
                f"{watch.module or 'the model'}: running the model on the example inputs failed with "
                f"{type(error).__name__}: {error}. Channels are found by running it. Give example_inputs with "
                "which model(...) works."
            ) from error
        self._pin_outputs(outputs)

    def _pin_outputs(self, outputs: Any) -> None:
        found = [t for t in tree_leaves(plain_outputs(outputs)) if isinstance(t, torch.Tensor)]
        if not found:
            raise TraceError(
                "model output: found no tensor, expected at least one. Nothing can be compared or trained "
                "then. Return tensors, or containers of them."
            )
        for tensor in found:
            for label in self._values.labels(tensor):
                self.constraints.pin(label, Pin("part of the model's output"))

    def _unused(self) -> list[str]:
        used = self._values.used if hasattr(self, "_values") else self._used
        return [name for name in self._parameters if name not in used]

    def with_more_samples(self, model: nn.Module, inputs: ExampleInputs) -> Tape | None:
        """The tape of the same run with every sample twice, to tell which sizes follow the batch.

        None if that run cannot be made or issues other operations; every size is then taken as fixed.
        """
        if self._again is None:
            self._again = (self._follow_again(model, inputs.doubled()) if self.is_fake else None,)
        return self._again[0]

    def _follow_again(self, model: nn.Module, inputs: ExampleInputs) -> Tape | None:
        fake_mode, tape = FakeTensorMode(allow_non_fake_inputs=True), Tape()
        copied = shadow(model, fake_mode).eval()
        for tensor in (*dict(copied.named_parameters()).values(), *dict(copied.named_buffers()).values()):
            tape.add(tensor)
        inputs = inputs.map(lambda t: fake(t, fake_mode))
        for tensor in inputs.tensors():
            tape.add(tensor)
        watch = Watch(tape)
        try:
            with run_watched(copied, watch, fake_mode), Tracer(None, watch, tape):
                copied(*inputs.args, **inputs.kwargs)
        except Exception as reason:  # a foreign forward may raise anything
            logger.info("the run with more samples failed: %s", reason)
            return None
        same = len(tape.shapes) == len(self.tape.shapes) and [o.func for o in tape.operations] == [
            o.func for o in self.tape.operations
        ]
        return tape if same and len(tape.spans) == len(self.tape.spans) else None

    def analysis(self, refused: Mapping[str, Pin] | None = None) -> Analysis:
        """Channel groups, without those refused by name."""
        return solve(self.constraints, self._shapes, self._parameters, self._batch_size, self._unused(), refused or {})


def shadow(model: nn.Module, fake_mode: FakeTensorMode | None) -> nn.Module:
    """A copy of ``model`` with fake parameters and buffers (shared ones stay shared), or a plain copy."""
    if fake_mode is None:
        return copy_with(model, None).requires_grad_(False)
    return copy_with(model, lambda tensor: fake(tensor, fake_mode)).requires_grad_(False)


def fake(tensor: torch.Tensor, fake_mode: FakeTensorMode) -> torch.Tensor:
    """A fake tensor of the same form. One on the meta device becomes one on the CPU, so that both can meet."""
    if tensor.is_meta:
        with fake_mode:
            return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")
    return fake_mode.from_tensor(tensor.detach())


def copy_with(model: nn.Module, change: Callable[[torch.Tensor], torch.Tensor] | None) -> nn.Module:
    """A deep copy whose parameters and buffers are ``change`` of the original ones; shared ones stay shared.

    Raises:
        TraceError: An attribute of the model cannot be copied.
    """
    memo: dict[int, Any] = {}
    if change is not None:
        for tensor in (*model.parameters(), *model.buffers()):
            memo[id(tensor)] = change(tensor)
    try:
        return copy.deepcopy(model, memo)
    except RuntimeError as error:
        raise TraceError(
            f"the model cannot be copied: {error}. prunegate works on a copy. Remove tensors computed with "
            "gradients from the model's attributes."
        ) from error


def plain_outputs(outputs: Any) -> Any:
    """Dataclass-like outputs as dicts, so that their tensors are found."""
    if hasattr(outputs, "to_tuple"):
        return outputs.to_tuple()
    if hasattr(outputs, "__dataclass_fields__"):
        return {name: getattr(outputs, name) for name in outputs.__dataclass_fields__}
    return outputs


@contextlib.contextmanager
def _decomposed_attention() -> Iterator[None]:
    """Attention as matrix products and softmax instead of one fused operation."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@contextlib.contextmanager
def run_watched(model: nn.Module, watch: Watch, fake_mode: FakeTensorMode | None) -> Iterator[None]:
    """The modes under which a model is followed, without the mode that follows its operations."""
    with (
        watch.modules_of(model),
        _decomposed_attention(),
        torch.no_grad(),
        fake_mode or contextlib.nullcontext(),
        watch,
    ):
        yield
