"""The contract that each of the 40 keras.applications must fulfil: blocks, plans, cuts, pixels."""

from __future__ import annotations

import importlib
import json
from itertools import pairwise
from pathlib import Path

import blocks_table
import keras
import numpy as np
import preprocessing_table
import pytest

import finetune_kit as ftk

# Stages, blocks and weighted layers as in the papers. The blocks are the stem, the repeating units,
# the transitions and the top convolution: in MobileNetV2 (Sandler et al. 2018, table 2) a stem, 17
# bottlenecks and a top convolution.
COUNTS = {
    "ConvNeXtTiny": (4, 22, 58), "ConvNeXtSmall": (4, 40, 112), "ConvNeXtBase": (4, 40, 112),
    "ConvNeXtLarge": (4, 40, 112), "ConvNeXtXLarge": (4, 40, 112),
    "DenseNet121": (4, 62, 120), "DenseNet169": (4, 86, 168), "DenseNet201": (4, 102, 200),
    "EfficientNetB0": (5, 18, 81), "EfficientNetB1": (5, 25, 115), "EfficientNetB2": (5, 25, 115),
    "EfficientNetB3": (5, 28, 130), "EfficientNetB4": (5, 34, 160), "EfficientNetB5": (5, 41, 194),
    "EfficientNetB6": (5, 47, 224), "EfficientNetB7": (5, 57, 273),
    "EfficientNetV2B0": (5, 23, 91), "EfficientNetV2B1": (5, 29, 111),
    "EfficientNetV2B2": (5, 30, 116), "EfficientNetV2B3": (5, 34, 136),
    "EfficientNetV2S": (5, 42, 170), "EfficientNetV2M": (5, 59, 245),
    "EfficientNetV2L": (5, 81, 339),
    "InceptionV3": (3, 12, 94), "InceptionResNetV2": (3, 45, 244),
    "MobileNet": (5, 14, 27), "MobileNetV2": (5, 19, 52),
    "MobileNetV3Small": (5, 13, 52), "MobileNetV3Large": (5, 17, 62),
    "NASNetMobile": (5, 17, 196), "NASNetLarge": (5, 23, 268),
    "ResNet50": (4, 17, 53), "ResNet101": (4, 34, 104), "ResNet152": (4, 51, 155),
    "ResNet50V2": (4, 17, 53), "ResNet101V2": (4, 34, 104), "ResNet152V2": (4, 51, 155),
    "VGG16": (5, 5, 13), "VGG19": (5, 5, 16), "Xception": (5, 14, 40),
}  # fmt: skip
LAST = {
    "MobileNetV2": ["block_15", "block_16", "Conv_1"], "EfficientNetB0": ["block7a", "top_conv"],
    "InceptionResNetV2": ["block8_10", "conv_7b"], "InceptionV3": ["mixed9", "mixed10"],
    "DenseNet121": ["conv5_block15", "conv5_block16"], "ResNet50": ["conv5_block3"],
    "ConvNeXtTiny": ["stage_3_block_2"], "Xception": ["block13", "block14"],
    "MobileNet": ["block_13"], "VGG16": ["block5"], "NASNetLarge": ["cell_18"],
}  # fmt: skip
MODULES = {
    "ConvNeXt": "convnext", "DenseNet": "densenet", "EfficientNetV2": "efficientnet_v2",
    "EfficientNet": "efficientnet", "InceptionResNetV2": "inception_resnet_v2",
    "InceptionV3": "inception_v3", "MobileNetV3": "mobilenet_v3", "MobileNetV2": "mobilenet_v2",
    "MobileNet": "mobilenet", "NASNet": "nasnet", "VGG16": "vgg16", "VGG19": "vgg19",
    "Xception": "xception",
}  # fmt: skip


# One of each family, the cheapest: it is cut at several boundaries, the others in the middle.
CHEAPEST = {
    "ConvNeXtTiny", "DenseNet121", "EfficientNetB0", "EfficientNetV2B0", "InceptionResNetV2",
    "InceptionV3", "MobileNet", "MobileNetV2", "MobileNetV3Small", "NASNetLarge", "ResNet50",
    "ResNet50V2", "VGG16", "Xception",
}  # fmt: skip


def keras_preprocessing(name: str):
    """The function with which keras.applications itself preprocesses pixels."""
    module = "resnet_v2" if name.startswith("ResNet") and name.endswith("V2") else "resnet"
    module = next((m for prefix, m in MODULES.items() if name.startswith(prefix)), module)
    return importlib.import_module(f"keras.applications.{module}").preprocess_input


def wiring(model: keras.Model) -> dict[str, str]:
    """For each layer, its calls as the model's configuration records them; inputs are anonymous."""
    layers = model.get_config()["layers"]
    calls = {layer["name"]: json.dumps(layer["inbound_nodes"]) for layer in layers}
    for layer in (layer for layer in layers if layer["class_name"] == "InputLayer"):
        del calls[layer["name"]]
        calls = {name: text.replace(f'"{layer["name"]}"', "input") for name, text in calls.items()}
    return calls


