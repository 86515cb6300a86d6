"""Gate sites: the weights that read gated channels, masked along their input axis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils import parametrize

from prunegate.gates.call_sites import CallSites, install_call_sites, remove_call_sites
from prunegate.groups import Analysis
from prunegate.groups.partition import Ids


class GateSite(nn.Module):
    """A parametrisation that multiplies one weight by the present mask along some of its axes.

    The masks are set by `SiteMap.spread` before a forward and stay until the next, so that activation
    checkpointing recomputes with the same ones.
    """

    def __init__(self, axes: Sequence[int], ndim: int, order: tuple[str, ...]) -> None:
        """Mask ``axes`` of a weight with ``ndim`` dimensions; ``order`` is how its module lists its parameters."""
        super().__init__()
        self.order = order
        self.axes = tuple(axes)
        self.ndim = ndim
        self.masks: tuple[torch.Tensor, ...] = ()

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        for axis, mask in zip(self.axes, self.masks, strict=False):
            shape = [1] * self.ndim
            shape[axis] = -1
            weight = weight * mask.to(weight.dtype).reshape(shape)
        return weight

    def __getstate__(self) -> dict[str, Any]:
        """Without the masks: they may belong to an autograd graph, which cannot be copied."""
        return {**self.__dict__, "masks": ()}


class SiteMap:
    """Where the entries of a flat mask go: one gather for all sites of the model."""

    def __init__(
        self, sites: Sequence[GateSite], units: Sequence[Ids], num_units: int, call_sites: Sequence[CallSites] = ()
    ) -> None:
        self.sites = list(sites)
        self.call_sites = list(call_sites)
        units = [*units, *(call.units.reshape(-1) for site in self.call_sites for call in site.calls)]
        self._lengths = [len(u) for u in units]
        flat = np.concatenate([*units, np.zeros(0, dtype=np.int64)])
        self._index = torch.from_numpy(np.where(flat < 0, num_units, flat))

    def spread(self, mask: torch.Tensor) -> None:
        """Hand every site its part of a flat mask, shape (units,)."""
        if self._index.device != mask.device:
            self._index = self._index.to(mask.device)
        padded = torch.cat([mask, mask.new_ones(1)])  # the last entry serves positions of no unit
        parts = iter(torch.split(padded[self._index], self._lengths))
        for site in self.sites:
            site.masks = tuple(next(parts) for _ in site.axes)
        for call_site in self.call_sites:
            call_site.masks = tuple(next(parts) for _ in call_site.calls)


def install_sites(model: nn.Module, analysis: Analysis) -> SiteMap:
    """Put a `GateSite` on every weight that reads gated channels, on all names of shared weights.

    Function calls that must leave units out (statistics, products without a weight) are masked as well.
    """
    sites, num_units = analysis.sites, analysis.num_units
    aliases: dict[int, list[str]] = {}
    named = dict(model.named_parameters(remove_duplicate=False))
    for name, parameter in named.items():
        aliases.setdefault(id(parameter), []).append(name)
    installed: list[GateSite] = []
    units: list[Ids] = []
    for name, axes in sites.items():
        for alias in aliases[id(named[name])]:
            path, _, attribute = alias.rpartition(".")
            owner = model.get_submodule(path)
            site = GateSite(sorted(axes), named[name].dim(), tuple(owner._parameters))
            parametrize.register_parametrization(owner, attribute, site, unsafe=True)
            installed.append(site)
            units += [axes[axis] for axis in sorted(axes)]
    return SiteMap(installed, units, num_units, install_call_sites(model, analysis.masked_calls))


def remove_sites(model: nn.Module) -> nn.Module:
    """Take all gate sites off again, in place: weights, their names and their order as before.

    A module that torch parametrises gets a class of its own, which its deep copies share;
    `torch.nn.utils.parametrize.remove_parametrizations` edits that class and so breaks the copies.
    Here the module gets another class and the shared one is left alone.
    """
    remove_call_sites(model)
    for module in list(model.modules()):
        if not parametrize.is_parametrized(module):
            continue
        chains: Any = module.parametrizations
        order: tuple[str, ...] = ()
        freed: list[str] = []
        for attribute, chain in list(chains.items()):
            if not isinstance(chain[-1], GateSite):
                continue
            order = chain[-1].order
            del chain[len(chain) - 1]
            if len(chain) == 0:
                freed.append(attribute)
        if freed:
            _drop_properties(module, freed)
            for attribute in freed:
                module._parameters[attribute] = chains[attribute].original
                del chains[attribute]
            if len(chains) == 0:
                del module._modules["parametrizations"]
            for name in order:
                module._parameters[name] = module._parameters.pop(name)
    return model


def _drop_properties(module: nn.Module, names: Sequence[str]) -> None:
    """Give ``module`` a class without the properties that served parametrised tensors."""
    cls = type(module)
    remaining = [name for name, chain in vars(cls).items() if isinstance(chain, property) and name not in names]
    if remaining:
        body = {key: value for key, value in vars(cls).items() if key not in (*names, "__dict__", "__weakref__")}
        module.__class__ = type(cls.__name__, cls.__bases__, body)
    else:
        module.__class__ = cls.__bases__[0]
