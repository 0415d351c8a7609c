"""Trained models in whatever form people have them, with what is known about each."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras

from finetune_kit._data.labels import unique_names
from finetune_kit._features.frozen import prefix_names
from finetune_kit._model.archive import read_facts
from finetune_kit._model.graph import functional, made_by
from finetune_kit._model.plan import FreezePlan
from finetune_kit._model.spec import FineTuneSpec
from finetune_kit._processes import alone
from finetune_kit._text import shortened
from finetune_kit._train.transfer import PREFIX, downloaded
from finetune_kit._train.tuned import FineTuned


@dataclass(frozen=True, eq=False)
class Classifier:
    """A trained model, and what is known about it.

    Attributes:
        network: takes RGB pixels from 0 to 255 and returns probabilities.
        class_names: the classes in the order of its outputs; empty if they are unknown.
        multi_label: whether an image may have several labels.
        backbone: name of the backbone, or None if `fine_tune` did not make the model.
        training: how it was trained, as plain values.
        tuned: the result of `fine_tune`, if the model was not loaded from a file.
        seen: the training images, as the first 16 digits of their SHA-256; empty if unknown.
    """

    network: keras.Model
    class_names: tuple[str, ...]
    multi_label: bool
    backbone: str | None = None
    training: Mapping[str, Any] | None = None
    tuned: FineTuned | None = None
    seen: frozenset[str] = frozenset()

    @property
    def plan(self) -> FreezePlan | None:
        """What stayed frozen in all phases of the training; None if that is not known."""
        if self.tuned is not None:
            plans = list(self.tuned.plans)
        elif self.backbone is not None and self.training is not None:
            front, _ = self.parts()
            specs = map(FineTuneSpec.from_dict, self.training["specs"])
            plans = [spec.plan(front) for spec in specs]
        else:
            return None
        return min(plans, key=lambda plan: len(prefix_names(plan)))

    def parts(self) -> tuple[keras.Model, keras.Layer]:
        """Return the model up to its head, and the head, which share their layers with it."""
        network, name = self.network, self.backbone or "backbone"
        head, node = made_by(network.outputs[0])
        features = node.arguments.args[0]
        return functional(network.input, features, name), head


def as_classifier(
    model: Any, class_names: Sequence[str] | None = None, *, named: bool = False
) -> Classifier:
    """Return a trained model with what is known about it. A file is loaded after all checks.

    Args:
        model: a `FineTuned`, the path of a saved model or its `hf://` address, a `keras.Model` or a
            `Classifier`.
        class_names: the classes of a model that has none with it.
        named: whether the classes must be known.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if the model is of another kind, knows other classes or cannot be loaded.
    """
    given = None if class_names is None else unique_names(class_names)
    if isinstance(model, Classifier):
        return model
    if isinstance(model, str) and model.startswith(PREFIX):
        model = downloaded(model)
    if isinstance(model, FineTuned):
        _check_names(model.class_names, given)
        return Classifier(
            model.model,
            model.class_names,
            model.train.multi_label,
            model.plan.backbone,
            model.settings,
            model,
            model.seen,
        )
    if isinstance(model, (str, os.PathLike)):
        return _from_file(Path(model).expanduser(), given, named=named)
    if not isinstance(model, keras.Model):
        raise ValueError(
            "`model` must be the result of fine_tune, the path of a saved model, or a keras.Model; "
            "it comes first, then the images. "
            f"Received: model={shortened(model)} of type {type(model).__name__}"
        )
    _check_named(model, given, named=named)
    return Classifier(model, given or (), _is_multi_label(model))


def _from_file(path: Path, given: tuple[str, ...] | None, *, named: bool) -> Classifier:
    if not path.is_file():
        state = "is a folder" if path.is_dir() else "does not exist"
        raise FileNotFoundError(
            "`model` must be a .keras file, such as FineTuned.save writes. "
            f"Received: {str(path)!r}, which {state}"
        )
    facts = {} if path.suffix == ".h5" else read_facts(path) or {}
    known = tuple(facts.get("class_names", ()))
    _check_names(known, given)
    _check_named(path, known or given, named=named)
    network = _loaded(path)
    return Classifier(
        network,
        known or given or (),
        facts.get("multi_label", _is_multi_label(network)),
        facts.get("backbone"),
        facts.get("training"),
        seen=frozenset(facts.get("training_digests", ())),
    )


def _check_names(known: tuple[str, ...], given: tuple[str, ...] | None) -> None:
    if known and given not in (None, known):
        raise ValueError(
            "`class_names` must be left out for a model that knows its classes, "
            f"{list(known)}. Received: class_names={list(given or ())}"
        )


def _check_named(model: Any, names: Sequence[str] | None, *, named: bool) -> None:
    if named and not names:
        raise ValueError(
            "`model` has no class names with it; pass class_names=[...] in the order of its "
            "outputs. (FineTuned.save keeps them in the file, keras.Model.save does not.) "
            f"Received: {shortened(model)}"
        )


def _loaded(path: Path) -> keras.Model:
    try:
        with alone():  # only one of several processes may call this
            network = keras.saving.load_model(path, compile=False)
    except Exception as error:  # Keras raises whatever a layer raises
        raise ValueError(
            "`model` must be a file that Keras can load; if it has layers of your own, load it "
            "with keras.saving.load_model(path, custom_objects=...) and pass the model with "
            f"class_names=. Received: {str(path)!r}, which fails with {type(error).__name__}: "
            f"{error}"
        ) from error
    network(keras.Input(network.input_shape[1:]))  # `export` needs a model that has been called
    return network


def _is_multi_label(network: keras.Model) -> bool:
    """Return whether a model has several outputs that are sigmoids."""
    last: Any = network
    while getattr(last, "layers", None):
        last = last.layers[-1]
    name = getattr(getattr(last, "activation", None), "__name__", type(last).__name__.lower())
    return name == "sigmoid" and network.output_shape[-1] > 1
