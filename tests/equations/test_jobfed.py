"""JobFed: its limits (T-10), its fixed point (T-11), a whole round in plain PyTorch, grouping (T-13), links (T-16)."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from tierfed.algorithms.fedavg import FedAvg
from tierfed.algorithms.jobfed import JobFed
from tierfed.algorithms.keep_local import KeepLocal
from tierfed.engine.base import Engine
from tierfed.engine.evaluate import models
from tierfed.errors import InputError
from tierfed.faults import Faults
from tierfed.models import build_model
from tierfed.plan import Plan
from tierfed.task import Task
from tierfed.testing.toy import (
    ENGINES,
    cloud,
    gap,
    make_engine,
    quad,
    records,
    run,
    toy_net,
    toy_plan,
    toy_settings,
    toy_task,
    toy_teams,
)
from tierfed.topology import TopologySettings
from tierfed.tree import Params, take

kinds = pytest.mark.parametrize("kind", ENGINES)
FIXED: dict[str, Any] = {"alpha_rule": "fixed"}
NORM = ["1.weight", "1.bias", "1.running_mean", "1.running_var"]
REST = ["0.weight", "0.bias", "3.weight", "3.bias"]


def toy(kind: str, algorithm: Any, settings: TopologySettings, rounds: int = 3, **more: Any) -> Engine:
    return run(make_engine(kind, algorithm, toy_task(), toy_plan(), settings, **more), rounds)


def own(engine: Engine, device: int, keys: list[str]) -> Params:
    return take(engine.own(device)["own"], keys)


@kinds
@pytest.mark.parametrize("fogs", [0, 1])
def test_T10_all_weight_on_the_global_part_is_mtfl_bit_by_bit(kind: str, fogs: int) -> None:
    settings, faults = TopologySettings(fogs=fogs, participation=0.5), Faults(loss=0.2, dropout=0.1)
    ours = toy(kind, JobFed(alpha=1.0, **FIXED), settings, faults=faults)
    mtfl = toy(kind, KeepLocal(private="usyb"), settings, faults=faults)
    assert gap(take(cloud(ours), REST), cloud(mtfl)) == 0.0
    assert ours.store.ids("own") == mtfl.store.ids("own")
    for i in ours.store.ids("own"):
        assert gap(own(ours, i, NORM), mtfl.own(i)["own"]) == 0.0


@kinds
@pytest.mark.parametrize("tree", ["3 tiers", "4 tiers"])
def test_T10_with_several_fogs_it_is_mtfl_to_rounding(kind: str, tree: str) -> None:
    settings = toy_settings(participation=0.5)[tree]
    ours, mtfl = toy(kind, JobFed(alpha=1.0, recluster_every=0, **FIXED), settings), toy(kind, KeepLocal(), settings)
    assert gap(take(cloud(ours), REST), cloud(mtfl)) < 1e-13


@kinds
@pytest.mark.parametrize("team_rounds", [1, 2])
def test_T10_without_a_private_part_it_is_hierfavg(kind: str, team_rounds: int) -> None:
    algorithm = JobFed(alpha=1.0, private_set="none", recluster_every=0, **FIXED)
    settings = toy_settings(participation=0.5, team_rounds=team_rounds)["3 tiers"]
    ours, hier = toy(kind, algorithm, settings), toy(kind, FedAvg(edge=True), settings)
    assert gap(cloud(ours), cloud(hier)) < 1e-13
    for k in range(4):
        assert gap(ours.kept(1, k)["params"], hier.kept(1, k)["params"]) < 1e-13


@kinds
@pytest.mark.parametrize(
    "changes", [{"alpha": 0.0, **FIXED}, {"private_set": "all"}, {"private_set": "none", "alpha": 0.0, **FIXED}]
)
def test_T10_no_weight_on_the_global_part_is_local_only_bit_by_bit(kind: str, changes: dict[str, Any]) -> None:
    settings = toy_settings(participation=0.5)["3 tiers"]
    ours = toy(kind, JobFed(recluster_every=0, **changes), settings)
    local = toy(kind, KeepLocal(private="all"), settings)
    for i in ours.store.ids("own"):
        assert gap(ours.own(i)["own"], local.own(i)["own"]) == 0.0


@kinds
@pytest.mark.parametrize("effect", ["none", "prox"])
def test_alpha_does_not_mix_under_other_effects(kind: str, effect: Any) -> None:
    """alpha = 0: no mixture and no pull; what is trained starts at the received NP, as in MTFL."""
    algorithm = JobFed(alpha=0.0, alpha_effect=effect, **FIXED)
    settings = toy_settings()["flat"]
    assert gap(take(cloud(toy(kind, algorithm, settings)), REST), cloud(toy(kind, KeepLocal(), settings))) < 1e-14


@kinds
def test_the_pull_of_the_proximal_effect_is_on_np_alone(kind: str) -> None:
    """Also when the device gets the whole global model to be judged by: its batch norm is not pulled there."""
    options: dict[str, Any] = {"alpha_effect": "prox", "mu": 5.0, "epochs": 2, **FIXED}
    settings = toy_settings()["flat"]
    part, full = (toy(kind, JobFed(global_loss=g, **options), settings) for g in ("device_np", "device_full"))
    assert gap(cloud(part), cloud(full)) == 0.0
    free = toy(kind, JobFed(**{**options, "mu": 0.0}), settings)
    assert gap(cloud(part), cloud(free)) > 1e-3


@kinds
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_T11_fixed_point_on_quad(kind: str, alpha: float) -> None:
    """x_i = [(1 - s) alpha mean a + s a_i] / [1 - (1 - s)(1 - alpha)] after training; the cloud is at mean a."""
    a, s = [-2.0, 0.0, 1.0, 5.0], 0.6
    task, plan = quad(a, start=[9.0])
    algorithm = JobFed(lr=s, alpha=alpha, private_set="none", **FIXED)
    settings = TopologySettings(fogs=2, teams="natural")
    engine = run(make_engine(kind, algorithm, task, plan, settings, natural=[0, 0, 1, 1]), 25)
    for i, a_i in enumerate(a):
        want = ((1 - s) * alpha * 1.0 + s * a_i) / (1 - (1 - s) * (1 - alpha))
        assert engine.own(i)["own"]["w"].item() == pytest.approx(want, abs=1e-8)
    assert cloud(engine)["w"].item() == pytest.approx(1.0, abs=1e-8)


class Reference:
    """One device of the round of the specification: a plain nn.Module, SGD, and numbers for alpha and the losses."""

    def __init__(self, plan: Plan, device: int, alpha: float) -> None:
        self.net, self.plan, self.device, self.alpha = toy_net(), plan, device, alpha
        self.losses: tuple[float, float] | None = None

    def judge(self) -> float:
        rows = torch.from_numpy(self.plan.held[self.device])
        with torch.no_grad():
            return float(cross_entropy(self.net.eval()(self.plan.x[rows]), self.plan.y[rows]))

    def visit(
        self, np_part: Params, algorithm: JobFed, round_: int, tick: int
    ) -> tuple[dict[str, Tensor], float, float]:
        state, mine = self.net.state_dict(), take(self.net.state_dict(), REST)
        mine = {k: v.clone() for k, v in mine.items()}
        self.net.load_state_dict({**state, **np_part})
        jg = self.judge()
        mixed = {k: self.alpha * np_part[k] + (1 - self.alpha) * mine[k] for k in REST}
        self.net.load_state_dict({**self.net.state_dict(), **mixed})
        optimizer = torch.optim.SGD(self.net.train().parameters(), lr=algorithm.lr)
        steps = -(-int(self.plan.samples[self.device]) // self.plan.width(self.device))
        for rows in self.plan.rows(self.device, 1, steps, round_, tick)[0]:
            optimizer.zero_grad()
            at = torch.from_numpy(rows)
            cross_entropy(self.net(self.plan.x[at]), self.plan.y[at]).backward()
            optimizer.step()
        jl = self.judge()
        p, q = jg / (jg + jl), 0.5
        if self.losses is not None:
            dg, dl = (abs(new - old) / old for new, old in zip((jg, jl), self.losses, strict=True))
            if max(dg, dl) >= 0.01:
                q = dl / (dg + dl)
        self.alpha = min(1.0, max(0.0, self.alpha - 0.1 * (0.5 * p + 0.5 * q - 0.5)))
        self.losses = (jg, jl)
        return {k: v.clone() for k, v in self.net.state_dict().items() if k in REST + NORM}, jg, jl


@kinds
@pytest.mark.parametrize("team_rounds", [1, 2])
def test_three_rounds_of_the_specification_in_plain_pytorch(kind: str, team_rounds: int) -> None:
    """Defaults (mixture, device scope, device_np), two teams, every team round on the team's own NP."""
    plan, teams = toy_plan(5, held=0.3), [0, 1, 0, 1, 1]
    algorithm = JobFed(recluster_every=0)
    settings = TopologySettings(fogs=2, teams="natural", team_rounds=team_rounds)
    engine = make_engine(kind, algorithm, toy_task(), plan, settings, natural=teams)
    devices = [Reference(plan, i, 0.5) for i in range(5)]
    weight = plan.samples.astype(float)
    mean: dict[str, Tensor] = {k: v for k, v in toy_net().state_dict().items() if k in REST + NORM}
    for round_ in range(3):
        run(engine, 1)
        team_mean, losses = [dict(mean), dict(mean)], np.zeros((5, 2))
        for tick in range(team_rounds):
            for team in range(2):
                ids = [i for i in range(5) if teams[i] == team]
                down = {k: team_mean[team][k] for k in REST}
                ups = {i: devices[i].visit(down, algorithm, round_, tick) for i in ids}
                share = {i: weight[i] / weight[ids].sum() for i in ids}
                team_mean[team] = {k: sum(share[i] * ups[i][0][k] for i in ids) for k in REST + NORM}
                for i in ids:
                    losses[i] = ups[i][1:]
        part = [weight[[i for i in range(5) if teams[i] == t]].sum() / weight.sum() for t in range(2)]
        mean = {k: part[0] * team_mean[0][k] + part[1] * team_mean[1][k] for k in REST + NORM}
        assert gap(cloud(engine), mean) < 1e-12
        for t in range(2):
            assert gap(engine.kept(1, t)["params"], team_mean[t]) < 1e-12
        for i in range(5):
            state = {k: v for k, v in devices[i].net.state_dict().items() if k in REST + NORM}
            assert gap(engine.own(i)["own"], state) < 1e-12
            assert engine.own(i)["alpha"].item() == pytest.approx(devices[i].alpha, abs=1e-12)
        jg, jl = (losses * weight[:, None]).sum(0) / weight.sum()
        assert engine.kept(0, 0)["jg"].item() == pytest.approx(jg, abs=1e-12)
        assert engine.kept(0, 0)["jl"].item() == pytest.approx(jl, abs=1e-12)
    assert len({round(d.alpha, 6) for d in devices}) == 5  # the rule had something to say to each of them


