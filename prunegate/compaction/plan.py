"""A plan: the kept units, as plain data that can be stored, checked and applied to a dense model."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from prunegate.groups import Analysis

Mask = npt.NDArray[np.bool_]
AttributeValue = int | tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """The changes that compaction makes to a dense model.

    Attributes:
        kept: For each channel group, the kept units, ascending.
        num_units: For each channel group, its number of units in the dense model.
        tensors: For each parameter and buffer that is cut, the kept positions of each of its cut axes, as
            bool masks over the dense size.
        attributes: For each module the size attributes to set, e.g. ``{"layer1.0.conv1": {"out_channels": 40}}``.
    """

    kept: Mapping[str, list[int]]
    num_units: Mapping[str, int]
    tensors: Mapping[str, Mapping[int, Mask]]
    attributes: Mapping[str, Mapping[str, AttributeValue]] = field(default_factory=dict)

    def __repr__(self) -> str:
        kept, total = sum(map(len, self.kept.values())), sum(self.num_units.values())
        return f"Plan({kept:,} of {total:,} units kept in {len(self.kept)} channel groups)"

    @classmethod
    def of(cls, analysis: Analysis, keep: Mask) -> Plan:
        """The plan that keeps the units marked in ``keep``, shape (units of the model,)."""
        kept = {group.name: np.flatnonzero(keep[group.units]).tolist() for group in analysis.groups}
        tensors: dict[str, dict[int, Mask]] = {}
        for name, axes in analysis.axes.items():
            cut = {axis: (units < 0) | keep[units] for axis, units in axes.items()}
            cut = {axis: mask for axis, mask in cut.items() if not mask.all()}
            if cut:
                tensors[name] = cut
        return cls(kept, {group.name: group.num_units for group in analysis.groups}, tensors)

    @property
    def removes_nothing(self) -> bool:
        """Whether the compact model equals the dense one."""
        full = all(len(units) == self.num_units[name] for name, units in self.kept.items())
        return full and not self.tensors and not self.attributes

    def with_attributes(self, edits: Mapping[str, Mapping[str, AttributeValue]]) -> Plan:
        """The plan with more size attributes to set."""
        merged = {module: dict(values) for module, values in self.attributes.items()}
        for module, values in edits.items():
            merged.setdefault(module, {}).update(values)
        return replace(self, attributes=merged)

    def as_dict(self) -> dict[str, Any]:
        """The plan as JSON-ready data. Equal masks, which most tensors of a group share, are stored once."""
        patterns: dict[tuple[int, bytes], int] = {}
        tensors: dict[str, dict[str, int]] = {}
        for name, axes in self.tensors.items():
            tensors[name] = {
                str(axis): patterns.setdefault((len(mask), np.packbits(mask).tobytes()), len(patterns))
                for axis, mask in axes.items()
            }
        groups = {}
        for name, count in self.num_units.items():
            mask = np.zeros(count, dtype=bool)
            mask[self.kept[name]] = True
            groups[name] = patterns.setdefault((count, np.packbits(mask).tobytes()), len(patterns))
        return {
            "groups": groups,
            "tensors": tensors,
            "patterns": [[size, base64.b64encode(bits).decode()] for size, bits in patterns],
            "attributes": {
                module: {name: list(value) if isinstance(value, tuple) else value for name, value in edits.items()}
                for module, edits in self.attributes.items()
            },
        }

    @classmethod
    def from_dict(cls, data: Any) -> Plan:
        """Read what `as_dict` wrote, trusting nothing.

        Raises:
            ValueError: Naming the field that is not as expected.
        """
        fields = _mapping(data, "plan")
        raw_patterns = fields.get("patterns")
        if not isinstance(raw_patterns, list):
            raise ValueError("plan.patterns: expected a list")
        patterns: list[Mask] = []
        left = _LARGEST_SIZE
        for i, entry in enumerate(raw_patterns):
            patterns.append(_pattern(entry, f"plan.patterns[{i}]", left))
            left -= len(patterns[-1])
        positions: dict[int, list[int]] = {}  # groups with the same pattern share its list

        def pattern(number: Any, where: str) -> Mask:
            if not _is_int(number) or not 0 <= number < len(patterns):
                raise ValueError(f"{where}: found {number!r}, expected the number of one of {len(patterns)} patterns")
            return patterns[int(number)]

        kept, num_units, total = {}, {}, 0
        for name, number in _mapping(fields.get("groups"), "plan.groups").items():
            mask = pattern(number, f"plan.groups.{name}")
            if not mask.any():
                raise ValueError(f"plan.groups.{name}: keeps no unit, expected at least one")
            total += len(mask)
            if total > _MOST_UNITS:
                raise ValueError(f"plan.groups: found more than {_MOST_UNITS} units in all")
            if number not in positions:
                positions[number] = np.flatnonzero(mask).tolist()
            kept[name], num_units[name] = positions[number], len(mask)
        tensors = {
            name: {
                _axis(axis, f"plan.tensors.{name}"): pattern(number, f"plan.tensors.{name}.{axis}")
                for axis, number in _mapping(axes, f"plan.tensors.{name}").items()
            }
            for name, axes in _mapping(fields.get("tensors"), "plan.tensors").items()
        }
        attributes = {
            module: {
                name: _attribute(value, f"plan.attributes.{module}.{name}")
                for name, value in _mapping(edits, f"plan.attributes.{module}").items()
            }
            for module, edits in _mapping(fields.get("attributes"), "plan.attributes").items()
        }
        return cls(kept, num_units, tensors, attributes)


def kept_of(tensor: torch.Tensor, axes: Mapping[int, Mask | None]) -> torch.Tensor:
    """The kept positions of a tensor along each axis that has a mask."""
    for axis, mask in axes.items():
        if mask is not None:
            tensor = tensor.index_select(axis, torch.from_numpy(np.flatnonzero(mask)).to(tensor.device))
    return tensor


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise ValueError(f"{where}: found {type(value).__name__}, expected an object")
    return value


def _axis(text: str, where: str) -> int:
    if text not in {str(axis) for axis in range(8)}:
        raise ValueError(f"{where}: found axis {text!r}, expected a number from 0 to 7")
    return int(text)


# Largest width of a layer, and of all patterns together; larger files are damaged or hostile and are not read.
_LARGEST_SIZE = 1 << 24
_MOST_UNITS = 1 << 22


def _pattern(entry: Any, where: str, most: int) -> Mask:
    if not isinstance(entry, list) or len(entry) != 2 or not _is_int(entry[0]) or not isinstance(entry[1], str):
        raise ValueError(f"{where}: expected [size, base64 bits]")
    size, text = entry
    if not 0 < size <= most:
        raise ValueError(f"{where}: found size {size}, expected 1 to {most}, as all patterns together have to fit")
    try:
        packed = base64.b64decode(text, validate=True)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    if len(packed) != (size + 7) // 8:
        raise ValueError(f"{where}: found {len(packed)} bytes, expected {(size + 7) // 8} for {size} bits")
    bits: Mask = np.unpackbits(np.frombuffer(packed, dtype=np.uint8), count=size).astype(bool)
    return bits


def _attribute(value: Any, where: str) -> AttributeValue:
    entries = value if isinstance(value, list) else [value]
    if not all(_is_int(entry) and 0 < entry <= _LARGEST_SIZE for entry in entries):
        raise ValueError(f"{where}: found {value!r}, expected a positive size or a list of them")
    return tuple(entries) if isinstance(value, list) else int(value)
