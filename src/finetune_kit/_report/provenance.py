"""Where the metrics of a report come from: model, data, training, environment and cautions."""

from __future__ import annotations

import hashlib
import os
import platform
import sys
from importlib.metadata import version
from typing import Any

import keras
import numpy as np

from finetune_kit._data.duplicates import Duplicates
from finetune_kit._data.images import ImageSet
from finetune_kit._features.cache import FeatureCache
from finetune_kit._model.digest import fingerprint
from finetune_kit._text import plural, shortened
from finetune_kit._train.classifier import Classifier
from finetune_kit._train.tuned import FineTuned


def check_duplicates(
    duplicates: Duplicates | None, images: ImageSet, tuned: FineTuned | None
) -> None:
    """Check that the duplicates were searched in the images and in the training images.

    Raises:
        ValueError: if an image is missing.
    """
    if duplicates is None:
        return
    if not isinstance(duplicates, Duplicates):
        raise ValueError(
            "`duplicates` must be what find_duplicates returned. "
            f"Received: duplicates={shortened(duplicates)} of type {type(duplicates).__name__}"
        )
    known = set(duplicates.samples)
    sets = [("evaluated", images)] + ([] if tuned is None else [("training", tuned.train)])
    missing = {name: sum(d not in known for d in part.digests()) for name, part in sets}
    if any(missing.values()):
        received = " and ".join(
            f"{missing[name]:,} of {plural(len(part), f'{name} image')} missing"
            for name, part in sets
        )
        raise ValueError(
            "`duplicates` must cover the training images and the evaluated images: pass "
            f"find_duplicates(train, validation, test). Received: {received}"
        )


def _stored(cache: FeatureCache) -> dict[str, str]:
    """Return what the outputs depend on where they are computed from kept features."""
    return {"dtype": cache.dtype, "backend": cache.backend or keras.backend.backend()}


def about(
    classifier: Classifier,
    images: ImageSet,
    duplicates: Duplicates | None,
    cache: FeatureCache | None,
    *,
    flip: bool,
) -> dict[str, Any]:
    """Return the provenance as plain values for JSON.

    Args:
        classifier: the evaluated model, and how it was trained, if that is known.
        images: the evaluated images.
        duplicates: duplicates among the evaluated images and the training images, if known.
        cache: where the features of the frozen part are kept, if they are.
        flip: whether the outputs are means over the images and their mirror images.
    """
    network, tuned = classifier.network, classifier.tuned
    digests = images.digests()
    data: dict[str, Any] = {
        "name": data_name(images),
        "test_images": len(images),
        "sha256_of_test_images": hashlib.sha256("".join(sorted(digests)).encode()).hexdigest(),
        "manifest": images.manifest,
    }
    found: dict[str, Any] = {
        "model": {
            "name": network.name,
            "parameters": network.count_params(),
            "sha256_of_graph_and_weights": fingerprint(network),
            **({"flip": True} if flip else {}),
            **({} if cache is None else {"features": _stored(cache)}),
        },
        "data": data,
    }
    cautions = _copies(digests, data)
    if classifier.training is not None:
        found["training"] = dict(classifier.training)
    if tuned is not None:
        found["training"] = {
            **tuned.settings,
            "seconds": {name: round(value, 1) for name, value in tuned.timings.items()},
        }
        cautions = _seen(tuned, digests, data) + cautions
    cautions = _seen_before(classifier, digests, data) + cautions
    if duplicates is not None:
        data["duplicate_clusters"] = len(duplicates.clusters)
        if tuned is not None:
            cautions += _near(duplicates, tuned, digests, data)
    return {**found, "environment": environment(), "cautions": cautions}


def data_name(images: ImageSet) -> str | None:
    """Return the name of the folder that the images share; None for images in memory."""
    folder = common_folder(images)
    return os.path.basename(folder) or None if folder else None


def common_folder(images: ImageSet) -> str | None:
    """Return the deepest folder that holds all images; None for images in memory."""
    files = [images.source.file(row) for row in images.rows.tolist()]
    folders = {os.path.dirname(os.path.abspath(file)) for file in files if file is not None}
    return None if not folders or None in files else os.path.commonpath(folders)


def _copies(digests: tuple[str, ...], data: dict[str, Any]) -> list[str]:
    """Count images that are exact copies of others in the set."""
    copies = len(digests) - len(set(digests))
    data["copies_among_test_images"] = copies
    if not copies:
        return []
    return [
        f"{_are(copies, 'copy of another image', 'copies of other images')} in this set, so the "
        "intervals are too narrow."
    ]


def _seen(tuned: FineTuned, digests: tuple[str, ...], data: dict[str, Any]) -> list[str]:
    """Count images that the model was trained or validated on."""
    known = {"train": set(tuned.train.digests()), "validation": set()}
    data["training_images"] = len(tuned.train)
    if tuned.validation is not None:
        known["validation"] = set(tuned.validation.digests())
        data["validation_images"] = len(tuned.validation)
    trained, validated = (sum(digest in part for digest in digests) for part in known.values())
    data["test_images_in_training_set"] = trained
    data["test_images_in_validation_set"] = validated
    cautions = []
    if trained:
        cautions.append(
            f"{_are(trained, 'a training image', 'training images')}, so the metrics are too "
            "optimistic."
        )
    if validated:
        cautions.append(
            f"{_are(validated, 'a validation image', 'validation images')}. If the epoch or the "
            "settings were chosen on them, the metrics are too optimistic."
        )
    return cautions


def _seen_before(
    classifier: Classifier, digests: tuple[str, ...], data: dict[str, Any]
) -> list[str]:
    """Count images that a model from a file, or the start of a training, was trained on."""
    tuned = classifier.tuned
    known = classifier.seen if tuned is None else tuned.seen_before
    count = sum(digest[:16] in known for digest in digests)
    if not known:
        return []
    data["test_images_in_earlier_training"] = count
    if not count:
        return []
    words = ("an image", "images") if tuned else ("a training image", "training images")
    source = " of an earlier training of the model" if tuned else " of the model"
    return [
        f"{_are(count, words[0] + source, words[1] + source)}, so the metrics are too optimistic."
    ]


def _near(
    duplicates: Duplicates, tuned: FineTuned, digests: tuple[str, ...], data: dict[str, Any]
) -> list[str]:
    """Count images in one group of duplicates with a training image."""
    group_of = dict(zip(duplicates.samples, np.asarray(duplicates.groups).tolist(), strict=True))
    trained = {group_of[digest] for digest in tuned.train.digests()}
    near = sum(group_of[digest] in trained for digest in digests)
    data["test_images_grouped_with_training_images"] = near
    if not near:
        return []
    return [
        f"{_are(near, 'in one group', 'in one group')} (near duplicates, or the same patient) with "
        "training images, so the metrics are probably too optimistic."
    ]


def _are(count: int, one: str, several: str) -> str:
    return f"{count:,} of these images {f'is {one}' if count == 1 else f'are {several}'}"


def environment() -> dict[str, str]:
    backend = keras.backend.backend()
    return {
        "finetune-kit": version("finetune-kit"),
        "keras": keras.__version__,
        backend: getattr(sys.modules.get(backend), "__version__", "?"),
        "numpy": np.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
    }
