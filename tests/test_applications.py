"""The contract over all 40 keras.applications: laws 1 and 2, the papers' counts, preprocessing."""

from __future__ import annotations

import importlib
from itertools import pairwise
from pathlib import Path

import blocks_table
import keras
import numpy as np
import preprocessing_table
import pytest

import finetune_kit as ftk

# Blocks and weighted layers by the papers: stem + repeating units + transitions + top convolution.
# MobileNetV2, for one (Sandler et al. 2018, table 2): stem, 17 bottlenecks, top convolution.
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


def preprocess_input(name: str):
    """What keras.applications itself does to the pixels."""
    module = "resnet_v2" if name.startswith("ResNet") and name.endswith("V2") else "resnet"
    module = next((m for prefix, m in MODULES.items() if name.startswith(prefix)), module)
    return importlib.import_module(f"keras.applications.{module}").preprocess_input


def producers(model: keras.Model) -> list[tuple[str, str]]:
    """The edges of the graph as the model's own configuration tells them, by layer name."""
    edges = []
    for layer in model.get_config()["layers"]:
        for node in layer["inbound_nodes"]:
            edges += [(source, layer["name"]) for source in _sources(node)]
    return edges


def _sources(node) -> list[str]:
    if isinstance(node, dict):
        history = (node.get("config") or {}).get("keras_history")
        return [history[0]] if history else [s for v in node.values() for s in _sources(v)]
    if isinstance(node, (list, tuple)):
        return [s for v in node for s in _sources(v)]
    return []


def test_all_applications_are_covered():
    built = {n for n in dir(keras.applications) if n[0].isupper()}
    assert built == set(COUNTS)
    assert len(COUNTS) == 40


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(COUNTS))
def test_the_contract(name):
    if name == "NASNetMobile" and keras.backend.backend() == "torch":
        pytest.skip("keras.applications has no NASNetMobile on torch")
    backbone = blocks_table.build(name)
    levels = [ftk.conv_blocks(backbone, level) for level in ("stage", "block", "layer")]
    assert tuple(map(len, levels)) == COUNTS[name]
    last = LAST.get(name, [])
    assert [block.name for block in levels[1]][len(levels[1]) - len(last) :] == last

    for table, page in ((blocks_table, "blocks.md"), (preprocessing_table, "preprocessing.md")):
        text = (Path(table.__file__).parent / page).read_text(encoding="utf-8")
        assert table.row(name, backbone) in text

    edges = producers(backbone)
    every_layer = {operation.name for operation in backbone.operations}
    for blocks in levels:
        names = [layer for block in blocks for layer in block.layers]
        assert len(names) == len(set(names)), "a layer is in two blocks"
        assert set(names) == every_layer
        place = {layer: i for i, layer in enumerate(names)}
        assert all(place[source] < place[target] for source, target in edges), "not topological"
        assert sum(block.params for block in blocks) == backbone.count_params()
        assert len({block.name for block in blocks}) == len(blocks)
    for coarse, fine in pairwise(levels):
        sets = [set(block.layers) for block in coarse]
        assert all(any(set(block.layers) <= s for s in sets) for block in fine), "not finer"

    for n in (0, 1, len(levels[1])):
        plan = ftk.FineTuneSpec(n, batch_norm="train").apply(backbone)
        assert sum(plan.trainable) == n
        assert sorted(v.path for v in backbone.trainable_variables) == sorted(
            plan.trainable_variables
        )
    with pytest.raises(ValueError, match=f"between 0 and {len(levels[1])}"):
        ftk.FineTuneSpec(len(levels[1]) + 1).plan(backbone)

    half = len(levels[1]) // 2
    prefix, suffix = ftk.cut(backbone, half)
    whole = ftk.stitch(prefix, suffix)
    names = {layer for block in levels[1][-half:] for layer in block.layers}
    assert {layer.name for layer in suffix.layers if layer.weights} <= names
    assert not {layer.name for layer in prefix.layers} & names
    assert prefix.count_params() + suffix.count_params() == whole.count_params()
    assert whole.count_params() == backbone.count_params()
    if keras.backend.backend() != "jax":  # which compiles each operation by itself: too slow here
        x = np.random.default_rng(0).normal(size=(1, *backbone.input_shape[1:])).astype("float32")
        before, after = (keras.ops.convert_to_numpy(model(x)) for model in (backbone, whole))
        assert np.allclose(before, after, rtol=1e-4, atol=1e-5)

    pixels = np.random.default_rng(0).integers(0, 256, (1, 4, 4, 3)).astype("float32")
    ours = keras.ops.convert_to_numpy(ftk.preprocessing(backbone)(pixels))
    assert np.allclose(ours, preprocess_input(name)(pixels.copy()), atol=1e-4)
    keras.backend.clear_session()
