"""A model card in Markdown, with the headings of Hugging Face's model cards."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from finetune_kit._html import label
from finetune_kit._report.metrics import OVERALL, PER_CLASS
from finetune_kit._report.results import MOST_CLASSES, Results
from finetune_kit._text import listed
from finetune_kit._train.settings import changed_settings

_MISSING = "[More information needed]"
FRONT = "---\nlibrary_name: keras\npipeline_tag: image-classification\n---"
LOAD = """```python
import keras

model = keras.saving.load_model("model.keras")
probabilities = model.predict(pixels)  # uint8 or float RGB from 0 to 255
```"""


def of_report(report: Results, title: str, front: str = FRONT, load: str = LOAD) -> str:
    """Return the card of a report.

    The metrics, the training settings and the cautions are filled in. What the report does not
    know, such as the intended use, is marked with `[More information needed]`.

    Args:
        report: the report.
        title: the first heading.
        front: the metadata, a block of YAML between two lines of `---`.
        load: how to load the model, in Markdown.
    """
    about = report.about
    cautions = [f"- {_plain(text)}" for text in report.cautions()]
    cautions.append(
        "- The metrics were measured on images from one source. They do not show how the model "
        "performs on images from other sources."
    )
    parts = [
        (f"# {_plain(title)}", _description(report)),
        ("## Model Details", _list(about.get("model", {}))),
        ("## Uses", ""),
        ("### Direct Use", _MISSING),
        ("### Out-of-Scope Use", _MISSING),
        ("## Bias, Risks, and Limitations", "\n".join(cautions)),
        ("## How to Get Started with the Model", load),
        ("## Training Details", ""),
        ("### Training Data", _list(about.get("data", {}))),
        ("### Training Procedure", _list(changed_settings(about.get("training", {})))),
        ("## Evaluation", _method(report)),
        ("### Metrics", _metrics_table(report)),
        ("### Results", _class_table(report)),
        ("## Technical Specifications", _list(about.get("environment", {}))),
        ("## Model Card Authors", _MISSING),
    ]
    return "\n\n".join([front, *(text for part in parts for text in part if text)]) + "\n"


def _description(report: Results) -> str:
    kind = "labels" if report.multi_label else "classes"
    names = listed([*map(_plain, report.class_names)], MOST_CLASSES)
    return (
        f"An image classifier with {len(report.class_names)} {kind}: {names}. The input is RGB "
        "pixels from 0 to 255."
    )


def _method(report: Results) -> str:
    flip = ", each predicted together with its mirror image" if report.flip else ""
    methods = sorted({estimate.method for estimate in report.metrics.values()} - {""})
    return (
        f"{len(report.labels):,} test images{flip}. The metrics have 95% intervals "
        f"({'; '.join(methods)}; {report.resamples:,} resamples)."
    )


def _metrics_table(report: Results) -> str:
    rows = [[name, str(report.metrics[key])] for key, name in OVERALL.items()]
    return _table(["metric", "value (95% interval)"], rows)


def _class_table(report: Results) -> str:
    rows = []
    for name in report.listed_classes:
        values = (str(report.class_metrics[name][key]) for key in PER_CLASS)
        rows.append([_plain(name), *values, f"{report.support[name]:,}"])
    head = "label" if report.multi_label else "class"
    some = f"The {len(rows)} with the lowest F1, of {len(report.class_names):,}:\n\n"
    table = _table([head, *PER_CLASS.values(), "images"], rows)
    return some + table if len(rows) < len(report.class_names) else table


def _list(values: Mapping[str, Any]) -> str:
    lines = [
        f"- {_plain(label(name))}: {_plain(_text(value))}"
        for name, value in values.items()
        if value is not None
    ]
    return "\n".join(lines) or _MISSING


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        pairs = ((key, _text(inner)) for key, inner in value.items() if inner is not None)
        return ", ".join(f"{name}={text}" for name, text in pairs)
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_text, value))
    return str(value)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _plain(text: str) -> str:
    """Escape text so that Markdown shows it as it is: one line, no markup, no cell border."""
    flat = html.escape(" ".join(str(text).split()), quote=False)
    return re.sub(r"([\\`*_{}\[\]|#!])", r"\\\1", flat)
