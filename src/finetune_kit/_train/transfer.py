"""Downloads from the Hugging Face Hub, and what its uploads and downloads share.

huggingface_hub is imported when it is used.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from finetune_kit._text import shortened

PREFIX = "hf://"
MODEL = "model.keras"  # the name of the file in each repository


def downloaded(address: str) -> Path:
    """Return the local copy of a model on the Hub; the Hub's cache keeps it.

    Args:
        address: `hf://user/name`, or `hf://user/name@revision` with a branch, tag or commit.

    Raises:
        ValueError: if the address is malformed.
        ImportError: if huggingface_hub is not installed.
        FileNotFoundError: if the repository, the revision or the model does not exist.
        PermissionError: if the login does not have access.
        ConnectionError: if the Hub cannot be reached.
    """
    api = api_of(None)
    repo_id, _, revision = address.removeprefix(PREFIX).partition("@")
    check_repo_id("model", repo_id, address)
    with clear_errors("download", address, None):
        return Path(api.hf_hub_download(repo_id, MODEL, revision=revision or None))


def api_of(token: str | None) -> Any:
    """Return a client of the Hub with this token, or that of the login."""
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        raise ImportError(
            "the Hugging Face Hub needs huggingface_hub (pip install 'finetune-kit[hub]')"
        ) from error
    library = "finetune-kit"
    return HfApi(token=token, library_name=library, library_version=version(library))


def check_repo_id(name: str, repo_id: Any, address: str | None = None) -> None:
    """Check that the value names a repository; `address` is the argument that it is a part of."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    reason = "the user or organization is missing"
    try:
        if not isinstance(repo_id, str):
            raise HFValidationError("it must be a string")
        validate_repo_id(repo_id)
        if "/" in repo_id:
            return
    except HFValidationError as error:
        reason = " ".join(str(error).split(": '")[0].split()).rstrip(".")
    form = "'user/name'" if address is None else "'hf://user/name' or 'hf://user/name@revision'"
    raise ValueError(
        f"`{name}` must name a repository of the Hugging Face Hub, as {form}. "
        f"Received: {name}={shortened(repo_id if address is None else address)} ({reason})"
    )


@contextmanager
def clear_errors(action: str, place: str, token: str | None) -> Iterator[None]:
    """Turn the errors of a transfer into errors that say what to do, without the token."""
    try:
        yield
    except Exception as error:  # huggingface_hub raises its own, and those of its HTTP library
        raise _explained(error, action, place, token) from None


def _explained(error: Exception, action: str, place: str, token: str | None) -> OSError:
    chain: list[BaseException] = [error]
    while (inner := chain[-1].__cause__ or chain[-1].__context__) and inner not in chain:
        chain.append(inner)
    kinds = {kind.__name__ for one in chain for kind in type(one).__mro__}
    codes = [getattr(getattr(one, "response", None), "status_code", None) for one in chain]
    # The first with an answer of the Hub has its text; without an answer the last is the cause.
    code, cause = next(
        ((code, one) for code, one in zip(codes, chain, strict=True) if code), (None, chain[-1])
    )
    received = f"Received: {place!r}, for which the {action} fails with {_reason(cause, token)}"
    if "OfflineModeIsEnabled" in kinds:
        return ConnectionError(
            "The Hugging Face Hub must be reachable; unset the environment variable "
            f"HF_HUB_OFFLINE. {received}"
        )
    if action == "download" and (missing := _missing(kinds, code)):
        return FileNotFoundError(
            "`model` must be a repository of the Hugging Face Hub with a model in it. "
            f"Received: {place!r}{missing}"
        )
    if code in (401, 403):
        right, way = ("write to", "or pass token=...")
        if action == "download":
            right, way = ("read", "and ask for access on the repository's page")
        return PermissionError(
            f"The repository on the Hugging Face Hub must be one that your login can {right}; run "
            f"`hf auth login`, {way}. {received}"
        )
    if code is not None:
        return OSError(f"The Hugging Face Hub must accept the request. {received}")
    if kinds & {"TransportError", "ConnectionError", "Timeout", "TimeoutError"}:
        return ConnectionError(
            "The Hugging Face Hub must be reachable; check the network, and make the same call "
            f"again. {received}"
        )
    return OSError(f"The {action} must complete; make the same call again. {received}")


def _missing(kinds: set[str], code: int | None) -> str:
    """Return what a download does not find, for an error; "" if it failed otherwise."""
    if "RevisionNotFoundError" in kinds:
        return ", which has no such revision"
    if "EntryNotFoundError" in kinds and code == 404:
        return f", which has no file {MODEL}, such as push_to_hub writes"
    if "RepositoryNotFoundError" in kinds and "GatedRepoError" not in kinds:
        return ", which does not exist or is private (for that, run `hf auth login`)"
    return ""


def _reason(error: BaseException, token: str | None) -> str:
    """Describe an error in one line without the token."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    secret = r"\bhf_\w{20,}|Bearer \S+" + (rf"|(?<!\w){re.escape(token)}(?!\w)" if token else "")
    text = re.sub(secret, "***", text)
    return text if len(text) <= 300 else f"{text[:297]}..."
