"""Compact models in other formats; each export is run and compared with the model before it is written."""

from __future__ import annotations

from prunegate.exporting.export import FORMATS, TOLERANCE, Exported, export_model

__all__ = ["FORMATS", "TOLERANCE", "Exported", "export_model"]
