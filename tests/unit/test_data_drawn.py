"""Devices that draw their rows from a pool when they are asked for them."""

import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tierfed.data import Dataset, DataSettings, DrawSettings, Federation, PartitionSettings, SplitSettings, federate
from tierfed.data.drawn import Held, Numbered, Shelf
from tierfed.errors import InputError

LIGHT = settings(max_examples=25, deadline=None)
POOL, CLASSES = 600, 5


def pool(n: int = POOL, **changes: Any) -> Dataset:
    """n samples whose only feature is their row, labels 0 1 2 … 0 1 2 …"""
    x, names = torch.arange(n, dtype=torch.float32)[:, None], tuple(f"c{k}" for k in range(CLASSES))
    given_ = {"name": "pool", "x": x, "y": torch.arange(n) % CLASSES, "classes": names, "bits_per_sample": 32}
    return Dataset(**{**given_, **changes})


def drawn(
    devices: int = 20, seed: int = 0, data: Dataset | None = None, split: SplitSettings | None = None, **law: Any
) -> Federation:
    partition = PartitionSettings(**{"kind": "drawn", "devices": devices, "size": 30, "min_size": 5, **law})
    chosen = DataSettings(partition=partition, split=split or SplitSettings())
    return federate(data or pool(), chosen, seed)


LAWS = st.fixed_dictionaries(
    {
        "sizes": st.sampled_from([None, "lognormal", "uniform"]),
        "classes": st.sampled_from([None, 1, 3, CLASSES]),
        "alpha": st.sampled_from([1e-4, 0.1, 1.0, 100.0]),
        "size": st.sampled_from([8, 30, 200]),
    }
)


@LIGHT
@given(law=LAWS, seed=st.integers(0, 2**31), one=st.integers(0, 19))
def test_a_device_alone_is_the_device_among_many(law, seed, one):
    """Whether the others were asked for, in which order, and how many there are: the same rows."""
    many, alone, more = (drawn(n, seed, **law) for n in (20, 20, 4000))
    for part in ("test", "train", "val"):
        listed = list(many.part(part))
        np.testing.assert_array_equal(alone.part(part)[one], listed[one])
        np.testing.assert_array_equal(more.part(part)[one], listed[one])


