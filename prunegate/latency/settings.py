"""What latency means: of which call, and on what."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field

from prunegate.settings import Settings

Precision = Literal["float32", "bfloat16", "float16"]
Runtime = Literal["eager", "compiled", "onnxruntime"]


class LatencySettings(Settings):
    """How the latency of a forward pass is measured."""

    batch_size: Annotated[int, Field(ge=1, le=65536)] = Field(1, description="samples in one call")
    device: str | None = Field(None, description="where it runs, such as cpu or cuda:0; by default the model's device")
    threads: Annotated[int, Field(ge=1, le=4096)] | None = Field(
        None, description="threads that torch computes with; by default as many as now"
    )
    precision: Precision = Field("float32", description="type of weights and inputs")
    runtime: Runtime = Field(
        "eager", description="eager, compiled (torch.compile) or onnxruntime (an ONNX export, on the CPU)"
    )

    @property
    def dtype(self) -> torch.dtype:
        """The type of weights and inputs."""
        dtype = getattr(torch, self.precision)
        assert isinstance(dtype, torch.dtype)
        return dtype
