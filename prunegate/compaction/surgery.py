"""Cutting a dense model by a plan: slice every tensor, then set the sizes that its modules store."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn

from prunegate.compaction.held_sizes import held, hold
from prunegate.compaction.layer_sizes import sizes_after_slicing
from prunegate.compaction.narrow_attention import fit_attention
from prunegate.compaction.plan import AttributeValue, Mask, Plan, kept_of
from prunegate.errors import CompactionError
from prunegate.groups import in_place_of
from prunegate.groups.torch_workarounds.fake_tensors import lacks_data
from prunegate.groups.torch_workarounds.kernels import without_misled_kernels, without_packing


def cut(model: nn.Module, plan: Plan) -> Plan:
    """Slice ``model`` in place by a plan without attributes.

    Returns:
        The plan with the attribute edits for the layers' new shapes, which are already applied.
    """
    slice_tensors(model, plan.tensors)
    attributes: dict[str, dict[str, AttributeValue]] = {}
    for path, masks in _by_module(model, plan).items():
        module = model.get_submodule(path)
        # All sizes of an attention layer are listed, even unchanged ones, so that the plan shows that it was fitted.
        edits: dict[str, AttributeValue] = {**fit_attention(module, masks)}
        if not edits:
            sizes = sizes_after_slicing(module, masks)
            edits = {name: value for name, value in sizes.items() if getattr(module, name) != value}
        if edits:
            attributes[path] = edits
    set_attributes(model, attributes)
    without_misled_kernels(model)
    return Plan(plan.kept, plan.num_units, plan.tensors, attributes)


def apply(model: nn.Module, plan: Plan) -> nn.Module:
    """Cut a dense model, in place, by a complete plan: slices and attribute edits.

    Raises:
        CompactionError: As `apply_checked`.
    """
    apply_checked(model, plan)
    return model


def apply_checked(
    model: nn.Module, plan: Plan, is_replayed: Callable[[str], bool] = lambda path: False
) -> dict[str, dict[str, AttributeValue]]:
    """Like `apply`, with a check of the attributes.

    Args:
        is_replayed: Whether the module at a path is replayed, or inlined in one that is. Torch's attention then needs
            no other forward, and older plans do not list its sizes.

    Returns:
        For each module with sliced tensors, the attributes that follow from them, which equal the plan's.

    Raises:
        CompactionError: The plan names a tensor, size or attribute that the model does not have, or it sets a size of a
            layer that does not match the layer's tensors.
    """
    slice_tensors(model, plan.tensors)
    derived: dict[str, dict[str, AttributeValue]] = {}
    for path, masks in _by_module(model, plan).items():
        module, given = model.get_submodule(path), plan.attributes.get(path, {})
        fits = "num_heads" in given or not is_replayed(path)
        sizes: dict[str, AttributeValue] = {**fit_attention(module, masks)} if fits else {}
        derived[path] = sizes or sizes_after_slicing(module, masks)
        for name, value in derived[path].items():
            if given.get(name, getattr(module, name)) != value:
                raise CompactionError(
                    f"{path}.{name}: found {given.get(name, 'no edit')!r}, expected {value!r} by the tensors that the "
                    "plan leaves. The plan was changed, or made for another model."
                )
    set_attributes(model, plan.attributes)
    without_misled_kernels(model)
    return derived


def check_tensors(model: nn.Module, tensors: Mapping[str, Mapping[int, Mask]]) -> None:
    """Check that every listed tensor exists and has the listed axes, before anything is sliced.

    Raises:
        CompactionError: One does not.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    for name, axes in tensors.items():
        _check_axes(name, _lookup(modules, name), axes)


def _check_axes(name: str, tensor: torch.Tensor, axes: Mapping[int, Mask]) -> None:
    for axis, mask in axes.items():
        if axis >= tensor.dim() or tensor.shape[axis] != len(mask):
            raise CompactionError(
                f"{name}: found shape {tuple(tensor.shape)}, expected size {len(mask)} along axis {axis}. The plan was "
                "made for another model. Use it with the model it was made from."
            )


