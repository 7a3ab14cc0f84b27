"""The contract between algorithms and engines: Data, Info, Tier (Relay, Average), Algorithm.

Everything here is written for ONE device or ONE inner node of the tree, in ordinary PyTorch, as pure functions of
trees; an engine maps it over cohorts, processes or machines. An algorithm never sees ids, cohorts, sampling, bytes or
hardware; an engine never sees a loss.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

from tierfed.settings import Count, Positive
from tierfed.tree import Params, Tree, add, mix, take, where, zeros

if TYPE_CHECKING:
    from tierfed.task import Task

Ids = npt.NDArray[np.int64]


class Batch(NamedTuple):
    """One minibatch, or the held-out samples of a device."""

    x: Tensor  # [B, ...]
    y: Tensor  # [B, ...]
    live: Tensor  # []: is this step real? For held-out data [B]: is this sample real?
    seed: Tensor  # [] int64: what this step's dropout masks are drawn from


class Data(NamedTuple):
    """One device's data of one visit: E passes of S steps each, as rows of a pool that all devices share.

    Ragged devices are padded with dead steps, never with dead samples: batch norm would see those.
    """

    x: Tensor  # [n, ...] the pool
    y: Tensor  # [n, ...]
    rows: Tensor  # [E, S, B] rows of the pool
    live: Tensor  # [E, S]
    seed: Tensor  # [E, S]
    held_rows: Tensor  # [V] rows of the local held-out split
    held_live: Tensor  # [V]
    ragged: bool = True  # are there dead steps at all?

    def fold(self, step: Callable[[Any, Batch], Any], carry: Any) -> Any:
        """carry = step(carry, batch) over all steps in order; a dead step leaves carry as it was."""
        for e in range(self.rows.shape[0]):
            for s in range(self.rows.shape[1]):
                at = self.rows[e, s]
                batch = Batch(self.x[at], self.y[at], self.live[e, s], self.seed[e, s])
                new = step(carry, batch)
                carry = where(batch.live, new, carry) if self.ragged else new
        return carry

    def passes(self, start: int | None = None, stop: int | None = None) -> Data:
        """A phase of the visit: some of its passes."""
        part = slice(start, stop)
        return self._replace(rows=self.rows[part], live=self.live[part], seed=self.seed[part])

    def zipped(self, n: int) -> Data:
        """n passes side by side: every step sees n independent batches, rows [E / n, S, n, B]."""
        rows = self.rows.unflatten(0, (-1, n)).movedim(1, 2)
        return self._replace(rows=rows, live=self.live[::n], seed=self.seed[::n])

    def alone(self) -> Data:
        """The data of the only device of a stacked one."""
        rows, live, seed = self.rows[0], self.live[0], self.seed[0]
        return Data(self.x, self.y, rows, live, seed, self.held_rows[0], self.held_live[0], ragged=False)

    @property
    def steps(self) -> Tensor:
        """Number of real steps []."""
        return self.live.sum()

    @property
    def held(self) -> Batch:
        """The local held-out split, only ever seen in evaluation mode."""
        return Batch(self.x[self.held_rows], self.y[self.held_rows], self.held_live, self.seed.flatten()[0])


class Info(NamedTuple):
    """What a node knows about the replies it absorbs, in the unit of its weighting: samples, devices or children."""

    heard: Tensor  # [] of those that answered
    total: Tensor  # [] of everybody below
    share: Tensor  # [] 1 when the mean is over those heard; heard / total when the silent ones count as unchanged
    round: Tensor  # [] number of the cloud round, from 0
    slots: Tensor | None = None  # [H] only for reduce="stack": which rows of state["rows"] the messages belong to


@dataclass(frozen=True, kw_only=True)
class Tier:
    """What ONE inner node does; every method is pure.

    `init` gives what the node KEEPS between visits. `enter` opens a visit and may add working keys; after the visit
    exactly the keys of `init` are kept. The cloud is never entered: its state is what it keeps.

    A node may remember something about each child: a *row*, made by `child` and stored under the child's stable id,
    so that it follows a device that changes team. `watches`: after a reply, `watch` renews the row of that child.
    `sees`: during a burst the state also holds the rows `state["rows"]` [R, ...] and ids `state["ids"]` [R] of the
    polled or of all members.
    """

    reduce: ClassVar[str] = "mean"
    """What absorb gets: "mean", the weighted mean; "stack", all messages [H, ...] with info.slots; "chain", the mean at
    the end of a path: the devices of a lowest tier, all of which it sends the same, pass a sum on (path, mask, hop).
    """
    weight: ClassVar[str] = "samples"  # or "devices", "children": default unit of the mean, a config may override it
    sees: ClassVar[str] = ""  # "": sends the same to all; "polled" | "all": has child rows, sends by slot
    watches: ClassVar[bool] = False
    relay: ClassVar[bool] = False
    means: ClassVar[bool] = False  # keeps the mean of the devices below, which init gets where their models differ
    returns: ClassVar[bool] = False  # of a chain: the sum goes back to the first device, which takes it to the node
    traces: ClassVar[tuple[str, ...]] = ()  # scalars among what is kept for the metrics of a run; -1: not measured yet

    def init(self, params: Params) -> Tree:
        return {}

    def child(self, params: Params, ident: int) -> Tree:
        return {}

    def enter(self, kept: Tree, msg: Tree) -> Tree:
        raise NotImplementedError(f"{type(self).__name__} is a tier for the cloud; as a fog it needs enter()")

    def send(self, state: Tree, slot: Tensor) -> Tree:
        raise NotImplementedError

    def watch(self, state: Tree, row: Tree, up: Tree, info: Info) -> Tree:
        """A child's row after its reply `up`; `state` is the one it was polled with."""
        return row

    def path(self, ids: Ids, distances: npt.NDArray[np.float64], rng: np.random.Generator) -> Ids:
        """The order of a chain: places [H] among the devices `ids` [H], which are `distances` [H, H] apart."""
        return np.arange(len(ids))

    def mask(self, up: Tree, weight: float, key: int) -> Tree:
        """What the sum of a chain begins with, and what is taken out of it at its end; shaped like a reply `up`.

        :param weight: of the first device
        :param key: 63 random bits that the first device alone knows, others in every visit
        """
        return zeros(up)  # type: ignore[no-any-return]

    def hop(self, carry: Tree, up: Tree, weight: float) -> Tree:
        """The sum of a chain that a device sends on, from the one that it got and its own reply."""
        return add(carry, up, weight)  # type: ignore[no-any-return]

    def absorb(self, state: Tree, up: Tree, info: Info) -> Tree:
        raise NotImplementedError

    def report(self, state: Tree) -> Tree:
        raise NotImplementedError(f"{type(self).__name__} is a tier for the cloud; as a fog it needs report()")

    def model(self, kept: Tree) -> Params | None:
        """The evaluated model of this node (global at the cloud, team at a fog), from what it keeps; None: it has
        none.
        """
        return kept.get("params")

    def ties(self, state: Tree) -> dict[str, Tensor]:
        """What a run records of who listens to whom, of a tier with `sees`: name of a layer, or "model" -> [R, R], row
        i: the weights of all members' models in what member i gets; `state` is that of `send`.
        """
        return {}

    def stop(self, kept: Tree) -> str:
        """Why the run should end now, asked of the cloud after each round; empty: it goes on."""
        return ""


