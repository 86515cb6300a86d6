"""`prunegate bench`: time and memory of dense and compact models side by side on this machine."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from prunegate.cli.console import console
from prunegate.cli.inspect import model_argument
from prunegate.errors import BenchError

if TYPE_CHECKING:
    from prunegate.bench import Advice, Bench, BenchSettings

logger = logging.getLogger(__name__)

_FILES = ("bench.json", "bench.png")


def bench_command(arguments: argparse.Namespace) -> int:
    _check_out(arguments.out, arguments.force)  # before anything is loaded, like the settings
    settings = _settings(arguments)

    from prunegate.bench import Gathering, advise, bench_tables, run_bench
    from prunegate.own_code import OwnBuilder

    size = tuple(arguments.input_size) if arguments.input_size else None
    if size is not None and any(n < 1 for n in size):
        raise BenchError(f"--input-size: found {size}, expected sizes of at least 1, such as 3 224 224.")
    maker = None if arguments.model is None else OwnBuilder(arguments.model)
    gathering = Gathering(maker, dict(map(model_argument, arguments.arg)), size)
    with _progress(not (arguments.quiet or arguments.json)) as tell:
        for source in (arguments.source, *arguments.against):
            tell(f"loading {source}")
            gathering.add(source)
        contenders, inputs, notes = gathering.finish()
        bench = run_bench(contenders, inputs, settings, notes, tell)
    advice = advise(bench)
    if arguments.out is not None:
        _write(arguments.out, bench, advice)
    if arguments.json:
        console().print_json(json.dumps({**bench.as_dict(), "advice": advice.as_dict()}))
        return 0
    for part in bench_tables(bench, advice):
        console().print(part)
    if arguments.out is not None and not arguments.quiet:
        written = " and ".join(str(arguments.out / name) for name in _FILES)
        console().print(f"written: {written}", highlight=False, markup=False, soft_wrap=True)
    return 0


def _settings(arguments: argparse.Namespace) -> BenchSettings:
    import torch

    from prunegate.bench import BenchSettings

    return BenchSettings(
        _numbers("--batch-sizes", arguments.batch_sizes),
        _numbers("--threads", arguments.threads) if arguments.threads is not None else (),
        _names(arguments.layouts),
        _names(arguments.precisions),
        _names(arguments.runtimes),
        arguments.seconds,
        arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"),
    )


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _numbers(option: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in _names(text))
    except ValueError as error:
        raise BenchError(f"{option}: found {text!r}, expected whole numbers separated by commas, as 1,16.") from error


def _check_out(out: Path | None, force: bool) -> None:
    if out is None:
        return
    if out.exists() and not out.is_dir():
        raise BenchError(f"{out}: is a file, expected a folder to write to. Choose another with --out.")
    present = [name for name in _FILES if (out / name).exists()]
    if present and not force:
        raise BenchError(
            f"{out / present[0]}: exists already, expected a new file. Choose another folder with --out, or use "
            "--force."
        )


def _write(out: Path, bench: Bench, advice: Advice) -> None:
    from prunegate.bench import draw_bench
    from prunegate.files import replacing

    with replacing(out / "bench.json") as temporary:
        temporary.write_text(json.dumps({**bench.as_dict(), "advice": advice.as_dict()}, indent=2), encoding="utf-8")
    draw_bench(out / "bench.png", bench)


@contextlib.contextmanager
def _progress(shown: bool) -> Iterator[Callable[[str], None]]:
    """Yields a function that is told what is being done: a line on a terminal, messages with ``-v``."""
    place = console()
    with contextlib.ExitStack() as stack:
        status = stack.enter_context(place.status("loading")) if shown and place.is_terminal else None

        def tell(text: str) -> None:
            logger.info("%s", text)
            if status is not None:
                from rich.text import Text

                status.update(Text(text, no_wrap=True, overflow="ellipsis"))

        yield tell
