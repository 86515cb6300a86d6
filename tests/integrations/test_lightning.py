from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from prunegate import GatedModel, LoopError, compact, wrap
from tests.conftest import SmallNet

pl = pytest.importorskip("lightning.pytorch")
PruningCallback = pytest.importorskip("prunegate.integrations.lightning").PruningCallback

pytestmark = [
    # Lightning 2.6 asks torch's pytree in a way that torch has deprecated.
    pytest.mark.filterwarnings(r"ignore:.*isinstance\(treespec, LeafSpec\).*:FutureWarning"),
    # Lightning advises several worker processes; eight small batches need none.
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
]
BATCHES = 8


class Module(pl.LightningModule):  # type: ignore[misc]
    def __init__(self, **models: nn.Module) -> None:
        super().__init__()
        self.models = nn.ModuleDict(models)
        self.left_out: int | None = None

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], index: int) -> torch.Tensor | None:
        if index == self.left_out:
            return None
        images, labels = batch
        return functional.cross_entropy(self.models["net"](images), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.01, weight_decay=0.5)


class TwoOptimizers(Module):
    """Optimises by hand: first something else, then the gated model."""

    def __init__(self, gated: nn.Module) -> None:
        super().__init__(net=gated, other=nn.Linear(3, 3))
        self.automatic_optimization = False

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], index: int) -> None:
        images, labels = batch
        loss = functional.cross_entropy(self.models["net"](images), labels)
        loss = loss + self.models["other"](images.mean((2, 3))).square().sum()
        first, second = self.optimizers()
        first.zero_grad()
        second.zero_grad()
        self.manual_backward(loss)
        first.step()
        second.step()

    def configure_optimizers(self) -> Any:
        net, other = self.models["net"], self.models["other"]
        return torch.optim.SGD(other.parameters(), lr=0.01), torch.optim.SGD(net.parameters(), lr=0.01)


def gated_model(seed: int = 0) -> GatedModel:
    torch.manual_seed(seed)
    return wrap(SmallNet(), torch.zeros(2, 3, 8, 8))


def batches() -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(16 * BATCHES, 3, 8, 8, generator=generator)
    return DataLoader(TensorDataset(images, torch.randint(4, (16 * BATCHES,), generator=generator)), batch_size=16)


def trainer(callback: Any, folder: Path, **changed: Any) -> Any:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    settings = {"max_epochs": 2, "accelerator": "cpu", "logger": False, "default_root_dir": folder, **quiet, **changed}
    return pl.Trainer(callbacks=[callback], **settings)


def test_fit_ends_with_hard_masks_that_meet_the_budget(tmp_path: Path) -> None:
    gated, callback = gated_model(), PruningCallback(budget=0.5)
    running = trainer(callback, tmp_path)
    running.fit(Module(net=gated), batches())
    assert gated.gates.are_fixed
    assert 0.3 < gated.realised_cost() / gated.dense_cost() <= 0.5
    assert gated.tau == pytest.approx(0.1)
    assert callback.gates.count == 2 * BATCHES
    logged = running.logged_metrics
    assert logged["prunegate/tau"] == pytest.approx(0.1)
    assert 0 < logged["prunegate/expected_macs"] < gated.dense_cost()
    assert logged["prunegate/multiplier"] == pytest.approx(callback.gates.budget.multiplier)
    assert compact(gated).costs["macs"]["compact"] == gated.realised_cost()


def test_gates_step_once_for_all_accumulated_batches(tmp_path: Path) -> None:
    gated, callback = gated_model(), PruningCallback()
    running = trainer(callback, tmp_path, accumulate_grad_batches=3)
    running.fit(Module(net=gated), batches())
    assert running.global_step == 2 * 3
    assert callback.gates.count == 2 * 3
    assert callback.gates.budget.count == callback.gates.tau.count == callback.gates.tau.steps == 4, "two are frozen"


