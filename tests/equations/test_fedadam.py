"""FedAdam: m <- b1 m + (1 - b1) D, v <- b2 v + (1 - b2) D^2, x <- x + lr_s m / (sqrt(v) + tau), D = mean theta - x.

With a local learning rate of one every QUAD device answers its own a_i, so D = mean a - x.
"""

import math

import pytest

from tierfed.algorithms.fedadam import FedAdam
from tierfed.algorithms.fedavg import FedAvg
from tierfed.testing.toy import (
    ENGINES,
    cloud,
    gap,
    info,
    make_engine,
    numbers,
    quad,
    run,
    toy_plan,
    toy_settings,
    toy_task,
)
from tierfed.topology import TopologySettings
from tierfed.tree import take

kinds = pytest.mark.parametrize("kind", ENGINES)


@kinds
@pytest.mark.parametrize("v0", [0.0, 0.04])
def test_T67_the_first_two_rounds(kind: str, v0: float) -> None:
    task, plan = quad([-1.0, 5.0], start=[0.5], sizes=[1, 3])  # mean a = 3.5
    algorithm = FedAdam(lr=1.0, server_lr=0.2, beta1=0.9, beta2=0.99, tau=1e-3, v0=v0)
    engine = make_engine(kind, algorithm, task, plan)
    delta = 3.0
    first = 0.5 + 0.2 * 0.1 * delta / (math.sqrt(0.01 * delta**2 + 0.99 * v0) + 1e-3)
    assert cloud(run(engine, 1))["w"].item() == pytest.approx(first, abs=1e-14)
    again = 3.5 - first
    m = 0.9 * 0.1 * delta + 0.1 * again
    v = 0.99 * (0.01 * delta**2 + 0.99 * v0) + 0.01 * again**2
    second = first + 0.2 * m / (math.sqrt(v) + 1e-3)
    assert cloud(run(engine, 1))["w"].item() == pytest.approx(second, abs=1e-14)
    assert engine.kept(0, 0)["m"]["w"].item() == pytest.approx(m, abs=1e-14)
    assert engine.kept(0, 0)["v"]["w"].item() == pytest.approx(v, abs=1e-14)


def test_defaults_of_the_paper_s_table() -> None:
    """m = .1, v = .001 after D = 1 from zero; 0.01 * .1 / (sqrt(.001) + 1e-4)."""
    task, plan = quad([1.0])
    x = cloud(run(make_engine("serial", FedAdam(lr=1.0), task, plan), 1))["w"]
    assert x.item() == pytest.approx(0.001 / (math.sqrt(0.001) + 1e-4), abs=1e-15)


@kinds
def test_T68_server_sgd_without_momentum_is_fedavg(kind: str) -> None:
    task, plan = toy_task(), toy_plan()
    settings = toy_settings(participation=0.5)["3 tiers"]
    sgd = run(make_engine(kind, FedAdam(optimizer="sgd", beta1=0.0, server_lr=1.0), task, plan, settings), 3)
    plain = run(make_engine(kind, FedAvg(), task, plan, settings), 3)
    assert gap(cloud(sgd), cloud(plain)) < 1e-13


def test_server_sgd_with_momentum() -> None:
    """D = 4 - 0 = 4, m = 2, x = 1; D = 3, m = 1 + 1.5, x = 2.25 with beta1 = .5, server_lr = .5."""
    task, plan = quad([4.0])
    engine = make_engine("serial", FedAdam(lr=1.0, optimizer="sgd", beta1=0.5, server_lr=0.5), task, plan)
    assert cloud(run(engine, 1))["w"].item() == pytest.approx(1.0, abs=1e-15)
    assert cloud(run(engine, 1))["w"].item() == pytest.approx(2.25, abs=1e-15)


@kinds
def test_batch_norm_statistics_are_averaged_and_never_put_through_adam(kind: str) -> None:
    task, plan = toy_task(), toy_plan()
    adam, plain = (run(make_engine(kind, a, task, plan), 1) for a in (FedAdam(server_lr=0.3), FedAvg()))
    assert gap(take(cloud(adam), task.buffers), take(cloud(plain), task.buffers)) == 0.0
    assert gap(take(cloud(adam), task.trainable), take(cloud(plain), task.trainable)) > 1e-3
    assert list(adam.kept(0, 0)["m"]) == task.trainable == list(adam.kept(0, 0)["v"])


@kinds
def test_a_lone_device_s_statistics_reach_the_cloud_as_they_are(kind: str) -> None:
    """Round 2 too, where the training itself started elsewhere than FedAvg's: the cloud's buffers are the device's."""
    task, plan = toy_task(), toy_plan(1)
    algorithm = FedAdam(server_lr=0.3)
    engine = run(make_engine(kind, algorithm, task, plan), 1)
    up, _ = algorithm.device(task, {"params": cloud(engine)}, {}, plan.one(0, algorithm, 1, 0))
    run(engine, 1)
    assert gap(take(cloud(engine), task.buffers), take(up["params"], task.buffers)) < 1e-14


def test_silent_devices_count_as_unchanged_when_the_mean_is_over_all() -> None:
    """Half were heard, so D = (mean - x) / 2 = 2, for v as well; statistics move half of the way."""
    task = toy_task()
    tier = FedAdam(beta1=0.5, beta2=0.75, server_lr=1.0, tau=0.5).tiers(task, (1, 2))[0]
    x = {k: t * 0 + 1 for k, t in task.init().items()}
    new = tier.absorb(tier.init(x), {"params": {k: t + 4 for k, t in x.items()}}, info(1.0, 2.0, 0.5))
    for k in task.trainable:
        assert gap(new["params"][k], x[k] + 1.0 / (math.sqrt(0.25 * 4.0) + 0.5)) < 1e-14
    for k in task.buffers:
        assert gap(new["params"][k], x[k] + 2.0) < 1e-14


@kinds
def test_one_of_two_participates_over_all(kind: str) -> None:
    task, plan = quad([4.0, 4.0])
    settings = TopologySettings(fogs=0, participation=1, over="all")
    algorithm = FedAdam(lr=1.0, optimizer="sgd", beta1=0.0, server_lr=1.0)
    assert gap(cloud(run(make_engine(kind, algorithm, task, plan, settings), 1))["w"], numbers(2.0)[0].view(1)) == 0.0
