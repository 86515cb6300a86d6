"""Refitting weights after hardening, so that the kept inputs of a layer compensate for the removed ones.

A layer that has lost inputs computes something else. Least squares finds the weights that come closest, on some
samples, to its outputs in the dense model. Layers are refitted in the order in which they run, each on the inputs that
the refitted layers before it produce. Both models run once; no gradients or labels are needed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any, TypeAlias, TypeGuard

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from prunegate.errors import LoopError
from prunegate.groups import ExampleInputs
from prunegate.modes import eval_mode
from prunegate.wrapping import GatedModel, gated_model

Layer: TypeAlias = "nn.Linear | nn.Conv2d"

# Rows of the least-squares problem per unknown of one output (with fewer rows a layer is not refitted), and the least
# number of rows that is used if there are enough.
_ROWS_PER_UNKNOWN, _ROWS = 4, 16_384
# Ridge penalty towards the current weights, as a share of the inputs' mean square.
_RIDGE = 1e-3
# Rows that are multiplied at a time.
_ROWS_AT_ONCE = 8192


@torch.no_grad()
def reconstruct(gated: GatedModel, dense: nn.Module, inputs: Any) -> int:
    """Refit the linear layers and 2d convolutions of a gated model with fixed masks, in place.

    For each of them W minimises ``‖X Wᵀ − Y‖² + ridge ‖W − W₀‖²`` over the kept columns: X are its inputs in the gated
    model, Y its outputs in the dense one, W₀ its current weights. Meanwhile BatchNorm layers normalise by batch
    statistics; do not use their running statistics before `reestimate_batch_norm` has recomputed them. Layers are not
    refitted if they run more than once, share their weights, do not multiply by the stored weights (standardised or
    normalised weights), or have too few samples.

    Args:
        gated: A gated model with masks fixed by `harden` or `set_masks`.
        dense: The model that was wrapped, with the weights that it had then.
        inputs: Samples, in the forms that `wrap` accepts as example inputs; both models run on all of them at once.

    Returns:
        The number of refitted layers.

    Raises:
        LoopError: Masks are not fixed, or ``dense`` does not have the gated model's layers.
        TraceError: The inputs have another form.

    Reference:
        He, Zhang and Sun, "Channel Pruning for Accelerating Very Deep Neural Networks", 2017, arXiv:1707.06168,
        section 3.1, for one layer at a time; Luo, Wu and Lin, "ThiNet", 2017, arXiv:1707.06342.
    """
    gated = gated_model(gated, "reconstruct")
    if not gated.gates.are_fixed:
        raise LoopError(
            "reconstruct: found masks that are drawn from the logits, expected fixed ones. Which inputs are kept is "
            "not decided yet. Call gated.harden(budget) first."
        )
    owners = Counter(map(id, _stored(gated.model)))
    layers = {name: m for name, m in gated.model.named_modules() if _is_plain(m) and owners[id(_stored_weight(m))] == 1}
    others = {name: m for name, m in dense.named_modules() if name in layers}
    for name, layer in layers.items():
        result = getattr(others.get(name), "weight", None)
        if result is None or result.shape != layer.weight.shape:
            shape = "found no weight" if result is None else f"found a weight of shape {tuple(result.shape)}"
            raise LoopError(
                f"reconstruct: {name}: {shape} in the dense model, expected one of shape {tuple(layer.weight.shape)}. "
                "Layers are matched by their names. Pass the model that was wrapped."
            )
    given = ExampleInputs.of(inputs)
    targets = _targets(dense, others, given)
    with eval_mode(gated), ExitStack() as hooks:
        for module in gated.modules():
            if isinstance(module, _BatchNorm):
                module.train()
        mask = gated.gates.hard_mask().float()
        for name, (rows, outputs) in targets.items():
            kept = _kept_inputs(layers[name], gated.sites.masks_of(f"{name}.weight".removeprefix("."), mask))
            hooks.enter_context(layers[name].register_forward_pre_hook(partial(_refit, rows, outputs, kept)))
        gated(*given.args, **given.kwargs)
    return len(targets)


def _is_plain(module: nn.Module) -> TypeGuard[Layer]:
    """Whether the module's output is its input times its stored weight, apart from masks."""
    if isinstance(module, nn.Conv2d):
        if type(module).forward is not nn.Conv2d.forward or module.padding_mode != "zeros":
            return False
        if isinstance(module.padding, str):
            return False
    elif not isinstance(module, nn.Linear) or type(module).forward is not nn.Linear.forward:
        return False
    return isinstance(module._parameters.get("weight"), nn.Parameter)


