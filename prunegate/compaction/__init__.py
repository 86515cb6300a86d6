"""Physical removal of units: plan, surgery, certificate."""

from __future__ import annotations

from prunegate.compaction.cases import cases_of
from prunegate.compaction.certificate import TOLERANCE, Certificate, certify
from prunegate.compaction.cut_sizes import CutRuns, CutSizes
from prunegate.compaction.dry_run import DryRun, shape_fault_of, value_fault_of
from prunegate.compaction.equivalence import Difference, Side, gap, put_aside
from prunegate.compaction.experts import modules_with_experts
from prunegate.compaction.faults import Fault
from prunegate.compaction.feature_sizes import feature_edits
from prunegate.compaction.fix_ups import CannotBeReplayedError, FixUps, fix_up, settle
from prunegate.compaction.limits import Limit, limits_of
from prunegate.compaction.made_with import made_with
from prunegate.compaction.plan import Mask, Plan
from prunegate.compaction.precision import Widely, evaluating, outputs_of
from prunegate.compaction.rebuild import Rebuilt, rebuild, rebuild_checked
from prunegate.compaction.size_attributes import attribute_edits
from prunegate.compaction.surgery import apply, cut, set_attributes

__all__ = [
    "TOLERANCE",
    "CannotBeReplayedError",
    "Certificate",
    "CutRuns",
    "CutSizes",
    "Difference",
    "DryRun",
    "Fault",
    "FixUps",
    "Limit",
    "Mask",
    "Plan",
    "Rebuilt",
    "Side",
    "Widely",
    "apply",
    "attribute_edits",
    "cases_of",
    "certify",
    "cut",
    "evaluating",
    "feature_edits",
    "fix_up",
    "gap",
    "limits_of",
    "made_with",
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