@kinds
def test_evaluated_models(kind: str) -> None:
    """global = (NP, mean P); team = the fog's; before training = (alpha NP + (1 - alpha) NP_i, P_i)."""
    engine = toy(kind, JobFed(), toy_settings(team_rounds=2)["3 tiers"], rounds=2)
    x = cloud(engine)
    for m in models(engine, np.arange(12)):
        mine = engine.own(m.device)
        alpha = mine["alpha"].item()
        mixed = {k: alpha * x[k] + (1 - alpha) * mine["own"][k] for k in REST}
        data = engine.plan.one(m.device, engine.algorithm, 2, 0)
        assert gap(m.global_model, x) == 0.0
        assert gap(m.team, engine.kept(1, int(engine.topology.parents[1][m.device]))["params"]) == 0.0
        assert gap(m.personal_pre, {**mine["own"], **mixed}) < 1e-14
        assert gap(m.personal_post, engine.tasks[0].train({**mine["own"], **mixed}, data, 0.1)) < 1e-13


@kinds
@pytest.mark.parametrize("recluster_every", [0, 1])
def test_T13_the_cloud_is_the_same_under_any_grouping(kind: str, recluster_every: int) -> None:
    algorithm = JobFed(recluster_every=recluster_every)
    settings = TopologySettings(fogs=4, teams="natural")
    first = toy(kind, algorithm, settings, natural=toy_teams())
    for shuffle in range(2):
        teams = np.random.default_rng(shuffle).permutation(toy_teams())
        other = toy(kind, algorithm, settings, natural=teams)
        assert gap(other.kept(0, 0), first.kept(0, 0)) < 1e-12
        assert gap({str(i): other.own(i) for i in range(12)}, {str(i): first.own(i) for i in range(12)}) < 1e-12


