"""`prunegate run`: carry out a recipe."""

from __future__ import annotations

import argparse

from prunegate.cli.console import console


def run_command(arguments: argparse.Namespace) -> int:
    from prunegate.recipe import check_recipe, load_recipe, run
    from prunegate.report.console import ConsoleListener

    recipe = load_recipe(arguments.recipe, arguments.set)
    if arguments.check:
        check_recipe(recipe)
        console().print(f"{arguments.recipe}: valid; would write to {arguments.out or recipe.folder}/", soft_wrap=True)
        return 0
    listener = ConsoleListener()
    try:
        run(recipe, arguments.out, listener)
    finally:
        listener.close()
    return 0
