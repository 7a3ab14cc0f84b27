"""Training, validation and test rows."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tierfed.data import split
from tierfed.data.dataset import LEFT_OUT, TEST, TRAIN, VAL, Place
from tierfed.data.settings import SplitSettings
from tierfed.data.windows import cut

LIGHT = settings(max_examples=25, deadline=None)


def test_windows_of_two_recordings():
    x = np.arange(20, dtype=np.float32).reshape(10, 2)
    windows, segment, start, stop = cut(x, np.array([6, 4]), 3, 2)
    # 6 samples: windows at 0 and 2 (the next one would end at 7); 4 samples: one at 0 (the next one would end at 5).
    np.testing.assert_array_equal(segment, [0, 0, 1])
    np.testing.assert_array_equal(start, [0, 2, 0])
    np.testing.assert_array_equal(stop, [3, 5, 3])
    expected = [[[0, 2, 4], [1, 3, 5]], [[4, 6, 8], [5, 7, 9]], [[12, 14, 16], [13, 15, 17]]]
    torch.testing.assert_close(windows, torch.tensor(expected, dtype=torch.float32))


def test_a_recording_that_is_too_short_has_no_window():
    _, segment, _, _ = cut(np.zeros((9, 1), np.float32), np.array([2, 4, 3]), 4, 1)
    np.testing.assert_array_equal(segment, [1])


def test_recordings_are_cut_in_time():
    # One recording of 100 samples, windows of 20 with step 10: 0, 10 … 80. Cuts at 0.7 * 0.8 * 100 = 56 and at 70.
    start = np.arange(0, 81, 10)
    place = Place(segment=np.zeros(9, np.int64), start=start, stop=start + 20)
    parts = split.by_recording(place, test=0.3, val=0.2)
    # Windows end by 56: 0, 10, 20, 30. From 56 to 70: none, 50 and 60 reach over a cut. From 70 on: 70, 80.
    expected = [TRAIN] * 4 + [LEFT_OUT] * 3 + [TEST] * 2
    np.testing.assert_array_equal(parts, expected)


@LIGHT
@given(
    lengths=st.lists(st.integers(5, 60), min_size=1, max_size=5),
    window=st.integers(1, 5),
    step=st.integers(1, 5),
    test=st.floats(0, 0.9),
    val=st.floats(0, 0.9),
)
def test_parts_share_no_sample_and_follow_in_time(lengths, window, step, test, val):
    _, segment, start, stop = cut(np.zeros((sum(lengths), 1), np.float32), np.array(lengths), window, step)
    parts = split.by_recording(Place(segment=segment, start=start, stop=stop), test, val)
    for recording in range(len(lengths)):
        end = 0
        for part in (TRAIN, VAL, TEST):
            mine = (segment == recording) & (parts == part)
            if mine.any():
                assert start[mine].min() >= end
                end = stop[mine].max()


def test_only_some_rows_are_cut():
    start = np.arange(10)
    place = Place(segment=np.zeros(10, np.int64), start=start, stop=start + 1)
    parts = split.by_recording(place, 0, 0.5, among=np.array([2, 3, 4, 5]))
    expected = np.full(10, LEFT_OUT)
    expected[2:4], expected[4:6] = TRAIN, VAL
    np.testing.assert_array_equal(parts, expected)


@LIGHT
@given(
    labels=st.lists(st.integers(0, 3), min_size=1, max_size=60), share=st.floats(0, 0.99), seed=st.integers(0, 2**31)
)
def test_take_never_takes_the_last_of_a_label(labels, share, seed):
    y = np.array(labels)
    chosen = split.take(y, share, np.random.default_rng(seed))
    assert set(y[chosen]) <= set(y[~chosen])
    assert chosen.sum() <= round(share * len(y))
    for label, count in zip(*np.unique(y, return_counts=True), strict=True):
        assert abs((chosen & (y == label)).sum() - min(share * count, count - 1)) <= 1


def test_take_is_exact_where_shares_are_whole():
    y = np.repeat([0, 1], [10, 20])
    chosen = split.take(y, 0.3, np.random.default_rng(0))
    assert [chosen[:10].sum(), chosen[10:].sum()] == [3, 6]


def test_local_by_time_takes_the_latest_rows():
    parts = split.local(np.zeros(10, np.int64), "time", SplitSettings(test=0.3, val=0.3), np.random.default_rng(0))
    # The last 3 test; of the other 7 the last 2.1, rounded, validate.
    np.testing.assert_array_equal(parts, [TRAIN] * 5 + [VAL] * 2 + [TEST] * 3)


def test_thinned_leaves_test_rows_alone_and_keeps_a_row_of_every_label():
    labels = np.tile([0, 1], 20)
    parts = np.repeat(np.array([TRAIN, VAL, TEST], np.int8), [20, 10, 10])
    got = split.thinned(labels, parts, 0.2, np.random.default_rng(0))
    assert (got == TEST).sum() == 10
    np.testing.assert_array_equal(np.bincount(labels[got == TRAIN]), [2, 2])
    np.testing.assert_array_equal(np.bincount(labels[got == VAL]), [1, 1])
    rare = split.thinned(labels, parts, 0.01, np.random.default_rng(0))
    np.testing.assert_array_equal(np.bincount(labels[rare == TRAIN]), [1, 1])
    np.testing.assert_array_equal(split.thinned(labels, parts, 1.0, np.random.default_rng(0)), parts)
