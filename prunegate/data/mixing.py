"""Mixup and cutmix of whole batches, by timm."""

from __future__ import annotations

from prunegate.data.batches import Batch
from prunegate.data.randomness import MIXING, seeded
from prunegate.data.settings import MixupSettings


def mixed(batch: Batch, settings: MixupSettings, num_classes: int | None, *place: int) -> Batch:
    """The batch with its samples mixed in pairs, and class probabilities for labels, (n, classes); or as it is.

    Args:
        place: Seed, epoch, number of the batch and rank: what the random numbers depend on.
    """
    if not settings.enabled:
        return batch
    from prunegate.data.mixup import WholeBatchMixup  # timm takes long to import

    mixup = WholeBatchMixup(**settings.model_dump(), num_classes=num_classes)
    with seeded(MIXING, *place):
        inputs, labels = mixup(batch.inputs, batch.labels)
    return Batch(inputs, labels, batch.indices)
