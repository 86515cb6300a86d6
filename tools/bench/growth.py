"""How time grows with the size of the model: wrap, a training step's gates, harden and compact.

    python tools/bench/growth.py [--millions 10 30 100 300]

Vision transformers of a fixed depth get wider, so that parameters grow and operations do not. Seconds are those of the
processor, on one thread. The slope is that of a straight line through the points in a log-log plot: 1 is growth in
proportion to the parameters.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(CHECKOUT)]

import numpy as np  # noqa: E402
import timm  # noqa: E402
import torch  # noqa: E402

import prunegate  # noqa: E402

_DEPTH = 12


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--millions", nargs="+", type=float, default=[10, 30, 100, 300], help="parameters in millions")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"), help="where the table goes")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    names = ("parameters (M)", "wrap (s)", "masked weights (s)", "harden (s)", "compact (s)", "forward (s)")
    lines = ["| " + " | ".join(names) + " |", "|" + " --- |" * len(names)]
    for millions in options.millions:
        rows.append(_row(millions))
        lines.append("| " + " | ".join(f"{value:.3g}" for value in rows[-1]) + " |")
        print(lines[-1], flush=True)
    table = np.log(np.array(rows))
    slopes = [np.polyfit(table[:, 0], table[:, column], 1)[0] for column in range(1, table.shape[1])]
    lines.append("| slope | " + " | ".join(f"{slope:.2f}" for slope in slopes) + " |")
    print(lines[-1])
    options.out.write_text(f"# Growth\n\nWritten by `python tools/bench/growth.py`.\n\n{__doc__.split(chr(10), 4)[4]}\n"
                           + "\n".join(lines) + "\n")  # fmt: skip
    return 0


def _row(millions: float) -> tuple[float, ...]:
    width = 64 * max(1, round(math.sqrt(millions * 1e6 / (12 * _DEPTH)) / 64))
    torch.manual_seed(0)
    model = timm.models.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=width, depth=_DEPTH, num_heads=width // 64, num_classes=10
    ).eval()
    params = sum(parameter.numel() for parameter in model.parameters())
    x = torch.randn(2, 3, 32, 32)
    wrap, gated = _timed(lambda: prunegate.wrap(model, x))
    dense, _ = _timed(lambda: model(x))
    gated.train()
    step = min(_timed(lambda: gated(x))[0] for _ in range(3))
    gated.eval()
    gated.gates.start_at(0.9, gated.magnitudes(), 1.0)
    harden, _ = _timed(lambda: gated.harden(prunegate.Budget("macs", 0.5)))
    compact, _ = _timed(lambda: prunegate.compact(gated))
    return params / 1e6, wrap, max(step - dense, 1e-3), harden, compact, dense


def _timed(work: object) -> tuple[float, object]:
    start = time.process_time()
    with torch.no_grad():
        result = work()  # type: ignore[operator]
    return time.process_time() - start, result


if __name__ == "__main__":
    raise SystemExit(main())
