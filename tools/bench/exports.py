"""Exports: which compact models go to ONNX and `torch.export`, beside their dense models, and how close they are.

    python tools/bench/exports.py [--only KIND ...] [--out FILE]

The models are those whose checkpoints the tests load again in a new process. Each is pruned to half of the units of
every channel group at random and exported with a dynamic batch, as is the dense model with its gates taken off. Each
file is run (ONNX Runtime; the loaded exported program) on two batch sizes and compared with the model in float32:
"difference" is max|file − model| / max|model|, and above 1e-4 nothing is written. The result goes to exports.md.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import torch
from torch import nn

FOLDER = Path(__file__).resolve().parent
sys.path.append(str(FOLDER.parent.parent))  # a checkout works without an install


def main() -> int:
    from prunegate.exporting import FORMATS
    from tests.checkpoint.models import MODELS, compacted, dense

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(MODELS), default=list(MODELS), metavar="KIND")
    parser.add_argument("--out", type=Path, default=FOLDER / "exports.md", help="where the table goes")
    options = parser.parse_args()
    rows, lost = [], 0
    for kind in options.only:
        name, size, backend = MODELS[kind]
        result, x = compacted(name, size, backend)
        for format in FORMATS:
            before, after = (_export(model, x, format) for model in (dense(name), result.model))
            lost += before[0] and not after[0]
            rows.append(f"| {kind} | {name} | {result.backend} | {format} | {before[1]} | {after[1]} |")
            print(rows[-1], flush=True)
    told = __doc__[__doc__.index("The models are") - 1 :]
    head = "| kind | model | back-end | format | dense: difference | compact: difference |\n" + "| --- " * 6 + "|"
    text = f"# Exports\n\nWritten by `python tools/bench/exports.py`.\n{told}\n" + "\n".join([head, *rows]) + "\n"
    text += f"\nFormats that a dense model has and its compact model has not: {lost}.\n"
    options.out.write_text(text)
    return int(lost > 0)


def _export(model: nn.Module, x: torch.Tensor, format: str) -> tuple[bool, str]:
    """Whether the model has this format, and what the table says."""
    from prunegate.errors import ExportError
    from prunegate.exporting import export_model
    from prunegate.groups import ExampleInputs

    with tempfile.TemporaryDirectory() as folder:
        try:
            done = export_model(model, ExampleInputs.of(x), Path(folder) / f"model.{format}", format)
        except ExportError as error:
            return False, "refused: " + str(error)[:150].replace("|", "/")
    return True, f"{done.max_rel:.1e}"


if __name__ == "__main__":
    sys.exit(main())
