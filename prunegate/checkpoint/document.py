"""The JSON document of a checkpoint: written from plain values, and read without trusting it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from prunegate.builders import Builder
from prunegate.checkpoint import strict_json
from prunegate.checkpoint.fingerprint import Fingerprint
from prunegate.checkpoint.steps import Step

FORMAT = (1, 1)
# From this version on, every document contains its own hash and that of the model's structure.
_HASHED = (1, 1)
OWN_HASH = "document_sha256"
# Most successive compactions, each of which is traced again on loading.
_MOST_STEPS = 64
# Most entries of a document: a constant, plus a multiple of its tensors for every compaction.
_FEW, _ENTRIES = 4096, 32


@dataclass(frozen=True)
class Document:
    """The metadata of a checkpoint; `prunegate.checkpoint` documents each field."""

    builder: Builder | None
    class_name: str
    steps: tuple[Step, ...]
    aliases: Mapping[str, str] = field(default_factory=dict)
    certificate: Mapping[str, Any] | None = None
    fingerprint: Fingerprint | None = None
    costs: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
    weights_sha256: str = ""
    structure_sha256: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    version: tuple[int, int] = FORMAT
    unknown: Mapping[str, Any] = field(default_factory=dict)

    def without_builder(self) -> Document:
        """The same document for a model that has to be passed to `load`."""
        return dataclasses.replace(self, builder=None)

    def as_text(self) -> str:
        """The document as JSON, including its own hash.

        Raises:
            ValueError: `extra` contains something that JSON cannot represent.
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
        if self.structure_sha256:
            fields |= {"structure_sha256": self.structure_sha256, "versions": dict(self.versions)}
        try:
            # In the form in which it is read for the comparison of hashes: string keys, lists instead of tuples.
            plain = strict_json.read(json.dumps(fields, allow_nan=False))
            if self.version >= _HASHED:
                plain[OWN_HASH] = strict_json.digest(plain)
            return json.dumps(plain, separators=(",", ":"), allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"extra: {error}, expected JSON-ready data without NaN or infinity") from error

    @classmethod
    def from_text(cls, text: str, num_tensors: int | None = None) -> Document:
        """Read what `as_text` wrote.

        Args:
            num_tensors: Number of tensors of the file, which bounds the size of the document.

        Raises:
            ValueError: Naming the field that is not as expected.
            ModelNameError: The builder is not a model name, or one of its arguments is refused.
        """
        fields = strict_json.read(text)
        version = _version(fields.get("version"))
        if num_tensors is not None:
            _check_size(fields, num_tensors)
        _compare_hash(version, fields)
        del fields["version"]
        steps = fields.pop("steps", None)
        if not isinstance(steps, list) or not steps:
            raise ValueError("steps: expected a list of at least one compaction")
        if len(steps) > _MOST_STEPS:
            raise ValueError(f"steps: found {len(steps)}, expected at most {_MOST_STEPS} compactions")
        made = tuple(Step.from_dict(step, f"steps[{i}]") for i, step in enumerate(steps))
        builder, certificate = fields.pop("builder", None), fields.pop("certificate", None)
        return cls(
            builder=None if builder is None else Builder.from_dict(builder),
            class_name=_text(fields.pop("class", ""), "class"),
            steps=made,
            aliases=_texts(fields.pop("aliases", {}), "aliases"),
            certificate=None if certificate is None else _object(certificate, "certificate"),
            fingerprint=_fingerprint(fields.pop("fingerprint", None), made[-1]),
            costs=_costs(fields.pop("costs", {})),
            extra=_object(fields.pop("extra", {}), "extra"),
            weights_sha256=_text(fields.pop("weights_sha256", ""), "weights_sha256"),
            versions=_texts(fields.pop("versions", {}), "versions"),
            structure_sha256=_text(fields.pop("structure_sha256", ""), "structure_sha256"),
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


def _check_size(fields: dict[str, Any], num_tensors: int) -> None:
    """Refuse descriptions that are too large for the model; data added by users may have any size."""
    steps = fields.get("steps")
    most = _FEW + _ENTRIES * num_tensors * (len(steps) if isinstance(steps, list) else 1)
    result = sum(strict_json.size_of(value) for name, value in fields.items() if name not in ("extra", "fingerprint"))
    if result > most:
        raise ValueError(f"document: found {result} entries for {num_tensors} tensors, expected at most {most}")


def _compare_hash(version: tuple[int, int], fields: dict[str, Any]) -> None:
    """Remove the document's own hash, and compare it with the rest."""
    stored = fields.pop(OWN_HASH, None)
    if stored is None and version < _HASHED:
        return
    if stored != strict_json.digest(fields):
        raise ValueError(
            f"{OWN_HASH}: does not match the document, whose entries were changed since it was saved. "
            "Copy the file again, or save the model again"
        )
    if version >= _HASHED and not fields.get("structure_sha256"):
        raise ValueError("structure_sha256: found none, expected the hash of the model's structure")


def _fingerprint(value: Any, last: Step) -> Fingerprint | None:
    if value is None:
        return None
    fingerprint = Fingerprint.from_dict(value)
    if last.inputs is not None and fingerprint.inputs != last.inputs:
        raise ValueError("fingerprint.inputs: differ from the inputs of the last of steps, expected the same")
    return fingerprint


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
    results = {metric: _object(costs, f"costs.{metric}") for metric, costs in _object(value, "costs").items()}
    for metric, costs in results.items():
        for name, number in costs.items():
            if not isinstance(number, int) or isinstance(number, bool) or number < 0:
                raise ValueError(f"costs.{metric}.{name}: found {number!r:.80}, expected a whole number of at least 0")
    return results
