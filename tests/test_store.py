"""Law 6 for files of a cache: whatever happens to them, features are the right ones."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import finetune_kit as ftk
from finetune_kit._features import entry, store
from finetune_kit._features.inputs import Decode
from finetune_kit._features.place import Place
from finetune_kit._features.rows import Rows


@pytest.fixture(scope="module")
def backbone(build_small):
    return build_small()


@pytest.fixture(scope="module")
def extract(backbone, tiny_images):
    """Reads all features from a folder, as a new process does."""

    def call(folder: Path) -> np.ndarray:
        store._verified.clear()
        options = {"pooling": None, "batch_size": 4, "preprocessing": None, "verbose": 0}
        return ftk.extract_features(backbone, tiny_images, features=folder, **options)

    return call


@pytest.fixture(scope="module")
def filled(extract, tmp_path_factory):
    """A cache of six chunks, and the features in it. Tests copy it."""
    folder = tmp_path_factory.mktemp("filled")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(entry, "_CHUNK_ROWS", 4)
        features = extract(folder)
    assert len(files(folder, ".npy")) == len(files(folder, ".index")) == 6
    return folder, features


@pytest.fixture
def cache(filled, tmp_path):
    return Path(shutil.copytree(filled[0], tmp_path / "cache"))


def files(folder: Path, *suffixes: str) -> list[Path]:
    return sorted(path for path in folder.glob("*/*") if path.suffix in suffixes)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in files(folder, ".npy", ".index")}


def flipped(path: Path, place: float, other: bytes) -> None:
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1
    path.write_bytes(content)


def cut_short(path: Path, place: float, other: bytes) -> None:
    path.write_bytes(path.read_bytes()[: int(place * path.stat().st_size)])


def extended(path: Path, place: float, other: bytes) -> None:
    path.write_bytes(path.read_bytes() + b"\0" * (1 + int(place * 99)))


def deleted(path: Path, place: float, other: bytes) -> None:
    path.unlink()


def exchanged(path: Path, place: float, other: bytes) -> None:
    path.write_bytes(other)


def in_the_way(path: Path, place: float, other: bytes) -> None:
    path.unlink()
    path.mkdir()


DAMAGE = st.tuples(
    st.integers(0, 11),  # which file
    st.sampled_from([flipped, cut_short, extended, deleted, exchanged]),
    st.floats(0, 1, exclude_max=True),
    st.integers(0, 11),  # whose content replaces it
)


@given(st.lists(DAMAGE, min_size=1, max_size=5, unique_by=lambda damage: damage[0]))
@example([(chunk, deleted, 0.0, 0) for chunk in range(0, 12, 2)])  # all indexes
@example([(chunk, deleted, 0.0, 0) for chunk in range(1, 12, 2)])  # all chunks
@settings(max_examples=15)
def test_damaged_files_do_not_change_features(extract, filled, tmp_path_factory, damages):
    folder = Path(shutil.copytree(filled[0], tmp_path_factory.mktemp("damaged") / "cache"))
    paths = files(folder, ".npy", ".index")
    before = [path.read_bytes() for path in paths]
    for which, damage, place, other in damages:
        damage(paths[which], place, before[other])
    assert np.allclose(extract(folder), filled[1], atol=1e-6)
    # What is there afterwards is whole, and nothing is computed again.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Decode, "load", None)
        assert np.allclose(extract(folder), filled[1], atol=1e-6)
    (found,) = ftk.FeatureCache(folder).entries()
    assert found.images == len(filled[1])
    chunks, indexes = files(folder, ".npy"), files(folder, ".index")
    assert [path.stem for path in chunks] == [path.stem for path in indexes]
    for path in chunks:
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.stem


def test_a_cache_of_an_earlier_version_has_no_indexes_and_gets_them(
    extract, cache, filled, monkeypatch
):
    before = contents(cache)
    for path in files(cache, ".index"):
        path.unlink()
    monkeypatch.setattr(Decode, "load", None)  # nothing is computed again
    assert np.array_equal(extract(cache), filled[1])
    assert contents(cache) == before


def test_an_index_that_cannot_be_written_is_done_without(extract, cache, filled, monkeypatch):
    for path in files(cache, ".index"):
        in_the_way(path, 0, b"")
    monkeypatch.setattr(Decode, "load", None)
    assert np.array_equal(extract(cache), filled[1])
    assert ftk.FeatureCache(cache).entries()[0].images == len(filled[1])
    assert files(cache, ".part") == []


def test_an_index_with_the_names_of_other_rows_is_noticed(extract, cache, filled):
    path = files(cache, ".npy")[0]
    store._write_index(Place(path.parent), path, store.names_of(np.load(path))[::-1])
    assert np.allclose(extract(cache), filled[1], atol=1e-6)


def test_an_entry_is_opened_and_counted_without_its_chunks(
    backbone, tiny_images, tmp_path, monkeypatch
):
    def fill() -> dict[str, int]:
        spec = ftk.FineTuneSpec(1)
        return ftk.compute_features(backbone, spec, tiny_images, tmp_path, verbose=0)

    assert fill() == {"images": 24, "computed": 24}
    for path in files(tmp_path, ".npy"):
        path.write_bytes(b"not read")
    assert ftk.FeatureCache(tmp_path).entries()[0].images == 24
    assert fill() == {"images": 24, "computed": 0}


def test_indexes_without_a_chunk_are_deleted_when_rows_are_computed(extract, cache, filled):
    keep, gone = files(cache, ".npy")[:2]
    stray = gone.with_name(f"{'0' * 64}.index")
    shutil.copy(keep.with_suffix(".index"), stray)
    extract(cache)
    assert stray.exists()  # nothing was missing
    gone.unlink()
    assert np.allclose(extract(cache), filled[1], atol=1e-6)
    assert not stray.exists()


# Zero bytes at the end are those that NumPy does not tell from padding.
NAMES = st.builds(lambda name, zeros: (name + b"\0" * 32)[: 32 - zeros] + b"\0" * zeros,
                  st.binary(min_size=0, max_size=32), st.integers(0, 32))  # fmt: skip


@given(st.lists(NAMES, max_size=9), st.lists(NAMES, max_size=9), st.integers(0, 5))
def test_rows_are_found_by_name_and_by_position(wanted, others, start):
    positions = np.arange(start, start + 2 * len(wanted), 2)
    rows = Rows.named(positions, [name.hex() for name in wanted])
    sorted_names = sorted(set(wanted))
    assert rows.names.tobytes() == b"".join(sorted_names)
    assert [sorted_names[i] for i in rows.at(positions)] == wanted
    found = rows.find(np.array(wanted + others, "S32"))
    known = {name: i for i, name in enumerate(sorted_names)}
    assert found.tolist() == [known.get(name, -1) for name in wanted + others]
    chosen = np.arange(len(sorted_names)) % 2 == 0
    part = rows.only(chosen)
    first = {name: int(positions[wanted.index(name)]) for name in sorted_names[::2]}
    assert part.positions.tolist() == sorted(first.values())
    names = [sorted_names[::2][i] for i in part.at(part.positions)]
    assert {name: first[name] for name in names} == first
    assert [first[name] for name in names] == part.positions.tolist()
