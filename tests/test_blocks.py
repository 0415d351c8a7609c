"""Blocks hold each layer once, in topological order, at each level; in any model."""

from __future__ import annotations

from importlib.util import find_spec
from itertools import pairwise

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from strategies import build_graph, graphs

import finetune_kit as ftk
from finetune_kit._model.surgery import with_depths

LEVELS = ("stage", "block", "layer")
layers = keras.layers


def names(model, level="block"):
    return [block.name for block in ftk.conv_blocks(model, level)]


def conv(x, filters=4, **options):
    return layers.ReLU()(
        layers.BatchNormalization()(layers.Conv2D(filters, 3, padding="same", **options)(x))
    )


@settings(max_examples=30)
@given(graphs)
def test_blocks_partition_any_graph_and_each_level_refines_the_one_before(graph):
    model = build_graph(graph)
    found = [ftk.conv_blocks(model, level) for level in LEVELS]
    for blocks in found:
        flat = [layer for block in blocks for layer in block.layers]
        assert len(flat) == len(set(flat))
        assert sum(block.params for block in blocks) == model.count_params()
        assert len({block.name for block in blocks}) == len(blocks)
    for coarse, fine in pairwise(found):
        sets = [set(block.layers) for block in coarse]
        assert all(any(set(block.layers) <= s for s in sets) for block in fine)


@settings(max_examples=20)
@given(graphs)
def test_joined_poolings_belong_to_the_blocks_that_they_pool(graph):
    model = build_graph(graph)
    check_joined(model)


@pytest.mark.parametrize("name", ["MobileNetV2", "VGG16", "Xception", "EfficientNetB0"])
def test_joined_poolings_of_applications(name):
    build = getattr(keras.applications, name)
    check_joined(build(weights=None, include_top=False, input_shape=(96, 96, 3)))


