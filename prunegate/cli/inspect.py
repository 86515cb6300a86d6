"""`prunegate inspect`: show what can be pruned in a model."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from prunegate.cli.console import console
from prunegate.errors import ModelNameError, TraceError

if TYPE_CHECKING:
    from rich.console import Console

    from prunegate.builders import Builder
    from prunegate.own_code import OwnBuilder
    from prunegate.wrapping import Explanation


def inspect_command(arguments: argparse.Namespace) -> int:
    if arguments.rules:
        return _list_rules(arguments.json)
    if arguments.model is None:
        raise ModelNameError(
            "inspect: no model was given, expected one, such as timm/resnet18. Or use --rules to list the operations."
        )
    import torch

    from prunegate.builders import Builder, input_shape
    from prunegate.own_code import OwnBuilder, is_own
    from prunegate.wrapping import wrap

    given = dict(map(model_argument, arguments.arg))
    builder: Builder | OwnBuilder
    if is_own(arguments.model):
        if arguments.input_size is None:
            raise TraceError(
                f"--input-size: is missing, expected the shape of one sample that {arguments.model} takes, such as "
                "3 224 224. The model is run on it."
            )
        builder = OwnBuilder(arguments.model, given)
        model, shape = builder.build().eval(), tuple(arguments.input_size)
    else:
        builder = Builder.parse(arguments.model, given)
        model = builder.zeroed().eval()
        shape = tuple(arguments.input_size or input_shape(builder, model))
    if any(size < 1 for size in shape):
        raise TraceError(f"--input-size: found {shape}, expected sizes of at least 1, such as 3 224 224.")
    explanation = wrap(model, torch.zeros(1, *shape)).explain()
    if arguments.json:
        console().print_json(json.dumps(_as_json(builder, shape, explanation)))
    else:
        size = " × ".join(map(str, shape))
        _print_explanation(console(), f"{builder.full_name}, input {size}", explanation, arguments.members)
    return 0


def _list_rules(as_json: bool) -> int:
    """List the operations with a rule, by family."""
    from dataclasses import asdict

    from prunegate.groups.rules.listing import rule_families

    families = rule_families()
    if as_json:
        console().print_json(json.dumps([asdict(family) for family in families]))
        return 0
    from rich.table import Table

    table = Table(title="operations that channels are followed through", title_justify="left", show_lines=True)
    table.add_column("family")
    table.add_column("what they do to channels", ratio=2)
    table.add_column("operations", ratio=3)
    for family in families:
        table.add_row(family.name, family.what, ", ".join(family.operations))
    console().print(table)
    console().print(
        "Operations that torch tags as pointwise need no rule. Channels read by other unlisted operations are kept; "
        "prunegate.register_rule adds rules.",
        highlight=False,
        soft_wrap=True,
    )
    return 0


def model_argument(text: str) -> tuple[str, Any]:
    from prunegate.recipe.source import parse_value

    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ModelNameError(f"--arg {text}: expected KEY=VALUE, for example num_classes=10.")
    try:
        return key, parse_value(value)
    except ValueError as error:
        raise ModelNameError(f"--arg {text}: found {value!r}, expected a value in YAML: {error}.") from error


def _print_explanation(console: Console, title: str, explanation: Explanation, members: bool) -> None:
    from rich.table import Table

    table = Table(title=f"channel groups of {title}", title_justify="left")
    table.add_column("channel group")
    for column in ("units", "MACs share", "params share"):
        table.add_column(column, justify="right")
    table.add_column("members", justify="left" if members else "right")
    for group in explanation.groups:
        shares = (f"{group.macs_share:.1%}", f"{group.params_share:.1%}")
        listed = "\n".join(group.members) if members else str(len(group.members))
        each = f" × {group.channels_per_unit}" if group.channels_per_unit > 1 else ""
        table.add_row(group.name, f"{group.num_units}{each}", *shares, listed)
    console.print(table)
    if explanation.pinned:
        pinned = Table(title="not prunable", title_justify="left")
        pinned.add_column("channels of")
        pinned.add_column("units", justify="right")
        pinned.add_column("reason")
        pinned.add_column("what to do")
        for row in explanation.pinned:
            pinned.add_row(row.name, str(row.num_units), row.reason, row.advice)
        console.print(pinned)
    for limit in explanation.limits:
        console.print(f"limit: {limit}")
    console.print(
        f"{explanation.dense_macs:,} MACs per sample, {explanation.dense_params:,} parameters; the gates can remove "
        f"up to {explanation.reachable_macs_share:.1%} of the MACs.\n{explanation.reach_line}\n"
        "Units are shown × their channels. A group's share is what is removed if only one of its units is kept; groups "
        "share MACs, so shares overlap.",
        highlight=False,
        soft_wrap=True,
    )


def _as_json(builder: Builder | OwnBuilder, shape: Sequence[int], explanation: Explanation) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "model": builder.full_name,
        "arguments": dict(builder.arguments),
        "input_size": list(shape),
        **asdict(explanation),
        "reachable_macs_share": explanation.reachable_macs_share,
    }