def test_T13_with_two_team_rounds_teams_matter() -> None:
    settings = TopologySettings(fogs=4, teams="natural", team_rounds=2)
    algorithm = JobFed(recluster_every=0)
    one = toy("vectorized", algorithm, settings, natural=toy_teams())
    two = toy("vectorized", algorithm, settings, natural=np.roll(toy_teams(), 1))
    assert gap(cloud(one), cloud(two)) > 1e-4


D, P, NP = 200_010, 800, 199_210  # floats of the EPFLU network with its statistics, of its batch norm, and of the rest


@pytest.mark.parametrize(
    ("changes", "up", "cloud_down", "fog_down", "team_rounds"),
    [
        ({}, D + 2, NP, NP, 1),
        ({}, D + 2, NP, NP, 3),
        ({"global_loss": "device_full"}, D + 2, D, D, 1),
        ({"p_model": "full"}, 2 * D + 2, NP, NP, 1),
        ({"alpha_scope": "team"}, D + 2, NP, NP + 1, 1),
        ({"alpha_scope": "global"}, D + 2, NP + 1, NP + 1, 1),
        ({"global_loss": "server_val"}, D + 2, NP + 1, NP + 1, 1),
        ({"private_set": "none"}, D + 2, D, D, 1),
        ({"private_set": "all"}, D + 2, 0, 0, 1),
        ({"private_set": "yb"}, D + 2, D - 400, D - 400, 1),
        ({"private_set": "us"}, D + 2, D - 400, D - 400, 1),
    ],
)
def test_T16_floats_per_link_of_the_epflu_network(
    changes: dict[str, Any], up: int, cloud_down: int, fog_down: int, team_rounds: int
) -> None:
    """Up: the model and two losses, at the fog as one mean with the share that measured them.

    Down: NP, and what a scope or the cloud's judge adds.
    """
    net = build_model("epflu_mlp", (784,), 10, {}, 0)
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.normal(size=(12, 784))).float()
    plan = Plan(
        x=x, y=torch.arange(12) % 10, train=list(np.arange(9).reshape(3, 3)), held=list(np.arange(9, 12)[:, None])
    )
    data = plan.one(0, JobFed(), 0, 0)
    task = Task(net, public=data.held)
    assert sum(t.numel() for t in task.init().values()) == D
    assert sum(task.init()[k].numel() for k in task.norm_keys()) == P
    settings = TopologySettings(fogs=2, teams="natural", team_rounds=team_rounds)
    engine = make_engine("vectorized", JobFed(**changes), task, plan, settings, natural=[0, 1, 1])
    assert engine.step().link_bytes() == {
        (0, "down"): 4 * 2 * cloud_down,
        (0, "up"): 4 * 2 * (up + 1),
        (1, "down"): 4 * 3 * fog_down * team_rounds,
        (1, "up"): 4 * 3 * up * team_rounds,
    }