def edges(model: keras.Model) -> list[tuple[str, str]]:
    """The pairs of layers of which the second reads the first, as the configuration has them."""
    return [
        (source, layer["name"])
        for layer in model.get_config()["layers"]
        for node in layer["inbound_nodes"]
        for source in _sources(node)
    ]


def _sources(node) -> list[str]:
    if isinstance(node, dict):
        history = (node.get("config") or {}).get("keras_history")
        return [history[0]] if history else [s for v in node.values() for s in _sources(v)]
    if isinstance(node, (list, tuple)):
        return [s for v in node for s in _sources(v)]
    return []


def layer_names(blocks) -> list[str]:
    return [layer for block in blocks for layer in block.layers]


def check_counts(name, levels):
    assert tuple(map(len, levels)) == COUNTS[name]
    names, last = [block.name for block in levels[1]], LAST.get(name, [])
    assert names[len(names) - len(last) :] == last


def check_tables(name, backbone):
    for table, page in ((blocks_table, "blocks.md"), (preprocessing_table, "preprocessing.md")):
        text = (Path(table.__file__).parent / page).read_text(encoding="utf-8")
        assert table.row(name, backbone) in text, "run the script of the table again"


def check_partitions(backbone, levels):
    pairs = edges(backbone)
    for blocks in levels:
        names = layer_names(blocks)
        assert len(names) == len(set(names)), "a layer is in two blocks"
        assert set(names) == {operation.name for operation in backbone.operations}
        place = {layer: i for i, layer in enumerate(names)}
        assert all(place[source] < place[target] for source, target in pairs)
        assert sum(block.params for block in blocks) == backbone.count_params()
        assert len({block.name for block in blocks}) == len(blocks)
    for coarse, fine in pairwise(levels):
        sets = [set(block.layers) for block in coarse]
        assert all(any(set(block.layers) <= s for s in sets) for block in fine), "not finer"


def check_plans(backbone, count):
    for n in (0, 1, count):
        plan = ftk.FineTuneSpec(n, batch_norm="train").apply(backbone)
        assert sum(plan.trainable) == n
        trainable = sorted(variable.path for variable in backbone.trainable_variables)
        assert trainable == sorted(plan.trainable_variables)
        assert bool(trainable) == (n > 0)
    with pytest.raises(ValueError, match=f"between 0 and {count}"):
        ftk.FineTuneSpec(count + 1).plan(backbone)


def check_cuts(name, backbone, blocks):
    expected, half = wiring(backbone), len(blocks) // 2
    for at in (1, 3, len(blocks) - 1, half) if name in CHEAPEST else [half]:
        prefix, suffix = ftk.cut(backbone, at)
        whole = ftk.stitch(prefix, suffix)
        assert wiring(whole) == expected
        assert all(whole.get_layer(x.name) is x for x in backbone.layers if x.weights)
        behind = set(layer_names(blocks[-at:]))
        assert {layer.name for layer in suffix.layers if layer.weights} <= behind
        assert not {layer.name for layer in prefix.layers} & behind
        if not name.startswith("NASNet"):  # in which a cell reads the two cells before it
            assert len(prefix.outputs) == 1
        elif at in (1, 3):
            assert len(prefix.outputs) == 2
    if name in CHEAPEST and keras.backend.backend() != "jax":  # which compiles each operation
        x = np.random.default_rng(0).normal(size=(1, *backbone.input_shape[1:])).astype("float32")
        before, after = (keras.ops.convert_to_numpy(model(x)) for model in (backbone, whole))
        assert np.allclose(before, after, rtol=1e-4, atol=1e-5)


def check_preprocessing(name, backbone):
    pixels = np.random.default_rng(0).integers(0, 256, (1, 4, 4, 3)).astype("float32")
    found = keras.ops.convert_to_numpy(ftk.preprocessing(backbone)(pixels))
    assert np.allclose(found, keras_preprocessing(name)(pixels.copy()), atol=1e-4)


def test_all_applications_are_covered():
    assert {name for name in dir(keras.applications) if name[0].isupper()} == set(COUNTS)
    assert len(COUNTS) == 40


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in CHEAPEST else pytest.mark.once)
        for name in sorted(COUNTS)
    ],
)
def test_each_application_fulfils_the_contract(name):
    if name == "NASNetMobile" and keras.backend.backend() == "torch":
        pytest.skip("keras.applications has no NASNetMobile on torch")
    backbone = blocks_table.build(name)  # most of the time: once for all checks
    levels = [ftk.conv_blocks(backbone, level) for level in ("stage", "block", "layer")]
    check_counts(name, levels)
    check_tables(name, backbone)
    check_partitions(backbone, levels)
    check_plans(backbone, len(levels[1]))
    check_cuts(name, backbone, levels[1])
    check_preprocessing(name, backbone)
    keras.backend.clear_session()
