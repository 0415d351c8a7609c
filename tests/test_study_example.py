"""The study measured again: runs are kept, tables come from them, tests are paired."""

from __future__ import annotations

import json

import numpy as np
import phantoms
import pytest
import study


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Raw pixels from 0 to 255")  # so did the study
def test_a_run_is_kept_and_its_tables_come_from_it(tmp_path, monkeypatch, capsys):
    data = phantoms.write_phantoms(
        tmp_path / "data", images_per_class=dict.fromkeys(phantoms.CLASSES[:2], 10), size=32
    )
    few = {"head": study.recommended(0), "head, last epoch": study.Setting(0, "avg", "frozen")}
    monkeypatch.setitem(study.EXPERIMENTS, "suspects", few)
    out = tmp_path / "out"
    call = f"--data {data} --weights none --experiments suspects --epochs 2 --seeds 0".split()
    call += f"--image-size 32 --batch-size 8 --out {out}".split()
    assert study.main(call) == 0
    runs = {file: file.read_bytes() for file in (out / "runs").glob("*.json")}
    assert len(runs) == 2
    run = json.loads(next(iter(runs.values())))
    assert (
        np.shape(run["scores"]["best"]) == np.shape(run["scores"]["last"]) == (len(run["test"]), 2)
    )
    table = (out / "suspects.md").read_text()

    monkeypatch.setattr(study, "train", None)  # a second call trains nothing
    assert study.main(call) == 0
    assert runs == {file: file.read_bytes() for file in (out / "runs").glob("*.json")}
    assert (out / "suspects.md").read_text() == table
    results = json.loads((out / "study.json").read_text())
    assert list(results["experiments"]["suspects"]["rows"]) == list(few)
    assert study.main([*call, "--limit", "12"]) == 2
    assert "take another --out" in capsys.readouterr().out


def test_only_images_that_one_model_gets_right_count():
    def run(*predicted):
        scores = np.eye(2)[list(predicted)].tolist()
        told = {"class_names": ["a", "b"], "test": list(range(6)), "labels": [0] * 6}
        return {**told, "scores": {"last": scores}}

    settings = {"good": study.Setting(0), "bad": study.Setting(1)}
    runs = {
        (settings["good"].name(), 0): run(*[0] * 6),
        (settings["bad"].name(), 0): run(0, *[1] * 5),
    }
    test = study.compared(list(settings), settings, runs, 0)["good / bad"]
    assert (test["only_first"], test["only_second"]) == (5, 0)
    assert np.isclose(test["p"], 2 * 0.5**5)


def test_what_the_study_reported_fits_the_table():
    """Rows as long as the others, in the order of the classes that are there."""
    rows = study.reported(("Normal", "Viral Pneumonia"))
    assert [row[2:] for row in rows] == [
        ["0.74", "0.64", "0.80", "0.20", "", ""],
        ["0.64", "0.50", "0.56", "0.00", "", ""],
    ]


def test_a_probe_is_a_phase_of_its_own():
    setting = study.Setting(5, batch_norm="frozen", learning_rate=1e-4, probe_epochs=2)
    probe, rest = study.phases(setting, 20)
    assert (probe.trainable_blocks, probe.epochs, probe.learning_rate) == (0, 2, 1e-3)
    assert (rest.trainable_blocks, rest.epochs, rest.learning_rate) == (5, 18, 1e-4)
    assert setting.name().endswith("probe-2")
