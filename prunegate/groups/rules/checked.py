"""Calling users' rules so that mistakes in them are reported as such."""

from __future__ import annotations

from collections.abc import Sequence
from functools import wraps
from typing import Any

import numpy as np
import torch

from prunegate.errors import PrunegateError, RuleError, first_line
from prunegate.groups.rules.call import Call, Rule
from prunegate.groups.solving.labels import Labels


def checked(rule: Rule, target: str, like: str | None) -> Rule:
    """Wrap a rule so that any mistake in it raises a `RuleError` that names it.

    Args:
        target: The operation or module it is registered for, for messages.
        like: The torch operation whose rule it is, if any.
    """
    name = f"like={like!r}" if like is not None else f"the rule {getattr(rule, '__qualname__', rule)!s}"
    where = f"register_rule({target}): {name}"

    @wraps(rule)
    def told(call: Call) -> list[Labels]:
        try:
            result = rule(call)
        except PrunegateError:
            raise
        except Exception as error:  # a user's code may raise anything
            given = ", ".join(call.arguments)
            raise RuleError(
                f"{where} raised {type(error).__name__}: {first_line(error)}{_line_of(error, rule)}, at {_place(call)}."
                f" Its arguments are {given}. help(prunegate.register_rule) shows what a rule does."
            ) from error
        fault = _fault(result, call.outputs)
        if fault is not None:
            raise RuleError(
                f"{where} returned {fault}, at {_place(call)}. A label has as many dimensions as the tensor: full size "
                "where its units lie, 1 elsewhere. help(prunegate.register_rule) has examples."
            )
        return result

    return told


def _place(call: Call) -> str:
    return call.module or "the model"


def _line_of(error: Exception, rule: Rule) -> str:
    """The line in the rule's file that raised the error."""
    code = getattr(rule, "__code__", None)
    lines = []
    trace = error.__traceback__
    while trace is not None:
        if code is not None and trace.tb_frame.f_code.co_filename == code.co_filename:
            lines.append(trace.tb_lineno)
        trace = trace.tb_next
    return f" ({code.co_filename}, line {lines[-1]})" if code is not None and lines else ""


def _fault(result: Any, outputs: Sequence[torch.Tensor]) -> str | None:
    """What is wrong with the labels returned by a rule, if anything."""
    if not isinstance(result, (list, tuple)) or len(result) != len(outputs):
        many = f"{len(result)} entries" if isinstance(result, (list, tuple)) else f"a {type(result).__name__}"
        return f"{many}, expected a list with the labels of each of the {len(outputs)} output tensors"
    for labels, tensor in zip(result, outputs, strict=True):
        shape = tuple(tensor.shape)
        if not isinstance(labels, (tuple, list)):
            return f"a {type(labels).__name__} for the output of shape {shape}, expected a tuple of labels"
        for label in labels:
            if not isinstance(label, np.ndarray) or label.dtype.kind not in "iu":
                kind = f"an array of {label.dtype}" if isinstance(label, np.ndarray) else f"a {type(label).__name__}"
                return f"{kind} as a label of the output of shape {shape}, expected an array of unit numbers"
            if label.ndim != len(shape) or any(a not in (1, b) for a, b in zip(label.shape, shape, strict=True)):
                return f"a label of shape {label.shape} for the output of shape {shape}, expected one that fits it"
    return None
