"""The command line: one command for each public function."""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer

import finetune_kit as ftk
from finetune_kit._cli import models
from finetune_kit._cli import options as opt
from finetune_kit._cli.backbones import backbone_of, blocks_of
from finetune_kit._cli.data import Data, split_parts
from finetune_kit._cli.job import Job
from finetune_kit._cli.output import Result, bars, command
from finetune_kit._cli.training import plan_of, run

app = typer.Typer(
    name="finetune-kit",
    help="Fine-tune an image classifier on your own images, and know how good it is.",
    no_args_is_help=True,
    rich_markup_mode=None,  # plain text: its boxes need a wide window
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"finetune-kit {ftk.__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    pass


@app.command(epilog="Example: finetune-kit train photos/ --out run/ --blocks 2")
@command
def train(
    data: opt.Images,
    out: opt.Out,
    test: Annotated[str | None, typer.Option(help="Images to test on.", metavar="DATA")] = None,
    validation: Annotated[
        str | None, typer.Option(help="Images to validate on.", metavar="DATA")
    ] = None,
    backbone: opt.Backbone = "MobileNetV2",
    blocks: Annotated[
        str | None,
        typer.Option(help="Trailing blocks that train: a number, all, or names.", metavar="N"),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="recommend (default): the best of several depths and rates, which are tried "
            "first; lp-ft: the head first, then the head and 2 blocks (or --blocks) at a lower "
            "rate; probe: the head alone. Without --recipe, --blocks trains them in one phase, and "
            "--epochs, --learning-rate, --units, --dropout and --class-weight mean lp-ft.",
            metavar="recommend|lp-ft|probe",
        ),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(help="Epochs of all phases together (20 of lp-ft and probe).", min=1),
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Learning rate; of lp-ft, that of its second phase.")
    ] = None,
    batch_size: opt.Batch = 32,
    image_size: opt.Size = 224,
    units: Annotated[
        str, typer.Option(help="Widths of hidden layers of the head.", metavar="A,B,...")
    ] = "",
    dropout: Annotated[float, typer.Option(help="Dropout rate in the head.")] = 0.0,
    new_head: Annotated[
        bool, typer.Option("--new-head", help="Replace the head of a trained model.")
    ] = False,
    class_weight: Annotated[
        str | None, typer.Option(help="Rare classes count more.", metavar="balanced")
    ] = None,
    patience: Annotated[
        int, typer.Option(help="Epochs without a lower validation loss before the end.", min=1)
    ] = 5,
    sizes: Annotated[
        str | None,
        typer.Option(
            help="Shares of the sets for training, validation and test (default: 0.7,0.15,0.15; "
            "0.85,0,0.15 with the recipe recommend, which validates on folds).",
            metavar="A,B,C",
        ),
    ] = None,
    groups_from: opt.GroupsFrom = None,
    root: opt.Root = None,
    path_column: opt.PathColumn = "path",
    label_column: opt.LabelColumn = "label",
    group_column: opt.GroupColumn = None,
    on_error: opt.OnError = "raise",
    duplicates: opt.Duplicates = True,
    features: opt.Features = None,
    features_backend: opt.FeaturesBackend = None,
    heat_maps: opt.HeatMaps = 24,
    seed: opt.Seed = 0,
    config: opt.Config = None,
    as_json: opt.Json = False,
    quiet: opt.Quiet = False,
) -> Result:
    """Train a classifier, evaluate it on images kept aside, and save model and report.

    The folder OUT then holds model.keras, report/report.html, manifest.csv and config.json. If the
    training is interrupted, the same command resumes it.
    """
    given = {name: value for name, value in locals().items() if name in Job.__annotations__}
    return _run({**given, "verb": "train"}, silent=as_json or quiet)


