"""JobFed's stopping rules (T-14): Eq. 5-7 on given losses at the cloud's tier, and through an engine."""

from collections.abc import Iterable
from typing import Any

import pytest
import torch

from tierfed.algorithms.jobfed import JobFed
from tierfed.settings import part
from tierfed.stopping import Stopping
from tierfed.testing.toy import ENGINES, gap, info, make_engine, numbers, quad, run

kinds = pytest.mark.parametrize("kind", ENGINES)
FAR = 50.0  # a personal loss that is never near the global one


def states(losses: Iterable[tuple[float, float]], **options: Any) -> list[dict[str, Any]]:
    """The cloud after each round with losses (J_g, J_l), and what it says."""
    task, _ = quad([1.0, 2.0])
    tier = JobFed(**{"patience": 1, "min_rounds": 0, **options}).tiers(task, (1, 2))[0]
    kept, out = tier.init(task.init()), []
    for round_, (jg, jl) in enumerate(losses):
        up = {"params": task.init(), **dict(zip(("jg", "jl"), numbers(jg, jl), strict=True))}
        kept = tier.absorb(kept, up, info(round_=round_))
        numbers_ = {k: float(v) for k, v in kept.items() if isinstance(v, torch.Tensor)}
        out.append({**numbers_, "stop": tier.stop(kept)})
    return out


def first(losses: Iterable[tuple[float, float]], **options: Any) -> tuple[int, str]:
    """(rounds until the rule fires, "normal" or "early"), (0, "") if it never does."""
    for i, state in enumerate(states(losses, **options)):
        if state["stop"]:
            return i + 1, str(state["stop"]).split()[0]
    return 0, ""


def geometric(rho: float, rounds: int = 40) -> list[tuple[float, float]]:
    """J_g = 1 + rho^t."""
    return [(1.0 + rho**t, FAR + t) for t in range(rounds)]


@pytest.mark.parametrize("units", ["relative", "absolute"])
@pytest.mark.parametrize(
    ("rho", "want"),
    [(0.8, (0, "")), (0.02, (0, "")), (0.005, (3, "early")), (1.0, (3, "early"))],
)
def test_T14_early_stop_on_a_geometric_loss(units: str, rho: float, want: tuple[int, str]) -> None:
    """Successive differences have the ratio rho; relative ones rho (1 + rho^(t-1)) / (1 + rho^t), at most 2 rho."""
    rounds = 8 if rho == 0.02 else 40  # later differences are below float64's resolution at 1
    assert first(geometric(rho, rounds), stop_units=units) == want


def test_T14_a_loss_that_falls_to_zero_geometrically_never_stops_early() -> None:
    """Relative changes are constant, so their ratio is one."""
    assert first([(0.8**t, FAR) for t in range(60)]) == (0, "")


@pytest.mark.parametrize(
    ("patience", "min_rounds", "want"), [(1, 0, 3), (3, 0, 5), (3, 10, 10), (9, 10, 11), (1, 1, 3)]
)
def test_T14_patience_and_min_rounds(patience: int, min_rounds: int, want: int) -> None:
    """A constant loss: the rule holds from round 3 on, the first with two differences."""
    losses = [(1.0, FAR)] * 20
    assert first(losses, stopping="early", patience=patience, min_rounds=min_rounds) == (want, "early")


def test_T14_patience_counts_rounds_in_a_row() -> None:
    """Differences: 1, 0 (holds), 1, .001 (holds), 0 (holds), 0 (holds): three in a row after round 7."""
    jg = [2.0, 3.0, 3.0, 4.0, 4.001, 4.001, 4.001]
    options: dict[str, Any] = {"stop_units": "absolute", "stopping": "early", "patience": 3}
    assert first([(g, FAR) for g in jg], **options) == (7, "early")
    assert [s["early"] for s in states([(g, FAR) for g in jg], **options)] == [0, 0, 1, 0, 1, 2, 3]


def test_T14_theta_r_is_the_ratio_that_counts() -> None:
    losses = geometric(0.5, 20)
    for theta_r, want in ((0.49, 0), (0.51, 3)):
        assert first(losses, theta_r=theta_r, stop_units="absolute", stopping="early")[0] == want
    assert first([(1.0, FAR)] * 5, theta_r=0.0) == (3, "early")  # 0 <= 0, from the second difference on


def test_zeta_by_hand() -> None:
    """zeta is the first |dJ_g|, then kappa zeta + (1 - kappa) |dJ_g|.

    Absolute |dJ_g| = 1, 1/2, 1/4: 1, .8 + .1, .72 + .05; relative: 1/2 each time.
    """
    losses = [(2.0, 1.0), (1.0, 1.0), (0.5, 1.0), (0.25, 1.0)]
    for units, want in (("absolute", [-1, 1, 0.9, 0.77]), ("relative", [-1, 0.5, 0.5, 0.5])):
        out = states(losses, kappa=0.8, stop_units=units)
        assert [s["zeta"] for s in out] == pytest.approx(want, abs=1e-15)
    assert [s["dg"] for s in states(losses, stop_units="absolute")] == [-1, 1, 0.5, 0.25]


