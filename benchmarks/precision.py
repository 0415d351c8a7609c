"""What OpenVINO's precisions cost in time, and what they change in features and accuracy.

    KERAS_BACKEND=openvino python benchmarks/precision.py FOLDER [--images 1000]

FOLDER holds a folder for each class. MobileNetV2 x0.5 with average pooling and ImageNet weights
computes the images one at a time on each core, in float32, bfloat16 and float16. For each, the
script prints processor milliseconds an image (best of three), the largest difference of the
features from those in float32, relative to the largest value, and the accuracy of a logistic
regression on them: the mean of 5-fold cross-validation with seeds 0, 1 and 2, and how many of its
predicted classes differ. A processor without a precision computes it in float32.
"""

from __future__ import annotations

import argparse
import resource

import keras
import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import finetune_kit as ftk
from finetune_kit._features import computing
from finetune_kit._model.twin import channels_first

PRECISIONS = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}


def features_in(precision: str, backbone: keras.Model, pixels: np.ndarray) -> tuple:
    """Return features, and processor milliseconds of an image."""
    computing._OPTIONS["INFERENCE_PRECISION_HINT"] = PRECISIONS[precision]
    compute = computing._OnOpenVINO(channels_first(backbone)[0])
    compute(pixels[:32])
    spent = []
    for _ in range(3):
        used = resource.getrusage(resource.RUSAGE_SELF)
        found = np.concatenate([compute(pixels[i : i + 32])[0] for i in range(0, len(pixels), 32)])
        now = resource.getrusage(resource.RUSAGE_SELF)
        spent.append(now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime)
    return found, min(spent) / len(pixels) * 1e3


def predicted(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the classes that cross-validation predicts, `(seeds, n)`."""
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=500))
    folds = [StratifiedKFold(5, shuffle=True, random_state=seed) for seed in range(3)]
    return np.stack([cross_val_predict(model, features, labels, cv=each) for each in folds])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("--images", type=int, default=1000, help="default: 1000")
    args = parser.parse_args()
    images = ftk.read_image_folder(args.folder)
    images = images.take(np.linspace(0, len(images) - 1, args.images).astype(int))
    backbone = keras.applications.MobileNetV2(
        alpha=0.5, include_top=False, pooling="avg", input_shape=(224, 224, 3)
    )
    backbone.trainable = False
    pixels = np.concatenate([images.load(np.arange(i, i + 1)) for i in range(len(images))])
    pixels = pixels.astype(np.float32) / 127.5 - 1
    print("| precision | processor ms an image | difference | accuracy | other classes |")
    print("|---|---:|---:|---:|---:|")
    exact = classes = None
    for precision in PRECISIONS:
        features, cost = features_in(precision, backbone, pixels)
        found = predicted(features, images.labels)
        exact = features if exact is None else exact
        classes = found if classes is None else classes
        apart = np.abs(features - exact).max() / np.abs(exact).max()
        others = f"{(found != classes).sum()} of {found.size}"
        accuracy = (found == images.labels).mean()
        print(f"| {precision} | {cost:.2f} | {apart:.1g} | {accuracy:.4f} | {others} |", flush=True)


if __name__ == "__main__":
    main()
