"""T-100: properties of who holds what."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tierfed.data.partition import DRAWN, KINDS, follow, keep_labels, partition
from tierfed.data.settings import PartitionSettings
from tierfed.errors import InputError

LIGHT = settings(max_examples=25, deadline=None)
CLASSES = 4


def balanced(per_class, classes=CLASSES):
    """[per_class * classes] labels 0 1 2 … 0 1 2 …"""
    return np.tile(np.arange(classes), per_class)


def draw(labels, settings_, seed=0, classes=CLASSES):
    return partition(labels, classes, settings_, np.random.default_rng([seed, 1]))


def counts(labels, groups, classes=CLASSES):
    return np.stack([np.bincount(labels[g], minlength=classes) for g in groups])


# A few rows of every label would be too few for permfl's 10 on each holder: 60 of each are enough for all kinds.
CASES = {
    kind: PartitionSettings(kind=kind, devices=6, min_size=3, size=12, classes=2 if kind != "pfedla1" else 3)
    for kind in DRAWN
}
SHARD_TYPES = {f"shards {t}": PartitionSettings(kind="shards", devices=6, type=t) for t in (1, 2, 3, 4)}
EVERYTHING_DEALT = ("iid", "dirichlet", "classes", "quantity", *SHARD_TYPES)


@pytest.mark.parametrize("case", [*CASES, *SHARD_TYPES])
@LIGHT
@given(seed=st.integers(0, 2**31), extra=st.lists(st.integers(0, CLASSES - 1), max_size=30))
def test_each_row_at_most_once_and_same_seed_same_rows(case, seed, extra):
    labels = np.concatenate([balanced(60), np.array(extra, np.int64)])
    s = {**CASES, **SHARD_TYPES}[case]
    groups = draw(labels, s, seed)
    assert len(groups) == 6
    rows = np.concatenate(groups)
    assert len(np.unique(rows)) == len(rows)
    assert rows.min() >= 0
    assert rows.max() < len(labels)
    assert all((np.diff(g) > 0).all() for g in groups)
    if case in EVERYTHING_DEALT:
        assert len(rows) == len(labels)
    for a, b in zip(groups, draw(labels, s, seed), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("case", [*CASES, *SHARD_TYPES])
def test_another_seed_gives_other_rows(case):
    s, labels = {**CASES, **SHARD_TYPES}[case], balanced(60)
    one, two = draw(labels, s, 0), draw(labels, s, 1)
    assert any(not np.array_equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("case", [*CASES, *SHARD_TYPES])
@LIGHT
@given(seed=st.integers(0, 2**31), other=st.lists(st.integers(0, CLASSES - 1), max_size=60))
def test_test_labels_are_among_training_labels(case, seed, other):
    labels, test = balanced(60), np.array(other, np.int64)
    groups = draw(labels, {**CASES, **SHARD_TYPES}[case], seed)
    followed = follow(labels, groups, test, CLASSES, np.random.default_rng(seed))
    rows = np.concatenate(followed)
    assert len(np.unique(rows)) == len(rows)
    for mine, theirs in zip(groups, followed, strict=True):
        assert set(test[theirs]) <= set(labels[mine])
    if case in EVERYTHING_DEALT:
        assert len(rows) == len(test)


def test_follow_keeps_proportions_exactly_where_they_are_whole():
    labels = np.array([0] * 8 + [1] * 4)
    groups = [np.array([0, 1, 2, 3, 4, 5, 8]), np.array([6, 7, 9, 10, 11])]
    other = np.array([0] * 4 + [1] * 8)
    dealt = counts(other, follow(labels, groups, other, 2, np.random.default_rng(0)), 2)
    # Label 0: 6 and 2 of 8, so 3 and 1 of 4. Label 1: 1 and 3 of 4, so 2 and 6 of 8.
    np.testing.assert_array_equal(dealt, [[3, 2], [1, 6]])


def test_follow_uses_the_same_share_as_the_training_rows():
    labels = np.zeros(20, np.int64)
    dealt = follow(labels, [np.arange(5), np.arange(5, 10)], np.zeros(8, np.int64), 1, np.random.default_rng(0))
    # 10 of 20 rows are used: 4 of 8, half of them each.
    assert [len(d) for d in dealt] == [2, 2]


@LIGHT
@given(seed=st.integers(0, 2**31), n=st.integers(6, 200))
def test_iid_sizes_differ_by_one_at_most(seed, n):
    sizes = [len(g) for g in draw(np.zeros(n, np.int64), PartitionSettings(kind="iid", devices=6), seed)]
    assert sum(sizes) == n
    assert max(sizes) - min(sizes) <= 1


@LIGHT
@given(seed=st.integers(0, 2**31), devices=st.sampled_from([4, 8, 20]))
def test_two_aligned_shards_give_at_most_two_labels(seed, devices):
    # 40 devices' worth of rows per label: 2 * devices shards of 160 / (2 devices) rows, none over a label's border.
    labels = balanced(40)
    got = counts(labels, draw(labels, PartitionSettings(kind="shards", devices=devices), seed))
    assert ((got > 0).sum(1) <= 2).all()
    assert (got.sum(1) == 160 // devices).all()


@LIGHT
@given(seed=st.integers(0, 2**31))
def test_uneven_shards_are_one_or_two_shards_each(seed):
    s = PartitionSettings(kind="shards", type=3, devices=10)
    sizes = np.array([len(g) for g in draw(balanced(300), s, seed)])
    # Shards differ by one row at most, so two of them differ from twice one by two.
    shard = sizes.min()
    assert all(abs(size - shard) <= 2 or abs(size - 2 * shard) <= 2 for size in sizes)
    assert sizes.sum() == 1200


def test_half_of_the_mixed_devices_are_iid():
    s = PartitionSettings(kind="shards", type=4, devices=20)
    labels = balanced(1000)
    has = (counts(labels, draw(labels, s)) > 0).sum(1)
    # IID devices have 130 or more rows of 4 labels; two shards reach over two borders between labels at most.
    assert (has == 4).sum() >= 10
    assert (has <= 2).sum() >= 5


@LIGHT
@given(seed=st.integers(0, 2**31), k=st.integers(1, CLASSES), devices=st.integers(4, 12))
def test_classes_gives_exactly_k_labels_evenly(seed, k, devices):
    labels = balanced(60)
    got = counts(labels, draw(labels, PartitionSettings(kind="classes", classes=k, devices=devices), seed))
    assert ((got > 0).sum(1) == k).all()
    for label in range(CLASSES):
        held = got[got[:, label] > 0, label]
        assert held.max() - held.min() <= 1
        assert held.sum() == 60
    holders = (got > 0).sum(0)
    assert holders.max() - holders.min() <= 1


@LIGHT
@given(seed=st.integers(0, 2**31), alpha=st.sampled_from([0.3, 1.0, 100.0]))
def test_dirichlet_respects_min_size(seed, alpha):
    s = PartitionSettings(kind="dirichlet", alpha=alpha, devices=5, min_size=8)
    assert min(len(g) for g in draw(balanced(60), s, seed)) >= 8


def test_dirichlet_is_even_for_a_large_alpha_and_uneven_for_a_small_one():
    labels = balanced(1000)
    even = counts(labels, draw(labels, PartitionSettings(kind="dirichlet", alpha=1e6, devices=4)))
    # Shares are 1/4 with a standard deviation of sqrt(3/16 / 4e6) = 0.0002, that is 0.2 of 1,000 rows.
    assert np.abs(even - 250).max() <= 2
    uneven = counts(labels, draw(labels, PartitionSettings(kind="dirichlet", alpha=0.05, devices=4, min_size=0)))
    assert uneven.max() > 700


@LIGHT
@given(seed=st.integers(0, 2**31), law=st.sampled_from(["lognormal", "dirichlet"]))
def test_quantity_sizes(seed, law):
    s = PartitionSettings(kind="quantity", devices=7, min_size=20, law=law)
    sizes = [len(g) for g in draw(balanced(60), s, seed)]
    assert min(sizes) >= 20
    assert sum(sizes) == 240


def test_pfedla_sizes():
    labels = balanced(100)
    one = counts(labels, draw(labels, PartitionSettings(kind="pfedla1", devices=5, classes=2, size=40)))
    assert ((one == 20).sum(1) == 2).all()
    assert (one.sum(1) == 40).all()
    two = counts(labels, draw(labels, PartitionSettings(kind="pfedla2", devices=4, classes=2, size=40, dominance=0.8)))
    # 80 % of 40 in two labels are 16 each; the other 8 in two labels are 4 each.
    np.testing.assert_array_equal(np.sort(two, 1), [[4, 4, 16, 16]] * 4)


def test_permfl_gives_neighboring_labels():
    labels = np.arange(12_000) % 4
    got = counts(labels, draw(labels, PartitionSettings(kind="permfl", devices=4)))
    for user in range(4):
        assert set(np.flatnonzero(got[user])) == {user, (user + 1) % 4}
    # 10 rows each, and 2 (300 … 600) and twice the lognormal part more, if the label has them; then all have some.
    held = got[got > 0]
    assert (held >= 10).all()
    assert ((held == 10) | (held >= 610)).all()
    assert (got.sum(0) <= 3000).all()


def test_permfl_leaves_a_label_alone_that_has_too_few():
    # 2 holders take 10 each of 30 rows; 300 more can nobody have.
    labels = balanced(30)
    got = counts(labels, draw(labels, PartitionSettings(kind="permfl", devices=4)))
    np.testing.assert_array_equal(np.sort(got, 1), [[0, 0, 10, 10]] * 4)


def test_keep_labels():
    kept = keep_labels(np.array([0, 0, 2, 3]), PartitionSettings(classes=2), np.random.default_rng(0), "arm")
    assert len(set(kept)) == 2
    assert set(kept) <= {0, 2, 3}
    with pytest.raises(InputError, match=r"classes = 2 but device 'arm' has 1 labels"):
        keep_labels(np.array([5, 5]), PartitionSettings(classes=2), np.random.default_rng(0), "arm")


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        (PartitionSettings(kind="iid", devices=41), "devices = 41 but only 40 samples"),
        (PartitionSettings(kind="dirichlet", devices=5, min_size=9), "min_size = 9 for 5 devices needs 45 samples"),
        (PartitionSettings(kind="dirichlet", devices=5, alpha=1e-3, min_size=8), "raise alpha, or lower min_size"),
        (PartitionSettings(kind="quantity", devices=5, min_size=9), "needs 45 samples, there are 40"),
        (PartitionSettings(kind="classes", devices=4, classes=5), "classes = 5 but there are only 4 labels"),
        (PartitionSettings(kind="classes", devices=40, classes=2), "label 0 has 10 samples for 20 devices"),
        (PartitionSettings(kind="shards", devices=30), "60 shards for 30 devices but only 40 samples"),
        (PartitionSettings(kind="shards", type=3, min_shards=3, max_shards=2), "min_shards = 3 is above max_shards"),
        (PartitionSettings(kind="pfedla1", devices=4, size=80), "needs 80 samples of label 0, there are 10; use a"),
        (PartitionSettings(kind="pfedla2", devices=4, size=8, classes=4), "4 labels cannot dominate"),
        (PartitionSettings(kind="permfl", devices=8), "label 1 has 10 samples, too few"),
        (PartitionSettings(kind="permfl", devices=2, classes=5), "classes = 5 but there are only 4 labels"),
    ],
)
def test_impossible_partitions_say_why(settings_, message):
    with pytest.raises(InputError, match=message):
        draw(balanced(10), settings_)


def test_every_kind_is_listed():
    assert " ".join(KINDS) == "natural iid dirichlet classes shards pfedla1 pfedla2 permfl quantity drawn"
