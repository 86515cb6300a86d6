"""Files that were damaged, or made to do harm: each is refused with a `CheckpointError`, at little cost.

While a file is read nothing may be imported beyond what a good file needs, no other file opened for writing, no
socket made, no process begun: Python's audit hooks tell.
"""

from __future__ import annotations

import base64
import contextlib
import json
import resource
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import prunegate
from prunegate.errors import CheckpointError
from tests.checkpoint.models import compacted_once, outputs_of
from tests.checkpoint.tampering import changed, joined, parts
from tests.checkpoint.watching import MOST_BYTES, nothing_else_happens
from tests.conftest import IS_LONG

# The whole of what the property test must show; a good file takes some 50 ms to load.
EXAMPLES = 2000 if IS_LONG else 500


@dataclass(frozen=True)
class Good:
    """An honest file, its tensors' bytes, an input and what its model makes of that."""

    raw: bytes
    tensors: Any
    x: torch.Tensor
    outputs: list[torch.Tensor]


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Good]:
    """Good files, whose loading has brought in whatever good files need."""
    found = {}
    for name, size, backend in (("timm/test_resnet", 64, "auto"), ("timm/test_vit", 160, "graph")):
        file = tmp_path_factory.mktemp("good") / "good.safetensors"
        compacted_once(name, size, backend)[0].save(file)
        model = prunegate.load(file, verify=True)
        x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
        raw = file.read_bytes()
        found[backend] = Good(raw, parts(raw)[2], x, outputs_of(model, x))
    return found


@pytest.fixture(scope="module")
def good(honest: dict[str, Good]) -> dict[str, bytes]:
    return {backend: file.raw for backend, file in honest.items()}


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(data=st.data())
def test_changed_files_are_refused_or_load_as_they_should(
    honest: dict[str, Good], tmp_path: Path, data: st.DataObject
) -> None:
    good = honest[data.draw(st.sampled_from(("auto", "auto", "auto", "auto", "graph")))]
    file = tmp_path / "changed.safetensors"
    file.write_bytes(changed(good.raw, data))
    with nothing_else_happens(file):
        try:
            loaded = prunegate.load(file)
        except CheckpointError as error:
            refused = str(error)
        else:
            refused = ""
    if refused:
        assert str(file) in refused  # where
        return
    # What is for people alone may say anything; the weights are those of the good file, and so is what they give.
    assert parts(file.read_bytes())[2] == good.tensors
    assert all(map(torch.equal, outputs_of(loaded, good.x), good.outputs))


def whole(change: Callable[[dict[str, Any]], Any]) -> Callable[[bytes], bytes]:
    def made(raw: bytes) -> bytes:
        header, document, data = parts(raw)
        change(document)
        return joined(header, document, data)

    return made


