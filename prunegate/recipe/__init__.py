"""Recipes: runs described as data."""

from __future__ import annotations

from prunegate.recipe.folder import RunFolder
from prunegate.recipe.load import check_recipe, load_recipe
from prunegate.recipe.run import run
from prunegate.recipe.schema import Recipe

__all__ = ["Recipe", "RunFolder", "check_recipe", "load_recipe", "run"]
