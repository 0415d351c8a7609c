"""Predictions carry class names, and are those of the images as training decodes them."""

from __future__ import annotations

import csv
import io
import json
import shutil
import subprocess
import sys
import zipfile

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import finetune_kit as ftk


@pytest.fixture(scope="module")
def tuned(tune):
    return tune(ftk.FineTuneSpec(1, epochs=2, learning_rate=0.01))


@pytest.fixture(scope="module")
def saved(tuned, tmp_path_factory):
    return tuned.save(tmp_path_factory.mktemp("saved") / "model.keras")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images of other sizes, depths and modes than the model's, and files that are none."""
    folder = tmp_path_factory.mktemp("new")
    rng = np.random.default_rng(3)
    (folder / "deeper").mkdir()
    for i, shape in enumerate([(40, 60, 3), (70, 30, 3), (50, 50)]):
        Image.fromarray(rng.integers(0, 256, shape, np.uint8)).save(folder / f"{i}.png")
    Image.fromarray(rng.integers(0, 2**16, (33, 44), np.uint16)).save(folder / "deeper" / "3.png")
    (folder / "notes.txt").write_text("no image")
    return folder


def expected(tuned, folder):
    """Return what the model says to the pixels that training would see."""
    root = folder.parent / "root"
    shutil.copytree(folder, root / "any")
    images = ftk.read_image_folder(root, class_names=["any"])  # a made-up class
    size = tuned.model.input_shape[1:3]
    return tuned.model.predict(images.load(size=size), verbose=0)


def test_a_folder_is_predicted_as_training_decodes_it(tuned, folder):
    found = ftk.predict(tuned, folder)
    assert [p.removeprefix(f"{folder}/") for p in found.paths] == [
        "0.png", "1.png", "2.png", "deeper/3.png"]  # fmt: skip
    np.testing.assert_allclose(found.probabilities, expected(tuned, folder), atol=1e-5)
    for one, row in zip(found, found.probabilities, strict=True):
        assert one.labels == (one.label,) == (tuned.class_names[row.argmax()],)
        assert list(one.probabilities.values()) == sorted(row.tolist(), reverse=True)


def test_all_forms_of_the_same_images_agree(tuned, saved, folder, monkeypatch):
    paths = [folder / f"{i}.png" for i in range(3)]
    wanted = ftk.predict(tuned, paths).probabilities
    opened = [Image.open(path) for path in paths]
    forms = [
        (saved, [str(path) for path in paths]),
        (str(saved), tuple(paths)),
        (tuned, str(folder / "*.png")),
        (tuned, [io.BytesIO(path.read_bytes()) for path in paths]),
        (tuned, opened),
        (tuned, [np.asarray(image) for image in opened]),
        (tuned, [paths[0], opened[1], io.BytesIO(paths[2].read_bytes())]),
    ]
    for model, images in forms:
        np.testing.assert_allclose(ftk.predict(model, images).probabilities, wanted, atol=1e-5)
    for one, row in zip(paths, wanted, strict=True):
        with one.open("rb") as stream, Image.open(one) as image:
            for single in (one, image, np.asarray(image), stream):
                found = ftk.predict(tuned, single).probabilities[0]
                np.testing.assert_allclose(found, row, atol=1e-5)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(folder))
    assert ftk.predict(tuned, "0.png").paths == ("0.png",)
    assert ftk.predict(tuned, "~/0.png").paths == (str(folder / "0.png"),)


def test_deep_and_turned_pil_images_agree_with_their_files(tuned, folder, tmp_path):
    turned = Image.open(folder / "0.png")
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.png", exif=exif)
    for path in (folder / "deeper" / "3.png", tmp_path / "turned.png"):
        one, other = (ftk.predict(tuned, x).probabilities for x in (path, Image.open(path)))
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_image_sets_and_arrays(tuned, sets):
    *_, test = sets
    size = tuned.model.input_shape[1:3]
    wanted = tuned.model.predict(test.load(size=size), verbose=0)
    np.testing.assert_allclose(ftk.predict(tuned, test).probabilities, wanted, atol=1e-5)
    found = ftk.predict(tuned, test.load(size=size), batch_size=3)
    np.testing.assert_allclose(found.probabilities, wanted, atol=1e-5)
    assert ftk.evaluate(tuned, test).scores == pytest.approx(found.probabilities, abs=1e-5)


@given(st.integers(1, 7), st.integers(1, 9))
def test_the_size_of_the_batches_does_not_matter(tuned, sets, count, batch_size):
    x = sets[0].load(np.arange(count), tuned.model.input_shape[1:3])
    found = ftk.predict(tuned, x, batch_size=batch_size).probabilities
    np.testing.assert_allclose(found, ftk.predict(tuned, x).probabilities, atol=1e-5)


