"""The recordings of worn sensors: `watch`, which comes with the package, and UCI HAR."""

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tierfed.data.arrays import read_npz, read_table
from tierfed.data.dataset import Dataset, bits
from tierfed.data.settings import DataSettings
from tierfed.data.windows import cut
from tierfed.errors import InputError

Floats = npt.NDArray[np.floating]

HAR_ACTIVITIES = ("WALKING", "WALKING_UPSTAIRS", "WALKING_DOWNSTAIRS", "SITTING", "STANDING", "LAYING")
HAR_SIGNALS = tuple(f"{kind}_{axis}" for kind in ("body_acc", "body_gyro", "total_acc") for axis in "xyz")


def watch(settings: DataSettings) -> Dataset:
    """Shoulder exercises, recorded at 50 Hz by a smartwatch on either arm; x is [n, 6, window].

    Device: one arm of one subject (20); team: the subject (10); 7 exercises. Every device has all labels: what differs
    is the motion. Source: the package seglearn (BSD 3-clause), arXiv:1802.01489; numbers rounded to 16 bits.
    """
    with resources.as_file(resources.files("tierfed.data") / "watch.npz") as path:
        data = read_npz(path, ("x", "length", "y", "subject", "side", "y_labels"))
    x, segment, start, stop = cut(data["x"], data["length"].astype(np.int64), settings.window, settings.step)
    subjects, subject = np.unique(data["subject"], return_inverse=True)
    device = 2 * subject + data["side"]
    teams = tuple(f"subject-{s:02d}" for s in subjects)
    return Dataset(
        name="watch",
        x=x,
        y=torch.from_numpy(data["y"].astype(np.int64)[segment]),
        classes=tuple(map(str, data["y_labels"])),
        # The recorder's numbers are 16 bits wide, whatever they are computed with.
        bits_per_sample=bits(x, 16),
        devices=tuple(f"{team}-{side}" for team in teams for side in ("left", "right")),
        device=device[segment].astype(np.int64),
        teams=teams,
        team=np.repeat(np.arange(len(teams), dtype=np.int64), 2),
        segment=segment,
        start=start,
        stop=stop,
        triples=((0, 1, 2), (3, 4, 5)),
    )


def uci_har_npz(path: Path, settings: DataSettings) -> Dataset:
    """UCI HAR from continuous recordings in one npz file; x is [n, 9, window]."""
    return _uci_har(read_npz(path, ("x", "length", "y", "subject", "official_test")), settings)


def uci_har_folder(folder: Path, settings: DataSettings) -> Dataset:
    """UCI HAR from the official folder (`train/`, `test/`, each with `Inertial Signals/`); x is [n, 9, window].

    The files hold windows of 128 samples, each sharing 64 with the next one of its recording, and do not tell where a
    recording ends. A window continues the row before it where subject and label agree and its first half equals that
    row's second half in all nine signals. Such chains are joined to recordings and cut anew, so that a split by time
    never puts one sample into two parts.

    :raises InputError: a missing file, lengths that differ
    """
    parts = [_har_part(folder, part) for part in ("train", "test")]
    joined = {key: np.concatenate([p[key] for p in parts]) for key in ("x", "length", "y", "subject")}
    joined["official_test"] = np.repeat([0, 1], [len(p["y"]) for p in parts])
    return _uci_har(joined, settings)


def _uci_har(data: Mapping[str, npt.NDArray[Any]], settings: DataSettings) -> Dataset:
    x, segment, start, stop = cut(data["x"], data["length"].astype(np.int64), settings.window, settings.step)
    subjects, subject = np.unique(data["subject"], return_inverse=True)
    return Dataset(
        name="uci_har",
        x=x,
        y=torch.from_numpy(data["y"].astype(np.int64)[segment]),
        classes=HAR_ACTIVITIES,
        bits_per_sample=bits(x),
        devices=tuple(f"subject-{s:02d}" for s in subjects),
        device=subject[segment].astype(np.int64),
        split=np.where(data["official_test"][segment] == 1, 2, 0).astype(np.int8),
        segment=segment,
        start=start,
        stop=stop,
        # The acceleration with gravity is what the sensor measures; the body's share of it was computed afterwards.
        triples=((6, 7, 8), (3, 4, 5)),
    )


def _har_part(folder: Path, part: str) -> dict[str, npt.NDArray[Any]]:
    """One of the two official parts as recordings: x [samples, 9], and length, y, subject per recording."""
    signals = [read_table(folder / part / "Inertial Signals" / f"{s}_{part}.txt") for s in HAR_SIGNALS]
    y = read_table(folder / part / f"y_{part}.txt")[:, 0].astype(np.int64) - 1
    subject = read_table(folder / part / f"subject_{part}.txt")[:, 0].astype(np.int64)
    if len(lengths := {*map(len, signals), len(y), len(subject)}) > 1:
        raise InputError(f"{folder / part}: the files have {sorted(lengths)} rows, not one number; unpack them again")
    x = np.stack(signals, 2)  # [windows, samples, 9]
    half = x.shape[1] // 2
    follows = (x[1:, :half] == x[:-1, half:]).all((1, 2)) & (y[1:] == y[:-1]) & (subject[1:] == subject[:-1])
    first = np.flatnonzero(np.concatenate([[True], ~follows]))
    count = np.diff(first, append=len(x))
    starts = set(first.tolist())
    pieces = [window if row in starts else window[half:] for row, window in enumerate(x)]
    return {"x": np.concatenate(pieces), "length": (count + 1) * half, "y": y[first], "subject": subject[first]}
