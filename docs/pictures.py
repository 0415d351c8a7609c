"""Make the pictures of the landing page and the README: `docs/images/*.png`.

    python docs/pictures.py

Runs the chest X-ray example on synthetic images and takes the pictures that the library saves.
Chromium renders the plan and the report page. The figures of the speed are drawn by
`performance_chart.py`.
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

DOCS = Path(__file__).parent
LIMIT = 300_000  # bytes
MODEL = "model-2"
SAVED = {  # the name here: the file that the example wrote
    "confusion_matrix": f"reports/{MODEL}/confusion_matrix.png",
    "learning_curves": f"reports/{MODEL}/learning_curves.png",
    "misclassified": f"reports/{MODEL}/mistakes.png",
    "comparison": "reports/comparison.png",
}
PAGE = """<!doctype html><meta charset="utf-8">
<body style="font: 15px sans-serif; margin: 16px; width: max-content">"""


def run_example(out: Path) -> None:
    """Train and evaluate Models 1 to 3 of the study."""
    example = DOCS.parent / "examples" / "chest_xray" / "run.py"
    subprocess.run([sys.executable, example, "--out", out, "--verbose", "0"], check=True)


def plan_page() -> str:
    """Return the plan of Model 3 as a notebook shows it."""
    backbone = keras.applications.MobileNetV2(
        alpha=0.5, include_top=False, input_shape=(224, 224, 3), weights=None
    )
    return PAGE + ftk.FineTuneSpec(trainable_blocks=2).plan(backbone)._repr_html_()


def screenshot(page: Path, width: int, height: int) -> Image.Image:
    """Return what a browser shows of a page, without the empty space below."""
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
    """Write a picture, in fewer colors and then smaller until it is small enough."""
    picture = picture.convert("RGB")
    while True:
        buffer = io.BytesIO()
        picture.quantize(256).save(buffer, "PNG", optimize=True)
        if buffer.tell() < LIMIT:
            break
        picture = picture.resize((picture.width * 9 // 10, picture.height * 9 // 10))
    (DOCS / "images" / f"{name}.png").write_bytes(buffer.getvalue())


def main() -> None:
    """Make all pictures."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        run_example(out)
        for name, file in SAVED.items():
            save(name, Image.open(out / file))
        plan = out / "plan.html"
        plan.write_text(plan_page(), encoding="utf-8")
        save("plan", screenshot(plan, 1000, 800))
        save("report", screenshot(out / "reports" / MODEL / "report.html", 1200, 1100))


if __name__ == "__main__":
    main()
