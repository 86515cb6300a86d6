"""A compact timm model is used as timm's own are: features, heads, data configuration."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from timm.data import create_transform, resolve_model_data_config

import prunegate
from tests.conftest import random_masks, randomise


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext", "test_efficientnet", "test_byobnet"])
def test_compact_model_is_used_as_the_dense_one(tmp_path: Path, name: str) -> None:
    dense = randomise(timm.create_model(name, num_classes=10)).eval()
    size = dense.pretrained_cfg["input_size"][-1] if name == "test_vit" else 64
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    gated = prunegate.wrap(dense, x)
    gated.set_masks(random_masks(gated.groups, 0.5, 0))
    result = prunegate.compact(gated)
    result.save(tmp_path / "c.safetensors")
    for model in (result.model.eval(), prunegate.load(tmp_path / "c.safetensors")):
        assert type(model) is type(dense)
        assert model.num_classes == 10
        assert resolve_model_data_config(model) == resolve_model_data_config(dense)
        transform = create_transform(**resolve_model_data_config(model))
        assert transform is not None
        features = model.forward_features(x)
        assert model.num_features in features.shape
        hidden = model.forward_head(features, pre_logits=True)
        assert hidden.shape == (2, model.head_hidden_size)
        assert torch.equal(model.forward_head(features), model(x))
        assert model.head_hidden_size < dense.head_hidden_size
        model.reset_classifier(7)  # a new head fits the features that are left
        assert model(x).shape == (2, 7)
