"""prunegate in the Trainer of transformers: one more callback.

    python tools/examples/transformers_trainer.py

Half the MACs of a small ViT of transformers, from random weights, on scikit-learn's digits; the compact model is saved
and loaded again.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import nn
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification

import prunegate
from prunegate.integrations.transformers import PruningCallback


def digits() -> list[dict[str, Any]]:
    """The 1797 images as (1, 8, 8), values about 0, in a fixed shuffled order, with their labels."""
    found = load_digits()
    order = torch.randperm(len(found.target), generator=torch.Generator().manual_seed(0))
    images = torch.tensor(found.images, dtype=torch.float32)[order, None] / 8.0 - 1.0
    return [
        {"pixel_values": image, "labels": label}
        for image, label in zip(images, found.target[order].tolist(), strict=True)
    ]


def vit() -> nn.Module:
    """A ViT of three blocks for (1, 8, 8) images."""
    config = ViTConfig(
        image_size=8,
        patch_size=2,
        num_channels=1,
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=128,
        num_labels=10,
    )
    return ViTForImageClassification(config)


def main(folder: Path, epochs: int = 10) -> tuple[nn.Module, float]:
    """Train, and save to ``folder``; the compact model and its accuracy on the last 300 images."""
    torch.manual_seed(0)
    data = digits()
    train, test = data[:-300], data[-300:]

    gated = prunegate.wrap(vit(), {"pixel_values": torch.stack([row["pixel_values"] for row in train[:2]])})
    trainer = Trainer(
        model=gated,
        args=TrainingArguments(
            output_dir=str(folder),
            num_train_epochs=epochs,
            per_device_train_batch_size=64,
            learning_rate=3e-3,
            weight_decay=0.05,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
        ),
        train_dataset=train,
        eval_dataset=test,
        callbacks=[PruningCallback(gated, budget=0.5)],
    )
    trainer.train()
    result = prunegate.compact(gated)

    result.save(folder / "compact.safetensors")
    model = prunegate.load(folder / "compact.safetensors", model=vit()).eval()
    images = torch.stack([row["pixel_values"] for row in test])
    labels = torch.tensor([row["labels"] for row in test])
    with torch.no_grad():
        accuracy = (model(pixel_values=images).logits.argmax(1) == labels).float().mean().item()
    macs = result.costs["macs"]
    print(f"accuracy {accuracy:.3f} with {macs['compact'] / macs['dense']:.4f} of the MACs")
    return model, accuracy


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(temporary))
