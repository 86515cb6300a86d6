"""All gates of a model: one flat vector of logits, one draw per forward pass."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from prunegate.errors import MaskError, nearest
from prunegate.gates.constants import Constants
from prunegate.gates.drawn import Drawn, Reached
from prunegate.gates.estimators import DETERMINISTIC, ESTIMATORS
from prunegate.gates.mask_checks import named_masks, refuse_unfit
from prunegate.gates.noise import CounterNoise
from prunegate.gates.operations import are_followed
from prunegate.gates.replay import Replay
from prunegate.groups import ChannelGroup

# Logits are clamped to where the sigmoid still has a slope: at ±4.6 a unit is kept with probability 0.99 or 0.01.
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

    Everything that a draw depends on is a tensor on the gates' device, so drawing never synchronises, and the keys of
    the `state_dict` never change.

    Attributes:
        logits: Log-odds of keeping, shape (units of the whole model,).
        generator: Source of the noise: a seed and a step count.
        dropped: Above 0 for units that fixed masks drop, shape (units,). Like the next two, a number instead of a bool,
            as model averaging also averages buffers, and the average of set values stays above 0.
        is_fixed: Above 0 if fixed masks are used instead of draws, 0-d.
        closed: Above 0 for units that are closed for good, shape (units,).
    """

    def __init__(self, groups: Sequence[ChannelGroup], keep_probability: float = 0.95, seed: int = 0) -> None:
        super().__init__()
        self._slices = {group.name: group.units for group in groups}
        count = sum(group.num_units for group in groups)
        self.logits = nn.Parameter(torch.zeros(count))
        self.start_at(keep_probability)
        self.generator = CounterNoise(count, seed)
        self._estimator = "gumbel"
        self._tau_set = 1.0
        self._replay = Replay()
        self._looked: tuple[tuple[int, int], bool] | None = None
        self._reached: Reached | None = None
        owner = np.repeat(np.arange(len(groups)), [group.num_units for group in groups])
        least = np.array([group.least for group in groups], dtype=np.int64)
        self._least = {group.name: group.least for group in groups}
        self._constants = Constants(owner=owner, place=np.arange(count), least=least[owner])
        self.register_buffer("_tau", torch.tensor(1.0), persistent=False)
        for name, shape in (("dropped", (count,)), ("is_fixed", ()), ("closed", (count,))):
            self.register_buffer(name, torch.zeros(shape))
        self._tau: torch.Tensor
        self.dropped: torch.Tensor
        self.is_fixed: torch.Tensor
        self.closed: torch.Tensor

    @property
    def tau(self) -> float:
        """Relaxation temperature of the next draws, > 0."""
        return self._tau_set

    @tau.setter
    def tau(self, value: float) -> None:
        self._tau_set = value
        self._tau.fill_(value)

    @property
    def estimator(self) -> str:
        """The gradient estimator that masks are drawn with: a key of `ESTIMATORS`."""
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

    def extra_repr(self) -> str:
        how = "fixed masks" if self.are_fixed else f"drawn at tau {self.tau:.3g} by {self.estimator}"
        return f"{len(self)} channel groups with {len(self.logits):,} units, {how}"

    def __iter__(self) -> Iterator[str]:
        return iter(self._slices)

    def __len__(self) -> int:
        return len(self._slices)

    def keep_probability(self, logits: torch.Tensor | None = None) -> torch.Tensor:
        """Probability of keeping each unit, shape (units,), differentiable; 0 or 1 under fixed masks.

        Args:
            logits: Used instead of the current ones.
        """
        logits = self.logits if logits is None else logits
        if self._estimator in DETERMINISTIC:
            drawn = ESTIMATORS[self._estimator](logits, self._tau, self.generator)
        else:
            drawn = torch.sigmoid(logits)
        drawn = drawn.masked_fill(self.closed > 0, 0.0)
        return torch.where(self.is_fixed > 0, (self.dropped <= 0).to(drawn.dtype), drawn)

    def draw(self) -> torch.Tensor:
        """One mask for the whole model, shape (units,), float32, exactly 0.0 or 1.0.

        Fixed masks take precedence; their gradient is zero. Otherwise it is the deterministic hard mask in eval mode,
        and in training mode a sample with the gradient of the soft mask at the current tau. Each draw in training mode
        uses the noise of the next step.
        """
        if not self.training:
            return self.hard_mask().float()
        if torch.compiler.is_compiling() or (
            not self.are_fixed and (are_followed() or torch.is_inference_mode_enabled())
        ):
            # Any gradient is computed through the operations themselves.
            self.generator.advance()
            return self._sampled(self.logits)
        if self.are_fixed:
            # Zero instead of None: averaging gradients over processes waits for a gradient of every parameter.
            return self.hard_mask().float() + 0.0 * self.logits.float()
        state = (self.logits, self._tau, self.generator.state, self.dropped, self.is_fixed, self.closed)
        mask, slope = self._replay(self._drawn, state, self._estimator).clone()
        drawn: torch.Tensor = Drawn.apply(self.logits, mask, slope, self._reached)
        return drawn

    def _drawn(self) -> torch.Tensor:
        """The mask of the next step, and its derivative by the logits.

        Each entry depends only on its own logit. Shape (2, units).
        """
        self.generator.advance()
        with torch.enable_grad():
            leaf = self.logits.detach().requires_grad_()
            mask = self._sampled(leaf)
            (slope,) = torch.autograd.grad(mask.sum(), leaf)
        return torch.stack([mask.detach(), slope.to(mask.dtype)])

    def _sampled(self, logits: torch.Tensor) -> torch.Tensor:
        """A mask from the noise of the current step, with its gradient."""
        mask = ESTIMATORS[self._estimator](logits, self._tau, self.generator).float().masked_fill(self.closed > 0, 0.0)
        # A unit that must be kept is 1 whatever was drawn, and still has the draw's gradient.
        mask = mask + (1.0 - mask.detach()) * self._always_kept()
        return torch.where(self.is_fixed > 0, (self.dropped <= 0).float(), mask)

    @torch.no_grad()
    def sample(self) -> torch.Tensor:
        """The mask that training would draw next, bool, shape (units,); consumes no noise."""
        training, noise = self.training, self.generator.get_state()
        mask = self.train().draw().bool()
        self.train(training)
        self.generator.set_state(noise)
        return mask

    @torch.no_grad()
    def hard_mask(self) -> torch.Tensor:
        """The current hard mask, bool, shape (units,): fixed, or ``logit > 0`` plus each group's highest logit."""
        chosen = ((self.logits > 0) & self.open_units()) | self._always_kept()
        return torch.where(self.is_fixed > 0, self.dropped <= 0, chosen)

    @property
    def are_fixed(self) -> bool:
        """Whether fixed hard masks are used, so that nothing is drawn and the logits learn nothing."""
        # Reading synchronises with the device, so it is read again only after a write.
        state = (id(self.is_fixed), self.is_fixed._version)
        if self._looked is None or self._looked[0] != state:
            self._looked = (state, bool(self.is_fixed > 0))
        return self._looked[1]

    def open_units(self) -> torch.Tensor:
        """The units that have not been closed for good, bool, shape (units,)."""
        return self.closed <= 0

    @torch.no_grad()
    def _always_kept(self) -> torch.Tensor:
        """The units that are always kept, those with the highest logits of each channel group, bool, shape (units,).

        One per group (the first among equals), or more if its ``least`` requires them.
        """
        constants, count = self._constants.at(self.logits.device), len(self._slices)
        owner, place, least = constants["owner"], constants["place"], constants["least"]
        logits = self.logits.float().masked_fill(self.closed > 0, -math.inf)
        kept = torch.zeros_like(place, dtype=torch.bool)
        for number in range(max(self._least.values(), default=1)):
            highest = logits.new_full((count,), -math.inf).scatter_reduce(0, owner, logits, "amax")
            candidates = torch.where((logits == highest[owner]) & ~kept, place, len(place))
            first = place.new_full((count,), len(place)).scatter_reduce(0, owner, candidates, "amin")
            chosen = (place == first[owner]) & (least > number)
            kept = kept | chosen
            logits = logits.masked_fill(chosen, -math.inf)
        return kept

    def masks(self) -> dict[str, torch.Tensor]:
        """The current hard masks by group, bool, each of shape (units,)."""
        hard = self.hard_mask()
        return {name: hard[units].clone() for name, units in self._slices.items()}

    @torch.no_grad()
    def fix(self, masks: Mapping[str, torch.Tensor]) -> None:
        """Use these hard masks from now on; groups that are not named keep their current mask.

        Raises:
            MaskError: An unknown group, a wrong shape, numbers other than 0 and 1, or a group left without any unit.
        """
        flat = self.hard_mask().clone()
        for name, given in named_masks(masks).items():
            mask = refuse_unfit(name, given, len(self[name].logits), self._least[name])
            flat[self._slices[name]] = mask.bool().to(flat.device)
        self.dropped.copy_(~flat)
        self.is_fixed.fill_(1.0)

    @torch.no_grad()
    def release(self) -> None:
        """Draw masks from the logits again instead of using fixed ones."""
        self.is_fixed.zero_()

    @contextmanager
    def unchanged_on_error(self) -> Iterator[None]:
        """Context for fixing masks; if it raises an error, the previous state of the masks is restored."""
        before = [(tensor, tensor.clone()) for tensor in (self.dropped, self.is_fixed)]
        try:
            yield
        except BaseException:
            with torch.no_grad():
                for tensor, value in before:
                    tensor.copy_(value)
            raise

    @torch.no_grad()
    def close_removed(self) -> None:
        """Close the units that the fixed masks drop for good, and draw the others from their logits again.

        Masks that are drawn or hardened from now on are nested in the current ones.

        Raises:
            MaskError: No masks are fixed.
        """
        if not self.are_fixed:
            raise MaskError(
                "close_removed: found masks that are drawn, expected fixed ones, which decide what is removed. Call "
                "gated.harden(budget) or gated.set_masks(masks) first."
            )
        self.closed.copy_(self.dropped)
        self.release()

    def watch_gradients(self) -> None:
        """Start recording which units get a gradient from the loss; see `end_watch`."""
        self._reached = Reached(len(self.logits))

    @property
    def passes(self) -> int | None:
        """Backward passes since `watch_gradients`, or None if nothing is recorded."""
        return None if self._reached is None else self._reached.passes

    def end_watch(self) -> list[str]:
        """The channel groups none of whose units has had a gradient; this synchronises with the device."""
        units = torch.ones(len(self.logits)) if self._reached is None else self._reached.units.cpu()
        self._reached = None
        return [name for name, place in self._slices.items() if not bool(units[place].any())]

    def get_extra_state(self) -> torch.Tensor:
        """The estimator as a number, and tau, float64, as a `state_dict` should contain only tensors."""
        return torch.tensor([list(ESTIMATORS).index(self._estimator), self._tau_set], dtype=torch.float64)

    def set_extra_state(self, state: torch.Tensor) -> None:
        self._estimator = list(ESTIMATORS)[int(state[0])]
        if self._tau.device != self.logits.device:  # loading has replaced the tensor
            self._tau = torch.ones((), device=self.logits.device)
        self.tau = float(state[1])

    def _apply(self, fn: Any, recurse: bool = True) -> Gates:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._constants.at(self.logits.device)
        if not self._tau.is_meta:
            self._tau.fill_(self._tau_set)  # also if all tensors were recreated without their values
        return self

    @torch.no_grad()
    def start_at(self, keep_probability: float, scores: torch.Tensor | None = None, spread: float = 1.0) -> None:
        """Set every logit so that each unit is kept with this probability, in (0, 1).

        Args:
            scores: Shape (units,), of mean 0 and standard deviation 1 in each group: units that score higher
                start with higher logits.
            spread: Change of the logit per standard deviation of the scores.
        """
        self.logits.fill_(math.log(keep_probability / (1.0 - keep_probability)))
        if scores is not None:
            self.logits.add_(scores.to(self.logits), alpha=spread)
            self.clamp_()

    @torch.no_grad()
    def clamp_(self) -> None:
        """Clamp the logits to ±`LOGIT_LIMIT`, where they can still move."""
        self.logits.clamp_(-LOGIT_LIMIT, LOGIT_LIMIT)
