"""N trailing blocks means N, a plan names what training updates, and a spec is a value."""

from __future__ import annotations

import dataclasses
import inspect
import json

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import build_graph, graphs, specs

import finetune_kit as ftk
from finetune_kit._hints import hints


@given(specs)
def test_a_spec_survives_to_dict_and_json(spec):
    assert ftk.FineTuneSpec.from_dict(spec.to_dict()) == spec
    assert ftk.FineTuneSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


@pytest.fixture(scope="module")
def own_backbone() -> keras.Model:
    """Four blocks with BatchNormalization, whose flags the tests of this module set."""
    x = inputs = keras.Input((16, 16, 3))
    for i in range(1, 5):
        x = keras.layers.Conv2D(4, 3, strides=2, padding="same", name=f"block{i}_conv")(x)
        x = keras.layers.BatchNormalization(name=f"block{i}_conv_bn")(x)
    return keras.Model(inputs, x, name="own")


def flags(backbone) -> list[bool]:
    return [layer.trainable for layer in backbone.layers]


@given(st.lists(specs, min_size=2, max_size=3))
def test_applying_twice_equals_once_and_the_last_spec_wins(own_backbone, several):
    own_backbone.trainable = True
    several[-1].apply(own_backbone)
    expected = flags(own_backbone)
    for spec in [*several, several[-1]]:
        spec.apply(own_backbone)
    assert flags(own_backbone) == expected


@pytest.mark.parametrize("n", [0, 1, 2, 10, 18, 19])
def test_n_trailing_blocks_means_n(mobilenet, n):
    plan = ftk.FineTuneSpec(n).plan(mobilenet)
    assert plan.trainable == (False,) * (19 - n) + (True,) * n
    assert plan.prefix_blocks == 19 - n
    assert (plan.trainable_params == 0) == (n == 0)


@given(specs)
def test_the_plan_names_the_variables_that_keras_will_train(own_backbone, spec):
    plan = spec.apply(own_backbone)
    trainable = own_backbone.trainable_variables
    assert list(plan.trainable_variables) == [v.path for v in trainable]
    assert plan == spec.plan(own_backbone)
    assert plan.total_params == own_backbone.count_params()
    assert plan.trainable_params == sum(int(np.prod(v.shape)) for v in trainable)
    assert bool(plan.moving_statistics) == (spec.batch_norm == "train" and any(plan.trainable))


@settings(max_examples=20)
@given(graphs, st.sampled_from(["stage", "block", "layer"]), st.data())
def test_in_any_graph_n_means_n_and_the_last_spec_wins(graph, level, data):
    backbone = build_graph(graph)
    count = len(ftk.conv_blocks(backbone, level))
    for _ in range(2):
        n = data.draw(st.integers(0, count))
        mode = data.draw(st.sampled_from(["frozen", "train"]))
        spec = ftk.FineTuneSpec(n, level=level, batch_norm=mode)
        plan = spec.apply(backbone)
        assert plan.trainable == (False,) * (count - n) + (True,) * n
        assert plan == spec.apply(backbone) == spec.plan(backbone)
        assert set(plan.trainable_variables) == {v.path for v in backbone.trainable_variables}
        assert len(plan.trainable_variables) == len(backbone.trainable_variables)
    with pytest.raises(ValueError, match=f"between 0 and {count}, "):
        ftk.FineTuneSpec(count + 1, level=level).plan(backbone)


@settings(max_examples=3 if keras.backend.backend() == "jax" else 5)  # it compiles each time
@given(graphs, st.data())
def test_in_any_graph_frozen_weights_stay_bit_identical(tiny_images, graph, data):
    backbone = build_graph(graph)
    chosen = data.draw(st.sets(st.sampled_from([b.name for b in ftk.conv_blocks(backbone)])))
    spec = ftk.FineTuneSpec(tuple(chosen), batch_norm="train", learning_rate=0.1)
    before = {w.path: keras.ops.convert_to_numpy(w) for w in backbone.weights}
    x = tiny_images.load(size=(8, 8))
    images = ftk.ImageSet.from_arrays(x, tiny_images.labels, tiny_images.class_names)
    head = ftk.classification_head(3)
    tuned = ftk.fine_tune(backbone, head, spec, images, preprocessing=None, verbose=0)
    plan = spec.plan(backbone)
    updated = {*plan.trainable_variables, *plan.moving_statistics}
    after = {w.path: keras.ops.convert_to_numpy(w) for w in tuned.model.weights}
    assert before.keys() <= after.keys()
    for path, value in before.items():
        assert path in updated or np.array_equal(after[path], value), path


