"""A certificate: how far the compact model's outputs are from the gated model's, measured."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from prunegate.compaction.equivalence import Difference, Found, Kept, Side, difference, gap, put_aside, run
from prunegate.errors import CompactionError
from prunegate.groups import ExampleInputs, copy_with, in_place_of
from prunegate.groups.input_sizes import Variation
from prunegate.groups.kernels import exact_arithmetic
from prunegate.groups.outputs import names_of_state, tensors_in
from prunegate.modes import eval_mode

# Largest relative difference, max|compact − gated| / max|gated|, at which a compaction is handed out.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3}


@dataclass(frozen=True)
class Certificate:
    """What was compared, and how close it is.

    Attributes:
        float64: Differences with both models in double precision, over all that is in `checked`: the proof of
            losslessness. None for a model that does not run in double precision.
        float32: Differences in single precision, on the example inputs alone: what rounding adds.
        checked: What was compared: mode, size of the inputs, gradients.
        not_checked: What could not be, with the reason.
        limits: Conditions outside of which nothing is shown, known since the model was wrapped.
    """

    float64: Difference | None
    float32: Difference
    checked: tuple[str, ...] = ()
    not_checked: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready; null stands for outputs of another form."""
        found = asdict(self)
        for precision in ("float64", "float32"):
            if found[precision] is not None:
                found[precision] = {k: v if math.isfinite(v) else None for k, v in found[precision].items()}
        return {
            **found,
            "checked": list(self.checked),
            "not_checked": list(self.not_checked),
            "limits": list(self.limits),
        }


@dataclass(frozen=True)
class Case:
    """One way in which two models are run to be compared.

    Attributes:
        inputs: What they are run on.
        name: What sets these inputs apart, for the certificate.
    """

    name: str
    inputs: ExampleInputs
    training: bool = False
    gradients: bool = False

    def __str__(self) -> str:
        mode = "training mode" if self.training else "eval mode"
        return f"{mode}, {self.name}" + (", with gradients" if self.gradients else "")


def compared(
    gated: Side, compact: Side, case: Case, inputs: ExampleInputs, kept: Kept
) -> tuple[Difference | None, Case, str]:
    """How far two models are apart in one case.

    What the dense model cannot do either is no fault of the cut: it is run before any blame.

    Returns:
        The difference, None if the model does not run so; the case that was compared, without gradients if these do
        not exist; and what could not be compared and why.

    Raises:
        CompactionError: The compact model does not run where the dense one does.
    """
    with put_aside(gated.model, compact.model):
        try:
            expected = run(gated, inputs, case.training, case.gradients)
            found = run(compact, inputs, case.training, case.gradients)
        except Exception as error:  # a foreign forward may raise anything
            failed = error
        else:
            apart = difference(expected, found, kept)
            if not apart.max_rel <= _SURE:
                swing = _swing(gated, case, inputs, expected)
                if apart.max_rel <= _ROUNDINGS * swing:
                    return None, case, f"rounding alone changes it by {swing:.1g} (relative)"
            return apart, case, ""
    why = _why_not(gated.inner, case, inputs)
    if why and case.gradients:
        return *compared(gated, compact, replace(case, gradients=False), inputs, kept)[:2], f"no gradients: {why}"
    if why:
        return None, case, why
    raise CompactionError(
        f"compaction: the compact model does not run ({case}): {_first_line(failed)}. The model's code may "
        "branch on the number of channels, which the trial in wrap() need not meet. Exclude the channel "
        "groups it looks at with wrap(..., exclude=[...]), or keep other units."
    ) from failed


# Differences up to this are not looked into.
_SURE = 1e-10


def _swing(gated: Side, case: Case, inputs: ExampleInputs, expected: Found) -> float:
    """How far the gated model itself moves if its weights change in their last digits, relative.

    In training with few samples BatchNorm may divide by what is next to nothing, layer after layer.
    """
    parameters = [p for p in gated.inner.parameters() if p.is_floating_point()]
    before = [p.detach().clone() for p in parameters]
    generator = torch.Generator().manual_seed(0)
    try:
        with torch.no_grad():
            for p in parameters:
                noise = torch.rand(p.shape, generator=generator, dtype=torch.float32).to(p.device, p.dtype)
                p.mul_(1 + (noise - 0.5) * 16 * torch.finfo(p.dtype).eps)
        with put_aside(gated.model):
            return difference(expected, run(gated, inputs, case.training, case.gradients)).max_rel
    finally:
        with torch.no_grad():
            for p, values in zip(parameters, before, strict=True):
                p.copy_(values)


def _why_not(dense: nn.Module, case: Case, inputs: ExampleInputs) -> str:
    """Why the dense model does not run so; empty if it does."""
    with put_aside(dense):
        try:
            run(Side.of(dense), inputs, case.training, case.gradients)
        except Exception as error:  # a foreign forward may raise anything
            return f"the model does not run so ({_first_line(error)})"
    return ""


