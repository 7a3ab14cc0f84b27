"""The evaluated models of every device: global, team, personal before and after local training.

Evaluation walks the tree down: each device is evaluated on the message that its own parent would send it now.
Nothing is counted, nothing is kept.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import vmap

from tierfed.algorithm import Data
from tierfed.engine.base import Engine, Ids
from tierfed.engine.vectorized import Vectorized
from tierfed.tree import Params, Tree, nbytes, row, stack, tmap
from tierfed.wire import payload

Each = Params | list[Params]
"""A model of each of C devices: stacked, leaves [C, ...], where a common one is expanded; or one after the other."""

_ROOM_BYTES, _MOST_AT_ONCE = 1 << 24, 256  # what stays in a cache is copied and mixed faster
_MOST_OPEN = 512  # nodes whose messages are remembered
_CONVOLUTIONS = nn.modules.conv._ConvNd
_RECURRENT = (nn.RNNBase, nn.RNNCellBase)


@dataclass(frozen=True)
class Models:
    """What is evaluated on one device; None: the algorithm has no such model."""

    device: int
    global_model: Params | None
    team: Params | None
    personal_pre: Params
    personal_post: Params | None  # None: not asked for


@dataclass(frozen=True)
class Cohort:
    """The same of C devices of one architecture."""

    devices: Ids  # [C]
    global_model: Params | None
    teams: list[Params | None]  # [C]
    personal_pre: Each
    personal_post: Each | None

    def one(self, place: int) -> Models:
        """What is evaluated on one of the devices."""
        post = None if self.personal_post is None else member(self.personal_post, place)
        pre = member(self.personal_pre, place)
        return Models(int(self.devices[place]), self.global_model, self.teams[place], pre, post)


def member(each: Each, place: int) -> Params:
    """The model of one of the devices."""
    return each[place] if isinstance(each, list) else row(each, place)  # type: ignore[no-any-return]


def same(a: Tree | None, b: Tree | None) -> bool:
    """Whether two trees are the very same tensors."""
    if a is b:
        return True
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(v, b[k]) for k, v in a.items())
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return (a.data_ptr(), a.shape, a.stride(), a.dtype) == (b.data_ptr(), b.shape, b.stride(), b.dtype)
    return False


def together(engine: Engine, kind: int) -> bool:
    """Whether devices of an architecture are evaluated in one batched call: never by the serial engine, nor where that
    is slower (convolutions on a CPU) or does not exist (recurrent nets).
    """
    if not isinstance(engine, Vectorized):
        return False
    module = engine.tasks[kind].module
    slower = engine.plan.x.device.type == "cpu" and convolves(module)
    return not slower and not recurs(module)


def convolves(module: nn.Module) -> bool:
    """Whether a model has convolutions."""
    return any(isinstance(m, _CONVOLUTIONS) for m in module.modules())


def recurs(module: nn.Module) -> bool:
    """Whether a model has recurrent layers."""
    return any(isinstance(m, _RECURRENT) for m in module.modules())


def mixes(module: nn.Module) -> bool:
    """Whether the output of a sample depends on the others of its batch: batch norms without running statistics."""
    norms = (m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))
    return any(not m.track_running_stats for m in norms)


class _Asked(Exception):  # noqa: N818  (no error: it asks for data)
    pass


class _Unseen:
    """In the place of data that most algorithms do not look at, and that take long to draw."""

    def _ask(self, *_: Any) -> Any:
        raise _Asked

    __getattr__ = __getitem__ = __iter__ = __len__ = _ask


_UNSEEN = cast("Data", _Unseen())


class _Walk:
    """Messages down the tree, every inner node opened once."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.adapts = False  # does the algorithm look at data to make a personal model?
        self._open: dict[tuple[int, int], Tree] = {}
        self._common: dict[tuple[int, int], Tree] = {}
        self._full: dict[tuple[int, int], Tree] = {}
        self._teams: dict[int, Params | None] = {}

    def opened(self, depth: int, node: int) -> Tree:
        if (depth, node) not in self._open:
            self.enter(depth, node, self.message(depth, node) if depth else {})
        return self._open[depth, node]

    def enter(self, depth: int, node: int, message: Tree) -> None:
        kept = self.engine.kept(depth, node)
        self._open[depth, node] = self.engine.tiers[depth].enter(kept, message) if depth else kept

    def message(self, level: int, ident: int) -> Tree:
        """What the parent of a node of `level` would send it now."""
        return self.messages(level, np.array([ident]))[0]

    def messages(self, level: int, ids: Ids) -> list[Tree]:
        """The same of several nodes; one object where it is common to them."""
        at, nodes = self._above(level, ids)
        if not self.engine.tiers[at].sees:
            return [self._sent(at, int(n)) for n in nodes]
        return [self._own(at, int(n), int(i)) for n, i in zip(nodes, ids, strict=True)]

    def stacked(self, level: int, ids: Ids) -> tuple[Tree, bool]:
        """The same as one tree, and whether it is common to all: else leaves [H, ...]."""
        at, nodes = self._above(level, ids)
        tier, (parents, place) = self.engine.tiers[at], np.unique(nodes, return_inverse=True)
        if not tier.sees:
            sent = [self._sent(at, int(n)) for n in parents]
            if all(same(sent[0], s) for s in sent[1:]):
                return sent[0], True
            return row(stack(sent), torch.as_tensor(place)), False
        if tier.sees != "all":
            return stack([self._own(at, int(n), int(i)) for n, i in zip(nodes, ids, strict=True)]), False
        parts, order = [], []
        for j, node in enumerate(parents):
            mine = np.flatnonzero(place == j)
            state, members = self._with_rows(at, int(node))
            slots = torch.as_tensor(np.searchsorted(members, ids[mine]))
            parts.append(vmap(tier.send, (None, 0))(state, slots))
            order.append(mine)
        return _in_order(parts, order), False

    def _above(self, level: int, ids: Ids) -> tuple[int, Ids]:
        """The depth that nodes of a level hear from, and who it is of each."""
        e = self.engine
        at = next(a for a in range(level) if e.reach(a) >= level)
        return at, e.topology.ancestor(level, ids, at)

    def _sent(self, at: int, node: int) -> Tree:
        """What a node sends to all below."""
        if (at, node) not in self._common:
            self._common[at, node] = self.engine.tiers[at].send(self.opened(at, node), torch.tensor(0))
        return self._common[at, node]

    def _own(self, at: int, node: int, ident: int) -> Tree:
        """What a node sends to one that it knows by a row."""
        e = self.engine
        if e.tiers[at].sees == "all":
            state, members = self._with_rows(at, node)
            slot = int(np.searchsorted(members, ident))
        else:
            members, slots = e.roster(at, node, np.array([ident]))
            rows = {"rows": stack(e.rows(at, members)), "ids": torch.as_tensor(members)}
            state, slot = {**self.opened(at, node), **rows}, int(slots[0])
        return e.tiers[at].send(state, torch.tensor(slot))

    def _with_rows(self, at: int, node: int) -> tuple[Tree, Ids]:
        """A node with the rows of all that it knows, and who they are."""
        e = self.engine
        if (at, node) not in self._full:
            members = e.topology.below(at, node, e.reach(at))
            rows = {"rows": stack(e.rows(at, members)), "ids": torch.as_tensor(members)}
            self._full = {(at, node): {**self.opened(at, node), **rows}}  # of one node: rows may be many
        return self._full[at, node], self._full[at, node]["ids"].numpy()

    def team(self, device: int) -> Params | None:
        """The model of the lowest fog above a device that has one."""
        fog = int(self.engine.topology.parents[-1][device])
        if fog not in self._teams:
            self._teams[fog] = _team(self.engine, device)
        return self._teams[fog]

    def forget(self) -> None:
        """Bounds what is remembered."""
        for known in (self._open, self._common, self._teams):
            if len(known) > _MOST_OPEN:
                known.clear()


