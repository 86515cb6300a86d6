"""Making a compact model again from a dense one, its plan and the form of its inputs: nothing else is stored.

Modules that are played back are not stored as code, nor the sizes that are rewritten in calls. The dense model is
traced again and both are found anew, which gives the same by the same rules.
"""

from __future__ import annotations

import numpy as np
from torch import nn

from prunegate.compaction.cut_sizes import CutRuns
from prunegate.compaction.mending import Mending, mend
from prunegate.compaction.plan import Plan
from prunegate.compaction.surgery import apply
from prunegate.errors import CompactionError
from prunegate.groups import ExampleInputs, Trace


def rebuild(dense: nn.Module, plan: Plan, mending: Mending, inputs: ExampleInputs) -> nn.Module:
    """Cut ``dense`` in place by a complete plan and mend it as the mending lists.

    Raises:
        CompactionError: The plan or the mending does not fit the model.
    """
    if mending.is_plain:
        return apply(dense, plan)
    try:
        trace = Trace(dense, inputs, frozenset(mending.whole_heads or ()))
        if mending.whole_heads is None:
            trace = trace.with_whole_heads(dense, inputs)
        analysis = trace.analysis()
        keep = np.ones(analysis.num_units, dtype=bool)
        for group in analysis.groups:
            if group.name in plan.kept and plan.num_units[group.name] == group.num_units:
                keep[group.units] = False
                keep[group.first_unit + np.array(plan.kept[group.name])] = True
        again = trace.with_more_samples(dense, inputs) if mending.plays_back else None
        runs = CutRuns.of(trace, analysis, keep, inputs, again)
        return mend(apply(dense, plan), runs, mending)
    except CompactionError:
        raise
    except Exception as error:  # what is stored is played through the model's own code, which may raise anything
        raise CompactionError(
            f"{error}. The parts of the model that are played back could not be written again; another version of "
            "torch or of the model's library may run it differently."
        ) from error