def check_joined(model: keras.Model) -> None:
    joined = with_depths(model)
    own, deep = ftk.conv_blocks(model), ftk.conv_blocks(joined)
    assert [block.name for block in own] == [block.name for block in deep]
    for block, other in zip(own, deep, strict=True):
        assert set(block.layers) <= set(other.layers)
    half = [block.name for block in own[len(own) // 2 :]]
    found = [layer for block in deep[len(own) // 2 :] for layer in block.layers]
    assert [layer for layer in found if layer.endswith("_depth")] == [f"{n}_depth" for n in half]


def residual_net() -> keras.Model:
    x = inputs = keras.Input((32, 32, 3))
    x = layers.MaxPooling2D()(conv(x))
    for _ in range(3):
        x = layers.ReLU()(layers.Add()([x, layers.Conv2D(4, 3, padding="same")(conv(x))]))
    x = conv(x, 8, strides=2)
    for _ in range(2):
        x = x + conv(conv(x, 8), 8)
    return keras.Model(inputs, x, name="residual_net")


def test_the_blocks_of_an_unnamed_residual_net_are_its_residual_units():
    blocks = ftk.conv_blocks(residual_net())
    assert len(blocks) == 1 + 3 + 1 + 2  # stem, units, downsampling step, units
    assert [sum("conv2d" in layer for layer in block.layers) for block in blocks] == [
        1, 2, 2, 2, 1, 2, 2]  # fmt: skip
    assert [block.output_shape[1] for block in blocks] == [16, 16, 16, 16, 8, 8, 8]
    assert len(ftk.conv_blocks(residual_net(), "stage")) == 2
    assert len(ftk.conv_blocks(residual_net(), "layer")) == 12


def test_a_single_layer_with_the_name_of_a_block_does_not_decide():
    x = inputs = keras.Input((32, 32, 3))
    for name in (None, None, "block1_conv"):
        x = layers.ReLU()(layers.Conv2D(4, 3, strides=2, name=name)(x))
    assert len(ftk.conv_blocks(keras.Model(inputs, x))) == 3


def test_an_input_that_is_read_again_at_the_end_joins_no_blocks():
    x = inputs = keras.Input((16, 16, 3))
    for _ in range(3):
        x = layers.Conv2D(3, 3, padding="same")(x)
        x = layers.ReLU()(layers.Add()([x, layers.Conv2D(3, 3, padding="same")(conv(x, 3))]))
    residual = keras.Model(inputs, layers.Add()([x, inputs]))
    assert len(ftk.conv_blocks(residual)) == len(ftk.conv_blocks(keras.Model(inputs, x))) > 3


def test_the_blocks_of_a_plain_stack_begin_where_the_resolution_changes():
    x = inputs = keras.Input((32, 32, 3))
    for filters in (4, 8, 16):
        x = layers.MaxPooling2D()(conv(conv(x, filters), filters))
    model = keras.Model(inputs, x)
    assert [block.output_shape for block in ftk.conv_blocks(model)] == [
        (None, 16, 16, 4), (None, 8, 8, 8), (None, 4, 4, 16)]  # fmt: skip
    assert len(ftk.conv_blocks(model, "layer")) == 6


def test_each_convolution_is_a_block_if_the_resolution_never_or_always_changes():
    stack = keras.Sequential([keras.Input((8, 8, 3)), *(layers.Conv2D(4, 3) for _ in range(3))])
    assert len(ftk.conv_blocks(stack)) == 3
    same = [layers.Conv2D(4, 3, padding="same") for _ in range(4)]
    assert len(ftk.conv_blocks(keras.Sequential([keras.Input((8, 8, 3)), *same]))) == 4


def test_the_blocks_of_a_unet_encoder_are_its_resolutions():
    x = inputs = keras.Input((32, 32, 3))
    skips = []
    for filters in (4, 8, 16):
        x = conv(conv(x, filters), filters)
        skips.append(x)
        x = layers.MaxPooling2D()(x)
    model = keras.Model(inputs, [*skips, conv(x, 32)])
    assert len(ftk.conv_blocks(model)) == 4


def decoder(x, skips, upsample):
    for filters, skip in zip((16, 8, 4), reversed(skips), strict=True):
        x = layers.Concatenate()([upsample(filters)(x), skip])
        x = conv(conv(x, filters), filters)
    return layers.Conv2D(2, 1)(x)


@pytest.mark.parametrize(
    ("upsample", "crossing"),
    [
        (lambda filters: layers.UpSampling2D(), [2, 3, 3]),
        (lambda filters: layers.Conv2DTranspose(filters, 2, 2), [3, 4, 3]),
    ],
    ids=["upsampling", "transposed"],
)
def test_a_unet_is_cut_between_resolutions_with_its_skips_crossing(upsample, crossing):
    x = inputs = keras.Input((32, 32, 3))
    skips = []
    for filters in (4, 8, 16):
        skips.append(conv(conv(x, filters), filters))
        x = layers.MaxPooling2D()(skips[-1])
    model = keras.Model(inputs, decoder(conv(conv(x, 32), 32), skips, upsample))
    blocks = ftk.conv_blocks(model)
    assert len(blocks) == 3 + 1 + 3
    assert [sum("re_lu" in layer for layer in block.layers) for block in blocks] == [2] * 7
    pixels = np.random.default_rng(0).normal(size=(1, 32, 32, 3)).astype("float32")
    before = keras.ops.convert_to_numpy(model(pixels))
    for at in range(8):
        prefix, suffix = ftk.cut(model, at)
        after = keras.ops.convert_to_numpy(ftk.stitch(prefix, suffix)(pixels))
        assert np.allclose(after, before, atol=1e-5)
    assert [len(ftk.cut(model, at)[0].outputs) for at in (2, 3, 4)] == crossing


def test_a_decoder_behind_a_named_backbone_has_blocks_of_its_own(mobilenet):
    skips = [f"block_{i}_expand_relu" for i in (1, 3, 6)]
    tops = [mobilenet.get_layer(name).output for name in (*skips, "block_12_add")]
    encoder = keras.Model(mobilenet.input, tops, name="encoder")
    *skips, x = encoder(inputs := keras.Input((32, 32, 3)))
    upsample = lambda filters: layers.Conv2DTranspose(filters, 2, 2)  # noqa: E731
    unet = keras.Model(inputs, decoder(layers.UpSampling2D(1)(x), skips, upsample))
    blocks = ftk.conv_blocks(unet)
    assert [b.name for b in blocks[:14]] == names(mobilenet)[:14]
    assert [b.name.startswith("conv2d_transpose") for b in blocks[14:]] == [True] * 3
    plan = ftk.FineTuneSpec(3).plan(unet)  # the decoder alone
    assert plan.trainable_params == sum(block.params for block in blocks[-3:]) - 2 * 2 * 2 * 28


def test_blocks_are_found_in_layers_with_a_prefix_in_their_names(mobilenet):
    renamed = keras.models.clone_model(
        mobilenet,
        clone_function=lambda layer: layer.__class__.from_config(
            {**layer.get_config(), "name": f"encoder_{layer.name}"}
        ),
    )
    assert names(renamed)[1:-1] == names(mobilenet)[1:-1]
    assert len(names(renamed)) == 19


def test_the_graph_alone_gives_the_blocks_of_a_resnet_without_names():
    backbone = keras.applications.ResNet50(weights=None, include_top=False, input_shape=(32, 32, 3))
    numbers = iter(range(1000))
    nameless = keras.models.clone_model(
        backbone,
        clone_function=lambda layer: layer.__class__.from_config(
            {**layer.get_config(), "name": f"l{next(numbers)}"}
        ),
    )
    found, expected = ftk.conv_blocks(nameless), ftk.conv_blocks(backbone)
    assert len(found) == len(expected) == 17
    assert [block.params for block in found] == [block.params for block in expected]


def test_a_saved_and_loaded_model_has_the_same_blocks(mobilenet, tmp_path):
    mobilenet.save(tmp_path / "model.keras")
    assert ftk.conv_blocks(keras.models.load_model(tmp_path / "model.keras")) == ftk.conv_blocks(
        mobilenet)  # fmt: skip


def test_a_backbone_inside_another_model_has_the_same_blocks(mobilenet):
    expected = names(mobilenet)
    inputs = keras.Input((32, 32, 3))
    x = mobilenet(layers.Rescaling(1 / 127.5, offset=-1)(inputs))
    outer = keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling2D()(x)))
    assert names(outer) == expected
    pooled = keras.Sequential([keras.Input((32, 32, 3)), mobilenet, ftk.classification_head(3)])
    assert names(pooled) == expected
    assert names(ftk.FineTuneSpec(1).build(keras.models.clone_model(mobilenet),
                                          ftk.classification_head(3))) == expected  # fmt: skip


def test_a_spec_applies_to_a_backbone_inside_another_model(mobilenet):
    backbone = keras.models.clone_model(mobilenet)
    outer = keras.Sequential([keras.Input((32, 32, 3)), backbone, ftk.classification_head(3)])
    plan = ftk.FineTuneSpec(1).apply(outer)
    assert [v.path for v in outer.trainable_variables] == list(plan.trainable_variables)
    assert [w.path for w in backbone.trainable_weights] == ["Conv_1/kernel"]
    assert plan.top_params == 1280 * 3 + 3


def test_layers_of_several_weighted_layers_are_blocks():
    x = inputs = keras.Input((16, 8))
    x = layers.Dense(8)(x)
    for _ in range(4):
        unit = keras.Sequential([layers.Dense(16), layers.LayerNormalization(), layers.Dense(8)])
        x = unit(x)
    assert len(ftk.conv_blocks(keras.Model(inputs, x))) == 5


class Unit(keras.Layer):
    """A layer of two weighted layers, as an encoder layer of a vision transformer is."""

    def __init__(self, **options):
        super().__init__(**options)
        self.inner = [layers.Dense(16), layers.Dense(8)]

    def build(self, shape):
        self.inner[0].build(shape)
        self.inner[1].build((*shape[:-1], 16))

    def call(self, x):
        return x + self.inner[1](self.inner[0](x))


class Encoder(keras.Layer):
    def __init__(self):
        super().__init__()
        self.units = [Unit(name=f"unit_{i}") for i in range(3)]

    def build(self, shape):
        for unit in self.units:
            unit.build(shape)

    def call(self, x):
        for unit in self.units:
            x = unit(x)
        return x


def test_a_layer_that_is_a_stack_of_units_is_opened():
    inputs = keras.Input((16, 8))
    model = keras.Model(inputs, Encoder()(layers.Dense(8)(inputs)))
    assert names(model) == ["stem", "unit_0", "unit_1", "unit_2"]
    plan = ftk.FineTuneSpec(1).plan(model)
    assert len(plan.trainable_variables) == 4
    x = np.random.default_rng(0).normal(size=(2, 16, 8)).astype("float32")
    prefix, suffix = ftk.cut(model, "unit_1")
    before, after = map(keras.ops.convert_to_numpy, (model(x), suffix(prefix(x))))
    assert np.allclose(before, after, atol=1e-5)


def test_a_backbone_for_images_of_any_size_has_stages():
    backbone = keras.applications.MobileNet(
        weights=None, alpha=0.25, include_top=False, input_shape=(None, None, 3)
    )
    assert names(backbone, "stage") == ["stem", "block_2", "block_4", "block_6", "block_12"]


def test_a_layer_called_twice_and_all_between_its_calls_are_one_block():
    shared = layers.Conv2D(4, 3, padding="same")
    x = inputs = keras.Input((8, 8, 4))
    x = layers.Conv2D(4, 3, padding="same")(x)
    x = shared(layers.ReLU()(layers.Conv2D(4, 3, padding="same")(shared(x))))
    model = keras.Model(inputs, x)
    holding = [block for block in ftk.conv_blocks(model) if shared.name in block.layers]
    assert len(holding) == 1
    assert len(holding[0].layers) >= 3  # what lies between its two calls cannot be cut off


def test_a_model_with_several_inputs_and_outputs_has_each_operation_in_a_block():
    image, table = keras.Input((16, 16, 3)), keras.Input((5,))
    x = conv(conv(image), strides=2)
    y = conv(x * layers.Reshape((1, 1, 4))(layers.Dense(4)(table)))
    model = keras.Model([image, table], [y, x])
    blocks = ftk.conv_blocks(model)
    flat = [layer for block in blocks for layer in block.layers]
    assert sorted(flat) == sorted(operation.name for operation in model.operations)


def test_pooling_belongs_to_the_last_block_and_a_classifier_to_none():
    options = {"weights": None, "input_shape": (32, 32, 3)}
    plain = keras.applications.VGG16(include_top=False, **options)
    pooled = keras.applications.VGG16(include_top=False, pooling="avg", **options)
    full = keras.applications.VGG16(**options, classes=3)
    assert names(plain) == names(pooled) == names(full)
    assert ftk.conv_blocks(pooled)[-1].layers[-1].startswith("global_average_pooling2d")
    assert [block.layers[1:] for block in ftk.conv_blocks(full)] == [
        block.layers[1:] for block in ftk.conv_blocks(plain)
    ]


def test_an_unknown_level_is_an_error(mobilenet):
    with pytest.raises(ValueError, match="`level` must be one of"):
        ftk.conv_blocks(mobilenet, "blocks")


@pytest.mark.slow
@pytest.mark.skipif(find_spec("keras_hub") is None, reason="keras-hub is not installed")
def test_backbones_of_keras_hub_have_the_blocks_of_their_architecture():
    import keras_hub

    resnet = keras_hub.models.ResNetBackbone(
        input_conv_filters=[64], input_conv_kernel_sizes=[7], stackwise_num_filters=[64, 64],
        stackwise_num_blocks=[2, 3], stackwise_num_strides=[1, 2], block_type="basic_block",
        image_shape=(32, 32, 3))  # fmt: skip
    assert len(ftk.conv_blocks(resnet)) == 1 + 2 + 3
    densenet = keras_hub.models.DenseNetBackbone([2, 3, 2], image_shape=(32, 32, 3))
    assert len(ftk.conv_blocks(densenet)) == 1 + 2 + 1 + 3 + 1 + 2
    bert = keras_hub.models.BertBackbone(
        vocabulary_size=50, num_layers=4, num_heads=2, hidden_dim=8, intermediate_dim=16
    )
    units = [name for name in names(bert) if "transformer" in name]
    assert len(units) == 4
    assert names(bert)[-5:-1] == units  # the pooler closes it


@pytest.mark.slow
@pytest.mark.skipif(find_spec("keras_hub") is None, reason="keras-hub is not installed")
def test_the_blocks_of_a_keras_hub_vision_transformer_are_its_encoder_layers(tiny_images):
    import keras_hub

    vit = keras_hub.models.ViTBackbone(
        image_shape=(32, 32, 3), patch_size=8, num_layers=4, num_heads=2, hidden_dim=8, mlp_dim=16
    )
    assert names(vit) == ["stem", *(f"transformer_block_{i}" for i in (1, 2, 3, 4))]
    before = vit.predict(x := tiny_images.load(size=(32, 32)) / 255.0, verbose=0)
    prefix, suffix = ftk.cut(vit, 2)
    assert np.allclose(suffix.predict(prefix.predict(x, verbose=0), verbose=0), before, atol=1e-5)
    head = keras.Sequential([layers.GlobalAveragePooling1D(), layers.Dense(3, "softmax")])
    spec = ftk.FineTuneSpec(1)
    scale = layers.Rescaling(1 / 255)
    tuned = ftk.fine_tune(vit, head, spec, tiny_images, preprocessing=scale, verbose=0)
    after = {w.path: keras.ops.convert_to_numpy(w) for w in tuned.model.weights}
    trained = set(spec.plan(vit).trainable_variables)
    for number in (1, 2, 3, 4):
        assert any(f"transformer_block_{number}/" in path for path in trained) == (number == 4)
    for weight in vit.weights:
        same = np.array_equal(after[weight.path], keras.ops.convert_to_numpy(weight))
        assert same or weight.path in trained, weight.path


@pytest.mark.slow
@pytest.mark.skipif(find_spec("keras_hub") is None, reason="keras-hub is not installed")
def test_composite_blocks_of_keras_hub_have_the_names_of_their_layers():
    import keras_hub

    mobile = keras_hub.models.MobileNetBackbone(
        stackwise_expansion=[[40, 56], [64, 144]], stackwise_num_blocks=[2, 2],
        stackwise_num_filters=[[16, 16], [24, 24]], stackwise_kernel_size=[[3, 3], [5, 5]],
        stackwise_num_strides=[[2, 1], [2, 1]], stackwise_se_ratio=[[None, 0.25], [0.25, 0.25]],
        stackwise_activation=[["relu"] * 2] * 2, stackwise_padding=[[1, 1], [2, 2]],
        output_num_filters=None, depthwise_filters=8, depthwise_stride=2,
        depthwise_residual=False, last_layer_filter=64, image_shape=(32, 32, 3))  # fmt: skip
    assert names(mobile) == ["stem", "block_0_0", "block_1_0", "block_1_1", "block_2_0",
                             "block_2_1", "block_3_0"]  # fmt: skip
    efficient = keras_hub.models.EfficientNetBackbone(
        width_coefficient=1.0, depth_coefficient=1.0, stackwise_kernel_sizes=[3, 3],
        stackwise_num_repeats=[1, 2], stackwise_input_filters=[32, 16],
        stackwise_output_filters=[16, 24], stackwise_expansion_ratios=[1, 6],
        stackwise_strides=[1, 2], stackwise_squeeze_and_excite_ratios=[0.25, 0.25],
        stackwise_block_types=["v1", "v1"], min_depth=8, image_shape=(32, 32, 3),
        include_initial_padding=False)  # fmt: skip
    assert len(ftk.conv_blocks(efficient)) == 1 + 3 + 1


def test_the_output_shape_of_a_block_is_that_of_its_last_layer(mobilenet):
    for block in ftk.conv_blocks(mobilenet):
        prefix = keras.Model(mobilenet.input, mobilenet.get_layer(block.layers[-1]).output)
        assert prefix.output_shape == block.output_shape
