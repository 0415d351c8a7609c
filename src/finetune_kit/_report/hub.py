"""Upload a model with its card and report to the Hugging Face Hub: `push_to_hub`."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from finetune_kit._checks import check_kind
from finetune_kit._hints import hints
from finetune_kit._model.digest import fingerprint
from finetune_kit._report import card
from finetune_kit._report.metrics import OVERALL
from finetune_kit._report.report import Report
from finetune_kit._text import plural, shortened
from finetune_kit._train.transfer import MODEL, api_of, check_repo_id, clear_errors
from finetune_kit._train.tuned import FineTuned

_REPORT = "report/"
_TASK = "image-classification"
_LOAD = """```python
import finetune_kit as ftk

print(ftk.predict("hf://{repo_id}", "image.png"))  # class names and probabilities
```

With Keras alone:

```python
import keras
from huggingface_hub import hf_hub_download

model = keras.saving.load_model(hf_hub_download("{repo_id}", "model.keras"))
probabilities = model.predict(pixels)  # uint8 or float RGB from 0 to 255
```"""
# The Hub's names of metrics, https://hf.co/metrics, where they differ from those of a report.
_METRIC_TYPES = {
    f"{average}_{name}": name
    for average in ("macro", "weighted")
    for name in ("precision", "recall", "f1")
}


@hints()
def push_to_hub(
    tuned: FineTuned,
    report: Report,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    commit_message: str = "Upload model, model card and report",
) -> str:
    """Upload a model with its model card and report to the Hugging Face Hub, in one commit.

    The repository is created if it does not exist. It then holds `model.keras`, which
    `predict("hf://user/name", ...)` loads; the model card as `README.md`, with metadata from which
    the Hub shows the metrics; `labels.txt`; and the report in the folder `report`. The uploaded
    report has no test images, because anyone can see those in a public repository. Files of an
    earlier upload are replaced, also a card that was edited on the Hub; the repository's history
    keeps them. Needs the extra `hub`, and a login (`hf auth login`) or a token.

    Args:
        tuned: the result of `fine_tune`.
        report: what `evaluate` returned for `tuned`.
        repo_id: user or organization, and name of the repository, such as `"user/chest-xray"`.
        private: whether a new repository is private. Defaults to the account's own default.
        token: a token that can write. Defaults to that of the login.
        commit_message: the commit's first line.

    Returns:
        The URL of the commit.

    Raises:
        ValueError: if `report` is not about `tuned`, `repo_id` is malformed, or `private` differs
            from an existing repository.
        ImportError: if huggingface_hub is not installed.
        PermissionError: if there is no login, or its token cannot write to the repository.
        ConnectionError: if the Hub cannot be reached, or the connection breaks.
        OSError: if the upload fails for another reason.

    Example:
        After `hf auth login`::

            print(push_to_hub(tuned, report, "user/chest-xray", private=True))
            print(predict("hf://user/chest-xray", "new.png"))
    """
    _check(tuned, report, private, token, commit_message)
    api = api_of(token)
    check_repo_id("repo_id", repo_id)
    with TemporaryDirectory(prefix="finetune-kit-") as folder:
        files = _write(tuned, report, Path(folder), repo_id)
        return _upload(api, repo_id, files, private=private, token=token, message=commit_message)


def _check(
    tuned: FineTuned, report: Report, private: bool | None, token: str | None, message: str
) -> None:
    check_kind("tuned", tuned, FineTuned, "fine_tune returns one")
    check_kind("report", report, Report, "evaluate(tuned, test) returns one")
    if private is not None:
        check_kind("private", private, bool, "or None, the default of the account")
    check_kind("commit_message", message, str, "the commit's first line")
    # The token is in no message, so this check stands apart.
    if token is not None and not (isinstance(token, str) and re.fullmatch(r"[!-~]+", token)):
        raise ValueError(
            "`token` must be a token of the Hugging Face Hub, text without spaces, or None for "
            f"that of the login. Received: a value of type {type(token).__name__}"
        )
    classes = (tuned.class_names, tuned.train.multi_label)
    if (tuple(report.class_names), report.multi_label) != classes:
        raise ValueError(
            "`report` must be about the classes of `tuned`, "
            f"{shortened(list(tuned.class_names))}; pass evaluate(tuned, test). "
            f"Received: a report on {shortened(list(report.class_names))}"
        )
    known = report.about.get("model", {}).get("sha256_of_graph_and_weights")
    if known is not None and known != fingerprint(tuned.model):
        raise ValueError(
            "`report` must be about the weights of `tuned`; pass evaluate(tuned, test). "
            "Received: a report on another model, or on other weights"
        )


def _write(tuned: FineTuned, report: Report, folder: Path, repo_id: str) -> dict[str, Path]:
    """Write all files of the repository, and return them by their names in it."""
    shown = replace(report, examples=())  # they may show patients
    shown.save(folder / _REPORT)
    (folder / _REPORT / "model_card.md").unlink()  # it is the README
    tuned.save(folder / MODEL)
    names = [" ".join(name.split()) for name in tuned.class_names]
    (folder / "labels.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    text = card.of_report(
        shown, report.title, _metadata(shown, repo_id), _LOAD.format(repo_id=repo_id)
    )
    text += f"\n## Report\n\n`{_REPORT}report.html` is one page with all tables and pictures.\n"
    if (folder / _REPORT / "confusion_matrix.png").exists():
        text += f"\n![Confusion matrix]({_REPORT}confusion_matrix.png)\n"
    (folder / "README.md").write_text(text, encoding="utf-8")
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path for path in files}


def _metadata(report: Report, repo_id: str) -> str:
    """Return the front matter, from which the Hub shows the metrics."""
    from huggingface_hub import EvalResult, ModelCardData

    data = report.about.get("data", {}).get("name") or plural(len(report.labels), "image")
    results = [
        EvalResult(
            task_type=_TASK,
            task_name="Image Classification",
            dataset_type="imagefolder",  # the Hub's name for images that are not on the Hub
            dataset_name=data,
            dataset_split="test",
            metric_type=_METRIC_TYPES.get(name, name),
            metric_name=label,
            metric_value=round(report.metrics[name].value, 6),
        )
        for name, label in OVERALL.items()
        if report.metrics[name].is_defined
    ]
    found = ModelCardData(
        library_name="keras",
        pipeline_tag=_TASK,
        tags=["keras", _TASK, "finetune-kit"],
        model_name=repo_id.split("/")[-1],
        eval_results=results,
    )
    return f"---\n{found.to_yaml()}\n---"


def _upload(
    api: Any,
    repo_id: str,
    files: dict[str, Path],
    *,
    private: bool | None,
    token: str | None,
    message: str,
) -> str:
    """Create the repository if there is none, and make one commit."""
    # `upload_folder` of huggingface_hub 2 may make several commits.
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    with clear_errors("upload", repo_id, token):
        api.create_repo(repo_id, private=private, exist_ok=True)
        found = api.model_info(repo_id)
    if private not in (None, found.private):
        raise ValueError(
            "`private` must be left out for a repository that exists, unless it agrees; change the "
            "visibility in the repository's settings on the Hub, or choose another name. "
            f"Received: private={private} for {repo_id!r}, which is "
            f"{'private' if found.private else 'public'}"
        )
    present = [file.rfilename for file in found.siblings or ()]
    stale = [name for name in present if name.startswith(_REPORT) and name not in files]
    operations = [
        *(CommitOperationAdd(name, str(path)) for name, path in files.items()),
        *(CommitOperationDelete(name) for name in stale),
    ]
    with clear_errors("upload", repo_id, token):
        commit = api.create_commit(repo_id, operations, commit_message=message)
    return str(commit.commit_url)
