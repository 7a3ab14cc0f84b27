"""JobFed (Song, Kharel, Jee, Ko; WWW 2026): joint optimization for generalization and personalization.

The batch-norm part P of a model stays private but is averaged upwards; only the rest, NP, comes down. Device:
  combine  theta = (alpha NP + (1 - alpha) NP_i, P_i);  J_g = loss of (NP, P_i);  train;  J_l = loss of theta
Fogs and cloud average NP and P; alpha follows loss share and loss-change share (`Controller`); devices change team
by the direction of P_i; the cloud stops by Eq. 5-7 (`Stopping`). What its public material leaves open is an option.
"""

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from tierfed.algorithm import Algorithm, Data, Tier
from tierfed.algorithms.jobfed_controller import Controller
from tierfed.algorithms.jobfed_tiers import Cloud, Fog, WatchingFog
from tierfed.clustering import Ids, recluster
from tierfed.errors import InputError
from tierfed.settings import Count, Natural, NonNegative, Share, part
from tierfed.stopping import Stopping
from tierfed.task import Task
from tierfed.tree import Params, Tree, mix, scalar, take


@dataclass(frozen=True, kw_only=True)
class JobFed(Algorithm):
    alpha: Share = 0.5  # first weight of the received NP in the mixture
    eta: NonNegative = 0.1
    gamma: Share = 0.5
    beta: Share = 0.5
    delta: NonNegative = 1e-2  # dead band: smaller relative changes of both losses say nothing
    alpha_min: Share = 0.0
    alpha_max: Share = 1.0
    alpha_rule: Literal["controller", "gradient", "fixed"] = "controller"
    alpha_effect: Literal["np_mix", "none", "prox"] = "np_mix"
    alpha_scope: Literal["device", "team", "global"] = "device"
    change_share: Literal["personal", "global"] = "personal"
    mu: NonNegative = 0.1  # alpha_effect = "prox": trains f + alpha mu / 2 |theta_NP - NP|^2
    global_loss: Literal["device_np", "device_full", "server_val"] = "device_np"
    private_set: Literal["usyb", "yb", "us", "all", "none"] = "usyb"
    p_model: Literal["private", "full"] = "private"  # what goes up as the P-model
    recluster_every: Natural = 1  # rounds; 0: never
    recluster_start: Count = 1
    direction: Literal["bn", "full", "np"] = "bn"
    clustering: Literal["average_linkage", "spherical_kmeans"] = "average_linkage"
    cluster_scope: Literal["fogs", "inside_fog"] = "fogs"
    min_team_size: Count = 1
    staleness: Natural = 10  # rounds after which a direction is too old to cluster by
    stopping: Literal["none", "normal", "early", "both"] = "both"
    kappa: Share = 0.9
    epsilon: NonNegative = 1e-3
    theta_r: NonNegative = 0.01
    patience: Count = 3
    min_rounds: Natural = 10
    stop_units: Literal["relative", "absolute"] = "relative"
    traces = ("alpha", "jg", "jl")

    @property
    def needs_held(self) -> bool:
        return self.alpha_rule != "fixed" or self.stopping != "none"

    @property
    def needs_norms(self) -> bool:
        return self.private_set in ("usyb", "us", "yb")

    def np_keys(self, task: Task) -> tuple[str, ...]:
        """The entries that come down; the rest is P."""
        private = {"all": task.keys, "none": []}.get(self.private_set, task.norm_keys(self.private_set))
        return tuple(k for k in task.keys if k not in set(private))

    def tiers(self, task: Task, shape: tuple[int, ...]) -> tuple[Tier, ...]:
        if self.cluster_scope == "inside_fog" and len(shape) < 4:
            raise InputError("cluster_scope = 'inside_fog' needs clusters below the fogs; set topology.clusters")
        if self.global_loss == "server_val" and task.public is None:
            raise InputError("global_loss = 'server_val' needs data at the cloud; set data.public or data.public_path")

        def tier(kind: type[Fog], holds_alpha: bool, **more: Any) -> Fog:
            down = None if self.global_loss == "device_full" else self.np_keys(task)
            more |= {"alpha": self.alpha, "controller": part(Controller, self)} if holds_alpha else {}
            return kind(down=down, full=self.p_model == "full", **more)

        keys = {"bn": task.norm_keys("yb"), "full": task.keys, "np": self.np_keys(task)}[self.direction]
        watch = {"keys": tuple(keys), "from_sent": self.direction == "np"} if self.recluster_every else {}
        at_cloud = self.alpha_scope in (("global", "team") if len(shape) == 2 else ("global",))
        judge = task if self.global_loss == "server_val" else None
        cloud = tier(Cloud, at_cloud, stopping=part(Stopping, self), judge=judge)
        lowest = tier(WatchingFog if watch else Fog, self.alpha_scope == "team", **watch)
        return (cloud, *(tier(Fog, False) for _ in shape[3:]), lowest)[: len(shape) - 1]

    def init(self, task: Task, params: Params) -> Tree:
        return {"own": params, "alpha": scalar(self.alpha, params), **dict.fromkeys(("jg", "jl"), scalar(-1.0, params))}

    def device(self, task: Task, msg: Tree, state: Tree, data: Data) -> tuple[Tree, Tree]:
        said, np_keys = msg.get("say", {}), self.np_keys(task)
        own, alpha = state["own"], said.get("alpha", state["alpha"])
        judged = msg["params"] if self.global_loss == "device_full" else {**own, **take(msg["params"], np_keys)}
        jg = said["jg"] if "jg" in said else task.measure(judged, data.held)
        pull = (alpha * self.mu, take(msg["params"], np_keys)) if self.alpha_effect == "prox" else None
        own = task.train(self.personal(task, msg, state, data), data, self.lr, pull=pull)
        jl = task.measure(own, data.held)
        if self.alpha_scope == "device":
            alpha = part(Controller, self)(alpha, jg, jl, state["jg"], state["jl"])
        full = {"personal": own} if self.p_model == "full" else {}
        return {"params": own, "jg": jg, "jl": jl, **full}, {"own": own, "alpha": alpha, "jg": jg, "jl": jl}

    def personal(self, task: Task, msg: Tree, state: Tree, data: Data) -> Params:
        """combine: (alpha NP + (1 - alpha) NP_i, P_i)"""
        own, down = state["own"], take(msg["params"], self.np_keys(task))
        said = msg.get("say", {}).get("alpha", state["alpha"])
        alpha: Tensor | float = said if self.alpha_effect == "np_mix" else 1.0
        return {**own, **mix(take(own, down), down, alpha)}

    def regroup_scope(self, round_: int) -> str:
        due = self.recluster_every and (round_ + 1 - self.recluster_start) % self.recluster_every == 0
        return self.cluster_scope if due and round_ + 1 >= self.recluster_start else ""

    def regroup(self, rows: Tree, teams: Ids, groups: int, round_: int) -> Ids:
        directions = (rows["new"] - rows["old"]).double().cpu().numpy()
        directions[round_ - rows["seen"].cpu().numpy() > self.staleness] = 0.0
        return recluster(directions, teams, groups, self.clustering, self.min_team_size)
