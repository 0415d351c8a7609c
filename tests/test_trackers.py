"""The code of "Log your runs" logs whole runs, also interrupted ones, in each tracker's own store.

The tests run the code of the page itself. Trackers that are not installed are skipped.
"""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path

import keras
import pytest

PAGE = (Path(__file__).parents[1] / "docs" / "howto" / "log_your_runs.md").read_text("utf-8")
SECTIONS = {
    title: "".join(re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
    for title, text in re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
}
COLUMNS = ("loss", "accuracy", "val_loss", "val_accuracy")

pytestmark = pytest.mark.slow


@pytest.fixture
def names(tmp_path, monkeypatch):
    """The names of the quickstart and of the page's first section, in an empty folder."""
    names = {}
    exec("from quickstart_setup import *", names)
    exec(SECTIONS["The run"], names)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DO_NOT_TRACK", "true")  # the trackers' own usage statistics
    return names


def interrupted_and_resumed(section, names):
    """Run the code of a section twice; the first time is interrupted in the second epoch."""
    run = names["run"]

    def interrupted(log_epoch):
        def until(epoch, logs):
            if epoch == 1:
                raise KeyboardInterrupt
            log_epoch(epoch, logs)

        return run(until)

    code = compile(SECTIONS[section], section, "exec")
    with pytest.raises(KeyboardInterrupt):
        exec(code, {**names, "run": interrupted})
    exec(code, names)
    assert names["tuned"].history["epoch"] == [1, 2, 3]


def curves(names):
    """Return what must be logged: for each column the epochs, counted from 1, and their values."""
    history = names["tuned"].history
    return {c: [(i, pytest.approx(x, rel=1e-5)) for i, x in enumerate(history[c], 1)]
            for c in COLUMNS}  # fmt: skip


def final(names):
    """Return the metrics of the report with their intervals, as they must be logged."""
    found = names["test_metrics"](names["report"])
    metrics = names["report"].metrics
    assert found["test_accuracy"] == metrics["accuracy"].value
    assert found["test_accuracy_low"] == metrics["accuracy"].low
    assert len(found) == sum(1 + 2 * m.has_interval for m in metrics.values() if m.is_defined)
    return pytest.approx(found)


def plain(value):
    """Return a value as JSON has it."""
    return json.loads(json.dumps(value))


def test_each_section_is_tested():
    assert [*SECTIONS] == ["The run", "MLflow", "Weights & Biases", "Trackio", "TensorBoard"]
    assert all(SECTIONS.values())


@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")  # of SQLAlchemy, in MLflow
def test_mlflow(names, tmp_path):
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    pytest.importorskip("alembic", reason="mlflow's database needs sqlalchemy and alembic")
    interrupted_and_resumed("MLflow", names)
    client = mlflow.MlflowClient()
    (run,) = mlflow.search_runs(output_format="list")
    assert run.info.status == "FINISHED"
    assert run.data.params == {name: str(value) for name, value in names["spec"].to_dict().items()}
    for column, values in curves(names).items():
        history = client.get_metric_history(run.info.run_id, column)
        assert [(one.step, one.value) for one in history] == values
    tests = {name: x for name, x in run.data.metrics.items() if name.startswith("test_")}
    assert tests == final(names)
    folder = Path(client.download_artifacts(run.info.run_id, "", str(tmp_path)))
    assert (folder / "plan.txt").read_text("utf-8") == str(names["plan"])
    settings = json.loads((folder / "settings.json").read_text("utf-8"))
    assert settings == plain(names["tuned"].settings)
    assert (folder / "report" / "report.html").is_file()


def wandb_records(file):
    """Yield the records of a W&B run file, which has the format of LevelDB's logs."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, block, place, parts = file.read_bytes(), 32768, 7, b""
    while place + 7 <= len(content):
        if block - place % block < 7:  # too little is left of the block
            place += block - place % block
            continue
        _, size, kind = struct.unpack("<IHB", content[place : place + 7])
        parts += content[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # a whole record, or the end of one
            record = Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


def wandb_values(items):
    return {item.key or item.nested_key[0]: json.loads(item.value_json) for item in items}


def test_wandb(names, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_SILENT", "true")
    interrupted_and_resumed("Weights & Biases", names)
    wandb.teardown()  # its own process writes the last records
    files = sorted(tmp_path.glob("wandb/offline-run-*/run-one-block.wandb"))
    history, config, summary, artifacts, ids = [], {}, {}, [], set()
    for record in [record for file in files for record in wandb_records(file)]:
        history += [wandb_values(record.history.item)] if record.HasField("history") else []
        config |= wandb_values([*record.config.update, *record.run.config.update])
        summary |= wandb_values(record.summary.update)
        artifacts += [record.artifact.name] if record.HasField("artifact") else []
        artifacts += [record.request.log_artifact.artifact.name] * record.HasField("request")
        ids |= {record.run.run_id} - {""}
    assert ids == {"one-block"}
    for column, values in curves(names).items():
        assert [(row["epoch"], row[column]) for row in history] == values
    assert config["plan"] == str(names["plan"])
    assert config["settings"] == plain(names["tuned"].settings)
    assert {name: config[name] for name in names["spec"].to_dict()} == names["spec"].to_dict()
    tests = {name: x for name, x in summary.items() if name.startswith("test_")}
    assert tests == final(names)
    assert "report" in artifacts


def test_trackio(names, tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    trackio = pytest.importorskip("trackio", reason="trackio is not installed")
    interrupted_and_resumed("Trackio", names)
    (run,) = trackio.Api().runs("colours")
    assert run.name == "one-block"
    assert {name: run.config[name] for name in names["spec"].to_dict()} == names["spec"].to_dict()
    *epochs, last = trackio.SQLiteStorage.get_logs("colours", "one-block")
    for column, values in curves(names).items():
        assert [(row["step"], row[column]) for row in epochs] == values
    assert {name: x for name, x in last.items() if name.startswith("test_")} == final(names)
    assert last["settings"] == plain(names["tuned"].settings)
    assert str(names["plan"]) in json.dumps(last["plan"], ensure_ascii=False).replace("\\n", "\n")
    trackio.init(project="colours", name="one-block", resume="must")
    folder = trackio.use_artifact("report").download(tmp_path / "got")
    trackio.finish()
    assert (Path(folder) / "report.html").is_file()


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="needs TensorFlow")
def test_tensorboard(names, tmp_path, monkeypatch):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    import tensorflow as tf

    code = compile(SECTIONS["TensorBoard"], "TensorBoard", "exec")

    def interrupt(self, epoch, logs=None):
        if epoch == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(keras.callbacks.TensorBoard, "on_epoch_begin", interrupt)
        with pytest.raises(KeyboardInterrupt):
            exec(code, names)
    exec(code, names)
    found, texts = {}, {}
    for file in sorted(tmp_path.glob("logs/*/events.out.tfevents.*")):
        for raw in tf.data.TFRecordDataset(str(file)):
            event = tf.compat.v1.Event.FromString(raw.numpy())
            for value in event.summary.value:
                tensor = tf.make_ndarray(value.tensor)
                if tensor.dtype == object:
                    texts[value.tag] = tensor.ravel()[0].decode()
                else:
                    tag = (file.parent.name, value.tag)
                    found.setdefault(tag, []).append((event.step + 1, float(tensor)))
    for column, values in curves(names).items():
        part, name = ("validation", column[4:]) if column.startswith("val_") else ("train", column)
        assert found[part, f"epoch_{name}"] == values
    tests = {name: x[0][1] for (part, name), x in found.items() if part == "test"}
    assert tests == pytest.approx(names["test_metrics"](names["report"]), rel=1e-5)
    assert str(names["plan"]) in texts["plan"]
    assert str(names["tuned"].settings) in texts["settings"]
    assert (tmp_path / "logs" / "report" / "report.html").is_file()