NEAR = [(2.0, 1.0), (1.5, 1.0), (1.4995, 1.0)]


@pytest.mark.parametrize(
    ("options", "want"),
    [
        # |dJ_g| = .0005 / 1.5 <= .001, dJ_l = 0; zeta = .9 * .25 + .1 * .00033 = .22503 >= .4995 / 2.4995 = .19984
        ({}, (3, "normal")),
        ({"stopping": "normal"}, (3, "normal")),
        # zeta = .9 * .5 + .1 * .0005 = .45005 < .4995; but .0005 <= .01 * .5: the other rule
        ({"stop_units": "absolute"}, (3, "early")),
        ({"stop_units": "absolute", "stopping": "normal"}, (0, "")),
        # zeta = .75 * .25 + .25 * .00033 = .18758 < .19984
        ({"kappa": 0.75, "stopping": "normal"}, (0, "")),
        ({"epsilon": 3.4e-4, "stopping": "normal"}, (3, "normal")),
        ({"epsilon": 3.3e-4, "stopping": "normal"}, (0, "")),
        ({"stopping": "normal", "patience": 2}, (0, "")),
        ({"stopping": "normal", "min_rounds": 4}, (0, "")),
        ({"stopping": "none"}, (0, "")),
    ],
)
def test_T14_normal_stop(options: dict[str, Any], want: tuple[int, str]) -> None:
    assert first(NEAR, **options) == want


def test_T14_normal_stop_asks_for_a_still_personal_loss_too() -> None:
    """J_l 1 -> .998: a change of .002 > epsilon; the gap .5015 / 2.4975 = .2008 is below zeta = .22503."""
    assert first([*NEAR[:2], (1.4995, 0.998)], stopping="normal") == (0, "")
    assert first([*NEAR[:2], (1.4995, 0.9991)], stopping="normal") == (3, "normal")


def test_T14_the_first_round_that_can_stop_normally_is_the_second() -> None:
    """Losses that have met and stand still: gap 0 <= zeta 0."""
    assert first([(1.0, 1.0)] * 5, stopping="normal") == (2, "normal")
    assert first([(1.0, 1.0)] * 5, stopping="early") == (3, "early")
    assert first([(0.0, 0.0)] * 5, stopping="both") == (2, "normal")


def test_a_loss_that_is_no_number_starts_the_measurement_again() -> None:
    nan = float("nan")
    out = states([(1.0, FAR), (1.0, FAR), (nan, FAR), (1.0, FAR), (1.0, FAR), (1.0, FAR)], stopping="early")
    assert [bool(s["stop"]) for s in out] == [False, False, False, False, False, True]


@kinds
@pytest.mark.parametrize(
    ("options", "rounds"),
    [
        ({}, 10),
        ({"min_rounds": 0}, 4),
        ({"min_rounds": 0, "patience": 1}, 2),
        ({"min_rounds": 0, "patience": 1, "stopping": "early"}, 3),
        ({"min_rounds": 0, "patience": 1, "stopping": "none"}, 0),
    ],
)
def test_T14_an_engine_whose_losses_stand_still_stops(kind: str, options: dict[str, Any], rounds: int) -> None:
    """All devices start at their optimum: both losses are 0 in every round. 0 rounds: it goes on."""
    task, plan = quad([1.0, 1.0], start=[1.0])
    engine = make_engine(kind, JobFed(private_set="none", **options), task, plan)
    while not engine.stopped() and engine.round < 12:
        run(engine, 1)
    assert (engine.round if engine.stopped() else 0) == rounds
    assert gap(engine.kept(0, 0)["jg"], torch.tensor(0.0)) == 0.0


def test_the_stopping_rules_know_what_is_not_measured_yet() -> None:
    """Nothing can hold in the first round, however loose the thresholds: a value of -1 is no loss."""
    rules = part(Stopping, JobFed(epsilon=1.0, theta_r=1.0, patience=1, min_rounds=0))
    task, _ = quad([1.0])
    state = rules.init(task.init())
    assert rules.reason(state) == ""
    assert [float(state[k]) for k in ("jg", "jl", "dg", "zeta")] == [-1.0] * 4
    state = rules.update(state, *numbers(3.0, 3.0))
    assert rules.reason(state) == ""
    assert [float(state[k]) for k in ("jg", "jl", "dg", "zeta", "rounds")] == [3.0, 3.0, -1.0, -1.0, 1.0]
