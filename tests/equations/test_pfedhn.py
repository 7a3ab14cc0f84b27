"""pFedHN: the gradient of the hypernetwork, its optimizer, and FedAvg one device after the other."""

from typing import Any

import numpy as np
import pytest
import torch

from tierfed.algorithms import make
from tierfed.algorithms.pfedhn import PFedHN
from tierfed.algorithms.pfedhn_server import HyperNetwork
from tierfed.engine.evaluate import models
from tierfed.task import Task
from tierfed.testing.toy import ENGINES, gap, info, make_engine, quad, run, toy_plan, toy_task
from tierfed.topology import TopologySettings
from tierfed.tree import Tree, stack, take, tmap

kinds = pytest.mark.parametrize("kind", ENGINES)
PLAIN: dict[str, Any] = {"momentum": 0.0, "decay": 0.0, "clip": 1e30}


def server(task: Task, **changes: Any) -> HyperNetwork:
    (tier,) = PFedHN(**{"dim": 3, "width": 5, "hidden": 2, **changes}).tiers(task, (1, 4))
    assert isinstance(tier, HyperNetwork)
    return tier


def noisy(tree: Tree, seed: int) -> Tree:
    rng = np.random.default_rng(seed)
    out: Tree = tmap(lambda t: t + torch.from_numpy(rng.normal(size=tuple(t.shape))), tree)
    return out


def world(tier: HyperNetwork, task: Task, keys: list[str]) -> Tree:
    """A state with three polled devices and no zero in it."""
    params = take(task.init(), keys)
    rows = stack([tier.child(params, i) for i in range(3)])
    return {**noisy(tier.init(params), 1), "rows": noisy(rows, 2), "ids": torch.arange(3)}


@kinds
def test_T86_a_constant_output_is_fedavg_one_device_after_the_other(kind: str) -> None:
    """No hidden layer, v = 0 and W = 0 stay: only b moves, with a step of 1 to what the device trained."""
    task, plan = quad([1.0, 5.0, -3.0])
    algorithm = PFedHN(lr=0.5, lr_hn=1.0, hidden=0, dim=2, **PLAIN)
    engine = make_engine(kind, algorithm, task, plan, TopologySettings(fogs=0, participation=1))
    for i in range(3):
        engine.put_row(0, i, {"v": torch.zeros(2, dtype=torch.float64), "m": torch.zeros(2, dtype=torch.float64)})
    x, seen = 0.0, set()
    for _ in range(6):
        (device,) = engine.step().visits[0].devices.tolist()
        seen.add(device)
        x = x - 0.5 * (x - (1.0, 5.0, -3.0)[device])
        assert float(engine.kept(0, 0)["phi"]["bias"]["w"]) == pytest.approx(x, abs=1e-14)
    assert len(seen) > 1


@pytest.mark.parametrize("hidden", [0, 2])
def test_the_gradient_is_autograd_through_the_models(hidden: int) -> None:
    """phi: the mean over the devices heard; v_i: its own."""
    task, algorithm = toy_task(), PFedHN()
    keys = algorithm.shared(task)
    tier = server(task, lr_hn=0.5, hidden=hidden, **PLAIN)
    now, at = world(tier, task, keys), torch.tensor([2, 0])
    trained = noisy(stack([take(task.init(), keys)] * 2), 3)
    after = tier.absorb(now, {"params": trained}, info()._replace(slots=at))
    phi = tmap(lambda t: t.clone().requires_grad_(), now["phi"])
    v = now["rows"]["v"].clone().requires_grad_()
    total = torch.zeros((), dtype=torch.float64)
    for j, i in enumerate((2, 0)):
        theta = tier.write(phi, v[i])
        total = total + sum((theta[k] * (theta[k] - trained[k][j]).detach()).sum() for k in keys)
    total.backward()  # type: ignore[no-untyped-call]
    assert v.grad is not None
    assert gap(after["phi"], tmap(lambda t: (t - 0.5 * t.grad / 2).detach(), phi)) < 1e-12
    assert gap(after["rows"]["v"], (v - 0.5 * v.grad).detach()) < 1e-12
    assert gap(after["rows"]["v"][1], now["rows"]["v"][1]) == 0.0


