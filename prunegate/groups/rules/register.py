"""Rules of users: what an operation, or a module of their own, does to channels."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from prunegate.errors import TraceError
from prunegate.groups.rules.builtin import BUILTIN_RULES
from prunegate.groups.rules.call import Rule, RuleTable
from prunegate.groups.rules.checked import checked
from prunegate.groups.rules.recurrent import recurrent

# By an operation's full name, ``"namespace::name"``.
OPERATION_RULES: RuleTable = {}
MODULE_RULES: dict[type[nn.Module], Rule] = {}
BUILTIN_MODULE_RULES: dict[type[nn.Module], Rule] = {nn.RNNBase: recurrent}


def register_rule(
    target: str | type[nn.Module], rule: Rule | None = None, *, like: str | None = None
) -> Callable[[Rule], Rule]:
    """Teach the tracer what an operation or a module does to channels.

    What torch computes is followed by itself. A rule is for what it cannot look into: a custom operation, or a module
    whose forward calls one (or is better taken as a whole). Custom operations need a form without data as well
    (``register_fake``), for models are followed without data.

    **An operation that treats each channel by itself** behaves as one of torch's, whose rule serves::

        prunegate.register_rule("mylib::scaled_relu", like="relu")

    **Any other rule** is a function of a `Call`. ``call["x"]`` is an argument by name; for a module these are its
    forward's arguments and its own parameters and buffers. It returns a list with the labels of each output tensor.

    *Labels* say which unit each index of a tensor belongs to. They are a tuple of integer arrays (NumPy), at most one
    for a dimension, and empty for a tensor without units. Each has as many dimensions as the tensor: full size along
    the dimension that the units lie along, 1 along the others. The channels of an image batch of shape (8, 64, 32, 32)
    have one label of shape (1, 64, 1, 1), whose 64 entries are numbers of units. ``call.labels_of(tensor)`` gives a
    tensor's labels, ``call.ids(tensor, dim)`` the units along one dimension as a flat array (or None), and
    ``call.lay(ids, dim)`` is the way back: labels of the output with these units along a dimension.

    A rule notes what has to hold:

    - ``call.tie(a, b)``: entry by entry, the units of ``a`` and ``b`` go together, or stay together.
    - ``call.consume(weight, ids)``: this weight reads the units along that axis of its own. Here the mask goes: where
      a unit is out, the weight's slice is zero. Units that no weight reads get no gate.
    - ``call.produce(ids)``: these units are made here.
    - ``call.multiply(weight, times)``: for the budget, so many MACs for each entry of the weight.
    - ``call.pin(ids, why)``: these units stay, and the user is told why.

    A module with a weight for each channel ties it to the channels that come in, and passes them on::

        @prunegate.register_rule(Scale)  # forward(x): mylib.scaled(x, self.scale), x (batch, channels, positions)
        def scale(call):
            channels, own = call.ids(call["x"], 1), call.ids(call["scale"], 0)
            if channels is None:  # the input has no units there
                call.pin(own, "scales channels that cannot be removed")
                return [()]
            call.tie(channels, own)  # entry k of the scale is channel k's
            return [call.labels_of(call["x"])]

    A module whose weight reads channels and makes others::

        @prunegate.register_rule(Projection)  # forward(x): mylib.project(x, self.weight), weight (outputs, inputs)
        def projection(call):
            x, weight = call["x"], call["weight"]
            given, inputs, outputs = call.ids(x, -1), call.ids(weight, 1), call.ids(weight, 0)
            if given is None:
                call.pin(inputs, "reads channels that cannot be removed")
            else:
                call.tie(given, inputs)  # channel k of x is column k of the weight
                call.consume(weight, inputs)  # which is zero where channel k is out
            call.produce(outputs)
            call.multiply(weight, times=x.numel() // x.shape[-1])
            return [call.lay(outputs, -1)]

    Nobody has to trust a rule: the dry run in `wrap` and the certificate of `compact` compare what the models compute,
    and a wrong rule ends in a refusal. ``prunegate inspect --rules`` lists all rules there are.

    Args:
        target: The full name of an operation, such as ``"mylib::scaled_relu"``, or a module class (its
            subclasses have the rule too).
        rule: The rule; leave it out to use the result as a decorator.
        like: Name of an operation of torch whose rule serves, such as ``"relu"``, ``"layer_norm"``'s
            ``"native_layer_norm"`` or ``"cat"``.

    Raises:
        TraceError: ``target`` is neither, or torch has no operation ``like`` that a rule is known for.
        RuleError: Later, in `wrap`: the rule raised something, or returned something else than labels.
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
        if not callable(given):
            raise TraceError(f"register_rule: found the rule {given!r}, expected a function of a Call.")
        if isinstance(target, str):
            OPERATION_RULES[target] = checked(given, f"{target!r}", like)
        else:
            MODULE_RULES[target] = checked(given, target.__qualname__, like)
        return given

    if rule is not None:
        keep(rule)
    return keep


def module_rule(cls: type[nn.Module]) -> Rule | None:
    """The rule for a module class or the nearest class it extends: a registered one, or one of the package's own."""
    for rules in (MODULE_RULES, BUILTIN_MODULE_RULES):
        if rules:
            result = next((rules[base] for base in cls.__mro__ if base in rules), None)
            if result is not None:
                return result
    return None
