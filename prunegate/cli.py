"""The command line: a thin face on the library."""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunegate.errors import CheckpointError, ModelNameError, PrunegateError, RunFolderError, TraceError
from prunegate.version import __version__

if TYPE_CHECKING:
    from rich.console import Console

    from prunegate.builders import Builder
    from prunegate.wrapping import Explanation

_EXAMPLES = """examples:
  prunegate run recipes/quickstart.yaml
  prunegate run recipes/quickstart.yaml --set budget.fraction=0.25 --out runs/quarter
  prunegate run recipes/quickstart.yaml --check
  prunegate inspect timm/resnet18
  prunegate export runs/quickstart --out small.safetensors
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 0 if it went well, 2 for a mistake the user can mend, 130 if interrupted."""
    arguments = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO if arguments.verbose else logging.WARNING, format="%(name)s: %(message)s")
    try:
        return int(arguments.command(arguments))
    except PrunegateError as error:
        sys.stderr.write(f"prunegate: {error}\n")
        return 2
    except BrokenPipeError:  # the reader of a pipe, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.filename is None:  # no file the user named: a defect, which deserves its traceback
            raise
        sys.stderr.write(f"prunegate: {error.filename}: {error.strerror}. Choose another place, or mend it.\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("prunegate: interrupted\n")
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="prunegate",
        description="Differentiable structured pruning: wrap a model, train its gates, compact it without loss.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"prunegate {__version__}")
    parser.add_argument("-v", "--verbose", action="store_true", help="log what is being done")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    run = commands.add_parser(
        "run", help="carry out a recipe", description="Train, prune and compact as a recipe says."
    )
    run.add_argument("recipe", type=Path, help="a recipe in YAML")
    run.add_argument("--check", action="store_true", help="validate the recipe and what it refers to, then stop")
    run.add_argument("--set", action="append", default=[], metavar="KEY.PATH=VALUE", help="override one value")
    run.add_argument("--out", type=Path, metavar="FOLDER", help="where to write; by default runs/<name>")
    run.set_defaults(command=_run)

    inspect = commands.add_parser(
        "inspect",
        help="show what can be pruned in a model",
        description="Channel groups, costs and what is pinned.",
    )
    inspect.add_argument("model", help="timm/<name>, torchvision/<name> or prunegate/<name>")
    inspect.add_argument("--arg", action="append", default=[], metavar="KEY=VALUE", help="argument of the model")
    inspect.add_argument(
        "--input-size",
        type=int,
        nargs="+",
        metavar="SIZE",
        help="shape of one sample, channels first: C H W; by default the model's own",
    )
    inspect.add_argument("--members", action="store_true", help="list every tensor axis of every channel group")
    inspect.add_argument("--json", action="store_true", help="print JSON instead of tables")
    inspect.set_defaults(command=_inspect)

    export = commands.add_parser(
        "export",
        help="copy a run's compact checkpoint",
        description="Verify a run's compact model and copy it.",
    )
    add_export_arguments(export)
    export.set_defaults(command=_export)
    return parser


def add_export_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``prunegate export``, which ``tools/export.py`` shares."""
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="safetensors file to write")
    parser.add_argument("--force", action="store_true", help="overwrite the file if it exists")


def _run(arguments: argparse.Namespace) -> int:
    from prunegate.recipe import check_recipe, load_recipe, run
    from prunegate.report.console import ConsoleListener

    recipe = load_recipe(arguments.recipe, arguments.set)
    if arguments.check:
        check_recipe(recipe)
        _console().print(f"{arguments.recipe}: valid; would write to {arguments.out or recipe.folder}/", soft_wrap=True)
        return 0
    listener = ConsoleListener()
    try:
        run(recipe, arguments.out, listener)
    finally:
        listener.close()
    return 0


def _inspect(arguments: argparse.Namespace) -> int:
    import torch

    from prunegate.builders import Builder, input_shape
    from prunegate.wrapping import wrap

    builder = Builder.parse(arguments.model, dict(map(_model_argument, arguments.arg)))
    model = builder.zeroed().eval()
    shape = tuple(arguments.input_size or input_shape(builder, model))
    if any(size < 1 for size in shape):
        raise TraceError(f"--input-size: found {shape}, expected sizes of at least 1, such as 3 224 224.")
    explanation = wrap(model, torch.zeros(1, *shape)).explain()
    if arguments.json:
        _console().print_json(json.dumps(_as_json(builder, shape, explanation)))
    else:
        size = " × ".join(map(str, shape))
        _print_explanation(_console(), f"{builder.full_name}, input {size}", explanation, arguments.members)
    return 0


def _model_argument(text: str) -> tuple[str, Any]:
    from prunegate.recipe.source import parse_value

    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ModelNameError(f"--arg {text}: expected KEY=VALUE, for example num_classes=10.")
    try:
        return key, parse_value(value)
    except ValueError as error:
        raise ModelNameError(f"--arg {text}: found {value!r}, expected a value in YAML: {error}.") from error


def _print_explanation(console: Console, title: str, explanation: Explanation, members: bool) -> None:
    from rich.table import Table

    table = Table(title=f"channel groups of {title}", title_justify="left")
    table.add_column("channel group")
    for column in ("units", "MACs share", "params share"):
        table.add_column(column, justify="right")
    table.add_column("members", justify="left" if members else "right")
    for group in explanation.groups:
        shares = (f"{group.macs_share:.1%}", f"{group.params_share:.1%}")
        listed = "\n".join(group.members) if members else str(len(group.members))
        table.add_row(group.name, str(group.num_units), *shares, listed)
    console.print(table)
    if explanation.pinned:
        pinned = Table(title="pinned", title_justify="left")
        pinned.add_column("channels of")
        pinned.add_column("units", justify="right")
        pinned.add_column("reason")
        pinned.add_column("what to do")
        for row in explanation.pinned:
            pinned.add_row(row.name, str(row.num_units), row.reason, row.advice)
        console.print(pinned)
    console.print(
        f"{explanation.dense_macs:,} MACs per sample, {explanation.dense_params:,} parameters; the gates can remove "
        f"up to {explanation.reachable_macs_share:.1%} of the MACs.\n{explanation.reach_line}\n"
        "A group's share is what goes when all but one of its units go; groups share MACs, so shares overlap.",
        highlight=False,
        soft_wrap=True,
    )


def _as_json(builder: Builder, shape: Sequence[int], explanation: Explanation) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "model": builder.full_name,
        "arguments": dict(builder.arguments),
        "input_size": list(shape),
        **asdict(explanation),
        "reachable_macs_share": explanation.reachable_macs_share,
    }


def _export(arguments: argparse.Namespace) -> int:
    path = export(arguments.run, arguments.out, arguments.force)
    _console().print(
        f"{path}: {path.stat().st_size:,} bytes, loads with prunegate.load({str(path)!r})",
        highlight=False,
        soft_wrap=True,
    )
    return 0


def export(run: Path, out: Path, force: bool = False) -> Path:
    """Copy the compact checkpoint of a run to ``out``, after making sure that it loads.

    Raises:
        RunFolderError: ``run`` holds no finished run.
        CheckpointError: The checkpoint is damaged, or ``out`` exists.
    """
    from prunegate.checkpoint import load
    from prunegate.files import replacing

    source = run / "compact.safetensors"
    if not source.is_file():
        raise RunFolderError(
            f"{run}: holds no compact.safetensors, expected the folder of a finished run. "
            "Run a recipe first: prunegate run recipes/quickstart.yaml."
        )
    if out.is_dir():
        raise CheckpointError(f"{out}: is a folder, expected the name of a file to write. Add one to it.")
    if out.exists() and not force:
        raise CheckpointError(f"{out}: exists already, expected a new file. Choose another, or say --force.")
    load(source)
    with replacing(out) as temporary:
        shutil.copyfile(source, temporary)
    return out


def _console() -> Console:
    from rich.console import Console

    return Console()


if __name__ == "__main__":
    sys.exit(main())
