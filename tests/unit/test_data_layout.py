"""Windows of worn sensors as bitmaps: which reading becomes which pixel, and how pictures are standardized."""

import numpy as np
import pytest
import torch

from tierfed.data import Dataset, DataSettings, SplitSettings, federate, load, open_source
from tierfed.data.layout import bitmap, form
from tierfed.errors import InputError


def sensors(x, triples=((0, 1, 2), (3, 4, 5)), **more):
    n = len(x)
    device = np.zeros(n, np.int64)
    rest = {"name": "toy", "y": torch.arange(n) % 2, "classes": ("a", "b"), "bits_per_sample": 32 * x[0].numel()}
    return Dataset(x=x, triples=triples, devices=("d",), device=device, **{**rest, **more})


def test_every_reading_has_its_pixel():
    """Reading t of axis a of sensor s is 1000 s + 100 a + t: 32 triples of each sensor are four rows of 8 pixels."""
    t = torch.arange(32.0)
    x = torch.stack([1000 * s + 100 * a + t for s in (0, 1) for a in range(3)])[None]
    got = bitmap(sensors(x)).x
    assert got.shape == (1, 3, 8, 8)
    for a in range(3):
        for r in range(8):
            for c in range(8):
                number = (
                    8 * r + c
                )  # of the triple, as in the paper: 32 of the accelerometer, then those of the gyroscope
                s, reading = divmod(number, 32)
                assert got[0, a, r, c] == 1000 * s + 100 * a + reading


def test_the_named_channels_are_drawn():
    """Of nine channels the last three are the accelerometer here; two thirds of the numbers remain."""
    x = torch.arange(9.0)[None, :, None].expand(2, 9, 50)
    got = bitmap(sensors(x, ((6, 7, 8), (3, 4, 5))))
    assert got.x[:, :, :5].amin((0, 2, 3)).tolist() == got.x[:, :, :5].amax((0, 2, 3)).tolist() == [6, 7, 8]
    assert got.x[:, :, 5:].amin((0, 2, 3)).tolist() == got.x[:, :, 5:].amax((0, 2, 3)).tolist() == [3, 4, 5]
    assert got.bits_per_sample == 32 * 6 * 50


@pytest.mark.parametrize(
    # as square as whole rows of each sensor allow: the ratio of the sides of the others is larger
    ("window", "shape"),
    [(200, (20, 20)), (50, (10, 10)), (72, (12, 12)), (128, (16, 16)), (100, (20, 10)), (60, (12, 10)), (8, (4, 4))],
)
def test_forms(window, shape):
    assert form(window) == shape


@pytest.mark.parametrize("window", [7, 4, 53, 1])
def test_windows_without_a_form(window):
    with pytest.raises(InputError, match=f"data.window = {window} cannot be drawn as a bitmap"):
        form(window)


def test_each_sensor_is_standardized_by_itself():
    """The gyroscope has a hundredth of the accelerometer's units and another mean: both are 0 and 1 afterwards."""
    x = torch.randn(40, 6, 50, generator=torch.Generator().manual_seed(0))
    x[:, :3] = 9.8 + 5 * x[:, :3]
    x[:, 3:] *= 0.01
    split = np.repeat(np.array([0, 2], np.int8), 20)
    settings = DataSettings(layout="bitmap", split=SplitSettings(by="given", val=0.0))
    fed = federate(sensors(x, split=split), settings, 0, torch.float64)
    rows = fed.x[np.concatenate(fed.train)]
    for half in rows.chunk(2, 2):
        torch.testing.assert_close(half.mean((0, 2, 3)), torch.zeros(3, dtype=torch.float64), atol=1e-9, rtol=0)
        torch.testing.assert_close(half.std((0, 2, 3), correction=0), torch.ones(3, dtype=torch.float64))
    raw = bitmap(sensors(x)).x
    torch.testing.assert_close(fed.scaling(raw, torch.float64), fed.x)


def test_the_watch_as_bitmaps():
    """Row 0 is the first fifth of the accelerometer's readings."""
    raw = open_source(DataSettings())
    got = bitmap(raw)
    assert got.x.shape == (9556, 3, 10, 10)
    torch.testing.assert_close(got.x[7, 1, 0], raw.x[7, 1, :10])
    torch.testing.assert_close(got.x[7, 1, 9], raw.x[7, 4, 40:])
    fed = load(DataSettings(layout="bitmap"), 0)
    assert fed.shape == (3, 10, 10)
    assert fed.bits_per_sample == raw.bits_per_sample


def test_other_data_are_refused():
    with pytest.raises(InputError, match=r"toy tells of none; use data\.layout = 'signal'"):
        bitmap(sensors(torch.zeros(2, 6, 50), triples=()))
    with pytest.raises(InputError, match=r"data\.layout = 'bitmap' draws windows"):
        bitmap(sensors(torch.zeros(2, 6)))
