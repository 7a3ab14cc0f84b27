"""Federated multi-task learning: steps by hand, optima on QUAD for every relationship, Omega by hand.

On QUAD all w_t = a_t - lam sum_r Omega_tr w_r at the optimum: (I + lam Omega) W = A.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm

from tierfed.algorithms.fmtl import FMTL
from tierfed.algorithms.keep_local import KeepLocal
from tierfed.algorithms.omega import clustered, gram, laplacian, learned, ward
from tierfed.engine.base import Engine
from tierfed.engine.evaluate import message_to, models
from tierfed.errors import InputError
from tierfed.faults import Faults
from tierfed.testing.toy import (
    DEVICES,
    ENGINES,
    cloud,
    gap,
    make_engine,
    quad,
    records,
    run,
    toy_plan,
    toy_settings,
    toy_task,
)
from tierfed.topology import TopologySettings
from tierfed.tree import add, scale, zeros

kinds = pytest.mark.parametrize("kind", ENGINES)
MODES: dict[str, dict[str, Any]] = {
    "fixed_mean": {},
    "learned": {"omega": "learned"},
    "graph": {"omega": "graph", "edges": ((0, 1), (2, 5, 0.5))},
    "teams": {"omega": "cluster", "between": 0.5},
    "clusters": {"omega": "cluster", "clusters": 2},
}


def tensor(values: Any) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def found(engine: Engine, n: int) -> npt.NDArray[np.float64]:
    """All w_t [n, d]."""
    return np.stack([engine.own(i)["w"]["w"].numpy() for i in range(n)])


def inverse_of(omega: torch.Tensor) -> torch.Tensor:
    """C scaled to a diagonal of ones: correlations of the tasks."""
    c = torch.linalg.inv(omega)
    return c / torch.outer(c.diag(), c.diag()).sqrt()


@kinds
def test_two_rounds_by_hand(kind: str) -> None:
    """m = 2, a = (0, 4), from 2, lam = 1, s = 0.1, two steps; Omega_tt = 1/2, the others stay where they were heard.
    Round 0: c = 1 - 2. Device 0: 2 - 0.1 (2 + 1 - 1) = 1.8, 1.8 - 0.1 (1.8 + 0.9 - 1) = 1.63; device 1: 2.2, 2.37.
    Round 1, mean 2: device 0 has c = 0.815 - 2: 1.63 - 0.1 (1.63 + 0.815 - 1.185) = 1.504, then 1.3969."""
    task, plan = quad([0.0, 4.0], start=[2.0], sizes=[1, 3])
    engine = run(make_engine(kind, FMTL(lr=0.1, lam=1.0, epochs=2), task, plan), 1)
    assert [engine.own(i)["w"]["w"].item() for i in range(2)] == pytest.approx([1.63, 2.37], abs=1e-14)
    run(engine, 1)
    assert [engine.own(i)["w"]["w"].item() for i in range(2)] == pytest.approx([1.3969, 2.6031], abs=1e-14)
    assert cloud(engine)["w"].item() == pytest.approx(2.0, abs=1e-14)


def test_T47_the_optimum() -> None:
    """w_i = (a_i + lam abar) / (1 + lam): lam = 0.5, abar = 2."""
    a = [-2.0, 1.0, 7.0]
    task, plan = quad(a, start=[9.0])
    engine = run(make_engine("vectorized", FMTL(lr=0.3, lam=0.5), task, plan), 90)
    found = [m.personal_pre["w"].item() for m in models(engine, np.arange(3), post=False)]
    assert found == pytest.approx([(v + 0.5 * 2.0) / 1.5 for v in a], abs=1e-9)
    assert cloud(engine)["w"].item() == pytest.approx(2.0, abs=1e-9)


@kinds
@pytest.mark.parametrize("mode", MODES)
def test_T48_without_a_relationship_it_is_local_training_bit_by_bit(mode: str, kind: str) -> None:
    task, plan, tree = toy_task(), toy_plan(), toy_settings()["3 tiers"]
    fmtl = run(make_engine(kind, FMTL(lam=0.0, **MODES[mode]), task, plan, tree), 3)
    local = run(make_engine(kind, KeepLocal(private="all"), task, plan, tree), 3)
    for i in range(DEVICES):
        assert gap(fmtl.own(i)["w"], local.own(i)["own"]) == 0.0


@kinds
@pytest.mark.parametrize("mode", ["fixed_mean", "teams"])
@pytest.mark.parametrize("tree", ["flat", "3 tiers", "4 tiers"])
def test_silent_devices_stay_in_the_mean(kind: str, tree: str, mode: str) -> None:
    """m times the mean and what is still owed are the sum of all w_i, polled or not."""
    task, plan, places = toy_task(), toy_plan(), toy_settings(participation=0.5, team_rounds=2)
    engine = run(make_engine(kind, FMTL(**MODES[mode]), task, plan, places[tree], Faults(loss=0.4)), 4)
    total, arrived = zeros(cloud(engine)), scale(cloud(engine), DEVICES)
    for i in range(DEVICES):
        total = add(total, engine.own(i)["w"])
    for (table, _), record in records(engine).items():
        arrived = add(arrived, record["moved"]) if table.startswith("owed") else arrived
    assert gap(total, arrived) < 1e-11


def test_d_up_and_d_plus_one_down() -> None:
    task, plan = quad([[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]])
    assert make_engine("serial", FMTL(), task, plan).step().link_bytes() == {
        (0, "down"): 2 * 8 * 4,
        (0, "up"): 2 * 8 * 3,
    }


def test_one_task_alone_has_nobody_to_relate_to() -> None:
    task, plan = quad([4.0])
    engine = run(make_engine("serial", FMTL(lr=0.1, lam=3.0), task, plan), 2)
    assert engine.own(0)["w"]["w"].item() == pytest.approx(4.0 * (1 - 0.9**2), abs=1e-14)


def test_T49_learned_by_hand() -> None:
    """W = (3, 0), (2, sqrt 5): W W^T = [[9, 6], [6, 9]] with 15 along (1, 1), 3 along (1, -1); eps = 1/9 adds 1.
    S has 4 and 2, C = S / 6 has 2/3 and 1/3, Omega 3/2 and 3: [[9, -3], [-3, 9]] / 4; over 3 with scale = largest."""
    products = gram({"w": tensor([[3.0], [2.0]]), "b": tensor([0.0, 5.0**0.5])})
    want = tensor([[2.25, -0.75], [-0.75, 2.25]])
    assert gap(products, tensor([[9.0, 6.0], [6.0, 9.0]])) < 1e-14
    assert gap(learned(products, 1 / 9), want) < 1e-14
    assert gap(learned(products, 1 / 9, "largest"), want / 3) < 1e-14


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(2, 7), d=st.integers(1, 9), eps=st.sampled_from([1e-6, 1e-3, 0.1]))
def test_T49_learned_is_the_inverse_of_a_matrix_of_trace_one(seed: int, n: int, d: int, eps: float) -> None:
    """Against SciPy's matrix root; symmetric, positive definite, eigenvalues up to n / sqrt(eps), sum at least n^2."""
    w = np.random.default_rng(seed).normal(size=(n, d))
    products = w @ w.T
    root = np.real(sqrtm(products + eps * np.trace(products) / n * np.eye(n)))
    omega = learned(torch.from_numpy(products), eps)
    assert gap(omega @ torch.from_numpy(root / np.trace(root)), torch.eye(n, dtype=torch.float64)) < 1e-5
    assert torch.equal(omega, omega.T)
    values = torch.linalg.eigvalsh(omega)
    assert float(values[0]) > 0
    assert float(values[-1]) <= 1.001 * n * (1 + eps) ** 0.5 / eps**0.5
    assert float(values.sum()) >= n**2 * (1 - 1e-9)


