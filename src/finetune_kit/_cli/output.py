"""What a command prints, and how it ends."""

from __future__ import annotations

import functools
import json
import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import typer

F = TypeVar("F", bound=Callable[..., Any])

_EXPECTED = (ValueError, TypeError, OSError, ImportError)  # bad input, with a text for people
_FAILED = (FloatingPointError, RuntimeError)


def command(function: F) -> F:
    """Print an expected error as one text on stderr, and end with an exit code.

    0: done; 1: the computation failed, or some images could not be read; 2: bad input; 130: Ctrl-C.
    """

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        warnings.showwarning = _show_warning
        try:
            return function(*args, **kwargs)
        except typer.Exit:  # a RuntimeError
            raise
        except KeyboardInterrupt as error:
            typer.echo(f"\n{error or 'interrupted'}", err=True)
            raise typer.Exit(130) from None
        except (*_EXPECTED, *_FAILED) as error:
            typer.echo(f"error: {_explained(error)}", err=True)
            raise typer.Exit(2 if isinstance(error, _EXPECTED) else 1) from None

    return run  # type: ignore[return-value]


def _explained(error: Exception) -> str:
    """Return the text of an error, with a remedy if Keras finds no backend."""
    if isinstance(error, ModuleNotFoundError) and error.name in ("tensorflow", "jax", "torch"):
        return (
            "Keras needs one of its backends. Install one with pip install "
            "'finetune-kit[tensorflow]', 'finetune-kit[jax]' or 'finetune-kit[torch]', and name it "
            "in KERAS_BACKEND if it is not tensorflow. Received: "
            f"no module {error.name!r}"
        )
    return str(error)


def bars(*, silent: bool = False) -> int:
    """Return Keras' `verbose`: moving bars in a terminal, a line for each epoch in a pipe."""
    return 0 if silent else 1 if sys.stdout.isatty() else 2


def say(text: str, *, silent: bool = False) -> None:
    """Print a line of progress, which is not part of the result."""
    if not silent:
        print(text, flush=True)


def show(text: str, values: Mapping[str, Any], *, as_json: bool) -> None:
    """Print a result: as text for people, or as one JSON object for programs."""
    typer.echo(json.dumps(values, indent=2) if as_json else text)


def _show_warning(message: Any, *_: Any, **__: Any) -> None:
    typer.echo(f"warning: {message}", err=True)
