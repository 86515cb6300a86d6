"""Bias and variance of every estimator's gradient, against the exact gradient on a problem small enough to count.

    python tools/bench/gradients.py [--draws 4000] [--units 8]

A fixed network of one hidden layer classifies scikit-learn's digits; its first hidden units have gates, and every
mask of them is tried, so the gradient of the mean loss with respect to the logits is known exactly. The table gives,
in units of the exact gradient's length: the bias (length of mean − exact), the standard deviation of one draw, and
the root mean squared error of the mean of 1 and of 64 draws; and the cosine between the mean and the exact gradient.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
from pathlib import Path

import torch
import torch.nn.functional as F

from prunegate.gates import ESTIMATORS

TAUS = (2.0, 1.0, 0.5, 0.1)
NO_TAU = frozenset({"bernoulli"})


class Problem:
    """The loss of a trained network on digits as a function of the mask over some of its hidden units."""

    def __init__(self, units: int, seed: int = 0) -> None:
        from sklearn.datasets import load_digits

        torch.manual_seed(seed)
        digits = load_digits()
        self.x = torch.tensor(digits.data / 16.0)
        self.y = torch.tensor(digits.target)
        self.units = units
        hidden = torch.nn.Linear(64, 16).double()
        self.out = torch.nn.Linear(16, 10).double()
        optimizer = torch.optim.Adam([*hidden.parameters(), *self.out.parameters()], lr=0.01)
        for _ in range(300):
            loss = F.cross_entropy(self.out(torch.relu(hidden(self.x))), self.y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            self.features = torch.relu(hidden(self.x))
        self.logits = torch.linspace(-2.0, 2.5, units, dtype=torch.float64)[torch.randperm(units)]

    def loss(self, mask: torch.Tensor) -> torch.Tensor:
        whole = torch.cat([mask.double(), mask.new_ones(16 - self.units).double()])
        return F.cross_entropy(self.out(self.features * whole), self.y)

    def exact_gradient(self) -> torch.Tensor:
        logits = self.logits.clone().requires_grad_()
        keep = torch.sigmoid(logits)
        mean = torch.zeros((), dtype=torch.float64)
        for bits in itertools.product((0.0, 1.0), repeat=self.units):
            mask = torch.tensor(bits, dtype=torch.float64)
            with torch.no_grad():
                loss = self.loss(mask)
            mean = mean + torch.where(mask > 0, keep, 1.0 - keep).prod() * loss
        return torch.autograd.grad(mean, logits)[0]

    def estimates(self, name: str, tau: float, count: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(1)
        found = []
        for _ in range(count):
            logits = self.logits.clone().requires_grad_()
            found.append(torch.autograd.grad(self.loss(ESTIMATORS[name](logits, tau, generator)), logits)[0])
        return torch.stack(found)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=4000, help="draws of each estimator (default 4000)")
    parser.add_argument("--units", type=int, default=8, help="gated units, at most 16; 2^units masks are tried")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"), help="where the table goes")
    options = parser.parse_args()
    problem = Problem(options.units)
    exact = problem.exact_gradient()
    length = float(exact.norm())
    lines = [
        "| estimator | tau | bias | deviation of one draw | error of 1 draw | error of 64 | cosine |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in ESTIMATORS:
        for tau in (1.0,) if name in NO_TAU else TAUS:
            draws = problem.estimates(name, tau, 1 if name == "sigmoid" else options.draws)
            mean = draws.mean(dim=0)
            bias = float((mean - exact).norm()) / length
            deviation = float((draws - mean).square().sum(dim=1).mean().sqrt()) / length
            errors = [math.hypot(bias, deviation / math.sqrt(n)) for n in (1, 64)]
            cosine = float(F.cosine_similarity(mean, exact, dim=0))
            lines.append(
                f"| {name} | {'' if name in NO_TAU else tau} | {bias:.3f} | {deviation:.2f} | {errors[0]:.2f} "
                f"| {errors[1]:.3f} | {cosine:.3f} |"
            )
            print(lines[-1], flush=True)
    about = __doc__[__doc__.index("A fixed") - 1 :]
    title = f"# Gradient estimators\n\nWritten by `python tools/bench/gradients.py`.\n{about}\n"
    options.out.write_text(title + "\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
