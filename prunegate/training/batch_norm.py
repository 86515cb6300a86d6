"""Re-estimating BatchNorm statistics after hardening.

While gates are drawn, the running averages mix those of many subnetworks; the hardened one needs its own.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from prunegate.modes import eval_mode


@torch.no_grad()
def reestimate_batch_norm(model: nn.Module, batches: Iterable[torch.Tensor]) -> int:
    """Replace all running means and variances by plain averages over ``batches``.

    The model's train or eval mode is as before afterwards; only BatchNorm layers are in training mode
    meanwhile, so dropout and drawn masks do not disturb the averages. Batches that are not finite are left out:
    a single NaN would make every average one.

    Returns:
        The number of batches used; 0 if the model has no BatchNorm with running statistics.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    if not norms:
        return 0
    momenta = {norm: norm.momentum for norm in norms}
    count = 0
    with eval_mode(model):
        try:
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None  # a cumulative average
                norm.train()
            for batch in batches:
                # The device is waited for here and, where averages are cumulative, in each of torch's BatchNorms.
                if bool(torch.isfinite(batch).all()):
                    model(batch)
                    count += 1
        finally:
            for norm in norms:
                norm.momentum = momenta[norm]
    return count
