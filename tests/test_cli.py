"""The command line: each command does what its function does, and says what is wrong."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
from image_files import png, write
from typer.testing import CliRunner

import finetune_kit as ftk
from finetune_kit._cli.app import app
from finetune_kit._train import trials

once = pytest.mark.once
BACKBONE = "MobileNetV2:alpha=0.35,weights=none"
SMALL = ["--backbone", BACKBONE, "--image-size", "32", "--quiet"]
RUN = [*SMALL, "--heat-maps", "0"]


def run(*args: object, code: int = 0, stdin: bytes | None = None):
    """Run a command in this process, and check how it ends."""
    result = CliRunner().invoke(app, [str(arg) for arg in args], input=stdin)
    assert result.exit_code == code, result.output + repr(result.exception)
    return result


def pictures(root: Path, count: int, seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    for i in range(count):
        tone = np.array([200, 60, 60]) if i % 2 else np.array([60, 60, 200])
        pixels = (tone + rng.integers(-50, 50, (32, 32, 3))).astype(np.uint8)
        write(root / ("red" if i % 2 else "blue") / f"p{i // 4}_{i}.png", pixels)
    return root


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    return pictures(tmp_path_factory.mktemp("photos"), 40)


@pytest.fixture(scope="module")
def trained(photos, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    run("train", photos, "--out", out, *RUN, "--epochs", "2")
    return out


@pytest.fixture
def quick(monkeypatch):
    """One candidate for one epoch, where other candidates would show nothing more."""
    monkeypatch.setattr(trials, "_FAST", ((0.1, 3e-4),))
    monkeypatch.setattr(trials, "_EPOCHS", 1)


def test_train_leaves_a_model_a_report_a_manifest_and_its_options(trained, photos):
    assert {p.name for p in trained.iterdir()} == {
        "checkpoints", "config.json", "manifest.csv", "model.keras", "report"
    }  # fmt: skip
    sets = ftk.read_manifest(trained / "manifest.csv")
    assert {name: len(images) for name, images in sets.items()} == {
        "train": 28, "validation": 6, "test": 6
    }  # fmt: skip
    predictions = ftk.predict(trained / "model.keras", sets["test"])
    assert predictions.class_names == ("blue", "red")
    report = json.loads((trained / "report" / "report.json").read_text())
    labels = [p.label for p in predictions]
    truth = [sets["test"].class_names[i] for i in sets["test"].labels]
    accuracy = np.mean([a == b for a, b in zip(labels, truth, strict=True)])
    assert report["metrics"]["accuracy"]["value"] == pytest.approx(accuracy)
    assert report["about"]["data"]["manifest"] == sets["test"].manifest


@once
def test_the_same_command_again_returns_the_same_result(trained, photos):
    before = (
        (trained / "manifest.csv").read_bytes(),
        ftk.predict(trained / "model.keras", photos).probabilities,
    )
    run("train", photos, "--out", trained, *RUN, "--epochs", "2")
    assert (trained / "manifest.csv").read_bytes() == before[0]
    after = ftk.predict(trained / "model.keras", photos).probabilities
    np.testing.assert_array_equal(after, before[1])


@once
def test_a_recommended_recipe_is_found_once(quick, photos, tmp_path, monkeypatch):
    options = [option for option in RUN if option != "--quiet"]
    command = ("train", photos, "--out", tmp_path / "run", *options)
    done = run(*command)
    assert "the head alone" in done.output
    assert "Recommended is" in done.output
    for file in ("report/report.html", "report/report.json", "report/model_card.md"):
        assert "Recommended is" in (tmp_path / "run" / file).read_text(encoding="utf-8")
    assert {p.name for p in (tmp_path / "run").iterdir()} == {
        "checkpoints", "config.json", "manifest.csv", "model.keras", "recommendation.txt", "report"
    }  # fmt: skip
    assert not (tmp_path / "run" / "checkpoints" / "features").exists()
    before = ftk.predict(tmp_path / "run" / "model.keras", photos).probabilities
    monkeypatch.setattr(ftk, "recommend", None)  # the same command does not try them again
    assert "Recommended is" in run(*command).output
    after = ftk.predict(tmp_path / "run" / "model.keras", photos).probabilities
    np.testing.assert_array_equal(after, before)


@once
def test_copies_of_a_training_image_are_in_one_fold(quick, photos, tmp_path, monkeypatch):
    """A recipe is validated by folds of the training images, so none of them is left out."""
    images, found = pictures(tmp_path / "photos", 24, seed=2), []
    for i, file in enumerate(sorted(images.rglob("*.png"))[::4]):
        (file.parent / f"copy{i}.png").write_bytes(file.read_bytes())

    def noted(backbone, train, validation, **options):
        found.append((train, validation))
        return recommend(backbone, train, validation, **options)

    recommend = ftk.recommend
    monkeypatch.setattr(ftk, "recommend", noted)
    run("train", images, "--out", tmp_path / "a", *RUN)
    sets = ftk.read_manifest(tmp_path / "a" / "manifest.csv")
    assert {*sets} == {"train", "test"}
    (train, validation), digests = found[0], sets["train"].digests()
    assert train.digests() == digests
    assert validation is None
    assert len(set(digests)) == len(set(train.groups)) < len(digests)
    run("train", photos, "--out", tmp_path / "b", *RUN, "--sizes", "0.6,0.2,0.2")
    assert len(found[1][1]) == 8


@once
def test_a_config_reproduces_a_run_in_another_folder(trained, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run("train", "--config", trained / "config.json", "--out", "again", "--json")
    values = json.loads(result.stdout)
    assert values["model"] == str(Path("again") / "model.keras")
    one, other = (ftk.predict(p, photos) for p in (trained / "model.keras", values["model"]))
    np.testing.assert_allclose(one.probabilities, other.probabilities, rtol=1e-4, atol=1e-6)
    there, here = (json.loads((p / "config.json").read_text()) for p in (trained, Path("again")))
    assert {**there, "out": 0} == {**here, "out": 0}


@once
def test_options_override_a_config(trained, tmp_path):
    config = trained / "config.json"
    run("train", "--config", config, "--out", tmp_path / "x", "--seed", "3", "--blocks", "1")
    written = json.loads((tmp_path / "x" / "config.json").read_text())
    assert (written["seed"], written["blocks"], written["epochs"]) == (3, "1", 2)


@once
def test_a_trained_model_is_trained_further(trained, photos, tmp_path):
    model = trained / "model.keras"
    options = ["--backbone", model, "--blocks", "1", "--epochs", "1", "--quiet"]
    run("train", photos, "--out", tmp_path / "more", *options)
    other = pictures(tmp_path / "other", 16, seed=1)
    (other / "red").rename(other / "crimson")
    result = run("train", other, "--out", tmp_path / "no", *options, code=2)
    assert "--new-head must be given if the classes change" in result.stderr
    run("train", other, "--out", tmp_path / "new", *options, "--new-head")
    assert ftk.predict(tmp_path / "new" / "model.keras", other).class_names == ("blue", "crimson")


@once
def test_a_trained_model_keeps_its_head_by_default(trained, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(ftk, "recommend", None)
    options = ["--backbone", trained / "model.keras", "--heat-maps", "0", "--patience", "1"]
    done = run("train", photos, "--out", tmp_path / "more", *options)
    assert "Phase 2 of 2: the head and 2 blocks, 10 epochs" in done.output


@once
def test_parts_that_are_there_stay(tmp_path):
    for part, count in (("train", 16), ("val", 4), ("test", 8)):
        pictures(tmp_path / "split" / part, count, seed=count)
    run("train", tmp_path / "split", "--out", tmp_path / "run", *RUN, "--recipe", "probe")
    sets = ftk.read_manifest(tmp_path / "run" / "manifest.csv")
    assert {name: len(images) for name, images in sets.items()} == {
        "train": 16, "validation": 4, "test": 8
    }  # fmt: skip


@once
@pytest.mark.filterwarnings("default:Copies of an image")
def test_a_test_folder_is_not_trained_on(photos, tmp_path):
    test = pictures(tmp_path / "test", 8, seed=9)
    copied = next(photos.rglob("*.png"))
    (test / copied.parent.name / "copy.png").write_bytes(copied.read_bytes())
    loud = [option for option in RUN if option != "--quiet"]
    result = run("train", photos, "--test", test, "--out", tmp_path / "run", *loud, "--epochs", "2")
    assert (
        "warning: Copies of an image lie in more than one of the given sets (1 c" in result.stderr
    )
    assert "49 images: " in result.stdout
    assert "Phase 1 of 2: the head, 1 epoch, learning rate 0.001\n" in result.stdout
    assert "Phase 2 of 2: the head and 2 blocks, 1 epoch, learning rate 0.0001\n" in result.stdout
    sets = ftk.read_manifest(tmp_path / "run" / "manifest.csv")
    assert sorted(sets["test"].digests()) == sorted(ftk.read_image_folder(test).digests())
    assert len(sets["train"]) + len(sets["validation"]) == 40


@once
def test_split_writes_a_manifest_that_train_reads(photos, tmp_path):
    manifest = tmp_path / "manifest.csv"
    values = json.loads(
        run("split", photos, "--out", manifest, "--groups-from", r"(p\d+)_", "--json").stdout
    )
    assert sum(values["images"].values()) == 40
    sets = ftk.read_manifest(manifest)
    groups = [set(images.groups) for images in sets.values()]
    assert not groups[0] & groups[1] | groups[0] & groups[2] | groups[1] & groups[2]
    run("train", manifest, "--out", tmp_path / "run", *RUN, "--recipe", "probe", "--epochs", "1")
    assert ftk.read_manifest(tmp_path / "run" / "manifest.csv")["test"].manifest


@once
def test_a_table_and_an_archive_are_data(photos, tmp_path):
    rows = [(str(p), p.parent.name) for p in sorted(photos.rglob("*.png"))]
    with open(tmp_path / "images.csv", "w", newline="") as file:
        csv.writer(file).writerows([("file", "color"), *rows])
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for path, label in rows:
            archive.write(path, f"{label}/{Path(path).name}")
    table = ["images.csv", "--path-column", "file", "--label-column", "color"]
    for number, data in enumerate((table, ["images.zip"])):
        out = tmp_path / f"{number}.json"
        run("split", tmp_path / data[0], *data[1:], "--out", out)
    one, other = (ftk.read_manifest(tmp_path / f"{n}.json") for n in (0, 1))
    assert one["test"].manifest == other["test"].manifest


@once
def test_sweep_trains_a_model_for_each_depth_and_compares_them(photos, tmp_path):
    out = tmp_path / "depth"
    values = json.loads(
        run(
            "sweep", photos, "--out", out, "--blocks", "0,1", "--epochs", "1", *RUN, "--json"
        ).stdout
    )
    assert [m["trainable_blocks"] for m in values["models"]] == [0, 1]
    assert Path(values["comparison"]).is_file()
    for depth in (0, 1):
        assert (out / f"blocks-{depth}" / "model.keras").is_file()
        assert (out / f"blocks-{depth}" / "report" / "report.html").is_file()


def test_predict_gives_what_the_function_gives(trained, photos, tmp_path):
    expected = ftk.predict(trained / "model.keras", photos)
    text = run("predict", trained / "model.keras", photos, "--csv", tmp_path / "p.csv").stdout
    assert text == f"{expected}\n"
    assert (tmp_path / "p.csv").read_text() == expected.to_csv(tmp_path / "q.csv").read_text()
    values = json.loads(run("predict", trained / "model.keras", photos, "--json").stdout)
    assert [p["labels"] for p in values["predictions"]] == [[p.label] for p in expected]


def test_predict_reads_an_image_from_a_pipe(trained, photos):
    content = next(photos.rglob("*.png")).read_bytes()
    values = json.loads(
        run("predict", trained / "model.keras", "-", "--json", stdin=content).stdout
    )
    assert values["predictions"][0]["labels"] in (["blue"], ["red"])


@once
def test_predict_reads_several_folders(trained, photos):
    result = run("predict", trained / "model.keras", photos / "red", photos / "blue", "--json")
    paths = [each["path"] for each in json.loads(result.stdout)["predictions"]]
    assert len(paths) == 40
    assert paths == [
        str(path) for name in ("red", "blue") for path in sorted((photos / name).iterdir())
    ]


def test_predict_ends_with_1_if_an_image_cannot_be_read(trained, photos, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"bad")
    good = next(photos.rglob("*.png"))
    result = run("predict", trained / "model.keras", good, tmp_path / "bad.png", "--json", code=1)
    first, second = json.loads(result.stdout)["predictions"]
    assert first["labels"]
    assert second["error"] == "is not an image"
    assert "error: " not in result.stderr


def test_evaluate_gives_what_the_function_gives(trained, photos, tmp_path):
    report = ftk.evaluate(trained / "model.keras", ftk.read_image_folder(photos))
    result = run("evaluate", trained / "model.keras", photos, "--out", tmp_path / "r", "--json")
    assert json.loads(result.stdout)["metrics"] == report.to_dict()["metrics"]
    assert (tmp_path / "r" / "report.html").is_file()
    test = run("evaluate", trained / "model.keras", trained / "manifest.csv", "--json")
    assert json.loads(test.stdout)["images"] == 6  # not those that it was trained on
    assert any("training images" in text for text in json.loads(result.stdout)["cautions"])


@once
def test_evaluate_computes_the_frozen_part_once_for_each_image(trained, photos, tmp_path):
    model, kept = trained / "model.keras", tmp_path / "kept"
    expected = json.loads(run("evaluate", model, photos, "--json").stdout)["metrics"]
    for _ in range(2):
        found = json.loads(run("evaluate", model, photos, "--features", kept, "--json").stdout)
        accuracy = found["metrics"]["accuracy"]["value"]
        assert accuracy == pytest.approx(expected["accuracy"]["value"])
        (entry,) = ftk.FeatureCache(kept).entries()
        assert entry.images == len(ftk.read_image_folder(photos))


@once
def test_mirror_images_are_an_option(trained, photos):
    model = trained / "model.keras"
    report = json.loads(run("evaluate", model, photos, "--flip", "--json").stdout)
    assert report["about"]["model"]["flip"] is True
    assert "each with its mirror image" in run("evaluate", model, photos, "--flip").stdout
    assert "and its mirror image" in run("predict", model, photos / "red", "--flip").stdout
    found = json.loads(run("predict", model, photos / "red", "--flip", "--json").stdout)
    expected = ftk.predict(model, photos / "red", flip=True)
    assert found["flip"] is True
    shown = [each["probabilities"] for each in found["predictions"]]
    for one, other in zip(shown, expected, strict=True):
        assert one == pytest.approx(dict(other.probabilities), abs=1e-6)


def test_plan_prints_the_plan_without_weights(tmp_path, trained):
    text = run("plan", "MobileNetV2:alpha=0.5", "--blocks", "2").stdout
    backbone = keras.applications.MobileNetV2(
        alpha=0.5, include_top=False, weights=None, input_shape=(224, 224, 3)
    )
    assert text == f"{ftk.FineTuneSpec(2).plan(backbone)}\n"
    values = json.loads(run("plan", "mobilenetv2", "--blocks", "all", "--json").stdout)
    assert all(block["trains"] for block in values["blocks"])
    assert "block_16" in run("plan", trained / "model.keras", "--blocks", "1").stdout


@once
def test_the_result_alone_is_on_stdout_with_json(monkeypatch):
    build = keras.applications.MobileNetV2

    def downloads(**options):
        print("Downloading data from https://example.org")
        return build(**options)

    downloads.__name__ = "MobileNetV2"
    monkeypatch.setattr(keras.applications, "MobileNetV2", downloads)
    result = run("plan", "MobileNetV2", "--json")
    assert json.loads(result.stdout)["blocks"]
    assert "Downloading" in result.stderr


@once
def test_duplicates_lists_copies_across_sets(photos, tmp_path):
    file = next(photos.rglob("*.png"))
    for name in ("red", "blue"):
        write(
            tmp_path / name / "x.png",
            np.random.default_rng(5).integers(0, 256, (32, 32, 3), np.uint8),
        )
    (tmp_path / "red" / "copy.png").write_bytes(file.read_bytes())
    result = run("duplicates", photos, tmp_path, "--json")
    values = json.loads(result.stdout)
    clusters = values["clusters"]
    assert [str(file), str(tmp_path / "red" / "copy.png"), "bytes", 1.0] in values["pairs"]
    assert [str(file), str(tmp_path / "red" / "copy.png")] in clusters
    assert f"  bytes  1.00  {file}\n" in run("duplicates", photos, tmp_path).stdout


@once
def test_features_are_computed_for_a_later_training(photos, tmp_path):
    folder = tmp_path / "features"
    base = ["features", photos, "--to", folder, *SMALL, "--blocks", "0", "--json"]
    counts = [json.loads(run(*base, "--shard", f"{i}/2").stdout) for i in (0, 1)]
    assert sum(count["images"] for count in counts) == 40
    before = {entry.key: entry.images for entry in ftk.FeatureCache(folder).entries()}
    assert set(before.values()) == {40}
    options = ["--recipe", "probe", "--epochs", "1", "--features", folder]
    run("train", photos, "--out", tmp_path / "run", *RUN, *options)
    assert before == {e.key: e.images for e in ftk.FeatureCache(folder).entries()}


@once
def test_a_backend_of_the_features_must_be_one_of_keras(photos, tmp_path):
    result = run("features", photos, "--to", tmp_path, *SMALL, "--features-backend", "onnx", code=2)
    assert "`backend` must be one of" in result.stderr


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the exporters' own
def test_export_writes_a_file_of_another_runtime(trained, photos, tmp_path):
    if keras.backend.backend() == "jax":
        pytest.skip("Keras does not export ONNX from JAX")
    onnxruntime = pytest.importorskip("onnxruntime")
    run("export", trained / "model.keras", tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    images = ftk.read_image_folder(photos)
    inputs = {session.get_inputs()[0].name: images.load(size=(32, 32)).astype(np.float32)}
    np.testing.assert_allclose(
        session.run(None, inputs)[0],
        ftk.predict(trained / "model.keras", images).probabilities,
        atol=1e-4,
    )


@once
@pytest.mark.slow
def test_an_interrupted_training_resumes(photos, tmp_path):
    options = [*RUN, "--epochs", "60", "--patience", "99", "--recipe", "probe"]
    command = [
        sys.executable,
        "-m",
        "finetune_kit",
        "train",
        str(photos),
        "--out",
        str(tmp_path / "a"),
    ]
    process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    checkpoints = tmp_path / "a" / "checkpoints"
    while process.poll() is None and not list(checkpoints.glob("checkpoint-00000[3-9]*")):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    if process.returncode == 0:
        pytest.skip("the training ended before the interruption")
    assert process.returncode == 130
    assert "the same call resumes there" in errors.decode()
    assert not (tmp_path / "a" / "model.keras").exists()
    run("train", photos, "--out", tmp_path / "a", *options)
    run("train", photos, "--out", tmp_path / "b", *options)
    one, other = (ftk.predict(tmp_path / name / "model.keras", photos) for name in ("a", "b"))
    np.testing.assert_allclose(one.probabilities, other.probabilities, rtol=1e-4, atol=1e-6)


# ------------------------------------------------------------------ bad input


@pytest.fixture(scope="module")
def bad(tmp_path_factory, photos, trained) -> Path:
    """A folder of things that are not what a command expects."""
    root = tmp_path_factory.mktemp("bad")
    (root / "empty").mkdir()
    (root / "text.txt").write_text("text")
    (root / "broken.keras").write_bytes(b"broken")
    (root / "broken.zip").write_bytes(b"broken")
    (root / "broken.json").write_text("{")
    (root / "other.json").write_text("{}")
    (root / "empty.csv").write_text("")
    (root / "columns.csv").write_text("a,b\n1,2\n")
    (root / "missing.csv").write_text("path,label\nno.png,x\nno2.png,y\n")
    pictures(root / "damaged", 4)
    (root / "damaged" / "red" / "z.png").write_bytes(png(np.eye(9, dtype=np.uint8))[:40])
    pictures(root / "one", 20)
    for file in (root / "one" / "blue").iterdir():
        file.unlink()
    for color in ("blue", "green", "red"):
        for i in range(6):
            write(root / "three" / color / f"{i}.png", np.full((8, 8, 3), i, np.uint8))
    write(root / "unknown" / "green" / "1.png")
    write(root / "unknown" / "pink" / "1.png")
    for color in ("blue", "red"):
        write(root / "lost" / color / "1.png")
    ftk.write_manifest(root / "lost.json", train=ftk.read_image_folder(root / "lost"))
    (root / "lost" / "blue" / "1.png").unlink()
    layers = [keras.Input((8, 8, 3)), keras.layers.Flatten(), keras.layers.Dense(2)]
    keras.Sequential(layers).save(root / "plain.keras")
    (root / "full").mkdir()
    (root / "full" / "thesis.txt").write_text("mine")
    return root


TRAIN = "train {photos} --out {out}"
MODEL = "{run}/model.keras"
CASES = [
    ("train", "Missing argument"),
    ("train {photos}", "Missing option '--out'"),
    ("train {bad}/nowhere --out {out}", "which does not exist"),
    ("train {bad}/text.txt --out {out}", "is a file of another kind"),
    ("train {bad}/empty --out {out}", "one folder per class"),
    ("train {bad}/broken.zip --out {out}", "must be a zip archive"),
    ("train {bad}/damaged --out {out}", "z.png"),
    ("train {bad}/one --out {out}", "two classes or more"),
    ("train {bad}/empty.csv --out {out}", "must have the columns"),
    ("train {bad}/columns.csv --out {out}", "['a', 'b']"),
    ("train {bad}/missing.csv --out {out}", "No file was found"),
    ("train {bad}/broken.json --out {out}", "must be a manifest"),
    (TRAIN + " --backbone MobilNetV2", "did you mean MobileNetV2"),
    (TRAIN + " --backbone MobileNetV2:alpha", "NAME=VALUE"),
    (TRAIN + " --backbone MobileNetV2:depth=3,weights=none", "must fit keras.applications"),
    (TRAIN + " --backbone {bad}/no.keras", "which does not"),
    (TRAIN + " --backbone {bad}/broken.keras", "zip archive"),
    (TRAIN + " --backbone " + BACKBONE + " --blocks 99", "must be between 0 and 19"),
    (TRAIN + " --backbone " + BACKBONE + " --blocks block_99", "block_99"),
    (TRAIN + " --recipe magic", "Received: --recipe 'magic'"),
    (TRAIN + " --recipe recommend --blocks 3 --epochs 9", "Received: --blocks 3 --epochs 9"),
    (TRAIN + " --recipe recommend --units 9,8", "Received: --units 9,8"),
    (TRAIN + " --recipe recommend --class-weight balanced", "Received: --class-weight balanced"),
    (TRAIN + " --recipe probe --blocks 3", "leave out --blocks"),
    (TRAIN + " --epochs 1", "--recipe probe trains the head alone in one epoch. Received: --ep"),
    ("train {bad}/lost.json --out {out} --on-error skip", "1 of 2 files missing or changed"),
    (TRAIN + " --epochs 0", "greater than or equal to 1"),
    (TRAIN + " --learning-rate -1", "--learning-rate must be a number above 0"),
    (TRAIN + " --learning-rate 0", "--learning-rate must be a number above 0"),
    (TRAIN + " --dropout 2", "--dropout must be from 0 to below 1"),
    (TRAIN + " --units 10,x", "--units must be numbers separated by commas"),
    (TRAIN + " --sizes 0.5,0.5", "three shares"),
    (TRAIN + " --sizes 0.8,0.2,0", "must be above 0"),
    (TRAIN + " --groups-from (", "regular expression"),
    (TRAIN + " --class-weight heavy", "--class-weight must be one of ('balanced',)"),
    (TRAIN + " --on-error ignore", "--on-error must be one of"),
    (TRAIN + " --test {bad}/unknown", "green"),
    (TRAIN + " --config {bad}/no.json", "which does not"),
    (TRAIN + " --config {bad}/broken.json", "must be a JSON file"),
    (TRAIN + " --config {bad}/other.json", "that finetune-kit wrote"),
    (TRAIN + " --bloks 2", "No such option"),
    ("train {photos} --out {bad}/full", "holds other files"),
    (TRAIN + " --new-head", "--new-head must be given with a trained model alone"),
    ("sweep {photos} --out s3://bucket/run --backbone " + BACKBONE, "must be on this machine"),
    ("split {photos} --out s3://bucket/m.csv", "--out must be on this machine"),
    ("evaluate " + MODEL + " {photos} --out s3://bucket/r", "must be on this machine"),
    ("train {photos} --out {bad}/text.txt/x", "text.txt' is a file"),
    ("train {photos} --out {bad}/text.txt", "--out must be a folder"),
    (TRAIN + " --test {photos}", "of whose 40 images 40 are in them too"),
    (TRAIN + " --validation {photos}/blue/../../{photos.name}", "--validation must hold other"),
    (TRAIN + " --backbone {run}/model.keras --test {photos}", "--test must hold other images"),
    ("train {bad}/three --out {out} --backbone {run}/model.keras", "--new-head must be given"),
    ("train {bad}/missing.csv --out {out} --root {bad}/nowhere", "No file was found; pass --root"),
    ("train {photos} --out {run} --epochs 9", "epochs: 2 there, 9 now"),
    ("sweep {photos} --out {out} --blocks 1", "two or more"),
    ("sweep {photos} --out {out} --blocks 1,1", "two or more"),
    ("predict " + MODEL, "Missing argument"),
    ("predict {bad}/no.keras {photos}", "does not exist"),
    ("predict {bad}/broken.keras {photos}", "zip archive"),
    ("predict {bad}/plain.keras {photos}", "pass --class-names A,B,... in the order"),
    ("predict " + MODEL + " {bad}/nowhere", "IMAGE must be a file, a folder or a pattern"),
    ("predict " + MODEL + " {bad}/empty", "at least one image"),
    ("predict " + MODEL + " http://example.org/x.png", "on this machine"),
    ("predict " + MODEL + " {photos} --class-names a,b", "--class-names must be left out"),
    ("predict " + MODEL + " {photos} --threshold 3", "from 0 to 1"),
    ("predict " + MODEL + " {photos} --top 0", "greater than or equal to 1"),
    ("evaluate " + MODEL + " {bad}/unknown", "green"),
    ("evaluate {bad}/plain.keras {photos}", "probabilities"),
    ("plan Nothing", "keras.applications"),
    ("plan MobileNetV2 --blocks 99", "must be between 0 and 19"),
    ("plan MobileNetV2 --level atom", "--level must be one of"),
    ("plan MobileNetV2 --blocks -1", "--blocks"),
    ("duplicates {bad}/empty", "DATA must hold one folder per class"),
    ("duplicates {photos} --threshold 2", "--threshold must be from -1 to 1"),
    ("split {photos} --out {out}.txt", "--out must end in .json or .csv"),
    ("features {photos} --to {out} --shard x --backbone " + BACKBONE, "must be I/N"),
    ("features {photos} --to {out} --shard 2/2 --backbone " + BACKBONE, "--shard must be"),
    ("export " + MODEL + " {out}.docx", ".onnx, .tflite or .xml"),
    ("tarin {photos}", "No such command"),
]  # fmt: skip


def contents(*folders: Path) -> dict[str, int]:
    return {str(p): p.stat().st_size for f in folders for p in f.rglob("*") if p.is_file()}


@once
@pytest.mark.filterwarnings("ignore:.*one class only")
@pytest.mark.parametrize(("line", "text"), CASES, ids=[line for line, _ in CASES])
def test_bad_input_is_named_and_leaves_nothing_behind(line, text, photos, trained, bad, tmp_path):
    out = tmp_path / "out"
    places = {"photos": photos, "run": trained, "bad": bad, "out": out}
    before = contents(photos, trained, bad)
    args = [part.format(**places) for part in line.split()]
    if args[0] in ("train", "sweep") and "--backbone" not in args:
        args += ["--backbone", BACKBONE]  # nothing to download
    result = run(*args, code=2)
    assert text in " ".join(result.stderr.split()), result.stderr
    assert "Traceback" not in result.output
    assert contents(photos, trained, bad) == before
    left = {p.name for p in tmp_path.rglob("*") if p.is_file()}
    assert left <= {"config.json", "manifest.csv", "run.json"}  # which the next command replaces


def test_help_names_each_command_and_needs_no_backend():
    code = "import sys, finetune_kit._cli.app as cli; assert 'keras' not in sys.modules; cli.main()"
    env = {**os.environ, "KERAS_BACKEND": "none"}
    command = [sys.executable, "-c", code, "--help"]
    text = subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout
    for name in (
        "train",
        "sweep",
        "predict",
        "evaluate",
        "plan",
        "duplicates",
        "split",
        "export",
        "features",
        "serve",
    ):
        assert f"\n  {name} " in text
        assert "Example:" in run(name, "--help").stdout


def test_a_missing_backend_is_named_with_the_command_that_installs_it():
    names = ("tensorflow", "jax", "torch")
    missing = next((n for n in names if importlib.util.find_spec(n) is None), None)
    if missing is None:
        pytest.skip("all backends are installed")
    command = [sys.executable, "-m", "finetune_kit", "plan", "MobileNetV2"]
    env = {**os.environ, "KERAS_BACKEND": missing}
    result = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "pip install 'finetune-kit[" in result.stderr
    assert "Traceback" not in result.stderr


@once
def test_an_interruption_is_said_in_one_line(photos, monkeypatch):
    def stop(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(ftk, "find_duplicates", stop)
    assert run("duplicates", photos, code=130).stderr == "\ninterrupted\n"


@once
def test_warnings_are_one_line_on_stderr(tmp_path):
    pictures(tmp_path / "data", 8)
    for i in range(20):
        (tmp_path / "data" / "red" / f"{i}.txt").write_text("text")
    command = [sys.executable, "-m", "finetune_kit", "duplicates", str(tmp_path / "data")]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "\nwarning: Most files of these folders" in f"\n{result.stderr}"
    assert "warning" not in result.stdout


def test_version():
    assert run("--version").stdout == f"finetune-kit {ftk.__version__}\n"
    assert io.StringIO(run("--help").stdout).readline().startswith("Usage: finetune-kit")


@once
def test_a_command_that_failed_is_corrected_in_the_same_folder(photos, tmp_path):
    out = tmp_path / "out"
    layers = [keras.Input((32, 32, 3)), keras.layers.Conv2D(4, 3), keras.layers.Flatten()]
    keras.Sequential(layers).save(tmp_path / "flat.keras")
    run("train", photos, "--out", out, "--backbone", tmp_path / "flat.keras", code=2)
    run("train", photos, "--out", out, *RUN, "--recipe", "probe", "--epochs", "1")
    assert json.loads((out / "config.json").read_text())["backbone"] == BACKBONE