def at_once(engine: Engine) -> int:
    """Devices whose models are in memory together; results do not depend on it."""
    largest = max(nbytes(task.init()) for task in engine.tasks)
    return min(max(2, _ROOM_BYTES // max(1, largest)), _MOST_AT_ONCE)


def cohorts(engine: Engine, devices: Ids, post: bool = True, chunk: int = 0) -> Iterator[Cohort]:
    """The evaluated models of some devices, a few at a time: those of one architecture among every `chunk` that follow
    each other.

    personal_post is a dry visit after which the device hears its own reply: the personal model after the local
    training of the coming round, for devices that were not polled too.

    :param post: also personal_post, which costs a local training of every device
    :param chunk: devices in memory at once; 0: by the size of their models
    """
    walk, top, chunk = _Walk(engine), engine.tiers[0].model(engine.kept(0, 0)), chunk or at_once(engine)
    batched = [together(engine, k) for k in range(len(engine.tasks))]
    for start in range(0, len(devices), chunk):
        some = devices[start : start + chunk]
        kinds = np.zeros(len(some), np.int64) if engine.kinds is None else engine.kinds[some]
        for kind in np.unique(kinds).tolist():
            ids = some[kinds == kind]
            pre, after = (_stacked if batched[kind] else _in_turn)(walk, kind, ids, post)
            yield Cohort(ids, top, [walk.team(int(i)) for i in ids], pre, after)
        walk.forget()


def models(engine: Engine, devices: Ids, post: bool = True, chunk: int = 0) -> Iterator[Models]:
    """The evaluated models of some devices, in their order; the arguments are those of `cohorts`."""
    waiting: dict[int, Models] = {}
    order = iter(devices.tolist())
    wanted = next(order, None)
    for cohort in cohorts(engine, devices, post, chunk):
        waiting |= {int(i): cohort.one(j) for j, i in enumerate(cohort.devices)}
        while wanted in waiting:
            yield waiting.pop(wanted)
            wanted = next(order, None)


def _in_turn(walk: _Walk, kind: int, ids: Ids, post: bool) -> tuple[list[Params], list[Params] | None]:
    """The personal models of devices one after the other, and after a dry visit."""
    return _after(walk, kind, ids, walk.messages(walk.engine.depth, ids), post)


def _after(
    walk: _Walk, kind: int, ids: Ids, messages: list[Tree], post: bool
) -> tuple[list[Params], list[Params] | None]:
    """The same after given messages."""
    engine, task = walk.engine, walk.engine.tasks[kind]
    own = [engine.own(int(i)) for i in ids]

    def personal(j: int, message: Tree, state: Tree) -> Params:
        return _personal(walk, lambda data: engine.algorithm.personal(task, message, state, data), int(ids[j]))

    pre = [personal(j, m, s) for j, (m, s) in enumerate(zip(messages, own, strict=True))]
    if not post:
        return pre, None
    common = all(m is messages[0] for m in messages)
    ups, states = _dry(engine, ids, messages[0] if common else stack(messages), common)
    return pre, [personal(j, {**m, **row(ups, j)}, row(states, j)) for j, m in enumerate(messages)]


def _stacked(walk: _Walk, kind: int, ids: Ids, post: bool) -> tuple[Params, Params | None]:
    """The same for all at once; a model that does not depend on the device is expanded."""
    engine = walk.engine
    task, algorithm = engine.tasks[kind], engine.algorithm
    message, common = walk.stacked(engine.depth, ids)

    def of(message: Tree, alike: bool, up: Tree, states: Tree, n: int, data: Data | None) -> Params:
        drawn = () if data is None else tuple(data[2:-1])
        call = vmap(
            lambda _, m, u, s, *d: algorithm.personal(
                task, {**m, **u}, s, _UNSEEN if data is None else Data(data.x, data.y, *d)._replace(ragged=data.ragged)
            ),
            in_dims=(0, None if alike else 0, 0, 0, *[0] * len(drawn)),
        )
        return call(torch.arange(n), message, up, states, *drawn)  # type: ignore[no-any-return]

    def personal(up: Tree, states: Tree) -> Params:
        if not walk.adapts:
            try:
                return of(message, common, up, states, len(ids), None)
            except _Asked:
                walk.adapts = True
        # what is trained needs statistics of its own, into which batch norms write
        sent, parts, order = _expanded(message, len(ids)) if common else message, [], []
        widths = np.array([engine.plan.width(int(i)) for i in ids])
        for width in np.unique(widths):
            mine = np.flatnonzero(widths == width)
            data = engine.plan.data(ids[mine].tolist(), algorithm, engine.round, 0)
            some = row({"sent": sent, "up": up, "own": states}, torch.as_tensor(mine))
            parts.append(of(some["sent"], False, some["up"], some["own"], len(mine), data))
            order.append(mine)
        return _in_order(parts, order)

    pre = personal({}, stack([engine.own(int(i)) for i in ids]))
    return pre, personal(*_dry(engine, ids, message, common)) if post else None


def _personal(walk: _Walk, of: Callable[[Data], Params], device: int) -> Params:
    """A personal model of one device; its data are drawn only where the algorithm looks at them."""
    engine = walk.engine
    if not walk.adapts:
        try:
            return of(_UNSEEN)
        except _Asked:
            walk.adapts = True
    return of(engine.plan.one(device, engine.algorithm, engine.round, 0))


def _dry(engine: Engine, ids: Ids, message: Tree, common: bool) -> tuple[Tree, Tree]:
    """Replies and new states [H, ...] of a visit of each device now."""
    return engine.visit_devices(ids, _expanded(message, len(ids)) if common else message, engine.round, 0)


def _in_order(parts: list[Tree], places: list[Ids]) -> Tree:
    """Stacked trees of some of the devices each, as one of all of them."""
    if len(parts) == 1:
        return parts[0]
    back = torch.as_tensor(np.argsort(np.concatenate(places)))
    return row(tmap(lambda *t: torch.cat(t), *parts), back)  # type: ignore[no-any-return]


def _expanded(message: Tree, n: int) -> Tree:
    """One message as those of n devices, without a copy."""
    return tmap(lambda t: t.expand(n, *t.shape), message)  # type: ignore[no-any-return]


def ties(engine: Engine, depth: int, node: int, children: Ids) -> dict[str, Tensor]:
    """`Tier.ties` of an inner node over children of `Engine.reach(depth)` whose rows it has: name -> [R, R]."""
    state = {**_Walk(engine).opened(depth, node), "rows": stack(engine.rows(depth, children))}
    return engine.tiers[depth].ties({**state, "ids": torch.as_tensor(children)})


def messages_below(engine: Engine, depth: int, node: int, message: Tree, ids: Ids) -> list[Tree]:
    """What an inner node would send its children of `Engine.reach(depth)` now, after a message of its own parent."""
    walk = _Walk(engine)
    walk.enter(depth, node, message)
    return walk.messages(engine.reach(depth), ids)


def at_device(
    engine: Engine, device: int, message: Tree, top: Params | None, team: Params | None, post: bool = True
) -> Cohort:
    """What is evaluated on one device that knows no more than a message of its parent and the models above it."""
    ids = np.array([device])
    pre, after = _after(_Walk(engine), engine.kind(device), ids, [message], post)
    return Cohort(ids, top, [team], pre, after)


def message_to(engine: Engine, device: int) -> Tree:
    """What the parent of a device would send it now."""
    return _Walk(engine).message(engine.depth, device)


def message_bytes(engine: Engine, devices: Ids) -> Ids:
    """Bytes of what the parents of some devices would send them now [H]."""
    walk = _Walk(engine)
    sizes = [payload(walk.message(engine.depth, int(i))) for i in devices]
    return np.array(sizes, np.int64)


def _team(engine: Engine, device: int) -> Params | None:
    """The model of the lowest fog above a device that has one."""
    for depth in reversed(range(1, engine.depth)):
        node = int(engine.topology.ancestor(engine.depth, np.array([device]), depth)[0])
        model = engine.tiers[depth].model(engine.kept(depth, node))
        if model is not None:
            return model
    return None
