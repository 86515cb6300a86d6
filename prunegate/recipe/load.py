"""Loading a recipe from YAML and overrides, with all mistakes reported at once."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from prunegate.builders import Builder
from prunegate.data import check_data
from prunegate.errors import ModelNameError, PrunegateError, RecipeError, nearest
from prunegate.own_code import OwnBuilder, imported, is_own
from prunegate.recipe.schema import ModelSettings, Recipe
from prunegate.recipe.source import KeyPath, Source, dotted, entries, parse_value, read_source
from prunegate.recipe.trackers import check_trackers
from prunegate.settings import Settings
from prunegate.training.processes import check_precision
from prunegate.weight_files import fitting_weights

# Most values that a section may have, with aliases expanded.
_MOST_ENTRIES = 100_000


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read, override and validate a recipe.

    Args:
        overrides: Texts ``key.path=value``, the value in YAML.

    Raises:
        RecipeError: Listing every mistake with file, line and key path.
    """
    source = read_source(Path(path))
    if not isinstance(source.data, dict):
        raise RecipeError(f"{source.place(())}: found {_name(source.data)}, expected a mapping of sections.")
    mistakes = list(source.mistakes)
    for text in overrides:
        mistakes += _override(source, text)
    recipe = None
    if nested := list(_endless(source)):
        raise RecipeError("\n".join(mistakes + nested))
    try:
        recipe = Recipe.model_validate(source.data)
    except ValidationError as error:
        mistakes += [_describe(source, detail) for detail in error.errors()]
    if mistakes or recipe is None:
        raise RecipeError("\n".join(mistakes))
    return recipe


def check_recipe(recipe: Recipe) -> None:
    """Check what a recipe refers to, without training. A model is built only to compare weights with it.

    Raises:
        PrunegateError: An unknown model or optimiser, missing weights or data, or a precision that this machine does
            not support. A single mistake has its own error class; several are listed in a `RecipeError`.
    """
    checks: list[Callable[[], object]] = [
        lambda: _check_model(recipe.model),
        lambda: _check_trained(recipe),
        lambda: check_data(recipe.data),
        lambda: _check_optimizer(recipe.optimizer.name),
        lambda: check_precision(recipe.training.precision),
        lambda: own_function(recipe.training.loss, "training.loss"),
        lambda: own_function(recipe.training.metric, "training.metric"),
        lambda: _check_labels(recipe),
        lambda: check_trackers(recipe.trackers),
    ]
    mistakes: list[PrunegateError] = []
    for check in checks:
        try:
            check()
        except PrunegateError as error:
            mistakes.append(error)
    if len(mistakes) == 1:
        raise mistakes[0]
    if mistakes:
        raise RecipeError("\n".join(map(str, mistakes)))


def dense_builder(model: ModelSettings) -> Builder | OwnBuilder:
    """How the dense model is made. Own code is imported: the recipe that names it is the user's own.

    Raises:
        ModelNameError: The model or function does not exist, or an argument is refused.
    """
    for key in model.arguments:
        if key.startswith(("pretrained", "weights", "checkpoint_path")) and not is_own(model.name):
            raise ModelNameError(
                f"model.arguments.{key}: argument {key!r} is refused: models are built without downloads. Save "
                f"the weights once, torch.save(model.state_dict(), 'weights.pth'), and name that file: "
                "model.weights=weights.pth."
            )
    if is_own(model.name):
        own = OwnBuilder(model.name, model.arguments)
        own.function()
        return own
    return Builder.parse(model.name, model.arguments)


def own_function(name: str | None, key: str) -> Callable[..., Any] | None:
    """A loss or metric of the user's own code, imported because the recipe names it; None for none.

    Raises:
        RecipeError: It is not ``module:function``, or cannot be imported.
    """
    if name is None:
        return None
    if not is_own(name):
        raise RecipeError(f"{key}: found {name!r}, expected module:function of your own code.")
    return imported(name, key, RecipeError)


def _check_labels(recipe: Recipe) -> None:
    """Require a loss and a metric for labels that are not classes: cross entropy and accuracy do not apply."""
    if recipe.data.labels == "classes":
        return
    training = recipe.training
    missing = [f"training.{key}" for key in ("loss", "metric") if getattr(training, key) is None]
    if missing:
        raise RecipeError(
            f"{' and '.join(missing)}: found none with data.labels=any, expected module:function of your own. Cross "
            "entropy and accuracy need classes. Use (outputs, labels) -> loss, a 0-d tensor, and (outputs, labels) "
            "-> number."
        )
    if recipe.distillation.weight:
        raise RecipeError(
            f"distillation.weight: found {recipe.distillation.weight} with data.labels=any, expected 0. Distillation "
            "compares class scores with the dense model. Compare in training.loss instead."
        )


