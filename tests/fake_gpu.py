"""Backward passes on fake tensors that claim to be on a GPU: torch's own engine asks the driver for one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


@torch.no_grad()
def gradients(outputs: Sequence[torch.Tensor], given: Sequence[torch.Tensor | None]) -> dict[int, torch.Tensor]:
    """The gradient of every leaf that the outputs depend on, by the leaf's id; nodes are called one by one."""
    waiting: dict[Any, int] = {}
    pending = [out.grad_fn for out in outputs]
    while pending:
        node = pending.pop()
        for child, _ in node.next_functions if node is not None else ():
            if child is not None:
                if child not in waiting:
                    pending.append(child)
                waiting[child] = waiting.get(child, 0) + 1
    buffers: dict[Any, list[torch.Tensor | None]] = {}

    def add(node: Any, place: int, gradient: torch.Tensor | None) -> None:
        slots = buffers.setdefault(node, [None] * len(node._input_metadata))
        if gradient is not None:
            form = node._input_metadata[place]  # to which torch's engine brings what it is given
            gradient = _summed(gradient, form.shape).to(form.dtype)
            before = slots[place]
            slots[place] = gradient if before is None else before + gradient

    for out, gradient in zip(outputs, given, strict=True):
        add(out.grad_fn, out.output_nr, torch.ones_like(out) if gradient is None else gradient)
    ready = [node for node in dict.fromkeys(out.grad_fn for out in outputs) if not waiting.get(node)]
    found: dict[int, torch.Tensor] = {}
    while ready:
        node = ready.pop()
        slots = buffers.pop(node)
        if type(node).__name__ == "AccumulateGrad":
            if slots[0] is not None:
                found[id(node.variable)] = slots[0]
            continue
        made = getattr(node, "apply", node)(*slots)
        results = _of_tensors(list(made) if isinstance(made, tuple) else [made], node.next_functions)
        for (child, place), gradient in zip(node.next_functions, results, strict=True):
            if child is not None:
                add(child, place, gradient)
                waiting[child] -= 1
                if not waiting[child]:
                    ready.append(child)
    return found


def _summed(gradient: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Over the dimensions that were broadcast."""
    more = gradient.dim() - len(shape)
    dims = [*range(more), *(more + dim for dim, size in enumerate(shape) if size == 1 != gradient.shape[more + dim])]
    return (gradient.sum(dims, keepdim=True) if dims else gradient).reshape(shape)


def _of_tensors(results: list[torch.Tensor | None], children: Any) -> list[torch.Tensor | None]:
    """Results for tensor arguments alone; functions in Python give one for every argument."""
    place = 0
    while len(results) > len(children):
        if place == len(children) or (results[place] is None and children[place][0] is not None):
            del results[place]
        else:
            place += 1
    return results


def grad(outputs: Any, inputs: Any, grad_outputs: Any = None, **options: Any) -> tuple[torch.Tensor | None, ...]:
    """In place of `torch.autograd.grad`, as far as it is used here."""
    outputs = [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)
    inputs = [inputs] if isinstance(inputs, torch.Tensor) else list(inputs)
    given = [grad_outputs] if isinstance(grad_outputs, torch.Tensor) else grad_outputs or [None] * len(outputs)
    found = gradients(outputs, given)
    return tuple(found.get(id(one)) for one in inputs)
