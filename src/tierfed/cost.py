"""A virtual clock: bytes, seconds and joules of every link level, and how long a round would have taken.

The formulas and numbers are those of EPFLU (ICWE 2024): path loss with exponent 1, Shannon capacity, CMOS energy.
Distances are in the unit of the reference gain (distance 1), sizes on links in bytes, everything else in SI units.
Links between devices, along which a sum travels, follow the links of the tree as one more level.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tierfed.peers import Chain
from tierfed.settings import Positive
from tierfed.ticks import Times, longest, lookup, sums

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

_PURPOSE = 7
_NEAREST, _FARTHEST = 1.0, 100.0
Level = tuple[int, int, float, float]  # bytes down, bytes up, seconds, joules


@dataclass(frozen=True, kw_only=True)
class CostSettings:
    """The radio and the processor; the defaults are EPFLU's numbers.

    :param bandwidth_hz: B of a link
    :param reference_gain: channel gain g0 at distance 1
    :param transmit_power_w: p of every sender, up and down
    :param noise_w: noise power of a link
    :param cycles_per_bit: CPU cycles that training spends on one bit of a sample
    :param cpu_hz: CPU frequency of a device
    :param capacitance: effective switched capacitance of a device's CPU
    :param half_capacitance: charge half of it, as some papers do
    :param distance_max: longer distances count as this one
    :param cloud_multiplier: a cloud link at the reference distance costs this many times its seconds and joules
        (HierFAVG: 10)
    :param reference_distance: mean distance at which `cloud_multiplier` holds; it scales in proportion
    :param extra_loss: linear factor by which a cloud link's gain is smaller
    :param min_gain_cloud: floor of a cloud link's gain
    :param min_gain_p2p: floor of every other link's gain
    """

    bandwidth_hz: Positive = 2e7
    reference_gain: Positive = 1e-8
    transmit_power_w: Positive = 0.5
    noise_w: Positive = 1e-10
    cycles_per_bit: Positive = 10_800.0
    cpu_hz: Positive = 1e9
    capacitance: Positive = 2e-28
    half_capacitance: bool = False
    distance_max: Positive = 200.0
    cloud_multiplier: Positive = 1.5
    reference_distance: Positive = 50.0
    extra_loss: Positive = 10.0
    min_gain_cloud: Positive = 5e-11
    min_gain_p2p: Positive = 1e-10


EPFLU = CostSettings()


@dataclass(frozen=True, kw_only=True)
class Burst:
    """The traffic of one poll on the link level below depth `depth` (0: below the cloud).

    :param tick: number of the burst along the path from the cloud in mixed radix: the j-th burst of a node that was
        itself polled in tick t has tick t*K + j, K being the bursts per visit of its depth
    :param parents: [H] upper end of each link; H counts the polled children, direct links only, each link once
    :param kids: [H] lower end
    :param down_bytes: [H] what the link carried towards the devices
    :param up_bytes: [H] what it carried back; 0: the child stayed silent
    """

    depth: int
    tick: int
    parents: Ints
    kids: Ints
    down_bytes: Ints
    up_bytes: Ints


@dataclass(frozen=True, kw_only=True)
class Edge:
    """Who computes what, in all visits of a run.

    :param shares: for each architecture: of the computing, that is still done on the device
    :param speed: how many times as fast as a device an edge computes
    """

    shares: tuple[float, ...]
    speed: float


@dataclass(frozen=True, kw_only=True)
class Offloaded:
    """What the edges of devices have taken over in a visit.

    :param share: [H] of the computing, that is still done on the device
    :param speed: how many times as fast as a device an edge computes
    :param down_bytes: [H] of what they exchanged meanwhile, on the device's link
    :param up_bytes: [H] likewise
    """

    share: Floats
    speed: float
    down_bytes: Ints
    up_bytes: Ints


@dataclass(frozen=True, kw_only=True)
class Visit:
    """The work of the devices that one tick of the lowest burst reached.

    :param tick: that of the burst
    :param devices: [H] their ids
    :param samples: [H] samples processed, all passes counted
    :param slowdown: [H] factor on the computing time of the devices in this visit; none: 1
    :param offloaded: what was not done on the devices
    """

    tick: int
    devices: Ints
    samples: Ints
    slowdown: Floats | None = None
    offloaded: Offloaded | None = None

    @property
    def factor(self) -> Floats:
        """The slowdown. [H]"""
        return np.ones(len(self.devices)) if self.slowdown is None else self.slowdown


@dataclass(frozen=True, kw_only=True)
class RoundCost:
    """What one cloud round cost.

    :param down_bytes: one number for each link level, cloud first; where sums travelled, a last one for the links
        between devices
    :param up_bytes: likewise
    :param link_seconds: sum of all transfer times of a level, whether or not they ran in parallel
    :param link_joules: energy of all senders of a level, both directions
    :param compute_seconds: sum over devices
    :param compute_joules: sum over devices
    :param round_seconds: time from the first download to the last upload, links and devices in parallel
    :param offload_down_bytes: what devices and edges exchanged while they trained; part of the devices' level
    :param offload_up_bytes: likewise
    :param edge_seconds: computing of the edges, sum over devices; they are no devices and their energy is not counted
    """

    down_bytes: tuple[int, ...]
    up_bytes: tuple[int, ...]
    link_seconds: tuple[float, ...]
    link_joules: tuple[float, ...]
    compute_seconds: float
    compute_joules: float
    round_seconds: float
    offload_down_bytes: int = 0
    offload_up_bytes: int = 0
    edge_seconds: float = 0.0


def link_distances(seed: int, level: int, children: int) -> Floats:
    """Distance of each child to its parent, uniform in 1…100. [children]

    A function of (seed, level, child id) alone: more children leave the first ones where they are, and a device that
    changes team keeps its distance.

    :param level: depth of the parents, 0 for the cloud
    """
    return np.random.default_rng([seed, _PURPOSE, level]).uniform(_NEAREST, _FARTHEST, children)


def gain(distance: Floats, settings: CostSettings = EPFLU) -> Floats:
    """Channel gain between two nodes below the cloud: max(g0 / d, floor), d at most `distance_max`. Same shape.

    :param distance: positive
    """
    near = np.minimum(distance, settings.distance_max)
    return np.maximum(settings.reference_gain / near, settings.min_gain_p2p)


def cloud_gain(mean_distance: Floats, settings: CostSettings = EPFLU) -> Floats:
    """Channel gain of a link to the cloud: max(g0 / (L d), floor), L the extra loss, d at most `distance_max`."""
    near = np.minimum(mean_distance, settings.distance_max)
    return np.maximum(settings.reference_gain / (settings.extra_loss * near), settings.min_gain_cloud)


def rate_bps(gain: Floats, settings: CostSettings = EPFLU) -> Floats:
    """Shannon capacity B log2(1 + p g / noise) in bit/s. Same shape."""
    ratio = settings.transmit_power_w * gain / settings.noise_w
    return np.asarray(settings.bandwidth_hz * np.log2(1.0 + ratio))


def transfer(bits: Floats, distance: Floats, settings: CostSettings = EPFLU) -> tuple[Floats, Floats]:
    """Seconds and sender's joules to send `bits` one way over `distance`, below the cloud; shapes broadcast."""
    seconds = np.asarray(bits / rate_bps(gain(distance, settings), settings))
    return seconds, settings.transmit_power_w * seconds