def _check_model(settings: ModelSettings) -> None:
    """Check the model's name and arguments, and build it to check that the weights fit."""
    mistakes: list[str] = []
    if settings.weights is not None and not Path(settings.weights).is_file():
        mistakes.append(
            f"model.weights: found no file {settings.weights!r}, expected a safetensors file, or a state_dict in a "
            ".pth or .pt."
        )
    try:
        builder = dense_builder(settings)
    except ModelNameError as error:
        if not mistakes:
            raise
        mistakes.insert(0, str(error))
    if mistakes:
        raise RecipeError("\n".join(mistakes))
    if settings.weights is not None:
        model = builder.zeroed() if isinstance(builder, Builder) else builder.build()
        fitting_weights(model, settings.weights)


def _check_trained(recipe: Recipe) -> None:
    model = recipe.model
    if recipe.stages.dense.epochs or model.weights is not None or model.trained:
        return
    own = ", or model.trained=true if that function gives it trained weights" if is_own(model.name) else ""
    teacher = ", and distillation would learn from it" if recipe.distillation.weight else ""
    raise RecipeError(
        f"stages.dense.epochs: found 0 and no model.weights, expected one of them. Gates would prune a network of "
        f"random weights{teacher}. Set the epochs that train the dense model, or set model.weights to a file with "
        f"trained weights{own}."
    )


def _check_optimizer(name: str) -> None:
    from timm.optim import list_optimizers

    known = list_optimizers()
    if name.lower() not in known:
        raise RecipeError(
            f"optimizer.name: timm has no optimiser {name!r}. Nearest: {', '.join(nearest(name, known)) or 'none'}."
        )


def _endless(source: Source) -> Iterator[str]:
    """The sections whose aliases expand to too many values."""
    for key in Recipe.model_fields:
        if entries(source.data.get(key)) > _MOST_ENTRIES:
            yield (
                f"{source.place((key,))}: {key}: its aliases (*name) expand to more than {_MOST_ENTRIES:,} values. "
                "Write the values out."
            )


def _override(source: Source, text: str) -> list[str]:
    """Set one value in the source; return the mistakes."""
    where = f"--set {text}"
    key, equals, raw = text.partition("=")
    path: KeyPath = tuple(key.strip().split("."))
    if not equals or not all(path):
        return [f"{where}: expected key.path=value, for example budget.fraction=0.5."]
    try:
        value = parse_value(raw)
    except ValueError as error:
        return [f"{where}: found {raw!r}, expected a value in YAML: {error}."]
    section = source.data
    for depth, part in enumerate(path[:-1], start=1):
        if section.get(part) is None:  # not given, or a section without keys
            section[part] = {}
            source.replace(path[:depth], where)
        section[part] = _section(path[:depth]).with_key(section[part])
        section = section[part]
        if not isinstance(section, dict):
            return [f"{where}: {dotted(path[:depth])} is not a section, so it has no keys to set."]
    section[path[-1]] = value
    source.replace(path, where)
    return []


def _describe(source: Source, detail: Any) -> str:
    """One pydantic error in prunegate's form: where, found, expected, nearest key."""
    # A part in brackets is not a key: it names one of several forms of a value.
    path: KeyPath = tuple(part for part in detail["loc"] if not str(part).startswith("("))
    if detail["type"] == "invalid_key":  # such as a number, whose position is stored under its text
        path = (*path[:-2], str(path[-2])) if path[-1] == "[key]" else (*path[:-1], str(path[-1]))
    where = f"{source.place(path)}: {dotted(path)}"
    kind = detail["type"]
    if kind == "extra_forbidden":
        known = list(_section(path[:-1]).model_fields)
        near = nearest(str(path[-1]), known, 1)
        hint = f"Nearest known key: {near[0]}." if near else f"Known keys: {', '.join(known)}."
        return f"{where}: unknown key. {hint}"
    if kind == "invalid_key":
        return f"{where}: found {reprlib.repr(detail['input'])} as a key, expected text. Put it in quotes."
    if kind == "missing":
        return f"{where}: is missing, expected a value. Add it."
    message = detail["msg"].removeprefix("Value error, ")
    if kind == "value_error":
        return f"{where}: {message}."
    expected = re.sub(r"^\w+ should ", "expected to ", message.replace("Input should be ", "expected ", 1))
    return f"{where}: found {reprlib.repr(detail['input'])}, {expected}."


def _section(path: KeyPath) -> type[Settings]:
    """The section of the schema at a path, or one without keys if there is none."""
    model: type[Settings] = Recipe
    for part in path:
        annotation = model.model_fields[str(part)].annotation if part in model.model_fields else None
        if not (isinstance(annotation, type) and issubclass(annotation, Settings)):
            return Settings
        model = annotation
    return model


def _name(value: Any) -> str:
    return "nothing" if value is None else type(value).__name__
