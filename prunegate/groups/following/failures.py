"""Messages for failures of a model's own forward."""

from __future__ import annotations

from prunegate.errors import first_line

# Most characters shown of a foreign error's first line.
_LONGEST = 300


def why_it_failed(module: str, error: Exception) -> str:
    """The message for an error raised by a model's forward, with its first line only, as some errors are very long."""
    first = first_line(error)
    told = f"{type(error).__name__}: {first[:_LONGEST]}{' ...' if len(first) > _LONGEST else ''}"
    if type(error).__module__.startswith("torch._dynamo") or "HigherOrderOperator" in first:
        return (
            f"{module}: found code that torch compiles while the forward runs (torch.cond, flex_attention), expected "
            f"operations that can be traced one by one ({first[:60]}). Replace it with an ordinary branch, torch.where "
            "or scaled_dot_product_attention, and wrap again."
        )
    return (
        f"{module}: running the model on the example inputs failed with {told}. Channels are found by running it. Pass "
        "example_inputs with which model(...) works."
    )
