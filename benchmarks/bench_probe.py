"""The probe beside scikit-learn's logistic regression: the same strengths on the same features, in one process.

    python benchmarks/bench_probe.py [--rows 10000] [--features 1280] [--classes 10] [--tolerances 1e-4,1e-6]

Features are random: the spectrum of their covariance falls as that of an ImageNet encoder's does (eigenvalues as
1 / rank), they are never negative, and a tenth of the labels is wrong, so that val asks for a strength within the grid.
scikit-learn fits what the probe tried, each from the one before it (`warm_start`), on rows that are standardized
already. Times are CPU time on one thread; its loss says whether a classifier is at the optimum.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.nn import functional as F

from pipeline.probe.logistic import GRID
from pipeline.probe.stage import Rows, best_of, try_strengths

NUM_VAL = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--features", type=int, default=1280)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--tolerances", default="1e-4,1e-6", help="of scikit-learn, whose default is 1e-4")
    args = parser.parse_args()
    torch.set_num_threads(1)
    features, labels = draw(args.rows + NUM_VAL, args.features, args.classes)
    rows = Rows(features[NUM_VAL:], F.one_hot(labels[NUM_VAL:], args.classes).float(), torch.ones(args.rows))
    started = time.process_time()
    tried = list(try_strengths(rows, features[:NUM_VAL], labels[:NUM_VAL].numpy(), GRID))
    ours = time.process_time() - started
    print(f"selftrain: {ours:.1f} s for {len(tried)} strengths, {best_of(tried).c:.2g} is chosen")
    mean, scale = rows.features.double().mean(0), rows.features.double().std(0, correction=0)
    standard = ((rows.features.double() - mean) / scale).numpy()
    for tolerance in map(float, args.tolerances.split(",")):
        theirs, worst = 0.0, 0.0
        model = LogisticRegression(tol=tolerance, max_iter=10_000, warm_start=True)
        for one in tried:
            model.C = one.c
            started = time.process_time()
            model.fit(standard, labels[NUM_VAL:].numpy())
            theirs += time.process_time() - started
            weight = one.classifier.weight * scale
            found = loss(standard, rows.targets, weight, one.classifier.bias + one.classifier.weight @ mean, one.c)
            worst = max(worst, found - loss(standard, rows.targets, *map(torch.from_numpy, of(model)), one.c))
        print(f"scikit-learn at {tolerance:g}: {theirs:.1f} s, {theirs / ours:.1f} times as long")
        print(f"  of no strength is our loss above scikit-learn's by more than {worst:.1e}", flush=True)


def draw(num: int, width: int, num_classes: int) -> tuple[Tensor, Tensor]:
    """Features [N, D] and classes [N]."""
    draws = torch.Generator().manual_seed(0)
    labels = torch.randint(num_classes, (num,), generator=draws)
    centres = torch.randn(num_classes, width, generator=draws)
    mixing = torch.linalg.qr(torch.randn(width, width, generator=draws)).Q
    spread = torch.arange(1, width + 1).float().rsqrt()
    features = ((0.6 * centres[labels] + torch.randn(num, width, generator=draws)) * spread) @ mixing
    wrong = torch.rand(num, generator=draws) < 0.1
    labels = torch.where(wrong, torch.randint(num_classes, (num,), generator=draws), labels)
    return (features / features.std(0)).clamp_min(-1.0), labels


def of(model: LogisticRegression) -> tuple[np.ndarray, np.ndarray]:
    return model.coef_, model.intercept_


def loss(rows: np.ndarray, targets: Tensor, weight: Tensor, bias: Tensor, c: float) -> float:
    """What is minimized, per row."""
    log_probs = torch.log_softmax(torch.from_numpy(rows) @ weight.T + bias, dim=1)
    return float(-(targets * log_probs).sum(1).mean() + (weight**2).sum() / (2 * c * len(rows)))


if __name__ == "__main__":
    main()
