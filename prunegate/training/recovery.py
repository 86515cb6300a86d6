"""Recovery after hardening without training: refitted weights, and re-estimated BatchNorm statistics."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from prunegate.errors import LoopError
from prunegate.modes import eval_mode
from prunegate.training.batch_norm import reestimate_batch_norm
from prunegate.training.fit import Batch, Loss
from prunegate.training.labels import between, hold_tensors, joined
from prunegate.training.model_calls import batches_of, described, none_found
from prunegate.training.reconstruction import reconstruct
from prunegate.wrapping import GatedModel, gated_model

# Limit on the numbers in the inputs of a reconstruction, as models run on all samples at once.
_INPUT_NUMBERS = 1 << 26
# Fewest samples to refit on, and to compare on: normalising over the batch needs two.
_LEAST_SAMPLES = 2


@dataclass(frozen=True)
class Recovery:
    """The result of `recover`; losses are means over held-out samples.

    Attributes:
        refitted: Whether the refitted weights are used.
        layers: Number of refitted layers, whether they are used or not.
        loss: Loss with the trained weights, or NaN if nothing was compared.
        refitted_loss: Loss with the refitted weights, or NaN.
    """

    refitted: bool = False
    layers: int = 0
    loss: float = float("nan")
    refitted_loss: float = float("nan")


def recover(
    gated: GatedModel,
    batches: Callable[[], Iterable[Batch]] | Iterable[Batch],
    dense: nn.Module | None = None,
    samples: int = 1024,
    loss: Loss = F.cross_entropy,
) -> Recovery:
    """Re-estimate BatchNorm under the fixed masks, and refit weights if that lowers the loss.

    Networks that normalise each sample, such as transformers, recover nearly all of what hardening cost. If the gate
    stage has already adapted the weights to the removed units, the trained weights are often better: the loss on
    held-out samples decides.

    Args:
        gated: A gated model with fixed masks. It is left unchanged on errors.
        batches: A function that returns the same (inputs, labels, ...) batches at each call, on the model's device; or
            an iterable that can be iterated several times, such as a list or a DataLoader.
        dense: The model that was wrapped; without it nothing is refitted.
        samples: Refit on at most this many samples, and compare on as many others.
        loss: Of (scores, labels), 0-d.

    Raises:
        LoopError: Masks are not fixed, there are no batches or too few samples, batches do not consist of tensors, or
            ``dense`` does not have the gated model's layers.
    """
    gated = gated_model(gated, "recover")
    if not gated.gates.are_fixed:
        raise LoopError(
            "recover: found masks that are drawn from the logits, expected fixed ones. There is nothing to recover "
            "from yet. Call gated.harden(budget) first."
        )
    again = _again(batches)
    trained = copy.deepcopy(gated.model.state_dict())
    try:
        return _recovered(gated, again, dense, samples, loss)
    except BaseException:
        gated.model.load_state_dict(trained)
        raise


def _recovered(
    gated: GatedModel, batches: Callable[[], Iterable[Batch]], dense: nn.Module | None, samples: int, loss: Loss
) -> Recovery:
    if next(_pairs(batches()), None) is None:
        raise none_found(batches)
    reestimate_batch_norm(gated, (inputs for inputs, _ in _pairs(batches())))
    if dense is None:
        return Recovery()
    inputs, labels = _first(_pairs(batches()), 2 * samples)
    half = len(inputs) // 2
    if half < _LEAST_SAMPLES:
        raise LoopError(
            f"recover: found {len(inputs)} samples of finite numbers, expected at least {2 * _LEAST_SAMPLES}: some to "
            "refit weights on, and others to compare on. Nothing was changed. Pass more batches, or no dense model."
        )
    kept_out = between(labels, half, None)
    before = _loss(gated, inputs[half:], kept_out, loss)
    trained = copy.deepcopy(gated.model.state_dict())
    layers = reconstruct(gated, dense, inputs[:half])
    reestimate_batch_norm(gated, (inputs for inputs, _ in _pairs(batches())))
    after = _loss(gated, inputs[half:], kept_out, loss)
    better = after < before
    if not better:
        gated.model.load_state_dict(trained)
    return Recovery(better, layers, before, after)


def _again(batches: Callable[[], Iterable[Batch]] | Iterable[Batch]) -> Callable[[], Iterable[Batch]]:
    """A function that returns the same batches at each call."""
    if callable(batches):
        return batches
    if iter(batches_of(batches)) is batches:
        raise LoopError(
            f"recover: found {described(batches)}, which can be iterated only once, expected batches for several "
            "passes. Pass a list, a DataLoader, or a function that returns new batches at each call."
        )
    return lambda: batches


@torch.no_grad()
def _loss(model: nn.Module, inputs: torch.Tensor, labels: Any, loss: Loss) -> float:
    """The mean loss in eval mode."""
    with eval_mode(model):
        return float(loss(model(inputs), labels))


def _pairs(batches: Iterable[Batch]) -> Iterator[tuple[torch.Tensor, Any]]:
    for batch in batches:
        parts = tuple(batch[:2]) if isinstance(batch, (tuple, list)) else ()
        if len(parts) < 2 or not isinstance(parts[0], torch.Tensor) or not hold_tensors(parts[1]):
            of = f" of {', '.join(type(part).__name__ for part in parts)}" if parts else ""
            raise LoopError(
                f"recover: found a batch that is a {type(batch).__name__}{of}, expected (inputs, labels), both "
                "tensors. Pass such batches; for a model with several inputs, use prunegate.training.reconstruct."
            )
        yield parts[0], parts[1]


def _first(batches: Iterable[tuple[torch.Tensor, Any]], count: int) -> tuple[torch.Tensor, Any]:
    """Inputs and labels of the first samples, at most ``count``; batches that are not finite are skipped."""
    parts: list[tuple[torch.Tensor, Any]] = []
    for inputs, labels in batches:
        left = min(count, 2 * _INPUT_NUMBERS // inputs[0].numel()) - sum(len(part[0]) for part in parts)
        if left <= 0:
            break
        if bool(torch.isfinite(inputs).all()):
            parts.append((inputs[:left], between(labels, None, left)))
    if not parts:
        return torch.zeros(0), torch.zeros(0)
    return torch.cat([part[0] for part in parts]), joined([part[1] for part in parts])
