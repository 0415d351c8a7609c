"""Backbones and the blocks that train, as they are written on a command line."""

from __future__ import annotations

import ast
import difflib
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import finetune_kit as ftk

RECIPES = ("recommend", "lp-ft", "probe")
_EPOCHS = 20  # of all phases together, by default


def backbone_of(text: str, image_size: int, *, weights: bool = True, seed: int = 0) -> Any:
    """Return the backbone that a text names: a `keras.Model`, or the path of a trained model.

    Args:
        text: a file that ends in `.keras`, or an application of Keras and its options, such as
            `MobileNetV2:alpha=0.5,weights=none`.
        image_size: height and width of the images in pixels, for an application.
        weights: False to build it without weights, which must otherwise be downloaded once.
        seed: of random weights, if it has them.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if the application is unknown, an option does not fit, or the weights cannot
            be downloaded.
    """
    if text.endswith(".keras"):
        return _saved(Path(text).expanduser())
    import keras  # only where it is used: --help does not wait for it

    name, _, options = text.partition(":")
    build = _application(name)
    given = {"weights": "imagenet", **_options(options)}
    given |= {} if weights else {"weights": None}
    keras.utils.set_random_seed(seed)
    try:
        with redirect_stdout(sys.stderr):  # the progress of a download is not a result
            return build(include_top=False, input_shape=(image_size, image_size, 3), **given)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"The options of the backbone must fit keras.applications.{build.__name__}. "
            f"Received: {text!r}, which fails with: {error}"
        ) from error
    except Exception as error:  # Keras raises a bare Exception when a download fails
        raise ValueError(
            "The ImageNet weights must be downloaded once, which failed. Run this on a machine "
            "with a network and copy its folder ~/.keras/models; or give a file, as in "
            f"{name}:weights=FILE; or start from random weights with {name}:weights=none. "
            f"Received: {error}"
        ) from error


def specs_of(
    blocks: str | None, recipe: str | None, epochs: int | None, learning_rate: float | None
) -> list[ftk.FineTuneSpec]:
    """Return the phases of a training that is not recommended.

    Args:
        blocks: what trains of the backbone, see `blocks_of`, or None.
        recipe: `"lp-ft"`, `"probe"` or None: a single phase if there are `blocks`, else lp-ft.
        epochs: of all phases together, or None for 20.
        learning_rate: of the last phase, or None for the usual one.
    """
    epochs = epochs or _EPOCHS
    if recipe is None and blocks is not None:
        return [ftk.FineTuneSpec(blocks_of(blocks), epochs=epochs, **_rate(learning_rate))]
    if recipe == "probe":
        if blocks not in (None, "0"):
            raise ValueError(
                "The recipe 'probe' trains the head alone; leave out --blocks or the recipe. "
                f"Received: --recipe probe --blocks {blocks}"
            )
        return [ftk.FineTuneSpec(0, epochs=epochs, **_rate(learning_rate))]
    probe_epochs = epochs // 2
    if not probe_epochs:
        raise ValueError(
            "--epochs must be at least 2 for the recipe 'lp-ft', which trains the head alone in "
            "the first half of them; --recipe probe trains the head alone in one epoch. "
            f"Received: --epochs {epochs}"
        )
    return ftk.linear_probe_then_fine_tune(
        blocks_of(blocks or "2"),
        probe_epochs=probe_epochs,
        epochs=epochs - probe_epochs,
        **_rate(learning_rate),
    )


def blocks_of(text: str) -> int | str | tuple[str, ...]:
    """Return a number of blocks, `"all"` or block names, as `FineTuneSpec` takes them."""
    if text.strip().isdecimal():
        return int(text)
    return "all" if text == "all" else tuple(name.strip() for name in text.split(","))


def _rate(learning_rate: float | None) -> dict[str, Any]:
    return {} if learning_rate is None else {"learning_rate": learning_rate}


def _saved(path: Path) -> Any:
    """Return the path of a trained model, or any other model from its file."""
    if not path.is_file():
        raise FileNotFoundError(
            f"The backbone must be a file that exists. Received: {str(path)!r}, which does not"
        )
    import keras

    from finetune_kit._model.archive import read_facts

    if read_facts(path) is not None:
        return path
    return keras.saving.load_model(path, compile=False)


def _application(name: str) -> Any:
    import keras

    known = {
        each.lower(): getattr(keras.applications, each)
        for each in dir(keras.applications)
        if each[0].isupper()
    }
    if name.lower() not in known:
        near = difflib.get_close_matches(name.lower(), known, n=3)
        meant = f"; did you mean {', '.join(known[n].__name__ for n in near)}?" if near else ""
        raise ValueError(
            "The backbone must be the name of a model in keras.applications, such as "
            f"MobileNetV2:alpha=0.5, or a .keras file{meant}. Received: {name!r}"
        )
    return known[name.lower()]


def _options(text: str) -> dict[str, Any]:
    """Return options such as `alpha=0.5,weights=none` as keyword arguments."""
    found: dict[str, Any] = {}
    for part in filter(None, text.split(",")):
        name, equals, value = part.partition("=")
        if not equals or not name.isidentifier() or name in ("include_top", "input_shape"):
            raise ValueError(
                "The options of a backbone must be NAME=VALUE, separated by commas, as in "
                "MobileNetV2:alpha=0.5,weights=none (the size is --image-size). "
                f"Received: {part!r}"
            )
        try:
            found[name] = None if value.lower() == "none" else ast.literal_eval(value)
        except (ValueError, SyntaxError):
            found[name] = value
    return found
