"""The start of the how-to pages: image sets, backbone and head, as in the quickstart."""

import keras
import numpy as np

import finetune_kit as ftk

rng = np.random.default_rng(0)
labels = np.repeat(["blue", "green", "red"], 20)
pixels = rng.integers(0, 100, (60, 32, 32, 3), dtype=np.uint8)
for i, name in enumerate(labels):
    pixels[i, :, :, ["red", "green", "blue"].index(name)] += 120
images = ftk.ImageSet.from_arrays(pixels, labels)
train, validation, test = images.split((0.70, 0.15, 0.15), seed=0)
keras.utils.set_random_seed(0)
inputs = keras.Input((32, 32, 3))
x = keras.layers.Rescaling(1 / 127.5, offset=-1)(inputs)
for number, filters in enumerate([8, 16, 32, 64], start=1):
    block = f"block{number}"
    x = keras.layers.Conv2D(filters, 3, strides=2, padding="same", name=f"{block}_conv")(x)
    x = keras.layers.BatchNormalization(name=f"{block}_bn")(x)
    x = keras.layers.ReLU(name=f"{block}_relu")(x)
backbone = keras.Model(inputs, x, name="small")
head = ftk.classification_head(images.class_names, units=(16,))
