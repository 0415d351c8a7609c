"""Time the metrics of a report on many images with a thousand bootstrap resamples.

    python benchmarks/report.py [--images 100000] [--classes 3 10] [--coverage]

- finetune-kit: `Report.from_scores`, all metrics with their intervals.
- scikit-learn: the same metrics by its own functions, resample by resample; a few resamples are
  timed, the rest is extrapolated.
- `--coverage`: in how many of 2,000 simulated test sets each interval contains the true value.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from sklearn import metrics

import finetune_kit as ftk
from finetune_kit._report.estimate import Estimate

TIMED = 3  # resamples with scikit-learn


def predictions(images: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, images)
    logits = np.exp(rng.normal(size=(images, classes)) + 2 * np.eye(classes)[labels])
    return labels, logits / logits.sum(axis=1, keepdims=True)


def by_scikit_learn(labels: np.ndarray, scores: np.ndarray) -> None:
    classes = range(scores.shape[1])
    predicted = scores.argmax(axis=1)
    metrics.precision_recall_fscore_support(labels, predicted, labels=classes, zero_division=0)
    metrics.balanced_accuracy_score(labels, predicted)
    metrics.log_loss(labels, scores, labels=classes)
    for i in classes:
        metrics.roc_auc_score(labels == i, scores[:, i])
        metrics.average_precision_score(labels == i, scores[:, i])


def simulated(rng: np.random.Generator, images: int, resamples: int) -> ftk.Report:
    """A report on one simulated test set of an overconfident classifier."""
    labels = np.repeat(np.arange(3), (np.array([0.5, 0.3, 0.2]) * images).astype(int))
    logits = np.exp(1.2 * (rng.normal(size=(len(labels), 3)) + 1.5 * np.eye(3)[labels]))
    scores = logits / logits.sum(axis=1, keepdims=True)
    seed = int(rng.integers(2**31))
    return ftk.Report.from_scores(labels, scores, ["a", "b", "c"], resamples=resamples, seed=seed)


def estimates(report: ftk.Report) -> dict[str, Estimate]:
    """All metrics by name, those of classes too."""
    found = dict(report.metrics)
    for name, row in report.class_metrics.items():
        found |= {f"{name}: {key}": estimate for key, estimate in row.items()}
    return found


def coverage(trials: int, resamples: int, images: int = 600, seed: int = 0) -> dict[str, float]:
    """For each metric the share of test sets whose 95% interval contains the true value.

    The true value is measured on 400,000 images of the same kind.
    """
    rng = np.random.default_rng(seed)
    truth = {name: e.value for name, e in estimates(simulated(rng, 400_000, 1)).items()}
    covered = dict.fromkeys(truth, 0)
    for _ in range(trials):
        for name, estimate in estimates(simulated(rng, images, resamples)).items():
            covered[name] += estimate.low <= truth[name] <= estimate.high
    return {name: count / trials for name, count in covered.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--classes", type=int, nargs="+", default=[3, 10])
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--coverage", action="store_true")
    args = parser.parse_args()
    if args.coverage:
        for name, rate in coverage(trials=2000, resamples=args.resamples).items():
            print(f"{name:28} {rate:.3f}")
        return
    for classes in args.classes:
        labels, scores = predictions(args.images, classes)
        started = time.perf_counter()
        ftk.Report.from_scores(labels, scores, resamples=args.resamples)
        ours = time.perf_counter() - started
        rng, started = np.random.default_rng(0), time.perf_counter()
        for _ in range(TIMED):
            chosen = rng.integers(args.images, size=args.images)
            by_scikit_learn(labels[chosen], scores[chosen])
        slow = (time.perf_counter() - started) / TIMED * args.resamples
        print(
            f"{args.images:,} images, {classes} classes, {args.resamples:,} resamples: {ours:.1f} "
            f"s; scikit-learn, resample by resample: {slow:.0f} s ({slow / ours:.0f}x)"
        )


if __name__ == "__main__":
    main()