@LIGHT
@given(law=LAWS, seed=st.integers(0, 2**31), test=st.sampled_from([0.0, 0.3]), val=st.sampled_from([0.0, 0.2]))
def test_parts_of_the_pool_never_mix(law, seed, test, val):
    """Sizes without rows are those of the rows; nobody tests on a row that anybody trains on, nor on a label that it
    does not train on; a row comes twice only when a device wants more of a label than there are."""
    f = drawn(20, seed, split=SplitSettings(test=test, val=val), **law)
    rows = {part: list(f.part(part)) for part in ("train", "val", "test")}
    pools = [set(np.concatenate(held).tolist()) for held in rows.values()]
    assert len(set.union(*pools)) == sum(map(len, pools))
    y = f.y.numpy()
    for part, held in rows.items():
        assert f.sizes(part).tolist() == [len(r) for r in held]
        assert all((np.diff(r) >= 0).all() for r in held)
        there = np.bincount(y[f.train.draw.shelves[("train", "val", "test").index(part)].rows], minlength=CLASSES)
        for mine, own in zip(held, rows["train"], strict=True):
            assert set(y[mine]) <= set(y[own])
            times = np.bincount(mine, minlength=POOL)
            wanted = np.bincount(y[mine], minlength=CLASSES)
            assert (times <= -(-wanted // np.maximum(there, 1))[y]).all()
    total = sum(f.sizes(part) for part in rows)
    assert (total == law["size"]).all() if law["sizes"] is None else (total >= 5).all()


@LIGHT
@given(seed=st.integers(0, 2**31), k=st.integers(1, CLASSES))
def test_k_labels_in_equal_parts(seed, k):
    counts = drawn(20, seed, classes=k, size=100, split=SplitSettings(test=0.0, val=0.0)).label_counts()
    assert ((counts > 0).sum(1) == k).all()
    held = np.where(counts > 0, counts, counts.max(1, keepdims=True))
    assert (counts.max(1) - held.min(1) <= 1).all()


def test_dirichlet_shares_have_the_moments_of_their_law():
    """A share from Dir(a) over C labels has the mean 1/C and the variance (C - 1) / (C² (C a + 1)): 0.2 and 4/75 at
    a = 0.4, 0.2 and 0.16 / 501 at a = 100; 4,000 devices with 100 rows, up to five standard errors and rounding."""
    for alpha, variance in ((0.4, 4 / 75), (100.0, 0.16 / 501)):
        f = drawn(4000, alpha=alpha, size=100, split=SplitSettings(test=0.0, val=0.0), data=pool(3000))
        shares = f.label_counts() / 100
        assert np.abs(shares.mean(0) - 0.2).max() < 5 * np.sqrt(variance / 4000)
        assert shares.var() == pytest.approx(variance, rel=0.1)


def test_sizes_have_the_mean_that_was_asked_for():
    """Uniform from 10 to 90 has the mean 50 and the variance (81² - 1) / 12; lognormal with sigma 0.5 the mean 50 and
    the variance 50² (e^0.25 - 1); 20,000 devices, five standard errors, and half a row of rounding."""
    for sizes, variance in (("uniform", (81**2 - 1) / 12), ("lognormal", 2500 * (np.exp(0.25) - 1))):
        f = drawn(20_000, sizes=sizes, size=50, min_size=10, sigma=0.5)
        total = sum(f.sizes(part) for part in ("train", "val", "test"))
        assert abs(total.mean() - 50) < 5 * np.sqrt(variance / 20_000) + 0.5
        assert total.std() == pytest.approx(np.sqrt(variance), rel=0.1)
        assert total.min() >= 10
    assert total.max() > 90


def test_every_row_and_every_pair_comes_up_equally_often():
    """7 rows of a label, 3 of them at a time, 42 (first, stride) pairs: a pair of rows is together in 3 · 2 of 7 · 6
    draws; 20,000 draws, five standard errors of a share of 1/7."""
    rng = np.random.default_rng(0)
    shelf = Shelf.of(np.zeros(7, np.int64), 1, np.arange(7), rng)
    together = np.zeros((7, 7))
    for _ in range(20_000):
        rows = shelf.take(np.array([3]), rng)
        together[np.ix_(rows, rows)] += 1
    np.testing.assert_allclose(together[~np.eye(7, dtype=bool)] / 20_000, 1 / 7, atol=5 * np.sqrt(6 / 49 / 20_000))
    np.testing.assert_allclose(np.diag(together) / 20_000, 3 / 7, atol=5 * np.sqrt(12 / 49 / 20_000))


def test_whole_copies_only_when_the_label_is_used_up():
    """4 rows, 10 wanted: every row twice, two of them a third time."""
    shelf = Shelf.of(np.zeros(4, np.int64), 1, np.arange(4), np.random.default_rng(0))
    times = np.bincount(shelf.take(np.array([10]), np.random.default_rng(1)))
    assert sorted(times.tolist()) == [2, 2, 3, 3]


def test_the_official_test_rows_are_drawn_from_where_there_are_any():
    given_ = np.where(np.arange(POOL) >= 500, np.int8(2), np.int8(0))
    f = drawn(10, data=pool(split=given_))
    assert all((rows >= 500).all() for rows in f.test)
    assert all((rows < 500).all() for held in (f.train, f.val) for rows in held)
    assert f.sizes("test").tolist() == [9] * 10  # 0.3 of 30
    assert f.sizes("val").tolist() == [4] * 10  # 0.2 of the other 21, rounded


def test_a_million_devices_are_three_numbers_each():
    f = drawn(1_000_000, sizes="lognormal", size=40)
    assert len(f) == len(f.devices) == len(f.train) == 1_000_000
    assert f.devices[999_999] == "device-999999"
    assert len(f.test[123_456]) == f.sizes("test")[123_456]
    assert f.label_counts(devices=np.array([5, 999_999])).sum(1).tolist() == f.sizes()[[5, 999_999]].tolist()


def test_a_regression_has_no_labels():
    f = drawn(10, data=pool(y=torch.linspace(0, 1, POOL), classes=()))
    assert [len(r) for r in f.train] == f.sizes().tolist() == [17] * 10
    assert f.label_counts().shape == (10, 0)


def test_another_seed_draws_other_rows():
    assert not np.array_equal(drawn(5, 0).train[3], drawn(5, 1).train[3])


def test_marks_tell_federations_apart():
    marks = [f.train.mark() for f in (drawn(5), drawn(5), drawn(6), drawn(5, 1), drawn(5, alpha=2.0))]
    assert marks[0] == marks[1]
    assert len(set(marks)) == 4


def test_a_copy_in_another_process_has_the_same_rows():
    held = drawn(5).train
    copy = pickle.loads(pickle.dumps(held))  # noqa: S301
    assert isinstance(copy, Held)
    np.testing.assert_array_equal(copy[3], held[3])


@LIGHT
@given(n=st.integers(1, 300), at=st.integers(-300, 299))
def test_names_are_the_list_of_names(n, at):
    names, listed = Numbered("device-", n), [f"device-{i:0{len(str(n - 1))}d}" for i in range(n)]
    assert list(names) == listed
    assert len(names) == n
    assert names == tuple(listed)
    assert names == Numbered("device-", n)
    assert names != Numbered("device-", n + 1)
    assert names[: n // 2] == tuple(listed[: n // 2])
    if -n <= at < n:
        assert names[at] == listed[at]
        assert names.index(listed[at]) == at % n
        assert listed[at] in names
    else:
        with pytest.raises(IndexError):
            names[at]


@pytest.mark.parametrize("stranger", ["device-", "device-3", "device-x1", "device-99", "fog-01", "device-+1", 7])
def test_strangers_are_no_names(stranger):
    names = Numbered("device-", 20)
    assert stranger not in names
    with pytest.raises(ValueError, match="is no name"):
        names.index(stranger)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"devices": 5}, "data.devices needs the rows of all devices"),
        ({"train_fraction": 0.5}, "data.train_fraction needs"),
        ({"public": 0.1}, "data.public needs"),
        ({"pooled": True}, "data.pooled needs"),
        ({"draw": DrawSettings(train=3)}, "data.draw needs"),
        ({"too_small": "drop"}, "data.too_small needs"),
        ({"min_samples": 100}, "device 'device-00' .* has too few training samples: 17"),
    ],
)
def test_what_needs_everybody_is_refused(changes, message):
    base = DataSettings(partition=PartitionSettings(kind="drawn", size=30))
    with pytest.raises(InputError, match=message):
        federate(pool(), replace(base, **changes), 0)


@pytest.mark.parametrize(
    ("law", "message"),
    [
        ({"classes": 6}, "classes = 6 but there are training rows of 5 labels"),
        ({"sizes": "uniform", "min_size": 31}, "min_size = 31, but devices have 30 rows on average"),
    ],
)
def test_impossible_laws(law, message):
    with pytest.raises(InputError, match=message):
        drawn(5, **law)


def test_a_label_without_test_rows():
    parts = np.where(np.arange(POOL) < 500, 0, 2).astype(np.int8)
    y = torch.where(torch.arange(POOL) < 500, torch.arange(POOL) % 5, 0)
    with pytest.raises(InputError, match="the pool has no test rows of label 'c1' to draw from"):
        drawn(5, data=pool(y=y, split=parts))