def test_all_trains_everything_and_0_nothing(mobilenet):
    everything = ftk.FineTuneSpec("all", batch_norm="train").plan(mobilenet)
    weights = {w.path for w in mobilenet.weights}
    assert {*everything.trainable_variables, *everything.moving_statistics} == weights
    nothing = ftk.FineTuneSpec(0).plan(mobilenet)
    assert nothing.trainable_variables == nothing.moving_statistics == ()


def test_blocks_can_be_named_and_need_not_be_neighbours(mobilenet):
    plan = ftk.FineTuneSpec(["block_3", "Conv_1"]).plan(mobilenet)
    names = [b.name for b, t in zip(plan.blocks, plan.trainable, strict=True) if t]
    assert names == ["block_3", "Conv_1"]
    assert plan.prefix_blocks == 4
    assert "first 4 blocks are the frozen prefix, and 13 later blocks are frozen." in str(plan)
    assert ftk.FineTuneSpec("Conv_1") == ftk.FineTuneSpec(("Conv_1",))


@pytest.mark.parametrize(("n", "names"), [(1, ["Conv_1"]), (2, ["block_16", "Conv_1"])])
def test_models_2_and_3_of_the_study_train_the_blocks_that_it_names(mobilenet, n, names):
    plan = ftk.FineTuneSpec(n).plan(mobilenet)
    assert [b.name for b, t in zip(plan.blocks, plan.trainable, strict=True) if t] == names


def test_layer_decay_lowers_the_rate_from_block_to_block_toward_the_input(own_backbone):
    plan = ftk.FineTuneSpec(("block2", "block4"), layer_decay=0.5).plan(own_backbone)
    assert plan.rate_factors == (0.5**3,) * 2 + (0.5,) * 2
    assert "x0.5 in the last trainable block, x0.125 in the first" in str(plan)


PLAN = """\
mobilenetv2_0.50_224: 2 of 19 blocks are trainable (level 'block')
block          layers  parameters          trainable  output shape  output size
---------------------------------------------------------------------------------------
stem                4         496  .          frozen    112x112x16     802.8 kB  ......
"""
LAST_BLOCK = """
Conv_1              3     209,920  ######    204,800      7x7x1280     250.9 kB  ##
---------------------------------------------------------------------------------------
324,320 of 706,224 parameters are trainable; the first 17 blocks are the frozen prefix.
BatchNormalization in the trainable blocks: inference mode."""


def test_the_plan_prints_as_a_table_that_fits_a_page():
    backbone = keras.applications.MobileNetV2(
        alpha=0.5, include_top=False, weights=None, input_shape=(224, 224, 3)
    )
    text = str(ftk.FineTuneSpec(2).plan(backbone))
    lines = text.splitlines()
    assert text.startswith(PLAN)
    assert text.endswith(LAST_BLOCK)
    assert len(lines) == 1 + 3 + 19 + 2
    assert max(map(len, lines)) <= 88
    assert text.isascii()


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (ftk.FineTuneSpec(0), "0 of 4 blocks are trainable"),
        (ftk.FineTuneSpec(1), "1 of 4 blocks is trainable"),
        (ftk.FineTuneSpec(3), "the first block is the frozen prefix."),
        (ftk.FineTuneSpec("all"), "there is no frozen prefix."),
        (ftk.FineTuneSpec("block1"), "no frozen prefix, and 3 later blocks are frozen."),
        (ftk.FineTuneSpec(("block2", "block3")), "prefix, and 1 later block is frozen."),
        (ftk.FineTuneSpec(1, batch_norm="train"), "trainable blocks: training mode."),
    ],
)
def test_the_plan_says_what_is_frozen_in_a_sentence(own_backbone, spec, expected):
    assert expected in str(spec.plan(own_backbone))


def test_the_plan_of_a_backbone_for_images_of_any_size_has_no_output_sizes():
    backbone = keras.Sequential([keras.Input((None, None, 3)), keras.layers.Conv2D(4, 3)])
    last = str(ftk.FineTuneSpec(1).plan(backbone)).splitlines()[3]
    assert last.split()[-3:] == ["112", "?x?x4", "?"]