def cloud_transfer(bits: Floats, mean_distance: Floats, settings: CostSettings = EPFLU) -> tuple[Floats, Floats]:
    """Seconds and sender's joules to send `bits` one way between a node and the cloud; shapes broadcast.

    Composed as: t = bits / rate(cloud gain) and e = p t, then both times cloud_multiplier * d / reference_distance,
    where d is the mean distance of the node, at most `distance_max`. The factor is applied to seconds and to joules
    once each (the energy is not charged for the longer time again).
    """
    near = np.minimum(mean_distance, settings.distance_max)
    factor = settings.cloud_multiplier * near / settings.reference_distance
    seconds = bits / rate_bps(cloud_gain(mean_distance, settings), settings)
    return np.asarray(factor * seconds), np.asarray(factor * settings.transmit_power_w * seconds)


def compute(bits_per_sample: float, samples: Floats, settings: CostSettings = EPFLU) -> tuple[Floats, Floats]:
    """Seconds and joules of a device that processes `samples` samples (all passes counted). Same shape as `samples`."""
    cycles = settings.cycles_per_bit * bits_per_sample * samples
    capacitance = settings.capacitance * (0.5 if settings.half_capacitance else 1.0)
    return np.asarray(cycles / settings.cpu_hz), np.asarray(capacitance * cycles * settings.cpu_hz**2)


def computing(visit: Visit, bits_per_sample: float, settings: CostSettings = EPFLU) -> tuple[Floats, Floats, Floats]:
    """Seconds and joules of the devices of a visit, and seconds of their edges. each [H]"""
    there, samples = visit.offloaded, visit.samples.astype(np.float64)
    if there is None:
        seconds, joules = compute(bits_per_sample, samples, settings)
        return seconds * visit.factor, joules, np.zeros(len(samples))
    seconds, joules = compute(bits_per_sample, samples * there.share, settings)
    at_edge, _ = compute(bits_per_sample, samples * (1.0 - there.share), settings)
    return seconds * visit.factor, joules, at_edge / there.speed


