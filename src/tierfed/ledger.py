"""What a run has promised to whom, and what of it is spent: differential privacy over participation, by tier.

A *promise* is one guarantee: of the children of a link ([links.NAME.privacy]), or of single samples ([dp_sgd]). What
counts are releases. Noise of a child: its own replies. Noise of a parent, or above it over relays: the bursts of that
parent, each with a draw of its children. Fogs that are drawn by the cloud amplify nothing; what counts is how often
each of them was. The epsilon of a promise is that of whoever has taken part most often.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from tierfed.engine import RoundLog
from tierfed.errors import InputError
from tierfed.links.private import PrivacySettings, noise_depth
from tierfed.metrics import Row
from tierfed.privacy.accounting import Accountant, Release, epsilon, releases_within
from tierfed.setup import World
from tierfed.store import Store
from tierfed.topology import Topology

Ints = npt.NDArray[np.int64]
TABLE = "privacy"


@dataclass(frozen=True, kw_only=True)
class Promise:
    """One guarantee of a run.

    :param unit: who is protected: "device", "fog", "sample"; :param where: the table of the config
    :param depth: of the link that counts; :param own: every child counts by itself
    :param release: what one visit or burst releases; :param each: how many times
    :param at_once: the most releases of one round
    """

    unit: str
    where: str
    depth: int
    own: bool
    release: Release
    each: int
    at_once: int
    delta: float
    budget: float | None
    accountant: Accountant

    def epsilon(self, count: int) -> float:
        """After so many releases."""
        return epsilon({self.release: count}, self.delta, self.accountant)

    @property
    def most(self) -> float:
        """Releases that the budget allows; inf: there is none."""
        if self.budget is None:
            return math.inf
        return releases_within(self.release, self.budget, self.delta, self.accountant)


def promises(world: World) -> tuple[Promise, ...]:
    """All guarantees of a run, links from the cloud down."""
    config, topology = world.config, world.topology
    tiers = world.algorithm.tiers(world.task, topology.shape)
    bursts = [1 if t.relay else p.bursts for t, p in zip(tiers, topology.policies, strict=True)]
    out = []
    for depth, name in enumerate(topology.links):
        settings = config.links.get(name, config.links.get("all"))
        if settings is None or settings.privacy.clip is None:
            continue
        s = settings.privacy
        own = noise_depth(s, depth, topology.levels) > depth
        out.append(
            Promise(
                unit=topology.levels[depth + 1],
                where=f"links.{name}.privacy",
                depth=depth,
                own=own,
                release=_release(s, depth, own, topology, config.deploy.more(depth)),
                each=1,
                at_once=math.prod(bursts[: depth + 1]),
                delta=s.delta,
                budget=s.epsilon,
                accountant=s.accountant,
            )
        )
    if (d := config.dp_sgd).clip is not None:
        out.append(
            Promise(
                unit="sample",
                where="dp_sgd",
                depth=topology.depth - 1,
                own=True,
                release=Release(noise_multiplier=d.noise_multiplier),
                each=world.algorithm.passes,
                at_once=math.prod(bursts) * world.algorithm.passes,
                delta=d.delta,
                budget=d.epsilon,
                accountant=d.accountant,
            )
        )
    return tuple(out)


def _release(s: PrivacySettings, depth: int, own: bool, topology: Topology, more: float) -> Release:
    """One release of a link; of the fog whose children are drawn with the highest probability."""
    policy = topology.policies[depth]
    if own or policy.sample == 1.0:
        return Release(noise_multiplier=s.noise_multiplier)
    sizes = np.bincount(topology.parents[depth], minlength=topology.nodes[depth])
    sizes = sizes[sizes > 0]
    if policy.poisson:
        q = min(1.0, policy.sample * (1 + more))
        alone = q * (1 - q) ** (int(sizes.min()) - 1)  # nobody else was drawn: whoever was is not hidden by the draw
        return Release(noise_multiplier=s.noise_multiplier, sampling="poisson", rate=q, slip=alone)
    drawn = [min(n, math.ceil(topology.drawn(depth, n) * (1 + more))) for n in sizes.tolist()]
    k, n = max(zip(drawn, sizes.tolist(), strict=True), key=lambda pair: pair[0] / pair[1])
    return Release(noise_multiplier=s.noise_multiplier, sampling="fixed", rate=k / n, drawn=k, among=n)


class Ledger:
    """Who has taken part how often, kept in the store of a run and committed with its rounds."""

    def __init__(self, world: World, store: Store) -> None:
        self.store, self.promises = store, promises(world)
        shape = world.topology.shape
        self.sizes = [shape[p.depth + 1] if p.own else shape[p.depth] for p in self.promises]

    def counts(self, k: int) -> Ints:
        """Releases of a promise, by child or by parent."""
        known = self.store.get(TABLE, k)
        return np.zeros(self.sizes[k], np.int64) if known is None else known["counts"].numpy()

    def book(self, log: RoundLog) -> None:
        """After a round."""
        for k, promise in enumerate(self.promises):
            counts = self.counts(k).copy()
            for burst in log.bursts:
                if burst.depth == promise.depth:
                    np.add.at(counts, burst.kids if promise.own else np.unique(burst.parents), promise.each)
            if not promise.own and (log.moved or log.reparented):
                counts[:] = counts.max()  # whoever has moved takes along what it has released
            self.store.put(TABLE, k, {"counts": torch.from_numpy(counts)})

    def spent(self) -> list[tuple[Promise, float]]:
        """Every promise with its epsilon so far."""
        return [(p, p.epsilon(int(self.counts(k).max(initial=0)))) for k, p in enumerate(self.promises)]

    def rows(self, round_: int) -> list[Row]:
        """The same for the metrics, as far as something is promised."""
        known = [(p, value) for p, value in self.spent() if math.isfinite(value)]
        return [Row(round_, "cloud", "cloud", "", "", f"epsilon_{p.unit}", value) for p, value in known]

    def ended(self) -> str:
        """Why there can be no further round; empty: there can."""
        for k, p in enumerate(self.promises):
            if int(self.counts(k).max(initial=0)) + p.at_once > p.most:
                return (
                    f"the privacy budget of a {p.unit} is spent ({p.where}): another round would exceed epsilon = "
                    f"{p.budget:g} at delta = {p.delta:g}"
                )
        return ""


def check_budgets(world: World) -> None:
    """:raises InputError: a budget that does not allow a single round, a delta that promises nothing"""
    for p in promises(world):
        least = p.epsilon(p.at_once)  # without a budget too: what an accountant refuses is refused now
        if p.at_once > p.most:
            raise InputError(
                f"{p.where}.epsilon = {p.budget:g} at delta = {p.delta:g} is less than one round needs "
                f"({least:.3g}); take more noise (noise_multiplier) or a larger budget"
            )
        if p.budget is None and p.release.slip * p.at_once * world.config.run.rounds >= p.delta:
            raise InputError(
                f"{p.where}: with topology.sampling = 'poisson' a {p.unit} is the only one drawn with a probability "
                f"of {p.release.slip:.2g} in a burst, too often for delta = {p.delta:g} in all rounds; let more take "
                "part, or set topology.sampling = 'fixed'"
            )


def foreseen(world: World) -> dict[str, str]:
    """What all rounds of a run would spend at most, by table."""
    out = {}
    for p in promises(world):
        rounds = world.config.run.rounds
        allowed = min(rounds, int(p.most // p.at_once)) if math.isfinite(p.most) else rounds
        stop = f", stops after round {allowed} of {rounds}" if allowed < rounds else ""
        out[p.where] = said([(p, p.epsilon(allowed * p.at_once))]) + stop
    return out


def said(spent: Iterable[tuple[Promise, float]]) -> str:
    """For a line: "epsilon 3.21 per device (delta 1e-05)"; empty without promises."""
    return "  ".join(
        f"\N{GREEK SMALL LETTER EPSILON} {value:.3g} per {p.unit} (\N{GREEK SMALL LETTER DELTA} {p.delta:g})"
        for p, value in spent
    )