def test_the_plan_is_a_table_in_a_notebook(mobilenet):
    plan = ftk.FineTuneSpec(2).plan(mobilenet)
    page = plan._repr_html_()
    assert page.count("<tr class=trains>") == 2
    assert page.count(">frozen<") == 17
    assert page.count("class=bar") == 2 * 19
    hostile = dataclasses.replace(plan, backbone="<script>alert(1)</script>")
    assert "<script>" not in hostile._repr_html_()


def test_the_built_model_shares_its_layers(mobilenet):
    backbone = keras.models.clone_model(mobilenet)
    model = ftk.FineTuneSpec(1).build(backbone, ftk.classification_head(3))
    assert model.get_layer("Conv_1") is backbone.get_layer("Conv_1")
    assert model.get_layer("Conv_1").trainable
    assert not model.get_layer("block_16_project").trainable
    assert model.output_shape == (None, 3)


def noisy_backbone() -> keras.Model:
    x = inputs = keras.Input((8, 8, 3))
    for i in (1, 2):
        x = keras.layers.Conv2D(4, 3, strides=2, name=f"block{i}_conv")(x)
        x = keras.layers.Dropout(0.9, name=f"block{i}_conv_drop")(x)
    return keras.Model(inputs, x, name="noisy")


def test_the_frozen_part_runs_in_inference_mode_dropout_included():
    backbone = noisy_backbone()
    x = np.ones((64, 8, 8, 3), "float32")
    frozen = ftk.FineTuneSpec(0).build(backbone, keras.layers.Flatten())
    assert np.array_equal(frozen(x, training=True), frozen(x, training=False))
    half = ftk.FineTuneSpec(1).build(backbone, keras.layers.Flatten())
    assert not np.array_equal(half(x, training=True), half(x, training=False))
    assert [layer.name for layer in half.layers if "drop" in layer.name] == ["block2_conv_drop"]


def test_a_frozen_layer_with_weights_and_dropout_is_an_error():
    inputs = keras.Input((8, 8, 3))
    inner = keras.Sequential(
        [keras.layers.Conv2D(4, 3), keras.layers.Dropout(0.5)], name="block1_conv"
    )
    outputs = keras.layers.Conv2D(4, 3, name="block2_conv")(inner(inputs))
    backbone = keras.Model(inputs, outputs)
    with pytest.raises(ValueError, match=r"dropout rate of 0.*'block1_conv'"):
        ftk.FineTuneSpec(1).build(backbone, keras.layers.Flatten())


@pytest.mark.parametrize("blocks", [-1, 1.5, True, None, b"all", [1], {"Conv_1"}])
def test_trainable_blocks_of_a_wrong_type_are_an_error(blocks):
    with pytest.raises(ValueError, match="whole number from 0 up, 'all', or block names"):
        ftk.FineTuneSpec(blocks)


def test_too_many_blocks_are_an_error_that_names_the_backbone_and_its_count(mobilenet):
    with pytest.raises(ValueError, match=r"between 0 and 19.*'mobilenetv2_0.35_32'.*=99"):
        ftk.FineTuneSpec(99).plan(mobilenet)


def test_a_misspelt_block_is_an_error_with_the_nearest_names(mobilenet):
    with pytest.raises(ValueError, match=r"such as Conv_1.*Received: 'conv_1'"):
        ftk.FineTuneSpec("conv_1").plan(mobilenet)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"level": "blocks"}, "`level` must be one of"),
        ({"batch_norm": True}, "`batch_norm` must be one of"),
        ({"epochs": 0}, "`epochs` must be"),
        ({"epochs": 1.5}, "`epochs` must be"),
        ({"learning_rate": 0}, "`learning_rate` must be a number above 0"),
        ({"learning_rate": float("nan")}, "`learning_rate` must be"),
        ({"learning_rate": float("inf")}, "`learning_rate` must be"),
        ({"learning_rate": True}, "`learning_rate` must be"),
        (
            {"learning_rate": "1e-3"},
            r"'1e-3', a text \(YAML reads 1e-3 as text, 1.0e-3 as a number",
        ),
        ({"layer_decay": 0}, "`layer_decay` must be a number above 0 and up to 1"),
        ({"layer_decay": 1.1}, "`layer_decay` must be"),
        ({"keep": "first"}, "`keep` must be one of"),
        ({"schedule": "linear"}, "`schedule` must be one of"),
        ({"warmup": 1}, "`warmup` must be a share of the steps, from 0 to below 1"),
        ({"warmup": -0.1}, "`warmup` must be"),
        ({"warmup": 0.1, "schedule": "one_cycle"}, "`warmup` must be 0 with schedule='one_cycle'"),
        ({"warmup": "0.1"}, "`warmup` must be"),
    ],
)
def test_a_value_out_of_range_is_an_error(options, message):
    with pytest.raises(ValueError, match=message):
        ftk.FineTuneSpec(**options)


