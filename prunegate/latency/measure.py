"""`measure_latency`: makes milliseconds one of the costs of a gated model."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from pydantic import ValidationError

from prunegate.errors import BudgetError
from prunegate.latency.latency import Latency
from prunegate.latency.settings import LatencySettings, Precision, Runtime
from prunegate.wrapping import GatedModel, gated_model


@torch.inference_mode(False)
def measure_latency(
    gated: GatedModel,
    batch_size: int = 1,
    *,
    device: str | torch.device | None = None,
    threads: int | None = None,
    precision: Precision = "float32",
    runtime: Runtime = "eager",
    cache: str | os.PathLike[str] | None = None,
) -> Latency:
    """Measure the operations of a gated model on this machine, so that ``"latency_ms"`` becomes one of its costs.

    Each distinct operation is timed over its input and output widths (seconds to a minute; kept for the next time in
    the user's cache folder), and the sum is calibrated on whole random subnetworks. Do it with trained weights, on an
    idle machine, and where the compact model will run.

    Args:
        batch_size: Samples in one call; the example inputs are repeated to as many.
        device: By default the model's.
        threads: Threads that torch computes with; by default as many as now.
        precision: Type of weights and inputs, ``"float32"``, ``"bfloat16"`` or ``"float16"``.
        runtime: ``"eager"``, ``"compiled"`` or ``"onnxruntime"``. Operations are always timed eagerly; calibration and
            `GatedModel.harden` measure whole models in this runtime. Compiling each of them takes minutes in all.
        cache: Folder of measured operations; by default in the user's cache folder.

    Returns:
        The latency, which is also ``gated.latency``.

    Raises:
        NotGatedError: ``gated`` is not a gated model.
        BudgetError: A setting is not among those above.
    """
    gated = gated_model(gated, "measure_latency")
    try:
        settings = LatencySettings(
            batch_size=batch_size,
            device=None if device is None else str(device),
            threads=threads,
            precision=precision,
            runtime=runtime,
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise BudgetError(f"measure_latency: {first['loc'][0]}: found {first['input']!r}. {first['msg']}.") from error
    gated.latency = latency = Latency.measure(gated, settings, None if cache is None else Path(cache))
    return latency
