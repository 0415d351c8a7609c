"""The commands `train` and `sweep`: from images to models and reports in one folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import finetune_kit as ftk
from finetune_kit._checks import check_choice
from finetune_kit._cli.backbones import backbone_of, specs_of
from finetune_kit._cli.data import Data, Parts, split_parts
from finetune_kit._cli.output import bars, say
from finetune_kit._files import make_folder, write_whole
from finetune_kit._text import plural

_FORMAT = "finetune-kit config 1"
_CONFIG, _MANIFEST, _CHECKPOINTS = "config.json", "manifest.csv", "checkpoints"


@dataclass(frozen=True)
class Job:
    """The options of `train` or `sweep`, which `config.json` holds.

    Attributes:
        verb: `"train"` or `"sweep"`.
        data: the images, see `Data`.
        out: the folder for all results.
        test: images to test on, or None for a share of `data`.
        validation: images to validate on, or None for a share of `data`.
        groups_from, path_column, label_column, group_column, on_error: see `Data`.
        sizes: shares of the sets for training, validation and test.
        duplicates: whether to search for copies before the split.
        backbone: see `backbone_of`.
        image_size: height and width in pixels.
        blocks: what trains of the backbone; for `sweep` several, separated by commas.
        recipe: see `specs_of`.
        epochs: of all phases together.
        learning_rate: of the last phase, or None for the usual one.
        batch_size: images per step.
        units: widths of the hidden layers of the head.
        dropout: rate of the dropout in the head.
        new_head: whether a trained model gets a new head.
        class_weight: `"balanced"` or None.
        patience: epochs without a lower validation loss after which a phase ends.
        features: folder that keeps the features, or None.
        heat_maps: how many images of the report have one.
        seed: of split, head and shuffling.
    """

    verb: str
    data: str
    out: str
    test: str | None = None
    validation: str | None = None
    groups_from: str | None = None
    path_column: str = "path"
    label_column: str = "label"
    group_column: str | None = None
    on_error: str = "raise"
    sizes: tuple[float, ...] = (0.70, 0.15, 0.15)
    duplicates: bool = True
    backbone: str = "MobileNetV2"
    image_size: int = 224
    blocks: str | None = None
    recipe: str | None = None
    epochs: int = 20
    learning_rate: float | None = None
    batch_size: int = 32
    units: tuple[int, ...] = ()
    dropout: float = 0.0
    new_head: bool = False
    class_weight: str | None = None
    patience: int = 5
    features: str | None = None
    heat_maps: int = 24
    seed: int = 0


def read_config(file: Path) -> dict[str, Any]:
    """Return the options in a `config.json`.

    Raises:
        FileNotFoundError: if it does not exist.
        ValueError: if it is not one that `train` or `sweep` wrote.
    """
    if not file.is_file():
        raise FileNotFoundError(
            f"--config must be a file that exists. Received: {str(file)!r}, which does not"
        )
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"--config must be a JSON file. Received: {str(file)!r}: {error}"
        ) from None
    known = {field.name for field in fields(Job)}
    written = content.pop("format", None) if isinstance(content, dict) else None
    if written != _FORMAT or not {*content} <= {*known, "finetune-kit"}:
        raise ValueError(
            f"--config must be a {_CONFIG} that finetune-kit wrote, of the format {_FORMAT!r}. "
            f"Received: {str(file)!r}"
        )
    return {name: value for name, value in content.items() if name in known}


def run(job: Job, *, silent: bool) -> tuple[str, dict[str, Any]]:
    """Do all that a job asks for; return the result as text and as plain values."""
    out = Path(job.out)
    config = _config(out, job)
    models = _models(job)
    backbone = backbone_of(job.backbone, job.image_size, seed=job.seed)
    say("1. The images", silent=silent)
    parts = _parts(job)
    _show_parts(parts, silent=silent)
    head = _head(job, backbone, parts.train)
    plan = plan_of(backbone, models[-1][1][-1])
    make_folder("--out", out)  # all options are checked now
    write_whole(out / _CONFIG, json.dumps(config, indent=2) + "\n")
    named = {"train": parts.train, "validation": parts.validation, "test": parts.test}
    named = {name: images for name, images in named.items() if len(images)}
    sets = ftk.write_manifest(out / _MANIFEST, **named)
    say(f"\n2. The plan\n\n{plan}", silent=silent)
    say("\n3. The training", silent=silent)
    verbose = bars(silent=silent)
    runs = _train(job, [specs for _, specs in models], (backbone, head), sets, verbose)
    reports, entries = {}, []
    for (name, _), tuned in zip(models, runs, strict=True):
        report = ftk.evaluate(
            tuned, sets["test"], duplicates=parts.duplicates, heat_maps=job.heat_maps
        )
        page = report.save(out / name / "report", title=name or None) / "report.html"
        model = tuned.save(out / name / "model.keras")
        reports[name or "model"] = report
        entries.append(_entry(name, tuned, model, page, report))
    return _result(job, sets["test"], reports, entries)


def _models(job: Job) -> list[tuple[str, list[ftk.FineTuneSpec]]]:
    """Return the name and the phases of each model; `train` makes one, without a name."""
    check_choice("class_weight", job.class_weight, (None, "balanced"))
    if job.verb == "train":
        return [("", specs_of(job.blocks, job.recipe, job.epochs, job.learning_rate))]
    depths = [text.strip() for text in (job.blocks or "0,1,2").split(",")]
    if len(depths) < 2 or len({*depths}) < len(depths):
        raise ValueError(
            "--blocks of a sweep must be two or more different numbers, separated by commas, such "
            f"as 0,1,2. Received: {job.blocks!r}"
        )
    return [
        (f"blocks-{depth}", specs_of(depth, None, job.epochs, job.learning_rate))
        for depth in depths
    ]


def _config(out: Path, job: Job) -> dict[str, Any]:
    """Return the content of `config.json`, after a check that the folder holds no other job."""
    content: dict[str, Any] = {
        "format": _FORMAT,
        "finetune-kit": ftk.__version__,
        **asdict(job),
    }
    for name in ("data", "out", "test", "validation", "features"):  # valid from any folder
        content[name] = content[name] and str(Path(content[name]).expanduser().absolute())
    plain = json.loads(json.dumps(content))
    file = out / _CONFIG
    if any((out / _CHECKPOINTS).rglob("checkpoint-*")) and file.is_file():
        there = json.loads(file.read_text(encoding="utf-8"))
        changed = [name for name in {**there, **plain} if there.get(name) != plain.get(name)]
        changed = [name for name in changed if name not in ("out", "finetune-kit")]
        if changed:
            lines = [
                f"  {name}: {there.get(name)!r} there, {plain.get(name)!r} now" for name in changed
            ]
            raise ValueError(
                f"--out must be a new folder, or hold a run with the same options. Received: "
                f"{str(out)!r}, whose run differs in:\n" + "\n".join(lines)
            )
    elif out.is_dir() and {p.name for p in out.iterdir()} - {_CONFIG, _MANIFEST, _CHECKPOINTS}:
        raise ValueError(
            f"--out must be a new or empty folder, or hold a run. Received: {str(out)!r}, which "
            "holds other files"
        )
    return plain


def _parts(job: Job) -> Parts:
    """Read the images and split them."""
    options = {
        name: getattr(job, name)
        for name in ("groups_from", "path_column", "label_column", "group_column", "on_error")
    }
    parts = Data(job.data, **options).parts()
    names = next(iter(parts.values())).class_names
    for part, path in (("validation", job.validation), ("test", job.test)):
        if path is not None:
            parts[part] = Data(path, **options).images(names, part=part)
    if "test" not in parts and not job.sizes[2]:
        raise ValueError(
            "The share of the test set must be above 0, or --test must name a folder. "
            f"Received: --sizes {','.join(map(str, job.sizes))}"
        )
    return split_parts(parts, job.sizes, job.seed, duplicates=job.duplicates)


def _show_parts(parts: Parts, *, silent: bool) -> None:
    counts = parts.train.counts() + parts.validation.counts() + parts.test.counts()
    shown = zip(parts.train.class_names, counts.tolist(), strict=True)
    say(f"   {', '.join(f'{name} {count:,}' for name, count in shown)}", silent=silent)
    if parts.duplicates is not None:
        count = len(parts.duplicates.clusters)
        found = (
            f"{plural(count, 'cluster')} of copies" if count else "No image is a copy of another"
        )
        say(f"   {found}", silent=silent)
    sizes = [
        f"{len(images):,} {name}"
        for name, images in (
            ("to train on", parts.train),
            ("to validate on", parts.validation),
            ("to test on", parts.test),
        )
    ]
    say(f"   {', '.join(sizes)}", silent=silent)


def _head(job: Job, backbone: Any, train: ftk.ImageSet) -> Any:
    """Return a new head, or None to keep that of a trained model."""
    if isinstance(backbone, Path) and not job.new_head:
        return None
    return ftk.classification_head(
        train.class_names, units=job.units, dropout=job.dropout, multi_label=train.multi_label
    )


def plan_of(backbone: Any, spec: ftk.FineTuneSpec) -> ftk.FreezePlan:
    """Return what a spec means for a backbone, or for the model in a file."""
    import keras  # only where it is used: --help does not wait for it

    if isinstance(backbone, Path):
        backbone = keras.saving.load_model(backbone, compile=False)
    return spec.plan(backbone)


def _train(
    job: Job,
    schedules: Sequence[list[ftk.FineTuneSpec]],
    start: tuple[Any, Any],
    sets: dict[str, ftk.ImageSet],
    verbose: int,
) -> tuple[ftk.FineTuned, ...]:
    """Train the models; a run that was interrupted resumes."""
    import keras

    validation = sets.get("validation")
    best = keras.callbacks.EarlyStopping(patience=job.patience, restore_best_weights=True)
    options: dict[str, Any] = {
        "batch_size": job.batch_size,
        "class_weight": job.class_weight,
        "callbacks": () if validation is None else [best],
        "features": job.features,
        "run_dir": Path(job.out) / _CHECKPOINTS,
        "seed": job.seed,
        "verbose": verbose,
    }
    if job.verb == "train":
        return (ftk.fine_tune(*start, schedules[0], sets["train"], validation, **options),)
    specs = [spec for (spec,) in schedules]
    return ftk.sweep(*start, specs, sets["train"], validation, **options)


def _entry(
    name: str, tuned: ftk.FineTuned, model: Path, page: Path, report: ftk.Report
) -> dict[str, Any]:
    """Return what is known about a model, as plain values."""
    return {
        "name": name or "model",
        "trainable_blocks": tuned.settings["specs"][-1]["trainable_blocks"],
        "validation_loss": min(tuned.history.get("val_loss", ()), default=None),
        "model": str(model),
        "report": str(page),
        "metrics": {key: estimate.to_dict() for key, estimate in report.metrics.items()},
    }


def _result(
    job: Job, test: ftk.ImageSet, reports: dict[str, ftk.Report], entries: list[dict[str, Any]]
) -> tuple[str, dict[str, Any]]:
    """Return the result of a job as text and as plain values."""
    values: dict[str, Any] = {"out": job.out, "test_images": len(test)}
    if job.verb == "train":
        report, entry = next(iter(reports.values())), entries[0]
        lines = [
            f"\n4. The results on {len(test):,} test images\n\n{report}\n",
            f"Model:   {entry['model']}",
            f"Report:  {entry['report']}",
            f"Predict: finetune-kit predict {entry['model']} IMAGE ...",
        ]
        return "\n".join(lines), {**values, **entry}
    comparison = ftk.compare(reports)
    page = comparison.save(Path(job.out) / "comparison") / "comparison.html"
    lines = [f"\n4. The results on {len(test):,} test images\n\n{comparison}\n"]
    losses = {e["name"]: e["validation_loss"] for e in entries if e["validation_loss"] is not None}
    if losses:
        best = min(losses, key=lambda name: losses[name])
        loss = f"{best} ({losses[best]:.4f})"
        lines.append(f"Lowest validation loss: {loss}; choose by it, not by the test images")
    text = "\n".join([*lines, f"Comparison: {page}"])
    return text, {**values, "models": entries, "comparison": str(page)}