def plan(document: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = document["steps"][0]["plan"]
    return found


def swapped(raw: bytes) -> bytes:
    """Two tensors whose entries in the header are exchanged."""
    header, document, data = parts(raw)
    names = sorted(name for name in header if name.endswith(".weight"))
    header[names[0]], header[names[1]] = header[names[1]], header[names[0]]
    return joined(header, document, data)


def retyped(raw: bytes) -> bytes:
    header, document, data = parts(raw)
    header["fc.weight"]["dtype"] = "I32"
    return joined(header, document, data)


def overlapping(raw: bytes) -> bytes:
    header, document, data = parts(raw)
    header["fc.bias"]["data_offsets"] = header["fc.weight"]["data_offsets"]
    return joined(header, document, data)


def reversed_mask(plan: dict[str, Any], name: str) -> None:
    """As many units as before, others of them."""
    size, text = plan["patterns"][plan["tensors"][name]["0"]]
    assert size % 8 == 0
    bits = int.from_bytes(base64.b64decode(text))
    other = int(f"{bits:0{size}b}"[::-1], 2).to_bytes(size // 8)
    plan["patterns"].append([size, base64.b64encode(other).decode()])
    plan["tensors"][name]["0"] = len(plan["patterns"]) - 1


def as_before(document: dict[str, Any]) -> None:
    """As the first version of the format would have it."""
    document["version"] = "1.0"
    for name in ("structure_sha256", "versions", "document_sha256"):
        document.pop(name, None)


HANDMADE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "download": (
        whole(lambda d: d["builder"]["arguments"].update(pretrained=True)),
        "argument 'pretrained' is refused",
    ),
    "file": (whole(lambda d: d["builder"]["arguments"].update(checkpoint_path="x")), "'checkpoint_path' is refused"),
    "hub": (whole(lambda d: d["builder"].update(name="hf-hub:a/b")), "timm has no model 'hf-hub:a/b'"),
    "a path as a name": (whole(lambda d: d["builder"].update(name="../../x")), "timm has no model"),
    "another package": (whole(lambda d: d["builder"].update(library="subprocess")), "found 'subprocess/test_resnet'"),
    "code as an argument": (whole(lambda d: d["builder"]["arguments"].update(act_layer={"a": 1})), "found dict"),
    "another model": (
        whole(lambda d: d["builder"].update(name="resnet18")),
        "tensors: found .* expected the tensors of",
    ),
    "a huge model": (
        whole(lambda d: d["builder"].update(name="vit_giant_patch14_224")),
        "tensors: found .* expected the tensors of|many times",
    ),
    "a wide model": (
        whole(lambda d: d["builder"]["arguments"].update(channels=[1 << 20] * 4)),
        "tensors: found .* expected the tensors of|cannot be built",
    ),
    "a deep model": (
        whole(lambda d: d["builder"]["arguments"].update(layers=[1 << 20] * 4)),
        "many times more than the file holds",
    ),
    "a long list": (whole(lambda d: d["builder"]["arguments"].update(layers=[1] * 5000)), "found a list of 5000"),
    "no masks": (whole(lambda d: plan(d).update(patterns=[])), "expected the number of one of 0 patterns"),
    "a negative index": (whole(lambda d: plan(d)["groups"].update({"conv1.0": -1})), "conv1.0: found -1"),
    "a fraction": (whole(lambda d: plan(d)["groups"].update({"conv1.0": 0.5})), "conv1.0: found 0.5"),
    "a huge mask": (whole(lambda d: plan(d)["patterns"].append([1 << 40, ""])), "found size 1099511627776"),
    "many huge masks": (
        whole(lambda d: plan(d).update(patterns=[[3 << 21, "/" * (1 << 20)]], groups={str(i): 0 for i in range(10)})),
        "plan.groups: found more than 4194304 units in all",
    ),
    "a negative size": (whole(lambda d: plan(d)["attributes"].update(fc={"in_features": -4})), "found -4, expected a"),
    "a size of NaN": (whole(lambda d: plan(d)["attributes"].update(fc={"in_features": float("nan")})), "holds NaN"),
    "a module above": (whole(lambda d: plan(d)["attributes"].update({"..": {"x": 1}})), "no such module"),
    "another attribute": (whole(lambda d: plan(d)["attributes"]["fc"].update(training=1)), "fc.training: found"),
    "a method": (whole(lambda d: plan(d)["attributes"]["fc"].update(forward=1)), "fc.forward: found None"),
    "an eighth axis": (whole(lambda d: plan(d)["tensors"].update({"fc.weight": {"7": 0}})), "fc.weight: found shape"),
    "alias of nothing": (whole(lambda d: d["aliases"].update({"fc.weight": "x"})), "aliases.fc.weight: names 'x'"),
    "replayed root": (
        whole(lambda d: d["steps"][0].update(mending={"graph": False, "replayed": [".."], "apart": []})),
        r"steps\[0\]",
    ),
    "endless inputs": (
        whole(
            lambda d: d["steps"][0].update(
                fix_ups={"graph": True, "replayed": [], "apart": []},
                inputs={"list": [{"list": [{"tensor": [1 << 24] * 4, "dtype": "float32"}]}, {"dict": {}}]},
            )
        ),
        r"steps\[0\].inputs: found shape",
    ),
    "many steps": (whole(lambda d: d.update(steps=d["steps"] * 50)), r"expected \d+ along axis \d after steps\[48\]"),
    "deep nesting": (whole(lambda d: d.update(extra=json.loads("[" * 400 + "]" * 400))), "extra|nested more than 32"),
    "a long number": (
        lambda raw: raw.replace(b'\\"version\\":\\"1.1\\"', b'\\"version\\":' + b"9" * 14)[: len(raw) * 2],
        "cannot be read|version: found",
    ),
    "a stride": (
        whole(lambda d: plan(d)["attributes"]["conv1.0"].update(stride=[1, 1])),
        "conv1.0.stride: found .1, 1. in place of .2, 2., expected the sizes of a tensor",
    ),
    "a unit lost by one tensor alone": (
        whole(lambda d: reversed_mask(plan(d), "conv1.1.running_mean")),
        "does not lose the same units as the rest of its channel group",
    ),
    "another pooling": (
        whole(lambda d: d["builder"]["arguments"].update(global_pool="max")),
        "structure_sha256: does not match the model",
    ),
    "another pooling, by another version": (
        whole(lambda d: (d["builder"]["arguments"].update(global_pool="max"), d["versions"].update(timm="0.9"))),
        "fingerprint: the model computes something else here",
    ),
    "another pooling, in the first format": (
        whole(lambda d: (as_before(d), d["builder"]["arguments"].update(global_pool="max"))),
        "fingerprint: the model computes something else here",
    ),
    "another pooling, without a proof": (
        whole(lambda d: (as_before(d), d.update(fingerprint=None))),
        "structure_sha256: found none, and there is no fingerprint",
    ),
    "no structure": (whole(lambda d: d.pop("structure_sha256")), "structure_sha256: found none"),
    "a document of entries": (
        whole(lambda d: plan(d)["groups"].update({str(i): 0 for i in range(20000)})),
        r"document: found \d+ entries for \d+ tensors",
    ),
    "one name twice": (
        lambda raw: raw.replace(b'\\"class\\":', b'\\"steps\\":'),
        "holds 'steps' twice",
    ),
    "an unlikely number": (whole(lambda d: d["extra"].update(a=10**50)), "found a number of 51 digits"),
    "other inputs than compared": (
        whole(lambda d: d["steps"][0].update(inputs={"list": [{"list": []}, {"dict": {}}]})),
        "fingerprint.inputs: differ from",
    ),
    "swapped tensors": (swapped, "weights_sha256: does not match"),
    "other type": (retyped, "weights_sha256: does not match"),
    "overlapping tensors": (overlapping, "cannot be read as a safetensors file"),
}


@pytest.mark.parametrize("case", HANDMADE)
def test_handmade_file_is_refused_with_the_field(good: dict[str, bytes], tmp_path: Path, case: str) -> None:
    make, message = HANDMADE[case]
    file = tmp_path / "made.safetensors"
    file.write_bytes(make(good["auto"]))
    with nothing_else_happens(file), pytest.raises(CheckpointError, match=message) as caught:
        prunegate.load(file)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("strict", [True, False])
def test_a_model_larger_than_its_file_is_refused_before_it_is_made(
    good: dict[str, bytes], tmp_path: Path, strict: bool
) -> None:
    file = tmp_path / "wide.safetensors"
    file.write_bytes(whole(lambda d: d["builder"]["arguments"].update(num_classes=1 << 20))(good["auto"]))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError, match=r"fc.weight: found shape \(1048576, 96\) in the dense model"):
        prunegate.load(file, strict=strict)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 * 1024


