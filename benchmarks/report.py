"""Time the figures of a report: many images, a thousand bootstrap draws.

    python benchmarks/report.py [--images 100000] [--classes 3 10] [--coverage]

- ours: `Report.from_scores`, all figures with their intervals.
- scikit-learn: the same figures by its own functions on resampled images; a few draws are measured,
  the rest is extrapolated.
- `--coverage`: how many of 2,000 simulated test sets have intervals that hold the true value.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from sklearn import metrics

import finetune_kit as ftk
from finetune_kit._report.metrics import Figure, count

MEASURED = 3  # draws of the slow way


def scores(images: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, images)
    logits = np.exp(rng.normal(size=(images, classes)) + 2 * np.eye(classes)[labels])
    return labels, logits / logits.sum(axis=1, keepdims=True)


def by_scikit_learn(labels: np.ndarray, given: np.ndarray) -> None:
    classes = range(given.shape[1])
    predicted = given.argmax(axis=1)
    metrics.precision_recall_fscore_support(labels, predicted, labels=classes, zero_division=0)
    metrics.balanced_accuracy_score(labels, predicted)
    metrics.log_loss(labels, given, labels=classes)
    for i in classes:
        metrics.roc_auc_score(labels == i, given[:, i])
        metrics.average_precision_score(labels == i, given[:, i])


def coverage(trials: int, draws: int, images: int = 600, seed: int = 0) -> dict[str, float]:
    """For each figure the share of test sets whose 95 % interval holds the true value.

    The truth is that of 400,000 images of the same kind, as a classifier sees them that is surer
    than it is right.
    """
    rng, names = np.random.default_rng(seed), ("a", "b", "c")

    def figures(size: int, draws: int) -> dict[str, Figure]:
        labels = np.repeat(np.arange(3), (np.array([0.5, 0.3, 0.2]) * size).astype(int))
        logits = np.exp(1.2 * (rng.normal(size=(len(labels), 3)) + 1.5 * np.eye(3)[labels]))
        given = logits / logits.sum(axis=1, keepdims=True)
        counted = count(labels, given, names, draws, int(rng.integers(2**31)))
        each = {f"{c}: {k}": v for c in names for k, v in counted.class_figures[c].items()}
        return {**counted.figures, **each}

    truth = {name: figure.value for name, figure in figures(400_000, 1).items()}
    covered = dict.fromkeys(truth, 0)
    for _ in range(trials):
        for name, figure in figures(images, draws).items():
            covered[name] += figure.low <= truth[name] <= figure.high
    return {name: hits / trials for name, hits in covered.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--classes", type=int, nargs="+", default=[3, 10])
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--coverage", action="store_true")
    args = parser.parse_args()
    if args.coverage:
        for name, rate in coverage(trials=2000, draws=args.draws).items():
            print(f"{name:22} {rate:.3f}")
        return
    for classes in args.classes:
        labels, given = scores(args.images, classes)
        started = time.perf_counter()
        ftk.Report.from_scores(labels, given, draws=args.draws)
        ours = time.perf_counter() - started
        rng, started = np.random.default_rng(0), time.perf_counter()
        for _ in range(MEASURED):
            drawn = rng.integers(args.images, size=args.images)
            by_scikit_learn(labels[drawn], given[drawn])
        slow = (time.perf_counter() - started) / MEASURED * args.draws
        print(
            f"{args.images:,} images, {classes} classes, {args.draws:,} draws: {ours:.1f} s; "
            f"with scikit-learn draw by draw {slow:.0f} s ({slow / ours:.0f}x)"
        )


if __name__ == "__main__":
    main()
