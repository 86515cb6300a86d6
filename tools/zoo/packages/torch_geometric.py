"""Models of torch_geometric; a sample is ten nodes, a size is a number of edges."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .case import PackageCase


def _model(cls: str, **settings: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        from torch_geometric.nn import models

        made: nn.Module = getattr(models, cls)(
            in_channels=12, hidden_channels=32, num_layers=3, out_channels=5, **settings
        )
        return made

    return build


def _graph(batch: int, edges: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(10 * batch, 12), torch.randint(0, 10 * batch, (2, edges))


CASES: dict[str, PackageCase] = {
    "torch_geometric/gat": PackageCase(_model("GAT", heads=4), _graph, 47, 63),
    "torch_geometric/gcn": PackageCase(_model("GCN"), _graph, 47, 63),
    "torch_geometric/gin": PackageCase(_model("GIN"), _graph, 47, 63),
    "torch_geometric/sage": PackageCase(_model("GraphSAGE"), _graph, 47, 63),
}