@app.command(epilog="Example: finetune-kit sweep photos/ --out depth/ --blocks 0,1,2")
@command
def sweep(
    data: opt.Images,
    out: opt.Out,
    blocks: Annotated[
        str, typer.Option(help="Trailing blocks that train in each model.", metavar="N,N,...")
    ] = "0,1,2",
    backbone: opt.Backbone = "MobileNetV2",
    epochs: Annotated[int, typer.Option(help="Epochs of each model.", min=1)] = 20,
    learning_rate: Annotated[float | None, typer.Option(help="Learning rate.")] = None,
    batch_size: opt.Batch = 32,
    image_size: opt.Size = 224,
    sizes: opt.Sizes = "0.7,0.15,0.15",
    groups_from: opt.GroupsFrom = None,
    root: opt.Root = None,
    path_column: opt.PathColumn = "path",
    label_column: opt.LabelColumn = "label",
    group_column: opt.GroupColumn = None,
    on_error: opt.OnError = "raise",
    duplicates: opt.Duplicates = True,
    features: opt.Features = None,
    features_backend: opt.FeaturesBackend = None,
    heat_maps: opt.HeatMaps = 24,
    seed: opt.Seed = 0,
    config: opt.Config = None,
    as_json: opt.Json = False,
    quiet: opt.Quiet = False,
) -> Result:
    """Train one model for each number of blocks, and compare them on the same test images."""
    given = {name: value for name, value in locals().items() if name in Job.__annotations__}
    return _run({**given, "verb": "sweep"}, silent=as_json or quiet)


def _run(given: dict[str, Any], *, silent: bool) -> Result:
    if given["sizes"] is not None:
        given["sizes"] = opt.shares(given["sizes"])
    if "units" in given:
        given["units"] = opt.numbers("--units", given["units"], int)
    return run(Job(**given), silent=silent)


@app.command(epilog="Example: finetune-kit plan EfficientNetB0 --blocks 2")
@command
def plan(
    backbone: Annotated[
        str, typer.Argument(metavar="BACKBONE", help="As for `train`.", show_default=False)
    ],
    blocks: Annotated[str, typer.Option(help="Trailing blocks that train.", metavar="N")] = "0",
    level: Annotated[
        str, typer.Option(help="What a block is.", metavar="stage|block|layer")
    ] = "block",
    image_size: opt.Size = 224,
    as_json: opt.Json = False,
) -> Result:
    """Print the blocks of a backbone, and which of them would train."""
    spec = ftk.FineTuneSpec(blocks_of(blocks), level=level)
    found = plan_of(backbone_of(backbone, image_size, weights=False), spec)
    rows = [
        {"name": block.name, "trains": trains, "layers": list(block.layers)}
        for block, trains in zip(found.blocks, found.trainable, strict=True)
    ]
    return Result(str(found), {"backbone": found.backbone, "blocks": rows})


@app.command(epilog="Example: finetune-kit duplicates train/ test/")
@command
def duplicates(
    data: Annotated[
        list[str], typer.Argument(metavar="DATA...", help="Sets of images.", show_default=False)
    ],
    threshold: Annotated[
        float, typer.Option(help="Similarity from which images are near duplicates, -1 to 1.")
    ] = 0.86,
    as_json: opt.Json = False,
) -> Result:
    """Find copies of an image, within a set of images or across several.

    Each image of a cluster is listed with the kind of its closest copy there (bytes: equal files,
    pixels: equal pixels, near: similar pictures) and the similarity.
    """
    sets = [Data(path).images() for path in data]
    found = ftk.find_duplicates(*sets, threshold=threshold)
    paths = [path for images in sets for path in images.paths]
    closest: dict[int, tuple[float, str]] = {}
    for i, j, kind, similarity in found.pairs:
        for one in (i, j):
            closest[one] = max(closest.get(one, (-1.0, "")), (similarity, kind))
    lines = [repr(found)]
    for cluster in found.clusters:
        lines += ["", *(f"  {closest[i][1]:6} {closest[i][0]:.2f}  {paths[i]}" for i in cluster)]
    values = {
        "clusters": [[paths[i] for i in cluster] for cluster in found.clusters],
        "crossing": [[paths[i] for i in cluster] for cluster in found.crossing],
        "pairs": [[paths[i], paths[j], kind, value] for i, j, kind, value in found.pairs],
    }
    return Result("\n".join(lines), values)


