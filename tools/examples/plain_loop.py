"""A plain PyTorch loop, and the lines that prunegate adds to it.

    python tools/examples/plain_loop.py

Half the MACs of a small timm ResNet on scikit-learn's digits. Without the marked lines it trains the dense model.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import timm
import torch
from sklearn.datasets import load_digits
from torch.nn import functional

import prunegate  # prunegate

EPOCHS, BATCH = 6, 64


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """The 1797 images as (images, 1, 32, 32), values about 0, in a fixed shuffled order; their labels."""
    found = load_digits()
    order = torch.randperm(len(found.target), generator=torch.Generator().manual_seed(0))
    images = torch.tensor(found.images, dtype=torch.float32)[order, None] / 8.0 - 1.0
    return functional.interpolate(images, scale_factor=4.0), torch.tensor(found.target)[order]


def main(folder: Path) -> tuple[torch.nn.Module, float]:
    """Train, and save to ``folder``; the model and its accuracy on the last 300 images."""
    torch.manual_seed(0)
    images, labels = digits()
    train, test = slice(0, -300), slice(-300, None)
    steps = EPOCHS * (len(images[train]) // BATCH)
    model = timm.create_model("test_resnet", in_chans=1, num_classes=10)
    model = prunegate.wrap(model, images[:2])  # prunegate
    gates = prunegate.GateSteps(model, budget=0.5, steps=steps)  # prunegate
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.05)
    for _ in range(EPOCHS):
        model.train()
        for batch in torch.randperm(len(images[train])).split(BATCH)[: steps // EPOCHS]:
            loss = functional.cross_entropy(model(images[train][batch]), labels[train][batch])
            optimizer.zero_grad()
            loss.backward()
            gates.step()  # prunegate
            optimizer.step()
    gates.finish(images[train].split(BATCH))  # prunegate
    result = prunegate.compact(model)  # prunegate
    result.save(folder / "compact.safetensors")  # prunegate
    model = prunegate.load(folder / "compact.safetensors")  # prunegate
    print({metric: cost["compact"] / cost["dense"] for metric, cost in result.costs.items()})  # prunegate
    model.eval()
    with torch.no_grad():
        accuracy = (model(images[test]).argmax(1) == labels[test]).float().mean().item()
    print(f"accuracy {accuracy:.3f}")
    return model, accuracy


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(temporary))
