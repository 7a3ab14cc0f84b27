"""PerMFL on QUAD: the step by hand, the fixed point of the three coupled levels, and its limits."""

from typing import Any

import numpy as np
import pytest

from tierfed.algorithms.permfl import PerMFL
from tierfed.algorithms.pfedme import PFedMe
from tierfed.engine.base import Engine
from tierfed.engine.evaluate import models
from tierfed.errors import InputError
from tierfed.testing.toy import ENGINES, cloud, gap, make_engine, quad, run, toy_plan, toy_task
from tierfed.topology import TopologySettings

A = [-2.0, 1.0, 0.0, 5.0]
TEAMS = [0, 1, 0, 1]
SIZES = [1, 2, 3, 4]  # means are uniform all the same
kinds = pytest.mark.parametrize("kind", ENGINES)


def engine_of(kind: str, algorithm: PerMFL, start: float, rounds: int, team_rounds: int = 1, **tree: Any) -> Engine:
    task, plan = quad(A, start=[start], sizes=SIZES)
    settings = TopologySettings(**{"fogs": 2, "teams": "natural", "team_rounds": team_rounds, **tree})
    engine = make_engine(kind, algorithm, task, plan, settings, natural=TEAMS)
    return run(engine, rounds)


def by_hand(
    x: float, rounds: int, team_rounds: int, steps: int, device_lam: float, team_lam: float
) -> tuple[float, list[float], list[float]]:
    """x, w_i, theta_ij of Algorithm 1 with alpha = 0.1, eta = 0.4, gamma = 1.5, beta = 0.6."""
    w, theta = [x, x], [x] * 4
    for _ in range(rounds):
        w = [x, x]
        for _ in range(team_rounds):
            for j, a in enumerate(A):
                theta[j] = w[TEAMS[j]]
                for _ in range(steps):
                    theta[j] -= 0.1 * (theta[j] - a + device_lam * (theta[j] - w[TEAMS[j]]))
            means = [(theta[0] + theta[2]) / 2, (theta[1] + theta[3]) / 2]
            a, b = 0.4 * team_lam, 0.4 * 1.5
            w = [(1 - a - b) * w[i] + b * x + a * means[i] for i in range(2)]
        x = (1 - 0.6 * 1.5) * x + 0.6 * 1.5 * (w[0] + w[1]) / 2
    return x, w, theta


@kinds
def test_T24_one_step_by_hand(kind: str) -> None:
    """From 3: theta = 2.5, 2.8, 2.7, 3.2; w = 3 + 0.2 (2.6 - 3), 3 + 0.2 (3 - 3); x = 3 + 0.9 (2.96 - 3)."""
    algorithm = PerMFL(lr=0.1, steps=1, lam=0.5, gamma=1.5, eta=0.4, beta=0.6)
    engine = engine_of(kind, algorithm, 3.0, 1)
    assert [engine.own(i)["theta"]["w"].item() for i in range(4)] == pytest.approx([2.5, 2.8, 2.7, 3.2], abs=1e-14)
    assert [engine.kept(1, k)["params"]["w"].item() for k in range(2)] == pytest.approx([2.92, 3.0], abs=1e-14)
    assert cloud(engine)["w"].item() == pytest.approx(2.964, abs=1e-14)
    assert [engine.own(i)["tie"].item() for i in range(4)] == pytest.approx([0.5, 0.2, 0.3, 0.2], abs=1e-14)
    assert [engine.kept(1, k)["tie"].item() for k in range(2)] == pytest.approx([0.08, 0.0], abs=1e-14)
    mine, *_ = models(engine, np.arange(4), post=False)
    assert mine.team is not None
    assert (mine.personal_pre["w"].item(), mine.team["w"].item()) == pytest.approx((2.5, 2.92), abs=1e-14)


