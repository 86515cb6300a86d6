"""The latency of a run's model: measured before training, kept in the run's folder, and taken from there again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from prunegate.errors import BudgetError, PrunegateError, RecipeError, first_line
from prunegate.latency import Latency
from prunegate.recipe import folder as files
from prunegate.recipe.folder import RunFolder
from prunegate.recipe.schema import Recipe
from prunegate.training import Budget, Processes
from prunegate.wrapping import GatedModel
from prunegate.wrapping.closest_mask import proposals


def run_latency(
    recipe: Recipe, gated: GatedModel, out: RunFolder, processes: Processes, resume: bool, accept_changes: bool
) -> Latency:
    """Measure latency in the first process, or take it from the run's folder; all processes get the same.

    Raises:
        RecipeError: The run was measured on another machine.
        BudgetError: Even the narrowest model is slower than the budget.
    """
    settings = recipe.latency
    if settings.device is None:
        settings = settings.model_copy(update={"device": str(processes.device)})

    def agree(measure: Callable[[], float]) -> float:
        return processes.from_first(processes.by_first(measure, PrunegateError)) or 0.0

    def measure() -> dict[str, Any]:
        if resume and out.is_started and not accept_changes:
            state = _of_folder(out)
            made = Latency.of_state(gated, state)
            _refuse_elsewhere(made, state["environment"], out)
            return state
        made = Latency.measure(gated, settings)
        gated.latency = made
        _prepare(recipe, gated, made)
        return made.state_dict()

    state = processes.from_first(processes.by_first(measure, PrunegateError))
    assert state is not None
    gated.latency = latency = Latency.of_state(gated, state, agree)
    return latency


def with_latency(wrap: Callable[[nn.Module], GatedModel], latency: Latency, model: nn.Module) -> GatedModel:
    """Wrap a model, and give it what was measured on it before training."""
    gated = wrap(model)
    gated.latency = latency.of_model(gated)
    return gated


def _prepare(recipe: Recipe, gated: GatedModel, latency: Latency) -> None:
    """Learn how far predictions are off near the tightest limit, on masks chosen by magnitude."""
    budget = recipe.budget.of_dense(gated.dense_cost(recipe.budget.metric))
    shares = budget.shares(budget.fractions[-1])
    if "latency_ms" not in shares:
        return
    scores = gated.magnitudes().double().cpu().numpy()
    limits = [
        (metric, Budget(metric, share).limit_for(gated.dense_cost(metric)))
        for metric, share in shares.items()
        if metric != "latency_ms"
    ]
    limit = shares["latency_ms"] * latency.dense_ms
    if not latency.prepare(proposals(gated, limits, scores), limit):
        narrowest = latency.milliseconds(gated.narrowest())
        raise BudgetError(
            f"budget: found {limit:.3g} ms ({shares['latency_ms']:.3f} of the dense {latency.dense_ms:.3g} ms), "
            f"expected at least {narrowest:.3g} ms, which the compact model with the fewest units of each group "
            "takes. Raise the limit."
        )


def written(latency: Latency) -> str:
    """What is stored in the run's folder."""
    state = latency.state_dict()
    return json.dumps({"sha256": _hash(state), "state": state})


def _of_folder(out: RunFolder) -> dict[str, Any]:
    """What was stored there.

    Raises:
        RecipeError: It is missing, or not what was written.
    """
    path = out.file(files.LATENCY)
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        state = document["state"]
        if not isinstance(state, dict) or document["sha256"] != _hash(state):
            raise ValueError("it was changed")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecipeError(
            f"{path}: cannot be read: {first_line(error)}. It holds the measured latencies that the masks of this run "
            "depend on. Pass --accept-changes to measure again."
        ) from error
    return state


def _hash(state: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def _refuse_elsewhere(latency: Latency, measured_on: object, out: RunFolder) -> None:
    """Refuse to go on with times of another machine."""
    if latency.environment == measured_on:
        return
    assert isinstance(measured_on, dict)
    differences = ", ".join(
        f"{key} {measured_on.get(key, 'unknown')!r}, found {value!r}"
        for key, value in latency.environment.items()
        if measured_on.get(key) != value
    )
    raise RecipeError(
        f"{out.file(files.LATENCY)}: latencies were measured with {differences}. The masks of this run follow those "
        "times. Resume it on the same machine, or pass --accept-changes to measure again on this one."
    )