def test_momentum_decay_and_clip_by_hand() -> None:
    """theta = W v + b = 2 * 3 + 1 = 7, trained 5: g = 2 (v, W, 1) = (6, 4, 2) for W, v, b, of length sqrt(56).

    Cut to sqrt(14), half of it: (3, 2, 1). m = 0.5 * 1 + g / 2 + 0.1 p: W 0.5 + 3 + 0.2, v 0.5 + 2 + 0.3, b 1.6.
    """
    task, _ = quad([0.0])
    tier = server(task, dim=1, hidden=0, lr_hn=0.1, momentum=0.5, decay=0.1, clip=14**0.5)

    def one(value: float) -> torch.Tensor:
        return torch.tensor([value], dtype=torch.float64)

    phi = {"body": {}, "head": {"w": one(2.0)[None]}, "bias": {"w": one(1.0)}}
    ones = tmap(torch.ones_like, phi)
    rows = {"v": one(3.0)[None], "m": one(1.0)[None]}
    now = {"phi": phi, "m": ones, "rows": rows, "ids": torch.arange(1)}
    after = tier.absorb(now, {"params": {"w": one(5.0)[None]}}, info()._replace(slots=torch.tensor([0])))
    assert float(after["m"]["head"]["w"]) == pytest.approx(3.7, abs=1e-14)
    assert float(after["rows"]["m"]) == pytest.approx(2.8, abs=1e-14)
    assert float(after["phi"]["head"]["w"]) == pytest.approx(2 - 0.37, abs=1e-14)
    assert float(after["rows"]["v"]) == pytest.approx(3 - 0.28, abs=1e-14)
    assert float(after["phi"]["bias"]["w"]) == pytest.approx(1 - 0.16, abs=1e-14)


@kinds
def test_everybody_begins_with_the_initial_model(kind: str) -> None:
    task, plan = toy_task(), toy_plan()
    engine = make_engine(kind, PFedHN(), task, plan)
    assert [gap(m.personal_pre, task.init()) for m in models(engine, np.arange(12), post=False)] == [0.0] * 12
    run(engine, 2)
    one, two = (m.personal_pre for m in models(engine, np.arange(2), post=False))
    assert gap(one["0.weight"], two["0.weight"]) > 1e-6


@kinds
@pytest.mark.parametrize(("name", "floats"), [("pfedhn", 128 + 16 + 64 + 4), ("pfedhn-pc", 128 + 16)])
def test_batch_norms_and_the_head_of_pc_stay(kind: str, name: str, floats: int) -> None:
    task, plan, algorithm = toy_task(), toy_plan(), make(name)
    engine = make_engine(kind, algorithm, task, plan)
    assert engine.step().link_bytes() == {(0, "down"): 12 * 8 * floats, (0, "up"): 12 * 8 * floats}
    stays = [k for k in task.keys if k not in algorithm.shared(task)]
    assert set(engine.own(0)["own"]) == set(stays)
    data = engine.plan.one(0, algorithm, 0, 0)
    assert gap(engine.own(0)["own"], take(task.train(task.init(), data, algorithm.lr), stays)) < 1e-13


@kinds
def test_devices_find_their_own_optima(kind: str) -> None:
    """QUAD: what FedAvg cannot, since it has one model for both."""
    task, plan = quad([[1.0, 2.0], [-3.0, 1.0]])
    algorithm = PFedHN(lr=0.5, lr_hn=0.05, hidden=0, dim=3, **PLAIN)
    engine = run(make_engine(kind, algorithm, task, plan), 300)
    got = [m.personal_pre["w"].tolist() for m in models(engine, np.arange(2), post=False)]
    assert got == [pytest.approx([1.0, 2.0], abs=1e-3), pytest.approx([-3.0, 1.0], abs=1e-3)]
