"""Fix-ups that make a cut model run, found by running it and fixing one fault after the other.

A module whose code fails gets, in this order: new values for the sizes that it stores as attributes; a forward in which
the sizes passed to functions are rewritten; and as a last resort a replayed forward.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from prunegate.compaction.cut_sizes import CutRuns, CutSizes
from prunegate.compaction.experts import modules_with_experts
from prunegate.compaction.faults import Fault
from prunegate.compaction.learning import learned_rules
from prunegate.compaction.replaying import as_graph_module, replay
from prunegate.compaction.resizing import resize
from prunegate.compaction.size_attributes import SizeAttribute, attribute_edits, candidates
from prunegate.compaction.size_rules import CannotRewriteError
from prunegate.compaction.surgery import set_attributes
from prunegate.compaction.writer import CannotReplayError
from prunegate.errors import CompactionError
from prunegate.groups import values_in
from prunegate.groups.torch_workarounds.kernels import without_misled_kernels

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FixUps:
    """How a cut model is made to run.

    Attributes:
        graph: The whole model becomes a graph; otherwise it keeps its class.
        resized: Modules whose own code runs with rewritten sizes in its calls.
        replayed: Modules whose forward is replayed.
        apart: Modules that are inlined in a replayed module or in the graph.
        attributes: Sizes that modules store as attributes, and the dimensions they follow. Their new values are part of
            the plan, so they are not stored with the fix-ups.
        whole_heads: Modules whose attention loses whole heads although head dimensions would be finer units;
            None for all, as in files from before there was a choice.
    """

    graph: bool = False
    resized: tuple[str, ...] = ()
    replayed: tuple[str, ...] = ()
    apart: tuple[str, ...] = ()
    attributes: tuple[SizeAttribute, ...] = ()
    whole_heads: tuple[str, ...] | None = ()

    def without_attributes(self) -> FixUps:
        """The same, but with sizes in calls rewritten in the modules whose attributes were set."""
        modules = dict.fromkeys(a.module for a in self.attributes)
        resized = (*self.resized, *(path for path in modules if path not in self.resized))
        return replace(self, resized=resized, attributes=())

    @property
    def backend(self) -> str:
        """``"module"`` or ``"graph"``."""
        return "graph" if self.graph else "module"

    @property
    def replays(self) -> bool:
        """Whether anything is replayed from the run on the example inputs in eval mode; only the batch size is then
        free."""
        return self.graph or bool(self.replayed)

    def is_replayed(self, path: str) -> bool:
        """Whether a module's forward is replayed, or inlined in one that is."""
        names = {*self.replayed, *self.apart}
        return self.graph or any(path == name or path.startswith(f"{name}.") or name == "" for name in names)

    @property
    def is_plain(self) -> bool:
        """Whether the model's own code works without fix-ups."""
        return not self.replays and not self.resized

    def as_dict(self) -> dict[str, Any]:
        lists = {
            "resized": self.resized,
            "replayed": self.replayed,
            "apart": self.apart,
            "whole_heads": self.whole_heads,
        }
        return {"graph": self.graph, **{name: list(some) for name, some in lists.items() if some is not None}}

    @classmethod
    def from_dict(cls, data: Any) -> FixUps:
        """Read what `as_dict` wrote, trusting nothing.

        Raises:
            ValueError: Naming the field that is not as expected.
        """
        if data is None:
            return cls()
        if not isinstance(data, dict) or not isinstance(data.get("graph"), bool):
            raise ValueError("mending: expected an object with graph, replayed and apart")
        whole_heads = _module_names(data, "whole_heads") if "whole_heads" in data else None
        replayed, apart = _module_names(data, "replayed"), _module_names(data, "apart")
        resized = _module_names(data, "resized") if "resized" in data else ()
        return cls(data["graph"], resized, replayed, apart, whole_heads=whole_heads)


def _module_names(data: dict[str, Any], key: str) -> tuple[str, ...]:
    value = data.get(key)
    if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
        raise ValueError(f"mending.{key}: expected a list of module names")
    return tuple(value)


