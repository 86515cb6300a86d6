from __future__ import annotations

import torch
from torch import nn

from prunegate.training import reestimate_batch_norm


def test_running_statistics_become_plain_averages_over_the_batches() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.5))
    model[0].running_mean.fill_(100.0)  # what training left behind must not show
    batches = [torch.randn(8, 3, 4, 4) * scale + 2 for scale in (1.0, 2.0, 3.0)]
    assert reestimate_batch_norm(model, batches) == 3
    means = torch.stack([b.mean((0, 2, 3)) for b in batches]).mean(0)
    variances = torch.stack([b.var((0, 2, 3)) for b in batches]).mean(0)
    torch.testing.assert_close(model[0].running_mean, means)
    torch.testing.assert_close(model[0].running_var, variances)


def test_batches_that_are_not_finite_are_left_out() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3))
    batches = [torch.randn(8, 3), torch.full((8, 3), torch.nan), torch.randn(8, 3)]
    assert reestimate_batch_norm(model, batches) == 2
    assert bool(torch.isfinite(model[0].running_mean).all())


def test_modes_and_momenta_are_as_before() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3, momentum=0.3), nn.Dropout(0.5), nn.BatchNorm1d(3))
    model.train()
    model[2].eval()  # a layer that its user has frozen
    reestimate_batch_norm(model, [torch.randn(8, 3)])
    assert [m.training for m in model.modules()] == [True, True, True, False]
    assert (model[0].momentum, model[2].momentum) == (0.3, 0.1)


def test_second_norm_sees_the_outputs_of_a_net_without_dropout() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Dropout(0.9), nn.BatchNorm1d(2)).train()
    batch = torch.randn(64, 2)
    reestimate_batch_norm(model, [batch])
    torch.testing.assert_close(model[1].running_var, batch.var(0))


def test_model_without_batch_norm_uses_no_batch() -> None:
    def never():  # type: ignore[no-untyped-def]
        raise AssertionError("no batch is needed")
        yield

    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, track_running_stats=False))
    assert reestimate_batch_norm(model, never()) == 0
