"""`prunegate run`: carry out a recipe, or go on with a run."""

from __future__ import annotations

import argparse
from pathlib import Path

from prunegate.cli.console import console
from prunegate.cli.signals import stop_on_signals
from prunegate.errors import RunFolderError


def run_command(arguments: argparse.Namespace) -> int:
    from prunegate.recipe import RunFolder, check_recipe, load_recipe, run
    from prunegate.report.console import ConsoleListener

    given: Path = arguments.recipe
    out: Path | None = arguments.out
    if given.is_dir():
        if not arguments.resume:
            raise RunFolderError(
                f"{given}: is a folder, expected a recipe. Go on with the run in it by --resume, or name its recipe: "
                f"{given / 'recipe.yaml'}."
            )
        given, out = given / "recipe.yaml", out or given
    recipe = load_recipe(given, arguments.set)
    folder = RunFolder(out or recipe.folder)
    if arguments.check:
        check_recipe(recipe)
        console().print(f"{given}: valid; would write to {folder.path}/", soft_wrap=True)
        return 0
    if arguments.resume and folder.is_finished:
        console().print(f"{folder.path}: this run is finished", soft_wrap=True)
        return 0
    listener = ConsoleListener()
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
        listener.close()
    return 0
