"""The real sets, where the variable TIERFED_DATA names a folder that has them."""

import os

import numpy as np
import pytest

from tierfed.data import DATASETS, DataSettings, DrawSettings, PartitionSettings, SplitSettings, load, open_source


def opened(name):
    if "TIERFED_DATA" not in os.environ:
        pytest.skip("the real data sets are read only where TIERFED_DATA names their folder")
    if not DATASETS[name].available(None):
        pytest.skip(f"{name} is not in the folder that TIERFED_DATA names")
    return open_source(DataSettings(source=name))


def test_uci_har():
    data = opened("uci_har")
    # 27,310 windows of one second; 9 subjects are the official test part.
    assert data.x.shape == (27310, 9, 50)
    assert len(data.devices) == 30
    assert len(np.unique(data.device[data.split == 2])) == 9
    fed = load(DataSettings(source="uci_har"), 0)
    assert (fed.label_counts("train") > 0).all()
    assert (fed.label_counts("test") > 0).all()


def test_mnist_writers():
    data = opened("mnist")
    assert data.x.shape == (70000, 1, 28, 28)
    assert len(data.devices) == 836
    assert len(data.teams) == 2
    # No writer is in both official parts: 539 and 297.
    train, test = (set(data.device[data.split == part]) for part in (0, 2))
    assert not train & test
    assert (len(train), len(test)) == (539, 297)
    # 30,950 and 29,050 training pictures of the two groups.
    np.testing.assert_array_equal(np.bincount(data.team[data.device[data.split == 0]]), [30950, 29050])
    fed = load(DataSettings(source="mnist"), 0)
    assert len(fed) == 836
    for train_counts, test_counts in zip(fed.label_counts("train"), fed.label_counts("test"), strict=True):
        assert not test_counts[train_counts == 0].any()


def test_fashion_mnist_in_two_aligned_shards():
    opened("fashion_mnist")
    fed = load(DataSettings(source="fashion_mnist", partition=PartitionSettings(kind="shards", devices=100)), 0)
    # 200 shards of 300 of 6,000 rows per label: two labels at most, 600 rows each; 100 test rows each.
    held = fed.label_counts("train") + fed.label_counts("val")
    assert ((held > 0).sum(1) <= 2).all()
    assert (held.sum(1) == 600).all()
    assert (fed.sizes("test") == 100).all()


def test_cifar10_subset():
    data = opened("cifar10_subset")
    assert data.x.shape == (24000, 3, 32, 32)
    np.testing.assert_array_equal(np.bincount(data.y[data.split == 2]), [400] * 10)


def test_thirty_subjects_with_480_windows_to_train_on_and_160_to_test_on():
    opened("uci_har")
    draw = DrawSettings(train=480, test=160, alpha=3.0)
    split = SplitSettings(by="time", test=0.3, val=0.0)
    fed = load(DataSettings(source="uci_har", step=10, layout="bitmap", draw=draw, split=split), 0)
    assert fed.shape == (3, 10, 10)
    assert fed.sizes("train").tolist() == [480] * 30
    # 160 = 4 x 27 + 2 x 26
    assert np.sort(fed.label_counts("test"), 1).tolist() == [[26, 26, 27, 27, 27, 27]] * 30
    assert (fed.label_counts("train") > 0).all()
