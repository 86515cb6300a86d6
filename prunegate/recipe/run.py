"""A whole run: dense → gate → harden → compact → finetune, into one folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import torch
from accelerate.utils import set_seed
from torch import nn

from prunegate.costs import amount
from prunegate.data import Data, load_data
from prunegate.errors import BudgetError, PrunegateError, RecipeError, RunFolderError
from prunegate.recipe import folder as files
from prunegate.recipe.folder import RunFolder, environment
from prunegate.recipe.functions import check_functions
from prunegate.recipe.listener import Listener, Listeners, Logger, RunSummary
from prunegate.recipe.load import check_recipe, dense_builder, own_function
from prunegate.recipe.plans import copies_in_state
from prunegate.recipe.resuming import refuse_changed, resume_command
from prunegate.recipe.run_latency import run_latency, with_latency, written
from prunegate.recipe.schema import BudgetSettings, Recipe
from prunegate.recipe.stages import Stages
from prunegate.recipe.state import RunState
from prunegate.recipe.step_checkpoints import bytes_needed
from prunegate.recipe.trackers import trackers_of
from prunegate.training import Budget, Processes
from prunegate.weight_files import load_weights
from prunegate.wrapping import GatedModel, wrap
from prunegate.wrapping.closest_mask import unreachable


def run(
    recipe: Recipe,
    folder: Path | None = None,
    listener: Listener | None = None,
    *,
    resume: bool = False,
    accept_changes: bool = False,
    stop: Callable[[], int] = lambda: 0,
) -> RunSummary:
    """Run a recipe.

    Everything that can be checked before training is checked first: the folder, the model, the data, what can be pruned
    and whether the budget can be reached. Nothing is written until then.

    Args:
        listener: Receives events; by default they go to the log.
        resume: Resume the run in the folder from its last checkpoint, or start it if there is none.
        accept_changes: Resume although the recipe has changed since the run began.
        stop: Polled after every step; returns the number of a signal that asks the run to stop, or 0.

    Raises:
        PrunegateError: A check or the run failed; the subclass says which kind of mistake it is.
        RunStoppedError: ``stop`` asked for it; the state is saved.
    """
    processes = Processes(recipe.training.precision)
    out = RunFolder(folder or recipe.folder, writes=processes.is_first)

    def check() -> None:
        (out.refuse_file if resume else out.refuse_used)()
        if resume and out.is_started and not accept_changes:
            refuse_changed(recipe, out)
        check_recipe(recipe)

    processes.by_first(check, PrunegateError)
    set_seed(recipe.seed)
    builder = dense_builder(recipe.model)
    model = builder.build()
    if recipe.model.weights is not None:
        load_weights(model, recipe.model.weights)
    data = load_data(recipe.data, recipe.seed)
    _check_output(model, data, recipe)
    data = data.to(processes.device)
    loss = own_function(recipe.training.loss, "training.loss")
    metric = own_function(recipe.training.metric, "training.metric")
    if recipe.data.labels == "any":
        check_functions(model, data, recipe.training, loss, metric)
    listeners = Listeners([listener or Logger()] if processes.is_first else [])
    # Wraps the model now, so that it is not refused after an hour of training.
    wrapped = partial(_wrap, recipe, data)
    untrained = wrapped(model)
    measured = run_latency(recipe, untrained, out, processes, resume, accept_changes) if recipe.needs_latency else None
    _refuse_unreachable(untrained, recipe.budget)
    if measured is not None:
        wrapped = partial(with_latency, wrapped, measured)
    stages = Stages(recipe, out, builder, model, untrained, wrapped, data, loss, metric, processes, listeners, stop)
    if processes.count > 1:
        set_seed(recipe.seed + processes.rank)  # each process has its own dropout
    weights = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    needed = bytes_needed(weights, len(recipe.budget.fractions), recipe.checkpoints, copies_in_state(recipe))

    def begin() -> RunState | None:
        if not resume:
            out.refuse_used()  # again, as another run may have used it meanwhile
        out.refuse_full(needed - out.bytes_written())
        state = stages.checkpoints.newest() if resume else None
        if state is not None and len(state.processes) != processes.count:
            raise RunFolderError(
                f"{out.path}: was trained by {len(state.processes)} processes, found {processes.count}. Each has its "
                f"own state. Resume with: {resume_command(out.path, len(state.processes))}"
            )
        if measured is not None:  # before the recipe, by which a started run is known
            out.write(files.LATENCY, written(measured))
        out.write(files.RECIPE, recipe.dump_yaml())
        out.write(files.ENVIRONMENT, json.dumps(environment(recipe.seed, processes.count), indent=2))
        out.write(files.METRICS, "".join(json.dumps(line) + "\n" for line in (state.records if state else [])))
        return state

    with ExitStack() as stack:
        processes.by_first(lambda: stack.enter_context(out.locked()), PrunegateError)
        state = processes.from_first(processes.by_first(begin, PrunegateError))
        if processes.is_first:
            listeners.extend(trackers_of(recipe.trackers, out.path, state.records if state else []))
        stack.enter_context(_repeatable_convolutions())
        return stages.finish(state)


@contextmanager
def _repeatable_convolutions() -> Iterator[None]:
    """Restrict cuDNN to deterministic algorithms, so that resumed runs give the same bits."""
    before = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    try:
        yield
    finally:
        torch.backends.cudnn.deterministic = before


def _wrap(recipe: Recipe, data: Data, model: nn.Module) -> GatedModel:
    return wrap(
        model,
        torch.zeros(2, *data.shape, device=next(iter(model.parameters())).device),
        exclude=recipe.gates.exclude,
        round_to=recipe.round_to,
        attention=recipe.gates.attention,
    )


def _refuse_unreachable(gated: GatedModel, budget: BudgetSettings) -> None:
    """Refuse a budget that the gates cannot reach."""
    dense = gated.dense_cost(budget.metric)
    if budget.limit is not None and budget.limit >= dense:
        raise BudgetError(
            f"budget.limit: found {amount(budget.limit, budget.metric)} {budget.metric}, expected less than "
            f"{amount(dense, budget.metric)}, the dense cost. "
            "Nothing would be removed. Lower the limit."
        )
    resolved = budget.of_dense(dense)
    for metric, share in resolved.shares(resolved.fractions[-1]).items():
        limit = Budget(metric, share).limit_for(gated.dense_cost(metric))
        # Of milliseconds, predictions do not decide: `run_latency` has built and timed models.
        if metric != "latency_ms" and limit < gated.least_cost(metric):
            raise BudgetError(unreachable(gated, metric, limit))


def _check_output(model: nn.Module, data: Data, recipe: Recipe) -> None:
    """Run one batch through the model to check its inputs and the number of its classes."""
    mode = model.training
    classes = data.num_classes
    try:
        with torch.no_grad():
            logits = model.eval()(data.example_inputs(2))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise RecipeError(
            f"model: {recipe.model.name} does not accept images of shape {data.shape}: {error}. "
            "Set model.arguments (in_chans, img_size) or data.image_size to fit."
        ) from error
    finally:
        model.train(mode)
    if classes is None:  # the loss decides which outputs are valid
        return
    if not isinstance(logits, torch.Tensor) or logits.dim() != 2 or logits.shape[1] < classes:
        result = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise RecipeError(
            f"model: {recipe.model.name} returns {result} for two images, expected (2, {classes}). "
            f"Set model.arguments.num_classes to {classes}; for outputs that are not class scores, set data.labels to "
            "any."
        )
