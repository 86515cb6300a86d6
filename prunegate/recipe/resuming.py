"""Resuming a run."""

from __future__ import annotations

import difflib
from pathlib import Path

import yaml
from pydantic import ValidationError

from prunegate.errors import RecipeError, first_line
from prunegate.recipe import folder as files
from prunegate.recipe.folder import RunFolder
from prunegate.recipe.schema import Recipe


def resume_command(folder: Path, processes: int) -> str:
    """The command that resumes the run in a folder."""
    command = "prunegate" if processes == 1 else f"torchrun --nproc-per-node {processes} -m prunegate"
    return f"{command} run {folder} --resume"


def refuse_changed(recipe: Recipe, out: RunFolder) -> None:
    """Refuse to resume a run with a changed recipe; the output folder may differ.

    Raises:
        RecipeError: The recipe has changed; the message shows the diff.
    """
    path = out.file(files.RECIPE)
    before = _resolved(path)
    same = {"output": before.output}
    old, new = (text.dump_yaml().splitlines() for text in (before, recipe.model_copy(update=same)))
    diff = list(difflib.unified_diff(old, new, "the run's recipe", "this recipe", n=1, lineterm=""))
    if diff:
        shown = "\n".join(f"  {line}" for line in diff)
        raise RecipeError(
            f"{path}: the recipe has changed since the run began, expected the same one:\n{shown}\n"
            "Resume with the original recipe by passing the folder, or with the changed one by --accept-changes."
        )


def _resolved(path: Path) -> Recipe:
    try:
        return Recipe.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError, ValidationError) as error:
        short = first_line(error)
        raise RecipeError(
            f"{path}: is not the recipe of a run: {short}. It was changed, or made by another version. Start the run "
            "again in another folder."
        ) from error
