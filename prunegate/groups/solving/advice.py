"""Advice on channels that are not prunable, by reason."""

from __future__ import annotations

# Followed by the operation's full name.
NO_RULE = "no rule says what this operation does to channels"
# A part of the reason, and the advice; the first match applies.
_ADVICE: tuple[tuple[str, str], ...] = (
    ("part of the model's output", "Nothing is wrong: callers of the model rely on these."),
    ("excluded by the pattern", "Drop the pattern from exclude."),
    ("a single unit", "Nothing to do: a layer cannot be empty."),
    ("hidden units of a projected layer", "Nothing to do: their projection is pruned."),
    ("its state comes from outside", "Let the model start from zeros, or compute the state with its own layer."),
    ("no layer produces", "Nothing to do: these are constants or inputs."),
    ("no weight reads", "Nothing to do: they reach the output without another layer."),
    ("read by a weight that is computed", "Store the weight as a parameter, or standardise it with torch's functions."),
    ("cutting it breaks the model", "Read the sizes from tensors (x.shape) instead of attributes or literals there, "
     "or wrap with backend=\"graph\"."),
    ("picked by its position", "Slice ranges (x[:, a:b]) instead of single channels."),
    ("index", "Slice or permute with fixed positions instead of an index tensor, where possible."),
    ("joined with channels", "Let layers produce the channels of both sides, for example with a 1x1 convolution."),
    ("merged into one dimension", "Keep the two kinds of channels in separate dimensions."),
    ("meets channels that cannot be removed", "The other operand holds inputs or kept channels; a layer between the "
     "two (a projection on the shortcut) makes them prunable."),
    ("summed against channels that cannot", "The other operand holds inputs or kept channels; a layer between the "
     "two makes them prunable."),
    ("is taken over these channels", "Use one of torch's functions for it (mean, var, layer_norm, softmax), which "
     "have a masked form."),
    ("statistics are taken", "Use one of torch's norm functions, which have a masked form."),
    ("padded", "Widen with a 1x1 convolution instead of padding or cropping channels."),
    ("whole groups of this convolution", "Nothing to do: whole groups are removed."),
    ("table or scale", "Nothing to do: it is shared by all heads; whole heads are removed."),
)  # fmt: skip
_OTHERWISE = "If it does treat channels separately, please report the model; prunegate.register_rule can add a rule."


def advice_for(reason: str) -> str:
    """The advice for a reason, in one sentence."""
    if reason.startswith(NO_RULE):
        name = reason.removeprefix(NO_RULE).removeprefix(": ") or "namespace::name"
        return (
            f"If it treats each channel by itself, call prunegate.register_rule({name!r}, like='relu'); if it does "
            f"something else, @prunegate.register_rule({name!r}) decorates a rule; help(prunegate.register_rule) "
            "shows how to write one."
        )
    return next((advice for part, advice in _ADVICE if part in reason), _OTHERWISE)
