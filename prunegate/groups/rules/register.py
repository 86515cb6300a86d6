"""Rules of users: what an operation, or a module of their own, does to channels."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from prunegate.errors import TraceError
from prunegate.groups.rules.builtin import BUILTIN_RULES
from prunegate.groups.rules.call import Rule, RuleTable
from prunegate.groups.rules.recurrent import recurrent

# By an operation's full name, ``"namespace::name"``.
OPERATION_RULES: RuleTable = {}
MODULE_RULES: dict[type[nn.Module], Rule] = {}
BUILTIN_MODULE_RULES: dict[type[nn.Module], Rule] = {nn.RNNBase: recurrent}


def register_rule(
    target: str | type[nn.Module], rule: Rule | None = None, *, like: str | None = None
) -> Callable[[Rule], Rule]:
    """Teach the tracer what an operation or a module does to channels.

    A rule is called with a `Call` each time the operation is met while a model is followed. It returns, for
    each output tensor, the output's labels, and notes through the call which units belong together (`tie`,
    through ``call.constraints``), which are read by a weight (`consume`) and which may not be removed (`pin`).
    For a module the rule replaces what the operations inside it say; its forward's arguments and its own
    parameters are the call's arguments, by name.

    ::

        prunegate.register_rule("mylib::scaled_relu", like="relu")

        @prunegate.register_rule(MyFilterBank)
        def per_channel(call):
            return [call.labels_of(call["x"])]

    Args:
        target: The full name of an operation, such as ``"mylib::scaled_relu"``, or a module class (its
            subclasses have the rule too).
        rule: The rule; leave it out to use the result as a decorator.
        like: Name of an operation of torch whose rule serves, such as ``"relu"``, ``"layer_norm"``'s
            ``"native_layer_norm"`` or ``"cat"``.

    Raises:
        TraceError: ``target`` is neither, or torch has no operation ``like`` that a rule is known for.
    """
    if isinstance(target, str) and target.count("::") != 1:
        raise TraceError(
            f"register_rule: found the operation {target!r}, expected a full name such as 'mylib::scaled_relu'. "
            "print(torch.ops.mylib.scaled_relu) shows what there is."
        )
    if not isinstance(target, str) and not (isinstance(target, type) and issubclass(target, nn.Module)):
        raise TraceError(
            f"register_rule: found {target!r}, expected the full name of an operation or a subclass of torch.nn.Module."
        )
    if like is not None:
        rule = BUILTIN_RULES.get(like)
        if rule is None:
            raise TraceError(
                f"register_rule: found like={like!r}, expected one of the operations that have a rule: "
                f"{', '.join(sorted(BUILTIN_RULES))}."
            )

    def keep(given: Rule) -> Rule:
        if isinstance(target, str):
            OPERATION_RULES[target] = given
        else:
            MODULE_RULES[target] = given
        return given

    if rule is not None:
        keep(rule)
    return keep


def module_rule(cls: type[nn.Module]) -> Rule | None:
    """The rule for a module class or the nearest class it extends: a registered one, or one of the package's own."""
    for rules in (MODULE_RULES, BUILTIN_MODULE_RULES):
        if rules:
            found = next((rules[base] for base in cls.__mro__ if base in rules), None)
            if found is not None:
                return found
    return None
