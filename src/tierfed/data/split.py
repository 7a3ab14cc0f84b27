"""Training, validation and test rows: by time, at random within labels, or as the source gives them."""

import numpy as np
import numpy.typing as npt

from tierfed.data.dataset import LEFT_OUT, TEST, TRAIN, VAL, Bytes, Ints, Place
from tierfed.data.settings import SplitSettings


def by_recording(place: Place, test: float, val: float, among: Ints | None = None) -> Bytes:
    """Cuts every recording in time: earliest train, then val, then test; [n] of 0, 1, 2, or -1 for what is left out.

    A recording that reaches from sample a to b is cut at a + (1-test)(1-val)(b-a) and at a + (1-test)(b-a), rounded.
    A window that reaches over a cut is left out, so that no sample is in two parts.

    :param place: where each window is
    :param among: rows to split, all other rows are left out; None: all rows
    :param test: share of the recording
    :param val: share of what is not test
    """
    rows = np.arange(len(place.segment)) if among is None else among
    start, stop = place.start[rows], place.stop[rows]
    recordings, which = np.unique(place.segment[rows], return_inverse=True)
    low, high = np.full(len(recordings), np.iinfo(np.int64).max), np.zeros(len(recordings), np.int64)
    np.minimum.at(low, which, start)
    np.maximum.at(high, which, stop)
    val_from = (low + np.rint((1 - test) * (1 - val) * (high - low)).astype(np.int64))[which]
    test_from = (low + np.rint((1 - test) * (high - low)).astype(np.int64))[which]
    parts = np.full(len(place.segment), LEFT_OUT, np.int8)
    parts[rows[stop <= val_from]] = TRAIN
    parts[rows[(start >= val_from) & (stop <= test_from)]] = VAL
    parts[rows[start >= test_from]] = TEST
    return parts


def take(labels: Ints, share: float, rng: np.random.Generator) -> npt.NDArray[np.bool_]:
    """[n] a random choice of `share` of the rows, the same share of every label as far as whole rows go.

    At least one row of every label is not chosen, so that what is chosen has no label that the rest has not.
    """
    chosen = np.zeros(len(labels), bool)
    _, place, count = np.unique(labels, return_inverse=True, return_counts=True)
    exact = share * count
    want = np.minimum(np.floor(exact).astype(np.int64), count - 1)
    # Largest remainders get the rows that are still missing; ties by chance.
    order = np.lexsort((rng.random(len(count)), -(exact - want)))
    missing = round(share * len(labels)) - int(want.sum())
    for label in order:
        if missing > 0 and want[label] < count[label] - 1:
            want[label] += 1
            missing -= 1
    for label, number in enumerate(want):
        chosen[rng.permutation(np.flatnonzero(place == label))[:number]] = True
    return chosen


def in_order(n: int, share: float) -> npt.NDArray[np.bool_]:
    """[n] the last `share` of n rows, rounded."""
    return np.arange(n) >= n - round(share * n)


def moved(labels: Ints, parts: Bytes, part: int, share: float, rng: np.random.Generator) -> Bytes:
    """[n] the same parts, but with `share` of the training rows moved to another part, at random within labels."""
    fit = np.flatnonzero(parts == TRAIN)
    out = parts.copy()
    out[fit[take(labels[fit], share, rng)]] = part
    return out


def local(labels: Ints, by: str, settings: SplitSettings, rng: np.random.Generator) -> Bytes:
    """Splits one device's rows, [n] of 0, 1, 2: by their order ("time") or at random within labels.

    :param labels: [n] of the device's rows; all alike for a regression
    """
    parts = np.full(len(labels), TRAIN, np.int8)
    for part, share in ((TEST, settings.test), (VAL, settings.val)):
        if by == "time":
            rows = np.flatnonzero(parts == TRAIN)
            parts[rows[in_order(len(rows), share)]] = part
        else:
            parts = moved(labels, parts, part, share, rng)
    return parts


def thinned(labels: Ints, parts: Bytes, fraction: float, rng: np.random.Generator) -> Bytes:
    """[n] the same parts, but with only `fraction` of the training and of the validation rows; -1 for the others."""
    out = parts.copy()
    for part in (TRAIN, VAL):
        rows = np.flatnonzero(parts == part)
        out[rows[take(labels[rows], 1 - fraction, rng)]] = LEFT_OUT
    return out