@kinds
@pytest.mark.parametrize(
    ("changes", "device_lam", "team_lam"),
    [({}, 0.5, 0.5), ({"code_compat_lambda": True}, 3.0, 0.5), ({"lambda_team": 0.8}, 0.5, 0.8)],
)
def test_T24_two_rounds_of_two_team_rounds_of_three_steps(
    kind: str, changes: dict[str, Any], device_lam: float, team_lam: float
) -> None:
    """code_compat_lambda: the devices' lam is L = 3; lambda_team: the teams have their own."""
    algorithm = PerMFL(lr=0.1, steps=3, lam=0.5, gamma=1.5, eta=0.4, beta=0.6, **changes)
    engine = engine_of(kind, algorithm, 3.0, 2, 2)
    x, w, theta = by_hand(3.0, 2, 2, 3, device_lam, team_lam)
    assert cloud(engine)["w"].item() == pytest.approx(x, abs=1e-13)
    assert [engine.kept(1, k)["params"]["w"].item() for k in range(2)] == pytest.approx(w, abs=1e-13)
    assert [engine.own(i)["theta"]["w"].item() for i in range(4)] == pytest.approx(theta, abs=1e-13)


@kinds
def test_T20_the_fixed_point(kind: str) -> None:
    """lr = 1 / (1 + lam) is the exact proximal point. c = lam / (1 + lam) = 1/3: w = (gamma x + c abar) / (gamma + c),
    theta = (a + lam w) / (1 + lam), x = 1; eight team rounds leave r^8 = (1 - eta (c + gamma))^8 of w's error."""
    algorithm = PerMFL(lr=1 / 1.5, steps=1, lam=0.5, gamma=1.5, eta=0.5, beta=0.5)
    engine = engine_of(kind, algorithm, 1.0, 1, 8)
    assert cloud(engine)["w"].item() == pytest.approx(1.0, abs=1e-14)
    assert [engine.kept(1, k)["params"]["w"].item() for k in range(2)] == pytest.approx([7 / 11, 15 / 11], abs=1e-8)
    want = [-1.1212121212, 1.1212121212, 0.2121212121, 3.7878787879]
    assert [engine.own(i)["theta"]["w"].item() for i in range(4)] == pytest.approx(want, abs=1e-7)


@kinds
def test_T20_from_elsewhere_x_approaches_it(kind: str) -> None:
    """x - 1 shrinks by 1 - beta gamma (1 - r^K) c / (gamma + c) a round, r = 1 - eta (c + gamma) = 1/12, K = 2."""
    algorithm = PerMFL(lr=1 / 1.5, steps=1, lam=0.5, gamma=1.5, eta=0.5, beta=0.5)
    engine = engine_of(kind, algorithm, 5.0, 3, 2)
    factor = 1 - 0.75 * (1 - 1 / 144) * 2 / 11
    assert cloud(engine)["w"].item() == pytest.approx(1 + 4 * factor**3, abs=1e-13)


@kinds
def test_T21_hierfavg_is_a_limit(kind: str) -> None:
    """lam = e, gamma = e^2, eta = 1 / (lam + gamma), beta = 1 / gamma, e -> 0; the error is O(e)."""
    rho = 0.9 ** (2 * 3)
    error = []
    for e in (1e-3, 1e-4, 1e-5):
        algorithm = PerMFL(lr=0.1, steps=2, lam=e, gamma=e**2, eta=1 / (e + e**2), beta=1 / e**2)
        x = cloud(engine_of(kind, algorithm, 3.0, 1, 3))["w"].item()
        error.append(abs(x - (rho * 3.0 + (1 - rho) * 1.0)))
    assert error[0] / error[1] == pytest.approx(10, rel=0.1)
    assert error[1] / error[2] == pytest.approx(10, rel=0.1)
    assert error[2] < 1e-4


