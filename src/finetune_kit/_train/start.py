"""What a training starts from: a backbone and a new head, or a trained model."""

from __future__ import annotations

import os
import warnings
from typing import Any, NamedTuple

from finetune_kit._data.images import ImageSet
from finetune_kit._model.digest import fingerprint
from finetune_kit._text import plural
from finetune_kit._train.classifier import Classifier, as_classifier
from finetune_kit._train.transfer import PREFIX
from finetune_kit._train.tuned import FineTuned


class Start(NamedTuple):
    """Backbone, head and preprocessing of a training, and the trained model they come from."""

    backbone: Any
    head: Any
    preprocessing: Any
    trained: Classifier | None
    keeps_head: bool

    @property
    def seen_before(self) -> frozenset[str]:
        """The images that the trained model was trained on, by their shortened digests."""
        return frozenset() if self.trained is None else self.trained.seen

    @property
    def origin(self) -> dict[str, Any] | None:
        """The trained model as plain values, or None."""
        if self.trained is None:
            return None
        return {
            "sha256_of_graph_and_weights": fingerprint(self.trained.network),
            "class_names": list(self.trained.class_names),
        }


def starting_point(backbone: Any, head: Any, preprocessing: Any) -> Start:
    """Return the parts of a trained model that is passed as `backbone`; others are not changed.

    The preprocessing of a trained model is part of its backbone.

    Raises:
        FileNotFoundError: if it is the path of a file that does not exist.
        ValueError: if the file is not one of `FineTuned.save`, or `preprocessing` is passed too.
    """
    if not _is_trained(backbone):
        return Start(backbone, head, preprocessing, None, False)
    if preprocessing != "auto":
        raise ValueError(
            "`preprocessing` must be left out for a trained model, which takes raw pixels. "
            f"Received: preprocessing={preprocessing!r}"
        )
    try:
        trained = as_classifier(backbone)
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(str(error).replace("`model`", "`backbone`", 1)) from error
    if trained.backbone is None:
        raise ValueError(
            "`backbone` must be a file that FineTuned.save wrote, the result of fine_tune, or a "
            "keras.Model without classifier. Received: a file without the facts that "
            "FineTuned.save adds"
        )
    front, old_head = trained.parts()
    return Start(front, old_head if head is None else head, None, trained, head is None)


def _is_trained(backbone: Any) -> bool:
    """Return whether a backbone is a trained model, or the path or address of one."""
    if isinstance(backbone, str):
        return backbone.endswith((".keras", ".h5")) or backbone.startswith(PREFIX)
    return isinstance(backbone, (FineTuned, Classifier, os.PathLike))


def check_start(start: Start, train: ImageSet, validation: ImageSet | None) -> ImageSet | None:
    """Return the validation images, after a check of the classes if a trained head is kept.

    Warns if the model was trained on images that it is validated on now.
    """
    trained = start.trained
    if trained is None:
        return validation
    now = (train.class_names, train.multi_label)
    if start.keeps_head and now != (trained.class_names, trained.multi_label):
        raise ValueError(
            "`head` must be a new one if the classes change, such as "
            f"classification_head({len(train.class_names)}): the trained model predicts "
            f"{list(trained.class_names)}. Received: head=None, and images of "
            f"{list(train.class_names)}"
        )
    if validation is None:
        return None
    count = sum(digest[:16] in trained.seen for digest in validation.digests())
    if count:
        warnings.warn(
            f"The model was trained on {plural(count, 'image')} of `validation`, so its metrics "
            "are too good; keep the sets of the first training",
            stacklevel=5,
        )
    return validation
