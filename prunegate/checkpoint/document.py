"""The JSON document of a checkpoint: written from plain values, read trusting nothing."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from prunegate.builders import Builder
from prunegate.checkpoint.fingerprint import Fingerprint
from prunegate.checkpoint.steps import Step

FORMAT = (1, 0)
# Containers within containers; ours need seven.
_DEEPEST = 32


@dataclass(frozen=True)
class Document:
    """What a checkpoint says about its tensors; `prunegate.checkpoint` tells the meaning of each field."""

    builder: Builder | None
    class_name: str
    steps: tuple[Step, ...]
    aliases: Mapping[str, str] = field(default_factory=dict)
    certificate: Mapping[str, Any] | None = None
    fingerprint: Fingerprint | None = None
    costs: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
    weights_sha256: str = ""
    version: tuple[int, int] = FORMAT
    unknown: Mapping[str, Any] = field(default_factory=dict)

    def without_builder(self) -> Document:
        """The same for a model that has to be handed in when it is loaded."""
        return dataclasses.replace(self, builder=None)

    def as_text(self) -> str:
        """The document as JSON.

        Raises:
            ValueError: `extra` holds something that JSON has no form for.
        """
        fields = {
            **self.unknown,
            "version": ".".join(map(str, self.version)),
            "builder": None if self.builder is None else self.builder.as_dict(),
            "class": self.class_name,
            "steps": [step.as_dict() for step in self.steps],
            "aliases": dict(self.aliases),
            "certificate": self.certificate,
            "fingerprint": None if self.fingerprint is None else self.fingerprint.as_dict(),
            "costs": self.costs,
            "extra": self.extra,
            "weights_sha256": self.weights_sha256,
        }
        try:
            return json.dumps(fields, separators=(",", ":"), allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"extra: {error}, expected JSON-ready data without NaN or infinity") from error

    @classmethod
    def from_text(cls, text: str) -> Document:
        """Read what `as_text` wrote.

        Raises:
            ValueError: Naming the field that is not as expected.
            ModelNameError: The builder is no model name, or an argument of it is refused.
        """
        try:
            fields = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
        except RecursionError as error:
            raise ValueError("document: nested too deeply") from error
        fields = _object(fields, "document")
        _check_depth(fields)
        fields = dict(fields)
        version = _version(fields.pop("version", None))
        steps = fields.pop("steps", None)
        if not isinstance(steps, list) or not steps:
            raise ValueError("steps: expected a list of at least one compaction")
        builder, fingerprint = fields.pop("builder", None), fields.pop("fingerprint", None)
        certificate = fields.pop("certificate", None)
        return cls(
            builder=None if builder is None else Builder.from_dict(builder),
            class_name=_text(fields.pop("class", ""), "class"),
            steps=tuple(Step.from_dict(step, f"steps[{i}]") for i, step in enumerate(steps)),
            aliases=_texts(fields.pop("aliases", {}), "aliases"),
            certificate=None if certificate is None else _object(certificate, "certificate"),
            fingerprint=None if fingerprint is None else Fingerprint.from_dict(fingerprint),
            costs=_costs(fields.pop("costs", {})),
            extra=_object(fields.pop("extra", {}), "extra"),
            weights_sha256=_text(fields.pop("weights_sha256", ""), "weights_sha256"),
            version=version,
            unknown=fields,
        )


def _version(version: Any) -> tuple[int, int]:
    parts = version.split(".") if isinstance(version, str) else []
    if len(parts) != 2 or not all(part.isascii() and part.isdecimal() and len(part) < 6 for part in parts):
        raise ValueError(f"version: found {version!r:.80}, expected 'major.minor'")
    major, minor = map(int, parts)
    if major > FORMAT[0]:
        raise ValueError(
            f"version: found {version}, expected at most {FORMAT[0]}.x; a newer prunegate wrote it, so update yours"
        )
    return major, minor


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{where}: found {type(value).__name__}, expected an object")
    return value


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{where}: found {type(value).__name__}, expected a text")
    return value


def _texts(value: Any, where: str) -> dict[str, str]:
    return {key: _text(entry, f"{where}.{key}") for key, entry in _object(value, where).items()}


def _costs(value: Any) -> dict[str, dict[str, int]]:
    found = {metric: _object(costs, f"costs.{metric}") for metric, costs in _object(value, "costs").items()}
    for metric, costs in found.items():
        for name, number in costs.items():
            if not isinstance(number, int) or isinstance(number, bool) or number < 0:
                raise ValueError(f"costs.{metric}.{name}: found {number!r:.80}, expected a whole number of at least 0")
    return found


def _refuse_constant(name: str) -> float:
    raise ValueError(f"document: holds {name}, which is no JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"document: found {text:.40}, expected a number that a float can hold")
    return value


def _check_depth(tree: Any) -> None:
    level, entries = 0, [tree]
    while entries:
        level += 1
        if level > _DEEPEST:
            raise ValueError(f"document: nested more than {_DEEPEST} deep")
        entries = [
            child
            for entry in entries
            if isinstance(entry, (dict, list))
            for child in (entry.values() if isinstance(entry, dict) else entry)
        ]
