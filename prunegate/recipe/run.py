"""A whole run: dense → gate → harden → compact → finetune, into one folder."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import torch
from accelerate.utils import set_seed
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from prunegate.data import Data, load_data
from prunegate.errors import BudgetError, RecipeError
from prunegate.recipe import folder as files
from prunegate.recipe.folder import RunFolder, environment
from prunegate.recipe.listener import Listener, RunSummary
from prunegate.recipe.load import check_recipe, dense_builder
from prunegate.recipe.schema import Recipe
from prunegate.recipe.stages import Stages
from prunegate.training import Budget
from prunegate.wrapping import GatedModel, wrap
from prunegate.wrapping.gated_model import unreachable


def run(recipe: Recipe, folder: Path | None = None, listener: Listener | None = None) -> RunSummary:
    """Carry out a recipe.

    Everything that can be found out before training is checked first: the folder, the model, the data,
    what can be pruned and whether the budget can be reached. Until then nothing is written.

    Raises:
        PrunegateError: Of the kind that says what is wrong.
    """
    out = RunFolder.refuse_used(folder or recipe.folder)
    check_recipe(recipe)
    set_seed(recipe.seed)
    builder = dense_builder(recipe.model)
    model = builder.build()
    _load_weights(model, recipe.model.weights)
    data = load_data(recipe.data, recipe.seed)
    _check_output(model, data, recipe)
    # Wraps the model, which refuses now what could not be pruned after an hour of training.
    stages = Stages(recipe, out, builder, model, partial(_wrap, recipe, data), data, listener)
    out.create()
    out.write(files.RECIPE, recipe.dump_yaml())
    out.write("environment.json", json.dumps(environment(recipe.seed), indent=2))
    return stages.finish()


def _wrap(recipe: Recipe, data: Data, model: nn.Module) -> GatedModel:
    """Wrap the model and refuse a budget that its gates cannot reach."""
    gated = wrap(
        model,
        torch.zeros(2, *data.shape, device=next(iter(model.parameters())).device),
        exclude=recipe.gates.exclude,
        round_to=recipe.gates.round_to,
    )
    metric = recipe.budget.metric
    limit = Budget(metric, recipe.budget.fractions[-1]).limit_for(gated.dense_cost(metric))
    if limit < gated.least_cost(metric):
        raise BudgetError(unreachable(gated, metric, limit))
    return gated


def _load_weights(model: nn.Module, path: str | None) -> None:
    if path is None:
        return
    try:
        model.load_state_dict(load_file(path))
    except (SafetensorError, OSError, RuntimeError) as error:
        raise RecipeError(f"model.weights: {path}: does not fit the model: {error}") from error


def _check_output(model: nn.Module, data: Data, recipe: Recipe) -> None:
    """One batch through the model: does it take such images and tell these classes apart?"""
    mode = model.training
    try:
        with torch.no_grad():
            logits = model.eval()(data.example_inputs(2))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise RecipeError(
            f"model: {recipe.model.name} does not take images of shape {data.shape}: {error}. "
            "Set model.arguments (in_chans, img_size) or data.image_size to fit."
        ) from error
    finally:
        model.train(mode)
    if not isinstance(logits, torch.Tensor) or logits.dim() != 2 or logits.shape[1] < data.num_classes:
        found = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise RecipeError(
            f"model: {recipe.model.name} returns {found} for two images, expected (2, {data.num_classes}). "
            f"Set model.arguments.num_classes to {data.num_classes}."
        )
