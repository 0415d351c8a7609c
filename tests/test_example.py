"""The chest X-ray example: the study's numbers, the phantoms, and bad input answered in words."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import keras
import numpy as np
import phantoms
import pytest
import run
from PIL import Image

import finetune_kit as ftk

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Eight phantoms a class, 64 x 64."""
    folder = tmp_path_factory.mktemp("phantoms") / "data"
    return phantoms.write_phantoms(
        folder, images_per_class=dict.fromkeys(phantoms.CLASSES, 8), size=64
    )


def test_phantoms_have_the_layout_of_the_database(drawn):
    images = ftk.read_image_folder(drawn)
    assert images.class_names == ("COVID", "Lung_Opacity", "Normal", "Viral Pneumonia")
    assert np.bincount(images.labels).tolist() == [8] * 4
    assert len(list(drawn.glob("*/masks/*.png"))) == 32
    assert not any(Path(path).parent.name == "masks" for path in images.paths)


def test_phantoms_are_drawn_from_their_seed(drawn, tmp_path):
    few = {"Normal": 2}
    again = phantoms.write_phantoms(tmp_path / "a", images_per_class=few, size=64)
    other = phantoms.write_phantoms(tmp_path / "b", images_per_class=few, size=64, seed=1)
    name = "Normal/images/Normal-2.png"
    assert (again / name).read_bytes() == (drawn / name).read_bytes()
    assert (other / name).read_bytes() != (drawn / name).read_bytes()


def test_phantoms_are_kept_and_other_files_never_overwritten(drawn, tmp_path):
    counts = dict.fromkeys(phantoms.CLASSES, 8)
    assert phantoms.write_phantoms(drawn, images_per_class=counts, size=64) == drawn
    with pytest.raises(FileExistsError, match="'seed': 1"):
        phantoms.write_phantoms(drawn, images_per_class=counts, size=64, seed=1)
    (tmp_path / "mine").mkdir()
    with pytest.raises(FileExistsError, match="other files"):
        phantoms.write_phantoms(tmp_path / "mine")


@pytest.mark.parametrize(
    ("blocks", "trainable"), [(0, 64_753_156), (1, 64_753_156 + 204_800 + 2 * 1280)]
)
def test_the_models_of_the_study_have_its_parameters(blocks, trainable):
    recipe = run.recipe("study")
    backbone = run.load_backbone("none", 224, may_do_without=False)
    head = ftk.classification_head(4, units=(1024, 512), pooling=recipe.pooling)
    spec = ftk.FineTuneSpec(blocks, batch_norm=recipe.batch_norm)
    model = spec.build(backbone, head, preprocessing=recipe.preprocessing)
    assert sum(int(np.prod(w.shape)) for w in model.trainable_weights) == trainable
    assert model.count_params() == 65_459_380


def test_the_pixels_of_the_study_are_bgr_from_0_to_1():
    rgb = np.array([[[[255.0, 51.0, 0.0]]]], "float32")
    bgr = keras.ops.convert_to_numpy(run.recipe("study").preprocessing(rgb))
    assert np.allclose(bgr, [[[[0.0, 0.2, 1.0]]]])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Raw pixels from 0 to 255")  # so did the study
@pytest.mark.parametrize("recipe", ["study", "recommended"])
def test_the_example_runs_and_writes_what_it_promises(recipe, drawn, tmp_path, capsys):
    arguments = (
        f"--weights none --epochs 1 --image-size 32 --batch-size 8 --recipe {recipe} --limit 28"
    )
    assert (
        run.main(
            ["--data", str(drawn), "--out", str(tmp_path), "--verbose", "0", *arguments.split()]
        )
        == 0
    )
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["backend"] == keras.backend.backend()
    assert results["recipe"] == recipe
    assert results["data"]["classes"] == dict.fromkeys(phantoms.CLASSES, 7)
    assert sum(results["data"]["split"].values()) == 28
    images, split = ftk.read_manifest(tmp_path / "manifest.csv")
    assert images.manifest == results["data"]["manifest"]
    assert (len(images), len(split.test)) == (28, results["data"]["split"]["test"])
    assert results["duplicates"]["clusters"] == []
    assert [m["trainable_blocks"] for m in results["models"]] == [0, 1, 2]
    params = [m["trainable_params"] for m in results["models"]]
    assert params == sorted(params)
    for number, model in enumerate(results["models"], start=1):
        assert model["name"] == f"Model {number}"
        assert {"loss", "accuracy", "val_loss", "val_accuracy", "epoch"} <= set(model["history"])
        assert np.sum(model["test"]["confusion_matrix"]) == results["data"]["split"]["test"]
        assert set(model["test"]["per_class"]) == set(phantoms.CLASSES)
        assert {"build", "prefix", "fit", "evaluate"} <= set(model["seconds"])
        loaded = keras.models.load_model(tmp_path / "models" / f"model-{number}.keras")
        assert loaded.predict(np.zeros((1, 32, 32, 3), np.uint8), verbose=0).shape == (1, 4)
        folder = tmp_path / "reports" / f"model-{number}"
        assert (folder / "confusion_matrix.png").is_file()
        assert f"<h1>Model {number}</h1>" in (folder / "report.html").read_text()
    compared = json.loads((tmp_path / "reports" / "comparison.json").read_text())
    assert [pair["second"] for pair in compared["differences"]] == [f"Model {n}" for n in (2, 3, 3)]
    printed = capsys.readouterr().out
    assert re.search(r"Model 1 +[\d,]+ +0\.\d{3} +0\.\d{3}", printed)
    assert re.search(r"in the study +0\.74 +0\.64 +0\.87 +0\.67 +0\.80 +0\.20", printed)