def test_decay_and_clipping_are_the_same_whether_the_optimiser_holds_the_logits(tmp_path: Path) -> None:
    tensors = []
    for holds_logits in (True, False):
        gated = gated_model()
        held = list(gated.parameters() if holds_logits else gated.weight_parameters())
        optimizer = torch.optim.AdamW(held, lr=0.01, weight_decay=0.9)
        module = Module(net=gated)
        module.configure_optimizers = lambda optimizer=optimizer: optimizer
        trainer(PruningCallback(), tmp_path, gradient_clip_val=0.1).fit(module, batches())
        assert gated.gates.logits not in optimizer.state
        tensors.append([tensor.detach().clone() for tensor in gated.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*tensors, strict=True))


def test_resumed_fit_equals_an_undisturbed_one(tmp_path: Path) -> None:
    whole, callback = gated_model(), PruningCallback()
    trainer(callback, tmp_path, max_epochs=3).fit(Module(net=whole), batches())

    class Stop(pl.Callback):  # type: ignore[misc]
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            trainer.save_checkpoint(tmp_path / "one.ckpt")
            raise KeyError("the power is gone")

    first = trainer(PruningCallback(), tmp_path, max_epochs=3)
    first.callbacks.append(Stop())
    with pytest.raises(KeyError):
        first.fit(Module(net=gated_model()), batches())
    resumed, again = gated_model(1), PruningCallback()
    trainer(again, tmp_path, max_epochs=3).fit(Module(net=resumed), batches(), ckpt_path=tmp_path / "one.ckpt")
    assert again.gates.count == callback.gates.count == 3 * BATCHES
    assert again.gates.budget.state_dict() == callback.gates.budget.state_dict()
    state, other = whole.state_dict(), resumed.state_dict()
    assert all(torch.equal(state[name], other[name]) for name in state if not name.endswith("_extra_state"))
    assert all(torch.equal(mask, resumed.masks()[name]) for name, mask in whole.masks().items())


def test_steps_follow_the_optimiser_of_the_gated_weights_when_there_are_several(tmp_path: Path) -> None:
    gated, callback = gated_model(), PruningCallback(steps=2 * BATCHES)
    trainer(callback, tmp_path).fit(TwoOptimizers(gated), batches())
    assert callback.gates.count == 2 * BATCHES


def test_batch_that_is_left_out_moves_no_gate(tmp_path: Path) -> None:
    callback, module = PruningCallback(), Module(net=gated_model())
    module.left_out = 3
    # Lightning says so when a step returns None.
    with pytest.warns(UserWarning, match="`training_step` returned `None`"):
        trainer(callback, tmp_path, max_epochs=1).fit(module, batches())
    assert callback.gates.count == BATCHES - 1


@pytest.mark.parametrize("count", [0, 2])
def test_no_gated_model_or_several_are_refused(count: int, tmp_path: Path) -> None:
    models: dict[str, nn.Module] = {"net": gated_model(), "second": gated_model()} if count else {"net": SmallNet()}
    message = r"found 2 gated models in Module \(models.net, models.second\)" if count else "found no gated models"
    with pytest.raises(LoopError, match=message + ".*expected one"):
        trainer(PruningCallback(), tmp_path).fit(Module(**models), batches())


def test_fit_of_unknown_length_needs_steps(tmp_path: Path) -> None:
    with pytest.raises(LoopError, match=r"found a fit of inf steps.*steps=\.\.\."):
        trainer(PruningCallback(), tmp_path, max_epochs=-1).fit(Module(net=gated_model()), batches())


def test_optimiser_without_the_gated_weights_is_refused(tmp_path: Path) -> None:
    module = Module(net=gated_model(), other=nn.Linear(2, 2))
    module.configure_optimizers = lambda: torch.optim.SGD(module.models["other"].parameters(), lr=0.1)
    with pytest.raises(LoopError, match="found 1 optimisers without any weight of the gated model"):
        trainer(PruningCallback(), tmp_path).fit(module, batches())


def test_second_fit_after_hardening_is_refused(tmp_path: Path) -> None:
    module = Module(net=gated_model())
    trainer(PruningCallback(), tmp_path).fit(module, batches())
    with pytest.raises(LoopError, match="fixed masks"):
        trainer(PruningCallback(), tmp_path).fit(module, batches())