@kinds
def test_T22_without_lambda_devices_start_at_x_and_x_never_moves(kind: str) -> None:
    engine = engine_of(kind, PerMFL(lr=0.1, steps=2, lam=0.0), 3.0, 3, 2)
    assert [engine.kept(1, k)["params"]["w"].item() for k in range(2)] == [3.0, 3.0]
    assert cloud(engine)["w"].item() == 3.0
    want = [a + 0.9**2 * (3.0 - a) for a in A]
    assert [engine.own(i)["theta"]["w"].item() for i in range(4)] == pytest.approx(want, abs=1e-14)


@kinds
def test_T23_without_gamma_x_is_frozen(kind: str) -> None:
    engine = engine_of(kind, PerMFL(lr=0.1, steps=2, gamma=0.0, eta=1.0), 3.0, 3, 2)
    assert cloud(engine)["w"].item() == 3.0
    assert abs(engine.kept(1, 0)["params"]["w"].item() - 3.0) > 0.1


@kinds
def test_a_level_between_cloud_and_teams_is_coupled_by_gamma_to_both_sides(kind: str) -> None:
    """eta = 0.3: w = 3 + 0.15 (2.6 - 3) = 2.94 and 3; v = 3 + 0.45 (w - 3) = 2.973 and 3; x = 3 + 0.9 (mean - 3)."""
    algorithm = PerMFL(lr=0.1, steps=1, lam=0.5, gamma=1.5, eta=0.3, beta=0.6)
    engine = engine_of(kind, algorithm, 3.0, 1, fogs=(2, 2))
    assert [engine.kept(2, k)["params"]["w"].item() for k in range(2)] == pytest.approx([2.94, 3.0], abs=1e-14)
    assert [engine.kept(1, k)["params"]["w"].item() for k in range(2)] == pytest.approx([2.973, 3.0], abs=1e-14)
    assert cloud(engine)["w"].item() == pytest.approx(2.98785, abs=1e-14)


@kinds
def test_a_silent_team_is_left_out_or_counts_as_unchanged(kind: str) -> None:
    """w = (2.92, 3.0) from 3; x = 3 + 0.9 (w_heard - 3), times 1/2 where the mean is over all."""
    algorithm = PerMFL(lr=0.1, steps=1, lam=0.5, gamma=1.5, eta=0.4, beta=0.6)
    for over, share in (("active", 1.0), ("all", 0.5)):
        polled = set()
        for seed in range(4):
            task, plan = quad(A, start=[3.0])
            settings = TopologySettings(fogs=2, teams="natural", participation=(1, 1.0), over=over)  # type: ignore[arg-type]
            engine = make_engine(kind, algorithm, task, plan, settings, natural=TEAMS, seed=seed)
            (k,) = engine.topology.poll(0, 0, 0, 0).tolist()
            polled.add(k)
            w = (2.92, 3.0)[k]
            assert cloud(run(engine, 1))["w"].item() == pytest.approx(3.0 + 0.9 * share * (w - 3.0), abs=1e-14)
        assert polled == {0, 1}


@kinds
def test_flat_is_pfedme_with_one_batch(kind: str) -> None:
    """beta is then pFedMe's eta, and L its inner steps."""
    task, plan = toy_task(norm=False), toy_plan(batch=None)
    flat = run(make_engine(kind, PerMFL(lr=0.1, steps=3, lam=2.0, beta=0.3), task, plan), 3)
    pfedme = run(make_engine(kind, PFedMe(lr=0.1, inner=3, lam=2.0, eta=0.3), task, plan), 3)
    assert gap(cloud(flat), cloud(pfedme)) < 1e-13
    assert gap(flat.own(3)["theta"], pfedme.own(3)["theta"]) < 1e-13


@pytest.mark.parametrize(
    ("settings", "message"), [({"beta": 1.0}, "wanted beta <= 0.666667"), ({"eta": 0.6}, "wanted eta <= 0.5")]
)
def test_steps_beyond_the_mean_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        PerMFL(**settings).tiers(toy_task(), (1, 2, 4))  # type: ignore[arg-type]
