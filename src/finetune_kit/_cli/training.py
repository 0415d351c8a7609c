"""The commands `train` and `sweep`: from images to models and reports in one folder."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import finetune_kit as ftk
from finetune_kit._checks import check_choice
from finetune_kit._cli.backbones import RECIPES, backbone_of, specs_of
from finetune_kit._cli.data import parts_of, show_parts
from finetune_kit._cli.job import (
    CHECKPOINTS,
    CONFIG,
    FEATURES,
    MANIFEST,
    RECOMMENDATION,
    Job,
    config_of,
)
from finetune_kit._cli.output import Result, bars, say
from finetune_kit._files import make_folder, write_whole


def run(job: Job, *, silent: bool) -> Result:
    """Do all that a job asks for."""
    out = Path(job.out)
    config = config_of(out, job)
    models = _models(job)
    backbone = backbone_of(job.backbone, job.image_size, seed=job.seed)
    say("1. The images", silent=silent)
    recommends = _recommends(job, backbone)
    parts = parts_of(job, (0.85, 0, 0.15) if recommends else (0.70, 0.15, 0.15))
    show_parts(parts, silent=silent)
    head = None if recommends else _head(job, backbone, parts.train)
    plan = None if recommends else plan_of(backbone, models[-1][1][-1])
    make_folder("--out", out)  # all options are checked now
    write_whole(out / CONFIG, json.dumps(config, indent=2) + "\n")
    named = {"train": parts.train, "validation": parts.validation, "test": parts.test}
    named = {name: images for name, images in named.items() if len(images)}
    sets = ftk.write_manifest(out / MANIFEST, **named)
    verbose = bars(silent=silent)
    more: dict[str, Any] = {}
    about: dict[str, Any] = {}
    if recommends:
        train = _with_groups(sets["train"], parts.duplicates)
        of_run = (backbone, train, sets.get("validation"))
        head, models, more, about = _recommended(job, *of_run, silent=silent)
        plan = plan_of(backbone, models[0][1][-1])
    which = f" of {models[-1][0]}; the others train other blocks" if len(models) > 1 else ""
    say(f"\n2. The plan{which}\n\n{plan}", silent=silent)
    say("\n3. The training", silent=silent)
    trained = _train(job, [specs for _, specs in models], (backbone, head), sets, verbose, more)
    runs = [replace(each, settings={**each.settings, **about}) for each in trained]
    files = [
        tuned.save(out / name / "model.keras")
        for (name, _), tuned in zip(models, runs, strict=True)
    ]
    tested = _reports(job, runs, sets["test"], parts.duplicates)
    shutil.rmtree(out / CHECKPOINTS / FEATURES, ignore_errors=True)
    reports, entries = {}, []
    for (name, _), tuned, model, report in zip(models, runs, files, tested, strict=True):
        page = report.save(out / name / "report", title=name or None) / "report.html"
        reports[name or "model"] = report
        entries.append(_entry(name, tuned, model, page, report))
    return _result(job, sets["test"], reports, entries, recommended=recommends)


def _features(job: Job) -> ftk.FeatureCache:
    """Return the cache of a job: its own, or one that is removed after the evaluation."""
    folder = job.features or Path(job.out) / CHECKPOINTS / FEATURES
    return ftk.FeatureCache(folder, backend=job.features_backend)


def _reports(
    job: Job,
    runs: Sequence[ftk.FineTuned],
    test: ftk.ImageSet,
    duplicates: ftk.Duplicates | None,
) -> list[ftk.Report]:
    """Evaluate models, first the one that trained most: the others start from its features."""
    order = sorted(range(len(runs)), key=lambda i: -sum(runs[i].plan.trainable))
    features, maps = _features(job), job.heat_maps
    found = {
        i: ftk.evaluate(runs[i], test, features=features, duplicates=duplicates, heat_maps=maps)
        for i in order
    }
    return [found[i] for i in range(len(runs))]


def _recommended(
    job: Job,
    backbone: Any,
    train: ftk.ImageSet,
    validation: ftk.ImageSet | None,
    *,
    silent: bool,
) -> tuple[Any, list[tuple[str, list[ftk.FineTuneSpec]]], dict[str, Any], dict[str, Any]]:
    """Return the head, the phases and other arguments that are recommended, and why.

    They are kept beside the checkpoints, so that the same command finds them again.
    """
    import keras

    folder = make_folder("--out", Path(job.out) / CHECKPOINTS)
    head_file, file = folder / "recommended_head.keras", folder / "recommendation.json"
    if not file.exists():
        say("\n   Which recipe? Each is validated on images that it has not seen.", silent=silent)
        found = ftk.recommend(
            backbone,
            train,
            validation,
            batch_size=job.batch_size,
            features=_features(job),
            seed=job.seed,
            verbose=bars(silent=silent),
        )
        found.head.save(head_file)
        content = {
            "text": str(found),
            "reason": found.reason,
            "specs": [spec.to_dict() for spec in found.specs],
            "calibrate": found.keywords.get("calibrate", False),
        }
        write_whole(file, json.dumps(content, indent=2) + "\n")
    known = json.loads(file.read_text(encoding="utf-8"))
    say(f"\n{known['text']}", silent=silent)
    write_whole(Path(job.out) / RECOMMENDATION, known["text"] + "\n")
    specs = [ftk.FineTuneSpec.from_dict(spec) for spec in known["specs"]]
    head = keras.saving.load_model(head_file, compile=False)
    more = {"calibrate": known["calibrate"], "callbacks": ()}
    return head, [("", specs)], more, {"recipe": known["reason"]}


def _recommends(job: Job, backbone: Any) -> bool:
    """Return whether the recipe is to be recommended: by default, if no option is part of one.

    A trained model keeps its head, unless it is to get a new one.
    """
    trained = isinstance(backbone, Path)
    if job.new_head and not trained:
        raise ValueError(
            "--new-head must be given with a trained model alone: other backbones get a new head "
            f"anyway. Received: --new-head with --backbone {job.backbone}"
        )
    if job.recipe is not None or job.verb != "train":
        return job.recipe == "recommend"
    return not job.of_a_recipe and (job.new_head or not trained)


def _with_groups(images: ftk.ImageSet, duplicates: ftk.Duplicates | None) -> ftk.ImageSet:
    """Return images with the groups of their copies, which keep these in one fold."""
    if duplicates is None or not duplicates.clusters:
        return images
    group_of = dict(zip(duplicates.samples, duplicates.groups.tolist(), strict=True))
    return replace(images, groups=np.array([group_of[digest] for digest in images.digests()]))


def _models(job: Job) -> list[tuple[str, list[ftk.FineTuneSpec]]]:
    """Return the name and the phases of each model; `train` makes one, without a name."""
    if job.class_weight is not None:
        check_choice("class_weight", job.class_weight, ("balanced",))
    if job.recipe is not None:
        check_choice("recipe", job.recipe, RECIPES)
    if job.recipe == "recommend":
        given = [
            f"--{name.replace('_', '-')} {','.join(map(str, value)) if name == 'units' else value}"
            for name, value in job.of_a_recipe.items()
        ]
        if given:
            raise ValueError(
                "The recipe 'recommend' chooses blocks, epochs and learning rate, and its head is "
                "a single dense layer that is fitted without class weights; leave these options "
                f"out, or give --recipe lp-ft. Received: {' '.join(given)}"
            )
        return [("", [])]
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


def _head(job: Job, backbone: Any, train: ftk.ImageSet) -> Any:
    """Return a new head, or None to keep that of a trained model."""
    if isinstance(backbone, Path) and not job.new_head:
        from finetune_kit._model.archive import read_facts

        known = (read_facts(backbone) or {}).get("class_names")
        if known is not None and list(known) != list(train.class_names):
            raise ValueError(
                "--new-head must be given if the classes change. Received: a model of the classes "
                f"{list(known)}, and images of {list(train.class_names)}"
            )
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
    more: dict[str, Any],
) -> tuple[ftk.FineTuned, ...]:
    """Train the models; a run that was interrupted resumes."""
    import keras

    validation = sets.get("validation")
    stop = keras.callbacks.EarlyStopping(patience=job.patience)
    options: dict[str, Any] = {
        "batch_size": job.batch_size,
        "class_weight": job.class_weight,
        "callbacks": () if validation is None else [stop],
        "features": _features(job),
        "run_dir": Path(job.out) / CHECKPOINTS,
        "seed": job.seed,
        "verbose": verbose,
        **more,
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
    job: Job,
    test: ftk.ImageSet,
    reports: dict[str, ftk.Report],
    entries: list[dict[str, Any]],
    *,
    recommended: bool,
) -> Result:
    """Return the result of a job."""
    values: dict[str, Any] = {"out": job.out, "test_images": len(test)}
    if recommended:
        values["recommendation"] = (Path(job.out) / RECOMMENDATION).read_text(encoding="utf-8")
    if job.verb == "train":
        report, entry = next(iter(reports.values())), entries[0]
        lines = [
            f"\n4. The results on {len(test):,} test images\n\n{report}\n",
            f"Model:   {entry['model']}",
            f"Report:  {entry['report']}",
            f"Predict: finetune-kit predict {shlex.quote(entry['model'])} IMAGE ...",
        ]
        return Result("\n".join(lines), {**values, **entry})
    comparison = ftk.compare(reports)
    page = comparison.save(Path(job.out) / "comparison") / "comparison.html"
    lines = [f"\n4. The results on {len(test):,} test images\n\n{comparison}\n"]
    losses = {e["name"]: e["validation_loss"] for e in entries if e["validation_loss"] is not None}
    if losses:
        best = min(losses, key=lambda name: losses[name])
        loss = f"{best} ({losses[best]:.4f})"
        lines.append(f"Lowest validation loss: {loss}; choose by it, not by the test images")
    text = "\n".join([*lines, f"Comparison: {page}"])
    return Result(text, {**values, "models": entries, "comparison": str(page)})
