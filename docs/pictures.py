"""Make the pictures of the landing page and the README from the output of the chest X-ray example.

    python examples/chest_xray/run.py --out out/pictures
    python docs/pictures.py out/pictures

The example draws synthetic images. Chromium or Google Chrome renders the plan and the report page.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import keras
from PIL import Image

import finetune_kit as ftk

IMAGES = Path(__file__).parent / "images"
LIMIT = 300_000  # bytes
SAVED = {  # the name here, and the picture that the library saved
    "confusion_matrix.png": "reports/model-2/confusion_matrix.png",
    "learning_curves.png": "reports/model-2/learning_curves.png",
    "misclassified.jpg": "reports/model-2/mistakes.png",
    "comparison.png": "reports/comparison.png",
}
PAGE = """<!doctype html><meta charset="utf-8">
<body style="font: 15px sans-serif; margin: 16px; width: max-content">"""


def plan_page() -> str:
    """Return the plan of Model 3, as a notebook shows it, as a page."""
    backbone = keras.applications.MobileNetV2(
        alpha=0.5, include_top=False, input_shape=(224, 224, 3), weights=None
    )
    return PAGE + ftk.FineTuneSpec(trainable_blocks=2).plan(backbone)._repr_html_()


def screenshot(page: Path, width: int, height: int) -> Image.Image:
    """Return what a browser shows of a page, without empty borders."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        raise FileNotFoundError("Chromium or Google Chrome must be installed")
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "page.png"
        command = [browser, "--headless=new", "--no-sandbox", "--hide-scrollbars"]
        size = f"--window-size={width},{height}"
        url = page.absolute().as_uri()
        subprocess.run([*command, size, f"--screenshot={target}", url], check=True)
        return trimmed(Image.open(target).convert("RGB"))


def trimmed(picture: Image.Image, margin: int = 12) -> Image.Image:
    """Cut off the white border of a picture, except for a margin."""
    left, top, right, bottom = picture.convert("L").point(lambda v: 255 * (v < 250)).getbbox()
    return picture.crop(
        (
            max(0, left - margin),
            max(0, top - margin),
            min(picture.width, right + margin),
            min(picture.height, bottom + margin),
        )
    )


def save(name: str, picture: Image.Image) -> None:
    """Write a picture, and make it smaller until its file is small enough."""
    picture = picture.convert("RGB")
    while True:
        buffer = io.BytesIO()
        if name.endswith(".jpg"):
            picture.save(buffer, "JPEG", quality=85)
        else:
            picture.quantize(256).save(buffer, "PNG", optimize=True)
        if buffer.tell() < LIMIT:
            break
        picture = picture.resize((picture.width * 9 // 10, picture.height * 9 // 10))
    (IMAGES / name).write_bytes(buffer.getvalue())


def main(example: Path) -> None:
    """Make all pictures from what the example wrote."""
    for name, file in SAVED.items():
        save(name, Image.open(example / file))
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "plan.html"
        page.write_text(plan_page(), encoding="utf-8")
        save("plan.png", screenshot(page, 1000, 800))
    report = example / "reports" / "model-2" / "report.html"
    save("report.png", screenshot(report, 1200, 960))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
