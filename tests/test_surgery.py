"""`stitch(*cut(model, at))` computes what `model` computes, with the same weights."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import build_graph, graphs

import finetune_kit as ftk


def same_outputs(model, other) -> bool:
    rng = np.random.default_rng(0)
    x = [rng.normal(size=(2, *t.shape[1:])).astype("float32") for t in model.inputs]
    x = x if len(x) > 1 else x[0]
    pairs = zip(keras.tree.flatten(model(x)), keras.tree.flatten(other(x)), strict=True)
    return all(
        np.allclose(keras.ops.convert_to_numpy(a), keras.ops.convert_to_numpy(b), atol=1e-5)
        for a, b in pairs
    )


@settings(max_examples=20)
@given(graphs, st.sampled_from(["stage", "block", "layer"]), st.data())
def test_any_graph_computes_the_same_after_being_cut_and_stitched(graph, level, data):
    model = build_graph(graph)
    blocks = ftk.conv_blocks(model, level)
    at = data.draw(st.integers(0, len(blocks)))
    prefix, suffix = ftk.cut(model, at, level=level)
    assert same_outputs(model, ftk.stitch(prefix, suffix))
    before, after = (
        {name for block in part for name in block.layers}
        for part in (blocks[: len(blocks) - at], blocks[len(blocks) - at :])
    )
    inputs = {x.name for x in model.layers if isinstance(x, keras.layers.InputLayer)}
    assert not after & {operation.name for operation in prefix.operations} - inputs
    assert not before & {layer.name for layer in suffix.layers if layer.weights}


@pytest.mark.parametrize("at", [0, 1, 2, 10, "block_13", "Conv_1", 19, "all"])
def test_a_backbone_can_be_cut_at_each_boundary(mobilenet, at):
    prefix, suffix = ftk.cut(mobilenet, at)
    whole = ftk.stitch(prefix, suffix)
    assert same_outputs(mobilenet, whole)
    assert whole.get_layer("Conv_1") is mobilenet.get_layer("Conv_1")
    assert prefix.count_params() + suffix.count_params() == mobilenet.count_params()


def test_the_prefix_ends_where_the_spec_begins_to_train(mobilenet):
    prefix, suffix = ftk.cut(mobilenet, 2)
    plan = ftk.FineTuneSpec(2).plan(mobilenet)
    assert {v.path.split("/")[0] for v in suffix.weights} == {
        name for block in plan.blocks[-2:] for name in block.layers
    } & {v.path.split("/")[0] for v in mobilenet.weights}
    assert prefix.output_shape == plan.blocks[-3].output_shape


def test_outputs_before_the_cut_pass_through_the_suffix():
    x = inputs = keras.Input((8, 8, 3))
    skips = []
    for i in (1, 2, 3):
        x = keras.layers.Conv2D(4, 3, strides=2, padding="same", name=f"block{i}_conv")(x)
        skips.append(x)
    model = keras.Model(inputs, skips)
    prefix, suffix = ftk.cut(model, 1)
    assert [tensor.shape[1] for tensor in prefix.outputs] == [4, 2]  # in topological order
    assert same_outputs(model, ftk.stitch(prefix, suffix))


def test_inputs_behind_the_cut_pass_through_the_prefix():
    image, table = keras.Input((8, 8, 3)), keras.Input((4,))
    x = keras.layers.Conv2D(4, 3, name="block1_conv")(image)
    x = keras.layers.Conv2D(4, 3, name="block2_conv")(x) * keras.layers.Reshape((1, 1, 4))(table)
    model = keras.Model([image, table], x)
    assert same_outputs(model, ftk.stitch(*ftk.cut(model, 1)))


def test_a_cut_at_an_unknown_block_is_an_error(mobilenet):
    with pytest.raises(ValueError, match=r"`at` must be between 0 and 19.*at=20"):
        ftk.cut(mobilenet, 20)
    with pytest.raises(ValueError, match=r"`at` must name blocks.*block_16"):
        ftk.cut(mobilenet, "block_17")
    with pytest.raises(
        ValueError, match=r"Received: 'block_16_expand', a layer inside 'block_16'$"
    ):
        ftk.cut(mobilenet, "block_16_expand")


def test_a_shared_layer_cannot_be_cut_between_its_calls():
    shared = keras.layers.Conv2D(4, 3, padding="same", name="twice")
    between = keras.layers.Conv2D(4, 3, padding="same", name="between")
    inputs = keras.Input((8, 8, 4))
    first = keras.layers.Conv2D(4, 3, padding="same", name="first")(inputs)
    model = keras.Model(inputs, shared(between(shared(first))))
    with pytest.raises(ValueError, match=r"'between', a layer inside 'twice'"):
        ftk.cut(model, "between")
    for at in range(len(ftk.conv_blocks(model)) + 1):
        assert same_outputs(model, ftk.stitch(*ftk.cut(model, at)))


def test_parts_whose_shapes_differ_cannot_be_stitched(mobilenet):
    prefix, _ = ftk.cut(mobilenet, 3)
    _, suffix = ftk.cut(mobilenet, 1)
    with pytest.raises(ValueError, match=r"\[\(None, 1, 1, 56\)\].*\[\(None, 1, 1, 112\)\]"):
        ftk.stitch(prefix, suffix)
