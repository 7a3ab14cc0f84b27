"""Whom the next round will want: polls are a pure function of (seed, round), so that they are known before."""

from collections.abc import Iterator

import numpy as np

from tierfed.engine.base import Engine, Ids


def coming(engine: Engine, round_: int) -> Ids:
    """The devices that a round will poll, should the tree stay as it is, ascending; some of them may be away."""
    found = np.concatenate([np.zeros(0, np.int64), *_polled(engine, 0, 0, round_, 0)])
    return np.unique(found)


def prefetch(engine: Engine) -> None:
    """Lets the store read the private states that the round after the coming one begins with, while that one trains.

    :raises InputError: what was read ahead before is damaged
    """
    engine.store.prefetch("own", coming(engine, engine.round + 1).tolist())


def _polled(engine: Engine, depth: int, node: int, round_: int, tick: int) -> Iterator[Ids]:
    to, bursts = engine.reach(depth), engine.bursts(depth)
    for burst in range(bursts):
        at = tick * bursts + burst
        kids = engine.topology.cohort(depth, node, to, round_, at)
        if to == engine.depth:
            yield kids
        else:
            for kid in kids.tolist():
                yield from _polled(engine, to, kid, round_, at)
