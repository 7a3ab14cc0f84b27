"""The user's own files, made here and read back."""

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
import torch

from tierfed.data import Columns, DataSettings, SplitSettings, load, open_source
from tierfed.data.arrays import read_npz
from tierfed.errors import InputError

ROWS = {
    "speed": [0.5, 1.5, 2.5, 3.5],
    "load": [1, 2, 3, 4],
    "note": ["x", "y", "z", "w"],
    "label": ["walk", "run", "walk", "run"],
    "device": ["b", "a", "b", "a"],
    "team": ["t", "u", "t", "u"],
    "split": ["train", "train", "test", "val"],
}


def write(path, rows):
    table = pa.table(rows)
    if path.suffix == ".csv":
        pyarrow.csv.write_csv(table, path)
    else:
        pyarrow.parquet.write_table(table, path)
    return path


def table_settings(path, **columns):
    return DataSettings(source=path.suffix[1:], path=str(path), columns=Columns(**columns))


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_tables(tmp_path, kind):
    data = open_source(table_settings(write(tmp_path / f"mine.{kind}", ROWS)))
    assert data.name == "mine"
    assert data.features == ("speed", "load")
    torch.testing.assert_close(data.x, torch.tensor([[0.5, 1], [1.5, 2], [2.5, 3], [3.5, 4]]))
    assert data.classes == ("run", "walk")
    assert data.y.tolist() == [1, 0, 1, 0]
    assert data.devices == ("a", "b")
    assert data.device.tolist() == [1, 0, 1, 0]
    assert data.teams == ("t", "u")
    assert data.team.tolist() == [1, 0]
    assert data.split.tolist() == [0, 0, 2, 1]
    assert data.bits_per_sample == 64


def test_columns_by_name(tmp_path):
    path = write(tmp_path / "mine.csv", {**ROWS, "who": [7, 8, 9, 8]})
    data = open_source(table_settings(path, features=("load",), device="who", label="note", classes=tuple("wxyz")))
    assert data.x.shape == (4, 1)
    assert data.devices == ("7", "8", "9")
    assert data.y.tolist() == [1, 2, 3, 0]


def test_a_number_to_predict(tmp_path):
    data = open_source(table_settings(write(tmp_path / "m.csv", ROWS), label="speed", target="number"))
    assert data.classes == ()
    assert data.y.tolist() == [0.5, 1.5, 2.5, 3.5]
    assert data.features == ("load",)


@pytest.mark.parametrize(
    ("change", "columns", "message"),
    [
        ({}, {"label": "lable"}, r"no column 'lable' \(data.columns.label\); did you mean 'label'\?"),
        ({}, {"device": "devise"}, r"no column 'devise' .* did you mean 'device'\?"),
        ({}, {"features": ("sped",)}, r"no column 'sped' .* did you mean 'speed'\?"),
        ({}, {"features": ("note",)}, r"feature 'note' is string, not a number"),
        ({}, {"label": "speed"}, r"label 0.5 in row 0 is no whole number; say data.columns.target = 'number'"),
        ({}, {"classes": ("walk", "jump")}, r"label 'run' is not in data.columns.classes"),
        ({"split": ["train", "train", "tset", "val"]}, {}, r"split 'tset' is unknown; did you mean 'test'\?"),
        ({"team": ["t", "u", "u", "u"]}, {}, r"device 'b' is in more than one team"),
        ({"label": ["walk", None, "run", "run"]}, {}, r"'label' has 1 empty entries, the first in row 1"),
        ({"device": ["a", "a", None, None]}, {}, r"'device' has 2 empty entries, the first in row 2"),
        ({"speed": list("abcd"), "load": list("abcd")}, {}, r"no numeric column besides 'label'"),
        ({"label": list("abcd")}, {"target": "number"}, r"a regression needs numbers"),
    ],
)
def test_bad_tables_say_why(tmp_path, change, columns, message):
    path = write(tmp_path / "mine.parquet", {**ROWS, **change})
    with pytest.raises(InputError, match=message):
        open_source(table_settings(path, **columns))


