"""What a command prints, and how it ends."""

from __future__ import annotations

import errno
import functools
import json
import re
import sys
import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext, redirect_stdout
from typing import Any, NamedTuple, get_type_hints

import typer
from typer.models import ArgumentInfo

from finetune_kit._buckets import RemoteError

_EXPECTED = (ValueError, TypeError, OSError, ImportError)  # bad input, with a text for people
_FAILED = (FloatingPointError, RuntimeError)

# The parameters of public functions, and those of the commands where they have another name.
_ALIASES = {
    "path": ("data", "path_column"),
    "table": ("data",),
    "images": ("data",),
    "train": ("data",),
    "label": ("label_column",),
    "group": ("group_column",),
    "groups": ("groups_from",),
    "trainable_blocks": ("blocks",),
    "run_dir": ("out",),
    "file": ("out",),
    "features": ("to",),
}


class Result(NamedTuple):
    """What a command found: as text for people, as values for programs, and its exit code."""

    text: str
    values: Mapping[str, Any]
    code: int = 0


def command(function: Callable[..., Result | None]) -> Callable[..., None]:
    """Print the result of a command, or an expected error as one text on stderr.

    Exit codes are 0: done; 1: the computation or the network failed, or some images could not be
    read; 2: bad input; 130: Ctrl-C. With `--json`, the result alone is on stdout.
    """

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> None:
        as_json = kwargs.get("as_json", False)
        warnings.showwarning = lambda message, *_, **__: typer.echo(
            f"warning: {_with_options(str(message), function)}", err=True
        )
        try:
            with redirect_stdout(sys.stderr) if as_json else nullcontext():
                result = function(*args, **kwargs)
        except KeyboardInterrupt as error:
            typer.echo(f"\n{str(error) or 'interrupted'}", err=True)
            raise typer.Exit(130) from None
        except (*_EXPECTED, *_FAILED) as error:
            typer.echo(f"error: {_explained(error, function)}", err=True)
            again = isinstance(error, RemoteError) and error.errno == errno.EIO  # may work later
            raise typer.Exit(2 if isinstance(error, _EXPECTED) and not again else 1) from None
        if result is not None:
            typer.echo(json.dumps(result.values, indent=2) if as_json else result.text)
            raise typer.Exit(result.code)

    return run


def _explained(error: Exception, function: Callable[..., Any]) -> str:
    """Return the text of an error, with a remedy if Keras finds no backend."""
    if isinstance(error, ModuleNotFoundError) and error.name in ("tensorflow", "jax", "torch"):
        return (
            "Keras needs one of its backends. Install one with pip install "
            "'finetune-kit[tensorflow]', 'finetune-kit[jax]' or 'finetune-kit[torch]', and name it "
            "in KERAS_BACKEND if it is not tensorflow. Received: "
            f"no module {error.name!r}"
        )
    return _with_options(str(error), function)


def _with_options(text: str, function: Callable[..., Any]) -> str:
    """Name the options of a command where a text names parameters of a public function."""
    spelled = {}
    for name, hint in get_type_hints(function, include_extras=True).items():
        for info in getattr(hint, "__metadata__", ()):
            argument = isinstance(info, ArgumentInfo)
            metavar = (info.metavar or "").removesuffix("...")
            spelled[name] = metavar if argument else f"--{name.replace('_', '-')}"

    def option(match: re.Match[str]) -> str:
        quoted, assigned = match.groups()
        name = quoted or assigned
        known = [spelled[n] for n in (name, *_ALIASES.get(name, ())) if n in spelled]
        if not known:
            return match[0]
        return known[0] if quoted else f"{known[-1]} "

    text = re.sub(r"`(\w+)`|(?<![\w.(-])(\w+)=(?!=)", option, text)
    return text.replace(" [...]", " A,B,...")


def bars(*, silent: bool = False) -> int:
    """Return Keras' `verbose`: moving bars in a terminal, a line for each epoch in a pipe."""
    return 0 if silent else 1 if sys.stdout.isatty() else 2


def say(text: str, *, silent: bool = False) -> None:
    """Print a line of progress, which is not part of the result."""
    if not silent:
        print(text, flush=True)
