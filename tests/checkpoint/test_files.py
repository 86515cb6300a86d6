"""Contents of files, and refusal of damaged or foreign ones."""

from __future__ import annotations

import json
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save as safetensors_bytes
from safetensors.torch import save_file
from torch import nn

import prunegate
from prunegate.builders import Builder
from prunegate.checkpoint import read_document, save
from prunegate.checkpoint.structure import versions
from prunegate.errors import CheckpointError
from tests.checkpoint.models import compacted, compacted_once, rewritten
from tests.checkpoint.tampering import rehashed
from tests.conftest import SmallNet, random_masks


def test_file_is_plain_safetensors_without_pickle(tmp_path: Path) -> None:
    result, _ = compacted_once("timm/test_resnet", 64, "auto")
    file = tmp_path / "compact.safetensors"
    result.save(file, extra={"note": "x"})
    raw = file.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + length])
    document = json.loads(header["__metadata__"]["prunegate"])
    assert document["builder"] == {"library": "timm", "name": "test_resnet", "arguments": {}}
    assert document["extra"] == {"note": "x"}
    # What follows the header is the tensors and nothing else.
    assert len(raw) - 8 - length == max(entry["data_offsets"][1] for key, entry in header.items() if key[0] != "_")
    assert b"\x80\x04\x95" not in raw[: 8 + length]  # the start of a pickle


def test_weights_trained_after_compaction_are_the_ones_saved(tmp_path: Path) -> None:
    result, x = compacted("timm/test_resnet")
    with torch.no_grad():
        result.model.fc.bias.add_(1.0)
    result.save(tmp_path / "c.safetensors")
    assert torch.equal(prunegate.load(tmp_path / "c.safetensors")(x), result.model.eval()(x))


def test_own_class_is_loaded_into_a_dense_instance(
    tmp_path: Path, small_net: nn.Module, small_input: torch.Tensor
) -> None:
    gated = prunegate.wrap(small_net, small_input)
    gated.set_masks(random_masks(gated.groups, 0.5, 0))
    result = prunegate.compact(gated)
    file = tmp_path / "own.safetensors"
    result.save(file)
    with pytest.raises(
        CheckpointError, match=r"SmallNet, which is neither a timm nor a torchvision model.*model=\.\.\."
    ):
        prunegate.load(file)
    loaded = prunegate.load(file, model=SmallNet())
    assert torch.equal(loaded(small_input), result.model.eval()(small_input))
    with pytest.raises(CheckpointError, match=r"steps\[0\].plan: .*The plan was made for another model"):
        prunegate.load(file, model=nn.Linear(3, 3))