def test_T49_duplicated_tasks_are_the_most_related() -> None:
    """Tasks 0 and 1 have one optimum, 2 and 3 others; the models come to lie as the optima do."""
    a = np.random.default_rng(3).normal(size=(4, 30))
    a[1] = a[0]
    task, plan = quad(a.tolist())
    engine = run(make_engine("vectorized", FMTL(lr=0.3, omega="learned", lam=0.1), task, plan), 20)
    omega = torch.stack([records(engine)["rows0", i]["omega"] for i in range(4)])
    c = inverse_of(omega)
    assert float(c[0, 1]) > 0.9
    assert max(abs(float(c[i, j])) for i, j in [(0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]) < 0.5


def test_T49_equal_models_have_the_fixed_mean() -> None:
    """|w|^2 = 1: eigenvalues 3 along (1, 1, 1) and 0; eps I is added, so Omega = I - (1 - sqrt(eps / (3 + eps))) U."""
    eps, mean = 1e-4, torch.full((3, 3), 1 / 3, dtype=torch.float64)
    want = torch.eye(3, dtype=torch.float64) - (1 - (eps / (3 + eps)) ** 0.5) * mean
    assert gap(learned(3 * mean, eps, "largest"), want) < 1e-12
    assert gap(learned(0 * mean, eps, "largest"), torch.eye(3, dtype=torch.float64)) < 1e-15
    assert gap(learned(0 * mean, eps), 3 * torch.eye(3, dtype=torch.float64)) < 1e-14


@kinds
def test_T49_fixed_point(kind: str) -> None:
    """(I + lam Omega(W)) W = A with Omega from SciPy."""
    a, lam, eps = np.random.default_rng(4).normal(size=(4, 6)), 0.5, 1e-2
    task, plan = quad(a.tolist())
    algorithm = FMTL(lr=0.5, lam=lam, omega="learned", eps=eps, omega_every=2)
    w = found(run(make_engine(kind, algorithm, task, plan), 120), 4)
    products = w @ w.T
    root = np.real(sqrtm(products + eps * np.trace(products) / 4 * np.eye(4)))
    omega = np.linalg.inv(root) * np.linalg.eigvalsh(root)[0]
    assert np.abs(w + lam * omega @ w - a).max() < 1e-9
    assert np.abs(w - a).max() > 0.05


@kinds
def test_T49_before_the_first_step_it_is_the_fixed_mean(kind: str) -> None:
    task, plan = toy_task(), toy_plan()
    late = run(make_engine(kind, FMTL(omega="learned", omega_every=3), task, plan), 3)
    mean = run(make_engine(kind, FMTL(), task, plan), 3)
    assert max(gap(late.own(i), mean.own(i)) for i in range(DEVICES)) < 1e-12
    assert gap(cloud(late), cloud(mean)) < 1e-12
    run(late, 1)
    run(mean, 1)
    assert max(gap(late.own(i), mean.own(i)) for i in range(DEVICES)) > 1e-5


def test_laplacian_by_hand() -> None:
    """Edges 0-1 (1), 3-1 (2); devices 3, 0, 1 in this order; device 7 is elsewhere."""
    want = [[2.0, 0.0, -2.0], [0.0, 1.0, -1.0], [-2.0, -1.0, 3.0]]
    got = laplacian(((0, 1), (3, 1, 2.0), (7, 0)), torch.tensor([3, 0, 1]))
    assert gap(got, tensor(want)) == 0.0


@kinds
def test_graph_optimum(kind: str) -> None:
    """lam = 1, an edge between a = 0 and a = 3: [[2, -1], [-1, 2]] w = (0, 3) gives (1, 2); device 2 is alone."""
    task, plan = quad([0.0, 3.0, 7.0], start=[5.0])
    engine = run(make_engine(kind, FMTL(lr=0.5, lam=1.0, omega="graph", edges=((1, 0),)), task, plan), 40)
    assert found(engine, 3)[:, 0] == pytest.approx([1.0, 2.0, 7.0], abs=1e-9)
    assert cloud(engine)["w"].item() == pytest.approx(10 / 3, abs=1e-9)


@kinds
def test_graph_by_hand(kind: str) -> None:
    """An edge of weight 2, lam = 1/4, s = 0.1, two steps from 2, a = (0, 4): Omega_tt = 2, c = -2 * 2, both by 1/4.
    Device 0: 2 - 0.1 * 2 = 1.8, 1.8 - 0.1 (1.8 + 0.9 - 1) = 1.63. Device 1: 2.2, 2.37. Then c_0 = -2 * 2.37."""
    task, plan = quad([0.0, 4.0], start=[2.0])
    algorithm = FMTL(lr=0.1, lam=0.25, epochs=2, omega="graph", edges=((0, 1, 2.0),))
    engine = run(make_engine(kind, algorithm, task, plan), 1)
    assert found(engine, 2)[:, 0] == pytest.approx([1.63, 2.37], abs=1e-14)
    w = 1.63
    for _ in range(2):
        w -= 0.1 * (w + 0.5 * w - 0.5 * 2.37)
    assert found(run(engine, 1), 2)[0, 0] == pytest.approx(w, abs=1e-14)


def test_clusters_by_hand() -> None:
    """{0, 2}, {1}: within (w0 - w2)^2 / 2, between sum_c m_c (wbar_c - wbar)^2 = 2/3 (w1 - (w0 + w2) / 2)^2."""
    within = tensor([[0.5, 0.0, -0.5], [0.0, 0.0, 0.0], [-0.5, 0.0, 0.5]])
    far = tensor([-0.5, 1.0, -0.5])
    labels = torch.tensor([4, 1, 4])
    assert gap(clustered(labels, 0.0), within) < 1e-15
    assert gap(clustered(labels, 0.25), within + 0.25 * 2 / 3 * torch.outer(far, far)) < 1e-15
    assert gap(clustered(labels, 1.0), torch.eye(3, dtype=torch.float64) - 1 / 3) < 1e-15


def test_ward_finds_groups_by_distance() -> None:
    """By distance and not by direction: 1 and 2 point the same way, 10 and 11 too."""
    labels = ward({"w": tensor([[1.0], [11.0], [2.0], [10.0]]), "b": tensor([[100.0]] * 4)}, 2)
    assert (labels[:, None] == labels).tolist() == (np.arange(4)[:, None] % 2 == np.arange(4) % 2).tolist()
    assert ward({"w": tensor([[1.0], [5.0]])}, 3).unique().numel() == 2
    assert ward({"w": tensor([[1.0], [1.0], [1.0]])}, 2).unique().numel() == 1


def optimum(a: list[float], teams: list[int], lam: float, between: float) -> list[float]:
    """abar + (abar_c - abar) / (1 + lam between) + (a_t - abar_c) / (1 + lam)"""
    mean = float(np.mean(a))
    own = [float(np.mean([x for x, u in zip(a, teams, strict=True) if u == t])) for t in teams]
    return [mean + (c - mean) / (1 + lam * between) + (x - c) / (1 + lam) for x, c in zip(a, own, strict=True)]


A, TEAMS = [0.0, 9.0, 1.0, 10.0, 2.0], [0, 1, 0, 1, 0]


@kinds
@pytest.mark.parametrize("between", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("bursts", [1, 2])
def test_teams_optimum(kind: str, between: float, bursts: int) -> None:
    task, plan = quad(A, start=[3.0])
    tree = TopologySettings(fogs=2, teams="natural", team_rounds=bursts)
    algorithm = FMTL(lr=0.6, lam=0.5, omega="cluster", between=between)
    engine = run(make_engine(kind, algorithm, task, plan, tree, natural=TEAMS), 40)
    want = optimum(A, TEAMS, 0.5, between)
    assert found(engine, 5)[:, 0] == pytest.approx(want, abs=1e-9)
    assert cloud(engine)["w"].item() == pytest.approx(4.4, abs=1e-9)
    (m,) = models(engine, np.array([3]), post=False)
    assert m.team is not None
    assert m.team["w"].item() == pytest.approx(np.mean([want[1], want[3]]), abs=1e-9)


@kinds
def test_teams_by_hand(kind: str) -> None:
    """Two teams of two, from 2, lam = 1, between = 1/2, s = 0.1, two steps, a_0 = 0: the own part of what comes down is
    1/2 1/2 + 1/2 1/4 = 3/8, c = 3/8 * 2 - 2 = -5/4: 2 - 0.1 * 2 = 1.8, 1.8 - 0.1 (1.8 + 5/8 * 1.8 - 5/4) = 1.6325."""
    task, plan = quad([0.0, 2.0, 4.0, 2.0], start=[2.0])
    tree = TopologySettings(fogs=2, teams="natural")
    algorithm = FMTL(lr=0.1, lam=1.0, epochs=2, omega="cluster", between=0.5)
    engine = run(make_engine(kind, algorithm, task, plan, tree, natural=[0, 0, 1, 1]), 1)
    assert found(engine, 4)[:, 0] == pytest.approx([1.6325, 2.0, 2.3675, 2.0], abs=1e-14)
    assert engine.kept(1, 0)["params"]["w"].item() == pytest.approx(1.81625, abs=1e-14)


@kinds
def test_clusters_of_models_optimum(kind: str) -> None:
    """The groups {0, 1, 2} and {9, 10} are found, and the optimum is that of teams."""
    task, plan = quad(A, start=[3.0])
    algorithm = FMTL(lr=0.6, lam=0.5, omega="cluster", clusters=2, between=0.25)
    engine = run(make_engine(kind, algorithm, task, plan), 40)
    assert found(engine, 5)[:, 0] == pytest.approx(optimum(A, TEAMS, 0.5, 0.25), abs=1e-9)


@kinds
def test_servers_at_fogs_relate_their_own_devices(kind: str) -> None:
    """Two edges inside the teams, one between them that does not count."""
    task, plan = quad([0.0, 3.0, 6.0, 9.0])
    algorithm = FMTL(lr=0.5, lam=1.0, omega="graph", edges=((0, 1), (2, 3), (1, 2)), server_at="fog")
    tree = TopologySettings(fogs=2, teams="natural")
    engine = run(make_engine(kind, algorithm, task, plan, tree, natural=[0, 0, 1, 1]), 40)
    assert found(engine, 4)[:, 0] == pytest.approx([1.0, 2.0, 7.0, 8.0], abs=1e-9)


@kinds
@pytest.mark.parametrize("mode", ["learned", "graph", "clusters"])
def test_silent_devices_count_as_they_were_heard_last(kind: str, mode: str) -> None:
    task, plan = toy_task(), toy_plan()
    tree = toy_settings(participation=0.4)["flat"]
    engine = run(make_engine(kind, FMTL(**MODES[mode]), task, plan, tree), 3)
    rows = [engine.rows(0, np.array([i]))[0]["w"] for i in range(DEVICES)]
    assert max(gap(rows[i], engine.own(i)["w"]) for i in range(DEVICES)) == 0.0
    mean = scale(rows[0], 1 / DEVICES)
    for r in rows[1:]:
        mean = add(mean, r, 1 / DEVICES)
    assert gap(cloud(engine), mean) < 1e-14


@pytest.mark.parametrize("mode", MODES)
def test_batch_norm_statistics_do_not_come_down(mode: str) -> None:
    task, plan = toy_task(), toy_plan()
    engine = run(make_engine("vectorized", FMTL(**MODES[mode]), task, plan, toy_settings()["3 tiers"]), 2)
    message = message_to(engine, 1)
    assert set(message["params" if mode in ("fixed_mean", "teams") else "c"]) == set(task.trainable)
    assert gap({k: engine.own(0)["w"][k] for k in task.buffers}, {k: cloud(engine)[k] for k in task.buffers}) > 1e-3
    assert set(cloud(engine)) == set(task.keys)


@pytest.mark.parametrize("mode", ["learned", "clusters"])
def test_a_server_sends_d_plus_one_and_hears_d(mode: str) -> None:
    task, plan = quad([[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]])
    algorithm = FMTL(**MODES[mode])
    assert make_engine("serial", algorithm, task, plan).step().link_bytes() == {
        (0, "down"): 2 * 8 * 4,
        (0, "up"): 2 * 8 * 3,
    }


def test_full_participation_is_asked_for_by_stale() -> None:
    assert FMTL(stale=False).needs_full
    assert not FMTL().needs_full


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"omega": "graph"}, "with 0 edges"),
        ({"omega": "learned", "edges": ((0, 1),)}, "with 1 edges"),
        ({"omega": "graph", "edges": ((0, 3),)}, r"\[0, 3\] 1x.*numbered 0 to 2"),
        ({"omega": "graph", "edges": ((1, 1),)}, r"\[1, 1\] 1x"),
        ({"omega": "graph", "edges": ((0, 1), (1, 0, 2.0))}, r"\[0, 1\] 2x"),
        ({"omega": "graph", "edges": ((0, 1, 30.0),), "lam": 1.0}, "wanted lr <= 0.0666667"),
        ({"lam": 25.0}, "wanted lr <= 0.08"),
    ],
)
def test_what_cannot_work_is_refused(changes: dict[str, Any], message: str) -> None:
    task, _ = quad([0.0])
    with pytest.raises(InputError, match=message):
        FMTL(**changes).tiers(task, (1, 3))