def _by_module(model: nn.Module, plan: Plan) -> dict[str, dict[str, Mapping[int, Mask]]]:
    """For each module, the masks of its own tensors, under all of their names."""
    results: dict[str, dict[str, Mapping[int, Mask]]] = {}
    aliases, modules = _aliases(model), dict(model.named_modules(remove_duplicate=False))
    for name, axes in plan.tensors.items():
        for alias in aliases[id(_lookup(modules, name))]:
            path, _, attribute = alias.rpartition(".")
            results.setdefault(path, {})[attribute] = axes
    return results


def slice_tensors(model: nn.Module, tensors: Mapping[str, Mapping[int, Mask]]) -> None:
    """Keep the marked positions of every listed axis; tensors that modules share stay shared.

    Packing of padded sequences is turned off in torch's encoders, as a cut model has to return the same as the gated
    one.
    """
    without_packing(model)
    aliases, modules = _aliases(model), dict(model.named_modules(remove_duplicate=False))
    for name, axes in tensors.items():
        original = _lookup(modules, name)
        cut_tensor = original.detach()
        _check_axes(name, original, axes)
        if lacks_data(original):  # no entries to select
            sizes = [int(axes[axis].sum()) if axis in axes else size for axis, size in enumerate(original.shape)]
            cut_tensor = cut_tensor.new_empty(sizes)
        else:
            cut_tensor = kept_of(cut_tensor, axes)
        cut_tensor = cut_tensor.contiguous(memory_format=_memory_format(original))
        cut_tensor = in_place_of(original, cut_tensor)
        for alias in aliases[id(original)]:
            path, _, attribute = alias.rpartition(".")
            module = modules[path]
            store = module._parameters if attribute in module._parameters else module._buffers
            store[attribute] = cut_tensor


def set_attributes(model: nn.Module, attributes: Mapping[str, Mapping[str, AttributeValue]]) -> None:
    """Set size attributes; each must exist and hold a size or a tuple or list of sizes already."""
    for path, edits in attributes.items():
        try:
            module = model.get_submodule(path)
        except AttributeError as error:
            raise CompactionError(f"{path}: no such module. The plan was made for another model.") from error
        for name, value in edits.items():
            present = held(vars(module), name)
            if _sizes(present) is None or isinstance(present, int) != isinstance(value, int):
                raise CompactionError(
                    f"{path}.{name}: found {present!r}, expected a size like {value!r} to replace. The plan was "
                    "made for another model."
                )
            if any(new > old for new, old in zip(_sizes(value) or (), _sizes(present) or (), strict=False)):
                raise CompactionError(
                    f"{path}.{name}: found {value!r} for a size of {present!r}, expected at most that. Compaction "
                    "makes nothing larger. The plan was made for another model."
                )
            hold(module, name, list(value) if isinstance(present, list) and isinstance(value, tuple) else value)


def _sizes(value: object) -> tuple[int, ...] | None:
    """A size or a sequence of sizes as a tuple; None for anything else."""
    entries = value if isinstance(value, (tuple, list)) else (value,)
    if all(isinstance(entry, int) and not isinstance(entry, bool) for entry in entries):
        return tuple(entries)
    return None


def _aliases(model: nn.Module) -> dict[int, list[str]]:
    names: dict[int, list[str]] = {}
    for name, tensor in (
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ):
        names.setdefault(id(tensor), []).append(name)
    return names


def _lookup(modules: Mapping[str, nn.Module], name: str) -> torch.Tensor:
    path, _, attribute = name.rpartition(".")
    result = getattr(modules.get(path), attribute, None)
    if not isinstance(result, torch.Tensor):
        raise CompactionError(f"{name}: no such parameter or buffer. The plan was made for another model.")
    return result


def _memory_format(tensor: torch.Tensor) -> torch.memory_format:
    if tensor.dim() == 4 and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return torch.contiguous_format
