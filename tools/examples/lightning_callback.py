"""prunegate in a Lightning Trainer: one more callback.

    python tools/examples/lightning_callback.py

Half the MACs of a small timm network on scikit-learn's digits; the compact model is saved and loaded again.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import lightning.pytorch as pl
import timm
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import prunegate
from prunegate.integrations.lightning import PruningCallback
from prunegate.training import reestimate_batch_norm


class Classifier(pl.LightningModule):
    """As it would be without prunegate."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], index: int) -> torch.Tensor:
        images, labels = batch
        return functional.cross_entropy(self.model(images), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=3e-3, weight_decay=0.05)


def digits() -> TensorDataset:
    """The 1797 images as (1, 32, 32), values about 0, in a fixed shuffled order, with their labels."""
    found = load_digits()
    order = torch.randperm(len(found.target), generator=torch.Generator().manual_seed(0))
    images = torch.tensor(found.images, dtype=torch.float32)[order, None] / 8.0 - 1.0
    return TensorDataset(functional.interpolate(images, scale_factor=4.0), torch.tensor(found.target)[order])


def main(folder: Path, epochs: int = 6) -> tuple[nn.Module, float]:
    """Train, and save to ``folder``; the compact model and its accuracy on the last 300 images."""
    pl.seed_everything(0, verbose=False)
    data = digits()
    images, labels = data[-300:]
    loader = DataLoader(torch.utils.data.Subset(data, range(len(data) - 300)), batch_size=64, shuffle=True)

    gated = prunegate.wrap(timm.create_model("test_byobnet", in_chans=1, num_classes=10), images[:2])
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=[PruningCallback(budget=0.5)],
        default_root_dir=folder,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=False,
    )
    trainer.fit(Classifier(gated), loader)
    reestimate_batch_norm(gated, loader)
    result = prunegate.compact(gated)

    result.save(folder / "compact.safetensors")
    model = prunegate.load(folder / "compact.safetensors").eval()
    with torch.no_grad():
        accuracy = (model(images).argmax(1) == labels).float().mean().item()
    macs = result.costs["macs"]
    print(f"accuracy {accuracy:.3f} with {macs['compact'] / macs['dense']:.4f} of the MACs")
    return model, accuracy


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(temporary))