def _targets(
    dense: nn.Module, layers: dict[str, nn.Module], inputs: ExampleInputs
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """For each layer that runs once and on enough rows, the rows to compare and its outputs there."""
    calls: dict[str, int] = dict.fromkeys(layers, 0)
    results: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    generator = torch.Generator().manual_seed(0)

    def note(name: str, layer: Layer, _: Any, output: torch.Tensor) -> None:
        calls[name] += 1
        if calls[name] > 1:
            results.pop(name, None)
            return
        if isinstance(layer, nn.Conv2d) and output.dim() != 4:
            return
        unknowns = layer.weight[0].numel()
        count = output.numel() // output.shape[1 if isinstance(layer, nn.Conv2d) else -1]
        if count < _ROWS_PER_UNKNOWN * unknowns:
            return
        rows = torch.randperm(count, generator=generator)[: max(_ROWS, _ROWS_PER_UNKNOWN * unknowns)]
        rows = rows.sort().values.to(output.device)
        results[name] = (rows, _rows_of_output(layer, output, rows))

    with eval_mode(dense), ExitStack() as hooks:
        for name, layer in layers.items():
            hook: Callable[..., None] = partial(note, name)
            hooks.enter_context(layer.register_forward_hook(hook))
        given = inputs.copied()
        dense(*given.args, **given.kwargs)
    return results


def _rows_of_output(layer: Layer, output: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Outputs of single positions, shape (rows, outputs)."""
    if isinstance(layer, nn.Linear):
        return output.reshape(-1, output.shape[-1])[rows]
    positions = output.shape[2] * output.shape[3]
    return output.flatten(2)[rows // positions, :, rows % positions]


def _rows_of_input(layer: Layer, x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Inputs of single positions, shape (rows, inputs): values, or patches of channels and kernel."""
    if isinstance(layer, nn.Linear):
        return x.reshape(-1, x.shape[-1])[rows]
    vertical, horizontal = map(int, layer.padding)
    patches = F.pad(x, (horizontal, horizontal, vertical, vertical)) if vertical or horizontal else x
    for dimension in (2, 3):  # views: only the patches of these positions are materialised
        kernel, stride, step = (given[dimension - 2] for given in (layer.kernel_size, layer.stride, layer.dilation))
        patches = patches.unfold(dimension, step * (kernel - 1) + 1, stride)[..., ::step]
    height, width = patches.shape[2:4]
    position = rows % (height * width)
    return patches[rows // (height * width), :, position // width, position % width].flatten(1)


def _refit(
    rows: torch.Tensor, outputs: torch.Tensor, kept: torch.Tensor, layer: Layer, args: tuple[torch.Tensor, ...]
) -> None:
    """Before a layer runs, set the weights that map these inputs closest to those outputs.

    Args:
        kept: Which inputs of one output the masks keep, bool, shape (inputs,).
    """
    if not args:  # called by keyword
        return
    weight, bias = _stored_weight(layer), layer.bias
    groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
    x = _rows_of_input(layer, args[0], rows)
    x = x.reshape(len(rows), groups, -1).transpose(0, 1)[:, :, kept]  # groups, rows, inputs
    y = outputs.reshape(len(rows), groups, -1).transpose(0, 1)  # groups, rows, outputs
    stored = weight.reshape(groups, -1, kept.numel()).transpose(1, 2)  # groups, inputs, outputs
    present = stored[:, kept]
    if bias is not None:
        x = torch.cat([x, x.new_ones(*x.shape[:2], 1)], 2)
        present = torch.cat([present, bias.reshape(groups, 1, -1)], 1)
    new = _solve(x, y, present)
    if not bool(torch.isfinite(new).all()):
        return
    if bias is not None:
        bias.copy_(new[:, -1].flatten())
        new = new[:, :-1]
    refitted = stored.clone()
    refitted[:, kept] = new.to(stored)
    weight.copy_(refitted.transpose(1, 2).reshape(weight.shape))
    if layer.weight is not weight:  # the masked weight of the current call
        layer.weight.copy_((refitted * kept[:, None]).transpose(1, 2).reshape(weight.shape))


def _solve(x: torch.Tensor, y: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    """Ridge regression in each group: (groups, rows, inputs) and (groups, rows, outputs) to (groups, inputs, outputs).

    In float64, as the normal equations square the condition number; on the CPU, as not every device has float64.
    """
    groups, count, width = x.shape
    gram = torch.zeros(groups, width, width, dtype=torch.float64)
    moment = torch.zeros(groups, width, y.shape[2], dtype=torch.float64)
    for first in range(0, count, _ROWS_AT_ONCE):
        some = slice(first, first + _ROWS_AT_ONCE)
        part = x[:, some].cpu().double()
        gram += part.mT @ part
        moment += part.mT @ y[:, some].cpu().double()
    ridge = _RIDGE * gram.diagonal(dim1=1, dim2=2).mean(1)[:, None, None] + torch.finfo(torch.float64).tiny
    factor, _ = torch.linalg.cholesky_ex(gram + ridge * torch.eye(width, dtype=torch.float64))
    return torch.cholesky_solve(moment + ridge * present.cpu().double(), factor).to(x.device)


def _stored(model: nn.Module) -> Iterator[nn.Parameter]:
    """All parameters; a shared one is repeated for each module that has it."""
    return (
        parameter for module in model.modules() for parameter in module._parameters.values() if parameter is not None
    )


def _stored_weight(layer: nn.Module) -> torch.Tensor:
    """The stored weight, also while a masked one replaces it in a call."""
    stored: torch.Tensor = vars(layer)["_parameters"]["weight"]
    return stored


def _kept_inputs(layer: Layer, masks: dict[int, torch.Tensor]) -> torch.Tensor:
    """Which inputs of one output are kept by masks along axes of the weight, bool, shape (inputs,)."""
    kept = torch.ones_like(_stored_weight(layer))
    for axis, mask in masks.items():
        kept = kept * mask.reshape([-1 if dim == axis else 1 for dim in range(kept.dim())])
    return kept.amax(0).flatten().bool()