def cases_of(inputs: ExampleInputs, variations: Sequence[Variation]) -> list[Case]:
    """The ways in which a compact model is compared: as given; at another size, with gradients; and in training."""
    noise = random_like(inputs)
    taken = next((v for v in variations if v.layout is not None), None)
    other = noise.of_samples(_FEW + 1) if inputs.batch_size() > _FEW else noise.doubled()
    cases = [Case("as given", inputs)]
    if taken is not None:
        cases.append(Case("another number of samples and another size", taken.of(noise.of_samples(_FEW)), False, True))
    else:
        cases.append(Case("another number of samples", other, False, True))
    few = noise.of_samples(_FEW) if inputs.batch_size() > 1 else noise.doubled()
    return [*cases, Case("random inputs", few, True, True)]


# So many samples say as much as more of them.
_FEW = 2


def certify(
    gated: Side,
    compact: Side,
    cases: Sequence[Case],
    kept: Kept,
    not_weights: Iterable[torch.Tensor] = (),
    decides_by_value: bool = False,
) -> Certificate:
    """Run both models in all cases, in double precision, and in the first in single precision as well.

    Args:
        gated: Its call has to be under fixed masks, in training too.
        kept: What the compact model has of the gated model's parameters.
        not_weights: Tensors of the gated model whose precision does not matter (logits).
        decides_by_value: The model ranks or selects by what it computes, as detectors do. In single precision
            rounding may then change the choice, so that difference is measured, not judged.

    Raises:
        CompactionError: They differ by more than `TOLERANCE` and more than rounding explains, in value or in the form
            of the outputs, or the compact model does not run where the gated one does.
    """
    skipped = list(not_weights)
    comparison = _Comparison(gated, compact, kept, skipped)
    single = comparison.run(cases[:1], torch.float32)
    double = comparison.run(cases, torch.float64)
    if single is None and double is None:
        raise CompactionError(
            f"compaction: the gated model does not run on the example inputs any more: {comparison.skipped[-1]}. "
            "Nothing can be compared. Call wrap() with inputs that it takes."
        )
    noise = comparison.rounding(cases[0]) if single is not None else 0.0
    if double is not None and not double.max_rel <= TOLERANCE[torch.float64]:
        if not (comparison.is_narrow and double.max_rel <= _ROUNDINGS * noise):
            raise CompactionError(_differs(double, torch.float64, TOLERANCE[torch.float64]))
        comparison.skipped.append(
            f"double precision: the model's code computes in single, so equality is shown to {double.max_rel:.1g}"
        )
    allowed = max(TOLERANCE[torch.float32], _ROUNDINGS * noise)
    if single is not None and not decides_by_value and not single.max_rel <= allowed:
        raise CompactionError(_differs(single, torch.float32, allowed))
    if single is None:
        single = Difference(math.inf, math.inf)
    return Certificate(double, single, tuple(comparison.checked), tuple(comparison.skipped))


# So many times what rounding does to the gated model itself is put down to rounding.
_ROUNDINGS = 16


def _differs(found: Difference, dtype: torch.dtype, allowed: float) -> str:
    return (
        f"compaction: the compact model differs from the gated one by {found.max_rel:.2g} "
        f"(relative, {str(dtype).removeprefix('torch.')}), expected at most {allowed:.0e}. "
        "Nothing is handed out that computes something else. Please report the model; until then "
        "exclude the channel groups of its unusual layers with wrap(..., exclude=[...])."
    )


@dataclass
class _Comparison:
    """Runs both models and notes what could be compared."""

    gated: Side
    compact: Side
    kept: Kept
    not_weights: Sequence[torch.Tensor]
    checked: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    is_narrow: bool = False

    def run(self, cases: Sequence[Case], dtype: torch.dtype) -> Difference | None:
        """The largest differences over all cases; None if the gated model runs in none of them."""
        worst: Difference | None = None
        with (
            in_precision(self.gated, dtype, self.not_weights) as gated,
            in_precision(self.compact, dtype) as compact,
            Widely(dtype),
        ):
            for case in cases:
                inputs = case.inputs.map(partial(converted, dtype=dtype))
                found = self._one(gated, compact, inputs, case, dtype)
                if found is not None:
                    worst = found if worst is None else worst.worst(found)
        return worst

    def _one(
        self, gated: Side, compact: Side, inputs: ExampleInputs, case: Case, dtype: torch.dtype
    ) -> Difference | None:
        narrows = _Narrows()
        with narrows if dtype is torch.float64 else nullcontext():
            found, done, why = compared(gated, compact, case, inputs, self.kept)
        self.is_narrow |= narrows.has_narrowed
        if why:
            self.skipped.append(f"{case} in {_name(dtype)}: {why}")
        if found is not None and dtype is torch.float64:
            self.checked.append(str(done))
        return found

    def rounding(self, case: Case) -> float:
        """What single precision does to the gated model's outputs, relative."""
        outputs = []
        for dtype in (torch.float32, torch.float64):
            with in_precision(self.gated, dtype, self.not_weights) as gated, Widely(dtype), put_aside(gated.model):
                try:
                    outputs.append(run(gated, case.inputs.map(partial(converted, dtype=dtype))).outputs)
                except Exception:  # noted already
                    return TOLERANCE[torch.float32]
        return gap(outputs[1], outputs[0]).max_rel


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


