"""MOCHA: coordinate steps by hand, the primal optimum from NumPy, SciPy and scikit-learn, the dual and its gap."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy.optimize import minimize
from sklearn.svm import LinearSVC
from torch import nn

from tierfed.algorithms.mocha import MOCHA
from tierfed.algorithms.mocha_dual import check_linear, numbered
from tierfed.engine.base import Engine
from tierfed.engine.evaluate import message_to, models
from tierfed.errors import InputError
from tierfed.faults import Faults
from tierfed.plan import Plan
from tierfed.task import LOSSES, Task
from tierfed.testing.toy import ENGINES, cloud, gap, make_engine, records, run, toy_plan, toy_settings, toy_task

Floats = npt.NDArray[np.float64]
kinds = pytest.mark.parametrize("kind", ENGINES)


def regression(xs: list[Any], ys: list[Any], batch: int | None = None) -> Plan:
    """Device t holds the samples xs[t] [n_t, D] with targets ys[t] [n_t]."""
    rows = [np.arange(a, b) for a, b in pairwise(np.cumsum([0, *map(len, xs)]))]
    x, y = torch.tensor(np.concatenate(xs)), torch.tensor(np.concatenate(ys))[:, None]
    return Plan(x=x, y=y, train=rows, held=[r[:1] for r in rows], batch=batch, dtype=torch.float64)


def linear_task(features: int = 8, outputs: int = 4, bias: bool = True, loss: str = "cross_entropy") -> Task:
    return Task(nn.Linear(features, outputs, bias=bias).to(torch.float64), LOSSES[loss])


def samples(plan: Plan, bias: bool = True) -> tuple[list[Floats], list[Floats]]:
    """x [n_t, D + 1] and targets [n_t, C] of every device, its rows ascending."""
    xs, ys = [], []
    for rows in plan.train:
        x, y = plan.x[np.sort(rows)].numpy(), plan.y[np.sort(rows)]
        xs.append(np.c_[x, np.ones(len(x))] if bias else x)
        ys.append(y.numpy() if y.is_floating_point() else 2.0 * np.eye(4)[y.numpy()] - 1.0)
    return xs, ys


def found(engine: Engine) -> Floats:
    """All w_t [N, C, D + 1] as the devices would use them now."""
    n = engine.topology.devices
    out = [m.personal_pre for m in models(engine, np.arange(n), post=False)]
    return np.stack([np.concatenate([p.numpy().reshape(len(p), -1) for p in w.values()], 1) for w in out])


LOSS = {
    "squared": lambda z, y: 0.5 * (z - y) ** 2,
    "squared_hinge": lambda z, y: 0.5 * np.maximum(0.0, 1 - y * z) ** 2,
    "hinge": lambda z, y: np.maximum(0.0, 1 - y * z),
}
CONJUGATE = {  # l*(-a)
    "squared": lambda a, y: 0.5 * a**2 - a * y,
    "squared_hinge": lambda a, y: 0.5 * a**2 - a * y,
    "hinge": lambda a, y: -a * y,
}


def primal(w: Floats, plan: Plan, loss: str, p: Floats) -> float:
    """sum_t 1/n_t sum l + 1/2 sum_rt P_rt <w_r, w_t>"""
    fit = sum(LOSS[loss](x @ v.T, y).sum() / len(x) for v, x, y in zip(w, *samples(plan), strict=True))
    flat = w.reshape(len(w), -1)
    return float(fit + 0.5 * np.sum(p * (flat @ flat.T)))


def dual(engine: Engine, plan: Plan, loss: str, p: Floats) -> float:
    """Of the dual variables that the devices keep; they must be feasible."""
    value, vs = 0.0, []
    for t, (x, y) in enumerate(zip(*samples(plan), strict=True)):
        alpha = engine.own(t)["alpha"].numpy()
        assert not alpha[len(x) :].any()
        alpha = alpha[: len(x)]
        assert loss == "squared" or ((alpha * y).min() >= 0.0 and (loss != "hinge" or (alpha * y).max() <= 1.0))
        value -= CONJUGATE[loss](alpha, y).sum() / len(x)
        vs.append((alpha.T @ x / len(x)).ravel())
    return float(value - 0.5 * np.sum(np.linalg.inv(p) * (np.stack(vs) @ np.stack(vs).T)))


def penalty(n: int, lam: float, ridge: float) -> Floats:
    """P of the mean relationship."""
    return np.asarray(lam * (np.eye(n) - 1 / n) + ridge * np.eye(n))


@kinds
def test_one_sample_by_hand(kind: str) -> None:
    """One task: P = ridge = 1/2, K = q = 2. x = 2, y = 3, no bias: da = 3 / (1 + 2 * 4) = 1/3, v = 2/3, w = 4/3: the
    minimum of (2 w - 3)^2 / 2 + w^2 / 4."""
    plan = regression([[[2.0]]], [[3.0]])
    task = linear_task(1, 1, bias=False, loss="mse")
    engine = run(make_engine(kind, MOCHA(loss="squared", ridge=0.5), task, plan), 1)
    assert engine.own(0)["alpha"][:2].flatten().tolist() == pytest.approx([1 / 3, 0.0], abs=1e-15)
    assert engine.own(0)["v"]["weight"].item() == pytest.approx(2 / 3, abs=1e-15)
    assert found(engine).ravel().tolist() == pytest.approx([4 / 3], abs=1e-15)


@kinds
def test_two_tasks_by_hand(kind: str) -> None:
    """lam = 1, ridge = 1, an edge: P = [[2, -1], [-1, 2]], K = [[2, 1], [1, 2]] / 3, q = 1. x = 1, y = 3 and x = 1,
    y = -1: da = y / (1 + 1), v = (3/2, -1/2), w = ((2 * 3/2 - 1/2) / 3, (3/2 - 1) / 3) = (5/6, 1/6).
    Then da_0 = (3 - 5/6 - 3/2) / 2 = 1/3, da_1 = (-1 - 1/6 + 1/2) / 2 = -1/3."""
    plan = regression([[[1.0]], [[1.0]]], [[3.0], [-1.0]])
    task = linear_task(1, 1, bias=False, loss="mse")
    algorithm = MOCHA(loss="squared", ridge=1.0, lam=1.0, omega="graph", edges=((0, 1),))
    engine = run(make_engine(kind, algorithm, task, plan), 1)
    assert found(engine).ravel().tolist() == pytest.approx([5 / 6, 1 / 6], abs=1e-15)
    message = message_to(engine, 0)
    assert [float(message["own"]), float(message["q"])] == pytest.approx([2 / 3, 1.0], abs=1e-15)
    assert float(message["c"]["weight"]) == pytest.approx(-1 / 6, abs=1e-15)
    assert cloud(engine)["weight"].item() == pytest.approx(0.5, abs=1e-15)
    run(engine, 1)
    assert [float(engine.own(i)["alpha"][0, 0]) for i in range(2)] == pytest.approx([11 / 6, -5 / 6], abs=1e-15)


@kinds
def test_hinges_are_clipped_by_hand(kind: str) -> None:
    """Two classes, one sample x = 4 of class 1, ridge = 1: targets -1, 1. hinge: da = y / 16, inside [0, 1]; ridge =
    100: K = 1/100, da = y 100 / 16 is cut at 1. squared hinge: da = y / (1 + 16)."""

    def alpha(loss: str, ridge: float) -> list[float]:
        plan = Plan(
            x=torch.tensor([[4.0]], dtype=torch.float64),
            y=torch.tensor([1]),
            train=[np.array([0])],
            held=[np.array([0])],
            dtype=torch.float64,
        )
        algorithm = MOCHA(loss=loss, ridge=ridge)  # type: ignore[arg-type]
        engine = run(make_engine(kind, algorithm, linear_task(1, 2, bias=False), plan), 1)
        return engine.own(0)["alpha"][0].tolist()  # type: ignore[no-any-return]

    assert alpha("hinge", 1.0) == pytest.approx([-1 / 16, 1 / 16], abs=1e-15)
    assert alpha("hinge", 100.0) == pytest.approx([-1.0, 1.0], abs=1e-15)
    assert alpha("squared_hinge", 1.0) == pytest.approx([-1 / 17, 1 / 17], abs=1e-15)


@kinds
def test_a_batch_may_hold_a_sample_twice(kind: str) -> None:
    """Three orthogonal samples in batches of two: the last one is filled with a sample of a new shuffle, maybe its own.
    One pass of ridge regression is exact then, in whatever order, and a second visit to a sample moves nothing."""
    for seed in range(6):
        plan = replace(regression([np.eye(3)], [[1.0, 2.0, 4.0]], 2), seed=seed)
        algorithm = MOCHA(loss="squared", ridge=1.0)
        engine = run(make_engine(kind, algorithm, linear_task(3, 1, bias=False, loss="mse"), plan), 1)
        assert found(engine).ravel().tolist() == pytest.approx([1 / 4, 2 / 4, 4 / 4], abs=1e-14)


def test_numbers_are_the_same_in_any_order() -> None:
    order, number = numbered(torch.tensor([[9, 4, 7], [4, 2, 9]]))
    assert [int(number[torch.searchsorted(order, torch.tensor(r))]) for r in (2, 4, 7, 9)] == [0, 1, 2, 3]


def test_one_task_is_a_linear_svm() -> None:
    """scikit-learn: 1/2 |w|^2 + C sum [1 - y z]_+^2 with the bias as a feature, so C = 1 / (2 n ridge)."""
    plan, ridge = toy_plan(1, smallest=40, largest=40), 0.05
    engine = run(make_engine("serial", MOCHA(ridge=ridge, epochs=5), linear_task(), plan), 60)
    x, y = plan.x[plan.train[0]].numpy(), plan.y[plan.train[0]].numpy()
    for k in np.unique(y):
        svm = LinearSVC(C=1 / (2 * len(x) * ridge), tol=1e-12, max_iter=200_000).fit(x, y == k)
        want = [*svm.coef_[0], *svm.intercept_]
        assert np.abs(found(engine)[0, k] - want).max() < 1e-7


@kinds
def test_ridge_regressions_on_a_graph(kind: str) -> None:
    """sum_r (delta_tr X_t'X_t / n_t + P_tr I) w_r = X_t'y_t / n_t, solved by NumPy."""
    rng = np.random.default_rng(0)
    xs = [rng.normal(size=(n, 3)) for n in (5, 7, 4)]
    ys = [x @ rng.normal(size=3) for x in xs]
    p = 0.5 * np.array([[1.0, -1.0, 0.0], [-1.0, 3.0, -2.0], [0.0, -2.0, 2.0]]) + 0.2 * np.eye(3)
    left = np.kron(p, np.eye(3))
    for t, x in enumerate(xs):
        left[3 * t : 3 * t + 3, 3 * t : 3 * t + 3] += x.T @ x / len(x)
    want = np.linalg.solve(left, np.concatenate([x.T @ y / len(x) for x, y in zip(xs, ys, strict=True)]))
    algorithm = MOCHA(loss="squared", lam=0.5, ridge=0.2, omega="graph", edges=((0, 1), (2, 1, 2.0)), epochs=3)
    task = linear_task(3, 1, bias=False, loss="mse")
    engine = run(make_engine(kind, algorithm, task, regression(xs, ys, 2)), 60)
    assert np.abs(found(engine).ravel() - want).max() < 1e-7


@kinds
@pytest.mark.parametrize("tree", ["flat", "3 tiers"])
def test_squared_hinges_around_their_mean(kind: str, tree: str) -> None:
    """SciPy's L-BFGS on the primal; relays do not matter, nor do polls of a part, nor lost replies."""
    plan, n, lam, ridge = toy_plan(4, smallest=6, largest=14, batch=4), 4, 0.3, 0.1
    algorithm = MOCHA(lam=lam, ridge=ridge, omega="fixed_mean", epochs=4)
    settings, p = toy_settings(0.8, fogs=2)[tree], penalty(n, lam, ridge)
    engine = run(make_engine(kind, algorithm, linear_task(), plan, settings, Faults(loss=0.1)), 60)
    xs, ys = samples(plan)

    def value(flat: Floats) -> tuple[float, Floats]:
        w = flat.reshape(n, 4, 9)
        slope = np.einsum("rt,tcd->rcd", p, w)
        for t, (x, y) in enumerate(zip(xs, ys, strict=True)):
            slope[t] -= (np.maximum(0.0, 1 - y * (x @ w[t].T)) * y).T @ x / len(x)
        return primal(w, plan, "squared_hinge", p), slope.ravel()

    best = minimize(value, np.zeros(n * 36), jac=True, method="L-BFGS-B", options={"gtol": 1e-12, "ftol": 1e-16})
    assert np.abs(found(engine).ravel() - best.x).max() < 1e-5
    assert primal(found(engine), plan, "squared_hinge", p) == pytest.approx(best.fun, abs=1e-9)


@kinds
@pytest.mark.parametrize("loss", LOSS)
def test_the_dual_never_falls_and_meets_the_primal(kind: str, loss: str) -> None:
    """All devices move at once; P(W) - D(alpha) >= 0 closes. The dual variables stay with their samples, whatever the
    order of batches: v_t is what they make of the samples."""
    plan, p = toy_plan(4, smallest=6, largest=14, batch=4), penalty(4, 1.0, 0.2)
    algorithm = MOCHA(loss=loss, lam=1.0, ridge=0.2, omega="fixed_mean")  # type: ignore[arg-type]
    engine = make_engine(kind, algorithm, linear_task(), plan)
    values, gaps = [0.0], []
    for _ in range(25):
        run(engine, 1)
        values.append(dual(engine, plan, loss, p))
        gaps.append(primal(found(engine), plan, loss, p) - values[-1])
    assert np.diff(values).min() > -1e-12
    assert min(gaps) > -1e-12
    assert gaps[-1] < 0.02 * gaps[0]
    for t, (x, _) in enumerate(zip(*samples(plan), strict=True)):
        v = torch.cat([engine.own(t)["v"]["weight"], engine.own(t)["v"]["bias"][:, None]], 1)
        assert gap(v, engine.own(t)["alpha"][: len(x)].T @ torch.from_numpy(x) / len(x)) < 1e-13


@kinds
def test_learned_relationship(kind: str) -> None:
    """At rest W is the optimum for the Omega that it gives: its gradient under that Omega vanishes."""
    plan, lam, ridge = toy_plan(3, smallest=6, largest=12, batch=4), 0.3, 0.1
    algorithm = MOCHA(loss="squared", lam=lam, ridge=ridge, eps=1e-2, epochs=5)
    engine = run(make_engine(kind, algorithm, linear_task(), plan), 50)
    omega = np.stack([records(engine)["rows0", i]["omega"].numpy() for i in range(3)])
    w = found(engine)
    slope = np.einsum("rt,tcd->rcd", lam * omega + ridge * np.eye(3), w)
    for t, (x, y) in enumerate(zip(*samples(plan), strict=True)):
        slope[t] += (x @ w[t].T - y).T @ x / len(x)
    assert np.abs(slope).max() < 1e-6
    assert np.linalg.eigvalsh(omega)[-1] == pytest.approx(1.0, abs=1e-9)
    assert np.abs(omega - (np.eye(3) - 1 / 3)).max() > 0.05


def test_clusters_of_models() -> None:
    """Tasks 0 and 2 want w = 1, task 1 wants -1: in clusters nobody is pulled over, around one mean all are."""
    plan = regression([[[1.0]]] * 3, [[1.0], [-1.0], [1.0]])
    task = linear_task(1, 1, bias=False, loss="mse")

    def after(**changes: Any) -> Floats:
        algorithm = MOCHA(loss="squared", lam=50.0, ridge=1e-6, epochs=2, **changes)
        return found(run(make_engine("serial", algorithm, task, plan), 40)).ravel()

    assert after(omega="cluster").tolist() == pytest.approx([1.0, -1.0, 1.0], abs=1e-4)
    assert np.abs(after(omega="fixed_mean")).max() < 0.9


def test_first_models_are_zero_whatever_the_module_starts_from() -> None:
    engine = make_engine("serial", MOCHA(), linear_task(), toy_plan(2))
    assert np.abs(found(engine)).max() == 0.0
    assert max(float(t.abs().max()) for t in cloud(engine).values()) == 0.0


def test_pictures_are_flattened_as_the_model_does() -> None:
    """The same samples as rows of 8 and as pictures [2, 4]."""
    plan = toy_plan(2)
    fields = {f: getattr(plan, f) for f in ("y", "train", "held", "batch", "dtype")}
    pictures = Plan(x=plan.x.view(-1, 2, 4), **fields)
    flat = run(make_engine("vectorized", MOCHA(), linear_task(), plan), 2)
    task = Task(nn.Sequential(nn.Flatten(), nn.Linear(8, 4)).to(torch.float64))
    seen = run(make_engine("vectorized", MOCHA(), task, pictures), 2)
    assert gap(flat.own(1)["alpha"], seen.own(1)["alpha"]) == 0.0


class Bent(nn.Module):
    """Looks linear by its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.fc(x))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "module",
    [
        nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4)),
        nn.Sequential(nn.Linear(8, 4), nn.ReLU()),
        nn.Sequential(nn.Dropout(0.5), nn.Linear(8, 4)),
        Bent(),
        nn.Conv1d(1, 4, 8),
    ],
)
def test_other_models_are_refused(module: nn.Module) -> None:
    with pytest.raises(InputError, match=r"one linear layer.*mclr"):
        check_linear(Task(module))
    check_linear(linear_task())


def test_what_cannot_work_is_refused() -> None:
    task = linear_task()
    with pytest.raises(InputError, match="one linear layer"):
        MOCHA().tiers(toy_task(), (1, 3))
    with pytest.raises(InputError, match=r"algorithm.steps = 3.*whole passes"):
        MOCHA(steps=3).tiers(task, (1, 3))
    with pytest.raises(InputError, match=r"weight_decay = 0.1.*algorithm.ridge"):
        MOCHA().tiers(Task(nn.Linear(8, 4), weight_decay=0.1), (1, 3))
    with pytest.raises(InputError, match="with 0 edges"):
        MOCHA(omega="graph").tiers(task, (1, 3))


@kinds
def test_data_that_do_not_fit_are_refused(kind: str) -> None:
    engine = make_engine(kind, MOCHA(samples=20), linear_task(), toy_plan(3, smallest=30, largest=30))
    with pytest.raises(InputError, match=r"up to 24 .*room for 20 .*set algorithm.samples = 24"):
        engine.step()
    plan = regression([[[1.0]]], [[1.0]])
    with pytest.raises(InputError, match=r"targets are numbers.*'squared'"):
        make_engine(kind, MOCHA(), linear_task(1, 1, loss="mse"), plan).step()
