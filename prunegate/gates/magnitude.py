"""Weight magnitudes of units, as a first estimate of their importance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from prunegate.groups import ChannelGroup


@torch.no_grad()
def standardised_magnitudes(tensors: Mapping[str, torch.Tensor], groups: Sequence[ChannelGroup]) -> torch.Tensor:
    """The L2 norm of each unit's weights, standardised within its channel group.

    A unit's slices of all matrices and kernels count, both those that produce it and those that read it. Each tensor is
    first scaled to a mean square of 1 over its units, so that no tensor dominates. Norms of whole layers differ for
    reasons unrelated to their units' importance, hence the standardisation to mean 0 and standard deviation 1.

    Args:
        tensors: Parameters by their names in the analysis.

    Returns:
        float32, shape (units of the whole model,).

    Reference:
        Li et al., "Pruning Filters for Efficient ConvNets", 2017, arXiv:1608.08710; for whole groups Fang et al.,
        "DepGraph: Towards Any Structural Pruning", 2023, arXiv:2301.12900.
    """
    scores = []
    for group in groups:
        squares = torch.zeros(group.num_units)
        for member in group.members:
            weight = tensors.get(member.tensor)
            if weight is None or weight.dim() < 2:
                continue
            along = weight.detach().float().transpose(0, member.axis).flatten(1).square().sum(1).cpu()
            units = torch.from_numpy(member.units)
            of_units = torch.zeros(group.num_units).index_add_(0, units[units >= 0], along[units >= 0])
            squares += of_units / of_units.mean().clamp(min=1e-12)
        norms = squares.sqrt()
        scores.append((norms - norms.mean()) / norms.std().clamp(min=1e-6))
    return torch.cat(scores)
