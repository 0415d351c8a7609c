"""Labels and scores come in, figures go out; scikit-learn does the counting.

It knows no model, no image and no file.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, confusion_matrix, precision_recall_fscore_support

COLUMNS = ("precision", "recall", "f1", "support")


def figures(
    labels: NDArray[np.int64], scores: NDArray[np.float64], class_names: Sequence[str]
) -> dict[str, Any]:
    """Count how well scores tell the classes.

    A precision, recall or F1 whose denominator is 0 (a class never predicted) is 0.

    Args:
        labels: true class indices, `(n,)`.
        scores: probabilities, `(n, num_classes)`.
        class_names: one for each class.

    Returns:
        `accuracy`, `macro` and `weighted` averages and `per_class` (each precision, recall, f1 and
        support), `confusion_matrix` (rows: true class, columns: predicted class).
    """
    predicted = scores.argmax(axis=1)
    classes = list(range(len(class_names)))

    def rows(average: str | None) -> list[Any]:
        return list(
            precision_recall_fscore_support(
                labels, predicted, labels=classes, average=average, zero_division=0.0
            )
        )

    def averaged(average: str) -> dict[str, Any]:
        values = [float(value) for value in rows(average)[:3]]
        return dict(zip(COLUMNS, [*values, len(labels)], strict=True))

    precision, recall, f1, support = rows(None)
    return {
        "accuracy": float(accuracy_score(labels, predicted)),
        "macro": averaged("macro"),
        "weighted": averaged("weighted"),
        "per_class": {
            name: {
                "precision": float(precision[i]),
                "recall": float(recall[i]),
                "f1": float(f1[i]),
                "support": int(support[i]),
            }
            for i, name in enumerate(class_names)
        },
        "confusion_matrix": confusion_matrix(labels, predicted, labels=classes),
    }