def test_shared_weights_stay_shared(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.inner, self.head = nn.Embedding(11, 6), nn.Linear(6, 6), nn.Linear(6, 11, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(torch.tanh(self.inner(self.embed(x))) + self.embed(x))

    gated = prunegate.wrap(Tied().eval(), torch.arange(8).reshape(2, 4))
    gated.set_masks(random_masks(gated.groups, 0.5, 0))
    result = prunegate.compact(gated)
    assert result.model.head.weight is result.model.embed.weight
    result.save(tmp_path / "tied.safetensors")
    loaded = prunegate.load(tmp_path / "tied.safetensors", model=Tied())
    assert loaded.head.weight is loaded.embed.weight
    x = torch.arange(8).reshape(2, 4)
    assert torch.equal(loaded(x), result.model.eval()(x))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    result, _ = compacted_once("timm/test_resnet", 64, "auto")
    file = tmp_path_factory.mktemp("checkpoint") / "c.safetensors"
    result.save(file)
    return file.read_bytes()


@pytest.fixture
def saved(tmp_path: Path, checkpoint: bytes) -> Path:
    file = tmp_path / "c.safetensors"
    file.write_bytes(checkpoint)
    return file


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_truncated_file_is_refused(saved: Path, share: float) -> None:
    raw = saved.read_bytes()
    saved.write_bytes(raw[: int(len(raw) * share)])
    with pytest.raises(CheckpointError, match="cannot be read as a safetensors file"):
        prunegate.load(saved)


def test_foreign_and_missing_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        prunegate.load(tmp_path / "none.safetensors")
    save_file({"a": torch.zeros(2)}, tmp_path / "plain.safetensors")
    with pytest.raises(CheckpointError, match="has no 'prunegate' metadata"):
        prunegate.load(tmp_path / "plain.safetensors")
    torch.save({"a": 1}, tmp_path / "pickle.pt")
    with pytest.raises(CheckpointError, match="cannot be read as a safetensors file"):
        prunegate.load(tmp_path / "pickle.pt")


DAMAGES: dict[str, tuple[Any, str]] = {
    "newer major version": (lambda d: d.update(version="2.0"), "version: found 2.0, expected at most 1.x"),
    "no version": (lambda d: d.pop("version"), "version: found None"),
    "unknown model": (lambda d: d["builder"].update(name="resnet19"), "timm has no model 'resnet19'. Nearest: timm/"),
    "unknown library": (
        lambda d: d["builder"].update(library="os"),
        "expected timm/<name>, torchvision/<name> or",
    ),
    "download": (lambda d: d["builder"]["arguments"].update(pretrained=True), "argument 'pretrained' is refused"),
    "path": (
        lambda d: d["builder"]["arguments"].update(checkpoint_path="/etc/passwd"),
        "argument 'checkpoint_path' is refused",
    ),
    "argument that is a path": (
        lambda d: d["builder"]["arguments"].update(global_pool="/etc/passwd"),
        "looks like a path or address",
    ),
    "changed plan": (
        lambda d: d["steps"][0]["plan"]["tensors"].pop("fc.weight"),
        r"fc.weight: found shape \(1000, 96\) in the dense model, expected \(1000, 48\)",
    ),
    "other attributes": (
        lambda d: d["steps"][0]["plan"]["attributes"]["fc"].update(bias=3),
        r"steps\[0\].plan: fc.bias: found",
    ),
    "no steps": (lambda d: d.update(steps=[]), "steps: expected a list of at least one compaction"),
    "larger attribute": (
        lambda d: d["steps"][0]["plan"]["attributes"]["conv1.0"].update(stride=[9999, 9999]),
        r"steps\[0\].plan: conv1.0.stride: found .* expected at most that",
    ),
    "huge argument": (
        lambda d: d["builder"]["arguments"].update(in_chans=1 << 40),
        "builder.arguments.in_chans: found 1099511627776, expected at most",
    ),
    "endless argument": (
        lambda d: d["builder"]["arguments"].update(layers=[1 << 19] * 4),
        "builder: .*many times more than the file holds",
    ),
    "not a number": (lambda d: d["costs"]["macs"].update(dense=float("nan")), "document: holds NaN"),
    "fingerprint": (
        lambda d: d["fingerprint"].update(outputs=[]),
        "fingerprint.outputs: expected a list of 1 to 64 outputs",
    ),
    "wrong hash": (lambda d: d.update(weights_sha256="0" * 64), "weights_sha256: does not match"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_damaged_document_is_refused_with_the_field(saved: Path, damage: tuple[Any, str]) -> None:
    change, message = damage
    with pytest.raises(CheckpointError, match=message):
        prunegate.load(rewritten(saved, change))


def test_changed_document_is_noticed(saved: Path) -> None:
    rewritten(saved, lambda d: d["extra"].update(note="y"), reseal=False)
    with pytest.raises(CheckpointError, match="document_sha256: does not match the document"):
        prunegate.load(saved)
    with pytest.raises(CheckpointError, match="document_sha256: does not match the document"):
        read_document(saved)


def as_first_format(document: dict[str, Any]) -> None:
    document["version"] = "1.0"
    for name in ("structure_sha256", "versions", "document_sha256"):
        del document[name]


def test_files_of_the_first_format_load_and_are_saved_in_the_present_one(saved: Path, tmp_path: Path) -> None:
    expected = prunegate.load(saved)
    x = torch.randn(2, 3, 64, 64)
    loaded = prunegate.load(rewritten(saved, as_first_format))
    assert torch.equal(loaded(x), expected(x))
    save(tmp_path / "again.safetensors", loaded, read_document(saved))
    assert read_document(tmp_path / "again.safetensors").version == (1, 1)
    assert torch.equal(prunegate.load(tmp_path / "again.safetensors")(x), expected(x))


def test_own_class_of_the_first_format_needs_no_fingerprint_where_all_follows_from_masks(tmp_path: Path) -> None:
    result, x = compacted("SmallNet", 16)
    file = tmp_path / "own.safetensors"
    result.save(file)
    rewritten(file, lambda d: (as_first_format(d), d.update(fingerprint=None)))
    assert torch.equal(prunegate.load(file, model=SmallNet())(x), result.model.eval()(x))


def test_another_version_of_the_library_loads_what_computes_the_same(saved: Path) -> None:
    """Attributes that a library adds to its modules change the structure, and not what is computed."""
    other = {"structure_sha256": "0" * 64, "versions": {"torch": "1.0"}}
    prunegate.load(rewritten(saved, lambda d: d.update(other)))
    same = rewritten(saved, lambda d: d.update(versions=versions(Builder.parse("timm/test_resnet"))))
    with pytest.raises(CheckpointError, match=r"structure_sha256: does not match the model.*pass verify=True"):
        prunegate.load(same)
    prunegate.load(same, verify=True)


def test_lacking_tensors_of_a_built_model_are_initialised_by_their_layers(saved: Path) -> None:
    with safe_open(str(saved), framework="pt") as opened:
        document = opened.metadata()
        tensors = {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118
    del tensors["fc.bias"]
    saved.write_bytes(rehashed(safetensors_bytes(tensors, document)))
    loaded = prunegate.load(saved, strict=False)
    assert torch.equal(loaded.fc.weight, tensors["fc.weight"])
    assert loaded.fc.bias.shape == (1000,)
    assert float(loaded.fc.bias.detach().abs().max()) <= loaded.fc.in_features**-0.5


def test_changed_weights_are_noticed(saved: Path) -> None:
    raw = bytearray(saved.read_bytes())
    raw[-100] ^= 1
    saved.write_bytes(bytes(raw))
    with pytest.raises(CheckpointError, match="weights_sha256: does not match the tensors"):
        prunegate.load(saved)


def test_failed_save_leaves_the_old_file(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import prunegate.checkpoint.files as module

    before = saved.read_bytes()
    result, _ = compacted_once("timm/test_resnet", 64, "auto")

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "save_file", full)
    with pytest.raises(CheckpointError, match=r"cannot be written \(.*No space left.*Any existing file is unchanged"):
        result.save(saved)
    assert saved.read_bytes() == before
    assert [p.name for p in saved.parent.iterdir()] == [saved.name]


def test_newer_minor_version_loads_and_what_it_added_is_kept(saved: Path, tmp_path: Path) -> None:
    rewritten(saved, lambda d: d.update(version="1.7", colour={"of": ["the", "sky"]}))
    document = read_document(saved)
    assert document.version == (1, 7)
    assert document.unknown == {"colour": {"of": ["the", "sky"]}}
    again = tmp_path / "again.safetensors"
    save(again, prunegate.load(saved), document)
    assert read_document(again).as_text() == document.as_text()


@pytest.mark.parametrize("size", [17 * 2**20, 99 * 2**20])
def test_header_that_fills_memory_is_refused_unread(tmp_path: Path, size: int) -> None:
    file = tmp_path / "large.safetensors"
    with file.open("wb") as out:  # a sparse file: the header is a hundred mebibytes of spaces, were it read
        out.write(struct.pack("<Q", size))
        out.truncate(size + 100)
    tracemalloc.start()
    with pytest.raises(CheckpointError, match=f"header: found {size} bytes, expected at most"):
        prunegate.load(file)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_metadata_that_json_has_no_form_for_writes_nothing(tmp_path: Path) -> None:
    result, _ = compacted_once("timm/test_resnet", 64, "auto")
    with pytest.raises(CheckpointError, match=r"extra: .*Nothing was written"):
        result.save(tmp_path / "c.safetensors", extra={"accuracy": float("nan")})
    assert list(tmp_path.iterdir()) == []
