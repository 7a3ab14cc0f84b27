"""pFedLA and HeurpFedLA: the mixture of layers, its gradient, its sign, and what the retained layers save."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tierfed.algorithms import make
from tierfed.algorithms.fedavg import FedAvg
from tierfed.algorithms.keep_local import KeepLocal
from tierfed.algorithms.pfedla import PFedLA
from tierfed.algorithms.pfedla_mixer import LayerMixer
from tierfed.engine.evaluate import models
from tierfed.errors import InputError
from tierfed.models import build_model
from tierfed.task import Task
from tierfed.testing.toy import ENGINES, cloud, gap, info, make_engine, quad, records, run, toy_plan, toy_task
from tierfed.topology import TopologySettings
from tierfed.tree import Params, Tree, add, row, stack, tmap, zeros
from tierfed.wire import payload_bytes

kinds = pytest.mark.parametrize("kind", ENGINES)
N = 5


def mixer(task: Task, n: int = N, **changes: Any) -> LayerMixer:
    (tier,) = PFedLA(**{"dim": 4, "width": 6, "hidden": 2, **changes}).tiers(task, (1, n))
    assert isinstance(tier, LayerMixer)
    return tier


def rolled(t: Tensor, seed: int, size: float = 1.0) -> Tensor:
    return t + size * torch.from_numpy(np.random.default_rng(seed).normal(size=tuple(t.shape)))


def some_rows(tier: LayerMixer, task: Task, n: int = N) -> Tree:
    """Rows of n devices with models and hypernetworks of their own."""
    first: Params = {k: task.init()[k] for k in task.trainable}
    rows = []
    for i in range(n):
        made = tier.child({k: rolled(v, 7 * i) for k, v in first.items()}, i)
        hyper = {**made["hyper"], "head": rolled(made["hyper"]["head"], i), "bias": rolled(made["hyper"]["bias"], i)}
        rows.append({**made, "hyper": hyper})
    out: Tree = stack(rows)
    return out


def state(tier: LayerMixer, rows: Tree, ids: Any = None) -> Tree:
    return {"rows": rows, "ids": torch.arange(N) if ids is None else torch.as_tensor(ids)}


def weights(tier: LayerMixer, rows: Tree, i: int, ids: Tensor) -> Tensor:
    near = rows["near"][i] if tier.top_m else None
    return tier.alpha(row(rows["hyper"], i), near, ids, torch.tensor(i))


@kinds
def test_T30_uniform_weights_are_uniform_fedavg(kind: str) -> None:
    """lr_hn = 0 and first weights 1 / N: every device gets the mean of all models in every round."""
    task, plan = toy_task(norm=False), toy_plan()
    engine = make_engine(kind, PFedLA(lr_hn=0.0), task, plan)
    fedavg = make_engine(kind, FedAvg(), task, plan, TopologySettings(fogs=0, weighting="devices"))
    for _ in range(3):
        got = [m.personal_pre for m in models(engine, np.arange(12), post=False)]
        assert max(gap(g, cloud(fedavg)) for g in got) < 1e-13
        run(engine, 1)
        run(fedavg, 1)


@kinds
def test_T31_the_weight_of_the_better_model_grows(kind: str) -> None:
    """theta = (4, 0), f_0 = w^2 / 2, a step of 0.1 from theta_bar = 2: delta = -0.2, S = (-0.8, 0).

    Softmax at (1/2, 1/2): the outputs move by lr_hn (-0.2, +0.2). Without hidden layers an output is <head, v> + bias:
    with zero heads both move it, by lr_hn 0.4 (1 + |v|^2) in their difference.
    """
    task, plan = quad([0.0, 0.0])
    engine = make_engine(kind, PFedLA(lr=0.1, lr_hn=0.1, hidden=0, dim=3), task, plan)
    tier = engine.tiers[0]
    assert isinstance(tier, LayerMixer)
    first = [tier.child({"w": torch.tensor([w], dtype=torch.float64)}, i) for i, w in enumerate((4.0, 0.0))]
    for i, record in enumerate(first):
        engine.put_row(0, i, record)
    run(engine, 1)
    after = stack(engine.rows(0, np.arange(2)))
    alpha = weights(tier, after, 0, torch.arange(2))
    v = first[0]["hyper"]["v"]
    assert float(alpha[0, 1]) == pytest.approx(1 / (1 + np.exp(-0.04 * (1 + float(v @ v)))), abs=1e-14)
    assert gap(after["theta"]["w"][:, 0], torch.tensor([1.8, 1.8], dtype=torch.float64)) < 1e-15


def test_T31_ten_steps() -> None:
    """The same with v = 0 (only biases move) and theta fixed: 0.50 -> 0.59; with a minus it would be 0.39."""
    task, _ = quad([0.0, 0.0])
    tier = mixer(task, 2, lr_hn=0.1, hidden=0)
    rows: Tree = stack([tier.child({"w": torch.tensor([w], dtype=torch.float64)}, i) for i, w in enumerate((4.0, 0.0))])
    rows["hyper"]["v"] = 0 * rows["hyper"]["v"]
    theta = rows["theta"]
    for _ in range(10):
        now = state(tier, {**rows, "theta": theta}, [0, 1])
        bar = tier.send(now, torch.tensor(0))["params"]["w"]
        up = {"params": {"w": (0.9 * bar)[None]}}
        rows = tier.absorb(now, up, info()._replace(slots=torch.tensor([0])))["rows"]
    alpha = weights(tier, rows, 0, torch.arange(2))[0]
    z = 0.0  # by hand: the difference of the outputs
    for _ in range(10):
        p = 1 / (1 + np.exp(-z))  # of the device with 0
        z += 0.1 * 2 * p * (1 - p) * 4 * 0.1 * 4 * (1 - p)
    assert float(alpha[1]) == pytest.approx(1 / (1 + np.exp(-z)), abs=1e-13)
    assert round(float(alpha[1]), 2) == 0.59


@pytest.mark.parametrize("changes", [{}, {"head": "relu_norm"}, {"hidden": 0}, {"retain": 1}, {"top_m": 3}])
def test_T32_the_cheap_gradient_is_autograd_through_the_models(changes: Any) -> None:
    """J^T delta by differentiating <theta_bar(psi, v), delta> as a whole; retained layers have no gradient."""
    task = toy_task()
    tier = mixer(task, lr_hn=0.5, **changes)
    rows = some_rows(tier, task)
    now, at = state(tier, rows), torch.tensor([3, 0])
    new = [{k: rolled(v, 100 + j) for k, v in row(rows["theta"], j).items()} for j in (3, 0)]
    after = tier.absorb(now, {"params": stack(new)}, info()._replace(slots=at))["rows"]
    for j, i in enumerate((3, 0)):
        msg = tier.send(now, torch.tensor(i))
        sent = msg.get("mask", {k: torch.tensor(True) for k in msg["params"]})
        hyper = tmap(lambda t: t.clone().requires_grad_(), row(rows["hyper"], i))
        alpha = tier.alpha(hyper, rows["near"][i] if tier.top_m else None, now["ids"], torch.tensor(i))
        total = torch.zeros((), dtype=torch.float64)
        for k, p in rows["theta"].items():
            delta = (new[j][k] - msg["params"][k]).detach()
            total = total + sent[k] * (torch.tensordot(alpha[tier.layers.index(k.split(".")[0])], p, 1) * delta).sum()
        total.backward()  # type: ignore[no-untyped-call]
        want = tmap(lambda t: (t + 0.5 * t.grad).detach(), hyper)
        assert gap(row(after["hyper"], i), want) < 1e-12
        assert gap(after["hyper"]["bias"][i], rows["hyper"]["bias"][i]) > 1e-6
        assert gap(row(after["theta"], i), new[j]) == 0.0
    assert gap(row(after, [1, 2, 4]), row(rows, [1, 2, 4])) == 0.0


@kinds
def test_T33_everything_retained_is_local_only_and_nothing_comes_down(kind: str) -> None:
    """The mask of the six trainable tensors costs a byte a message."""
    task, plan = toy_task(), toy_plan()
    engine = make_engine(kind, PFedLA(retain=3), task, plan)
    local = run(make_engine(kind, KeepLocal(private="all"), task, plan), 3)
    for _ in range(3):
        assert engine.step().link_bytes()[0, "down"] == 12 * 1
    for i in range(12):
        assert gap(engine.own(i)["own"], local.own(i)["own"]) == 0.0


@kinds
def test_T33_nothing_retained_is_pfedla(kind: str) -> None:
    task, plan = toy_task(), toy_plan()
    none = run(make_engine(kind, make("heurpfedla", {"retain": 0}), task, plan), 2)
    pfedla = run(make_engine(kind, make("pfedla"), task, plan), 2)
    assert gap({str(k): v for k, v in records(none).items()}, {str(k): v for k, v in records(pfedla).items()}) == 0.0


@pytest.mark.parametrize(
    ("name", "side", "retained", "mib"),
    [
        ("lenet16_28", (1, 28, 28), [], 491.08),
        ("lenet16_28", (1, 28, 28), [850], 488.65),
        ("lenet16_28", (1, 28, 28), [850, 61_560], 312.52),
        ("lenet16_bn", (3, 32, 32), [], 693.96),
        ("lenet16_bn", (3, 32, 32), [96_120], 418.96),
        ("lenet16_bn", (3, 32, 32), [96_120, 12_832], 382.24),
        ("lenet16_bn", (3, 32, 32), [96_120, 12_832, 850], 379.81),
    ],
)
def test_T34_communication_of_table_3(name: str, side: Any, retained: list[int], mib: float) -> None:
    """750 visits, up and down, in MiB, of the retained layers with so many floats; the mask's bits add below 0.01.

    The paper's CIFAR row is smaller by four floats a message: 0.01 to 0.02 MiB.
    """
    task = Task(build_model(name, side, 10, {}, 0))
    tier = mixer(task, 2, retain=len(retained))
    first = {k: task.init()[k] for k in task.trainable}
    rows: Tree = stack([tier.child(first, i) for i in range(2)])
    floats = {layer: sum(first[k].numel() for k in task.layer_keys([layer]) if k in first) for layer in task.layers}
    for n, layer in enumerate(task.layers):
        rows["hyper"]["bias"][:, n, 0] += 1.0 if floats[layer] in retained else 0.0
    down = payload_bytes(stack([tier.send(state(tier, rows, [0, 1]), torch.tensor(0))]), 1)[0]
    up = 4 * sum(floats.values())
    assert 750 * (down + up) / 2**20 == pytest.approx(mib, abs=0.008 if name == "lenet16_28" else 0.025)


@pytest.mark.parametrize("head", ["softmax", "relu_norm"])
@pytest.mark.parametrize("top_m", [0, 3])
def test_T35_rows_of_alpha_are_weights(head: str, top_m: int) -> None:
    task = toy_task()
    tier = mixer(task, head=head, top_m=top_m)
    rows = some_rows(tier, task)
    for ids in (torch.arange(N), torch.tensor([0, 2, 3])):
        for i in range(len(ids)):
            part = row(rows, ids)
            alpha = weights(tier, part, i, ids)
            assert alpha.shape == (3, len(ids))
            assert float(alpha.min()) >= 0.0
            assert gap(alpha.sum(1), torch.ones(3, dtype=torch.float64)) < 1e-14
            if top_m:
                strangers = ~torch.isin(ids, part["near"][i])
                assert float(alpha[:, strangers].abs().sum()) == 0.0


def test_a_dead_row_of_relu_norm_is_the_device_itself() -> None:
    task = toy_task()
    tier = mixer(task, head="relu_norm")
    hyper = tier.child({k: task.init()[k] for k in task.trainable}, 2)["hyper"]
    dead = {**hyper, "bias": hyper["bias"] - 5.0}
    alpha = tier.alpha(dead, None, torch.arange(N), torch.tensor(2))
    assert alpha.tolist() == [[0.0, 0.0, 1.0, 0.0, 0.0]] * 3


@pytest.mark.parametrize(("head", "own"), [("softmax", np.exp(2) / (np.exp(2) + 4)), ("relu_norm", 3 / 7)])
def test_first_weights(head: str, own: float) -> None:
    task = toy_task()
    params = {k: task.init()[k] for k in task.trainable}
    for first, want in (("uniform", 1 / N), ("self", own)):
        tier = mixer(task, head=head, first=first)
        alpha = tier.alpha(tier.child(params, 1)["hyper"], None, torch.arange(N), torch.tensor(1))
        assert alpha[:, 1].tolist() == pytest.approx([want] * 3, abs=1e-14)


def test_the_mixture_is_of_one_snapshot() -> None:
    """Jacobi: what one device sends changes nothing for the others of its burst."""
    task = toy_task()
    tier = mixer(task, lr_hn=0.5)
    rows, at = some_rows(tier, task), torch.tensor([0, 1])
    up: Params = tmap(lambda t: rolled(t, 1), row(rows["theta"], at))
    both = tier.absorb(state(tier, rows), {"params": up}, info()._replace(slots=at))["rows"]
    for j in range(2):
        one = tier.absorb(state(tier, rows), {"params": row(up, [j])}, info()._replace(slots=at[[j]]))["rows"]
        assert gap(row(both, j), row(one, j)) < 1e-13
    assert gap(add(up, row(both["theta"], at), -1.0), zeros(up)) == 0.0


def test_candidates_are_the_device_and_others() -> None:
    tier = mixer(toy_task(), 50, top_m=8)
    for i in (0, 31, 49):
        near = tier.child({"w": torch.zeros(1)}, i)["near"].tolist()
        assert near[0] == i
        assert len(set(near)) == 8
        assert all(0 <= j < 50 for j in near)


def test_too_many_devices_are_refused() -> None:
    task = toy_task()
    with pytest.raises(InputError, match="top_m"):
        PFedLA().tiers(task, (1, 4, 1001))
    assert len(PFedLA(top_m=10).tiers(task, (1, 4, 1001))) == 2
    assert len(PFedLA(server_at="fog").tiers(task, (1, 4, 1001))) == 2
    with pytest.raises(InputError, match="top_m"):
        PFedLA(server_at="fog").tiers(task, (1, 1001))
