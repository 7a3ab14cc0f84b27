"""MobiAct's annotated files, made here in small in exactly that form."""

import numpy as np
import pytest
import torch

from tierfed.data import DataSettings, federate, load, open_source, sources
from tierfed.data.mobiact import ACTIVITIES
from tierfed.errors import InputError

HEADER = "timestamp,rel_time,acc_x,acc_y,acc_z,gyro_x,gyro_y,gyro_z,azimuth,pitch,roll,label"
SETTINGS = {"source": "mobiact", "window": 20, "step": 20}


def write(folder, code, subject, trial, parts, hz=100.0, first=1_415_000_000_000_000_000):
    """One file: `parts` are (label, seconds); acc_x is the time since the beginning in ms, gyro_z the subject."""
    (folder / code).mkdir(parents=True, exist_ok=True)
    lines, now = [HEADER], 0.0
    for label, seconds in parts:
        for _ in range(round(seconds * hz)):
            values = (1000 * now, 9.8, 0, 0, 0, subject, 359.9, -1.5, 2.5)
            lines.append(f"{first + round(now * 1e9)},{now:.9f},{','.join(map(str, values))},{label}")
            now += 1 / hz
    (folder / code / f"{code}_{subject}_{trial}_annotated.csv").write_text("\n".join(lines) + "\n")


def everything(folder, subject, seconds=0.5):
    for code in ACTIVITIES:
        if code != "LYI":
            write(folder, code, subject, 1, [(code, seconds)])
    write(folder, "FOL", subject, 1, [("STD", 0.02), ("FOL", 0.5), ("LYI", seconds)])


@pytest.fixture
def folder(tmp_path):
    there = tmp_path / "mobiact" / "MobiAct_Dataset_v2.0" / "Annotated Data"
    for subject in (12, 3):
        everything(there, subject)
    write(there, "WAL", 5, 1, [("WAL", 2.0)])  # who did not do everything is left out
    write(there, "SLH", 3, 1, [("WAL", 2.0)])  # scenarios are
    (there / "Readme.txt").write_text("not read")
    return tmp_path


def test_subjects_activities_and_windows(folder):
    assert sources.DATASETS["mobiact"].available(str(folder))
    data = open_source(DataSettings(dir=str(folder), **SETTINGS))
    assert data.devices == ("subject-03", "subject-12")
    assert data.classes[:2] == ("standing", "walking")
    assert data.classes[-1] == "lying"
    # 0.5 s at 100 Hz are 50 readings over 0.49 s: 99 values at 200 Hz, four windows of 20
    assert data.x.shape == (2 * 10 * 4, 6, 20)
    assert np.bincount(data.device * 10 + data.y.numpy()).tolist() == [4] * 20
    assert data.x[data.device == 1, 5].unique().tolist() == [12]
    assert data.bits_per_sample == 6 * 20 * 32
    assert data.triples == ((0, 1, 2), (3, 4, 5))


def test_readings_are_interpolated_to_200_hz(folder):
    """The time in ms at 0, 5, 10 ... ms, though it was read every 10 ms; lying begins 0.52 s after the file does."""
    data = open_source(DataSettings(dir=str(folder), **SETTINGS))
    walking, lying = ((data.device == 0) & (data.y.numpy() == label) for label in (1, 9))
    torch.testing.assert_close(data.x[walking][1, 0], 100 + 5 * torch.arange(20.0))
    torch.testing.assert_close(data.x[lying][0, 0], 520 + 5 * torch.arange(20.0))


def test_uneven_and_repeated_readings(tmp_path):
    everything(tmp_path / "mobiact", 1)
    path = tmp_path / "mobiact" / "WAL" / "WAL_1_1_annotated.csv"
    at = [0, 3, 3, 40, 90, 100, 101]  # ms
    rows = [f"{t * 1_000_000},{t / 1000},{2 * t},0,0,0,0,0,0,0,0,WAL" for t in at]
    path.write_text("\n".join([HEADER, *rows]))
    data = open_source(DataSettings(dir=str(tmp_path), **SETTINGS))
    torch.testing.assert_close(data.x[data.y == 1][0, 0], 10 * torch.arange(20.0))


def test_trials_of_an_activity_are_one_recording(tmp_path):
    """Six trials of 60 windows in all: the last 30 % of them test, though no trial alone is long enough for a split."""
    there = tmp_path / "mobiact"
    everything(there, 1, 3.0)
    for trial in range(1, 7):
        write(there, "SCH", 1, trial, [("SCH", 0.23), ("SIT", 0.5)])
    data = open_source(DataSettings(dir=str(tmp_path), **SETTINGS))
    sitting = data.y == list(ACTIVITIES).index("SCH")
    # 23 readings over 0.22 s are 45 values: two windows a trial, which begin where the trial before has ended
    start = data.start[sitting.numpy()].tolist()
    assert start == [45 * trial + w for trial in range(6) for w in (0, 20)]
    assert len(np.unique(data.segment[sitting.numpy()])) == 1
    fed = federate(data, DataSettings(**SETTINGS), 0)
    # from 0 to 265: the cut is at 0.7 x 265 = 185.5, rounded to 186; windows from 200 on test
    test = [s for r, s in zip(np.flatnonzero(sitting), start, strict=True) if r in fed.test[0]]
    assert test == [200, 225, 245]


def test_as_pictures(folder):
    settings = {**SETTINGS, "window": 32, "step": 16}
    fed = load(DataSettings(dir=str(folder), layout="bitmap", **settings), 0)
    assert fed.shape == (3, 8, 8)


def test_nobody_has_it_all(tmp_path):
    with pytest.raises(InputError, match="mobiact is not here and cannot be downloaded by itself; put its folder"):
        open_source(DataSettings(dir=str(tmp_path), **SETTINGS))
    write(tmp_path / "mobiact", "WAL", 5, 1, [("WAL", 2.0)])
    with pytest.raises(InputError, match=r"no subject has a window of all activities \(STD, WAL"):
        open_source(DataSettings(dir=str(tmp_path), **SETTINGS))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"has no files like WAL_1_1_annotated\.csv"):
        open_source(DataSettings(path=str(tmp_path / "empty"), **SETTINGS))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text.replace("gyro_x", "gyr_x"), "has no column 'gyro_x'; did you mean 'gyr_x'"),
        (lambda text: text.replace("9.8", "much"), "gaps or text among its readings"),
        (lambda text: text.replace("9.8", ""), "gaps or text among its readings"),
        (lambda text: text.splitlines()[0] + "\n", "has no rows"),
        (lambda text: "", "cannot be read as csv"),
    ],
)
def test_broken_files(folder, change, said):
    (path,) = folder.rglob("JOG_3_1_annotated.csv")
    path.write_text(change(path.read_text()))
    with pytest.raises(InputError, match=said):
        open_source(DataSettings(dir=str(folder), **SETTINGS))
