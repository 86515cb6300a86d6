"""Users' rules for the effect of custom operations and modules on channels."""

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
    """Register a rule for the effect of an operation or a module on channels.

    Torch's own operations are traced automatically. A rule is needed for what tracing cannot see into: a custom
    operation, or a module whose forward calls one (or is better treated as a whole). Custom operations also need
    ``register_fake``, because models are traced without data.

    **An operation that treats each channel by itself** behaves like one of torch's, whose rule is used::

        prunegate.register_rule("mylib::scaled_relu", like="relu")

    **Any other rule** is a function of a `Call`. ``call["x"]`` is an argument by name; for a module these are its
    forward's arguments and its own parameters and buffers. It returns a list with the labels of each output tensor.

    *Labels* say which unit each index of a tensor belongs to. They are a tuple of integer arrays (NumPy), at most one
    per dimension, and empty for a tensor without units. Each has as many dimensions as the tensor: full size along the
    dimension that the units lie along, 1 along the others. The channels of an image batch of shape (8, 64, 32, 32) have
    one label of shape (1, 64, 1, 1), whose 64 entries are numbers of units. ``call.labels_of(tensor)`` returns a
    tensor's labels, ``call.ids(tensor, dim)`` the units along one dimension as a flat array (or None), and
    ``call.lay(ids, dim)`` is the inverse: labels of the output with these units along a dimension.

    A rule records constraints:

    - ``call.tie(a, b)``: entry by entry, the units of ``a`` and ``b`` are removed or kept together.
    - ``call.consume(weight, ids)``: this weight reads the units along its own axis. The mask is applied here: the
      weight's slice of a removed unit is zero. Units that no weight reads get no gate.
    - ``call.produce(ids)``: these units are produced here.
    - ``call.multiply(weight, times)``: counts ``times`` MACs per entry of the weight, for the budget.
    - ``call.pin(ids, why)``: these units are kept, and the reason is reported.

    A module with one weight per channel ties it to the input's channels, and passes them on::

        @prunegate.register_rule(Scale)  # forward(x): mylib.scaled(x, self.scale), x (batch, channels, positions)
        def scale(call):
            channels, own = call.ids(call["x"], 1), call.ids(call["scale"], 0)
            if channels is None:  # the input has no units there
                call.pin(own, "scales channels that cannot be removed")
                return [()]
            call.tie(channels, own)  # entry k of the scale is channel k's
            return [call.labels_of(call["x"])]

    A module whose weight reads channels and produces others::

        @prunegate.register_rule(Projection)  # forward(x): mylib.project(x, self.weight), weight (outputs, inputs)
        def projection(call):
            x, weight = call["x"], call["weight"]
            given, inputs, outputs = call.ids(x, -1), call.ids(weight, 1), call.ids(weight, 0)
            if given is None:
                call.pin(inputs, "reads channels that cannot be removed")
            else:
                call.tie(given, inputs)  # channel k of x is column k of the weight
                call.consume(weight, inputs)  # masked for removed channels
            call.produce(outputs)
            call.multiply(weight, times=x.numel() // x.shape[-1])
            return [call.lay(outputs, -1)]

    Rules are not trusted: the dry run in `wrap` and the certificate of `compact` compare the models' outputs, and a
    wrong rule leads to a refusal. ``prunegate inspect --rules`` lists all rules.

    Args:
        target: The full name of an operation, such as ``"mylib::scaled_relu"``, or a module class (the rule also
            applies to its subclasses).
        rule: The rule; leave it out to use the result as a decorator.
        like: Name of a torch operation whose rule is used, such as ``"relu"``, ``"native_layer_norm"`` (the operation
            of ``layer_norm``) or ``"cat"``.

    Raises:
        TraceError: ``target`` is neither, or torch has no operation ``like`` with a rule.
        RuleError: Later, in `wrap`: the rule raised an error, or returned something other than labels.
    """
    if isinstance(target, str) and target.count("::") != 1:
        raise TraceError(
            f"register_rule: found the operation {target!r}, expected a full name such as 'mylib::scaled_relu'. "
            "print(torch.ops.mylib.scaled_relu) shows it."
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
    """The registered or built-in rule for a module class or its nearest base class."""
    for rules in (MODULE_RULES, BUILTIN_MODULE_RULES):
        if rules:
            result = next((rules[base] for base in cls.__mro__ if base in rules), None)
            if result is not None:
                return result
    return None
