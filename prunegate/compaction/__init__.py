"""Physical removal of units: plan, surgery, certificate."""

from __future__ import annotations

from prunegate.compaction.certificate import (
    TOLERANCE,
    Certificate,
    Difference,
    Widely,
    certify,
    difference,
    evaluating,
    gap,
    outputs_of,
    relative,
)
from prunegate.compaction.cut_sizes import CutSizes
from prunegate.compaction.faults import Fault
from prunegate.compaction.feature_sizes import feature_edits
from prunegate.compaction.mending import Mending, UnplayableError, mend, settle
from prunegate.compaction.plan import Mask, Plan
from prunegate.compaction.rebuild import rebuild
from prunegate.compaction.size_attributes import attribute_edits
from prunegate.compaction.surgery import apply, cut, set_attributes
from prunegate.compaction.trial import Trial, shape_fault_of, value_fault_of

__all__ = [
    "TOLERANCE",
    "Certificate",
    "CutSizes",
    "Difference",
    "Fault",
    "Mask",
    "Mending",
    "Plan",
    "Trial",
    "UnplayableError",
    "Widely",
    "apply",
    "attribute_edits",
    "certify",
    "cut",
    "difference",
    "evaluating",
    "feature_edits",
    "gap",
    "mend",
    "outputs_of",
    "rebuild",
    "relative",
    "set_attributes",
    "settle",
    "shape_fault_of",
    "value_fault_of",
]
