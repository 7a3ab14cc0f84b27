"""JobFed's alpha: the controller (T-12), scopes and effects against the recursion in plain numbers, the toy (T-17)."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tierfed.algorithms.jobfed import JobFed
from tierfed.algorithms.jobfed_controller import Controller
from tierfed.engine.base import Engine
from tierfed.plan import Plan
from tierfed.settings import part
from tierfed.task import Task
from tierfed.testing.toy import ENGINES, cloud, half_square, make_engine, numbers, quad, run
from tierfed.topology import TopologySettings

kinds = pytest.mark.parametrize("kind", ENGINES)
LOSS = st.floats(1e-3, 1e3)
FIRST = (-1.0, -1.0)


def after(alpha: float, new: tuple[float, float], old: tuple[float, float], **options: Any) -> float:
    """alpha after losses (J_g, J_l)."""
    return part(Controller, JobFed(**options))(*numbers(alpha, *new, *old)).item()


def test_T12_the_numbers_of_the_specification() -> None:
    """p = 1.5 / 2.4 = .625, dJ_g = -.25, dJ_l = -.4375, q = 7/11, R = .6306818182."""
    new, old = (1.5, 0.9), (2.0, 1.6)
    assert after(0.5, new, old) == pytest.approx(0.4869318182, abs=1e-10)
    assert after(0.5, new, old) == pytest.approx(0.5 - 0.1 * ((0.625 + 7 / 11) / 2 - 0.5), abs=1e-15)
    assert after(0.5, new, old, change_share="global") == pytest.approx(0.5005681818, abs=1e-10)
    assert after(0.5, new, old, change_share="global") == pytest.approx(
        0.5 - 0.1 * ((0.625 + 4 / 11) / 2 - 0.5), abs=1e-15
    )


@settings(max_examples=25, deadline=None)
@given(alpha=st.floats(0.2, 0.8), jg=LOSS, jl=LOSS, old=st.tuples(LOSS, LOSS))
def test_T12_beta_one_is_scale_free_gradient_descent_on_the_joint_loss(
    alpha: float, jg: float, jl: float, old: tuple[float, float]
) -> None:
    want = alpha - 0.1 * (jg - jl) / (2 * (jg + jl))
    assert after(alpha, (jg, jl), old, beta=1.0) == pytest.approx(want, abs=1e-12)


@settings(max_examples=25, deadline=None)
@given(jg=LOSS, jl=LOSS, old=st.tuples(LOSS, LOSS), factor=st.floats(1e-2, 1e2))
def test_the_controller_does_not_see_the_unit_of_the_loss(
    jg: float, jl: float, old: tuple[float, float], factor: float
) -> None:
    scaled = after(0.5, (factor * jg, factor * jl), (factor * old[0], factor * old[1]), delta=0.0)
    assert scaled == pytest.approx(after(0.5, (jg, jl), old, delta=0.0), abs=1e-9)


@pytest.mark.parametrize(
    ("options", "want"),
    [
        ({"eta": 0.3}, 0.5 - 0.3 * ((0.625 + 7 / 11) / 2 - 0.5)),
        ({"eta": 0.0}, 0.5),
        ({"gamma": 0.2}, 0.5 - 0.1 * ((0.625 + 7 / 11) / 2 - 0.2)),
        ({"beta": 0.0}, 0.5 - 0.1 * (7 / 11 - 0.5)),
        ({"beta": 0.25}, 0.5 - 0.1 * (0.25 * 0.625 + 0.75 * 7 / 11 - 0.5)),
        ({"delta": 0.4374}, 0.5 - 0.1 * ((0.625 + 7 / 11) / 2 - 0.5)),
        ({"delta": 0.4376}, 0.5 - 0.1 * ((0.625 + 0.5) / 2 - 0.5)),
        ({"delta": 0.5, "gamma": 0.2}, 0.5 - 0.1 * ((0.625 + 0.2) / 2 - 0.2)),
        ({"alpha_rule": "fixed"}, 0.5),
        ({"alpha_rule": "gradient"}, 0.5 - 0.1 * (1.5 - 0.9)),
        ({"alpha_rule": "gradient", "eta": 2.0}, 0.0),
        ({"alpha_rule": "gradient", "eta": 2.0, "alpha_min": 0.1}, 0.1),
        ({"alpha_rule": "gradient", "eta": 2.0, "alpha_max": 0.05}, 0.0),
        ({"eta": 1.0, "gamma": 1.0, "alpha_max": 0.7}, 0.7),
    ],
)
def test_T12_constants(options: dict[str, Any], want: float) -> None:
    assert after(0.5, (1.5, 0.9), (2.0, 1.6), **options) == pytest.approx(want, abs=1e-14)


def test_T12_the_first_measurement_has_no_change() -> None:
    assert after(0.5, (1.5, 0.9), FIRST) == pytest.approx(0.5 - 0.1 * 0.5 * 0.125, abs=1e-15)
    assert after(0.5, (1.5, 0.9), FIRST, gamma=0.3) == pytest.approx(0.5 - 0.1 * ((0.625 + 0.3) / 2 - 0.3), abs=1e-15)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("rule", ["controller", "gradient"])
def test_T12_a_loss_that_is_no_number_changes_nothing(bad: float, rule: str) -> None:
    assert after(0.4, (bad, 0.9), (2.0, 1.6), alpha_rule=rule) == 0.4
    assert after(0.4, (1.5, bad), (2.0, 1.6), alpha_rule=rule) == 0.4


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_T12_after_a_loss_that_is_no_number_the_change_is_neutral(bad: float) -> None:
    for old in ((bad, 1.6), (2.0, bad), (bad, bad)):
        assert after(0.5, (1.5, 0.9), old) == pytest.approx(0.5 - 0.1 * 0.5 * 0.125, abs=1e-15)


def test_T12_losses_of_zero_are_neutral() -> None:
    assert after(0.5, (0.0, 0.0), FIRST) == 0.5
    assert after(0.5, (0.0, 0.0), (0.0, 0.0)) == 0.5
    assert after(0.5, (1.0, 0.0), (1.0, 0.0), beta=1.0) == 0.45  # p = 1


@dataclass
class World:
    """QUAD with one number: optima, what devices are judged on, samples, teams."""

    a: tuple[float, ...] = (-2.0, 0.0, 1.0, 5.0)
    held: tuple[float, ...] = (-1.0, 0.5, 3.0, 4.0)
    sizes: tuple[int, ...] = (1, 2, 3, 2)
    teams: tuple[int, ...] = (0, 1, 0, 1)
    lr: float = 0.25
    epochs: int = 2
    alpha: float = 0.6
    mu: float = 0.8


def next_alpha(alpha: float, new: tuple[float, float], old: tuple[float, float] | None) -> float:
    """The controller with its defaults, in numbers."""
    p, q = new[0] / (new[0] + new[1]), 0.5
    if old is not None:
        dg, dl = abs(new[0] - old[0]) / old[0], abs(new[1] - old[1]) / old[1]
        q = dl / (dg + dl) if max(dg, dl) >= 0.01 else 0.5
    return min(1.0, max(0.0, alpha - 0.1 * ((p + q) / 2 - 0.5)))


def by_hand(w: World, effect: str, scope: str, rounds: int, team_rounds: int) -> dict[str, Any]:
    """Rounds of the specification for one number: what the cloud, devices and holders of alpha have at the end."""
    n = len(w.a)
    holder = {"device": list(range(n)), "team": list(w.teams), "global": [0] * n}[scope]
    alpha, old = [w.alpha] * (max(holder) + 1), [None] * (max(holder) + 1)
    x, own, jg, jl = 0.0, [0.0] * n, [0.0] * n, [0.0] * n

    def mean(values: list[float], ids: list[int]) -> float:
        return sum(w.sizes[i] * values[i] for i in ids) / sum(w.sizes[i] for i in ids)

    def turn(k: int, ids: list[int]) -> None:
        new: Any = (mean(jg, ids), mean(jl, ids))
        alpha[k], old[k] = next_alpha(alpha[k], new, old[k]), new

    for _ in range(rounds):
        received = [x] * n
        for _ in range(team_rounds):
            for i in range(n):
                al, down = alpha[holder[i]], received[i]
                jg[i] = (down - w.held[i]) ** 2 / 2
                theta = al * down + (1 - al) * own[i] if effect == "np_mix" else down
                for _ in range(w.epochs):
                    theta -= w.lr * (theta - w.a[i] + (al * w.mu * (theta - down) if effect == "prox" else 0.0))
                own[i], jl[i] = theta, (theta - w.held[i]) ** 2 / 2
            if scope != "global":
                for k in range(len(alpha)):
                    turn(k, [i for i in range(n) if holder[i] == k])
            received = [mean(own, [j for j in range(n) if w.teams[j] == w.teams[i]]) for i in range(n)]
        if scope == "global":
            turn(0, list(range(n)))
        x = mean(own, list(range(n)))
    return {"x": x, "own": own, "alpha": alpha, "jg": mean(jg, list(range(n))), "jl": mean(jl, list(range(n)))}


def engine_of(kind: str, w: World, team_rounds: int = 1, **options: Any) -> Engine:
    task, plan = quad(w.a, held=w.held, sizes=w.sizes)
    algorithm = JobFed(
        lr=w.lr, epochs=w.epochs, alpha=w.alpha, mu=w.mu, private_set="none", recluster_every=0, **options
    )
    tree = TopologySettings(fogs=2, teams="natural", team_rounds=team_rounds)
    return make_engine(kind, algorithm, task, plan, tree, natural=w.teams)


def alphas(engine: Engine, scope: str) -> list[float]:
    """alpha where the scope holds it."""
    match scope:
        case "device":
            return [engine.own(i)["alpha"].item() for i in range(engine.topology.devices)]
        case "team":
            return [engine.kept(1, k)["alpha"].item() for k in range(engine.topology.nodes[1])]
    return [engine.kept(0, 0)["alpha"].item()]


@kinds
@pytest.mark.parametrize("team_rounds", [1, 2])
@pytest.mark.parametrize("scope", ["device", "team", "global"])
@pytest.mark.parametrize("effect", ["np_mix", "none", "prox"])
def test_scopes_and_effects(kind: str, effect: str, scope: str, team_rounds: int) -> None:
    w = World()
    engine = run(engine_of(kind, w, team_rounds, alpha_effect=effect, alpha_scope=scope), 3)
    want = by_hand(w, effect, scope, 3, team_rounds)
    assert cloud(engine)["w"].item() == pytest.approx(want["x"], abs=1e-12)
    assert [engine.own(i)["own"]["w"].item() for i in range(4)] == pytest.approx(want["own"], abs=1e-12)
    assert alphas(engine, scope) == pytest.approx(want["alpha"], abs=1e-12)
    assert engine.kept(0, 0)["jg"].item() == pytest.approx(want["jg"], abs=1e-12)
    assert engine.kept(0, 0)["jl"].item() == pytest.approx(want["jl"], abs=1e-12)


def test_the_recursion_above_tells_scopes_and_effects_apart() -> None:
    ends = [by_hand(World(), e, s, 3, 2) for e in ("np_mix", "none", "prox") for s in ("device", "team", "global")]
    assert len({tuple(np.round(end["own"], 9)) for end in ends}) == 7  # "none": alpha changes nothing but itself
    assert len({tuple(np.round(end["alpha"], 9)) for end in ends}) == 9


@kinds
def test_one_round_of_the_mixture_by_hand(kind: str) -> None:
    """a = (0, 4), lr 1/2, judged on a. From x = 8: theta = (4, 6), J_g = (32, 8), J_l = (8, 2), p = 4/5 for both.

    alpha = 1/2 - (1/10)(1/2)(4/5 - 1/2) = .485; x = 5. Round 1: device 0 mixes .485 * 5 + .515 * 4 = 4.485, halves it.
    """
    task, plan = quad([0.0, 4.0], start=[8.0])
    engine = run(make_engine(kind, JobFed(lr=0.5, private_set="none"), task, plan), 1)
    assert [engine.own(i)["alpha"].item() for i in range(2)] == pytest.approx([0.485, 0.485], abs=1e-15)
    assert [engine.own(i)["jg"].item() for i in range(2)] == pytest.approx([32.0, 8.0], abs=1e-13)
    assert [engine.own(i)["jl"].item() for i in range(2)] == pytest.approx([8.0, 2.0], abs=1e-13)
    run(engine, 1)
    assert engine.own(0)["own"]["w"].item() == pytest.approx(4.485 / 2, abs=1e-14)


@kinds
def test_a_team_s_alpha_in_a_flat_tree_is_the_cloud_s(kind: str) -> None:
    task, plan = quad([0.0, 4.0], start=[8.0])
    engine = run(make_engine(kind, JobFed(lr=0.5, private_set="none", alpha_scope="team"), task, plan), 1)
    # J_g = (32 + 8) / 2, J_l = (8 + 2) / 2: p = 4/5
    assert engine.kept(0, 0)["alpha"].item() == pytest.approx(0.485, abs=1e-15)


@kinds
def test_the_first_alpha_is_the_setting_s(kind: str) -> None:
    for scope in ("device", "team", "global"):
        engine = run(engine_of(kind, World(alpha=0.3), alpha_scope=scope, alpha_rule="fixed"), 2)
        assert set(alphas(engine, scope)) == {0.3}


@kinds
def test_devices_that_were_not_heard_do_not_move_a_team_s_alpha(kind: str) -> None:
    """One of two devices is polled per fog: the team's losses are the losses of the one that answered."""
    w = World(sizes=(2, 2, 2, 2))
    task, plan = quad(w.a, held=w.held)
    algorithm = JobFed(lr=0.5, alpha_scope="team", private_set="none", recluster_every=0)
    tree = TopologySettings(fogs=2, teams="natural", participation=1)
    engine = make_engine(kind, algorithm, task, plan, tree, natural=w.teams)
    polled = [i for burst in engine.step().bursts if burst.depth == 1 for i in burst.kids.tolist()]
    for k in range(2):
        (i,) = [i for i in polled if w.teams[i] == k]
        jg, jl = w.held[i] ** 2 / 2, (w.a[i] / 2 - w.held[i]) ** 2 / 2
        want = 0.5 - 0.1 * 0.5 * (jg / (jg + jl) - 0.5)
        assert engine.kept(1, k)["alpha"].item() == pytest.approx(want, abs=1e-14)


