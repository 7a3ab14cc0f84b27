"""The keep-local family: FedBN, MTFL, FedPer, LG-FedAvg differ in what stays on the device, and in nothing else."""

from typing import Any

import numpy as np
import pytest

from tierfed.algorithms.fedavg import FedAvg
from tierfed.algorithms.keep_local import KeepLocal
from tierfed.engine.base import Engine
from tierfed.engine.evaluate import models
from tierfed.testing.toy import ENGINES, cloud, gap, make_engine, records, run, toy_plan, toy_settings, toy_task
from tierfed.tree import take

kinds = pytest.mark.parametrize("kind", ENGINES)
HEAD = ["3.weight", "3.bias"]
NORM = ["1.weight", "1.bias", "1.running_mean", "1.running_var"]
FLOATS = {"0.weight": 128, "0.bias": 16, **dict.fromkeys(NORM, 16), "3.weight": 64, "3.bias": 4}


def toy(kind: str, algorithm: Any, tree: str = "flat", norm: bool = True, rounds: int = 3, **world: Any) -> Engine:
    settings = toy_settings(**world)[tree]
    return run(make_engine(kind, algorithm, toy_task(norm=norm), toy_plan(), settings), rounds)


def same_devices(a: Engine, b: Engine) -> bool:
    return all(
        records(a)[key] and gap(records(a)[key], records(b)[key]) == 0.0 for key in records(a) if key[0] == "own"
    )


@kinds
@pytest.mark.parametrize("tree", ["flat", "3 tiers"])
def test_T43_T75_nothing_private_is_fedavg_bit_by_bit(kind: str, tree: str) -> None:
    ours = toy(kind, KeepLocal(private="none"), tree, participation=0.5)
    assert gap(cloud(ours), cloud(toy(kind, FedAvg(), tree, participation=0.5))) == 0.0


@kinds
@pytest.mark.parametrize(
    ("private", "depth", "norm"), [("head", 0, True), ("body", 3, True), ("body", 2, False), ("usyb", 1, False)]
)
def test_T74_T78_an_empty_private_part_is_fedavg_bit_by_bit(kind: str, private: Any, depth: int, norm: bool) -> None:
    """FedPer without a head, LG with every layer shared, FedBN on a model without batch norm."""
    ours = toy(kind, KeepLocal(private=private, depth=depth), norm=norm)
    assert gap(cloud(ours), cloud(toy(kind, FedAvg(), norm=norm))) == 0.0


@kinds
@pytest.mark.parametrize(("private", "depth"), [("head", 3), ("body", 0)])
def test_T43_T78_everything_private_is_local_only_bit_by_bit(kind: str, private: Any, depth: int) -> None:
    ours, local = toy(kind, KeepLocal(private=private, depth=depth)), toy(kind, KeepLocal(private="all"))
    assert same_devices(ours, local)
    assert cloud(ours) == {}


@pytest.mark.parametrize(
    ("private", "depth", "stays"),
    [
        ("usyb", 1, NORM),
        ("yb", 1, NORM[:2]),
        ("us", 1, NORM[2:]),
        ("head", 1, HEAD),
        ("head", 2, [*NORM, *HEAD]),
        ("body", 1, ["0.weight", "0.bias", *NORM]),
        ("body", 2, ["0.weight", "0.bias"]),
        ("none", 1, []),
        ("all", 1, list(FLOATS)),
    ],
)
@kinds
def test_T44_what_stays_and_what_a_device_sends(kind: str, private: Any, depth: int, stays: list[str]) -> None:
    """Up and down: the floats of everything else, eight bytes each."""
    algorithm = KeepLocal(private=private, depth=depth)
    engine = make_engine(kind, algorithm, toy_task(), toy_plan())
    sent = engine.step().link_bytes()
    travels = sum(n for key, n in FLOATS.items() if key not in stays)
    assert sent == {(0, "down"): 12 * 8 * travels, (0, "up"): 12 * 8 * travels}
    assert set(engine.own(0)["own"]) == set(stays)
    assert set(cloud(engine)) == set(FLOATS) - set(stays)


@pytest.mark.parametrize("depth", [0, 1, 2, 3])
def test_T78_fedper_is_the_complement_of_lg(depth: int) -> None:
    task = toy_task()
    fedper, lg = KeepLocal(private="head", depth=depth), KeepLocal(private="body", depth=depth)
    assert fedper.kept(task) == lg.shared(task)
    assert fedper.shared(task) == lg.kept(task)
    assert sorted(fedper.kept(task) + lg.kept(task)) == sorted(FLOATS)


@kinds
@pytest.mark.parametrize("private", ["usyb", "head"])
def test_T76_devices_share_the_rest_and_differ_in_their_own(kind: str, private: Any) -> None:
    task, plan = toy_task(), toy_plan(2)
    algorithm = KeepLocal(private=private)
    engine = run(make_engine(kind, algorithm, task, plan), 1)
    one, two = (m.personal_pre for m in models(engine, np.arange(2), post=False))
    assert gap(take(one, algorithm.shared(task)), take(two, algorithm.shared(task))) == 0.0
    for key in algorithm.kept(task):
        assert gap(one[key], two[key]) > 1e-6, key


@kinds
def test_one_round_of_fedbn_by_hand(kind: str) -> None:
    """Each device trains (x, its own batch norm); the rest is averaged by samples, the batch norm is kept."""
    task, plan, algorithm = toy_task(), toy_plan(3), KeepLocal()
    engine = make_engine(kind, algorithm, task, plan)
    run(engine, 1)
    x, own = cloud(engine), [engine.own(i)["own"] for i in range(3)]
    trained = [task.train({**x, **own[i]}, plan.one(i, algorithm, 1, 0), algorithm.lr) for i in range(3)]
    run(engine, 1)
    weights = [float(n) / plan.samples.sum() for n in plan.samples]
    for key in algorithm.shared(task):
        assert gap(cloud(engine)[key], sum(p * w[key] for p, w in zip(weights, trained, strict=True))) < 1e-13
    for i in range(3):
        assert gap(engine.own(i)["own"], take(trained[i], NORM)) < 1e-13


@kinds
def test_fogs_that_average_the_shared_part(kind: str) -> None:
    """One team round: the cloud is what it is over relays, and the fog holds its own devices' mean."""
    relay = toy(kind, KeepLocal(), "3 tiers", rounds=1)
    edge = toy(kind, KeepLocal(edge=True), "3 tiers", rounds=1)
    assert gap(cloud(edge), cloud(relay)) < 1e-13
    team = edge.kept(1, 0)["params"]
    assert set(team) == set(cloud(edge))
    assert gap(team, cloud(edge)) > 1e-4
    means = [edge.kept(1, k)["params"]["0.bias"] for k in range(4)]
    sizes = [float(edge.plan.samples[edge.topology.children(1, k)].sum()) for k in range(4)]
    assert gap(sum(n * m for n, m in zip(sizes, means, strict=True)) / sum(sizes), cloud(edge)["0.bias"]) < 1e-13
