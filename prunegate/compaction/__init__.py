"""Physical removal of units: plan, surgery, certificate."""

from __future__ import annotations

from prunegate.compaction.certificate import TOLERANCE, Certificate, Difference, certify, difference, outputs_of
from prunegate.compaction.plan import Plan
from prunegate.compaction.surgery import apply, cut
from prunegate.compaction.trial import failing_groups

__all__ = [
    "TOLERANCE",
    "Certificate",
    "Difference",
    "Plan",
    "apply",
    "certify",
    "cut",
    "difference",
    "failing_groups",
    "outputs_of",
]