@app.command(epilog="Example: finetune-kit split photos/ --out manifest.csv --sizes 0.8,0.1,0.1")
@command
def split(
    data: opt.Images,
    out: Annotated[
        str, typer.Option("--out", help="Manifest to write: .csv or .json.", metavar="FILE")
    ],
    sizes: opt.Sizes = "0.7,0.15,0.15",
    groups_from: opt.GroupsFrom = None,
    root: opt.Root = None,
    path_column: opt.PathColumn = "path",
    label_column: opt.LabelColumn = "label",
    group_column: opt.GroupColumn = None,
    on_error: opt.OnError = "raise",
    duplicates: opt.Duplicates = True,
    seed: opt.Seed = 0,
    as_json: opt.Json = False,
) -> Result:
    """Split images into sets for training, validation and test, and write a manifest of them."""
    source = Data(data, groups_from, root, path_column, label_column, group_column, on_error)
    parts = split_parts(source.parts(), opt.shares(sizes), seed, duplicates=duplicates)
    named = {"train": parts.train, "validation": parts.validation, "test": parts.test}
    sets = ftk.write_manifest(out, **{n: images for n, images in named.items() if len(images)})
    counts = {name: len(images) for name, images in sets.items()}
    text = f"{', '.join(f'{count:,} {name}' for name, count in counts.items())}: {out}"
    return Result(text, {"manifest": out, "images": counts})


@app.command(epilog="Example: finetune-kit features photos/ --to features/ --shard 3/16")
@command
def features(
    data: opt.Images,
    to: Annotated[
        str, typer.Option("--to", help="Folder to fill, for --features of train.", metavar="DIR")
    ],
    backbone: opt.Backbone = "MobileNetV2",
    blocks: Annotated[str, typer.Option(help="Blocks that will train.", metavar="N,N,...")] = "0,2",
    shard: Annotated[
        str, typer.Option(help="Compute part I (from 0) of N parts alone.", metavar="I/N")
    ] = "0/1",
    features_backend: opt.FeaturesBackend = None,
    image_size: opt.Size = 224,
    batch_size: opt.Batch = 32,
    root: opt.Root = None,
    path_column: opt.PathColumn = "path",
    label_column: opt.LabelColumn = "label",
    on_error: opt.OnError = "raise",
    seed: Annotated[int, typer.Option(help="Seed of random weights.", min=0)] = 0,
    as_json: opt.Json = False,
    quiet: opt.Quiet = False,
) -> Result:
    """Compute the features of the frozen part, so that later trainings start at once."""
    source = Data(data, None, root, path_column, label_column, on_error=on_error, check_files=False)
    part, _, parts = shard.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and int(part) < int(parts)):
        raise ValueError(
            f"--shard must be I/N, with I from 0 to N - 1, such as 0/4. Received: --shard {shard}"
        )
    values = ftk.compute_features(
        backbone_of(backbone, image_size, seed=seed),
        [ftk.FineTuneSpec(blocks_of(depth)) for depth in blocks.split(",")],
        source.images(),
        ftk.FeatureCache(to, backend=features_backend),
        shard=(int(part), int(parts)),
        batch_size=batch_size,
        verbose=bars(silent=as_json or quiet),
    )
    text = f"{values['images']:,} images, {values['computed']:,} rows computed: {to}"
    return Result(text, {"features": to, **values})


app.command(epilog="Example: finetune-kit predict run/model.keras new/*.jpg --csv predictions.csv")(
    models.predict
)
app.command(epilog="Example: finetune-kit evaluate run/model.keras new-hospital/ --out report/")(
    models.evaluate
)
app.command(epilog="Example: finetune-kit export run/model.keras model.onnx")(models.export)
app.command(epilog="Example: finetune-kit serve run/model.keras")(models.serve)


def main() -> None:
    """Run the command line."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow's notes about the processor
    app()
