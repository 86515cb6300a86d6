"""Whether two models compute the same: all outputs and their gradients, in either mode and at any size.

The two may be a gated model and its compact one, or a compact model and what was loaded or exported. They share nothing
in their runs: each has its own inputs, the same seed, and its buffers and plain attributes are restored.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from prunegate.compaction.plan import Mask, kept_of
from prunegate.gates import without_dropout
from prunegate.groups import ExampleInputs, function_name
from prunegate.groups.following.outputs import names_of_state, tensors_in
from prunegate.groups.torch_workarounds.kernels import exact_arithmetic
from prunegate.seeding import seed_torch, seeded

# For a parameter, the kept positions of each of its cut axes.
Kept: TypeAlias = Mapping[str, Mapping[int, Mask]]

# Tensors smaller than this share of the largest one are compared relative to that share, as they may be rounding.
_FLOOR = 1e-3


@dataclass(frozen=True)
class Difference:
    """Largest differences over all tensors compared; ``max_rel`` is relative to the tensor they are in."""

    max_abs: float
    max_rel: float

    def worst(self, other: Difference) -> Difference:
        """The larger of each."""
        return Difference(max(self.max_abs, other.max_abs), max(self.max_rel, other.max_rel))


@dataclass(frozen=True)
class Side:
    """One of two models that are compared.

    Attributes:
        model: The module that is called.
        inner: The module within it that has the user's forward and parameters.
    """

    model: nn.Module
    inner: nn.Module

    @classmethod
    def of(cls, model: nn.Module) -> Side:
        """The side of a plain model."""
        return cls(model, model)

    def converted(self, change: Callable[[nn.Module], nn.Module]) -> Side:
        """The side of a changed copy of the model."""
        path = next(path for path, module in self.model.named_modules() if module is self.inner)
        changed = change(self.model)
        return Side(changed, changed.get_submodule(path))


@dataclass(frozen=True)
class Found:
    """The result of a run.

    Attributes:
        gradients: Gradients of inputs and parameters, if requested.
        buffers: Buffers after a run in training mode, which may change them.
    """

    outputs: Sequence[torch.Tensor]
    gradients: Mapping[str, torch.Tensor]
    buffers: Mapping[str, torch.Tensor]


def run(side: Side, inputs: ExampleInputs, training: bool = False, gradients: bool = False) -> Found:
    """Run a model on its own copy of the inputs, with deterministic random operations."""
    inputs = inputs.copied()
    wanted: dict[str, torch.Tensor] = {}
    if gradients:
        # Copies, as code may write into its inputs.
        leaves = {f"input {i}": t.requires_grad_() for i, t in enumerate(inputs.tensors()) if t.is_floating_point()}
        wanted = {**leaves, **{n: p for n, p in side.inner.named_parameters() if p.requires_grad}}
        inputs = inputs.map(lambda tensor: tensor.clone())
    device = inputs.tensors()[0].device
    state = names_of_state(side.inner)
    modes = [(module, module.training) for module in side.model.modules()]
    side.model.train(training)
    try:
        with (
            torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
            torch.enable_grad() if gradients else torch.no_grad(),
            exact_arithmetic(device),
            Steady() if training else nullcontext(),
            without_dropout(),
            seeded(0),
        ):
            seed_torch(0)  # on other devices too
            outputs = tensors_in(side.model(*inputs.args, **inputs.kwargs), state, inputs.outputs)
            result = _gradients(outputs, wanted) if gradients else {}
    finally:
        for module, mode in modes:
            module.training = mode
    buffers = {name: b.detach().clone() for name, b in side.inner.named_buffers()} if training else {}
    return Found([tensor.detach() for tensor in outputs], result, buffers)


def _gradients(outputs: Sequence[torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Gradients of a sum of all finite outputs, each weighted at random."""
    generator = torch.Generator().manual_seed(0)
    total: torch.Tensor | None = None
    for tensor in outputs:
        if not tensor.requires_grad:
            continue
        tensor = torch.view_as_real(tensor) if tensor.is_complex() else tensor
        weights = torch.rand(tensor.shape, generator=generator, dtype=torch.float64).to(tensor.device, tensor.dtype)
        part = torch.where(torch.isfinite(tensor), tensor * weights, 0).sum()
        total = part if total is None else total + part
    if total is None or not wanted:
        return {}
    result = torch.autograd.grad(total, list(wanted.values()), allow_unused=True)
    return {name: g for (name, _), g in zip(wanted.items(), result, strict=True) if g is not None}


