"""Attackers, to see what a rule is worth: nodes whose replies are not those of their training."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from tierfed.errors import InputError, nearest
from tierfed.rng import Purpose, generator, permutation
from tierfed.settings import Positive
from tierfed.tree import Tree, flatten, tmap

Ids = npt.NDArray[np.int64]
Number = Annotated[int, Ge(1)]
Part = Annotated[float, Gt(0), Le(1)]


@dataclass(frozen=True, kw_only=True)
class AttackSettings:
    """Nodes that work against the run, to try rules on; the same ones in all rounds."""

    kind: Literal["none", "sign_flip", "label_flip", "noise", "scale"] = "none"
    """sign_flip: the change of the model times -strength; scale: times strength; noise: normal numbers in its place,
    with strength times its root mean square; label_flip: a device trains on the label C - 1 - y in the place of y."""
    tier: str = "device"
    """Whose nodes attack: a level of the tree below the cloud, such as device, fog, region, cluster."""
    attackers: Number | Part = 0.2
    """A share of its nodes, or a number; which ones is drawn once per seed."""
    strength: Positive = 1.0
    """How far they go."""


@dataclass(frozen=True, kw_only=True)
class Attack:
    """What the attackers of a run do to the changes that they send.

    :param level: of the attackers, 1 below the cloud
    :param nodes: their ids
    """

    kind: str
    level: int
    nodes: frozenset[int]
    strength: float = 1.0

    def attacks(self, level: int, node: int) -> bool:
        """Whether a node is one of them, and its reply is what it attacks with."""
        return level == self.level and node in self.nodes and self.kind != "label_flip"

    def change(self, change: Tree, key: tuple[int, ...]) -> Tree:
        """What an attacker sends in the place of a change. :param key: of its random numbers"""
        if self.kind == "noise":
            return _noise(change, self.strength, key)
        factor = -self.strength if self.kind == "sign_flip" else self.strength
        return tmap(lambda t: factor * t, change)  # type: ignore[no-any-return]


def _noise(change: Tree, strength: float, key: tuple[int, ...]) -> Tree:
    flat = flatten(change)
    count = sum(t.numel() for t in flat.values())
    size = float(sum(float(t.double().square().sum()) for t in flat.values()) / max(count, 1)) ** 0.5
    rng = generator(*key)

    def drawn(t: Tensor) -> Tensor:
        return t.new_tensor(strength * size * rng.standard_normal(tuple(t.shape)))

    return tmap(drawn, change)  # type: ignore[no-any-return]


def attack_of(settings: AttackSettings, levels: tuple[str, ...], shape: tuple[int, ...], seed: int) -> Attack | None:
    """The attack of a run; none: nobody attacks.

    :param levels: their names, cloud first; :param shape: nodes per level
    :raises InputError: a level that the tree does not have, or labels of nodes without data
    """
    if settings.kind == "none":
        return None
    below = levels[1:]
    if settings.tier not in below:
        raise InputError(
            f"attack.tier = {settings.tier!r}, but the tree has {', '.join(below)} below the cloud; "
            f"{nearest(settings.tier, below)}"
        )
    if settings.kind == "label_flip" and settings.tier != levels[-1]:
        raise InputError(
            f"attack.kind = 'label_flip' is about training labels, which a {settings.tier} does not have; set "
            "attack.tier = 'device'"
        )
    level = 1 + below.index(settings.tier)
    nodes, asked = shape[level], settings.attackers
    count = asked if isinstance(asked, int) else round(asked * nodes)
    if count > nodes:
        raise InputError(f"attack.attackers = {asked}, but the tree has {nodes} nodes of the tier {settings.tier}")
    drawn = permutation(nodes, seed, Purpose.ATTACK, level)[:count]
    return Attack(kind=settings.kind, level=level, nodes=frozenset(drawn.tolist()), strength=settings.strength)


def flipped(
    attack: Attack | None, x: Tensor, y: Tensor, train: Mapping[int, Ids] | Any, classes: int
) -> tuple[Tensor, Tensor, Any]:
    """Samples with flipped labels beside the others, which the attackers train on: x, y, rows of each device.

    :raises InputError: the data have no classes
    """
    if attack is None or attack.kind != "label_flip":
        return x, y, train
    if not classes:
        raise InputError("attack.kind = 'label_flip' needs class labels, these data have numbers; take another kind")
    rows, begin = list(train), len(x)
    xs, ys = [x], [y]
    for i in sorted(attack.nodes):
        at = torch.from_numpy(np.asarray(rows[i]))
        xs.append(x[at])
        ys.append((classes - 1) - y[at])
        rows[i] = begin + np.arange(len(at))
        begin += len(at)
    return torch.cat(xs), torch.cat(ys), rows
