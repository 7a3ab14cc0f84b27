"""A draw of rows per device: random numbers per label to train on, equal ones to test on; training in one place."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tierfed.config import load_config
from tierfed.data import Dataset, DataSettings, DrawSettings, SplitSettings, federate, load, open_source
from tierfed.data.dataset import LEFT_OUT, TEST, TRAIN, VAL
from tierfed.data.split import drawn
from tierfed.errors import InputError
from tierfed.preview import preview
from tierfed.setup import prepare

LIGHT = settings(max_examples=25, deadline=None)
NAMES = st.lists(st.integers(1, 40), min_size=2, max_size=6)


def rows(counts, part):
    labels = np.repeat(np.arange(len(counts)), counts)
    return labels, np.full(len(labels), part, np.int8)


def drawing(train, test, draw, seed=0):
    """(rows kept to train on, rows kept to test on) per label, from numbers of rows per label."""
    (a, pa), (b, pb) = rows(train, TRAIN), rows(test, TEST)
    labels, before = np.concatenate([a, b]), np.concatenate([pa, pb])
    after = drawn(labels, before, draw, np.random.default_rng(seed))
    moved = after != before
    assert (after[moved] == LEFT_OUT).all()
    return [np.bincount(labels[after == part], minlength=len(train)) for part in (TRAIN, TEST)]


@LIGHT
@given(NAMES, st.integers(6, 120), st.floats(0.01, 50), st.integers(0, 9))
def test_training_rows(there, wanted, alpha, seed):
    """As many as are wanted or there are, at least one and at most all of each label."""
    got, _ = drawing(there, there, DrawSettings(train=wanted, alpha=alpha), seed)
    assert got.sum() == min(wanted, sum(there))
    assert (got >= 1).all()
    assert (got <= there).all()


@LIGHT
@given(NAMES, st.integers(1, 200), st.integers(0, 9))
def test_test_rows_are_balanced(there, wanted, seed):
    """Never more than wanted; no two labels differ by more than one; all that the rarest label allows."""
    _, got = drawing(there, there, DrawSettings(test=wanted), seed)
    assert got.sum() <= wanted
    assert got.max() - got.min() <= 1
    each = wanted // len(there)
    assert got.min() == min(*there, each)
    if min(there) > each:
        assert got.sum() == wanted


def test_sixteen_of_each_of_ten():
    _, got = drawing([1] * 10, [16] * 9 + [40], DrawSettings(test=160))
    assert got.tolist() == [16] * 10
    _, got = drawing([1] * 6, [30] * 6, DrawSettings(test=160))
    assert sorted(got.tolist()) == [26, 26, 27, 27, 27, 27]
    _, got = drawing([1] * 6, [24] + [30] * 5, DrawSettings(test=160))
    assert got.tolist() == [24] * 6


def test_labels_without_training_or_test_rows():
    """What is never trained is not tested, what has no test rows does not empty the test."""
    _, got = drawing([5, 0, 5, 5], [9, 9, 9, 0], DrawSettings(train=6, test=8))
    assert got.tolist() == [4, 0, 4, 0]
    _, got = drawing([5, 5], [0, 0], DrawSettings(test=8))
    assert got.tolist() == [0, 0]


def test_uneven_by_alpha():
    """Of 5,000 rows of each of six labels 600 are drawn: with a large alpha 100 of each, else few labels."""
    even, _ = drawing([5000] * 6, [1] * 6, DrawSettings(train=600, alpha=1e9))
    np.testing.assert_allclose(even, 100, atol=1)
    uneven, _ = drawing([5000] * 6, [1] * 6, DrawSettings(train=600, alpha=0.01))
    assert uneven.max() > 300


def test_nothing_asked_nothing_changed():
    labels, parts = rows([3, 4], TRAIN)
    parts[::3] = VAL
    after = drawn(labels, parts, DrawSettings(), np.random.default_rng(0))
    np.testing.assert_array_equal(after, parts)


def test_validation_rows_stay():
    labels = np.zeros(10, np.int64)
    parts = np.repeat(np.array([TRAIN, VAL, TEST], np.int8), [4, 3, 3])
    after = drawn(labels, parts, DrawSettings(train=2, test=1), np.random.default_rng(0))
    assert [int((after == p).sum()) for p in (TRAIN, VAL, TEST)] == [2, 3, 1]


def test_fewer_rows_than_labels():
    with pytest.raises(InputError, match=r"data\.draw\.train = 2, but a device has 3 labels"):
        drawing([5, 5, 5], [1, 1, 1], DrawSettings(train=2))


DRAW = DataSettings(step=10, draw=DrawSettings(train=120, test=42), split=SplitSettings(by="time", val=0.0))


def known(fed, device, part):
    return {tuple(fed.x[r].flatten().tolist()) for r in fed.part(part)[device]}


def test_no_sample_of_a_recording_is_in_two_parts():
    """The first channel of the watch is replaced by the number of the reading: windows tell where they come from."""
    data = open_source(DRAW)
    place = data.segment[:, None] * 10_000 + data.start[:, None] + np.arange(50)
    marked = replace(data, x=torch.from_numpy(place.astype(np.float32))[:, None])
    fed = federate(marked, replace(DRAW, standardize=False), 0)
    train, test = (
        {int(t) for rows in fed.part(p) for r in rows for t in fed.x[r].flatten()} for p in ("train", "test")
    )
    assert train
    assert test
    assert not train & test


def test_a_federation_of_the_watch():
    fed, same, other = load(DRAW, 0), load(DRAW, 0), load(DRAW, 1)
    assert (fed.sizes("train") == 120).all()
    counts = fed.label_counts("test")
    assert (counts.max(1) - counts.min(1) <= 1).all()
    assert (counts.sum(1) <= 42).all()
    assert len(np.unique(fed.label_counts("train"), axis=0)) == len(fed)  # everybody has another draw
    assert len(fed.x) == fed.sizes("train").sum() + fed.sizes("test").sum()  # nothing else is kept in memory
    for part in ("train", "test"):
        for i in range(len(fed)):
            np.testing.assert_array_equal(fed.part(part)[i], same.part(part)[i])
    torch.testing.assert_close(fed.x, same.x, rtol=0, atol=0)
    assert known(fed, 0, "train") != known(other, 0, "train")


def toy():
    n = 24
    return Dataset(
        name="toy",
        x=torch.arange(2.0 * n).reshape(n, 2),
        y=torch.arange(n) % 2,
        classes=("a", "b"),
        bits_per_sample=64,
        devices=("p", "q", "r"),
        device=np.arange(n) // 8,
    )


def test_training_in_one_place():
    apart, together = (federate(toy(), DataSettings(pooled=p), 0) for p in (False, True))
    everything = np.sort(np.concatenate(apart.train))
    for i in range(3):
        np.testing.assert_array_equal(together.train[i], everything)
        np.testing.assert_array_equal(together.test[i], apart.test[i])
    torch.testing.assert_close(together.x, apart.x, rtol=0, atol=0)
    with pytest.raises(InputError, match="leave out one of both"):
        federate(toy(), DataSettings(pooled=True, public=0.5), 0)


def test_what_would_run_says_who_has_fewer():
    """Nobody has 10,000 test windows: all 20 devices have fewer."""
    config = {"data": {"step": 25, "draw": {"train": 60, "test": 10_000}}, "model": {"name": "mclr"}}
    facts = preview(prepare(load_config(config)))
    fewest = prepare(load_config(config)).federation.sizes("test").min()
    assert facts["drawn"] == {"train": "60 each", "test": f"10000 each, fewer on 20 devices (fewest: {fewest})"}
    assert "drawn" not in preview(prepare(load_config({"model": {"name": "mclr"}})))
