"""Weights in the forms in which trainers save them."""

from __future__ import annotations

import argparse
import copy
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel

from prunegate import CheckpointError, RecipeError
from prunegate.weight_files import fitting_weights, load_weights


def net(classes: int = 3) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, classes))


def trained() -> nn.Module:
    torch.manual_seed(1)
    model = net()
    model(torch.randn(16, 4))
    return model


def other() -> nn.Module:
    torch.manual_seed(2)
    return net()


def under(prefix: str, model: nn.Module) -> dict[str, Any]:
    return {prefix + name: value for name, value in model.state_dict().items()}


def averaged() -> dict[str, Any]:
    mean = AveragedModel(trained())
    mean.update_parameters(trained())
    return mean.state_dict()


FORMS: dict[str, Callable[[], Any]] = {
    "state_dict": lambda: trained().state_dict(),
    "state_dict inside": lambda: {"state_dict": trained().state_dict(), "epoch": 3},
    "model inside": lambda: {"model": trained().state_dict(), "optimizer": {"state": {0: {"step": torch.ones(1)}}}},
    "DataParallel": lambda: under("module.", trained()),
    "DataParallel inside": lambda: {"state_dict": under("module.", trained())},
    "compiled": lambda: under("_orig_mod.", trained()),
    "compiled in DataParallel": lambda: under("module._orig_mod.", trained()),
    "DataParallel in compiled": lambda: under("_orig_mod.module.", trained()),
    "AveragedModel": averaged,
    "timm": lambda: {
        "epoch": 1, "arch": "x", "state_dict": other().state_dict(), "state_dict_ema": trained().state_dict(),
        "args": argparse.Namespace(lr=0.1), "metric": np.float64(71.2), "version": 2,
    },
    "timm, DataParallel": lambda: {
        "state_dict": under("module.", other()), "state_dict_ema": under("module.", trained()),
    },
    "model_ema": lambda: {"model": other().state_dict(), "model_ema": {"module": trained().state_dict()}},
    "Lightning": lambda: {
        "state_dict": {**under("net.", trained()), "loss.weight": torch.ones(3)},
        "pytorch-lightning_version": "2.5", "optimizer_states": [{"state": {}}], "loops": {"fit_loop": {"a": 1}},
    },
    "Lightning with an average": lambda: {
        "state_dict": {**under("model.", other()), **under("ema_model.module.", trained())},
    },
    "Lightning, average of a callback": lambda: {
        "state_dict": under("model.", other()),
        "callbacks": {"EMA": {"ema_state_dict": under("model.", trained())}},
    },
    "without counters": lambda: {k: v for k, v in trained().state_dict().items() if "num_batches" not in k},
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_weights_are_found_in_every_form(tmp_path: Path, form: str) -> None:
    torch.save(FORMS[form](), tmp_path / "w.pth")
    model = net()
    load_weights(model, tmp_path / "w.pth")
    expected = trained().state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in model.state_dict().items() if "num_batches" not in k)


@pytest.mark.parametrize("form", ["state_dict", "DataParallel", "compiled", "AveragedModel"])
def test_safetensors_hold_the_same_forms(tmp_path: Path, form: str) -> None:
    save_file(FORMS[form](), tmp_path / "w.safetensors")
    model = net()
    load_weights(model, tmp_path / "w.safetensors")
    assert torch.equal(model[0].weight, trained()[0].weight)


def test_the_model_need_not_have_data(tmp_path: Path) -> None:
    torch.save(trained().state_dict(), tmp_path / "w.pth")
    with torch.device("meta"):
        model = net()
    assert fitting_weights(model, tmp_path / "w.pth").keys() == model.state_dict().keys()


class Runs:
    """A pickle that would write a file if it were loaded."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("run-by-the-file",)


MISTAKES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no file": (lambda p: None, r"model\.weights: found no file '.*w\.pth', expected a safetensors file, or a "),
    "another number of classes": (
        lambda p: torch.save(net(5).state_dict(), p),
        r"does not fit the dense model: of another shape: 3\.weight is \(5, 8\), expected \(3, 8\); 3\.bias is \(5,\), "
        r".*Build the model with the arguments",
    ),
    "lacking": (
        lambda p: torch.save({k: v for k, v in trained().state_dict().items() if not k.startswith("3")}, p),
        r"does not fit the dense model: it lacks 3\.weight, 3\.bias\.",
    ),
    "too many": (
        lambda p: torch.save({**trained().state_dict(), "4.weight": torch.ones(1)}, p),
        r"does not fit the dense model: the model has no 4\.weight",
    ),
    "of another model": (
        lambda p: torch.save({"model": {f"x{i}": torch.ones(1) for i in range(9)}}, p),
        r"it lacks 0\.weight, 0\.bias, 1\.weight and 5 more; the model has no x0, x1, x2 and 6 more",
    ),
    "no weights": (lambda p: torch.save({"epoch": 3}, p), "found no weights in it, expected a state_dict"),
    "whole model": (lambda p: torch.save(trained(), p), r"holds more than weights.*torch\.save\(model\.state_dict\(\)"),
    "code": (lambda p: torch.save({"state_dict": Runs()}, p), "holds more than weights.*Code in a file is never run"),
    "garbage": (lambda p: p.write_bytes(b"abc" * 99), r"w\.pth: (cannot be read|holds more than weights)"),
    "nothing": (lambda p: p.write_bytes(b""), r"w\.pth: cannot be read"),
    "cut off": (
        lambda p: (torch.save(trained().state_dict(), p), p.write_bytes(p.read_bytes()[:700])),
        r"w\.pth: cannot be read",
    ),
    "a folder": (lambda p: p.mkdir(), "found no file"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_does_not_fit_is_told_and_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mistake: str
) -> None:
    monkeypatch.chdir(tmp_path)
    make, message = MISTAKES[mistake]
    make(tmp_path / "w.pth")
    model = net()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RecipeError, match=message):
        load_weights(model, tmp_path / "w.pth")
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not (tmp_path / "run-by-the-file").exists()


def test_safetensors_that_are_none_are_told(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(b"abc" * 99)
    with pytest.raises(CheckpointError, match=r"--against: .*w\.safetensors: cannot be read: .*Copy or save it again"):
        load_weights(net(), tmp_path / "w.safetensors", "--against", CheckpointError)
