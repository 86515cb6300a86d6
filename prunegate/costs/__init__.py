"""Costs of a model under masks: expected (differentiable) and realised (exact)."""

from __future__ import annotations

from prunegate.costs.loop_nests import CostModel
from prunegate.costs.projection import keep_within

__all__ = ["CostModel", "keep_within"]
