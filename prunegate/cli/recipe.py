"""`prunegate recipe keys` and `prunegate init`: show the keys of recipes, and write a recipe to start from."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from prunegate.cli.console import console, say
from prunegate.cli.inspect import model_argument
from prunegate.errors import RecipeError, nearest


def keys_command(arguments: argparse.Namespace) -> int:
    from prunegate.recipe.keys import recipe_keys

    keys = recipe_keys()
    section = arguments.section
    if section is not None:
        chosen = [key for key in keys if key.path == section or key.path.startswith(f"{section}.")]
        if not chosen:
            known = {part for key in keys for part in (key.path, key.path.partition(".")[0])}
            near = ", ".join(nearest(section, known)) or "none"
            raise RecipeError(f"recipe keys: there is no key or section {section!r}. Nearest: {near}.")
        keys = chosen
    if arguments.json:
        console().print_json(json.dumps([asdict(key) for key in keys]))
        return 0
    for key in keys:
        default = "required" if key.default is None else f"default {key.default}"
        say(f"{key.path}: {key.form}; {default}\n    {key.meaning}")
    return 0


def init_command(arguments: argparse.Namespace) -> int:
    from prunegate.files import replacing
    from prunegate.recipe.new import new_recipe

    text = new_recipe(
        arguments.model,
        arguments.data,
        arguments.folder,
        arguments.weights,
        dict(map(model_argument, arguments.arg)),
        arguments.budget,
    )
    out: Path = arguments.out
    if out.exists() and not arguments.force:
        raise RecipeError(f"{out}: exists already, expected a new file. Choose another with --out, or use --force.")
    with replacing(out) as temporary:
        temporary.write_text(text, encoding="utf-8")
    if not arguments.quiet:
        say(f"{out}: written. Review it, then: prunegate run {out} --check")
    return 0
