"""How one model is run."""

from __future__ import annotations

from dataclasses import dataclass

import torch

RUNTIMES = ("eager", "compiled", "onnxruntime", "fused")
LAYOUTS = ("contiguous", "channels_last")
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Setting:
    """How one model is run, besides its batch size."""

    threads: int
    layout: str
    precision: str
    runtime: str

    @property
    def parts(self) -> tuple[str, ...]:
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        return self.runtime, threads, self.precision, self.layout
