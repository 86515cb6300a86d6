"""Physical removal of units: plan, surgery, certificate."""

from __future__ import annotations

from prunegate.compaction.cases import cases_of
from prunegate.compaction.certificate import TOLERANCE, Certificate, certify
from prunegate.compaction.cut_sizes import CutRuns, CutSizes
from prunegate.compaction.equivalence import Difference, Side, gap, put_aside
from prunegate.compaction.experts import modules_with_experts
from prunegate.compaction.faults import Fault
from prunegate.compaction.feature_sizes import feature_edits
from prunegate.compaction.limits import Limit, limits_of
from prunegate.compaction.made_with import made_with
from prunegate.compaction.mending import Mending, UnplayableError, mend, settle
from prunegate.compaction.plan import Mask, Plan
from prunegate.compaction.precision import Widely, evaluating, outputs_of
from prunegate.compaction.rebuild import Rebuilt, rebuild, rebuild_checked
from prunegate.compaction.size_attributes import attribute_edits
from prunegate.compaction.surgery import apply, cut, set_attributes
from prunegate.compaction.trial import Trial, shape_fault_of, value_fault_of

__all__ = [
    "TOLERANCE",
    "Certificate",
    "CutRuns",
    "CutSizes",
    "Difference",
    "Fault",
    "Limit",
    "Mask",
    "Mending",
    "Plan",
    "Rebuilt",
    "Side",
    "Trial",
    "UnplayableError",
    "Widely",
    "apply",
    "attribute_edits",
    "cases_of",
    "certify",
    "cut",
    "evaluating",
    "feature_edits",
    "gap",
    "limits_of",
    "made_with",
    "mend",
    "modules_with_experts",
    "outputs_of",
    "put_aside",
    "rebuild",
    "rebuild_checked",
    "set_attributes",
    "settle",
    "shape_fault_of",
    "value_fault_of",
]
