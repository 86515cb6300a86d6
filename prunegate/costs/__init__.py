"""Costs of a model under masks: expected (differentiable) and realised (exact)."""

from __future__ import annotations

from prunegate.costs.cost import METRICS, Cost
from prunegate.costs.loop_nests import CostModel
from prunegate.costs.projection import keep_within

__all__ = ["METRICS", "Cost", "CostModel", "keep_within"]