def difference(expected: Found, actual: Found, kept: Kept | None = None) -> Difference:
    """The differences between two runs, in outputs, gradients and buffers.

    Args:
        kept: The kept positions of the first model's parameters in the second.
    """
    result = gap(expected.outputs, actual.outputs)
    first, second = [], []
    # A zero gradient and None are equal.
    for name in expected.gradients.keys() | actual.gradients.keys():
        one, other = expected.gradients.get(name), actual.gradients.get(name)
        if one is not None:
            one = kept_of(one, (kept or {}).get(name, {}))
        given = one if one is not None else other
        assert given is not None
        first.append(torch.zeros_like(given) if one is None else one)
        second.append(torch.zeros_like(given) if other is None else other)
    names = expected.buffers.keys() & actual.buffers.keys()
    before = [kept_of(expected.buffers[name], (kept or {}).get(name, {})) for name in names]
    return result.worst(gap(first, second)).worst(gap(before, [actual.buffers[name] for name in names]))


def gap(expected: Sequence[torch.Tensor], actual: Sequence[torch.Tensor]) -> Difference:
    """The differences between two lists of tensors; infinite if they differ in form.

    Equal infinities count as equal, and so does NaN in both. Complex entries are compared as a whole.
    """
    if [tuple(t.shape) for t in expected] != [tuple(t.shape) for t in actual]:
        return Difference(math.inf, math.inf)
    apart = [_apart(a, b.to(a.device)) for a, b in zip(expected, actual, strict=True) if a.numel()]
    largest = max((size for _, size in apart), default=0.0)
    if any(most == math.inf for most, _ in apart):
        return Difference(math.inf, math.inf)
    relative = (most / max(size, _FLOOR * largest) if most else 0.0 for most, size in apart)
    return Difference(max((most for most, _ in apart), default=0.0), max(relative, default=0.0))


def _apart(a: torch.Tensor, b: torch.Tensor) -> tuple[float, float]:
    """The largest difference of two entries, and the largest finite entry of the first tensor."""
    if a.is_sparse or a.is_nested:
        a, b = (t.to_dense() if t.is_sparse else t.to_padded_tensor(0.0) for t in (a, b))
    wide = torch.complex128 if a.is_complex() or b.is_complex() else torch.float64
    a, b = a.to(wide), b.to(wide)
    finite = torch.isfinite(a)
    if not bool(finite.all()):
        same = torch.equal(finite, torch.isfinite(b)) and torch.equal(
            torch.nan_to_num(a[~finite], 0.5), torch.nan_to_num(b[~finite], 0.5)
        )
        if not same:
            return math.inf, 0.0
        a, b = a[finite], b[finite]
        if not a.numel():
            return 0.0, 0.0
    most = float((a - b).abs().max())
    return (most if math.isfinite(most) else math.inf), float(a.abs().max())


# In training mode these draw a number per entry, so draws do not match once entries are removed.
_DROPOUT = frozenset(
    """dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout dropout_ alpha_dropout_
    feature_dropout native_dropout""".split()
)
_LIKE = frozenset("rand_like randn_like bernoulli".split())
_IN_PLACE = frozenset("bernoulli_ normal_ uniform_ exponential_ log_normal_ cauchy_".split())


class Steady(TorchFunctionMode):
    """Makes random operations over tensor entries deterministic: nothing is dropped, and noise is constant.

    Draws that do not depend on a tensor use the seed.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = function_name(func)
        if name in _DROPOUT:
            given: torch.Tensor = args[0] if args else kwargs["input"]
            return given if name.endswith("_") else given.clone()
        if name in ("rrelu", "rrelu_"):
            kwargs["training"], args = False, (*args[:3], *args[4:])
        if name in _LIKE:
            return torch.full_like(args[0], 0.5 if name != "bernoulli" else 1.0)
        if name in _IN_PLACE and isinstance(args[0], torch.Tensor):
            return args[0].fill_(1.0)
        if name == "scaled_dot_product_attention":
            args = (*args[:4], 0.0, *args[5:]) if len(args) > 4 else args
            kwargs.pop("dropout_p", None)
        elif name == "multi_head_attention_forward" and len(args) > 10:
            args = (*args[:10], 0.0, *args[11:])
        return func(*args, **kwargs)


@contextmanager
def put_aside(*models: nn.Module) -> Iterator[None]:
    """Restore buffers, attributes and the containers in them (hooks, caches) afterwards."""
    tensors = [(buffer, buffer.detach().clone()) for model in models for buffer in model.buffers()]
    attributes = [(vars(module), dict(vars(module))) for model in models for module in model.modules()]
    containers = [
        (value, type(value)(value))
        for _, before in attributes
        for value in before.values()
        if type(value) in (dict, OrderedDict, list, set)
    ]
    try:
        yield
    finally:
        for present, before in attributes:
            present.clear()
            present.update(before)
        for container, before in containers:
            container.clear()
            container.extend(before) if isinstance(container, list) else container.update(before)
        with torch.no_grad():
            for buffer, data in tensors:
                buffer.copy_(data)