class CannotBeReplayedError(Exception):
    """A module that should be replayed, but cannot be."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.error)
        self.fault = fault


def fix_up(model: nn.Module, runs: CutRuns, fix_ups: FixUps) -> nn.Module:
    """Set sizes, in attributes and in calls, and replay what the fix-ups list, in place.

    Returns:
        The model, or its graph with ``graph``.

    Raises:
        CannotBeReplayedError: A module's sizes cannot be rewritten, or it cannot be replayed.
    """
    sizes = runs.main
    set_attributes(model, attribute_edits(sizes, fix_ups.attributes))
    _resize(model, runs, fix_ups)
    for path in fix_ups.replayed:
        try:
            replay(model, path, sizes, fix_ups.apart)
        except CannotReplayError as error:
            raise CannotBeReplayedError(Fault(path, str(error))) from error
    without_misled_kernels(model)
    if not fix_ups.graph:
        return model
    try:
        return as_graph_module(model, sizes, fix_ups.apart)
    except CannotReplayError as error:
        raise CannotBeReplayedError(Fault("", str(error))) from error


def _resize(model: nn.Module, runs: CutRuns, fix_ups: FixUps) -> None:
    paths = fix_ups.resized
    if not paths:
        return
    known = (paths, fix_ups.attributes, fix_ups.replayed)
    try:
        if known not in runs.learned:
            runs.learned[known] = learned_rules(model, paths, runs.runs, runs.inputs, runs.kind)
        rules = runs.learned[known]
    except CannotRewriteError as error:
        raise CannotBeReplayedError(Fault(paths[-1], str(error))) from error
    experts = modules_with_experts(runs.main.tape)
    for path, some in rules.items():
        if path not in paths or path in experts or not all(rule.change.is_none for rule in some):
            resize(model.get_submodule(path), some)


def extended(fix_ups: FixUps, fault: Fault, model: nn.Module, sizes: CutSizes, impossible: bool) -> FixUps | None:
    """The fix-ups plus one more that covers a fault; None if there is none.

    All modules of the faulty module's class are replayed with it: if one block's code derives a wrong size, the others'
    does too.
    """
    called = called_in(sizes)
    path = fault.module
    if fix_ups.graph:
        if path == "" or path in fix_ups.apart or path not in called:
            return None
        return replace(fix_ups, apart=(*fix_ups.apart, *_alike(model, path, called)))
    apart = set(fix_ups.apart)
    while path in fix_ups.replayed:  # replaying it was not enough
        apart.add(path)
        path = path.rpartition(".")[0]
        while path and path not in called:
            path = path.rpartition(".")[0]
    if path == "":
        return None
    alike = [path] if impossible or path in apart else _alike(model, path, called)
    replayed = [p for p in dict.fromkeys((*fix_ups.replayed, *alike)) if p not in apart]
    resized = tuple(p for p in fix_ups.resized if p not in replayed)
    return replace(fix_ups, resized=resized, replayed=tuple(replayed), apart=tuple(sorted(apart)))


def _alike(model: nn.Module, path: str, called: set[str]) -> list[str]:
    cls = type(model.get_submodule(path))
    return [p for p, module in model.named_modules() if type(module) is cls and p in called]


def _options(fix_ups: FixUps, fault: Fault, model: nn.Module, sizes: CutSizes) -> Iterator[FixUps]:
    """Fix-ups that may cover a fault, those that change least first."""
    path = fault.module
    if fix_ups.graph or path in fix_ups.replayed:
        return
    if path not in fix_ups.resized:
        for attributes in candidates(model, sizes, path, fix_ups.attributes):
            yield replace(fix_ups, attributes=(*fix_ups.attributes, *attributes))
        alike = [path, *(p for p in _alike(model, path, called_in(sizes)) if p not in (path, *fix_ups.resized))]
        left = tuple(a for a in fix_ups.attributes if a.module not in alike)
        option = replace(fix_ups, resized=(*fix_ups.resized, *alike), attributes=left)
        yield option
        for attributes in candidates(model, sizes, path, left):  # code may both pass sizes on and check them
            yield replace(option, attributes=(*left, *attributes))
    else:  # resized with others of its class, whose attributes were set by what their code computes
        for attributes in candidates(model, sizes, path, fix_ups.attributes):
            yield replace(fix_ups, attributes=(*fix_ups.attributes, *attributes))
    silent = _silent_in(sizes, path)
    if not silent <= set(fix_ups.resized):
        resized = tuple(dict.fromkeys((*fix_ups.resized, *sorted(silent))))
        yield replace(
            fix_ups, resized=resized, attributes=tuple(a for a in fix_ups.attributes if a.module not in silent)
        )


def _silent_in(sizes: CutSizes, path: str) -> set[str]:
    """The modules below ``path`` that compute but return no tensor.

    They write what they make into their arguments or into attributes, so their faults show in a module around them.
    """
    prefix = f"{path}." if path else ""
    computing: dict[str, bool] = {}
    for span in sizes.tape.spans:
        if isinstance(span.target, str) and span.target.startswith(prefix) and span.target != path:
            silent = span.last > span.first and not values_in(span.result)
            computing[span.target] = silent and computing.get(span.target, True)
    return {name for name, silent in computing.items() if silent}


def _better(
    fix_ups: FixUps, fault: Fault, model: nn.Module, sizes: CutSizes, fault_of: Callable[[FixUps], Fault | None]
) -> FixUps | None:
    """The first fix-ups with which the model's own code runs past the fault, if any."""
    for option in _options(fix_ups, fault, model, sizes):
        try:
            remaining = fault_of(option)
        except (CannotBeReplayedError, CompactionError) as error:  # an attribute that only looks like a size
            logger.debug("%s: %s", fault.module, error)
            continue
        if remaining is None or remaining.position > fault.position:
            return option
    return None


def called_in(sizes: CutSizes) -> set[str]:
    """Paths of the modules that a run called."""
    return {str(span.target) for span in sizes.tape.spans if isinstance(span.target, str)}


def settle(
    fix_ups: FixUps,
    model: nn.Module,
    sizes: CutSizes,
    fault_of: Callable[[FixUps], Fault | None],
) -> tuple[FixUps, Fault | None]:
    """Add fix-ups until no fault is left.

    Returns:
        The last fix-ups that could be applied, and the fault that remains, if any.
    """
    seen: dict[str, str] = {}
    playable = fix_ups
    while True:
        impossible = False
        try:
            fault = fault_of(fix_ups)
        except CannotBeReplayedError as refusal:
            fault, impossible = refusal.fault, True
            if fault.module in seen:  # the original fault is more informative than why it cannot be replayed
                fault = replace(fault, error=f"{seen[fault.module]}, and cannot be replayed: {fault.error}")
        if fault is None:
            return fix_ups, None
        if not impossible:
            seen.setdefault(fault.module, fault.error)
            playable = fix_ups
            better = _better(fix_ups, fault, model, sizes, fault_of)
            if better is not None:
                fix_ups = better
                continue
        more = extended(fix_ups, fault, model, sizes, impossible)
        if more is None or more == fix_ups:
            return playable, fault
        fix_ups = more