@dataclass(frozen=True, kw_only=True)
class Relay(Tier):
    """The tree behaves as if this node were absent; it inherits its parent's weighting and polls once."""

    relay = True

    def enter(self, kept: Tree, msg: Tree) -> Tree:
        return {"down": msg}

    def send(self, state: Tree, slot: Tensor) -> Tree:
        return state["down"]  # type: ignore[no-any-return]

    def absorb(self, state: Tree, up: Tree, info: Info) -> Tree:
        return {**state, "up": up}

    def report(self, state: Tree) -> Tree:
        return state["up"]  # type: ignore[no-any-return]


@dataclass(frozen=True, kw_only=True)
class Average(Tier):
    """FedAvg's server; at a fog HierFAVG's edge. Further entries of a reply (losses) are averaged alike and passed
    up.
    """

    down: tuple[str, ...] | None = None  # the keys that travel down; None: all
    rate: float = 1.0  # x <- (1 - rate) x + rate mean

    def init(self, params: Params) -> Tree:
        return {"params": params}

    def enter(self, kept: Tree, msg: Tree) -> Tree:
        return {"params": {**kept["params"], **msg["params"]}}

    def send(self, state: Tree, slot: Tensor) -> Tree:
        return {"params": state["params"] if self.down is None else take(state["params"], self.down)}

    def absorb(self, state: Tree, up: Tree, info: Info) -> Tree:
        return {**state, **up, "params": mix(state["params"], up["params"], self.rate * info.share)}

    def report(self, state: Tree) -> Tree:
        return state