def test_copies_are_told_and_kept_on_one_side(drawn, tmp_path, capsys):
    folder = shutil.copytree(drawn, tmp_path / "data")
    for name in phantoms.CLASSES:
        film = folder / name / "images" / f"{name}-1.png"
        shutil.copy(film, film.with_name("copy.png"))
        Image.open(film).save(film.with_name("again.jpg"), quality=80)
    images = ftk.read_image_folder(folder)
    crossed = 0
    for seed in range(3):
        _, _, told = run.split_by_cluster(images, seed)
        assert len(told["clusters"]) == 4
        assert set(told["clusters"][0]) == {"COVID-1.png", "again.jpg", "copy.png"}
        assert told["pairs"] == {"bytes": 4, "pixels": 0, "near": 4}
        assert told["cross_this_split"] == 0
        crossed += told["would_cross_a_split_by_class"]
    assert crossed > 0
    assert "4 clusters of 12 images" in capsys.readouterr().out


def test_a_sample_of_the_real_xrays_has_their_shares(xrays):
    images = ftk.read_image_folder(xrays)
    counts = np.bincount(images.labels[run.sample(images, 379, seed=0)])
    assert abs(counts - np.array([904, 2548, 336]) / 3788 * 379).max() < 1


def test_the_test_supports_are_those_of_the_study(xrays):
    images = ftk.read_image_folder(xrays)
    support = np.bincount(images.labels[ftk.stratified_split(images.labels).test])
    assert support[0] in (135, 136)
    assert support[1] in (382, 383)
    assert support[2] in (50, 51)


def no_network(*_, **__):
    raise Exception("URL fetch failure on https://storage.example: None -- unreachable")


def test_without_network_the_phantoms_go_on_and_real_data_do_not(monkeypatch, capsys):
    build = keras.applications.MobileNetV2
    monkeypatch.setattr(
        keras.applications,
        "MobileNetV2",
        lambda weights, **shape: no_network() if weights else build(weights=None, **shape),
    )
    backbone = run.load_backbone("imagenet", 32, may_do_without=True)
    assert backbone.input_shape == (None, 32, 32, 3)
    assert capsys.readouterr().out.count("\n") == 1
    with pytest.raises(ValueError, match=r"copy its ~/\.keras/models"):
        run.load_backbone("imagenet", 32, may_do_without=False)


def test_real_weights_are_loaded_from_a_file(imagenet_weights):
    backbone = run.load_backbone(str(imagenet_weights), 96, may_do_without=False)
    assert float(np.abs(backbone.get_weights()[0]).sum()) > 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("--data nowhere", "does not exist"),
        ("--data {drawn}/COVID/images", "one folder a class"),
        ("--data {drawn} --weights nothing.h5", "'imagenet', 'none' or a file"),
        ("--data {drawn} --weights {drawn}/README.md.txt", "does not fit"),
        ("--data {drawn} --weights none --epochs 0", "`epochs`"),
        ("--data {drawn} --weights none --models 99 --image-size 32", "between 0 and 19"),
        ("--data {drawn} --weights none --limit 4", "at least 3 samples"),
    ],
)
def test_bad_input_is_answered_in_words(arguments, says, drawn, tmp_path, capsys):
    filled = [part.format(drawn=drawn) for part in arguments.split()]
    assert run.main([*filled, "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert says in error


@pytest.mark.slow
def test_the_code_of_the_readme_runs(imagenet_weights, tmp_path, monkeypatch):
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    counts = dict.fromkeys(phantoms.CLASSES, 6)
    phantoms.write_phantoms(tmp_path / "COVID-19_Radiography_Dataset", images_per_class=counts)
    build = keras.applications.MobileNetV2
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        keras.applications,
        "MobileNetV2",
        lambda **shape: build(weights=str(imagenet_weights), **shape),
    )
    exec(code.replace("epochs=20", "epochs=1"), {})  # the README's own code, with one epoch
    assert (tmp_path / "model.keras").is_file()
    assert (tmp_path / "report" / "report.json").is_file()
