"""`prunegate run`: run a recipe, or resume a run."""

from __future__ import annotations

import argparse
from pathlib import Path

from prunegate.cli.console import console
from prunegate.cli.signals import stop_on_signals
from prunegate.errors import RunFolderError


def run_command(arguments: argparse.Namespace) -> int:
    from prunegate.recipe import RunFolder, check_recipe, load_recipe, run
    from prunegate.recipe.shipped_recipes import recipe_file
    from prunegate.report import metric_name
    from prunegate.report.console import ConsoleListener

    given = recipe_file(arguments.recipe)
    out: Path | None = arguments.out
    if given.is_dir():
        if not arguments.resume:
            raise RunFolderError(
                f"{given}: is a folder, expected a recipe. Resume the run in it with --resume, or pass its recipe: "
                f"{given / 'recipe.yaml'}."
            )
        given, out = given / "recipe.yaml", out or given
    recipe = load_recipe(given, arguments.set)
    folder = RunFolder(out or recipe.folder)
    if arguments.check:
        check_recipe(recipe)
        if not arguments.quiet:
            console().print(f"{given}: valid; would write to {folder.path}/", soft_wrap=True)
        return 0
    if arguments.resume and folder.is_finished:
        console().print(f"{folder.path}: this run is finished", soft_wrap=True)
        return 0
    listener = (
        None if arguments.quiet or arguments.json else ConsoleListener(metric=metric_name(recipe.training.metric))
    )
    try:
        with stop_on_signals() as stop:
            run(
                recipe,
                folder.path,
                listener,
                resume=arguments.resume,
                accept_changes=arguments.accept_changes,
                stop=stop,
            )
    finally:
        if listener is not None:
            listener.close()
    if arguments.json and (folder.path / "summary.json").is_file():  # only the first of several processes writes it
        console().print_json((folder.path / "summary.json").read_text(encoding="utf-8"))
    return 0
