"""Training, validation and test rows: by time, at random within labels, or as the source gives them."""

import numpy as np
import numpy.typing as npt

from tierfed.data.dataset import LEFT_OUT, TEST, TRAIN, VAL, Bytes, Ints, Place
from tierfed.data.partition import apportion
from tierfed.data.settings import DrawSettings, SplitSettings
from tierfed.errors import InputError


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


def drawn(labels: Ints, parts: Bytes, settings: DrawSettings, rng: np.random.Generator) -> Bytes:
    """[n] the same parts, but with a random number of training rows of every label and as many test rows of each; -1
    for the others.

    :param labels: [n] of the device's rows
    :raises InputError: fewer training rows are wanted than there are labels
    """
    out, fit = parts.copy(), parts == TRAIN
    known = np.unique(labels[fit])
    if settings.train is not None:
        want = _uneven(np.array([(labels[fit] == c).sum() for c in known], np.int64), settings, rng)
        _keep(out, [np.flatnonzero(fit & (labels == c)) for c in known], want, rng)
    if settings.test is not None:
        rows = [np.flatnonzero((parts == TEST) & (labels == c)) for c in known]
        rows = [r for r in rows if len(r)]
        out[parts == TEST] = LEFT_OUT
        _keep(out, rows, _even(np.array([len(r) for r in rows], np.int64), settings.test, rng), rng, TEST)
    return out


def _uneven(there: Ints, settings: DrawSettings, rng: np.random.Generator) -> Ints:
    """[C] rows of each label: `train` in all or all there are, by random shares, at least one of each."""
    total, labels = min(settings.train or 0, int(there.sum())), len(there)
    if total < labels:
        raise InputError(
            f"data.draw.train = {settings.train}, but a device has {labels} labels and keeps a row of each; take more"
        )
    share, want = rng.dirichlet(np.full(labels, settings.alpha)), np.ones(labels, np.int64)
    while missing := total - int(want.sum()):
        room = there - want
        # Tiny shares are rounded to nothing; what is left then goes to all labels alike.
        open_ = np.where(room > 0, np.maximum(share, 1e-12), 0.0)
        want += np.minimum(apportion(open_ / open_.sum() * missing, rng), room)
    return want


def _even(there: Ints, test: int, rng: np.random.Generator) -> Ints:
    """[C] the same number of each label, `test` in all as far as the label with the fewest rows allows."""
    if not len(there):
        return there
    each, rest = divmod(test, len(there))
    if there.min() < each:
        return np.full(len(there), there.min())
    more = rng.permutation(np.flatnonzero(there > each))[:rest]
    want = np.full(len(there), each)
    want[more] += 1
    return want


def _keep(out: Bytes, rows: list[Ints], want: Ints, rng: np.random.Generator, part: int = TRAIN) -> None:
    """Puts a random choice of the rows of each label into a part, and leaves the others out."""
    for some, number in zip(rows, want, strict=True):
        out[some] = LEFT_OUT
        out[rng.permutation(some)[:number]] = part