def test_teams_need_devices(tmp_path):
    rows = {k: v for k, v in ROWS.items() if k != "device"}
    with pytest.raises(InputError, match=r"tells teams but not devices"):
        open_source(table_settings(write(tmp_path / "m.csv", rows)))


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [
        ({"speed": [0.5, None, 1.0, 2.0]}, {}, r"1 feature value is NaN .* row 1 .* column speed"),
        ({"label": [0, 1, -1, 0]}, {}, r"label -1 in row 2 is out of range"),
        ({"label": [0, 1, 2, 0]}, {"classes": ("no", "yes")}, r"label 2 in row 2 is out of range; the 2 classes"),
    ],
)
def test_values_are_checked_when_they_are_loaded(tmp_path, rows, columns, message):
    with pytest.raises(InputError, match=message):
        load(table_settings(write(tmp_path / "m.parquet", {**ROWS, **rows}), **columns), 0)


def test_missing_and_broken_files(tmp_path):
    for source in ("npz", "csv", "parquet"):
        with pytest.raises(InputError, match=r"^there is no file .*nowhere"):
            load(DataSettings(source=source, path=str(tmp_path / "nowhere")), 0)
        broken = tmp_path / f"broken.{source}"
        broken.write_bytes(b"\x00\xff")
        with pytest.raises(InputError, match=r"broken\.\w+ (cannot be read|has no column)"):
            load(DataSettings(source=source, path=str(broken)), 0)


def npz(path, **arrays):
    np.savez(path, **arrays)
    return DataSettings(source="npz", path=str(path), split=SplitSettings(test=0.25, val=0))


def test_npz(tmp_path):
    x = np.arange(16 * 3 * 2 * 2, dtype=np.uint8).reshape(16, 3, 2, 2)
    split = np.array(["train", "train", "val", "test"] * 4)
    settings = npz(
        tmp_path / "a.npz",
        x=x,
        y=np.arange(16) // 4 % 2,
        device=np.arange(16) % 8 // 4,
        team=np.zeros(16, int),
        split=split,
    )
    fed = load(settings, 0)
    assert fed.name == "a"
    assert fed.shape == (3, 2, 2)
    assert fed.devices == ("0", "1")
    assert fed.teams == ("0",)
    assert fed.bits_per_sample == 12 * 8
    assert fed.train[0].tolist() == [0, 1, 8, 9]
    assert fed.val[0].tolist() == [2, 10]
    assert fed.test[1].tolist() == [7, 15]
    torch.testing.assert_close(fed.x[15, 2, 1, 1], torch.tensor(191 / 255))


def test_npz_with_several_targets(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, x=np.ones((6, 2), np.float16), y=np.ones((6, 3)))
    data = open_source(DataSettings(source="npz", path=str(path), columns=Columns(target="number")))
    assert data.y.shape == (6, 3)
    assert data.bits_per_sample == 32
    with pytest.raises(InputError, match=r"labels have the shape \[6, 3\]"):
        open_source(DataSettings(source="npz", path=str(path)))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros((4, 2))}, r"has no array 'y'"),
        ({"x": np.zeros((4, 2)), "Y": np.zeros(4)}, r"has no array 'y'"),
        ({"x": np.zeros(4), "y": np.zeros(4)}, r"x is float64 \[4\]; it must be numbers \[samples"),
        ({"x": np.zeros((4, 2)), "y": np.zeros(3)}, r"x has 4 rows but y has 3"),
        ({"x": np.zeros((4, 2)), "y": np.zeros(4), "split": np.array([0, 1, 2, 3])}, r"split '3' is unknown"),
        ({"x": np.array([[{}]], object), "y": np.zeros(1)}, r"cannot be read as an npz file of plain arrays"),
    ],
)
def test_bad_npz_files_say_why(tmp_path, arrays, message):
    with pytest.raises(InputError, match=message):
        load(npz(tmp_path / "a.npz", **arrays), 0)


def test_a_single_array_is_no_npz_file(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros(3))
    with pytest.raises(InputError, match=r"a.npy is no npz file with named arrays"):
        read_npz(tmp_path / "a.npy")
