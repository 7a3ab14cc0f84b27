"""From settings to a federation, with the set that comes with the package and with small ones made here."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tierfed.data import Columns, Dataset, DataSettings, PartitionSettings, SplitSettings, federate, load, open_source
from tierfed.errors import InputError
from tierfed.settings import build, table

WATCH = DataSettings()


def pool(n=40, classes=("a", "b"), **kwargs):
    """n samples of 2 features; labels 0 1 0 1 …; four devices in two teams, in turn, unless told otherwise."""
    values = {
        "name": "toy",
        "x": torch.arange(2 * n, dtype=torch.float32).reshape(n, 2),
        "y": torch.arange(n) % len(classes) if classes else torch.arange(n, dtype=torch.float32),
        "classes": classes,
        "bits_per_sample": 64,
        "devices": ("p", "q", "r", "s"),
        "device": np.arange(n) // 2 % 4,
        "teams": ("left", "right"),
        "team": np.array([0, 0, 1, 1]),
    }
    return Dataset(**{**values, **kwargs})


@pytest.fixture(scope="module")
def watch():
    return load(WATCH, seed=0)


def test_watch_is_what_it_says(watch):
    assert watch.classes == ("PEN", "ABD", "FEL", "IR", "ER", "TRAP", "ROW")
    assert watch.x.shape == (9556, 6, 50)
    assert watch.shape == (6, 50)
    assert watch.x.dtype == torch.float32
    assert len(watch) == 20
    assert len(watch.teams) == 10
    np.testing.assert_array_equal(watch.natural, np.repeat(np.arange(10), 2))
    assert watch.devices[:2] == ("subject-01-left", "subject-01-right")
    assert watch.bits_per_sample == 6 * 50 * 16
    assert (watch.label_counts("train") > 0).all()
    assert (watch.label_counts("test") > 0).all()
    np.testing.assert_array_equal(watch.label_counts("val").sum(1), watch.sizes("val"))


def test_watch_windows_of_different_parts_share_no_sample(watch):
    data = open_source(WATCH)
    samples = {}
    for part in ("train", "val", "test"):
        rows = np.concatenate(watch.part(part))
        samples[part] = {
            (s, t)
            for s, a, b in zip(data.segment[rows], data.start[rows], data.stop[rows], strict=True)
            for t in range(a, b)
        }
    assert not samples["train"] & samples["val"]
    assert not samples["train"] & samples["test"]
    assert not samples["val"] & samples["test"]


def test_parts_share_no_sample_when_windows_are_dealt_to_drawn_devices():
    data = open_source(WATCH)
    fed = federate(data, replace(WATCH, partition=PartitionSettings(kind="dirichlet", devices=5)), seed=0)
    place = {part: np.concatenate(fed.part(part)) for part in ("train", "test")}
    for recording in range(140):
        train, test = (rows[data.segment[rows] == recording] for rows in place.values())
        assert data.stop[train].max() <= data.start[test].min()
    for train, test in zip(fed.label_counts("train"), fed.label_counts("test"), strict=True):
        assert not (test[train == 0]).any()
    assert fed.natural is None
    assert fed.teams == ()
    assert fed.devices == ("device-0", "device-1", "device-2", "device-3", "device-4")


def test_training_rows_are_standardized(watch):
    train = watch.x[np.concatenate(watch.train)].double()
    torch.testing.assert_close(train.mean((0, 2)), torch.zeros(6, dtype=torch.float64), atol=1e-5, rtol=0)
    torch.testing.assert_close(train.var((0, 2), correction=0), torch.ones(6, dtype=torch.float64), atol=1e-5, rtol=0)


def test_statistics_come_from_training_rows_only():
    split = np.array([0, 0, 2, 2], np.int8)
    x = torch.tensor([[1.0, 5.0], [3.0, 5.0], [7.0, 6.0], [2.0, 5.0]])
    data = pool(4, x=x, device=np.zeros(4, np.int64), devices=("p",), teams=(), team=None, split=split)
    fed = federate(data, DataSettings(split=SplitSettings(val=0)), 0, torch.float64)
    # Mean 2 and deviation 1 of the first feature; the second one never changes in training: deviation taken as 1.
    torch.testing.assert_close(
        fed.x, torch.tensor([[-1.0, 0.0], [1.0, 0.0], [5.0, 1.0], [0.0, 0.0]], dtype=torch.float64)
    )


@pytest.mark.parametrize(("standardize", "first"), [("auto", 0.2), (False, 0.2), (True, -1.0)])
def test_bytes_are_divided_by_255(standardize, first):
    x = torch.tensor([51, 255] * 20, dtype=torch.uint8).reshape(40, 1, 1, 1)
    data = pool(x=x, split=np.repeat(np.array([0, 2], np.int8), 20))
    fed = federate(data, DataSettings(standardize=standardize, split=SplitSettings(by="given", val=0)), 0)
    # 51 / 255 = 0.2; half are 0.2 and half are 1, so standardized they are -1 and 1.
    assert fed.x[0].item() == pytest.approx(first, abs=1e-6)
    assert fed.x[1].item() == pytest.approx(1.0, abs=1e-6)


def test_the_seed_decides():
    settings = DataSettings(partition=PartitionSettings(kind="dirichlet", devices=4, min_size=2), too_small="drop")
    one, two, other = (federate(pool(200, device=None, devices=()), settings, s) for s in (3, 3, 4))
    for part in ("train", "val", "test"):
        for a, b in zip(one.part(part), two.part(part), strict=True):
            np.testing.assert_array_equal(a, b)
    assert any(not np.array_equal(a, b) for a, b in zip(one.train, other.train, strict=False))


def test_natural_devices_split_at_random_have_no_test_label_that_they_do_not_train():
    fed = federate(pool(80), DataSettings(split=SplitSettings(test=0.25, val=0.2)), 0)
    # 20 rows each, 10 per label: 25 % of 20 test, 20 % of the other 15 validate.
    assert fed.sizes("test").tolist() == [5] * 4
    assert fed.sizes("val").tolist() == [3] * 4
    assert fed.sizes("train").tolist() == [12] * 4
    rows = np.concatenate([r for part in ("train", "val", "test") for r in fed.part(part)])
    np.testing.assert_array_equal(np.sort(rows), np.arange(80))


def test_time_without_recordings_is_the_order_of_the_rows():
    fed = federate(pool(40), DataSettings(split=SplitSettings(by="time", test=0.3, val=0)), 0)
    # Device p has the rows 0 1 8 9 16 17 24 25 32 33: the last three test.
    assert fed.train[0].tolist() == [0, 1, 8, 9, 16, 17, 24]
    assert fed.test[0].tolist() == [25, 32, 33]


def test_a_given_split_is_used_and_its_assignment_is_the_same():
    given = np.where(np.arange(200) < 150, 0, 2).astype(np.int8)
    data = pool(200, classes=tuple("abcde"), device=None, devices=(), split=given)
    settings = DataSettings(partition=PartitionSettings(kind="classes", devices=5, classes=2))
    fed = federate(data, settings, 0)
    assert all((rows < 150).all() for rows in (*fed.train, *fed.val))
    assert all((rows >= 150).all() for rows in fed.test)
    np.testing.assert_array_equal(fed.label_counts("train") > 0, fed.label_counts("test") > 0)
    # Two holders share the 10 test rows of a label: 5 each of two labels.
    assert fed.sizes("test").tolist() == [10] * 5


def test_the_given_validation_part_is_kept():
    given = np.array([0, 0, 1, 2] * 10, np.int8)
    data = pool(40, split=given, device=np.zeros(40, np.int64), devices=("p",), teams=(), team=None)
    fed = federate(data, WATCH, 0)
    np.testing.assert_array_equal(fed.val[0], np.arange(2, 40, 4))
    assert fed.sizes("train").tolist() == [20]


def test_a_split_between_devices_is_no_split_of_devices():
    # p and q train, r and s test: "auto" splits every device by itself.
    data = pool(40, split=np.where(np.arange(40) // 2 % 4 < 2, 0, 2).astype(np.int8))
    fed = federate(data, WATCH, 0)
    assert (fed.sizes("train") > 0).all()
    assert (fed.sizes("test") > 0).all()
    with pytest.raises(InputError, match=r"device 'r' \(and 1 more devices\) has too few training samples: 0"):
        federate(data, DataSettings(split=SplitSettings(by="given")), 0)


def test_recordings_of_a_given_training_part_are_carved_in_time():
    start = np.tile(np.arange(0, 100, 10), 2)
    data = pool(
        20,
        segment=np.repeat([0, 1], 10),
        start=start,
        stop=start + 10,
        split=np.repeat(np.array([0, 2], np.int8), 10),
        device=np.zeros(20, np.int64),
        devices=("p",),
        teams=(),
        team=None,
    )
    fed = federate(data, DataSettings(split=SplitSettings(by="given", val=0.3)), 0)
    assert fed.train[0].tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert fed.val[0].tolist() == [7, 8, 9]
    assert fed.test[0].tolist() == list(range(10, 20))


def test_pooling_partitions_ignore_the_given_split():
    given = np.where(np.arange(100) < 50, 0, 2).astype(np.int8)
    data = pool(100, split=given)
    fed = federate(data, DataSettings(partition=PartitionSettings(kind="pfedla1", devices=2, classes=2, size=40)), 0)
    trained = np.concatenate(fed.train)
    assert (trained >= 50).any()
    assert (trained < 50).any()


def test_natural_devices_may_keep_only_some_labels():
    data = pool(160, classes=tuple("abcd"), device=np.arange(160) // 40)
    fed = federate(data, DataSettings(partition=PartitionSettings(kind="classes", classes=2)), 0)
    assert fed.devices == ("p", "q", "r", "s")
    assert ((fed.label_counts("train") > 0).sum(1) == 2).all()
    assert not (fed.label_counts("test")[fed.label_counts("train") == 0]).any()


def test_less_training_data(watch):
    less = load(replace(WATCH, train_fraction=0.25), seed=0)
    for a, b in zip(less.test, watch.test, strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(less.train, watch.train, strict=True):
        assert len(a) == round(len(b) - round(0.75 * len(b)))
        assert set(a) <= set(b)
    assert (less.label_counts("train") > 0).all()


def test_a_regression_has_no_labels():
    fed = federate(pool(40, classes=()), WATCH, 0, torch.float64)
    assert fed.classes == ()
    assert fed.y.dtype == torch.float64
    assert fed.label_counts().shape == (4, 0)
    assert fed.sizes("test").tolist() == [3] * 4
    with pytest.raises(InputError, match="kind = 'shards' needs labels and toy has none; use 'iid'"):
        federate(pool(40, classes=()), DataSettings(partition=PartitionSettings(kind="shards")), 0)
    with pytest.raises(InputError, match="kind = 'classes' needs labels and toy has none"):
        federate(pool(40, classes=()), DataSettings(partition=PartitionSettings(kind="classes")), 0)


def test_some_of_the_natural_devices_as_they_are_among_all(watch):
    few, more = (load(replace(WATCH, devices=n), 0) for n in (4, 9))
    assert (len(few), len(more)) == (4, 9)
    assert set(few.devices) < set(more.devices) < set(watch.devices)
    assert few.devices == tuple(sorted(few.devices))
    everybody = dict(zip(watch.devices, zip(watch.train, watch.val, watch.test, strict=True), strict=True))
    for name, mine in zip(few.devices, zip(few.train, few.val, few.test, strict=True), strict=True):
        for rows, same in zip(mine, everybody[name], strict=True):
            np.testing.assert_array_equal(rows, same)
    assert [few.teams[t] for t in few.natural] == [name.rpartition("-")[0] for name in few.devices]
    assert load(replace(WATCH, devices=4), 1).devices != few.devices
    assert load(replace(WATCH, devices=20), 0).devices == watch.devices


def test_small_devices_matter_only_where_they_are_taken():
    """Device a has one row; two of the three are taken, which ones depends on the seed."""
    three = pool(11, device=np.array([0, *[1] * 5, *[2] * 5]), devices=("a", "b", "c"), teams=(), team=None)
    message = []
    for seed in range(12):
        assert federate(three, DataSettings(devices=2, too_small="drop"), seed).devices == ("b", "c")
        try:
            message.append(str(federate(three, DataSettings(devices=2), seed).devices))
        except InputError as err:
            message.append(str(err)[:17])
    assert set(message) == {"('b', 'c')", "toy: device 'a' h"}
    with pytest.raises(InputError, match=r"toy has 2 devices with data.min_samples = 2 or more"):
        federate(three, DataSettings(devices=3, too_small="drop"), 0)


def test_small_devices_are_named_or_dropped():
    # p has 37 rows, q, r, s one each.
    device = np.concatenate([np.zeros(37, np.int64), [1, 2, 3]])
    with pytest.raises(
        InputError, match=r"device 'q' \(and 2 more devices\) has too few .*: 1, but data.min_samples = 2.*drop"
    ):
        federate(pool(40, device=device), WATCH, 0)
    fed = federate(pool(40, device=device), replace(WATCH, too_small="drop"), 0)
    assert fed.devices == ("p",)
    assert fed.teams == ("left",)
    assert fed.natural.tolist() == [0]
    # 3 of 10 rows test, one of the other 7 validates.
    with pytest.raises(InputError, match=r"device 'p' .* has too few .*: 6, .* use a lower data.min_samples"):
        federate(pool(40), replace(WATCH, too_small="drop", min_samples=100), 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": torch.tensor([0, 1] * 19 + [0, 2])}, r"label 2 in row 39 is out of range; the 2 classes are 0 … 1"),
        ({"y": torch.tensor([0, -1] * 20)}, r"label -1 in row 1 is out of range"),
        ({"y": torch.zeros(39, dtype=torch.int64)}, r"x has 40 rows but y has 39"),
        ({"device": np.zeros(3, np.int64)}, r"x has 40 rows but device has 3"),
        ({"device": np.full(40, 4)}, r"device numbers must be 0 … 3"),
        ({"x": torch.zeros(0, 2)}, r"toy has no samples"),
        ({"device": None}, r"toy has no devices of its own; choose data.partition.kind"),
    ],
)
def test_bad_pools_say_why(change, message):
    with pytest.raises(InputError, match=message):
        federate(pool(**change), WATCH, 0)


def test_numbers_that_are_none_are_counted_and_placed():
    x = torch.zeros(40, 2)
    x[7, 1], x[9, 0] = torch.nan, torch.inf
    with pytest.raises(InputError, match=r"2 feature values are NaN or infinite, the first in row 7 .*, column speed"):
        federate(pool(x=x, features=("time", "speed")), WATCH, 0)
    y = torch.zeros(40)
    y[3] = torch.nan
    with pytest.raises(InputError, match=r"1 target value is NaN or infinite, the first in row 3"):
        federate(pool(classes=(), y=y), WATCH, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source": "wach"}, r"data.source = 'wach' is unknown; did you mean 'watch'\?"),
        ({"partition": PartitionSettings(kind="dirichelet")}, r"'dirichelet' is unknown; did you mean 'dirichlet'\?"),
        ({"partition": PartitionSettings(devices=7)}, r"devices = 7 but watch has 20 devices of its own"),
        ({"devices": 21}, r"data.devices = 21, but watch has 20 devices"),
        ({"devices": 7, "partition": PartitionSettings(kind="iid")}, r"draws new ones; set data.partition.devices"),
        ({"split": SplitSettings(by="given")}, r"watch gives no split of its own"),
        ({"window": 10**6}, r"data.window = 1000000 is longer than the longest recording"),
        ({"source": "csv"}, r"data.source = 'csv' needs a file; name it: data.path"),
    ],
)
def test_bad_settings_say_why(change, message):
    with pytest.raises(InputError, match=message):
        load(replace(WATCH, **change), 0)


def test_settings_are_built_from_tables_and_back():
    settings = build(
        DataSettings,
        {"batch": "all", "columns": {"features": ["a", "b"]}, "partition": {"kind": "shards", "type": 3}},
        "data",
    )
    assert settings.columns == Columns(features=("a", "b"))
    assert settings.partition.type == 3
    assert build(DataSettings, table(settings), "data") == settings
    with pytest.raises(InputError, match=r"data.split has no setting 'tset'; did you mean 'test'\?"):
        build(DataSettings, {"split": {"tset": 0.2}}, "data")
    with pytest.raises(InputError, match=r"data.train_fraction = 0"):
        build(DataSettings, {"train_fraction": 0}, "data")
    with pytest.raises(InputError, match=r"data.batch"):
        build(DataSettings, {"batch": 0}, "data")


def test_windows_of_another_length():
    data = open_source(replace(WATCH, window=100, step=100))
    assert data.x.shape[1:] == (6, 100)
    assert (data.stop - data.start == 100).all()
    fed = load(replace(WATCH, window=100, step=100), 0)
    assert fed.shape == (6, 100)
