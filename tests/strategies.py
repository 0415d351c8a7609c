"""Hypothesis strategies: labels, sizes, groups, specs, and graphs of models."""

from __future__ import annotations

import keras
from hypothesis import strategies as st

import finetune_kit as ftk

sizes = st.one_of(
    st.sampled_from([(0.7, 0.15, 0.15), (0.8, 0.2, 0.0), (1.0, 0.0, 0.0), (1 / 3, 1 / 3, 1 / 3)]),
    st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(1, 9)).map(
        lambda counts: tuple(count / sum(counts) for count in counts)
    ),
)


@st.composite
def labels(draw, min_count: int = 3, max_count: int = 60) -> list[str]:
    """Shuffled labels of one to five classes, each with at least `min_count` samples."""
    counts = draw(st.lists(st.integers(min_count, max_count), min_size=1, max_size=5))
    flat = [f"class {i}" for i, count in enumerate(counts) for _ in range(count)]
    return draw(st.permutations(flat))


@st.composite
def grouped_labels(draw, most: int = 40) -> tuple[list[str], list[str]]:
    """Labels and patients. A patient has one or several images, of one or several classes."""
    single = [[f"class {i}"] for i in range(draw(st.integers(1, 2))) for _ in range(3)]
    image = st.sampled_from([f"class {i}" for i in range(len(single) // 3)])
    one_class = st.tuples(image, st.integers(1, 12)).map(lambda drawn: [drawn[0]] * drawn[1])
    several = st.lists(image, min_size=1, max_size=4)
    drawn = draw(st.lists(st.one_of(one_class, several), max_size=most - len(single)))
    patients = draw(st.permutations([*single, *drawn]))
    labels = [label for images in patients for label in images]
    return labels, [f"patient {p}" for p, images in enumerate(patients) for _ in images]


# Specs for a backbone of (at least) the four blocks `block1` to `block4`.
specs = st.builds(
    ftk.FineTuneSpec,
    st.one_of(
        st.integers(0, 4),
        st.just("all"),
        st.lists(st.sampled_from(["block1", "block2", "block3", "block4"]), unique=True).map(tuple),
    ),
    batch_norm=st.sampled_from(["frozen", "train"]),
    epochs=st.integers(1, 100),
    learning_rate=st.floats(1e-6, 1.0),
    layer_decay=st.sampled_from([1.0, 0.5]),
    schedule=st.sampled_from([None, "cosine"]),
    warmup=st.sampled_from([0.0, 0.1]),
    keep=st.sampled_from(["best", "last"]),
)


UNITS = ["plain", "norm", "residual", "branch", "dense", "nested", "twice", "pool", "skip"]

# The arguments of `build_graph`: units, misleading names of layers (or none), and whether a
# convolution comes last. The model is built in the test, because building draws random numbers.
graphs = st.tuples(
    st.lists(st.sampled_from(UNITS), min_size=1, max_size=5),
    st.one_of(st.just(()), st.permutations([f"block{i}_conv{i}" for i in range(1, 9)])),
    st.booleans(),
)


def build_graph(graph) -> keras.Model:
    """Build a functional model of convolutions, residuals, branches, nested models and poolings."""
    units, names, closed = graph
    layers, rest = keras.layers, iter(names)

    def conv(filters: int = 4, **options):
        return layers.Conv2D(filters, 3, padding="same", name=next(rest, None), **options)

    x = inputs = keras.Input((8, 8, 3))
    x = conv()(x)
    for unit in units:
        if unit == "plain":
            x = conv(4, activation="relu")(x)
        elif unit == "norm":
            x = layers.ReLU()(layers.BatchNormalization()(conv()(x)))
        elif unit == "residual":
            x = layers.Conv2D(4, 1)(x)
            x = x + conv()(layers.ReLU()(conv()(x)))
        elif unit == "branch":
            x = layers.Concatenate()([conv(2)(x), layers.MaxPooling2D(3, 1, "same")(x), conv(2)(x)])
        elif unit == "dense":
            x = layers.Concatenate()([x, conv(2)(layers.BatchNormalization()(x))])
        elif unit == "nested":
            inner = keras.Input(x.shape[1:])
            x = keras.Model(inner, layers.ReLU()(layers.Conv2D(4, 1)(inner)))(x)
        elif unit == "twice":
            x = layers.Conv2D(4, 1)(x)
            shared = layers.Conv2D(4, 3, padding="same")
            x = shared(layers.ReLU()(shared(x)))
        elif unit == "skip" and x.shape[1] > 1:  # down and up again, as in a U-Net
            y = layers.UpSampling2D()(conv()(layers.MaxPooling2D()(x)))
            x = layers.Concatenate()([x, y])
        else:
            x = layers.MaxPooling2D(2, padding="same")(x)
    return keras.Model(inputs, layers.ReLU()(conv()(x)) if closed else x)
