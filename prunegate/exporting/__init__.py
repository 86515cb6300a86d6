"""Compact models in other formats: each is run, and compared with the model, before anybody gets it."""

from __future__ import annotations

from prunegate.exporting.export import FORMATS, TOLERANCE, Exported, export_model

__all__ = ["FORMATS", "TOLERANCE", "Exported", "export_model"]
