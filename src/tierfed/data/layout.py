"""Windows of worn sensors drawn as pictures with the axes as colors (PerFit, Wu et al. 2020; He et al. 2019)."""

import math
from dataclasses import replace

from tierfed.data.dataset import Dataset
from tierfed.errors import InputError

LEAST = 4  # pixels; what networks for pictures want


def bitmap(data: Dataset) -> Dataset:
    """The same windows as pictures: x [n, channels, window] becomes [n, 3, height, width].

    Pixel (r, c) is triple number r * width + c: first those of the accelerometer in order of time, then those of the
    gyroscope; the channel is the axis. The upper half of the rows is one sensor, the lower half the other.

    :raises InputError: the data are no windows of these two sensors, or the window has no such form
    """
    if len(data.triples) != 2 or data.x.ndim != 3:
        raise InputError(
            f"data.layout = 'bitmap' draws windows of an accelerometer and a gyroscope, and {data.name} tells of none; "
            f"use data.layout = 'signal' (in Python: tierfed.Dataset(triples=((0, 1, 2), (3, 4, 5))))"
        )
    n, channels, window = data.x.shape
    height, width = form(window)
    sensors = data.x[:, [axis for triple in data.triples for axis in triple]]
    x = sensors.reshape(n, 2, 3, window).transpose(1, 2).reshape(n, 3, height, width)
    return replace(data, x=x.contiguous(), bits_per_sample=data.bits_per_sample * 6 // channels)


def form(window: int) -> tuple[int, int]:
    """Height and width of the picture of 2 * window triples, as square as whole rows of one sensor allow.

    >>> form(200), form(50)
    ((20, 20), (10, 10))

    :raises InputError: no form has four pixels or more in both directions
    """
    widths = [w for w in range(LEAST, window + 1) if window % w == 0 and 2 * window // w >= LEAST]
    if not widths:
        raise InputError(
            f"data.window = {window} cannot be drawn as a bitmap of at least {LEAST} x {LEAST} pixels: no whole rows; "
            "take a window with a divisor near the root of twice its length, for example 50, 72, 128 or 200"
        )
    width = min(widths, key=lambda w: (abs(math.log(w * w / (2 * window))), w))
    return 2 * window // width, width
