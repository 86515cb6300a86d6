"""Torch-Pruning's criteria, each as its own examples use it.

Units are removed in many small steps until the MACs are within the budget, as its benchmark does. The two
sparse methods train with their regulariser first; those epochs count as any others.
"""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Iterator
from typing import Any

import torch.nn.functional as F
from timm.optim import create_optimizer_v2
from torch import nn

from accuracy.measure import macs_of
from accuracy.tasks import Task, batches, data_of, example
from prunegate.training import Distillation

# Strength of the regulariser by task, and epochs of sparse training as a share of all: the best of strengths 1e-2,
# 1e-3 and 1e-4 (and, with BN, of shares 0.4 and 0.2) on a seed that is not in the table. What was not tuned has the
# value of the task that is most like it.
STRENGTH = {
    "bn_scale": {"fashion_resnet14": 1e-2, "fashion_mobilenetv2": 1e-2},
    "group_norm": {"fashion_resnet14": 1e-3, "fashion_mobilenetv2": 1e-3, "digits_vit": 1e-4, "digits_convnext": 1e-4},
}
SPARSE_SHARE = {"bn_scale": 0.2, "group_norm": 0.4}
SPARSE = frozenset(STRENGTH)
METHODS = ("l2_global", "l2_uniform", "taylor", "bn_scale", "group_norm")
_STEPS = 400  # from nothing to everything removed
_TAYLOR_BATCHES = 8


def pruner_of(method: str, model: nn.Module, task: Task) -> Any:
    """A pruner of Torch-Pruning that takes a small step at each call."""
    import torch_pruning as tp

    importance = {
        "l2_global": lambda: tp.importance.GroupMagnitudeImportance(p=2),
        "l2_uniform": lambda: tp.importance.GroupMagnitudeImportance(p=2),
        "taylor": lambda: tp.importance.GroupTaylorImportance(),
        "bn_scale": lambda: tp.importance.BNScaleImportance(),
        "group_norm": lambda: tp.importance.GroupMagnitudeImportance(p=2, normalizer="max"),
    }[method]()
    kind = {"bn_scale": tp.pruner.BNScalePruner, "group_norm": tp.pruner.GroupNormPruner}.get(method)
    kind = kind or tp.pruner.BasePruner
    options: dict[str, Any] = {"in_channel_groups": {}, "out_channel_groups": {}}
    if method in SPARSE:
        options["reg"] = STRENGTH[method][task.name]
    heads = {m.qkv: m.num_heads for m in model.modules() if hasattr(m, "qkv") and hasattr(m, "num_heads")}
    if heads:
        # Within heads: its global pruning of whole heads fails (`head_thres` unbound) at steps that take none.
        options.update(num_heads=heads, prune_num_heads=False, prune_head_dims=True)
    last = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == data_of(task.name).num_classes]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return kind(
            model,
            example(task),
            importance=importance,
            global_pruning=method != "l2_uniform",
            pruning_ratio=1.0,
            max_pruning_ratio=0.95,
            iterative_steps=_STEPS,
            ignored_layers=last,
            **options,
        )


def sparse_train(
    model: nn.Module, pruner: Any, task: Task, seed: int, epochs: int, teacher: nn.Module | None = None
) -> None:
    """Train with the pruner's regulariser at the constant peak rate, as its examples do before pruning."""
    plan = task.plan("sparse", epochs)
    optimizer = create_optimizer_v2(
        model, opt=plan.optimizer, lr=plan.learning_rate, weight_decay=plan.weight_decay, momentum=plan.momentum
    )
    for epoch in range(epochs):
        model.train()
        pruner.update_regularizer()
        for images, labels, _ in batches(task, seed, epoch):
            scores = model(images)
            loss = F.cross_entropy(scores, labels)
            if teacher is not None:
                loss = Distillation(teacher).loss(images, scores, loss)
            optimizer.zero_grad()
            loss.backward()
            pruner.regularize(model)
            optimizer.step()


def prune(model: nn.Module, pruner: Any, method: str, task: Task, seed: int, limit: int) -> int:
    """Remove units until the model needs at most ``limit`` MACs per sample; give how many it needs."""
    found = macs_of(model, task)
    steps = 0
    while found > limit and steps < _STEPS:
        if method == "taylor":
            _accumulate_gradients(model, task, seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pruner.step()
        _fix_heads(model, pruner)
        steps += 1
        found = macs_of(model, task)
    model.zero_grad()
    return found


def _accumulate_gradients(model: nn.Module, task: Task, seed: int) -> None:
    """Gradients of the training loss over several batches, in eval mode: the model itself is what is judged."""
    model.eval()
    model.zero_grad()
    for images, labels, _ in itertools.islice(batches(task, seed, 0), _TAYLOR_BATCHES):
        F.cross_entropy(model(images), labels).backward()


def _fix_heads(model: nn.Module, pruner: Any) -> None:
    """timm's attention keeps its sizes as numbers; Torch-Pruning's example for it sets them in the same way."""
    for module in model.modules():
        if hasattr(module, "qkv") and module.qkv in pruner.num_heads:
            module.num_heads = pruner.num_heads[module.qkv]
            module.head_dim = module.qkv.out_features // (3 * module.num_heads)
            module.attn_dim = module.num_heads * module.head_dim


def pruned(
    method: str,
    dense: nn.Module,
    task: Task,
    seed: int,
    fractions: tuple[float, ...],
    dense_macs: int,
    teacher: nn.Module | None = None,
) -> Iterator[tuple[float, nn.Module, int]]:
    """The pruned models for several budgets, with the sparse epochs spent; those are trained once for all."""
    model, spent = dense, 0
    if method in SPARSE:
        model, spent = copy.deepcopy(dense), max(1, round(SPARSE_SHARE[method] * task.epochs))
        sparse_train(model, pruner_of(method, model, task), task, seed, spent, teacher)
    # One pass through all budgets, the loosest first: it removes what a pass to each of them alone would.
    shrinking = copy.deepcopy(model)
    shrinking.zero_grad()
    pruner = pruner_of(method, shrinking, task)
    for fraction in sorted(fractions, reverse=True):
        prune(shrinking, pruner, method, task, seed, int(fraction * dense_macs))
        yield fraction, copy.deepcopy(shrinking), spent