def clock(
    bursts: Sequence[Burst],
    visits: Sequence[Visit],
    depth_levels: int,
    ticks_per_level: Sequence[int],
    settings: CostSettings,
    distances: Sequence[Floats],
    bits_per_sample: float,
    colocated: Sequence[bool],
    deadline_seconds: float = np.inf,
    chains: Sequence[Chain] = (),
) -> RoundCost:
    """The cost of one cloud round from its trace.

    Links. The level below the cloud follows `cloud_transfer`: every node's mean distance is the mean of `distances[0]`
    over all children of the cloud, polled or not (each node's mean over a random distance matrix, as EPFLU draws it,
    is this number in expectation). All deeper levels follow `transfer` with the child's distance to its parent. In a
    flat tree the only level is a cloud level. A download runs at the rate of an upload, and its energy is charged like
    that of an upload: to the sender, here the parent, in the joules of the level. A colocated level costs no bytes,
    seconds or joules.

    Time. A burst of a node lasts max over its children of (download + child's own time + upload), children being
    served in parallel; a child's own time is the sum of the bursts that it ran in that tick, or the compute time of a
    device; the round lasts the sum of the cloud's bursts. A silent child delays its parent by its work, not by an
    upload. A parent waits for a device until the deadline, not longer. Where an edge has taken work over, device, edge
    and the messages between them, at the rate of the device's link, follow one another.

    Chains. Links between devices follow `transfer`. A device starts when the model has come to it along the path, and
    hands it on at once; the sum leaves it when the sum of its predecessor and its own training are there, but waits for
    its training until the deadline, not longer. A burst of a node with a chain lasts from the download of the first
    device to the upload at the end. All lowest nodes have chains, or none has.

    :param depth_levels: number of link levels, 1 for a flat tree; the four sequences below have this length
    :param ticks_per_level: bursts per visit of the nodes of each depth, cloud first
    :param distances: for each link level, the distance of child id to its parent [children]
    :param bits_per_sample: size of one sample in training (EPFLU: 6,272 for MNIST, 24,576 for CIFAR)
    :param colocated: for each link level, whether both ends are in one machine
    :param deadline_seconds: how long the parent of a device waits for its reply
    :param chains: the paths of the lowest bursts
    :raises ValueError: a sequence of another length, a burst outside the tree
    """
    lengths = {len(ticks_per_level), len(distances), len(colocated)}
    if depth_levels < 1 or lengths != {depth_levels}:
        raise ValueError(f"got {sorted(lengths)} entries for {depth_levels} link levels, wanted one for each level")
    outside = sorted({b.depth for b in bursts} - set(range(depth_levels)))
    if outside:
        raise ValueError(f"got bursts at depths {outside}, wanted 0 to {depth_levels - 1}")
    work = _columns([v.tick for v in visits], [[v.devices for v in visits]])
    spent_by = [np.empty((3, 0)), *(np.stack(computing(v, bits_per_sample, settings)) for v in visits)]
    busy, burnt, at_edge = np.concatenate(spent_by, axis=1)
    swapped = _exchanges(visits, colocated[-1])
    swapping, used = _transfers(swapped, depth_levels - 1, settings, distances[-1])
    times = sums(
        np.concatenate([work[0], swapped[0]]),
        np.concatenate([work[1], swapped[2]]),
        np.concatenate([busy + at_edge, swapping.sum(0)]),
    )
    levels, peers = list[Level](), list[Level]()
    for depth in reversed(range(depth_levels)):
        links = _links([b for b in bursts if b.depth == depth], colocated[depth])
        spent, energy = _transfers(links, depth, settings, distances[depth])
        tick = links[0]
        child = spent.sum(0) + lookup(times, tick, links[2])
        if depth == depth_levels - 1 and chains:
            lasting, level = _walked(chains, times, depth, settings, distances[depth], deadline_seconds)
            peers.append(level)
        else:
            patience = deadline_seconds if depth == depth_levels - 1 else np.inf
            lasting = longest(tick, links[1], np.minimum(child, patience))
        times = sums(lasting.tick // ticks_per_level[depth], lasting.node, lasting.seconds)
        if depth == depth_levels - 1:
            links = [np.concatenate(pair) for pair in zip(links, swapped, strict=True)]
            spent, energy = np.append(spent, swapping, 1), np.append(energy, used, 1)
        levels.insert(0, (int(links[3].sum()), int(links[4].sum()), float(spent.sum()), float(energy.sum())))
    down, up, seconds, joules = zip(*levels, *peers, strict=True)
    return RoundCost(
        down_bytes=down,
        up_bytes=up,
        link_seconds=seconds,
        link_joules=joules,
        compute_seconds=float(busy.sum()),
        compute_joules=float(burnt.sum()),
        round_seconds=float(times.seconds.sum()),
        offload_down_bytes=int(swapped[3].sum()),
        offload_up_bytes=int(swapped[4].sum()),
        edge_seconds=float(at_edge.sum()),
    )


def _columns(ticks: Sequence[int], columns: Sequence[Sequence[Ints]]) -> list[Ints]:
    """The tick of each entry, then the columns, each joined over its parts; no parts give empty arrays. each [H]"""
    repeated = [np.full(np.shape(part), tick, np.int64) for tick, part in zip(ticks, columns[0], strict=True)]
    return [np.concatenate([np.empty(0, np.int64), *parts]) for parts in (repeated, *columns)]


def _links(bursts: Sequence[Burst], colocated: bool) -> list[Ints]:
    """Tick, parent, kid, bytes down, bytes up of every link that one level polled. each [H]"""
    ends = [[b.parents for b in bursts], [b.kids for b in bursts]]
    sizes = [[b.down_bytes for b in bursts], [b.up_bytes for b in bursts]]
    tick, parents, kids, down, up = _columns([b.tick for b in bursts], [*ends, *sizes])
    return [tick, parents, kids, *((np.zeros_like(down), np.zeros_like(up)) if colocated else (down, up))]


def _exchanges(visits: Sequence[Visit], colocated: bool) -> list[Ints]:
    """The same of what devices and edges exchanged while they trained; parents do not matter. each [H]"""
    parts = [(v.tick, v.devices, v.offloaded) for v in visits if v.offloaded is not None]
    ends = [[d for _, d, _ in parts]] * 2
    sizes = [[o.down_bytes for _, _, o in parts], [o.up_bytes for _, _, o in parts]]
    tick, parents, kids, down, up = _columns([t for t, _, _ in parts], [*ends, *sizes])
    return [tick, parents, kids, *((np.zeros_like(down), np.zeros_like(up)) if colocated else (down, up))]


def _transfers(links: list[Ints], depth: int, settings: CostSettings, distances: Floats) -> tuple[Floats, Floats]:
    """Seconds and joules of the links of one level, download and upload apart. each [2, H]"""
    _, _, kids, down, up = links
    bits = np.asarray(np.stack([down, up]) * 8, np.float64)
    if not kids.size:
        return bits, bits
    if depth == 0:
        return cloud_transfer(bits, np.full(kids.shape, distances.mean()), settings)
    return transfer(bits, distances[kids], settings)


def _walked(
    chains: Sequence[Chain],
    times: Times,
    depth: int,
    settings: CostSettings,
    distances: Floats,
    deadline_seconds: float,
) -> tuple[Times, Level]:
    """How long the bursts with chains lasted, and the level of the links between devices.

    :param times: computing of the devices
    """
    tick, devices = _columns([c.tick for c in chains], [[c.devices for c in chains]])
    work = np.split(
        np.minimum(lookup(times, tick, devices), deadline_seconds), np.cumsum([len(c.devices) for c in chains])
    )
    ends, sizes = np.array([c.ends for c in chains]), np.array([(c.down_bytes, c.up_bytes) for c in chains])
    starts, lands = (
        _transfers([tick, tick, ends[:, way], sizes[:, way], 0 * sizes[:, way]], depth, settings, distances)[0][0]
        for way in (0, 1)
    )
    lasting, seconds, joules = np.zeros(len(chains)), 0.0, 0.0
    for j, c in enumerate(chains):
        hops = len(c.devices) - 1
        (hand, hand_joules), (send, send_joules) = (
            transfer(np.full(len(d), 8.0 * size), d, settings)
            for d, size in ((c.distances[:hops], c.down_bytes), (c.distances, c.up_bytes))
        )
        ready = starts[j] + np.append(0.0, np.cumsum(hand)) + work[j]
        sent = np.append(0.0, np.cumsum(send[:hops]))
        lasting[j] = (ready - sent).max() + sent[-1] + send[hops:].sum() + lands[j]
        seconds += float(hand.sum() + send.sum())
        joules += float(hand_joules.sum() + send_joules.sum())
    down, up = np.sum([c.peer_bytes for c in chains], axis=0)
    at = Times(tick=np.array([c.tick for c in chains]), node=np.array([c.node for c in chains]), seconds=lasting)
    return at, (int(down), int(up), seconds, joules)