def test_unreadable_files_do_not_stop_the_rest(tuned, folder, tmp_path, caplog):
    broken = tmp_path / "broken.png"
    broken.write_bytes((folder / "0.png").read_bytes()[:200])
    images = [broken, folder / "0.png", tmp_path / "absent.png", folder / "notes.txt",
              io.BytesIO(b"nothing")]  # fmt: skip
    found = ftk.predict(tuned, images, batch_size=2)
    assert list(found.errors) == [0, 2, 3, 4]
    assert found.errors[2] == "does not exist"
    assert found.errors[4] == "is not an image"
    assert np.isnan(found.probabilities).all(axis=1).tolist() == [True, False, True, True, True]
    assert found[1].label in tuned.class_names
    assert found[0].labels == ()
    assert "4 of 5 images could not be read" in caplog.text
    assert "not readable" in str(found)
    assert repr(found) == "Predictions(5 images, 4 not readable)"
    alone = ftk.predict(tuned, folder / "0.png").probabilities
    np.testing.assert_allclose(found.probabilities[1], alone[0], atol=1e-5)


def test_tables_of_predictions(tuned, folder, tmp_path):
    found = ftk.predict(tuned, [*sorted(folder.glob("*.png")), folder / "<b>.png"], top=2)
    assert all(len(one.probabilities) == (0 if one.error else 2) for one in found)
    assert "<b>" not in found._repr_html_()
    text = found.to_csv(tmp_path / "new" / "out.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["path"] for row in rows] == list(found.paths)
    for row, one, scores in zip(rows, found, found.probabilities, strict=True):
        assert row["label"] == one.label
        assert row["error"] == (one.error or "")
        if not one.error:
            written = [float(row[f"probability {name}"]) for name in found.class_names]
            assert written == scores.tolist()
    many = ftk.predict(tuned, np.zeros((25, 8, 8, 3), np.uint8))
    assert str(many).endswith("... and 5 more images")
    assert many[-1] == many[24]
    with pytest.raises(IndexError, match="below 25"):
        many[25]


def test_frames_of_predictions(tuned, folder):
    pytest.importorskip("pandas", reason="pandas is not installed")
    frame = ftk.predict(tuned, folder).to_frame()
    assert frame.shape == (4, 3 + len(tuned.class_names))


def classifier(outputs, activation, flat=True):
    layer = keras.layers.Dense(outputs, activation=None if not flat else activation)
    last = [] if flat else [keras.layers.Activation(activation)]
    return keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Rescaling(1 / 255),
                             keras.layers.GlobalAveragePooling2D(), layer, *last])  # fmt: skip


@pytest.mark.parametrize("flat", [True, False])
def test_plain_models_with_class_names(flat):
    x = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), np.uint8)
    several = classifier(3, "sigmoid", flat)
    found = ftk.predict(several, x, class_names=["a", "b", "c"], threshold=0.45)
    assert found.multi_label
    for one, row in zip(found, several.predict(x, verbose=0), strict=True):
        assert set(one.labels) == {n for n, p in zip("abc", row, strict=True) if p >= 0.45}
    binary = classifier(1, "sigmoid", flat)
    found = ftk.predict(binary, x, class_names=["no", "yes"])
    assert not found.multi_label
    scores = binary.predict(x, verbose=0)[:, 0]
    np.testing.assert_allclose(found.probabilities[:, 1], scores, atol=1e-6)
    assert [one.label for one in found] == ["yes" if p > 0.5 else "no" for p in scores]
    assert not ftk.predict(
        classifier(3, "softmax", flat), x, class_names=["a", "b", "c"]
    ).multi_label


def test_saved_file_holds_its_facts_and_loads_with_keras_alone(tuned, saved, sets, tmp_path):
    with zipfile.ZipFile(saved) as archive:
        facts = json.loads(archive.read("finetune_kit.json"))
    assert facts["class_names"] == list(tuned.class_names)
    assert facts["multi_label"] is False
    assert facts["image_size"] == list(tuned.model.input_shape[1:3])
    assert facts["training"]["specs"][0]["trainable_blocks"] == 1
    x = sets[2].load(size=tuned.model.input_shape[1:3])
    np.save(tmp_path / "x.npy", x)
    code = (
        "import sys, keras, numpy as np; m = keras.saving.load_model(sys.argv[1]);"
        "np.save(sys.argv[3], m.predict(np.load(sys.argv[2]), verbose=0));"
        "sys.exit('finetune_kit' in sys.modules)"
    )
    files = [str(saved), str(tmp_path / "x.npy"), str(tmp_path / "y.npy")]
    assert subprocess.run([sys.executable, "-c", code, *files], check=False).returncode == 0
    wanted = tuned.model.predict(x, verbose=0)
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), wanted, atol=1e-5)
    shutil.copy(saved, tmp_path / "copy.keras")
    assert ftk.predict(tmp_path / "copy.keras", x).class_names == tuned.class_names


