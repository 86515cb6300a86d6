"""A model with gates on it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from torch import nn

from prunegate.compaction import FixUps, Limit, limits_of
from prunegate.compaction.plan import Mask
from prunegate.costs import METRICS, Cost, CostModel, MemoryCost
from prunegate.errors import BudgetError, DivergedError, nearest
from prunegate.gates import Gates, GateSites, remove_call_sites, standardised_magnitudes
from prunegate.groups import Analysis, ChannelGroup, ExampleInputs, PinnedGroup, Trace, copy_with, the_same
from prunegate.groups.solving.allocations import tensors_of_run
from prunegate.groups.torch_workarounds.kernels import has_fused_layers, unfused_layers
from prunegate.numbers import is_number
from prunegate.wrapping.closest_mask import HasLimit, MeasuresLatency, closest_mask
from prunegate.wrapping.explain import Explanation, explain
from prunegate.wrapping.reach import Reach, cost_models, fewest_units


class GatedModel(nn.Module):
    """A model whose weights are masked by learnable gates wherever they read a removable channel.

    It is called like the model and has the same outputs. In training mode each forward pass draws one hard mask for
    the whole model; in eval mode the mask is deterministic.

    Attributes:
        model: The gated copy of the user's model.
        gates: The logits of all channel groups, `gates[name].logits` for one.
        analysis: What tracing found.
        example_inputs: The inputs it was traced with.
        round_to: Kept counts are multiples of this when masks are hardened; ``"auto"`` for what is fastest here.
        latency: Predicts and measures milliseconds; None before `prunegate.measure_latency`.
        trace: The traced run that the analysis comes from.
        fix_ups: How the compact model will be made to run.
    """

    def __init__(
        self,
        model: nn.Module,
        trace: Trace,
        analysis: Analysis,
        example_inputs: ExampleInputs,
        round_to: int | Literal["auto"],
        fix_ups: FixUps,
        other_reach: Mapping[str, Reach] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.gates = Gates(analysis.groups)
        self.analysis = analysis
        self.example_inputs = example_inputs
        self.round_to = round_to
        self.trace = trace
        self.fix_ups = fix_ups
        self._other_reach = dict(other_reach or {})
        self._costs: dict[str, CostModel] = cost_models(analysis)
        self._memories: dict[int, MemoryCost] = {}  # by batch size
        self.latency: MeasuresLatency | None = None
        device = next(iter(model.parameters())).device
        if device.type != "meta":  # masks and costs also work for a model without weights
            self.gates.to(device)
        self._has_fused_layers = has_fused_layers(model)
        self.sites = GateSites(model, analysis)
        self.sites.prepare(self.gates.logits.device)
        # Distributed processes keep the same gate state without synchronisation. DDP would broadcast it in each
        # forward pass, and whether masks are fixed would have to be read from the device again.
        self._ddp_params_and_buffers_to_ignore = [f"gates.{name}" for name, _ in self.gates.named_buffers()]
        self.train(model.training)

    @property
    def backend(self) -> str:
        """The compaction back-end the gates were chosen for: ``"module"`` or ``"graph"``."""
        return self.fix_ups.backend

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with torch._C.DisableTorchFunction():  # function modes watch the model, not its gates
            mask = self.gates.draw()
        if not self._has_fused_layers:
            return self.sites.run(self.model, mask, args, kwargs)
        with unfused_layers():
            return self.sites.run(self.model, mask, args, kwargs)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Call ``generate`` of a transformers language model, with one mask for all steps.

        Raises:
            AttributeError: The model has no such method.
        """
        with torch._C.DisableTorchFunction():
            mask = self.gates.draw()
        return self.sites.run_method(self.model, mask, "generate", args, kwargs)

    @property
    def groups(self) -> list[ChannelGroup]:
        """The channel groups that have gates."""
        return list(self.analysis.groups)

    @property
    def pinned(self) -> list[PinnedGroup]:
        """The channel groups without gates, each with its `reason`."""
        return list(self.analysis.pinned)

    @property
    def limits(self) -> tuple[Limit, ...]:
        """Conditions outside of which it is not proved that the compact model computes the same as this one."""
        return limits_of(self.fix_ups, self.trace, self.example_inputs)

    @property
    def tau(self) -> float:
        """Relaxation temperature of the gates, > 0."""
        return self.gates.tau

    @tau.setter
    def tau(self, value: float) -> None:
        if not is_number(value) or not value > 0:
            raise BudgetError(f"tau: found {value!r}, expected a number above 0. Anneal towards 0.1, not to 0.")
        self.gates.tau = float(value)

    def weight_parameters(self) -> Iterator[nn.Parameter]:
        """The model's own parameters, without the logits."""
        return self.model.parameters()

    def gate_parameters(self) -> Iterator[nn.Parameter]:
        """The logits: give them their own learning rate and no weight decay."""
        return self.gates.parameters()

    def weights_with_nan(self) -> list[str]:
        """Names of parameters and running statistics that contain NaN; this synchronises with the device."""
        tensors = (*self.model.named_parameters(), *self.model.named_buffers())
        return [
            name
            for name, tensor in tensors
            if (isinstance(tensor, nn.Parameter) or "running_" in name) and bool(torch.isnan(tensor).any())
        ]

    def magnitudes(self) -> torch.Tensor:
        """Standardised weight norms of all units, shape (units,): see `prunegate.gates.standardised_magnitudes`.

        Raises:
            DivergedError: Weights are not finite.
        """
        scores = standardised_magnitudes(dict(self.model.named_parameters()), self.analysis.groups)
        if not bool(torch.isfinite(scores).all()):
            lost = [name for name, p in self.model.named_parameters() if not bool(torch.isfinite(p).all())]
            raise DivergedError(
                f"magnitudes: found weights that are not finite in {', '.join(lost[:3]) or 'sums of squares'}, "
                "expected numbers. The initial logits are computed from the size of the weights. Load finite weights."
            )
        return scores

    # Costs -------------------------------------------------------------------------------------

    def cost(self, metric: str) -> Cost:
        """The cost of that name as a function of masks."""
        if metric == "latency_ms":
            return self.measured_latency().cost
        if metric == "memory_mb":
            return self._memory()
        if metric not in self._costs:
            raise BudgetError(
                f"metric: found {metric!r}, expected one of {', '.join(METRICS)}. "
                f"Nearest: {', '.join(nearest(metric, METRICS)) or 'none'}."
            )
        return self._costs[metric]

    def _memory(self) -> MemoryCost:
        """Megabytes of weights and activations, at the batch size of the measured latency, or for one sample."""
        batch_size = 1 if self.latency is None else self.latency.batch_size
        if batch_size not in self._memories:
            tensors = tensors_of_run(self.trace.tape, self.analysis)
            share = batch_size / self.analysis.batch_size
            size = next(iter(self.model.parameters())).element_size()
            self._memories[batch_size] = MemoryCost(
                self.analysis.parameters, tensors, self.analysis.num_units, share, size
            )
        return self._memories[batch_size]

    def measured_latency(self) -> MeasuresLatency:
        """What predicts and measures milliseconds.

        Raises:
            BudgetError: Nothing has been measured.
        """
        if self.latency is None:
            raise BudgetError(
                "latency_ms: the latency of this model's operations has not been measured. Call "
                "prunegate.measure_latency(gated) first, on the machine where the compact model will run."
            )
        return self.latency

    def expected_cost(self, metric: str = "macs", logits: torch.Tensor | None = None) -> torch.Tensor:
        """The cost at the current keep probabilities, or at those of the given logits: 0-d, differentiable.

        MACs are per sample. ``"latency_ms"``, after `prunegate.measure_latency`, is in milliseconds per call of its
        batch size. ``"memory_mb"`` is the megabytes of the weights and the peak of the activations in such a call, or
        for one sample.
        """
        return self.cost(metric).expected(self.gates.keep_probability(logits))

    def sampled_cost(self, metric: str = "macs") -> float:
        """The cost of one mask drawn as in training; does not change the noise of the next forward pass."""
        return self.cost(metric).exact(self.gates.sample().cpu().numpy())

    def realised_cost(self, metric: str = "macs") -> float:
        """The cost under the current hard masks: an exact int, or the predicted milliseconds."""
        return self.cost(metric).exact(self.gates.hard_mask().cpu().numpy())

    def dense_cost(self, metric: str = "macs") -> float:
        """The cost with nothing removed: an exact int, or the predicted milliseconds."""
        return self.cost(metric).dense()

    def least_cost(self, metric: str = "macs") -> float:
        """The lowest cost that hard masks can reach, with the fewest units allowed in every group."""
        return self.cost(metric).exact(self.narrowest())

    def narrowest(self) -> Mask:
        """The mask that keeps the fewest units allowed in every group, shape (units,)."""
        return fewest_units(self.analysis, self.steps())

    # Masks -------------------------------------------------------------------------------------

    def masks(self) -> dict[str, torch.Tensor]:
        """The current hard masks by channel group, bool, each of shape (units,)."""
        return self.gates.masks()

    def set_masks(self, masks: Mapping[str, torch.Tensor]) -> None:
        """Fix hard masks; training and eval use them until `release_masks`.

        Raises:
            MaskError: An unknown group, a wrong shape, or a group left without any unit.
        """
        self.gates.fix(masks)

    def release_masks(self) -> None:
        """Draw masks from the logits again."""
        self.gates.release()

    def harden(self, *budgets: HasLimit | tuple[str, float]) -> None:
        """Choose hard masks from the logits that meet all given budgets, and fix them.

        The realised cost is at most each budget's, and no removed unit would still fit. For latency, compact candidates
        are built and timed until one meets the budget. To go on to a tighter budget
        with masks nested in these, call `gated.gates.close_removed` and train on.

        Args:
            budgets: Each a `Budget`, or a metric and its absolute limit.

        Raises:
            BudgetError: Even the fewest units allowed cost more, or no budget was given.
            DivergedError: Logits are not finite.
        """
        self.gates.fix(self._by_group(closest_mask(self, budgets)))

    def _by_group(self, keep: Mask) -> dict[str, torch.Tensor]:
        hard = torch.from_numpy(keep)
        return {group.name: hard[group.units] for group in self.analysis.groups}

    def steps(self) -> int | list[int]:
        """The step of kept counts: one number for all groups, or one of each."""
        given = self.round_to
        if given == "auto":
            # Before it has been measured, nothing is hardened, and only the least cost is asked for.
            blocks = [1] * len(self.groups) if self.latency is None else self.latency.blocks
            return [group.step(block) for group, block in zip(self.groups, blocks, strict=True)]
        if any(group.multiple > 1 for group in self.groups):
            return [group.step(given) for group in self.groups]
        return given

    # The way back ------------------------------------------------------------------------------

    def unwrap(self) -> nn.Module:
        """The dense model with its current weights, without gates. Do not use this object afterwards."""
        remove_call_sites(self.model)
        return self.model

    def dense_copy(self, share_weights: bool = False) -> nn.Module:
        """A copy of the dense model with its current weights; the gated model is not modified.

        Args:
            share_weights: Share the parameters and buffers of the gated model instead of copying them.
        """
        copied = copy_with(self.model, the_same if share_weights else None)
        remove_call_sites(copied)
        return copied

    def explain(self) -> Explanation:
        """A report: channel groups and their costs, what is not prunable and why, the least reachable cost."""
        reach = {self.backend: Reach.of(self.analysis, self.steps()), **self._other_reach}
        macs, params = self._costs["macs"], self._costs["params"]
        return explain(self.analysis, macs, params, macs.exact(self.narrowest()), self.backend, reach, self.limits)
