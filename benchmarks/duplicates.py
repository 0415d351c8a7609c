"""Measure how many duplicates `find_duplicates` finds among real images.

    python benchmarks/duplicates.py COVID-19_Radiography_Dataset [--limit 1000] [--each 80]

Changed copies of some images are added. For each kind of change, the program prints how many copies
were found: those that are in one cluster with their original. It also prints all clusters of
different originals. Look at these: they may be real duplicates or false ones.
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
    """Return a function that crops a share of the width and height, unevenly from the two ends."""

    def crop(image: Image.Image) -> Image.Image:
        w, h = image.size
        left, top = 0.7 * share * w, 0.4 * share * h
        return image.crop((round(left), round(top), round(left + (1 - share) * w),
                           round(top + (1 - share) * h)))  # fmt: skip

    return crop


def half(image: Image.Image) -> Image.Image:
    """Halve the width and the height."""
    return image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS)


def lighter(image: Image.Image) -> Image.Image:
    """Reduce the contrast and increase the brightness."""
    return image.point(lambda value: min(255, int(0.8 * value + 40)))


# The change of the pixels and the format of the file.
CHANGES: dict[str, tuple[Change, str]] = {
    "equal pixels, other format": (lambda image: image, "bmp"),
    "JPEG, quality 50": (lambda image: image, "jpg"),
    "half size": (half, "png"),
    "lighter": (lighter, "png"),
    "cropped by 3 %": (cropped(0.03), "png"),
    "cropped by 5 %": (cropped(0.05), "png"),
    "cropped by 8 %": (cropped(0.08), "png"),
    "cropped, lighter, half, JPEG": (lambda i: half(lighter(cropped(0.03)(i))), "jpg"),
    "mirrored (not searched for)": (lambda i: i.transpose(Image.Transpose.FLIP_LEFT_RIGHT), "png"),
}


def plant(
    originals: ftk.ImageSet, folder: Path, each: int, rng: np.random.Generator
) -> dict[str, int]:
    """Write changed copies below a folder; return which original each file was made from."""
    made_from = {}
    for number, (change, suffix) in enumerate(CHANGES.values()):
        (folder / str(number)).mkdir()
        for source in rng.permutation(len(originals))[:each].tolist():
            path = folder / str(number) / f"{source}.{suffix}"
            with Image.open(originals.paths[source]) as image:
                change(image.convert("L")).save(path, quality=50)
            made_from[str(path)] = source
    return made_from


def main() -> None:
    """Plant copies, search for duplicates, and count what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="class folders, such as the chest X-ray database")
    parser.add_argument("--limit", type=int, default=1000, help="images (default: 1000)")
    parser.add_argument("--each", type=int, default=80, help="copies of each kind (default: 80)")
    args = parser.parse_args()
    images = ftk.read_image_folder(args.data)
    rng = np.random.default_rng(0)
    originals = images.take(rng.permutation(len(images))[: args.limit])
    with tempfile.TemporaryDirectory() as folder:
        made_from = plant(originals, Path(folder), args.each, rng)
        copies = ftk.read_image_folder(folder)
        started = time.perf_counter()
        groups = ftk.find_duplicates(originals, copies).groups
        seconds = time.perf_counter() - started
    print(
        f"{len(groups):,} images in {seconds:.0f} s, {1000 * seconds / len(groups):.1f} ms each\n"
    )
    sources = [*range(len(originals)), *(made_from[path] for path in copies.paths)]
    copy_groups = groups[len(originals) :]
    found = copy_groups == groups[sources[len(originals) :]]
    for number, name in enumerate(CHANGES):
        of_kind = copies.labels == number
        print(f"{name:30} {found[of_kind].sum():4} of {of_kind.sum()}")
    members: dict[str, set[int]] = {}
    for group, source in zip(groups.tolist(), sources, strict=True):
        members.setdefault(group, set()).add(source)
    others = [sorted(cluster) for cluster in members.values() if len(cluster) > 1]
    print(f"\n{len(others)} clusters of different originals, of {len(originals):,}:")
    for cluster in others:
        print("  " + "  ".join(Path(originals.paths[i]).name for i in cluster))


if __name__ == "__main__":
    main()
