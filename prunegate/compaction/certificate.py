"""A certificate: how far the compact model's outputs are from the gated model's, measured."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from prunegate.errors import CompactionError
from prunegate.groups import ExampleInputs, copy_with, in_place_of
from prunegate.groups.kernels import exact_arithmetic
from prunegate.groups.trace import plain_outputs
from prunegate.modes import eval_mode

# Largest relative difference, max|compact − gated| / max|gated|, at which a compaction is handed out.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3}


@dataclass(frozen=True)
class Difference:
    """Largest differences over all outputs and inputs; relative to the largest gated output."""

    max_abs: float
    max_rel: float


@dataclass(frozen=True)
class Certificate:
    """What was compared, and how close it is.

    Attributes:
        float64: Differences with both models in double precision: the proof of losslessness.
        float32: Differences in single precision, on the example inputs alone: what rounding adds.
        inputs: The inputs the models were run on in double precision.
    """

    float64: Difference
    float32: Difference
    inputs: tuple[str, ...] = ("example", "random")

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready; null stands for outputs of another form."""
        found = asdict(self)
        for precision in ("float64", "float32"):
            found[precision] = {k: v if math.isfinite(v) else None for k, v in found[precision].items()}
        return found


def certify(
    gated: nn.Module,
    compact: nn.Module,
    inputs: ExampleInputs,
    not_weights: Iterable[torch.Tensor] = (),
    decides_by_value: bool = False,
) -> Certificate:
    """Run both models, in eval mode, on the example inputs and on random ones of the same form.

    The proof is in double precision; single precision shows what rounding adds, for which one input is enough.

    Args:
        not_weights: Tensors of the gated model whose precision does not matter (logits).
        decides_by_value: The model ranks or selects by what it computes, as detectors do. In single precision
            rounding may then change the choice, so that difference is measured, not judged.

    Raises:
        CompactionError: They differ by more than `TOLERANCE`, in value or in the form of the outputs, or the
            compact model does not run.
    """
    found = {}
    for dtype in (torch.float64, torch.float32):
        cases = (inputs, random_like(inputs)) if dtype is torch.float64 else (inputs,)
        try:
            found[dtype] = difference(gated, compact, cases, dtype, not_weights)
        except Exception as error:  # a foreign forward may raise anything
            raise CompactionError(
                f"compaction: the compact model does not run: {type(error).__name__}: {error}. The model's code may "
                "branch on the number of channels, which the trial in wrap() need not meet. Exclude the channel "
                "groups it looks at with wrap(..., exclude=[...]), or keep other units."
            ) from error
        judged = dtype is torch.float64 or not decides_by_value
        if judged and not found[dtype].max_rel <= TOLERANCE[dtype]:
            raise CompactionError(
                f"compaction: the compact model differs from the gated one by {found[dtype].max_rel:.2g} "
                f"(relative, {str(dtype).removeprefix('torch.')}), expected at most {TOLERANCE[dtype]:.0e}. "
                "Nothing is handed out that computes something else. Please report the model; until then "
                "exclude the channel groups of its unusual layers with wrap(..., exclude=[...])."
            )
    return Certificate(found[torch.float64], found[torch.float32])


def difference(
    gated: nn.Module,
    compact: nn.Module,
    cases: Iterable[ExampleInputs],
    dtype: torch.dtype,
    not_weights: Iterable[torch.Tensor] = (),
) -> Difference:
    """Differences of two models in one precision over some inputs; infinite if their outputs differ in form.

    The compact model runs first: where it fails, it fails before the time for the other is spent.
    """
    with evaluating(gated, dtype, not_weights) as first, evaluating(compact, dtype) as second, Widely(dtype):
        biggest, largest = 0.0, 0.0
        for case in cases:
            arguments = case.map(partial(converted, dtype=dtype))
            found = outputs_of(second, arguments)
            expected = outputs_of(first, arguments)
            apart, size = gap(expected, found)
            biggest, largest = max(biggest, apart), max(largest, size)
    return Difference(biggest, relative(biggest, largest))


def gap(expected: Sequence[torch.Tensor], found: Sequence[torch.Tensor]) -> tuple[float, float]:
    """The largest difference of any two entries, and the largest expected entry.

    The difference is infinite if the outputs differ in form, or in an entry that is infinite or no number.
    """
    if [tuple(t.shape) for t in expected] != [tuple(t.shape) for t in found]:
        return math.inf, 0.0
    biggest = largest = 0.0
    for a, b in zip(expected, found, strict=True):
        if a.numel():
            apart = float((a.double() - b.to(a.device).double()).abs().max())
            if not math.isfinite(apart):
                return math.inf, 0.0
            biggest, largest = max(biggest, apart), max(largest, float(a.double().abs().max()))
    return biggest, largest


def relative(apart: float, size: float) -> float:
    """A difference relative to a size; infinite if either makes no sense."""
    if apart == 0.0:
        return 0.0
    return apart / size if size > 0 and math.isfinite(apart) else math.inf


class Widely(TorchFunctionMode):
    """In a comparison in double precision, casts to single precision in the model's code become casts to double.

    Some code (normalisation layers of language models) casts to float32 whatever it is given; rounding there
    would hide what the comparison is to show. Tensors that a forward makes are of the comparison's precision as well,
    whatever the user's default is.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype, self._wide = dtype, dtype is torch.float64
        self._default = torch.get_default_dtype()

    def __enter__(self) -> Widely:
        super().__enter__()  # type: ignore[no-untyped-call]
        self._default = torch.get_default_dtype()
        torch.set_default_dtype(self._dtype)
        return self

    def __exit__(self, *exception: Any) -> None:
        torch.set_default_dtype(self._default)
        super().__exit__(*exception)  # type: ignore[no-untyped-call]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._wide:
            if getattr(func, "__name__", "") == "float":
                return args[0].double()
            if any(a is torch.float32 for a in (*args, *kwargs.values())):
                args = tuple(torch.float64 if a is torch.float32 else a for a in args)
                kwargs = {key: torch.float64 if a is torch.float32 else a for key, a in kwargs.items()}
        return func(*args, **kwargs)


@contextmanager
def evaluating(model: nn.Module, dtype: torch.dtype, not_weights: Iterable[torch.Tensor] = ()) -> Iterator[nn.Module]:
    """The model in eval mode and in ``dtype``: itself where it already is, a copy where it is not."""
    skipped = {id(tensor) for tensor in not_weights}
    tensors = [t for t in (*model.parameters(), *model.buffers()) if id(t) not in skipped]
    fits = all(t.dtype is dtype or not t.is_floating_point() for t in tensors) and not any(map(_lacks_double, tensors))
    with eval_mode(model):
        yield model if fits else copy_with(model, partial(converted, dtype=dtype, copy=True))


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
    return [t for t in tree_leaves(plain_outputs(outputs)) if isinstance(t, torch.Tensor)]


def random_like(inputs: ExampleInputs) -> ExampleInputs:
    """Normal noise in single precision for every floating tensor; whole numbers (token ids, masks) stay as given."""
    generator = torch.Generator().manual_seed(0)

    def drawn(like: torch.Tensor) -> torch.Tensor:
        return torch.randn(like.shape, generator=generator, dtype=torch.float32).to(like.device)

    return inputs.map(lambda t: drawn(t) if t.is_floating_point() else t)
