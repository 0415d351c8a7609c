"""A report comes in, a model card goes out: Markdown with the headings of Hugging Face's.

The figures are the report's. What only people can know (what the model is for, whom it may fail) is
left open, and says so. It knows no model and writes no file.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from finetune_kit._report.metrics import OVERALL, PER_CLASS

_OPEN = "*To be written by those who know.*"


def of_report(report: Any, title: str) -> str:
    """The card of a `Report` (headings: https://huggingface.co/docs/hub/model-cards)."""
    about = report.about
    kind = "labels" if report.many else "classes"
    names = ", ".join(map(_plain, report.class_names))
    overall = [[label, str(report.figures[name])] for name, label in OVERALL.items()]
    classes = [
        [_plain(name), *(str(report.class_figures[name][c]) for c in PER_CLASS),
         f"{report.support[name]:,}"]
        for name in report.class_names
    ]  # fmt: skip
    cautions = [f"- {_plain(text)}" for text in report.cautions()]
    methods = sorted({figure.method for figure in report.figures.values()})
    parts: list[tuple[str, str]] = [
        (f"# {_plain(title)}", f"An image classifier that tells {len(report.class_names)} {kind}: "
         f"{names}. It takes raw RGB pixels from 0 to 255."),
        ("## Model Details", _list(about.get("model", {})) or _OPEN),
        ("## Uses", ""),
        ("### Direct Use", _OPEN),
        ("### Out-of-Scope Use", _OPEN),
        ("## Bias, Risks, and Limitations", "\n".join(
            [*cautions, "- The figures below hold for images from the source of these test images; "
             "nothing here was measured on others."])),
        ("## How to Get Started with the Model", "```python\nimport keras\n\n"
         'model = keras.saving.load_model("model.keras")\n'
         "probabilities = model.predict(pixels)  # uint8 or float RGB from 0 to 255\n```"),
        ("## Training Details", ""),
        ("### Training Data", _list(about.get("data", {})) or _OPEN),
        ("### Training Procedure", _list(about.get("training", {})) or _OPEN),
        ("## Evaluation", f"{len(report.labels):,} test images. Figures with 95 % intervals "
         f"({'; '.join(method for method in methods if method)})."),
        ("### Metrics", _table(["figure", "value (95 % interval)"], overall)),
        ("### Results", _table([kind[:-2] if kind == "classes" else "label",
                                *PER_CLASS.values(), "images"], classes)),
        ("## Technical Specifications", _list(about.get("environment", {})) or _OPEN),
        ("## Model Card Authors", _OPEN),
    ]  # fmt: skip
    front = "---\nlibrary_name: keras\npipeline_tag: image-classification\n---"
    return "\n\n".join([front, *(text for part in parts for text in part if text)]) + "\n"


def _list(values: Mapping[str, Any]) -> str:
    return "\n".join(f"- {_plain(name)}: {_plain(_words(value))}" for name, value in values.items())


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_words(inner)}" for key, inner in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_words, value))
    return str(value)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _plain(text: str) -> str:
    """Text that Markdown takes for nothing else: one line, no markup, no table's edge."""
    flat = html.escape(" ".join(str(text).split()), quote=False)
    return re.sub(r"([\\`*_{}\[\]|#!])", r"\\\1", flat)
