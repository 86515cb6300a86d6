"""Learnable gates: logits, hard masks drawn with logistic noise, and where they are applied."""

from __future__ import annotations

from prunegate.gates.estimators import ESTIMATORS, Estimator
from prunegate.gates.gates import Gate, Gates
from prunegate.gates.magnitude import standardised_magnitudes
from prunegate.gates.relaxation import logistic_noise, soft_mask, straight_through
from prunegate.gates.sites import GateSite, SiteMap, install_sites, remove_sites

__all__ = [
    "ESTIMATORS",
    "Estimator",
    "Gate",
    "GateSite",
    "Gates",
    "SiteMap",
    "install_sites",
    "logistic_noise",
    "remove_sites",
    "soft_mask",
    "standardised_magnitudes",
    "straight_through",
]
