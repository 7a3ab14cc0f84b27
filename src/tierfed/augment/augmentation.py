"""From a federation to one with more to train on: samples of the cloud, or of a generator of the devices' seeds."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tierfed.augment import gan
from tierfed.augment.generators import kde, mixup
from tierfed.augment.seeds import Seeds, collect
from tierfed.augment.settings import AugmentSettings
from tierfed.augment.sharing import carved, drawn, quota, shares
from tierfed.computing import on_threads
from tierfed.data import Federation
from tierfed.data.dataset import Ints
from tierfed.errors import InputError
from tierfed.transfers import Transfer
from tierfed.tree import Params

TRAIN, MAKE = 204, 205  # purposes of the random streams

_OWN = {
    "share": {"beta", "alpha", "warmup_epochs", "warmup_lr"},
    "gan": {"tau", "seeds", "redundant", "gan"},
    "kde": {"tau", "seeds", "redundant", "bandwidth"},
    "mixup": {"tau", "seeds", "redundant"},
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Augmentation:
    """A federation with more to train on.

    :param federation: who holds what from now on; generated rows are at the end of the pool, validation and test rows
        as they were
    :param own: [N] training rows of each device before
    :param cloud: rows of the pool that the cloud holds; none without sharing
    :param generated: rows that were made
    :param transfers: what crosses the links for it
    :param facts: what the log and `tierfed show` tell: rows, distance of the labels, leakage
    :param generator: weights of a GAN's generator; empty for all else, and in a draft
    """

    federation: Federation
    own: Ints
    cloud: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    generated: int = 0
    transfers: tuple[Transfer, ...]
    facts: Mapping[str, Any]
    generator: Params = field(default_factory=dict)


def augment(
    federation: Federation,
    settings: AugmentSettings,
    seed: int,
    *,
    public: Ints | None = None,
    room: int | None = None,
    generator: Params | None = None,
    draft: bool = False,
    tell: gan.Tell | None = None,
) -> Augmentation:
    """Who holds what after sharing or augmentation: a function of the federation, the settings and the seed.

    :param settings: of another kind than "none"
    :param public: rows that are at the cloud already and at no device; shared samples are drawn from them
    :param room: bytes that the pool may take; None: nobody says
    :param generator: the trained generator, where there is one already
    :param draft: generated rows are zeros, and nothing is trained: enough to know who gets how much
    :param tell: is told every two seconds how far a training is
    :raises InputError: data without labels, or of whole numbers for a generator; classes of which there are too few
        samples; settings of another kind; more rows than there is room for
    """
    _check(federation, settings)
    if settings.kind == "share":
        return _shared(federation, settings, seed, public)
    if not federation.x.is_floating_point():
        raise InputError(
            f"augment.kind = {settings.kind!r} makes samples of real numbers, but {federation.name} has "
            f"{str(federation.x.dtype).removeprefix('torch.')}; take augment.kind = 'share', or other data"
        )
    return _filled(federation, settings, seed, room, generator, draft, tell)


def label_distance(federation: Federation, population: Ints | None = None) -> float:
    """Mean over the devices of sum_c |share of label c at the device - its share in the population|, 0 to 2: the
    distance of Zhao et al. 2018.

    :param population: [C] samples of each label; by default those of all devices
    """
    counts = federation.label_counts().astype(np.float64)
    overall = counts.sum(0) if population is None else population
    shares = counts / counts.sum(1, keepdims=True)
    return float(np.abs(shares - overall / overall.sum()).sum(1).mean())


def _check(federation: Federation, settings: AugmentSettings) -> None:
    if not federation.classes:
        raise InputError(
            f"augment.kind = {settings.kind!r} goes by labels, but {federation.name} has none: it is a regression; set "
            "augment.kind = 'none'"
        )
    default = AugmentSettings()
    for f in fields(settings):
        if (
            f.name != "kind"
            and f.name not in _OWN[settings.kind]
            and getattr(settings, f.name) != getattr(default, f.name)
        ):
            where = " or ".join(repr(kind) for kind, own in _OWN.items() if f.name in own)
            raise InputError(
                f"augment.{f.name} is a setting of augment.kind = {where}, but the kind is {settings.kind!r}; leave it "
                "out, or change the kind"
            )


def _shared(federation: Federation, settings: AugmentSettings, seed: int, public: Ints | None) -> Augmentation:
    """Zhao et al. 2018 (arXiv 1806.00582): the cloud's samples are alike frequent in all classes."""
    number = quota(federation, settings.beta, public)
    kept, cloud = (
        carved(federation, number, seed)
        if public is None
        else (federation.train, drawn(federation, number, public, seed))
    )
    given = shares(cloud, settings.alpha, len(federation), seed)
    after = replace(federation, train=tuple(np.sort(np.concatenate(p)) for p in zip(kept, given, strict=True)))
    down = np.array([len(rows) for rows in given], np.int64) * sample_bytes(federation)
    moved = Transfer(
        what="shared samples", down_bytes=down, up_bytes=np.zeros_like(down), common=len(given[0]) == len(cloud)
    )
    facts = {"samples_at_cloud": len(cloud), "samples_to_each_device": len(given[0])}
    return _finished(federation, after, cloud=cloud, transfers=(moved,), facts=facts)