def regression(sigma: float, seed: int) -> tuple[Task, Plan]:
    """20 devices with w_i = w_0 + sigma N(0, I) in ten dimensions, 15 + 15 samples each, noise one half."""
    rng = np.random.default_rng([seed, 17])
    w = rng.normal(size=10) + sigma * rng.normal(size=(20, 10))
    x = rng.normal(size=(20, 30, 10))
    y = np.einsum("nmd,nd->nm", x, w) + 0.5 * rng.normal(size=(20, 30))
    net = nn.Linear(10, 1, bias=False, dtype=torch.float64)
    nn.init.zeros_(net.weight)
    rows = np.arange(600).reshape(20, 30)
    plan = Plan(
        x=torch.from_numpy(x.reshape(600, 10)),
        y=torch.from_numpy(y.reshape(600, 1)),
        train=list(rows[:, :15]),
        held=list(rows[:, 15:]),
        batch=None,
        dtype=torch.float64,
    )
    return Task(net, half_square), plan


def test_T17_alpha_falls_with_heterogeneity() -> None:
    """Five full-batch steps of .05 per round, 150 rounds, the default rule."""
    algorithm = JobFed(lr=0.05, epochs=5, private_set="none", recluster_every=0)
    ends = []
    for sigma in (0.0, 0.3, 1.0):
        engine = run(make_engine("vectorized", algorithm, *regression(sigma, 0)), 150)
        ends.append(float(np.mean(alphas(engine, "device"))))
    assert ends[0] > 0.4
    assert ends[2] < 0.1
    assert ends == sorted(ends, reverse=True)
