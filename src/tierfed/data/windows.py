"""Windows of continuous recordings. A window never crosses the boundary of its recording."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tierfed.data.dataset import Ints
from tierfed.errors import InputError


def cut(x: npt.NDArray[np.floating], length: Ints, window: int, step: int) -> tuple[Tensor, Ints, Ints, Ints]:
    """All whole windows of all recordings, in order.

    :param x: [sum(length), channels], the recordings one after another
    :param length: [recordings] samples per recording
    :param window: samples per window
    :param step: samples from one window to the next
    :returns: float32 windows [n, channels, window]; the recording, first sample and end of each, [n]
    :raises InputError: no recording is as long as a window; lengths that do not add up
    """
    if int(length.sum()) != len(x):
        raise InputError(f"the recordings have {int(length.sum())} samples together but x has {len(x)} rows")
    count = np.maximum(length - window, -step) // step + 1
    if count.sum() == 0:
        raise InputError(f"data.window = {window} is longer than the longest recording ({int(length.max())} samples)")
    segment = np.repeat(np.arange(len(length)), count)
    start = np.arange(len(segment)) - np.repeat(np.cumsum(count) - count, count)
    start = start * step
    first = (np.cumsum(length) - length)[segment] + start
    cuts = x[first[:, None] + np.arange(window)].transpose(0, 2, 1)  # [n, channels, window]
    out = torch.from_numpy(np.ascontiguousarray(cuts, dtype=np.float32))
    return out, segment.astype(np.int64), start.astype(np.int64), (start + window).astype(np.int64)