def _filled(
    federation: Federation,
    settings: AugmentSettings,
    seed: int,
    room: int | None,
    generator: Params | None,
    draft: bool,
    tell: gan.Tell | None,
) -> Augmentation:
    """Jeong et al. 2018: target labels are filled up to the number of the most frequent label."""
    seeds = collect(federation, settings, seed)
    pool, missing = np.sort(np.concatenate(seeds.rows)), seeds.missing
    labels = np.concatenate([np.repeat(np.arange(len(row)), row) for row in missing])
    bounds = np.cumsum(missing.sum(1))
    n = len(federation.x)
    _check_room(federation, settings, len(labels), room)
    made = federation.x.new_zeros(len(labels), *federation.shape)
    weights: Params = {}
    if len(labels) and not draft:
        weights = _make(federation, settings, seed, pool, labels, made, generator, tell)
    after = replace(
        federation,
        x=torch.cat([federation.x, made]),
        y=torch.cat([federation.y, torch.from_numpy(labels)]),
        train=tuple(
            np.concatenate([rows, np.arange(n + end - more, n + end)])
            for rows, end, more in zip(federation.train, bounds, missing.sum(1), strict=True)
        ),
    )
    facts = {"seeds": len(pool), "generated_rows": len(labels), **_leakage(seeds)}
    return _finished(
        federation,
        after,
        generated=len(labels),
        transfers=_seed_transfers(federation, settings, seeds),
        facts=facts,
        generator=weights,
    )


def _make(
    federation: Federation,
    settings: AugmentSettings,
    seed: int,
    pool: Ints,
    labels: Ints,
    out: Tensor,
    generator: Params | None,
    tell: gan.Tell | None,
) -> Params:
    """Fills `out` with samples of the labels, on one thread, so that any number of cores gives the same bits."""
    x, y = federation.x[torch.from_numpy(pool)], federation.y.numpy()[pool]
    with on_threads(1):
        if settings.kind == "kde":
            kde(x, y, labels, settings.bandwidth, _stream(seed, MAKE), out)
        elif settings.kind == "mixup":
            mixup(x, y, labels, _stream(seed, MAKE), out)
        else:
            classes = len(federation.classes)
            generator = generator or gan.train(x, y, classes, settings.gan, _stream(seed, TRAIN), tell)
            gan.sample(generator, labels, settings.gan.noise, _stream(seed, MAKE), out)
            return generator
    return {}


def _stream(seed: int, purpose: int) -> int:
    return int(np.random.default_rng([seed, purpose]).integers(2**62))


def _seed_transfers(federation: Federation, settings: AugmentSettings, seeds: Seeds) -> tuple[Transfer, ...]:
    """Seeds to the cloud; the generator to those that lack something. Without a GAN all seeds are the generator."""
    each = sample_bytes(federation)
    up = np.array([len(rows) for rows in seeds.rows], np.int64) * each
    size = up.sum()
    if settings.kind == "gan":
        size = gan.generator_bytes(federation.shape, len(federation.classes), settings.gan)
    down = np.where(seeds.targets.any(1), size, 0).astype(np.int64)
    return (
        Transfer(what="seed samples", down_bytes=np.zeros_like(up), up_bytes=up),
        Transfer(what="generator", down_bytes=down, up_bytes=np.zeros_like(down), common=True),
    )


def _leakage(seeds: Seeds) -> dict[str, Any]:
    each = seeds.leakage
    mean, most = (float(each.mean()), float(each.max())) if len(each) else (0.0, 0.0)
    return {"devices_with_targets": len(each), "privacy_leakage": mean, "privacy_leakage_most": most}


def _check_room(federation: Federation, settings: AugmentSettings, rows: int, room: int | None) -> None:
    x = federation.x
    needed = x.element_size() * (x[0].numel() * (len(x) + 2 * rows))  # the new rows, and the pool with them
    if room is not None and needed > room:
        raise InputError(
            f"augmentation would make {rows} samples, and with them the pool would need {needed / 1e9:.1f} GB, this "
            f"machine has {room / 1e9:.1f} GB; set augment.tau (now {settings.tau:g}) lower, or take fewer devices"
        )


def sample_bytes(federation: Federation) -> int:
    """A sample on a link: its raw size, and its label in as few whole bytes as the classes need."""
    return -(-federation.bits_per_sample // 8) + max(1, -(-(len(federation.classes) - 1).bit_length() // 8))


def _finished(before: Federation, after: Federation, *, facts: Mapping[str, Any], **parts: Any) -> Augmentation:
    """With the facts that all kinds share."""
    own, now = before.sizes(), after.sizes()
    population = before.label_counts().sum(0)
    known = {
        "fewest_before": int(own.min()),
        "most_before": int(own.max()),
        "fewest_after": int(now.min()),
        "most_after": int(now.max()),
        "label_distance_before": label_distance(before),
        "label_distance_after": label_distance(after, population),
    }
    return Augmentation(federation=after, own=own, facts={**known, **facts}, **parts)
