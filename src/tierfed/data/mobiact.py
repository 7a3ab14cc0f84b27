"""MobiAct (Vavoulas et al., ICT4AWE 2016; version 2.0): daily activities with a smartphone in the trouser pocket.

Its license forbids to hand it on, so the folder is the user's: files `<code>_<subject>_<trial>_annotated.csv` with the
columns timestamp (ns), rel_time (s), acc_x … acc_z (m/s², with gravity), gyro_x … gyro_z (rad/s), azimuth, pitch, roll
(degrees), label, one row for each reading of the phone, at uneven distances.
"""

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv
import torch

from tierfed.data.dataset import Dataset, Ints, bits
from tierfed.data.settings import DataSettings
from tierfed.data.windows import cut
from tierfed.errors import InputError, nearest

HZ = 200
FILE = re.compile(r"([A-Z]{3})_(\d+)_(\d+)_annotated\.csv")
ACTIVITIES = {
    "STD": "standing",
    "WAL": "walking",
    "JOG": "jogging",
    "JUM": "jumping",
    "STU": "stairs up",
    "STN": "stairs down",
    "SCH": "sitting down",
    "CSI": "stepping into a car",
    "CSO": "stepping out of a car",
    "LYI": "lying",
}
"""The ten daily activities that all subjects were asked for; sitting and standing up were asked of a third of them."""
SCENARIOS = ("SLH", "SBW", "SLW", "SBE", "SRH")
COLUMNS = ("acc_x", "acc_y", "acc_z", "gyro_x", "gyro_y", "gyro_z")

Floats = npt.NDArray[np.floating]


def files_in(folder: Path) -> Iterator[Path]:
    """The annotated files at any depth below a folder."""
    return (path for path in folder.rglob("*_annotated.csv") if FILE.fullmatch(path.name))


def mobiact(folder: Path, settings: DataSettings) -> Dataset:
    """Ten daily activities at 200 Hz; x is [n, 6, window], accelerometer and then gyroscope. Device: the subject.

    Readings are interpolated linearly. The stretches of one label are cut into windows by themselves, and all stretches
    of a subject's activity, one trial after the other, are one recording: the last share of it tests, though each trial
    may last a few seconds only. Left out are the scenarios, which few subjects played, and subjects who have no window
    of one of the activities.

    :raises InputError: no such files, a file of another form, no subject with all activities
    """
    found = sorted(files_in(folder), key=_order)
    if not found:
        raise InputError(
            f"{folder} has no files like WAL_1_1_annotated.csv; put MobiAct's folder of annotated data there as it is"
        )
    pieces: dict[tuple[int, int], list[Floats]] = {}
    for path in found:
        code, subject, _ = _parts(path)
        if code in SCENARIOS:
            continue
        for label, piece in _stretches(path):
            if len(piece) >= settings.window:
                pieces.setdefault((subject, label), []).append(piece)
    every = range(len(ACTIVITIES))
    subjects = sorted({s for s, _ in pieces if all((s, k) in pieces for k in every)})
    if not subjects:
        raise InputError(
            f"{folder}: no subject has a window of all activities ({', '.join(ACTIVITIES)}); put the whole data set "
            f"there, or lower data.window (now {settings.window} samples of {1000 // HZ} ms)"
        )
    held = [(i, k, piece) for i, s in enumerate(subjects) for k in every for piece in pieces[s, k]]
    device, activity, length = np.array([(i, k, len(piece)) for i, k, piece in held], np.int64).T
    x, stretch, start, stop = cut(np.concatenate([p for *_, p in held]), length, settings.window, settings.step)
    recording = device * len(ACTIVITIES) + activity
    before = _before(recording, length)[stretch]
    return Dataset(
        name="mobiact",
        x=x,
        y=torch.from_numpy(activity[stretch]),
        classes=tuple(ACTIVITIES.values()),
        bits_per_sample=bits(x),
        devices=tuple(f"subject-{s:02d}" for s in subjects),
        device=device[stretch],
        segment=recording[stretch],
        start=start + before,
        stop=stop + before,
        triples=((0, 1, 2), (3, 4, 5)),
    )


def _before(recording: Ints, length: Ints) -> Ints:
    """[stretches] samples of the same recording before each stretch; stretches of a recording follow each other."""
    total = np.cumsum(length) - length
    first = np.concatenate([[True], recording[1:] != recording[:-1]])
    return total - np.maximum.accumulate(np.where(first, total, 0))


def _parts(path: Path) -> tuple[str, int, int]:
    """Code, subject and trial of a file."""
    code, subject, trial = path.name.split("_")[:3]
    return code, int(subject), int(trial)


def _order(path: Path) -> tuple[int, str, int]:
    code, subject, trial = _parts(path)
    return subject, code, trial


def _stretches(path: Path) -> Iterator[tuple[int, Floats]]:
    """(number of the activity, readings [m, 6] at 200 Hz) of every stretch of one label, in order of time."""
    time, values, labels = _read(path)
    codes = list(ACTIVITIES)
    change = np.flatnonzero(np.concatenate([[True], labels[1:] != labels[:-1], [True]]))
    for a, b in pairwise(change.tolist()):
        if labels[a] not in ACTIVITIES:
            continue
        seconds, place = np.unique(time[a:b], return_index=True)
        at = np.arange(int((seconds[-1] - seconds[0]) * HZ + 1e-6) + 1) / HZ
        some = values[a:b][place]
        resampled = [np.interp(at, seconds - seconds[0], some[:, c]) for c in range(len(COLUMNS))]
        yield codes.index(labels[a]), np.stack(resampled, 1).astype(np.float32)


def _read(path: Path) -> tuple[Floats, Floats, npt.NDArray[np.str_]]:
    """Seconds [m], readings [m, 6] and labels [m] of a file."""
    try:
        table = pyarrow.csv.read_csv(path)
    except (pa.ArrowException, OSError) as err:
        raise InputError(f"{path} cannot be read as csv: {err}") from None
    for name in ("timestamp", *COLUMNS, "label"):
        if name not in table.column_names:
            raise InputError(f"{path} has no column {name!r}; {nearest(name, table.column_names)}")
    columns = [table.column(name).to_numpy() for name in ("timestamp", *COLUMNS)]
    numbers = all(c.dtype.kind in "if" and np.isfinite(c).all() for c in columns)
    if not len(table) or not numbers or table.column("label").null_count:
        raise InputError(f"{path} has no rows, or gaps or text among its readings; get the official file again")
    labels = np.array(table.column("label").to_pylist(), np.str_)
    # Whole nanoseconds need more digits than a float has; their differences do not.
    return (columns[0] - columns[0][0]) / 1e9, np.stack(columns[1:], 1), labels
