"""The models that a run begins with: the initial ones of the architectures, or those that another run has left."""

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from tierfed.store import Store
from tierfed.tree import Params, stack, take, tmap

Ids = npt.NDArray[np.int64]


class Beginning:
    """Models of another run are records of the store, so that they outlive the process: "start" by device, "start_all".

    :param initial: of every architecture; `kinds[i]` says which one device i runs, none: all the first one
    """

    def __init__(self, store: Store, initial: Sequence[Params], kinds: Ids | None) -> None:
        self.store, self.initial, self.kinds = store, initial, kinds

    def give(self, common: Params, own: Iterable[Params] = ()) -> None:
        """Models in the place of the initial ones, durable with the next commit.

        :param common: what inner nodes begin with, and devices that get none of their own
        :param own: the model of each device [N], or none at all
        """
        self.store.put("start_all", 0, common)
        for i, params in enumerate(own):
            self.store.put("start", i, params)

    @property
    def common(self) -> Params:
        """What inner nodes begin with, and all devices where nobody has a model of its own."""
        given = self.store.get("start_all", 0)
        return self.initial[0] if given is None else given

    def own(self, device: int) -> Params | None:
        """The model that a device alone was given."""
        return self.store.get("start", device)

    def of(self, device: int) -> Params:
        """What a device begins with. A common model is of the only architecture: different ones have none in common."""
        own = self.own(device)
        if own is not None:
            return own
        return self.common if self.kinds is None else self.initial[int(self.kinds[device])]

    def mean(self, devices: Ids, keys: Iterable[str]) -> Params:
        """What some devices begin with on average, all alike; the common model where none of them has its own."""
        if not len(devices) or self.store.get("start", int(devices[0])) is None:
            return take(self.common, keys)
        keys = list(keys)
        return tmap(lambda t: t.mean(0), stack([take(self.of(int(i)), keys) for i in devices]))  # type: ignore[no-any-return]
