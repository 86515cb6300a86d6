"""Dense and compact model side by side, with all figures measured on the models."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.table import Table
from safetensors.torch import save
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from prunegate.measuring import STEADY_SPREAD
from prunegate.modes import eval_mode
from prunegate.report.latency import Latency, measure_latency
from prunegate.report.metric import ACCURACY, metric_text

# A compact model this close to the dense one's latency is not faster.
_NO_FASTER = 0.98


@dataclass(frozen=True)
class ModelFigures:
    """One model in numbers.

    Attributes:
        accuracy: Top-1 on the test data, in [0, 1], or the comparison's metric.
        macs: Multiply-accumulates per sample, counted by torch in a forward pass.
        params: Number of parameters.
        file_bytes: Size of the weights as a safetensors file.
    """

    accuracy: float
    macs: int
    params: int
    file_bytes: int
    latencies: tuple[Latency, ...]


@dataclass(frozen=True)
class Comparison:
    """Figures of the dense and of the compact model.

    Attributes:
        metric: Name of the figure in ``accuracy``.
    """

    dense: ModelFigures
    compact: ModelFigures
    metric: str = ACCURACY

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def measure(
        cls,
        dense: nn.Module,
        compact: nn.Module,
        accuracies: tuple[float, float],
        shape: Sequence[int],
        batch_sizes: Sequence[int] = (1, 64),
        metric: str = ACCURACY,
    ) -> Comparison:
        """Measure costs, sizes and latencies of both models; accuracies are arguments."""
        timed = [measure_latency([dense, compact], shape, batch_size) for batch_size in batch_sizes]
        figures = [
            ModelFigures(
                accuracies[i],
                counted_macs(model, shape),
                sum(p.numel() for p in model.parameters()),
                _file_bytes(model),
                tuple(pair[i] for pair in timed),
            )
            for i, model in enumerate((dense, compact))
        ]
        return cls(figures[0], figures[1], metric)

    def not_faster(self) -> str | None:
        """A sentence if the compact model takes as long as the dense one, at some batch size where times are steady."""
        for was, now in zip(self.dense.latencies, self.compact.latencies, strict=True):
            if was.is_steady and now.is_steady and now.median_ms >= _NO_FASTER * was.median_ms:
                return (
                    f"at batch {was.batch_size} the compact model takes {now.median_ms:.3g} ms and the dense one "
                    f"{was.median_ms:.3g} ms, although it has {self.compact.macs / self.dense.macs:.2f} of the MACs. "
                    "Set gates.round_to: auto, which keeps the widths that run fastest here, or budget.metric: "
                    "latency_ms."
                )
        return None

    def table(self) -> Table:
        """A table for the terminal."""
        table = Table(title="dense and compact", title_justify="left")
        table.add_column("")
        for column in ("dense", "compact", "ratio"):
            table.add_column(column, justify="right")
        dense, compact = self.dense, self.compact
        difference = compact.accuracy - dense.accuracy
        texts = (metric_text(model.accuracy, self.metric) for model in (dense, compact))
        table.add_row(
            self.metric, *texts, f"{100 * difference:+.2f} points" if self.metric == ACCURACY else f"{difference:+.4g}"
        )
        for name, a, b in (
            ("MACs per sample", dense.macs, compact.macs),
            ("parameters", dense.params, compact.params),
            ("file size", dense.file_bytes, compact.file_bytes),
        ):
            unit = " B" if name == "file size" else ""
            table.add_row(name, f"{a:,}{unit}", f"{b:,}{unit}", f"{b / a:.4f}")
        for was, now in zip(dense.latencies, compact.latencies, strict=True):
            ratio = f"{now.median_ms / was.median_ms:.2f}" if was.is_steady and now.is_steady else "not steady"
            table.add_row(f"latency, batch {was.batch_size}", str(was), str(now), ratio)
        if not all(latency.is_steady for latency in (*dense.latencies, *compact.latencies)):
            table.caption = (
                f"not steady: the times vary by more than {STEADY_SPREAD:.0%} of their median, so their ratio means "
                "little. Measure again on an idle machine."
            )
            table.caption_justify = "left"
        return table


def counted_macs(model: nn.Module, shape: Sequence[int]) -> int:
    """MACs per sample, from torch's own counter in one forward pass."""
    device = next(iter(model.parameters())).device
    fast = torch.backends.mha.get_fastpath_enabled()
    # The counter counts attention as matrix products, but not the fused kernels of CPUs and nn.MultiheadAttention.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with eval_mode(model), torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model(torch.zeros(1, *shape, device=device))
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return int(counter.get_total_flops() // 2)


def _file_bytes(model: nn.Module) -> int:
    tensors = {name: t.detach().cpu().clone() for name, t in model.state_dict().items() if torch.is_tensor(t)}
    return io.BytesIO(save(tensors)).getbuffer().nbytes
