"""Wrapping a model with gates, and compacting the gated model."""

from __future__ import annotations

from prunegate.wrapping.compact_model import Compaction, candidate, compact
from prunegate.wrapping.explain import Explanation
from prunegate.wrapping.gated_model import GatedModel
from prunegate.wrapping.require import gated_model
from prunegate.wrapping.wrap_model import wrap

__all__ = ["Compaction", "Explanation", "GatedModel", "candidate", "compact", "gated_model", "wrap"]
