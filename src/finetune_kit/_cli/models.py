"""The commands that take a trained model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

import finetune_kit as ftk
from finetune_kit._cli import options as opt
from finetune_kit._cli.data import Data
from finetune_kit._cli.output import Result, command, say

Model = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="A .keras file that `train` wrote.", show_default=False),
]


ClassNames = Annotated[
    str | None,
    typer.Option(help="Classes of a model that has none with it.", metavar="A,B,..."),
]


@command
def predict(
    model: Model,
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE...",
            help="Files, folders or .zip files; or one pattern; or - for stdin.",
            show_default=False,
        ),
    ],
    top: Annotated[int | None, typer.Option(help="Classes to list for each image.", min=1)] = None,
    threshold: Annotated[
        float, typer.Option(help="Probability from which a label is predicted (multi-label).")
    ] = 0.5,
    class_names: ClassNames = None,
    csv: Annotated[
        Path | None, typer.Option("--csv", help="Write all predictions to a file.", metavar="FILE")
    ] = None,
    flip: opt.Flip = False,
    batch_size: opt.Batch = 32,
    as_json: opt.Json = False,
) -> Result:
    """Predict the classes of images. Ends with code 1 if some could not be read."""
    if csv is not None and csv.is_dir():
        raise ValueError(f"--csv must be a file. Received: --csv {csv}, which is a folder")
    chosen: Any = images[0] if len(images) == 1 else images
    found = ftk.predict(
        model,
        sys.stdin.buffer if chosen == "-" else chosen,
        class_names=None if class_names is None else class_names.split(","),
        top=top,
        threshold=threshold,
        flip=flip,
        batch_size=batch_size,
    )
    if csv is not None:
        found.to_csv(csv)
    rows = [
        {"path": p.path, "labels": list(p.labels), "probabilities": p.probabilities}
        if p.error is None
        else {"path": p.path, "error": p.error}
        for p in found
    ]
    values = {"class_names": found.class_names, "flip": found.flip, "predictions": rows}
    return Result(str(found), values, code=1 if found.errors else 0)


@command
def evaluate(
    model: Model,
    data: opt.Images,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for the report.", metavar="DIR")
    ] = None,
    root: opt.Root = None,
    path_column: opt.PathColumn = "path",
    label_column: opt.LabelColumn = "label",
    on_error: opt.OnError = "raise",
    flip: opt.Flip = False,
    batch_size: opt.Batch = 32,
    features: opt.Features = None,
    features_backend: opt.FeaturesBackend = None,
    as_json: opt.Json = False,
) -> Result:
    """Measure how well a model classifies images with known labels.

    Of a manifest, or of a folder that is split already, these are the images of the test part.
    """
    from finetune_kit._train.classifier import as_classifier

    classifier = as_classifier(model)
    source = Data(data, None, root, path_column, label_column, None, on_error)
    images = source.images(classifier.class_names or None, part="test")
    kept = features or features_backend
    cache = ftk.FeatureCache(features, backend=features_backend) if kept else None
    report = ftk.evaluate(classifier, images, flip=flip, batch_size=batch_size, features=cache)
    values = report.to_dict()
    text = str(report)
    if out is not None:
        page = report.save(out) / "report.html"
        text, values = f"{text}\n\nReport: {page}", {**values, "report": str(page)}
    return Result(text, values)


@command
def export(
    model: Model,
    target: Annotated[
        Path,
        typer.Argument(
            metavar="TARGET",
            help="A file that ends in .onnx, .tflite or .xml (OpenVINO), or a folder (SavedModel).",
            show_default=False,
        ),
    ],
) -> None:
    """Convert a model to a format that runs without Keras."""
    formats = {".onnx": "onnx", ".tflite": "litert", ".xml": "openvino", "": "tf_saved_model"}
    if target.suffix not in formats:
        raise ValueError(
            "TARGET must end in .onnx, .tflite or .xml, or be a folder without a suffix. "
            f"Received: {str(target)!r}"
        )
    from finetune_kit._train.classifier import as_classifier

    network = as_classifier(model).network
    try:
        network.export(str(target), format=formats[target.suffix], verbose=False)
    except ImportError as error:
        raise ImportError(
            f"The export to {target.suffix or 'a folder'} needs packages that are not installed: "
            f"pip install 'finetune-kit[export]'. Received: {error}"
        ) from error
    say(f"{target}")


@command
def serve(
    model: Model,
    class_names: ClassNames = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 serves the whole network.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=0, max=65535)] = 8000,
) -> None:
    """Open a page on this machine where you drop an image and see what the model predicts."""
    from finetune_kit._cli.serve import make_server
    from finetune_kit._train.classifier import as_classifier

    names = None if class_names is None else class_names.split(",")
    with make_server(as_classifier(model, names, named=True), host, port) as server:
        print(f"http://{host}:{server.server_port} (Ctrl-C ends it)", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            typer.echo("")
