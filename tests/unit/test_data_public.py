"""Public samples: a share of everybody's training rows, or a file that fits the devices' data."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import torch

import tierfed
from tierfed.data import DataSettings, Federation, federate, public_samples
from tierfed.errors import InputError
from tierfed.frames import from_table
from tierfed.setup import prepare

ROWS = 60


def table(**changes: Any) -> dict[str, Any]:
    """Three devices with two columns, b a hundred times as large; the labels are calm and storm."""
    rng = np.random.default_rng(0)
    a = rng.normal(size=ROWS)
    columns = {"a": a, "b": 100 * rng.normal(size=ROWS) + 7, "label": np.where(a > 0, "storm", "calm")}
    return {**columns, "device": np.arange(ROWS) % 3, **changes}


def federation(**changes: Any) -> Federation:
    return federate(from_table(table(**changes)), DataSettings(), 0)


def images() -> Federation:
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.integers(0, 256, (30, 1, 4, 4)).astype(np.uint8))
    data = tierfed.Dataset(
        name="pictures",
        x=x,
        y=torch.arange(30) % 3,
        classes=("day", "night", "fog"),
        bits_per_sample=128,
        devices=("left", "right"),
        device=np.arange(30) % 2,
    )
    return federate(data, DataSettings(), 0)


def read(path: Path, fed: Federation, **settings: Any) -> tuple[torch.Tensor, torch.Tensor]:
    train, public, _ = public_samples(DataSettings(public_path=str(path), **settings), fed, 0)
    assert train is fed.train
    assert public is not None
    return public


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_file_is_scaled_by_the_devices_and_read_by_their_columns(kind: str, tmp_path: Path) -> None:
    """Columns in another order, one more, only one of the classes."""
    fed, path = federation(), tmp_path / f"public.{kind}"
    made = pa.table({"label": ["storm", "storm"], "more": [1, 2], "b": [7.0, 107.0], "a": [0.5, -0.5]})
    pyarrow.csv.write_csv(made, path) if kind == "csv" else pq.write_table(made, path)
    x, y = read(path, fed)
    assert y.tolist() == [1, 1]
    assert torch.allclose(x, fed.scaling(torch.tensor([[0.5, 7.0], [-0.5, 107.0]]), torch.float32))


@pytest.mark.parametrize("labels", [[2, 0], ["fog", "day"]])
def test_labels_are_names_or_places(labels: list[Any], tmp_path: Path) -> None:
    path = tmp_path / "public.npz"
    np.savez(path, x=np.full((2, 1, 4, 4), 51, np.uint8), y=np.array(labels))
    x, y = read(path, images())
    assert y.tolist() == [2, 0]
    assert torch.allclose(x, torch.full((2, 1, 4, 4), 0.2))


def test_a_regression(tmp_path: Path) -> None:
    path = tmp_path / "public.npz"
    np.savez(path, x=np.zeros((4, 2)), y=np.arange(4) / 2)
    fed = federate(from_table(table(label=np.arange(ROWS) / 3), target="number"), DataSettings(), 0)
    assert read(path, fed)[1].tolist() == [0.0, 0.5, 1.0, 1.5]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros((2, 3)), "y": [0, 1]}, r"the shape \[3\], but those of .* have \[2\]"),
        ({"x": np.zeros((2, 2)), "y": [0, 2]}, "of the class '2', which .* does not have .2 classes: calm, storm"),
        ({"x": np.zeros((2, 2)), "y": ["calm", "rain"]}, "of the class 'rain', which"),
        ({"x": np.full((2, 2), np.nan), "y": [0, 1]}, "NaN or infinite"),
        ({"x": np.zeros((2, 2), np.uint8), "y": [0, 1]}, r"are bytes \(uint8\), but those of .* are numbers"),
        ({"x": np.zeros((2, 2))}, "has no array 'y'"),
    ],
)
def test_a_file_that_does_not_fit(arrays: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "public.npz"
    np.savez(path, **arrays)
    with pytest.raises(InputError, match=message):
        read(path, federation())


def test_numbers_where_bytes_are_wanted(tmp_path: Path) -> None:
    np.savez(tmp_path / "public.npz", x=np.zeros((2, 1, 4, 4)), y=[0, 1])
    with pytest.raises(InputError, match=r"are numbers, but those of .* are bytes \(uint8\)"):
        read(tmp_path / "public.npz", images())


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data.public_path = '.*none.npz': there is no such file"):
        read(tmp_path / "none.npz", federation())
    (tmp_path / "public.txt").write_text("a b")
    with pytest.raises(InputError, match=r"its name ends in none of .npz, .csv, .parquet"):
        read(tmp_path / "public.txt", federation())
    (tmp_path / "public.npz").write_text("no")
    with pytest.raises(InputError, match="cannot be read"):
        read(tmp_path / "public.npz", federation())
    (tmp_path / "public.csv").write_text("a,label\n1,calm\n")
    with pytest.raises(InputError, match="has no column 'b'"):
        read(tmp_path / "public.csv", federation())


def test_one_source_of_public_samples(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data.public = 0.1 and data.public_path = .* two sources"):
        read(tmp_path / "public.npz", federation(), public=0.1)


def test_a_share_is_taken_out_of_the_training_rows() -> None:
    fed = federation()
    train, public, _ = public_samples(DataSettings(public=0.25), fed, 0)
    assert public is not None
    kept, before = np.concatenate(train), np.concatenate(fed.train)
    given = np.setdiff1d(before, kept)
    assert len(given) + len(kept) == len(before)
    assert len(public[0]) == sum(round(0.25 * len(rows)) for rows in fed.train) == len(given)
    assert torch.equal(public[0], fed.x[torch.from_numpy(given)])
    assert not set(given) & set(np.concatenate([*fed.test, *fed.val]))


@pytest.mark.parametrize(("epochs", "labels"), [(0, 0), (2, 1)])
def test_the_devices_get_them_once(epochs: int, labels: int) -> None:
    """P samples of 128 bits, a byte more with a label; the samples of the cloud alone stay there."""
    settings: dict[str, Any] = {"subset": 2, "public_epochs": epochs}
    config = {"data": {"public": 0.2}, "algorithm": {"name": "fedmd", **settings}, "model": {"name": "mclr"}}
    data = table()
    world = prepare(tierfed.load_config(config), from_table(data))
    assert world.task.public is not None
    n = len(world.task.public.x)
    (transfer,) = world.transfers
    assert (transfer.what, transfer.common) == ("public samples", True)
    assert transfer.down_bytes.tolist() == [n * (2 * 4 + labels)] * 3
    assert transfer.up_bytes.tolist() == [0] * 3
    other = replace(tierfed.load_config(config), algorithm={"name": "fd"})
    assert prepare(other, from_table(data)).transfers == ()
