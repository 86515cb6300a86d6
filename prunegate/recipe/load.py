"""From a YAML file and overrides to a valid recipe, or to all of its mistakes at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from prunegate.builders import Builder
from prunegate.errors import ModelNameError, RecipeError, nearest
from prunegate.recipe.data import check_data
from prunegate.recipe.schema import Recipe
from prunegate.recipe.source import KeyPath, Source, dotted, read_source


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
    try:
        recipe = Recipe.model_validate(source.data)
    except ValidationError as error:
        mistakes += [_describe(source, detail) for detail in error.errors()]
    if mistakes or recipe is None:
        raise RecipeError("\n".join(mistakes))
    return recipe


def check_recipe(recipe: Recipe) -> None:
    """Check what a recipe refers to, without building or training anything.

    Raises:
        PrunegateError: An unknown model or optimiser, or data that is not there.
    """
    Builder.parse(recipe.model.name, recipe.model.arguments)
    _check_optimizer(recipe.optimizer.name)
    if recipe.model.weights is not None and not Path(recipe.model.weights).is_file():
        raise RecipeError(
            f"model.weights: found no file {recipe.model.weights!r}, expected a safetensors file."
        )
    check_data(recipe.data)


def _check_optimizer(name: str) -> None:
    from timm.optim import list_optimizers

    known = list_optimizers()
    if name.lower() not in known:
        raise RecipeError(
            f"optimizer.name: timm has no optimiser {name!r}. Nearest: {', '.join(nearest(name, known)) or 'none'}."
        )


def _override(source: Source, text: str) -> list[str]:
    """Set one value in the source; give the mistakes."""
    where = f"--set {text}"
    key, equals, raw = text.partition("=")
    path: KeyPath = tuple(key.strip().split("."))
    if not equals or not all(path):
        return [f"{where}: expected key.path=value, for example budget.fraction=0.5."]
    try:
        value = yaml.safe_load(raw)
    except yaml.YAMLError:
        return [f"{where}: found {raw!r}, expected a value in YAML."]
    section = source.data
    for part in path[:-1]:
        if not isinstance(section.get(part, {}), dict):
            return [f"{where}: {part} is no section, so it has no keys to set."]
        section = section.setdefault(part, {})
    section[path[-1]] = value
    source.places[path] = where
    return []


def _describe(source: Source, detail: Any) -> str:
    """One pydantic error in our form: where, found, expected, nearest key."""
    path: KeyPath = tuple(detail["loc"])
    where = f"{source.place(path)}: {dotted(path)}"
    kind = detail["type"]
    if kind == "extra_forbidden":
        known = list(_keys_at(path[:-1]))
        near = nearest(str(path[-1]), known, 1)
        hint = f"Nearest known key: {near[0]}." if near else f"Known keys: {', '.join(known)}."
        return f"{where}: unknown key. {hint}"
    if kind == "missing":
        return f"{where}: is missing, expected a value. Add it."
    message = detail["msg"].removeprefix("Value error, ")
    if kind == "value_error":
        return f"{where}: {message}."
    expected = message.replace("Input should be ", "expected ", 1)
    return f"{where}: found {detail['input']!r}, {expected}."


def _keys_at(path: KeyPath) -> Iterator[str]:
    """The keys that the schema knows in one section."""
    model: type[BaseModel] = Recipe
    for part in path:
        annotation = model.model_fields[str(part)].annotation if part in model.model_fields else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return
        model = annotation
    yield from model.model_fields


def _name(value: Any) -> str:
    return "nothing" if value is None else type(value).__name__