def test_only_np_comes_down_and_everything_goes_up() -> None:
    task, plan = toy_task(), toy_plan()
    for changes, down, up in (
        ({}, REST, {"params", "jg", "jl"}),
        ({"global_loss": "device_full"}, task.keys, {"params", "jg", "jl"}),
        ({"p_model": "full"}, REST, {"params", "jg", "jl", "personal"}),
    ):
        algorithm = JobFed(**changes)  # type: ignore[arg-type]
        engine = run(make_engine("serial", algorithm, task, plan, toy_settings()["3 tiers"]), 1)
        state = engine.tiers[1].enter(engine.kept(1, 0), engine.tiers[0].send(engine.kept(0, 0), torch.tensor(0)))
        message = engine.tiers[1].send(state, torch.tensor(0))
        assert set(message["params"]) == set(down)
        reply, _ = algorithm.device(task, message, engine.own(0), plan.one(0, algorithm, 1, 0))
        assert set(reply) == up
        assert set(reply["params"]) == set(task.keys)
        if "personal" in reply:
            assert gap(reply["personal"], reply["params"]) == 0.0


def test_a_full_p_model_changes_the_traffic_and_nothing_else() -> None:
    settings = toy_settings(participation=0.5)["3 tiers"]
    one, full = (toy("vectorized", JobFed(p_model=p), settings) for p in ("private", "full"))
    assert gap({str(k): v for k, v in records(one).items()}, {str(k): v for k, v in records(full).items()}) == 0.0


