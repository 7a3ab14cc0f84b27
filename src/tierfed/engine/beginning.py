"""What a run begins with: the initial models of the architectures or those that another run has left, and the tree."""

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import torch

from tierfed.store import Records
from tierfed.topology import Topology
from tierfed.tree import Params, stack, take, tmap

Ids = npt.NDArray[np.int64]


class Beginning:
    """Models of another run are records of the store, so that they outlive the process: "start" by device, "start_all".

    :param initial: of every architecture; `kinds[i]` says which one device i runs, none: all the first one
    """

    def __init__(self, store: Records, initial: Sequence[Params], kinds: Ids | None) -> None:
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


def put_parents(topology: Topology, store: Records, table: str, levels: Sequence[bool]) -> None:
    """Writes the parents of some levels of a tree into a table of a store, a record a level."""
    for d, parents in enumerate(topology.parents):
        if levels[d]:
            store.put(table, d, {"of": torch.from_numpy(parents.astype(np.int32))})


def with_parents(topology: Topology, store: Records, table: str) -> Topology:
    """The same nodes with the parents that a table of a store has, level by level; the own ones where it has none."""
    found = [store.get(table, d) for d in range(topology.depth)]
    if all(record is None for record in found):
        return topology
    pairs = zip(found, topology.parents, strict=True)
    return topology.rebuilt([own if record is None else record["of"].cpu().numpy() for record, own in pairs])