@pytest.mark.parametrize(
    ("args", "options", "message"),
    [
        (
            (),
            {"blocks": 2},
            "FineTuneSpec has no argument `blocks`; did you mean `trainable_blocks`?",
        ),
        ((), {"epoch": 2}, "did you mean `epochs`?"),
        ((), {"lr": 0.1}, r"no argument `lr`; use FineTuneSpec\(learning_rate=...\)"),
        ((), {"batch_size": 8}, r"use fine_tune\(batch_size=...\). Its .* Received: batch_size=8"),
        ((), {"colour": "red"}, "`colour`. Its arguments are: trainable_blocks, level, batch_norm"),
        ((2, 20), {}, r"1 argument by position \(trainable_blocks\); .* without a name: 20"),
    ],
)
def test_a_misplaced_argument_is_an_error_that_says_where_it_belongs(args, options, message):
    with pytest.raises(TypeError, match=message):
        ftk.FineTuneSpec(*args, **options)


def test_an_unknown_key_is_an_error():
    with pytest.raises(TypeError, match="has no argument `colour`"):
        ftk.FineTuneSpec.from_dict({"colour": "red"})


def test_hints_leave_the_signature_and_the_calls_of_a_function_as_they_are():
    @hints(epochs="FineTuneSpec(epochs=...)")
    def train(model: str, *, seed: int = 0) -> str:
        """Train."""
        return f"{model} {seed}"

    assert train("a", seed=1) == "a 1"
    assert (train.__name__, train.__doc__) == ("train", "Train.")
    assert list(inspect.signature(train).parameters) == ["model", "seed"]
    assert "self" not in inspect.signature(ftk.FineTuneSpec).parameters
    with pytest.raises(TypeError, match=r"train has no argument `epochs`; use FineTuneSpec"):
        train("a", epochs=5)
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'model'"):
        train()


@pytest.mark.parametrize("built", [True, False])
def test_backbone_and_head_in_the_wrong_order_are_an_error_that_says_so(mobilenet, built):
    head = ftk.classification_head(3)
    if built:
        head.build((None, 1, 1, 1280))
    with pytest.raises(ValueError, match="the two seem to be swapped"):
        ftk.FineTuneSpec().build(head, mobilenet)


def test_a_backbone_without_a_graph_is_an_error(mobilenet):
    class Subclass(keras.Model):
        def call(self, x):
            return x

    for backbone in (Subclass(name="mine"), keras.Sequential([keras.layers.Dense(1)]), "vgg16"):
        with pytest.raises(ValueError, match="must be a functional Keras model"):
            ftk.FineTuneSpec(0).plan(backbone)


def test_a_classifier_on_top_belongs_to_no_block_and_trains():
    backbone = keras.applications.MobileNet(weights=None, alpha=0.25, input_shape=(32, 32, 3))
    plan = ftk.FineTuneSpec(0).apply(backbone)
    assert len(plan.blocks) == 14
    assert "conv_preds" not in {name for block in plan.blocks for name in block.layers}
    assert plan.top_params == backbone.get_layer("conv_preds").count_params()
    assert [v.path for v in backbone.trainable_variables] == list(plan.trainable_variables)
    with pytest.raises(ValueError, match="include_top=False"):
        ftk.FineTuneSpec(0).build(backbone, keras.layers.Flatten())


def test_a_head_that_does_not_take_the_features_is_an_error_with_the_remedy():
    backbone = keras.applications.MobileNet(
        weights=None, alpha=0.25, input_shape=(32, 32, 3), include_top=False, pooling="avg"
    )
    assert len(ftk.conv_blocks(backbone)) == 14
    with pytest.raises(
        ValueError, match=r"`head` must take the output of `backbone`.*\(None, 256\)"
    ):
        ftk.FineTuneSpec(0).build(backbone, ftk.classification_head(3))
    model = ftk.FineTuneSpec(0).build(backbone, ftk.classification_head(3, pooling=None))
    assert model.output_shape == (None, 3)


def test_build_takes_a_layer_as_preprocessing(small_backbone):
    with pytest.raises(ValueError, match="`preprocessing` must be a Keras layer"):
        ftk.FineTuneSpec(1).build(small_backbone, ftk.classification_head(2), preprocessing="auto")
