"""From raw rows to tables, and to what the claims come to."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

Row = dict[str, Any]
# Rows of one task, budget and method by phase: "hardened" or "finetuned".
Phases = dict[str, list[Row]]

OURS = "prunegate"
# The same with half of everybody's epochs, at one budget: how soon does it get where the others end?
HALF = "prunegate, half the epochs"


def tables(rows: Sequence[Row]) -> str:
    """All of RESULTS.md that is made from rows."""
    plain, distilled = ([row for row in rows if row["distilled"] is flag] for flag in (False, True))
    lines = ["## Without distillation", "", *_claims(plain), "", *_leads(plain), "", *_all(plain), ""]
    if distilled:
        lines += ["## With distillation from the dense model, for everybody", "", *_claims(distilled), ""]
        lines += [*_all(distilled), ""]
    return "\n".join(lines)


def _cells(rows: Iterable[Row]) -> dict[tuple[str, float], dict[str, Phases]]:
    """By task and budget, the tightest last, and by method."""
    cells: dict[tuple[str, float], dict[str, Phases]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for row in sorted(rows, key=lambda row: (row["task"], -row["budget"], row["method"], row["seed"])):
        cells[row["task"], row["budget"]][row["method"]][row["phase"]].append(row)
    return cells


def _claims(rows: Iterable[Row]) -> list[str]:
    """Ours beside the best criterion on the seeds that both have."""
    lines = [
        "| task | budget | seeds | dense | ours before finetuning | ours | best criterion | which | lead "
        "| ours in half the epochs |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- | ---: | ---: |",
    ]
    for (task, budget), methods in _cells(rows).items():
        own = methods.get(OURS)
        if own is None:
            continue
        # Seeds that ours and every criterion have; one that has hardly begun is left out.
        of_method = {m: _seeds(phases["finetuned"]) for m, phases in methods.items() if m != HALF}
        most = max(len(seeds) for seeds in of_method.values())
        of_method = {m: seeds for m, seeds in of_method.items() if m == OURS or len(seeds) >= most / 2}
        seeds = set.intersection(*of_method.values())
        if len(of_method) < 2 or not seeds:
            continue
        finetuned = {m: _accuracies(_of(methods[m]["finetuned"], seeds)) for m in of_method}
        ours = finetuned.pop(OURS)
        best = max(finetuned, key=lambda method: sum(finetuned[method]))
        leads = _differences(ours, finetuned[best])
        halved = _accuracies(_of(methods[HALF]["finetuned"], seeds)) if HALF in methods else []
        half = _mean(halved) if halved else ""
        dense = _mean([row["dense_accuracy"] for row in _of(own["finetuned"], seeds)])
        hardened = _mean(_accuracies(_of(own["hardened"], seeds)))
        lines.append(
            f"| {task} | {budget} | {len(seeds)} | {dense} | {hardened} | {_mean(ours)} | {_mean(finetuned[best])} "
            f"| {best} of {len(finetuned)} | {_mean(leads, sign='+')} | {half} |"
        )
    return lines


def _leads(rows: Iterable[Row]) -> list[str]:
    """Ours beside each criterion: the mean of the tasks' mean leads, each task weighing the same.

    The best of five criteria, picked after the fact and for each line anew, is one that nobody can choose in advance;
    this says what choosing any one of them for all tasks comes to.
    """
    leads: dict[str, dict[float, list[list[float]]]] = defaultdict(lambda: defaultdict(list))
    for (_, budget), methods in _cells(rows).items():
        ours = methods[OURS]["finetuned"]
        for method in methods.keys() - {OURS, HALF}:
            theirs = methods[method]["finetuned"]
            if both := _seeds(ours) & _seeds(theirs):
                leads[method][budget].append(_differences(*(_accuracies(_of(some, both)) for some in (ours, theirs))))
    budgets = sorted({budget for by_budget in leads.values() for budget in by_budget}, reverse=True)
    lines = [
        f"| lead over | tasks | {' | '.join(f'at {budget}' for budget in budgets)} |",
        f"| --- | ---: |{' ---: |' * len(budgets)}",
    ]
    for method, by_budget in sorted(leads.items()):
        cells = [_mean_of_tasks(by_budget[budget]) if by_budget[budget] else "" for budget in budgets]
        lines.append(f"| {method} | {max(map(len, by_budget.values()))} | {' | '.join(cells)} |")
    return lines


def _all(rows: Iterable[Row]) -> list[str]:
    lines = [
        "| task | budget | method | seeds | dense | before finetuning | after | MACs | compute |",
        "| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for (task, budget), methods in _cells(rows).items():
        for method, phases in methods.items():
            after = phases["finetuned"]
            shares = [row["macs"] / row["dense_macs"] for row in after]
            compute = sum(row["train_macs"] for row in after) / len(after) / 1e12
            dense = _mean([row["dense_accuracy"] for row in after])
            before = _mean(_accuracies(phases["hardened"]))
            lines.append(
                f"| {task} | {budget} | {method} | {len(after)} | {dense} | {before} | {_mean(_accuracies(after))} "
                f"| {min(shares):.4f} to {max(shares):.4f} | {compute:.2f} |"
            )
    return lines


def _of(rows: Iterable[Row], seeds: set[int]) -> list[Row]:
    return [row for row in rows if row["seed"] in seeds]


def _seeds(rows: Iterable[Row]) -> set[int]:
    return {row["seed"] for row in rows}


def _accuracies(rows: Iterable[Row]) -> list[float]:
    return [row["accuracy"] for row in rows]


def _differences(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Seed by seed."""
    return [a - b for a, b in zip(ours, theirs, strict=True)]


def _mean(values: Sequence[float], sign: str = "") -> str:
    """Mean ± standard error in percent."""
    mean, error = _moments(values)
    return f"{100 * mean:{sign}.2f}" + ("" if error is None else f" ± {100 * error:.2f}")


def _mean_of_tasks(tasks: Sequence[Sequence[float]]) -> str:
    """The mean of means ± its standard error, in percent; the error is that of the seeds, with the tasks given."""
    means, errors = zip(*map(_moments, tasks), strict=True)
    mean = f"{100 * sum(means) / len(means):+.2f}"
    if None in errors:
        return mean
    return f"{mean} ± {100 * math.sqrt(sum(error**2 for error in errors)) / len(errors):.2f}"


def _moments(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean and its standard error, which a single value has none of."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return mean, None
    return mean, math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1) / len(values))
