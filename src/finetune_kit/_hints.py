"""Errors that say where a misplaced argument belongs."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

from finetune_kit._text import plural, shortened

F = TypeVar("F", bound=Callable[..., Any])


def hints(**elsewhere: str) -> Callable[[F], F]:
    """Make a function or a class explain arguments that it does not have.

    Python's TypeError names the wrong argument; this one also names the right one. Signature and
    types stay as they are.

    Args:
        **elsewhere: for arguments that belong to another function, what to use instead, such as
            `epochs="FineTuneSpec(epochs=...)"`. Other unknown names are compared with the names of
            the arguments. For an argument like `**parts`, how to pass it, such as
            `parts="train=train"`.

    Returns:
        A decorator.
    """

    def decorate(decorated: F) -> F:
        target: Any = decorated
        is_class = isinstance(decorated, type)
        call = target.__init__ if is_class else target
        parameters = dict(inspect.signature(decorated).parameters)  # of a class: without `self`
        is_method = parameters.pop("self", None) is not None
        bound = int(is_class or is_method)

        @functools.wraps(call)
        def checked(*args: Any, **kwargs: Any) -> Any:
            _check(target.__name__, parameters, args[bound:], kwargs, elsewhere)
            return call(*args, **kwargs)

        if not is_class:
            return cast(F, checked)
        target.__init__ = checked
        return decorated

    return decorate


def _check(
    function: str,
    parameters: Mapping[str, inspect.Parameter],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    elsewhere: Mapping[str, str],
) -> None:
    any_name = [p.name for p in parameters.values() if p.kind is p.VAR_KEYWORD]
    named = [p.name for p in parameters.values() if p.kind is p.KEYWORD_ONLY]
    by_position = [name for name in parameters if name not in (*named, *any_name)]
    by_name = [*named, *(elsewhere.get(name, f"{name}=...") for name in any_name)]
    if len(args) > len(by_position):
        extra = ", ".join(shortened(value) for value in args[len(by_position) :])
        rest = (
            f"pass the others by name: {', '.join(by_name)}" if by_name else f"see help({function})"
        )
        raise TypeError(
            f"{function} takes {plural(len(by_position), 'argument')} by position "
            f"({', '.join(by_position)}); {rest}. "
            f"Received without a name: {extra}"
        )
    for name, value in kwargs.items():
        if name not in parameters and not any_name:
            raise TypeError(
                f"{function} has no argument `{name}`{_hint(name, list(parameters), elsewhere)} "
                f"Its arguments are: {', '.join(parameters)}. Received: {name}={shortened(value)}"
            )


def _hint(name: str, arguments: Sequence[str], elsewhere: Mapping[str, str]) -> str:
    if name in elsewhere:
        return f"; use {elsewhere[name]}."
    words = set(name.split("_"))
    near = [argument for argument in arguments if words & set(argument.split("_"))]
    near = near or difflib.get_close_matches(name, arguments)
    return f"; did you mean `{near[0]}`?" if near else "."
