"""The grammar of generated values: labels, sizes, groups, specs."""

from __future__ import annotations

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
)
