"""Rules in the place of a weighted mean, which some attackers among the children cannot move at will.

All of them but the norm bound count every child alike: who may say how many samples it has would count for more. What a
reply says beside its change (losses) is treated by the same rule. [H] children, [d] numbers of a change.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tierfed.links.case import Case
from tierfed.links.link import At, Heard, Ids, parted, rejoined, same_order
from tierfed.links.settings import ReduceSettings
from tierfed.tree import Tree, stack, tmap, vector

_NEAR = 1e-6  # of the median distance: a smaller one counts as this one


def median(x: Tensor) -> Tensor:
    """The median of every coordinate [d] of x [H, d]; of an even number the middle between two (Yin et al. 2018)."""
    ordered, n = x.sort(0).values, len(x)
    return (ordered[(n - 1) // 2] + ordered[n // 2]) / 2


def trimmed_mean(x: Tensor, attackers: float) -> Tensor:
    """The mean of every coordinate [d] of x [H, d] without its floor(attackers H) largest and as many smallest (Yin et
    al. 2018).
    """
    cut = int(attackers * len(x))
    return x.sort(0).values[cut : len(x) - cut].mean(0)


def krum_order(x: Tensor, attackers: float) -> Tensor:
    """The rows of x [H, d] from the best score on: the sum of squared distances to the H - f - 2 nearest others, with
    f = floor(attackers H) (Blanchard et al. 2017); among equals the first.
    """
    n = len(x)
    near = min(max(n - int(attackers * n) - 2, 1), n - 1)
    far = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist").square()
    far.fill_diagonal_(float("inf"))
    scores: Tensor = far.sort(1).values[:, :near].sum(1)
    return scores.argsort(stable=True)


def weiszfeld(x: Tensor, steps: int) -> Tensor:
    """Weights [H], of sum 1, with which the mean of x [H, d] is its geometric median, argmin_z sum_i |x_i - z|
    (Weiszfeld 1937, smoothed as in Pillutla, Kakade, Harchaoui 2022). Begins at the median of every coordinate, ends
    when it moves no more.
    """
    apart = (x - median(x)).norm(dim=1)
    least = _NEAR * float(apart.median())  # half of the children are nearer; attackers do not reach it
    if least == 0.0:
        same: Tensor = (apart == 0).to(x.dtype)
        return same / same.sum()
    w = torch.zeros_like(apart)
    for _ in range(steps):
        old, w = w, 1 / apart.clamp(min=least)
        w = w / w.sum()
        if float((w - old).abs().max()) < torch.finfo(x.dtype).eps:
            break
        apart = (x - w @ x).norm(dim=1)
    return w


def bounded(x: Tensor, bound: float) -> Tensor:
    """Factors [H] that make every row of x [H, d] at most `bound` long."""
    factors: Tensor = bound / x.norm(dim=1).clamp(min=1e-30)
    return factors.clamp(max=1.0)


@dataclass(frozen=True, kw_only=True)
class Robust:
    """A rule of `ReduceSettings`, other than the mean."""

    settings: ReduceSettings

    @property
    def shows(self) -> str:
        return _SHOWS[self.settings.rule]

    def refuses(self, case: Case) -> str:
        if case.owes:
            return (
                f"{case.algorithm} counts on the sum of all increments that devices send, which "
                f"{self.settings.rule} does not keep; take mean, or an algorithm without such sums"
            )
        s, there = self.settings, case.children
        if there < (wanted := needed(s.rule, s.attackers, there)):
            return (
                f"{s.rule} against {int(s.attackers * there)} attackers (attackers = {s.attackers:g}) needs {wanted} "
                f"children, but a {case.parent} may poll no more than {there}; take fewer fogs, more participation or "
                "another rule"
            )
        return ""

    def tell(self, memory: Tree, polled: Ids, at: At) -> Tree:
        return {}

    def reduce(self, heard: Heard, memory: Tree, at: At) -> tuple[Tree, Tree]:
        s = self.settings
        stacked = stack(heard.replies)
        if s.rule in _COORDINATES:
            return tmap(lambda t: _COORDINATES[s.rule](t, s), stacked), {}
        parts = [parted(m, r, heard.whole)[0] for m, r in zip(heard.sent, heard.replies, strict=True)]
        changes = torch.stack([vector(c) for c in same_order(parts)])
        if s.rule == "norm_bound":
            shorter = bounded(changes, s.bound)
            moved = [
                _shortened(m, r, f, heard.whole) for m, r, f in zip(heard.sent, heard.replies, shorter, strict=True)
            ]
            return _mixed(stack(moved), torch.as_tensor(heard.weights / heard.weights.sum())), {}
        return _mixed(stacked, _weights(changes, s)), {}


def _weights(changes: Tensor, s: ReduceSettings) -> Tensor:
    """Of a mean over the children [H]: those whom a rule takes count alike, the others nothing."""
    if s.rule == "geometric_median":
        return weiszfeld(changes, s.steps)
    n = len(changes)
    taken = 1 if s.rule == "krum" else max(n - int(s.attackers * n), 1)
    out = changes.new_zeros(n)
    out[krum_order(changes, s.attackers)[:taken]] = 1 / taken
    return out


def _mixed(stacked: Tree, weights: Tensor) -> Tree:
    def mixed(t: Tensor) -> Tensor:
        return torch.einsum("h,h...->...", weights.to(t.device, t.dtype), t)

    return tmap(mixed, stacked)  # type: ignore[no-any-return]


def _shortened(sent: Tree, reply: Tree, factor: Tensor, whole: frozenset[str]) -> Tree:
    change, rest = parted(sent, reply, whole)
    return rejoined(sent, tmap(lambda t: t * factor.to(t.dtype), change), rest)


_COORDINATES: dict[str, Callable[[Tensor, ReduceSettings], Tensor]] = {
    "median": lambda t, s: median(t),
    "trimmed_mean": lambda t, s: trimmed_mean(t, s.attackers),
}
_SHOWS = {
    "median": "median",
    "trimmed_mean": "trimmed mean",
    "krum": "one of them (Krum)",
    "multi_krum": "mean of some (multi-Krum)",
    "geometric_median": "geometric median",
    "norm_bound": "mean of bounded changes",
}


def needed(rule: str, attackers: float, children: int) -> int:
    """Children that a rule needs against floor(attackers children) of them: Krum scores by H - f - 2 > f others."""
    return 2 * int(attackers * children) + 3 if rule in ("krum", "multi_krum") else 1
