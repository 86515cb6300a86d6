"""What to tell where a model's own forward fails."""

from __future__ import annotations

from prunegate.errors import first_line

# So many characters of a foreign error's first line.
_LONGEST = 300


def why_it_failed(module: str, error: Exception) -> str:
    """What to tell of an error that a model's forward raised: its first line, as some are as long as a book."""
    first = first_line(error)
    told = f"{type(error).__name__}: {first[:_LONGEST]}{' ...' if len(first) > _LONGEST else ''}"
    if type(error).__module__.startswith("torch._dynamo") or "HigherOrderOperator" in first:
        return (
            f"{module}: found code that torch compiles while the forward runs (torch.cond, flex_attention), expected "
            f"operations that can be followed one by one ({first[:60]}). Wrap the model with an ordinary branch, or "
            "torch.where, or scaled_dot_product_attention in its place."
        )
    return (
        f"{module}: running the model on the example inputs failed with {told}. Channels are found by running it. Give "
        "example_inputs with which model(...) works."
    )
