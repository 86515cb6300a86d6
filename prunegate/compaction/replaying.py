"""Modules whose forward is replayed from the run, because their own code cannot run on smaller tensors.

Code that derives a size from another one (``C // num_heads``), or has it as a literal, fails or computes wrong results
when channels are cut. Such a module keeps its parameters, children, names and class hierarchy; only its forward is
replaced, by the operations of the traced run with sizes rewritten. Its children are called as before. The number of
samples is free; other input sizes are fixed to those of the run.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import fx, nn

from prunegate.compaction.cut_sizes import CutSizes
from prunegate.compaction.limit_checks import check_calls
from prunegate.compaction.replayed_class import replayed_class
from prunegate.compaction.rewrite import write_function, write_operation
from prunegate.compaction.writer import CannotReplayError, Writer
from prunegate.groups import Record, Span, Value, values_in

_PLAIN = (bool, int, float, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format, slice, range)


def replay(model: nn.Module, path: str, sizes: CutSizes, apart: Collection[str]) -> None:
    """Replace the forward of the module at ``path`` of a cut model.

    Args:
        apart: Modules that are inlined as their operations instead of being called.

    Raises:
        CannotReplayError: Its operations cannot be written with other sizes.
    """
    module = model.get_submodule(path)
    source: str | None = None
    names: Mapping[str, Any] = {}
    literals: Mapping[str, torch.Tensor] = {}
    for number in (i for i, span in enumerate(sizes.tape.spans) if span.target == path):
        graph, literals = write_span(model, number, sizes, lambda child: child not in apart)
        code = graph.python_code("self")
        if source is not None and code.src != source:
            raise CannotReplayError("it is called several times with different sizes")
        source, names = code.src, code.globals
    if source is None:
        raise CannotReplayError("it is never called")
    for name, tensor in literals.items():
        module.register_buffer(name, tensor, persistent=False)
    where = f"<prunegate replay of {path or 'the model'}>"
    module.__class__ = replayed_class(type(module), source, names, where)
    check_calls(module, path, next(span for span in sizes.tape.spans if span.target == path), sizes)


def as_graph_module(model: nn.Module, sizes: CutSizes, apart: Collection[str]) -> fx.GraphModule:
    """The whole cut model as a graph of torch's own layers and operations.

    Raises:
        CannotReplayError: It cannot be written with other sizes.
    """
    number = next(i for i, span in enumerate(sizes.tape.spans) if span.target == "")
    graph, literals = write_span(model, number, sizes, lambda child: _is_layer(model, child, sizes, apart))
    for name, tensor in literals.items():
        model.register_buffer(name, tensor, persistent=False)
    made = fx.GraphModule(model, graph, type(model).__name__)
    check_calls(made, "", sizes.tape.spans[number], sizes)
    return made


def _is_layer(model: nn.Module, path: str, sizes: CutSizes, apart: Collection[str]) -> bool:
    """Layers of torch, and modules that only act in training (stochastic depth), stay modules in a graph."""
    if path in apart:
        return False
    module = model.get_submodule(path)
    if any(True for child in module.children() if any(True for _ in child.parameters())):
        return False
    if any(cls.__module__.startswith("torch.nn.modules.") for cls in type(module).__mro__[:-3]):
        return not isinstance(module, nn.Sequential | nn.ModuleList)
    spans = [span for span in sizes.tape.spans if span.target == path]
    return all(span.returns_argument for span in spans) and not any(True for _ in module.parameters())


def write_span(
    model: nn.Module, number: int, sizes: CutSizes, is_whole: Callable[[str], bool]
) -> tuple[fx.Graph, Mapping[str, torch.Tensor]]:
    """One module call as a graph, and the constant tensors it reads.

    Args:
        number: Index of the call in ``tape.spans``.
        is_whole: Whether a child module is called instead of being inlined.
    """
    tape, again = sizes.tape, sizes.again
    span = tape.spans[number]
    path = str(span.target)
    prefix = f"{path}." if path else ""
    device = next((tensor.device for tensor in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    writer = Writer(fx.Graph(), sizes, {}, _stored_names(model, prefix, sizes), device=device)
    _write_arguments(model.get_submodule(path), span, writer)

    def write_operations(first: int, last: int) -> None:
        for place in range(first, last):
            write_operation(writer, tape.operations[place], None if again is None else again.operations[place])

    place, i = span.first, number + 1
    while i < span.until:
        inner = tape.spans[i]
        if isinstance(inner.target, str) and not (inner.target.startswith(prefix) and is_whole(inner.target)):
            i += 1
            continue
        write_operations(place, inner.first)
        _write_call(writer, inner, None if again is None else again.spans[i], prefix)
        place, i = inner.last, inner.until
    write_operations(place, span.last)
    result = writer.filled(span.result, None if again is None else again.spans[number].result)
    writer.graph.output(_output(writer, result))
    for node in writer.graph.nodes:
        _refuse_what_cannot_be_written((node.args, node.kwargs))
    return writer.graph, writer.literals


def _refuse_what_cannot_be_written(tree: Any) -> None:
    """Refuse values without a literal form in generated code, such as generators or objects of a class."""
    if isinstance(tree, list | tuple | dict):
        for part in tree.values() if isinstance(tree, dict) else tree:
            _refuse_what_cannot_be_written(part)
    elif not isinstance(tree, (fx.Node, complex, type(...), *_PLAIN)):
        raise CannotReplayError(f"it passes on a {type(tree).__name__}, which cannot be written as code")


def _write_call(writer: Writer, span: Span, again: Span | None, prefix: str) -> None:
    """Write a call of a child module, or of a function that is replayed whole."""
    more = (None, None) if again is None else (again.args, again.kwargs)
    if isinstance(span.target, str):
        args, kwargs = writer.filled(span.args, more[0]), writer.filled(span.kwargs, more[1])
        node = writer.graph.call_module(span.target[len(prefix) :], tuple(args), kwargs)
    else:
        node = write_function(writer, span.target, span.args, span.kwargs, None if again is None else more)
    _take_apart(writer, node, span.result)


def _write_arguments(module: nn.Module, span: Span, writer: Writer) -> None:
    """A placeholder for every argument of the recorded call, named as the forward names it."""
    known = inspect.signature(module.forward).parameters.values()
    names = [p.name for p in known if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    for place, argument in enumerate(span.args):
        name = names[place] if place < len(names) else f"argument_{place}"
        _note_argument(writer, writer.graph.placeholder(name), argument)
    for name, argument in span.kwargs.items():
        _note_argument(writer, writer.graph.placeholder(name, default_value=None), argument)


def _note_argument(writer: Writer, node: fx.Node, argument: Any) -> None:
    if isinstance(argument, torch.device):
        writer.device_argument = node
    _take_apart(writer, node, argument)


def _take_apart(writer: Writer, node: fx.Node, tree: Any) -> None:
    """Register the nodes of all tensors in a structure that ``node`` represents."""
    if isinstance(tree, Value):
        writer.nodes[tree.number] = node
        _set_clock(writer, node, tree.number)
    elif isinstance(tree, Record):
        read = getattr if _has_fields(tree.cls) else operator.getitem
        for name, part in tree.fields.items():
            if values_in(part):
                _take_apart(writer, writer.call(read, node, name), part)
    elif isinstance(tree, list | tuple | dict):
        for key, part in tree.items() if isinstance(tree, dict) else enumerate(tree):
            if values_in(part):
                _take_apart(writer, writer.call(operator.getitem, node, key), part)


def _set_clock(writer: Writer, node: fx.Node, number: int) -> None:
    again = writer.sizes.again
    if writer.clock is not None:
        return
    shape = writer.sizes.tape.shapes[number]
    more = shape if again is None else again.shapes[number]
    for dim, (size, size_again) in enumerate(zip(shape, more, strict=True)):
        if size != size_again and writer.sizes.kept(number)[dim] is None:
            writer.clock = (node, dim, size, size_again)
            dtype = writer.sizes.tape.dtypes[number]
            writer.clock_dtype = dtype if dtype.is_floating_point else None
            return


def _has_fields(cls: type) -> bool:
    return hasattr(cls, "__dataclass_fields__") or hasattr(cls, "_fields")


def _stored_names(model: nn.Module, prefix: str, sizes: CutSizes) -> dict[int, str]:
    """The parameters and buffers below ``prefix`` under any of their names, by number."""
    first: dict[int, str] = {}
    names: dict[str, str] = {}
    for name, tensor in (
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ):
        known = first.setdefault(id(tensor), name)
        if name.startswith(prefix):
            names.setdefault(known, name[len(prefix) :])
    sources = sizes.tape.sources.items()
    return {number: names[s.name] for number, s in sources if s.kind == "stored" and s.name in names}


def _output(writer: Writer, tree: Any) -> Any:
    """A result in the form in which the graph returns it: plain containers, and objects rebuilt from their fields."""
    if isinstance(tree, Record):
        fields = {name: _output(writer, value) for name, value in tree.fields.items()}
        if _has_fields(tree.cls):
            return writer.graph.call_function(tree.cls, (), fields)
        return writer.graph.call_function(tree.cls, (fields,))
    if isinstance(tree, dict):
        return {key: _output(writer, value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(_output(writer, value) for value in tree)
    if not isinstance(tree, fx.Node) and not isinstance(tree, _PLAIN):
        raise CannotReplayError(f"it returns a {type(tree).__name__}")
    return tree
