"""Command-line parsing and error handling."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from prunegate.cli.bench import bench_command
from prunegate.cli.completion import SHELLS, completion_command
from prunegate.cli.export import export_command
from prunegate.cli.inspect import inspect_command
from prunegate.cli.messages import log_to_stderr, warnings_in_lines
from prunegate.cli.recipe import init_command, keys_command
from prunegate.cli.run import run_command
from prunegate.cli.show import show_command
from prunegate.cli.verify import verify_command
from prunegate.errors import PrunegateError, RunStoppedError
from prunegate.version import __version__

_EXAMPLES = """examples:
  prunegate run recipes/quickstart.yaml
  prunegate init timm/resnet18 --weights mine.pth --folder images
  prunegate run recipe.yaml --check
  prunegate run recipe.yaml --set budget.fraction=0.25 --out runs/quarter
  prunegate run runs/quickstart --resume
  prunegate recipe keys budget
  prunegate inspect timm/resnet18
  prunegate inspect my_module:my_model --input-size 3 224 224
  prunegate export runs/quickstart --out small.safetensors
  prunegate export runs/quickstart --out small.onnx
  prunegate show small.safetensors
  prunegate verify small.safetensors
  prunegate bench small.safetensors --runtimes eager,compiled,onnxruntime
  eval "$(prunegate completion bash)"