def with_inputs(document: dict[str, Any], *shape: int) -> None:
    form = {"list": [{"list": [{"tensor": list(shape), "dtype": "float32"}]}, {"dict": {}}]}
    document["steps"][0]["inputs"] = document["fingerprint"]["inputs"] = form


INPUTS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "large": (lambda d: with_inputs(d, 2, 3, 4000, 4000), r"takes \d+ MACs, expected about"),
    "many": (lambda d: with_inputs(d, 4000, 3, 64, 64), "give outputs of the shapes"),
    "consistent": (
        lambda d: (with_inputs(d, 9000, 3, 64, 64), d["fingerprint"]["outputs"][0].update(shape=[9000, 1000])),
        r"takes about \d+ bytes, expected at most",
    ),
    "beyond bounds": (lambda d: with_inputs(d, 2, 3, 6600, 6600), "expected at most 134217728 numbers"),
}


@pytest.mark.parametrize("case", INPUTS)
def test_inputs_that_cost_more_than_the_file_says_are_not_run(
    good: dict[str, bytes], tmp_path: Path, case: str
) -> None:
    change, message = INPUTS[case]
    file = tmp_path / "inputs.safetensors"
    file.write_bytes(whole(change)(good["auto"]))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError, match=message):
        prunegate.load(file, verify=True)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 * 1024


def test_watcher_sees(tmp_path: Path) -> None:
    """The test above could fail: what it forbids is noticed."""
    with pytest.raises(AssertionError, match="open"), nothing_else_happens(tmp_path / "a"):
        (tmp_path / "b").write_text("")
    with pytest.raises(AssertionError, match="import antigravity_"), nothing_else_happens(tmp_path):  # noqa: SIM117
        with contextlib.suppress(ImportError):
            __import__("antigravity_")
    with pytest.raises(AssertionError), nothing_else_happens(tmp_path):
        torch.ones(MOST_BYTES // 2).sum()