def test_multi_label_models_stay_multi_label(small_backbone, tmp_path):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (8, 32, 32, 3), np.uint8)
    images = ftk.ImageSet.from_arrays(x, rng.integers(0, 2, (8, 3)) | np.eye(8, 3, dtype=int),
                                      ["a", "b", "c"])  # fmt: skip
    head = ftk.classification_head(3, multi_label=True)
    tuned = ftk.fine_tune(small_backbone, head, ftk.FineTuneSpec(), images, verbose=0)
    found = ftk.predict(tuned.save(tmp_path / "m.keras"), x, threshold=0.0)
    assert found.multi_label
    assert all(set(one.labels) == {"a", "b", "c"} for one in found)


@pytest.mark.parametrize("name", ["model.h5", "model", "model.onnx", "model.json"])
def test_a_model_is_saved_as_a_keras_file(tuned, tmp_path, name, rejected):
    with rejected(r"`path` must be a file that ends in \.keras"):
        tuned.save(tmp_path / name)


def test_nothing_half_written_is_left(tuned, tmp_path, monkeypatch):
    file = tuned.save(tmp_path / "model.keras")
    before = file.read_bytes()

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(zipfile.ZipFile, "writestr", fail)
    with pytest.raises(OSError, match="disk full"):
        tuned.save(file)
    assert [*tmp_path.iterdir()] == [file]
    assert file.read_bytes() == before


def test_models_without_class_names(tuned, saved, tmp_path, rejected):
    x = np.zeros((2, 8, 8, 3), np.uint8)
    again = tmp_path / "again.keras"
    keras.saving.load_model(saved).save(again)
    for model in (again, tuned.model):
        with rejected("has no class names with it"):
            ftk.predict(model, x)
    for model in (again, tuned.model):
        assert len(ftk.predict(model, x, class_names=tuned.class_names)) == 2
    with pytest.raises(ValueError, match="must give one probability for each of the 2"):
        ftk.predict(tuned.model, x, class_names=["one", "two"])
    for model in (saved, tuned):
        with rejected("must be left out for a model that knows its classes"):
            ftk.predict(model, x, class_names=["one", "two", "three"])


def _with_member(saved, file, content):
    shutil.copy(saved, file)
    with zipfile.ZipFile(file) as old:
        members = {n: old.read(n) for n in old.namelist() if n != "finetune_kit.json"}
    with zipfile.ZipFile(file, "w") as new:
        for name, data in {**members, "finetune_kit.json": content}.items():
            new.writestr(name, data)
    return file


def test_bad_models(saved, tmp_path, rejected):
    x = np.zeros((2, 8, 8, 3), np.uint8)
    (tmp_path / "text.keras").write_text("no archive")
    with zipfile.ZipFile(tmp_path / "foreign.keras", "w") as archive:
        archive.writestr("a", "b")
    broken = _with_member(saved, tmp_path / "broken.keras", "{")
    newer = _with_member(saved, tmp_path / "newer.keras", '{"format": "finetune-kit model 9"}')
    with rejected("does not exist", FileNotFoundError):
        ftk.predict(tmp_path / "absent.keras", x)
    with rejected("is a folder", FileNotFoundError):
        ftk.predict(tmp_path, x)
    with rejected("which is a zip archive"):
        ftk.predict(tmp_path / "text.keras", x)
    with rejected("must be a file that Keras can load"):
        ftk.predict(tmp_path / "foreign.keras", x, class_names=["a", "b"])
    with rejected("must hold a readable"):
        ftk.predict(broken, x)
    with rejected("a newer version of finetune-kit"):
        ftk.predict(newer, x)
    with rejected("it comes first, then the images"):
        ftk.predict(x, saved)
    for factor in (100, np.nan):
        logits = classifier(3, "linear")
        logits.set_weights([factor * w for w in logits.get_weights()])
        with pytest.raises(ValueError, match="must return probabilities"):
            ftk.predict(logits, x + 200, class_names=list("abc"))


def test_bad_images(tuned, tmp_path, rejected):
    empty = tmp_path / "empty"
    empty.mkdir()
    for images, match in [
        ([], "at least one image"),
        (empty, "a folder without image files"),
        (f"{tmp_path}/*.png", "matches no file"),
        ("https://example.org/a.png", "download them first"),
        (b"bytes", "io.BytesIO"),
        (3, "must be a path"),
        ([3], "must be a path"),
        (np.zeros((2, 8, 8, 3)), "uint8 pixels"),
        (np.zeros((2, 8, 8, 4), np.uint8), "must have the shape"),
        (np.zeros((0, 8, 8, 3), np.uint8), "at least one image"),
        ([np.zeros((2, 8, 8, 3), np.uint8)], "must be one image"),
    ]:
        with rejected(match):
            ftk.predict(tuned, images)
    with rejected("does not exist", FileNotFoundError):
        ftk.predict(tuned, tmp_path / "absent.png")
    x = np.zeros((2, 8, 8, 3), np.uint8)
    for options, match in [
        ({"top": 0}, "`top`"),
        ({"batch_size": 0}, "`batch_size`"),
        ({"threshold": 2}, "`threshold`"),
        ({"threshold": "high"}, "`threshold`"),
        ({"class_names": ["a", "a"]}, "different names"),
    ]:
        with rejected(match):
            ftk.predict(tuned, x, **options)