exit codes:
  0 success, 2 a mistake in the arguments or files (see the message), 130 interrupted, 128 + n after signal n
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return 0 on success, 2 for a mistake the user can correct, 128 + n after signal n."""
    arguments = _parser().parse_args(argv)
    log_to_stderr(arguments.verbose, arguments.quiet)
    try:
        with warnings_in_lines():
            return int(arguments.command(arguments))
    except RunStoppedError as error:
        sys.stderr.write(f"prunegate: {error}\n")
        return 128 + error.signal
    except PrunegateError as error:
        sys.stderr.write(f"prunegate: {error}\n")
        return 2
    except BrokenPipeError:  # the reader of the pipe, such as head, has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.filename is None:  # not a file that the user named: a bug, so show the traceback
            raise
        sys.stderr.write(
            f"prunegate: {error.filename}: {error.strerror}. Choose another path, or correct its permissions.\n"
        )
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
    parser.add_argument("-q", "--quiet", action="store_true", help="print only results and errors")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    # The same two options after the command, without overriding those before it.
    common = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    common.add_argument("-v", "--verbose", action="store_true", help="log what is being done")
    common.add_argument("-q", "--quiet", action="store_true", help="print only results and errors")

    run = commands.add_parser(
        "run",
        parents=[common],
        help="run a recipe",
        description="Train, prune and compact a model according to a recipe.",
    )
    run.add_argument(
        "recipe", type=Path, help="a recipe in YAML, or the name of a shipped one; with --resume also a run's folder"
    )
    run.add_argument("--json", action="store_true", help="print the summary as JSON at the end, and no progress")
    run.add_argument("--check", action="store_true", help="validate the recipe and what it refers to, then stop")
    run.add_argument("--set", action="append", default=[], metavar="KEY.PATH=VALUE", help="override one value")
    run.add_argument("--out", type=Path, metavar="FOLDER", help="where to write; by default runs/<name>")
    run.add_argument("--resume", action="store_true", help="resume a run from its last checkpoint")
    run.add_argument(
        "--accept-changes", action="store_true", help="resume although the recipe has changed since the run began"
    )
    run.set_defaults(command=run_command)

    init = commands.add_parser(
        "init",
        parents=[common],
        help="write a recipe to start from",
        description="Write a commented recipe for a model and a data set.",
    )
    init.add_argument("model", help="timm/<name>, torchvision/<name>, prunegate/<name>, or module:function of your own")
    init.add_argument("--arg", action="append", default=[], metavar="KEY=VALUE", help="argument of the model")
    init.add_argument("--weights", metavar="FILE", help="trained weights: .safetensors, .pth or .pt")
    init.add_argument("--data", default="folder", help="data.name of the recipe; by default a folder of images")
    init.add_argument("--folder", help="where the data are")
    init.add_argument("--budget", type=float, default=0.5, metavar="FRACTION", help="of the MACs; by default 0.5")
    init.add_argument("--out", type=Path, default=Path("recipe.yaml"), metavar="FILE", help="by default recipe.yaml")
    init.add_argument("--force", action="store_true", help="overwrite the file if it exists")
    init.set_defaults(command=init_command)

    recipe = commands.add_parser("recipe", help="show the keys of recipes").add_subparsers(
        required=True, metavar="WHAT"
    )
    keys = recipe.add_parser(
        "keys",
        parents=[common],
        help="list every key",
        description="Every key of a recipe with its allowed values, default and meaning.",
    )
    keys.add_argument("section", nargs="?", help="a section or key, such as budget or stages.gate")
    keys.add_argument("--json", action="store_true", help="print JSON instead of lines")
    keys.set_defaults(command=keys_command)

    inspect = commands.add_parser(
        "inspect",
        parents=[common],
        help="show what can be pruned in a model",
        description="Show channel groups, costs and what cannot be pruned.",
    )
    inspect.add_argument(
        "model", nargs="?", help="timm/<name>, torchvision/<name>, prunegate/<name>, or module:function of your own"
    )
    inspect.add_argument("--rules", action="store_true", help="list every operation that channels are followed through")
    inspect.add_argument("--arg", action="append", default=[], metavar="KEY=VALUE", help="argument of the model")
    _add_input_size(inspect, "the model's own")
    inspect.add_argument("--members", action="store_true", help="list every tensor axis of every channel group")
    inspect.add_argument("--json", action="store_true", help="print JSON instead of tables")
    inspect.set_defaults(command=inspect_command)

    export = commands.add_parser(
        "export",
        parents=[common],
        help="write a compact model to another place or format",
        description="Verify a compact model and write it as a checkpoint, as ONNX, or as an exported program.",
    )
    export.add_argument("source", type=Path, metavar="RUN_OR_FILE", help="folder of a finished run, or a checkpoint")
    export.add_argument("--out", type=Path, required=True, metavar="FILE", help="file to write")
    export.add_argument("--force", action="store_true", help="overwrite the file if it exists")
    export.add_argument("--format", choices=["safetensors", "onnx", "pt2"], help="by default the suffix of FILE")
    export.add_argument("--fixed-batch", action="store_true", help="fix the batch size to that of the example")
    export.add_argument("--opset", type=int, metavar="N", help="ONNX operator set; by default the recommended one")
    _add_input_size(export, "the one it was pruned with")
    _add_model(export)
    export.add_argument("--json", action="store_true", help="print JSON instead of a line")
    export.set_defaults(command=export_command)

    show = commands.add_parser(
        "show",
        parents=[common],
        help="show the contents of a checkpoint",
        description="Show the metadata of a checkpoint; its weights are not read.",
    )
    show.add_argument("file", type=Path, metavar="RUN_OR_FILE", help="folder of a finished run, or a checkpoint")
    show.add_argument("--json", action="store_true", help="print JSON instead of tables")
    show.set_defaults(command=show_command)

    verify = commands.add_parser(
        "verify",
        parents=[common],
        help="check that a checkpoint is intact and its outputs unchanged",
        description="Compare the weights with their hash, and the model's outputs with those when it was saved.",
    )
    verify.add_argument("file", type=Path, metavar="RUN_OR_FILE", help="folder of a finished run, or a checkpoint")
    verify.add_argument(
        "--against", type=Path, metavar="DENSE", help="safetensors file of the dense model's weights to compare with"
    )
    _add_model(verify)
    verify.add_argument("--json", action="store_true", help="print JSON instead of lines")
    verify.set_defaults(command=verify_command)

    bench = commands.add_parser(
        "bench",
        parents=[common],
        help="measure time and memory of dense and compact models on this machine",
        description="Measure models in turn, side by side: a compact file with its dense model,\n"
        "all models of a run, or a model by name. Prints times, memory, and what to\nuse on this machine.",
        epilog="Lists are separated by commas, and every combination is measured. What cannot be\n"
        "run is listed with the reason.\n\nexit codes:\n  0 measured, also if some rows could not be run\n"
        "  2 a mistake in the arguments or files (see the message)\n  130 interrupted",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    bench.add_argument(
        "source", metavar="FILE|RUN|MODEL", help="a compact file, the folder of a run, or a model as inspect takes it"
    )
    bench.add_argument(
        "--against", nargs="+", action="extend", default=[], metavar="FILE|RUN|MODEL", help="more models to measure"
    )
    bench.add_argument("--batch-sizes", default="1,16", metavar="N,...", help="by default 1,16")
    bench.add_argument("--threads", metavar="N,...", help="threads on the CPU; by default torch's present number")
    bench.add_argument(
        "--layouts", default="contiguous", metavar="NAME,...", help="of contiguous (default), channels_last"
    )
    bench.add_argument(
        "--precisions",
        default="float32",
        metavar="NAME,...",
        help="of float32 (default), bfloat16, float16; weights and inputs are converted",
    )
    bench.add_argument(
        "--runtimes",
        default="eager",
        metavar="NAME,...",
        help="of eager (default), compiled (torch.compile), onnxruntime, fused (BatchNorm folded by torch)",
    )
    bench.add_argument("--device", choices=["cpu", "cuda"], help="by default cuda if there is one")
    bench.add_argument(
        "--seconds", type=float, default=1.0, metavar="S", help="for each row, by default 1; up to thrice if noisy"
    )
    bench.add_argument("--arg", action="append", default=[], metavar="KEY=VALUE", help="argument of models by name")
    _add_input_size(bench, "that of the first file, or the model's own")
    _add_model(bench)
    bench.add_argument("--json", action="store_true", help="print JSON instead of tables")
    bench.add_argument("--out", type=Path, metavar="FOLDER", help="write bench.json and bench.png into it")
    bench.add_argument("--force", action="store_true", help="overwrite these files if they exist")
    bench.set_defaults(command=bench_command)

    completion = commands.add_parser(
        "completion",
        parents=[common],
        help="print a script that completes commands in a shell",
        description='Print a completion script. For bash, put this into ~/.bashrc: eval "$(prunegate completion bash)"',
    )
    completion.add_argument("shell", choices=SHELLS)
    completion.set_defaults(command=completion_command, parser=parser)
    return parser


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        metavar="MODULE:FUNCTION",
        help="your own function that makes the dense model; its module is imported",
    )


def _add_input_size(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument(
        "--input-size",
        type=int,
        nargs="+",
        metavar="SIZE",
        help=f"shape of one sample, channels first: C H W; by default {default}",
    )