@kinds
@pytest.mark.parametrize("judged", ["device_np", "device_full"])
def test_what_the_global_loss_is_measured_on(kind: str, judged: Any) -> None:
    """device_np: (NP, P_i), device_full: g* = (NP, mean P), in evaluation mode on the device's held-out samples."""
    engine = toy(kind, JobFed(global_loss=judged), toy_settings()["3 tiers"], rounds=1)
    task, x = engine.tasks[0], cloud(engine)
    before = [engine.own(i)["own"] for i in range(12)]
    run(engine, 1)
    for i in range(12):
        model = x if judged == "device_full" else {**x, **take(before[i], NORM)}
        want = task.measure(model, engine.plan.one(i, engine.algorithm, 1, 0).held)
        assert gap(engine.own(i)["jg"], want) < 1e-13


@kinds
def test_the_cloud_can_judge_the_global_model_itself(kind: str) -> None:
    """Public samples 3 and 5, x = 1: (4 + 16) / 4 = 5 for every device; then x = mean of 1 + s (a_i - 1) = 2: 5/2."""
    task, plan = quad([2.0, 4.0], start=[1.0], public=[3.0, 5.0])
    algorithm = JobFed(global_loss="server_val", private_set="none", lr=0.5, alpha=1.0, **FIXED)
    settings = TopologySettings(fogs=2, teams="natural")
    engine = make_engine(kind, algorithm, task, plan, settings, natural=[0, 1])
    for want in (5.0, 2.5):
        run(engine, 1)
        assert engine.kept(0, 0)["jg"].item() == pytest.approx(want, abs=1e-14)
        assert [engine.own(i)["jg"].item() for i in range(2)] == pytest.approx([want, want], abs=1e-14)


def test_the_cloud_cannot_judge_without_samples() -> None:
    task, plan = quad([2.0, 4.0])
    with pytest.raises(InputError, match=r"data\.public"):
        make_engine("serial", JobFed(global_loss="server_val"), task, plan)


@pytest.mark.parametrize(
    ("letters", "private"), [("usyb", NORM), ("yb", NORM[:2]), ("us", NORM[2:]), ("all", [*REST, *NORM]), ("none", [])]
)
def test_private_sets(letters: Any, private: list[str]) -> None:
    assert set(JobFed(private_set=letters).np_keys(toy_task())) == set(REST + NORM) - set(private)


@pytest.mark.parametrize(
    ("changes", "needed"),
    [({}, True), ({"stopping": "none"}, True), (FIXED, True), ({**FIXED, "stopping": "none"}, False)],
)
def test_who_needs_held_out_samples(changes: dict[str, Any], needed: bool) -> None:
    assert JobFed(**changes).needs_held is needed