class _Narrows(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes whether anything is computed in less than double precision."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.has_narrowed = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.dtype in _NARROW and result.dim() > 0:
            self.has_narrowed = True
        return result


_NARROW = frozenset({torch.float32, torch.bfloat16, torch.float16, torch.complex64})


# A default dtype is the whole process's: comparisons of several threads take turns.
_one_at_a_time = threading.RLock()
_PRECISIONS = frozenset({torch.float64, torch.float32, torch.float16, torch.bfloat16})
_CASTS = frozenset({"double", "float", "half", "bfloat16"})


class Widely(TorchFunctionMode):
    """In a comparison in one precision, casts to another one in the model's code become casts to the comparison's.

    Some code (normalisation layers of language models) casts to float32 whatever it is given; rounding there would hide
    what the comparison is to show. Where layers of one model have several precisions, its code casts between them, and
    all weights have one precision here. Tensors that a forward makes are of the comparison's precision as well,
    whatever the user's default is.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype
        self._default = torch.get_default_dtype()

    def __enter__(self) -> Widely:
        _one_at_a_time.acquire()
        super().__enter__()  # type: ignore[no-untyped-call]
        self._default = torch.get_default_dtype()
        torch.set_default_dtype(self._dtype)
        return self

    def __exit__(self, *exception: Any) -> None:
        torch.set_default_dtype(self._default)
        super().__exit__(*exception)  # type: ignore[no-untyped-call]
        _one_at_a_time.release()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in _CASTS:
            return args[0].to(self._dtype)
        if any(_is_precision(a) for a in (*args, *kwargs.values())):
            args = tuple(self._dtype if _is_precision(a) else a for a in args)
            kwargs = {key: self._dtype if _is_precision(a) else a for key, a in kwargs.items()}
        return func(*args, **kwargs)


def _is_precision(argument: Any) -> bool:
    return isinstance(argument, torch.dtype) and argument in _PRECISIONS


@contextmanager
def evaluating(model: nn.Module, dtype: torch.dtype, not_weights: Iterable[torch.Tensor] = ()) -> Iterator[nn.Module]:
    """The model in eval mode and in ``dtype``: itself where it already is, a copy where it is not."""
    with eval_mode(model):
        yield model if _fits(model, dtype, not_weights) else _converted(model, dtype)


@contextmanager
def in_precision(side: Side, dtype: torch.dtype, not_weights: Iterable[torch.Tensor] = ()) -> Iterator[Side]:
    """The same with both its models in ``dtype``."""
    with eval_mode(side.model):
        yield side if _fits(side.model, dtype, not_weights) else side.converted(partial(_converted, dtype=dtype))


def _fits(model: nn.Module, dtype: torch.dtype, not_weights: Iterable[torch.Tensor]) -> bool:
    skipped = {id(tensor) for tensor in not_weights}
    tensors = [t for t in (*model.parameters(), *model.buffers()) if id(t) not in skipped]
    return all(t.dtype is dtype or not t.is_floating_point() for t in tensors) and not any(map(_lacks_double, tensors))


def _converted(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    return copy_with(model, partial(converted, dtype=dtype, copy=True))


def _lacks_double(tensor: torch.Tensor) -> bool:
    """Whether a tensor is on a device without double precision; proofs are then made on the CPU."""
    return tensor.device.type == "mps"


def converted(tensor: torch.Tensor, dtype: torch.dtype, copy: bool = False) -> torch.Tensor:
    """A tensor in another precision if it is a floating one, on the CPU if its device lacks double precision."""
    device = torch.device("cpu") if _lacks_double(tensor) else tensor.device
    wanted = dtype if tensor.is_floating_point() else tensor.dtype
    return in_place_of(tensor, tensor.detach().to(device, wanted, copy=copy))


def outputs_of(model: nn.Module, inputs: ExampleInputs) -> list[torch.Tensor]:
    """All tensors that a model returns for these inputs, without gradients."""
    with torch.no_grad(), exact_arithmetic(inputs.tensors()[0].device):
        outputs = model(*inputs.args, **inputs.kwargs)
    return tensors_in(outputs, names_of_state(getattr(model, "model", model)))


def random_like(inputs: ExampleInputs) -> ExampleInputs:
    """Normal noise in single precision for every floating tensor; whole numbers (token ids, masks) stay as given."""
    generator = torch.Generator().manual_seed(0)

    def drawn(like: torch.Tensor) -> torch.Tensor:
        return torch.randn(like.shape, generator=generator, dtype=torch.float32).to(like.device)

    return inputs.map(lambda t: drawn(t) if t.is_floating_point() else t)
