"""Gate sites: the weights and function calls that read gated channels, and how masks are applied to all of them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from prunegate.gates import kernels
from prunegate.gates.binding import Binding, Narrow, casts_its_weight
from prunegate.gates.call_sites import install_call_sites
from prunegate.gates.constants import Constants
from prunegate.gates.masking import MaskedAxes, masked_weights
from prunegate.gates.operations import are_followed, operation
from prunegate.gates.recomputation import forward_of_gated_model, resume_in_recomputation
from prunegate.groups import Analysis


class GateSites(nn.Module):
    """Distributes the entries of a flat mask, and runs a model under it.

    The model's own weights are not changed. Masked weights are computed in each call, all together, and replace them
    for that call only; so do the masks of function calls that have to leave units out (statistics, products without a
    weight).

    Args:
        model: A copy used by nothing else, as modules with masked calls get another class.
    """

    def __init__(self, model: nn.Module, analysis: Analysis) -> None:
        super().__init__()
        stored = {
            **dict(model.named_buffers(remove_duplicate=False)),
            **dict(model.named_parameters(remove_duplicate=False)),
        }
        aliases: dict[int, list[str]] = {}
        for name, tensor in stored.items():
            aliases.setdefault(id(tensor), []).append(name)
        names = [aliases[id(stored[name])] for name in analysis.sites]
        axes = [
            (number, axis, units[axis])
            for number, units in enumerate(analysis.sites.values())
            for axis in sorted(units)
        ]
        calls = install_call_sites(model, analysis.masked_calls)
        resume_in_recomputation()
        self._weights = [tuple(some[0].split(".")) for some in names]
        self._where = MaskedAxes(
            tuple(number for number, _, _ in axes),
            tuple(axis for _, axis, _ in axes),
            tuple(len(units) for _, _, units in axes),
        )
        self._shapes = [call.units.shape for _, call in calls]
        self._sizes = [sum(self._where.lengths), *(call.units.size for _, call in calls)]
        self.binding = Binding(model, [*names, *([name] for name, _ in calls)])
        units = [*(units for _, _, units in axes), *(call.units.reshape(-1) for _, call in calls)]
        flat = np.concatenate([*units, np.zeros(0, dtype=np.int64)])
        # Positions that belong to no unit use the entry after the last unit.
        flat = np.where(flat < 0, analysis.num_units, flat)
        # The positions of each unit's entry, unit by unit, and where each unit's positions start.
        order = np.argsort(flat, kind="stable")
        starts = np.searchsorted(flat[order], np.arange(analysis.num_units + 1))
        self._constants = Constants(index=flat, order=order, starts=starts)
        owners = [{id(model.get_submodule(name.rpartition(".")[0])) for name in some} for some in names]
        castable = {id(module) for module in model.modules() if casts_its_weight(module)}
        self._castable = [
            number
            for number, (some, modules) in enumerate(zip(names, owners, strict=True))
            if modules <= castable and all(name.endswith("weight") for name in some)
        ]

    def run(self, model: nn.Module, mask: torch.Tensor, args: Any, kwargs: Any) -> Any:
        """Run ``model(*args, **kwargs)`` under a flat mask, shape (units,)."""
        with torch._C.DisableTorchFunction():  # function modes watch the model, not its gates
            tensors = self._values(model, mask)
        if torch.compiler.is_compiling():
            return self.binding.run(model, tensors, args, kwargs)
        with forward_of_gated_model():
            return self.binding.run(model, tensors, args, kwargs)

    def run_method(self, model: nn.Module, mask: torch.Tensor, name: str, args: Any, kwargs: Any) -> Any:
        """Run ``model.name(*args, **kwargs)`` under a flat mask, which applies to every call of the model in the
        method."""
        with torch._C.DisableTorchFunction():
            tensors = self._values(model, mask)
        with forward_of_gated_model():
            return getattr(self.binding.twin(model, tensors), name)(*args, **kwargs)

    def _values(self, model: nn.Module, mask: torch.Tensor) -> list[torch.Tensor | Narrow]:
        """All masked weights, then the masks of all calls."""
        weights = [_stored(model, path) for path in self._weights]
        # A model without weights has its gates on another device.
        mask = mask.to(weights[0].device) if weights and weights[0].is_meta else mask
        parts = torch.split(self._spread(mask), self._sizes)
        masks = [part.reshape(shape) for part, shape in zip(parts[1:], self._shapes, strict=True)]
        kind = mask.device.type
        if are_followed() or not self._castable or not _is_autocast(kind):
            return [*masked_weights(weights, parts[0], self._where), *masks]
        # As autocast would cast the weights one by one.
        dtype = torch.get_autocast_dtype(kind)
        narrow = [number for number in self._castable if weights[number].dtype is torch.float32]
        results: list[torch.Tensor | Narrow] = [*masked_weights(weights, parts[0], self._where, narrow, dtype), *masks]
        for number in narrow:
            whole = partial(self._whole, weights[number], number, parts[0])
            results[number] = Narrow(results[number], whole)  # type: ignore[arg-type]
        return results

    def _whole(self, weight: torch.Tensor, number: int, masks: torch.Tensor) -> torch.Tensor:
        """One masked weight in its own precision."""
        where = self._where
        own = [place for place, owner in enumerate(where.owners) if owner == number]
        pieces = torch.split(masks, list(where.lengths))
        alone = MaskedAxes((0,) * len(own), *(tuple(some[n] for n in own) for some in (where.axes, where.lengths)))
        return masked_weights([weight], torch.cat([pieces[n] for n in own]), alone)[0]

    def _spread(self, mask: torch.Tensor) -> torch.Tensor:
        """The entries of a mask at all their positions."""
        constants = self._constants.at(mask.device)
        if are_followed():
            return _gathered(mask, constants["index"])
        spread: torch.Tensor = _Spread.apply(mask, *(constants[name] for name in ("index", "order", "starts")))
        return spread

    def prepare(self, device: torch.device) -> None:
        """Move all index tables to a device."""
        self._constants.at(device)

    def masks_of(self, name: str, mask: torch.Tensor) -> dict[int, torch.Tensor]:
        """For each masked axis of a stored tensor, its part of a flat mask."""
        pieces = torch.split(self._spread(mask)[: self._sizes[0]], list(self._where.lengths))
        path = tuple(name.split("."))
        where = self._where
        return {
            axis: piece
            for owner, axis, piece in zip(where.owners, where.axes, pieces, strict=True)
            if self._weights[owner] == path
        }


def _stored(model: nn.Module, path: Sequence[str]) -> torch.Tensor:
    module: Any = model
    for name in path[:-1]:
        module = module._modules[name]
    own = module._parameters
    result: torch.Tensor = own[path[-1]] if path[-1] in own else module._buffers[path[-1]]
    return result


def _is_autocast(kind: str) -> bool:
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)


def _gathered(mask: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    return torch.cat([mask, mask.new_ones(1)])[index]


class _Spread(torch.autograd.Function):
    """`_gathered` with a backward pass that can run several times."""

    @staticmethod
    def forward(
        ctx: Any, mask: torch.Tensor, index: torch.Tensor, order: torch.Tensor, starts: torch.Tensor
    ) -> torch.Tensor:
        ctx.where = index, order, starts
        return _gathered(mask, index)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        return _gathered_backward(gradient, *ctx.where), None, None, None


def _gathered_backward_form(
    gradient: torch.Tensor, index: torch.Tensor, order: torch.Tensor, starts: torch.Tensor
) -> torch.Tensor:
    return torch.empty_like((gradient + index)[:1]).expand(len(starts) - 1).clone()


@operation(
    "gathered_backward(Tensor gradient, Tensor index, Tensor order, Tensor starts) -> Tensor", _gathered_backward_form
)
def _gathered_backward(
    gradient: torch.Tensor, index: torch.Tensor, order: torch.Tensor, starts: torch.Tensor
) -> torch.Tensor:
    """For each unit, the sum over the positions of its entry, always in the same order."""
    count = len(starts) - 1
    if gradient.dtype is torch.float32 and kernels.serve(gradient.device):
        from prunegate.gates.kernels import weights  # needs Triton

        return weights.gather_sums(gradient.contiguous(), order, starts)
    # With accumulation it has one order on every device, unlike `index_add`.
    return gradient.new_zeros(count + 1).index_put((index,), gradient, accumulate=True)[:count].clone()