@dataclass(frozen=True, kw_only=True)
class Algorithm:
    """What ONE device does, and the tiers above it. Fields are plain hyper-parameters: numbers, strings, tuples of
    them.
    """

    lr: Positive = 0.1
    """Learning rate of the local SGD."""
    epochs: Count = 1
    """Passes E over the local training data per visit."""
    steps: Count | None = None
    """Minibatch steps per pass instead of whole passes."""

    traces: ClassVar[tuple[str, ...]] = ()  # scalars of the private state for the metrics; -1: not measured yet
    goes_on: ClassVar[bool] = True  # can training begin with models that another run has left?

    @property
    def needs_held(self) -> bool:
        """Whether every device must have held-out local data."""
        return False

    @property
    def needs_full(self) -> bool:
        """Whether every device must be polled in every round."""
        return False

    @property
    def needs_norms(self) -> bool:
        """Whether the model must have batch norms."""
        return False

    @property
    def mixed_models(self) -> bool:
        """Whether devices may have different models: nothing that has the shape of one travels."""
        return False

    @property
    def needs_public(self) -> bool:
        """Whether there must be public samples, `Task.public`."""
        return False

    @property
    def public_goes(self) -> Literal["", "samples", "labels"]:
        """What of the public samples all devices get before round 1: nothing, the samples, their labels too."""
        return ""

    @property
    def extra_samples(self) -> int:
        """Gradients of single samples in a visit beside those on local data; the clock charges them too."""
        return 0

    @property
    def most_samples(self) -> int | None:
        """Training samples, in whole batches, that a device may have; none: any number."""
        return None

    @property
    def passes(self) -> int:
        """Passes over the local data that one visit needs."""
        return self.epochs

    @property
    def gradients(self) -> float:
        """Gradient evaluations per batch of a visit: what the clock charges for it."""
        return 1.0

    def shared(self, task: Task) -> list[str]:
        """The keys of the model that the tiers hold; the rest never leaves a device."""
        return task.keys

    def tiers(self, task: Task, shape: tuple[int, ...]) -> tuple[Tier, ...]:
        """One tier per inner level, cloud first; shape = nodes per level, (1, fogs, ..., devices)."""
        return (Average(), *[Relay() for _ in shape[2:]])

    def init(self, task: Task, params: Params) -> Tree:
        """A device's private state before its first visit; it never travels."""
        return {}

    def device(self, task: Task, msg: Tree, state: Tree, data: Data) -> tuple[Tree, Tree]:
        """One visit: (message from the parent, private state, data) -> (message to the parent, new private state).

        Entries under up["owed"] are increments that must not be lost: what was not heard is added to the next reply.
        """
        raise NotImplementedError

    def personal(self, task: Task, msg: Tree, state: Tree, data: Data) -> Params:
        """What this device predicts with, given a message (data: its training data, for algorithms that adapt)."""
        return msg["params"]  # type: ignore[no-any-return]

    def regroup_scope(self, round_: int) -> str:
        """Whether devices change team after this round: "" no, "fogs" among all teams, "inside_fog" below one
        parent, "tree": as "fogs", and every inner node below the cloud's children may change its parent too.
        """
        return ""

    def regroup(self, rows: Tree, teams: npt.NDArray[np.int64], groups: int, round_: int) -> npt.NDArray[np.int64]:
        """New teams [n] in range(groups) of n devices, from their rows [n, ...] at the lowest fogs and present teams
        [n]; with the scope "tree" also new parents of n inner nodes, from their rows at the level above.
        """
        raise NotImplementedError
