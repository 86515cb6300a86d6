"""All gates of a model: one flat vector of logits, one draw per forward."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from prunegate.errors import MaskError, nearest
from prunegate.gates.estimators import DETERMINISTIC, ESTIMATORS
from prunegate.groups import ChannelGroup

# Logits are kept where the sigmoid still has a slope: at ±4.6 a unit is kept with probability 0.99 or 0.01.
LOGIT_LIMIT = 4.6


class Gate:
    """One channel group's view of the flat logits."""

    def __init__(self, gates: Gates, name: str, units: slice) -> None:
        self._gates, self.name, self._units = gates, name, units

    @property
    def logits(self) -> torch.Tensor:
        """Log-odds of keeping each unit, shape (units,); a view that writes through."""
        return self._gates.logits[self._units]

    def __repr__(self) -> str:
        return f"Gate({self.name!r}, units={self._units.stop - self._units.start})"


class Gates(nn.Module):
    """The learnable gates of all channel groups.

    Attributes:
        logits: Log-odds of keeping, shape (units of the whole model,).
        tau: Relaxation temperature of the next draws, > 0.
        generator: Source of the noise, on the CPU so that one seed gives one result on every device.
    """

    def __init__(self, groups: Sequence[ChannelGroup], keep_probability: float = 0.95, seed: int = 0) -> None:
        super().__init__()
        self._slices = {group.name: group.units for group in groups}
        self.logits = nn.Parameter(torch.zeros(sum(group.num_units for group in groups)))
        self.start_at(keep_probability)
        self.tau = 1.0
        self.generator = torch.Generator().manual_seed(seed)
        self._estimator = "gumbel"
        owner = torch.cat([torch.full((g.num_units,), i) for i, g in enumerate(groups)])
        self.register_buffer("_owner", owner, persistent=False)
        self.register_buffer("_fixed", None, persistent=False)
        self.register_buffer("_closed", None, persistent=False)
        self._owner: torch.Tensor
        self._closed: torch.Tensor | None
        self._fixed: torch.Tensor | None

    @property
    def estimator(self) -> str:
        """How masks are drawn and with which gradient: a key of `ESTIMATORS`."""
        return self._estimator

    @estimator.setter
    def estimator(self, name: str) -> None:
        if name not in ESTIMATORS:
            raise MaskError(
                f"estimator: found {name!r}, expected one of {', '.join(ESTIMATORS)}. "
                f"Nearest: {', '.join(nearest(name, ESTIMATORS, 1)) or 'none'}."
            )
        self._estimator = name

    def __getitem__(self, name: str) -> Gate:
        if name not in self._slices:
            raise MaskError(
                f"gates[{name!r}]: no such channel group. Nearest: {', '.join(nearest(name, self._slices)) or 'none'}. "
                "gated.groups lists them all."
            )
        return Gate(self, name, self._slices[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._slices)

    def __len__(self) -> int:
        return len(self._slices)

    def keep_probability(self) -> torch.Tensor:
        """Probability of keeping each unit, shape (units,), differentiable; 0 or 1 under fixed masks."""
        if self._fixed is not None:
            return self._fixed.to(self.logits.dtype)
        if self._estimator in DETERMINISTIC:
            return self._opened(ESTIMATORS[self._estimator](self.logits, self.tau, self.generator))
        return self._opened(torch.sigmoid(self.logits))

    def draw(self) -> torch.Tensor:
        """One mask for the whole model, shape (units,), float32, exactly 0.0 or 1.0.

        Fixed masks come first. In eval mode it is the deterministic hard mask, in training mode a
        sample whose gradient is that of the soft mask at the present tau; that of fixed masks is zero.
        """
        if not self.training:
            return self.hard_mask().float()
        if self._fixed is not None:
            # Zero and not none: what averages gradients over processes waits for one of every parameter.
            return self.hard_mask().float() + 0.0 * self.logits.float()
        mask = self._opened(ESTIMATORS[self._estimator](self.logits, self.tau, self.generator).float())
        # One that must stay is 1 whatever was drawn, and still has the draw's gradient.
        return mask + (1.0 - mask.detach()) * self._always_kept()

    @torch.no_grad()
    def sample(self) -> torch.Tensor:
        """A mask as training would draw it next, bool, shape (units,); the noise is not used up."""
        training, noise = self.training, self.generator.get_state()
        mask = self.train().draw().bool()
        self.train(training)
        self.generator.set_state(noise)
        return mask

    @torch.no_grad()
    def hard_mask(self) -> torch.Tensor:
        """The present hard mask, bool, shape (units,): fixed, or ``logit > 0`` and each group's highest logit."""
        if self._fixed is not None:
            return self._fixed
        return self.open_units() & (self.logits > 0) | self._always_kept()

    @property
    def are_fixed(self) -> bool:
        """Whether hard masks are used as they stand, so that nothing is drawn and the logits learn nothing."""
        return self._fixed is not None

    def open_units(self) -> torch.Tensor:
        """The units that have not been closed for good, bool, shape (units,)."""
        return torch.ones_like(self.logits, dtype=torch.bool) if self._closed is None else ~self._closed

    def _opened(self, mask: torch.Tensor) -> torch.Tensor:
        return mask if self._closed is None else mask.masked_fill(self._closed, 0.0)

    @torch.no_grad()
    def _always_kept(self) -> torch.Tensor:
        """The first of each channel group's highest logits: the unit that always stays, bool, shape (units,)."""
        logits, owner = self.logits.float(), self._owner
        if self._closed is not None:
            logits = logits.masked_fill(self._closed, -math.inf)
        count = len(self._slices)
        highest = torch.full((count,), -math.inf, dtype=logits.dtype, device=logits.device).scatter_reduce(
            0, owner, logits, "amax"
        )
        place = torch.arange(logits.numel(), device=logits.device)
        candidates = torch.where(logits == highest[owner], place, logits.numel())
        first = torch.full((count,), logits.numel(), device=logits.device, dtype=place.dtype)
        return place == first.scatter_reduce(0, owner, candidates, "amin")[owner]

    def masks(self) -> dict[str, torch.Tensor]:
        """The present hard masks by group, bool, each of shape (units,)."""
        hard = self.hard_mask()
        return {name: hard[units].clone() for name, units in self._slices.items()}

    @torch.no_grad()
    def fix(self, masks: Mapping[str, torch.Tensor]) -> None:
        """Use these hard masks from now on; groups that are not named keep their present mask.

        Raises:
            MaskError: An unknown group, a wrong shape, or a group left without any unit.
        """
        flat = self.hard_mask().clone()
        for name, mask in masks.items():
            logits = self[name].logits
            mask = torch.as_tensor(mask)
            if mask.shape != logits.shape:
                raise MaskError(
                    f"{name}: found a mask of shape {tuple(mask.shape)}, expected {tuple(logits.shape)}, "
                    "one entry for each unit of the channel group."
                )
            if not mask.bool().any():
                raise MaskError(
                    f"{name}: found a mask that keeps no unit, expected at least one. Removing a whole channel "
                    "group would leave a layer without channels. Keep one unit."
                )
            flat[self._slices[name]] = mask.bool().to(flat.device)
        self._fixed = flat

    def release(self) -> None:
        """Go back from fixed masks to drawing them from the logits."""
        self._fixed = None

    @torch.no_grad()
    def close_removed(self) -> None:
        """Close for good what the fixed masks leave out, and draw the others from their logits again.

        Masks that are drawn or hardened from now on are nested in the present ones.

        Raises:
            MaskError: No masks are fixed.
        """
        if self._fixed is None:
            raise MaskError(
                "close_removed: found no fixed masks, expected hard ones that say what is removed. Call "
                "gated.harden(budget) or gated.set_masks(masks) first."
            )
        self._closed = ~self._fixed
        self._fixed = None

    def get_extra_state(self) -> dict[str, Any]:
        """What `state_dict` holds besides the logits."""
        return {
            "tau": self.tau,
            "estimator": self._estimator,
            "fixed": self._fixed,
            "closed": self._closed,
            "generator": self.generator.get_state(),
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.tau, self._estimator = state["tau"], state["estimator"]
        self._fixed = None if state["fixed"] is None else state["fixed"].to(self.logits.device)
        self._closed = None if state["closed"] is None else state["closed"].to(self.logits.device)
        self.generator.set_state(state["generator"].cpu())

    @torch.no_grad()
    def start_at(self, keep_probability: float, scores: torch.Tensor | None = None, spread: float = 1.0) -> None:
        """Set every logit so that each unit is kept with this probability, in (0, 1).

        Args:
            scores: Shape (units,), of mean 0 and standard deviation 1 in each group: units that score higher
                start with higher logits.
            spread: How many units of logit a standard deviation is worth.
        """
        self.logits.fill_(math.log(keep_probability / (1.0 - keep_probability)))
        if scores is not None:
            self.logits.add_(scores.to(self.logits), alpha=spread)
            self.clamp_()

    @torch.no_grad()
    def clamp_(self) -> None:
        """Clamp the logits to ±`LOGIT_LIMIT`, where they can still move."""
        self.logits.clamp_(-LOGIT_LIMIT, LOGIT_LIMIT)
