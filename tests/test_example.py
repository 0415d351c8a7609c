"""The chest X-ray example: its phantoms, its numbers, its output, and its errors."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections import Counter
from pathlib import Path

import keras
import numpy as np
import phantoms
import pytest
import run
import study
import tables
import weights
from drawn import FILE
from PIL import Image

import finetune_kit as ftk

ROOT = Path(__file__).parents[1]
COUNTS = dict.fromkeys(phantoms.CLASSES, 8)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    """A folder of eight phantoms per class, 112 x 112 pixels."""
    folder = tmp_path_factory.mktemp("phantoms") / "data"
    return phantoms.write_phantoms(folder, images_per_class=COUNTS, size=112)


@pytest.fixture(scope="module")
def xray_images(xrays) -> ftk.ImageSet:
    """The real X-rays, read once."""
    return ftk.read_image_folder(xrays)


def test_phantoms_have_the_layout_of_the_database(drawn):
    images = ftk.read_image_folder(drawn)
    assert images.class_names == ("COVID", "Lung_Opacity", "Normal", "Viral Pneumonia")
    assert images.counts().tolist() == [8] * 4
    assert len(list(drawn.glob("*/masks/*.png"))) == 32
    assert {Path(path).parent.name for path in images.paths} == {"images"}


def test_a_phantom_depends_on_its_class_its_number_and_the_seed_alone(drawn, tmp_path):
    few = {"Normal": 2}
    same = phantoms.write_phantoms(tmp_path / "same", images_per_class=few, size=112)
    other = phantoms.write_phantoms(tmp_path / "other", images_per_class=few, size=112, seed=1)
    name = "Normal/images/Normal-2.png"
    assert (same / name).read_bytes() == (drawn / name).read_bytes()
    assert (other / name).read_bytes() != (drawn / name).read_bytes()


def test_phantoms_are_kept_and_other_files_are_never_overwritten(drawn, tmp_path):
    times = {file: file.stat().st_mtime_ns for file in drawn.rglob("*.png")}
    assert phantoms.write_phantoms(drawn, images_per_class=COUNTS, size=112) == drawn
    assert {file: file.stat().st_mtime_ns for file in drawn.rglob("*.png")} == times
    with pytest.raises(FileExistsError, match="'seed': 1"):
        phantoms.write_phantoms(drawn, images_per_class=COUNTS, size=112, seed=1)
    (tmp_path / "mine").mkdir()
    with pytest.raises(FileExistsError, match="other files"):
        phantoms.write_phantoms(tmp_path / "mine")


def test_only_planted_copies_of_phantoms_are_found(tmp_path):
    counts = dict.fromkeys(phantoms.CLASSES, 10)
    folder = phantoms.write_phantoms(tmp_path / "data", images_per_class=counts, copies=2)
    images = ftk.read_image_folder(folder)
    assert images.counts().tolist() == [12] * 4
    names = [Path(path).name for path in images.paths]
    found = ftk.find_duplicates(images)
    planted = json.loads((folder / "phantoms.json").read_text())["copies_of"]
    pairs = {frozenset(names[i] for i in pair[:2]) for pair in found.pairs}
    assert {pair for pair in planted.items() if frozenset(pair) not in pairs} == set()
    assert len(found.clusters) == len({original for original in planted.values()})


def test_the_models_of_the_study_have_its_number_of_parameters():
    recipe = run.recipe("study")
    backbone = run.load_backbone("random", 224)
    head = ftk.classification_head(4, units=(1024, 512), pooling=recipe.pooling)
    trainable = []
    for blocks in (0, 1):
        spec = ftk.FineTuneSpec(blocks, batch_norm=recipe.batch_norm)
        model = spec.build(backbone, head, preprocessing=recipe.preprocessing)
        trainable.append(sum(int(np.prod(w.shape)) for w in model.trainable_weights))
        assert model.count_params() == 65_459_380
    last_block = 204_800 + 2 * 1280  # its convolution, and scale and offset of its BatchNorm
    assert trainable == [64_753_156, 64_753_156 + last_block]


def test_the_study_divides_pixels_by_255_in_the_order_bgr():
    rgb = np.array([[[[255.0, 51.0, 0.0]]]], "float32")
    bgr = keras.ops.convert_to_numpy(run.recipe("study").preprocessing(rgb))
    assert np.allclose(bgr, [[[[0.0, 0.2, 1.0]]]])


def count_hashes(monkeypatch, files: list[Path]) -> Counter[str]:
    """Count how often each of the files is hashed from now on, as a file or by its content."""
    counts: Counter[str] = Counter()
    by_content = {file.read_bytes(): str(file) for file in files}
    file_digest, sha256 = hashlib.file_digest, hashlib.sha256

    def counted_file(file, *args, **kwargs):
        counts[file.name] += 1
        return file_digest(file, *args, **kwargs)

    def counted_bytes(data=b"", **kwargs):
        if bytes(data) in by_content:
            counts[by_content[bytes(data)]] += 1
        return sha256(data, **kwargs)

    monkeypatch.setattr(hashlib, "file_digest", counted_file)
    monkeypatch.setattr(hashlib, "sha256", counted_bytes)
    return counts


@pytest.mark.slow
def test_the_example_hashes_each_image_once_and_writes_its_results(
    build_small, drawn, tmp_path, monkeypatch, capsys
):
    """Read, search for duplicates, split, write a manifest, train and evaluate three models."""
    data, out = shutil.copytree(drawn, tmp_path / "data"), tmp_path / "out"
    files = sorted(data.glob("*/images/*.png"))
    hashes = count_hashes(monkeypatch, files)
    monkeypatch.setattr(run, "load_backbone", lambda *args, **options: build_small())
    options = f"--data {data} --out {out} --epochs 2 --batch-size 8 --verbose 0"
    assert run.main(options.split()) == 0
    assert hashes == {str(file): 1 for file in files}

    results = json.loads((out / "results.json").read_text())
    assert results["backend"] == keras.backend.backend()
    assert results["recipe"] == "recommended"
    assert results["data"]["classes"] == COUNTS
    assert results["duplicates"]["clusters"] == []
    sets = ftk.read_manifest(out / "manifest.csv")
    assert {name: len(images) for name, images in sets.items()} == results["data"]["split"]
    assert sum(results["data"]["split"].values()) == 32
    assert sets["test"].manifest == results["data"]["manifest"]

    assert [model["trainable_blocks"] for model in results["models"]] == [0, 1, 2]
    first, second, third = (model["trainable_params"] for model in results["models"])
    assert first < second < third
    for number, model in enumerate(results["models"], start=1):
        assert model["name"] == f"Model {number}"
        assert {"loss", "accuracy", "val_loss", "val_accuracy", "epoch"} <= set(model["history"])
        assert {"build", "prefix", "fit", "evaluate"} <= set(model["seconds"])
        test = model["test"]
        assert np.sum(test["confusion_matrix"]) == results["data"]["split"]["test"]
        assert test["per_class"].keys() == COUNTS.keys()
        assert test["metrics"]["accuracy"]["value"] == test["accuracy"]
        # The saved model is the evaluated one.
        loaded = keras.models.load_model(out / "models" / f"model-{number}.keras")
        predicted = loaded.predict(sets["test"].load(size=(32, 32)), verbose=0).argmax(axis=1)
        assert np.isclose(np.mean(predicted == sets["test"].labels), test["accuracy"])
        folder = out / "reports" / f"model-{number}"
        assert (folder / "confusion_matrix.png").is_file()
        assert f"<h1>Model {number}</h1>" in (folder / "report.html").read_text()
    compared = json.loads((out / "reports" / "comparison.json").read_text())
    assert [(pair["first"], pair["second"]) for pair in compared["differences"]] == [
        ("Model 1", "Model 2"),
        ("Model 1", "Model 3"),
        ("Model 2", "Model 3"),
    ]

    page = (out / "index.html").read_text()
    links = re.findall(r'(?:href|src)="([^"]+)"', page)
    assert {"reports/model-3/report.html", "models/model-1.keras", "duplicates.txt"} <= set(links)
    assert {"manifest.csv", "results.json", "reports/comparison.html"} <= set(links)
    assert all((out / link).is_file() for link in links)
    assert f"{results['models'][2]['test']['accuracy']:.3f}" in page
    assert "on 32 images" in page  # of --data, not phantoms

    printed = capsys.readouterr().out
    assert printed.rstrip().endswith(str(out / "index.html"))
    accuracy = f"{results['models'][0]['test']['accuracy']:.3f}"
    assert re.search(rf"Model 1 +{first:,} +{accuracy} +0\.\d{{3}}", printed)
    assert re.search(r"\n  study +0\.74 +0\.64 +0\.87 +0\.67 +0\.80 +0\.20\n", printed)
    assert re.search(r"Model 2 .*\n  study +- +- +- +- +- +-\n", printed)
    assert re.search(
        r"Computing the frozen part up to \w+, once for each of \d+ images:\n", printed
    )
    assert results["models"][2]["seconds"]["prefix_compute"] == 0  # not a second time


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*expects pixels from")  # the study divided them by 255
def test_the_study_s_recipe_trains_one_model_on_a_sample(drawn, tmp_path):
    options = "--weights random --recipe study --models 3 --limit 28 --epochs 1 --image-size 32"
    out = ["--out", str(tmp_path), "--verbose", "0"]
    assert run.main(["--data", str(drawn), *options.split(), *out]) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["data"]["classes"] == dict.fromkeys(phantoms.CLASSES, 7)
    [model] = results["models"]
    assert (model["name"], model["trainable_blocks"]) == ("Model 3", 2)
    # One position of 1,280 features, so the flattened head has as many as the pooled one; the last
    # two blocks train with their BatchNorm.
    head = 1280 * 1024 + 1024 + 1024 * 512 + 512 + 512 * 4 + 4
    backbone = keras.applications.MobileNetV2(
        alpha=0.5, include_top=False, weights=None, input_shape=(32, 32, 3)
    )
    plan = ftk.FineTuneSpec(2, batch_norm="train").plan(backbone)
    assert model["trainable_params"] == head + plan.trainable_params


def test_copies_are_found_and_kept_in_one_set(drawn, tmp_path, capsys):
    folder = shutil.copytree(drawn, tmp_path / "data")
    for name in phantoms.CLASSES:
        film = folder / name / "images" / f"{name}-1.png"
        shutil.copy(film, film.with_name("copy.png"))
        Image.open(film).save(film.with_name("again.jpg"), quality=80)
    images, listing = ftk.read_image_folder(folder), tmp_path / "duplicates.txt"
    sets, duplicates, found = run.split(images, seed=0, listing=listing)
    assert [set(cluster) for cluster in found["clusters"]] == [
        {f"{Path(cluster[0]).stem[:-2]}-1.png", "again.jpg", "copy.png"}
        for cluster in map(sorted, found["clusters"])
    ]
    assert len(found["clusters"]) == 4
    assert found["pairs"] == {"bytes": 4, "pixels": 0, "near": 4}
    assert found["would_cross_a_split_by_class"] == len(duplicates.crossing) > 0
    assert sum(map(len, sets)) == 40
    assert ftk.find_duplicates(*sets).crossing == ()
    assert (
        "4 clusters of copies, such as COVID-1.png, again.jpg, copy.png" in capsys.readouterr().out
    )
    assert len(listing.read_text().splitlines()) == 4


def test_a_sample_of_the_real_xrays_has_their_class_shares(xray_images):
    counts = run.sample(xray_images, 379, seed=0).counts()
    assert counts.sum() == 379
    assert abs(counts - np.array([904, 2548, 336]) / 3788 * 379).max() < 1
    assert run.sample(xray_images, 4000, seed=0) is xray_images


def test_a_test_set_of_the_real_xrays_has_the_supports_of_the_study(xray_images):
    _, _, test = xray_images.split()
    covid, normal, viral_pneumonia = test.counts()
    assert covid in (135, 136)
    assert normal in (382, 383)
    assert viral_pneumonia in (50, 51)


def test_phantoms_need_no_download_and_xrays_without_one_are_an_error(
    drawn, tmp_path, monkeypatch, capsys
):
    build = keras.applications.MobileNetV2

    def without_network(weights, **options):
        if weights is not None:
            raise Exception("URL fetch failure on https://storage.example: None -- unreachable")
        return build(weights=None, **options)

    monkeypatch.setattr(keras.applications, "MobileNetV2", without_network)
    assert run.parse([]).weights == study.parse([]).weights == "drawn"
    assert run.load_backbone("drawn", 32).input_shape == (None, 32, 32, 3)
    assert run.main(["--data", str(drawn), "--out", str(tmp_path)]) == 2
    printed = capsys.readouterr()
    assert "folder ~/.keras/models" in printed.err
    assert "--weights drawn" in printed.err
    assert "Searching" not in printed.out  # takes minutes on the whole database


def test_the_file_that_pretrain_writes_is_loaded():
    loaded, expected = (run.load_backbone(w, 32) for w in (str(FILE), "drawn"))
    assert all(map(np.array_equal, loaded.get_weights(), expected.get_weights()))


def test_the_table_fits_beside_the_plan():
    recalls = {name: {"recall": 0.5} for name in phantoms.CLASSES}
    scores = {"accuracy": 0.5, "macro_f1": 0.5, "per_class": recalls}
    model = {"name": "Model 1", "trainable_params": 64_958_196, "test": scores}
    assert max(map(len, run.table_beside_the_study([model], phantoms.CLASSES).splitlines())) <= 88


def test_ctrl_c_while_phantoms_are_drawn_is_no_traceback_and_leaves_nothing(
    tmp_path, monkeypatch, capsys
):
    write_one = phantoms._write_one

    def interrupted(*args):
        write_one(*args)
        if args[-1] == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(phantoms, "_write_one", interrupted)
    monkeypatch.setattr(phantoms, "COUNTS", {"Normal": 5})
    assert run.main(["--out", str(tmp_path)]) == 130
    assert capsys.readouterr().err == "\ninterrupted\n"
    assert list(tmp_path.iterdir()) == []


def test_a_weights_file_is_loaded(imagenet_weights):
    loaded, again = (run.load_backbone(str(imagenet_weights), 96) for _ in range(2))
    untrained = run.load_backbone("random", 96)
    first, second, third = (model.get_weights()[0] for model in (loaded, again, untrained))
    assert np.array_equal(first, second)
    assert not np.array_equal(first, third)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--data nowhere", "does not exist"),
        ("--data {drawn}/COVID/images", "one folder per class"),
        ("--data {drawn} --weights nothing.h5", "'drawn', 'imagenet', 'random' or a file"),
        ("--data {drawn} --weights {drawn}/README.md.txt", "does not fit"),
        ("--data {drawn} --out {drawn}/README.md.txt", "--out must be a folder"),
        ("--data {drawn} --weights random --epochs 0", "`epochs`"),
        ("--data {drawn} --weights random --models 99 --image-size 32", "between 0 and 19"),
        ("--data {drawn} --models 0", "--models must be numbers from 1 up"),
        ("--data {drawn} --limit 0", "--limit must be at least 1"),
        ("--data {drawn} --limit 4", "--limit must leave at least 3 images of each class"),
    ],
)
def test_an_error_in_the_input_is_printed_without_a_traceback(
    arguments, message, drawn, tmp_path, capsys
):
    filled = [part.format(drawn=drawn) for part in arguments.split()]
    assert run.main(["--out", str(tmp_path), *filled]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error


@pytest.mark.slow
def test_weights_are_compared_on_several_splits(build_small, drawn, tmp_path, monkeypatch):
    images = ftk.read_image_folder(drawn)
    features = {"gray thumbnails": None, "random weights": "random"}
    monkeypatch.setattr(weights, "FEATURES", features)
    monkeypatch.setattr(weights, "read_images", lambda *args: images)
    monkeypatch.setattr(weights, "load_backbone", lambda *args: build_small())
    assert weights.main(["--seeds", "0", "1", "--image-size", "32", "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "weights.json").read_text())["Phantoms"]
    assert list(found) == list(features)
    assert [run["seed"] for run in found["random weights"]] == [0, 1]
    accuracies = [run["accuracy"]["value"] for run in found["gray thumbnails"]]
    row = f"| gray thumbnails | {tables.mean_and_range(accuracies)} |"
    assert row in (tmp_path / "weights.md").read_text()
