"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from finetune_kit._cli.job import read_config


def numbers(option: str, text: str, kind: type[float] | type[int]) -> tuple[Any, ...]:
    """Return the numbers of an option, separated by commas."""
    try:
        return tuple(kind(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise ValueError(
            f"{option} must be numbers separated by commas. Received: {option} {text}"
        ) from error


def shares(text: str) -> tuple[float, ...]:
    """Return the shares of three sets."""
    sizes = numbers("--sizes", text, float)
    if len(sizes) != 3 or min(sizes) < 0 or abs(sum(sizes) - 1) > 1e-6:
        raise ValueError(
            "--sizes must be three shares that sum to 1, such as 0.7,0.15,0.15. "
            f"Received: --sizes {text}"
        )
    return sizes


def _from_config(context: typer.Context, file: Path | None) -> Path | None:
    """Make the options in a `config.json` the defaults of a command."""
    if file is not None:
        try:
            found = read_config(file)
        except (ValueError, OSError) as error:
            raise typer.BadParameter(str(error)) from error
        listed = {
            name: ",".join(map(str, value)) if isinstance(value, list) else value
            for name, value in found.items()
            if value is not None
        }
        context.default_map = listed
    return file


Images = Annotated[
    str,
    typer.Argument(
        metavar="DATA",
        help="A folder or .zip file with a folder for each class (or already split into train, "
        "val, test); a .csv file; or a manifest of `split`.",
        show_default=False,
    ),
]
Out = Annotated[
    str, typer.Option("--out", help="Folder for all results.", show_default=False, metavar="DIR")
]
Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        help="Take the options from the config.json of an earlier run; others override them.",
        callback=_from_config,
        is_eager=True,
        metavar="FILE",
    ),
]
Backbone = Annotated[
    str,
    typer.Option(
        help="A model of keras.applications with its options, such as MobileNetV2:alpha=0.5; or a "
        ".keras file: a trained model is trained further.",
        metavar="NAME|FILE",
    ),
]
Size = Annotated[int, typer.Option(help="Height and width of the images in pixels.", min=1)]
Seed = Annotated[int, typer.Option(help="Seed of split, head and shuffling.", min=0)]
Flip = Annotated[
    bool, typer.Option(help="Predict mirror images too, and use the means; takes twice the time.")
]
Batch = Annotated[int, typer.Option(help="Images per step.", min=1)]
Sizes = Annotated[
    str, typer.Option(help="Shares of the sets for training, validation and test.", metavar="A,B,C")
]
GroupsFrom = Annotated[
    str | None,
    typer.Option(
        help="Regular expression with one group in parentheses that finds the patient (or other "
        "group) in the path of an image; its images stay on one side of the split.",
        metavar="REGEX",
    ),
]
Root = Annotated[
    str | None,
    typer.Option(
        help="Folder that the paths of a .csv file are relative to (default: its own folder).",
        metavar="DIR",
    ),
]
PathColumn = Annotated[
    str, typer.Option(help="Column of the paths, of a .csv file.", metavar="NAME")
]
LabelColumn = Annotated[
    str,
    typer.Option(help="Column of the labels; several with commas are multi-label.", metavar="NAME"),
]
GroupColumn = Annotated[
    str | None, typer.Option(help="Column of the groups, of a .csv file.", metavar="NAME")
]
OnError = Annotated[
    str,
    typer.Option(
        help="What to do about files that cannot be read: end with an error, or skip them. Files "
        "of a manifest are never skipped.",
        metavar="raise|skip",
    ),
]
Duplicates = Annotated[
    bool, typer.Option(help="Search for copies of an image, and keep them on one side.")
]
Features = Annotated[
    str | None,
    typer.Option(help="Folder that keeps the features of the frozen part.", metavar="DIR"),
]
FeaturesBackend = Annotated[
    str | None,
    typer.Option(
        help="Keras backend that computes the features, in a process of its own.",
        metavar="openvino|tensorflow|jax|torch",
    ),
]
HeatMaps = Annotated[
    int,
    typer.Option(
        help="Images of the report that are shown with a heat map (needs the extra plots).", min=0
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print no progress.")]
