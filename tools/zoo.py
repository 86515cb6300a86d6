"""Coverage: wrap, mask, compact and compare the models of torchvision, timm and some of transformers.

    python tools/zoo.py --torchvision [--timm] [--transformers] [--backend auto|module|graph] [--peer torch-pruning]
    python tools/zoo.py --packages [--resume] [--only 'monai/*']

Each model runs in a process of its own, with a time-out. Results go to tools/zoo/results-LIBRARY-BACKEND.jsonl,
one line per model, and from all such files there to tools/zoo/RESULTS.md. A model that runs out of time beside
another runs once more alone, with all cores. Without --resume the chosen models
run again and their lines are replaced; lines of other models stay. --packages writes results-packages.jsonl and
PACKAGES.md; its models come from the packages of the extra named zoo, from small configurations.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

# The package zoo/ beside this file has precedence over the file itself.
from zoo.packages_table import write_packages
from zoo.table import Row, read_rows, write_table

FOLDER = Path(__file__).resolve().parent / "zoo"
CHECKOUT = FOLDER.parent.parent
PACKAGES = "packages"
LIBRARIES = ("torchvision", "timm", "transformers", PACKAGES)
STDERR_LINES = 12
_HELP = {PACKAGES: "run small models of twelve further packages (zoo/packages), with Torch-Pruning beside them"}


def main() -> int:
    options = _parser().parse_args()
    # A checkout works without an install; what PYTHONPATH names comes first.
    sys.path.append(str(CHECKOUT))
    if options.child:
        from zoo.child import run_child

        return run_child(*options.child)
    if options.names:
        if options.names == PACKAGES:
            from zoo.packages import names

            print(json.dumps(names()))
            return 0
        from zoo.models import names_of

        print(json.dumps(names_of(options.names)))
        return 0
    chosen = [library for library in LIBRARIES if getattr(options, library)]
    if not chosen:
        print(f"Nothing to run: give one of {', '.join(f'--{library}' for library in LIBRARIES)}.", file=sys.stderr)
        return 2
    try:
        for library in chosen if not options.table else ():
            _run_library(library, options)
    except KeyboardInterrupt:
        print("Stopped. --resume goes on from here.", file=sys.stderr)
        return 130
    finally:  # what is done is worth a table
        if chosen != [PACKAGES]:
            write_table(FOLDER, options.out)
        if PACKAGES in chosen:
            write_packages(FOLDER, FOLDER / "PACKAGES.md")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for library in LIBRARIES:
        parser.add_argument(
            f"--{library}", action="store_true", help=_HELP.get(library, f"run the models of {library}")
        )
    parser.add_argument("--backend", default="auto", choices=["auto", "module", "graph"])
    parser.add_argument("--peer", choices=["torch-pruning"], help="run this library too, on the same models")
    parser.add_argument("--only", nargs="+", metavar="PATTERN", help="patterns of model names, as in a shell")
    parser.add_argument("--jobs", type=int, default=2, help="models at once, which share the cores (default 2)")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds a model may take (default 300)")
    parser.add_argument("--out", type=Path, default=FOLDER / "RESULTS.md", help="where the table goes")
    parser.add_argument("--table", action="store_true", help="run nothing, write the tables of what was found")
    parser.add_argument("--resume", action="store_true", help="skip models that have a result already")
    # What this script calls itself with.
    parser.add_argument("--child", nargs=2, metavar=("KIND", "MODEL"), help=argparse.SUPPRESS)
    parser.add_argument("--names", metavar="LIBRARY", help=argparse.SUPPRESS)
    return parser


def _run_library(library: str, options: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

    names = [name for name in _names(library) if _wanted(name, options.only)]
    if not names:
        print(f"{library}: no model is named like {', '.join(options.only)}.", file=sys.stderr)
        return
    kinds = [PACKAGES] if library == PACKAGES else [options.backend] + ([options.peer] if options.peer else [])
    tasks = [(kind, name) for kind in kinds for name in _to_run(library, kind, names, options.resume)]
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(soft_wrap=True)) as progress:
        bar = progress.add_task(library, total=len(tasks))

        def record(kind: str, row: Row) -> None:
            _append(_path(library, kind), row)
            progress.advance(bar)
            progress.console.print(_line(kind, row), highlight=False, markup=False)

        late: list[tuple[str, str]] = []
        for kind, row in _run_all(tasks, options.jobs, options.timeout):
            if row["status"] == "timeout" and options.jobs > 1:
                late.append((kind, row["model"]))
                progress.console.print(f"{row['model']} ({kind}): out of time beside another, again alone later")
                continue
            record(kind, row)
        for kind, row in _run_all(late, 1, options.timeout):  # the same time, but all cores
            record(kind, row)


def _names(library: str) -> list[str]:
    """Asked of a child, so that this process stays small."""
    command = [sys.executable, "-W", "ignore", __file__, "--names", library]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{library}: its models could not be listed (see above).")
    return [f"{library}/{name}" for name in json.loads(done.stdout.splitlines()[-1])]


def _wanted(name: str, patterns: list[str] | None) -> bool:
    short = name.partition("/")[2]
    return patterns is None or any(fnmatch.fnmatch(short, p) or fnmatch.fnmatch(name, p) for p in patterns)


def _to_run(library: str, kind: str, names: list[str], resume: bool) -> list[str]:
    """The models without a result; without ``resume`` all of them, and their old results go."""
    path = _path(library, kind)
    rows = read_rows(path)
    if resume:
        return [name for name in names if name not in rows]
    kept = [row for name, row in rows.items() if name not in set(names)]
    if len(kept) < len(rows):
        path.write_text("".join(json.dumps(row) + "\n" for row in kept))
    return names


def _run_all(tasks: list[tuple[str, str]], jobs: int, timeout: float) -> Iterable[tuple[str, Row]]:
    """Results in the order in which they come."""
    pool = ThreadPoolExecutor(max(1, jobs))
    try:
        waiting: dict[Future[Row], str] = {pool.submit(_run, k, n, timeout, jobs): k for k, n in tasks}
        while waiting:
            done, _ = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                yield waiting.pop(future), future.result()
    finally:  # on Ctrl-C no further model is begun; the terminal has told the children itself
        pool.shutdown(cancel_futures=True)


def _run(kind: str, name: str, timeout: float, jobs: int) -> Row:
    """One model in a child process; whatever becomes of it, a row with a status."""
    threads = max(1, (os.cpu_count() or 1) // jobs)
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)),
        "HF_HUB_OFFLINE": "1",
        "YOLO_OFFLINE": "true",
        "TOKENIZERS_PARALLELISM": "false",
    }
    command = [sys.executable, "-W", "ignore", __file__, "--child", kind, name]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace", env=environment
    ) as child:
        try:
            out, err = child.communicate(timeout=timeout)
            late = False
        except subprocess.TimeoutExpired:
            child.kill()
            out, err = child.communicate()
            late = True
    row: Row = {"model": name, **_last_row(out)}
    stage = row.pop("stage", "start")
    if "status" not in row:
        if late:
            row |= {"status": "timeout", "message": f"killed after {timeout:g} s, at: {stage}"}
        else:
            row |= {"status": "crash", "message": f"{stage}: {_why_ended(child.returncode, err)}"}
    if row["status"] not in ("ok", "exact"):
        row["stderr"] = err.strip().splitlines()[-STDERR_LINES:]
    return row


def _last_row(out: str) -> dict[str, Any]:
    """A child prints its row again at every stage; the last whole one counts."""
    for line in reversed(out.splitlines()):
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            return row
    return {}


def _why_ended(code: int, err: str) -> str:
    if code < 0:
        return f"ended by signal {-code}" + (", probably for want of memory" if code == -9 else "")
    return (err.strip().splitlines() or [f"exit code {code}"])[-1][:300]


def _path(library: str, kind: str) -> Path:
    return FOLDER / (f"results-{library}.jsonl" if kind == library else f"results-{library}-{kind}.jsonl")


def _append(path: Path, row: Row) -> None:
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def _line(kind: str, row: Row) -> str:
    parts = [f"{row['model']} ({kind}): {row['status']}"]
    if "differences" in row:
        parts += [f"{place} {value:.0e}" for place, value in row["differences"].items() if value is not None]
    if "removed" in row:
        parts.append(f"removed {row['removed']:.3f}")
    if row.get("worst") is not None:
        parts.append(f"worst {row['worst']:.1e}")
    if "wrap_s" in row:
        parts.append(f"wrap {row['wrap_s']:.1f} s")
    if "peak_mib" in row:
        parts.append(f"peak {row['peak_mib']} MiB")
    if "peer" in row:
        parts.append(f"peer {row['peer']['status']} {row['peer'].get('removed', '')}".strip())
    parts += [row["message"][:160]] if row.get("message") else []
    return ", ".join(parts)


if __name__ == "__main__":
    sys.exit(main())
