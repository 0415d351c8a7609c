"""The schedule of a spec sets the rate of each step: in phases, by depth, after an interruption."""

from __future__ import annotations

import json

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import finetune_kit as ftk
from finetune_kit._train.rates import share_of_rate

EPOCHS, STEPS = 3, 2  # the tests' images make two steps an epoch
FALLING = ftk.FineTuneSpec(1, epochs=EPOCHS, learning_rate=0.1, schedule="cosine")


class Rates(keras.callbacks.Callback):
    """Notes the rate of each optimizer after each step, the highest first."""

    def __init__(self):
        super().__init__()
        self.steps = []

    def on_train_batch_end(self, batch, logs=None):
        optimizer = self.model.optimizer
        parts = getattr(optimizer, "optimizers", [optimizer])
        self.steps.append(sorted((float(part.learning_rate) for part in parts), reverse=True))


def keras_rates(rate, steps, warmup=0):
    """Return the rates of Keras' own schedule."""
    falling = keras.optimizers.schedules.CosineDecay(rate, steps - warmup)
    return [float(falling(step)) for step in range(steps - warmup)]


@given(
    st.integers(1, 200),
    st.sampled_from([None, "cosine", "one_cycle"]),
    st.one_of(st.just(0.0), st.floats(0.0, 0.99)),
)
def test_the_rate_rises_to_its_full_value_and_then_never_rises(steps, schedule, warmup):
    if schedule == "one_cycle":
        spec, warmup = ftk.FineTuneSpec(schedule=schedule), 0.25
    else:
        spec = ftk.FineTuneSpec(schedule=schedule, warmup=warmup)
    shares = np.array([share_of_rate(spec, step, steps) for step in range(steps)])
    assert np.all((shares > 0) & (shares <= 1))
    rising = int(np.ceil(warmup * steps))
    assert np.all(np.diff(shares[:rising]) > 0)
    assert np.all(np.diff(shares[rising:]) <= 0)
    if schedule is None:
        assert np.all(shares[rising:] == 1)


def test_a_cosine_is_that_of_keras(tune):
    notes = Rates()
    run = tune(FALLING, callbacks=[notes])
    assert [rate for (rate,) in notes.steps] == pytest.approx(keras_rates(0.1, EPOCHS * STEPS))
    falling = keras.optimizers.schedules.CosineDecay(0.1, EPOCHS * STEPS)
    plain = ftk.FineTuneSpec(1, epochs=EPOCHS)
    other = tune(plain, optimizer=keras.optimizers.Adam(falling))
    for name in ("loss", "val_loss"):
        assert run.history[name] == pytest.approx(other.history[name], rel=1e-4)


def test_a_warm_up_rises_over_its_share_of_the_steps(tune):
    notes = Rates()
    third = {"epochs": EPOCHS, "learning_rate": 0.1, "warmup": 1 / 3}
    tune([ftk.FineTuneSpec(**third), ftk.FineTuneSpec(**third, schedule="cosine")],
         callbacks=[notes])  # fmt: skip
    rates = [rate for (rate,) in notes.steps]
    up = [0.1 / 3, 0.2 / 3]
    assert rates[:6] == pytest.approx([*up, 0.1, 0.1, 0.1, 0.1])
    assert rates[6:] == pytest.approx([*up, *keras_rates(0.1, 4)])


def test_one_cycle_rises_in_the_first_quarter_and_falls(tune):
    notes = Rates()
    tune(ftk.FineTuneSpec(epochs=4, learning_rate=0.1, schedule="one_cycle"), callbacks=[notes])
    rates = [rate for (rate,) in notes.steps]
    assert rates == pytest.approx([0.1 / 25, 0.1 * 0.52, *keras_rates(0.1, 6)])


def test_the_ratios_of_layer_decay_stay_and_each_phase_has_its_own_schedule(tune):
    notes = Rates()
    first = ftk.FineTuneSpec(0, epochs=2, learning_rate=0.01)
    second = ftk.FineTuneSpec(2, epochs=2, learning_rate=0.1, layer_decay=0.5, schedule="cosine")
    tune([first, second], callbacks=[notes])
    assert notes.steps[:4] == [[pytest.approx(0.01)]] * 4
    for found, full in zip(notes.steps[4:], keras_rates(0.1, 4), strict=True):
        assert found == pytest.approx([full, full / 2, full / 4])


def test_the_rate_of_an_optimizer_that_brings_one_falls_from_there(tune):
    notes = Rates()
    tune(FALLING, optimizer=keras.optimizers.SGD(0.5), callbacks=[notes])
    assert [rate for (rate,) in notes.steps] == pytest.approx(keras_rates(0.5, EPOCHS * STEPS))


def test_a_run_that_resumes_has_the_rates_of_one_that_was_not_interrupted(tune, tmp_path):
    """The weights are equal to the last bit; the optimizers count more steps than the phase."""
    warm = ftk.FineTuneSpec(0, epochs=2, learning_rate=0.05, warmup=0.5)
    falling = ftk.FineTuneSpec(1, epochs=3, learning_rate=0.05, layer_decay=0.5, warmup=0.2,
                               schedule="cosine")  # fmt: skip
    specs = [warm, falling]
    for epoch in (1, 3):  # the second call resumes, and is interrupted too

        def stop(at, logs, epoch=epoch):
            if at == epoch:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            tune(specs, run_dir=tmp_path,
                 callbacks=[keras.callbacks.LambdaCallback(on_epoch_begin=stop)])  # fmt: skip
    run, whole = tune(specs, run_dir=tmp_path), tune(specs)
    assert dict(run.history) == dict(whole.history)
    for pair in zip(run.model.weights, whole.model.weights, strict=True):
        assert np.array_equal(*map(keras.ops.convert_to_numpy, pair))


def test_a_spec_without_a_schedule_is_written_as_earlier_versions_did(tune, tmp_path):
    """So that their runs resume."""
    tune([ftk.FineTuneSpec(), FALLING], run_dir=tmp_path)
    plain, falling = json.loads((tmp_path / "run.json").read_text())["specs"]
    assert not {"schedule", "warmup"} & {*plain}
    assert ftk.FineTuneSpec.from_dict(plain) == ftk.FineTuneSpec()
    assert falling["schedule"] == "cosine"


@pytest.mark.parametrize(
    ("spec", "options", "says"),
    [
        (
            FALLING,
            {"optimizer": keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(0.1, 6))},
            "`optimizer` must have a number as its learning rate where specs have a `schedule`",
        ),
        (
            [ftk.FineTuneSpec(), FALLING],
            {"callbacks": keras.callbacks.ReduceLROnPlateau()},
            "`callbacks` must not change the learning rate .*Received: a ReduceLROnPlateau",
        ),
        (
            ftk.FineTuneSpec(warmup=0.1),
            {"callbacks": [keras.callbacks.LearningRateScheduler(lambda epoch: 0.1)]},
            "leave out one of the two. Received: a LearningRateScheduler",
        ),
    ],
)
def test_one_thing_alone_changes_the_rate(tune, rejected, spec, options, says):
    with rejected(says):
        tune(spec, **options)
