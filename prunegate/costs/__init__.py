"""Costs of a model under masks: expected (differentiable) and realised (exact)."""

from __future__ import annotations

from prunegate.costs.cost import COUNTS, METRICS, Cost, amount
from prunegate.costs.loop_nests import CostModel
from prunegate.costs.memory_cost import MemoryCost
from prunegate.costs.projection import keep_within

__all__ = ["COUNTS", "METRICS", "Cost", "CostModel", "MemoryCost", "amount", "keep_within"]
