"""Mixup and cutmix of whole batches with timm."""

from __future__ import annotations

from prunegate.data.batches import Batch
from prunegate.data.randomness import MIXING
from prunegate.data.settings import MixupSettings
from prunegate.seeding import seeded


def mixed(batch: Batch, settings: MixupSettings, num_classes: int | None, *place: int) -> Batch:
    """The batch with its samples mixed in pairs, and class probabilities as labels, (n, classes); or unchanged.

    Args:
        place: Seed, epoch, index of the batch and rank, which the random numbers depend on.
    """
    if not settings.enabled:
        return batch
    from prunegate.data.mixup import WholeBatchMixup  # importing timm is slow

    mixup = WholeBatchMixup(**settings.model_dump(), num_classes=num_classes)
    with seeded(MIXING, *place):
        inputs, labels = mixup(batch.inputs, batch.labels)
    return Batch(inputs, labels, batch.indices)
