"""The repeated study: its files, its tables, and its paired tests."""

from __future__ import annotations

import json
from dataclasses import replace

import experiments
import numpy as np
import phantoms
import pytest
import study
import tables


@pytest.mark.slow
def test_finished_runs_are_not_repeated_and_the_tables_come_from_their_files(
    build_small, tmp_path, monkeypatch, capsys
):
    data = phantoms.write_phantoms(
        tmp_path / "data", images_per_class=dict.fromkeys(phantoms.CLASSES[:2], 10), size=32
    )
    rows = {
        "head": experiments.recommended(0),
        "head, last epoch": replace(experiments.recommended(0), epoch="last"),
        "1 block": experiments.recommended(1),
        "1 block, keras.Model.fit": replace(experiments.recommended(1), plain=True),
    }
    monkeypatch.setitem(study.EXPERIMENTS, "suspects", rows)
    monkeypatch.setattr(study, "load_backbone", lambda *args, **options: build_small())
    out = tmp_path / "out"
    options = "--experiments suspects --epochs 1 --seeds 0 --image-size 32 --batch-size 7"
    call = ["--data", str(data), "--out", str(out), *options.split()]
    assert study.main(call) == 0
    runs = {file: file.read_bytes() for file in (out / "runs").glob("*.json")}
    assert len(runs) == 3  # the rows that differ in the epoch alone share one
    for content in runs.values():
        run = json.loads(content)
        assert np.shape(run["scores"]["last"]) == (len(run["test"]), 2)
        # The only epoch is both the last and the best one, so its weights give the same scores.
        assert run["scores"]["best"] == run["scores"]["last"]
    table = (out / "suspects.md").read_text()
    assert [line.split(" | ")[0] for line in table.splitlines() if " M |" in line] == [
        f"| {row}" for row in rows
    ]

    monkeypatch.setattr(study, "train", None)  # a second call must not train
    assert study.main(call) == 0
    assert runs == {file: file.read_bytes() for file in (out / "runs").glob("*.json")}
    assert (out / "suspects.md").read_text() == table
    results = json.loads((out / "study.json").read_text())
    assert list(results["experiments"]["suspects"]["rows"]) == list(rows)
    capsys.readouterr()
    assert study.main([*call, "--epochs", "2"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "use another --out" in error


def test_all_settings_train_for_the_same_number_of_epochs():
    settings = [s for experiment in experiments.EXPERIMENTS.values() for s in experiment.values()]
    assert {sum(spec.epochs for spec in setting.specs(20)) for setting in settings} == {20}
    assert {len(setting.specs(20)) for setting in settings} == {1, 2}
    probes = experiments.EXPERIMENTS["probe"]
    assert [setting.specs(20)[-1].trainable_blocks for setting in probes.values()] == [*range(9)]


def test_the_paired_test_counts_images_that_one_model_alone_classifies_correctly():
    def run(*predicted):
        scores = np.eye(2)[list(predicted)].tolist()
        images = {"class_names": ["a", "b"], "test": list(range(6)), "labels": [0] * 6}
        return {**images, "scores": {"last": scores}}

    settings = {"good": experiments.Setting(0), "bad": experiments.Setting(1)}
    runs = {
        (settings["good"].run_name(), 0): run(*[0] * 6),
        (settings["bad"].run_name(), 0): run(0, *[1] * 5),
    }
    test = study.paired_tests(list(settings), settings, runs, 0)["good / bad"]
    assert (test["only_first"], test["only_second"]) == (5, 0)
    assert np.isclose(test["p"], 2 * 0.5**5)


def test_the_study_s_results_have_intervals_and_fit_the_classes_at_hand():
    rows = tables.study_rows(("Viral Pneumonia", "another"))
    assert rows == [
        ["Model 1 as reported", "0.74 [0.71, 0.77]", "0.64", "0.20 [0.11, 0.33]", ""],
        ["Model 3 as reported", "0.64 [0.61, 0.67]", "0.50", "0.00 [0.00, 0.07]", ""],
    ]
    estimate = {"value": 0.8, "low": 0.7, "high": 0.9}
    found = {"seed": 0, "accuracy": estimate, "macro_f1": estimate, "parameters": 1e6}
    found |= {"recalls": {"Viral Pneumonia": estimate, "another": estimate}}
    found |= dict.fromkeys(tables.LEARNING, 0.5)
    text = tables.experiment_tables(
        {"rows": {"Model 1": [found]}, "tests": {}}, ("Viral Pneumonia", "another"), rows
    )
    lines = [line for line in text.splitlines() if line.startswith("|")]
    means, each = lines[:5], lines[5:10]
    for table in (means, each):
        assert [line.split(" | ")[0] for line in table] == [
            "| ", "| ---", "| Model 1 as reported", "| Model 3 as reported", "| Model 1"
        ]  # fmt: skip
        assert len({line.count("|") for line in table}) == 1
        assert "0.20 [0.11, 0.33]" in table[2]


def test_a_probe_trains_the_head_alone_in_a_phase_of_its_own():
    setting = experiments.Setting(5, batch_norm="frozen", learning_rate=1e-4, probe_epochs=2)
    probe, rest = setting.specs(20)
    assert (probe.trainable_blocks, probe.epochs, probe.learning_rate) == (0, 2, 1e-3)
    assert (rest.trainable_blocks, rest.epochs, rest.learning_rate) == (5, 18, 1e-4)
    assert setting.run_name().endswith("probe-2")


def test_settings_share_a_run_only_if_they_train_in_the_same_way():
    settings = {setting for rows in experiments.EXPERIMENTS.values() for setting in rows.values()}
    trainings = {replace(setting, epoch="last") for setting in settings}
    assert len({setting.run_name() for setting in settings}) == len(trainings) < len(settings)


def test_cells_show_the_range_of_the_seeds_and_the_interval_of_a_run():
    assert tables.mean_and_range([0.5, 0.7, None]) == "0.600 (0.500-0.700)"
    assert tables.mean_and_range([0.5]) == "0.500"
    assert tables.mean_and_range([None]) == "undefined"
    assert tables.with_interval({"value": 0.5, "low": 0.4, "high": 0.6}) == "0.500 [0.400, 0.600]"
    assert tables.with_interval({"value": 1.0, "low": None, "high": None}) == "1.000"
    assert tables.with_interval({"value": None, "low": None, "high": None}) == "undefined"
