"""Measure what `find_duplicates` finds: leaks are planted among real images, and counted.

    python benchmarks/duplicates.py COVID-19_Radiography_Dataset [--limit 1000] [--each 80]

Prints for each kind of change how many of the planted copies were put into one cluster with the
image that they were made from, and every pair of two other images that was called a duplicate, for
you to look at: what they are, real duplicates or false ones, only eyes can tell.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

import finetune_kit as ftk

Change = Callable[[Image.Image], Image.Image]


def cropped(share: float) -> Change:
    """Cut a share of each side in all, unequally from the two ends."""

    def crop(image: Image.Image) -> Image.Image:
        w, h = image.size
        left, top = 0.7 * share * w, 0.4 * share * h
        return image.crop((round(left), round(top), round(left + (1 - share) * w),
                           round(top + (1 - share) * h)))  # fmt: skip

    return crop


def half(image: Image.Image) -> Image.Image:
    """Half the width and height."""
    return image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS)


def lighter(image: Image.Image) -> Image.Image:
    """Less contrast, more light."""
    return image.point(lambda value: min(255, int(0.8 * value + 40)))


# What is done to the pixels, and how the file is written.
CHANGES: dict[str, tuple[Change, str]] = {
    "equal pixels, other format": (lambda image: image, "bmp"),
    "JPEG, quality 50": (lambda image: image, "jpg"),
    "half size": (half, "png"),
    "lighter": (lighter, "png"),
    "cropped by 3 %": (cropped(0.03), "png"),
    "cropped by 5 %": (cropped(0.05), "png"),
    "cropped by 8 %": (cropped(0.08), "png"),
    "3 % off, lighter, half, JPEG": (lambda i: half(lighter(cropped(0.03)(i))), "jpg"),
    "mirrored (not looked for)": (lambda i: i.transpose(Image.Transpose.FLIP_LEFT_RIGHT), "png"),
}


def main() -> None:
    """Plant, search, count."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="class folders, such as the chest X-ray database")
    parser.add_argument("--limit", type=int, default=1000, help="images (default: 1000)")
    parser.add_argument("--each", type=int, default=80, help="copies of each kind (default: 80)")
    args = parser.parse_args()
    images = ftk.read_image_folder(args.data)
    rng = np.random.default_rng(0)
    chosen = rng.permutation(len(images))[: args.limit]
    originals = [images.paths[i] for i in chosen]
    paths, made_from = list(originals), list(range(len(originals)))
    with tempfile.TemporaryDirectory() as folder:
        for number, (change, suffix) in enumerate(CHANGES.values()):
            for source in rng.permutation(len(originals))[: args.each].tolist():
                path = Path(folder, f"{number}-{source}.{suffix}")
                with Image.open(originals[source]) as image:
                    change(image.convert("L")).save(path, quality=50)
                paths.append(str(path))
                made_from.append(source)
        planted = ftk.ImageSet(tuple(paths), np.zeros(len(paths), np.int64), ("image",))
        started = time.perf_counter()
        groups = ftk.find_duplicates(planted).groups
        seconds = time.perf_counter() - started
    print(f"{len(paths):,} images in {seconds:.0f} s, {1000 * seconds / len(paths):.1f} ms each\n")
    for number, name in enumerate(CHANGES):
        first = len(originals) + number * args.each
        rows = range(first, min(first + args.each, len(paths)))
        found = sum(groups[row] == groups[made_from[row]] for row in rows)
        print(f"{name:30} {found:4} of {len(rows)}")
    members: dict[int, set[int]] = {}
    for row, group in enumerate(groups.tolist()):
        members.setdefault(group, set()).add(made_from[row])
    others = [sorted(found) for found in members.values() if len(found) > 1]
    print(f"\n{len(others)} clusters of several originals, of {len(originals):,}; look at them:")
    for found in others:
        print("  " + "  ".join(Path(originals[i]).name for i in found))


if __name__ == "__main__":
    main()
