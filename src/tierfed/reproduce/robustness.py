"""Robust rules against attackers: a fifth of the devices under rules at the fogs, one fog under rules at the cloud."""

import math
from typing import TYPE_CHECKING, Any

from tierfed.report.load import RunFolder
from tierfed.reproduce.study import Case, Line, Study, accuracy, merged

if TYPE_CHECKING:
    from tierfed.reproduce.runner import Outcome

BASE: dict[str, Any] = {
    "run": {"rounds": 30},
    "data": {
        "source": "fashion_mnist",
        "batch": 20,
        "draw": {"train": 100, "test": 40},
        "partition": {"kind": "dirichlet", "devices": 50, "alpha": 1.0},
    },
    "model": {"name": "mclr"},
    "topology": {"fogs": 5, "teams": "random"},
    "algorithm": {"name": "hierfavg", "lr": 0.05, "epochs": 1},
    "eval": {"every": 10, "post": False},
}
RULES = ("mean", "median", "trimmed_mean", "krum", "multi_krum", "geometric_median", "norm_bound")
ATTACKS: dict[str, dict[str, Any]] = {
    "none": {"kind": "none"},
    "sign flip": {"kind": "sign_flip", "strength": 3.0},
    "label flip": {"kind": "label_flip"},
    "noise": {"kind": "noise", "strength": 10.0},
    "scaling": {"kind": "scale", "strength": 20.0},
}
# tier of the attackers -> (as a reader calls it, link of the rule, share of attackers that the rule allows for, who)
TIERS: dict[str, tuple[str, str, float, dict[str, Any]]] = {
    "device": ("20 % of the devices, rule at the fogs", "fog-device", 0.3, {"tier": "device", "attackers": 0.2}),
    "fog": ("one fog of five, rule at the cloud", "cloud-fog", 0.2, {"tier": "fog", "attackers": 1}),
}
BOUND = 0.5  # about the length of an honest change


def key(tier: str, attack: str, rule: str) -> str:
    """Names the runs of a case."""
    return f"{tier}-{attack.replace(' ', '')}-{rule}"


def _cases() -> list[tuple[str, str, str]]:
    return [(t, a, r) for t in TIERS for a in ATTACKS for r in RULES if (t, a) != ("fog", "label flip")]


def _tables(tier: str, attack: str, rule: str) -> dict[str, Any]:
    _, link, share, who = TIERS[tier]
    reduce = {"rule": rule, "attackers": share, "bound": BOUND}
    attacked = {} if attack == "none" else {"attack": {**ATTACKS[attack], **who}}
    return merged(BASE, {"links": {link: {"reduce": reduce}}}, attacked)


def _matrix(outcome: "Outcome") -> list[str]:
    """A table for each tier: attacks down, rules across; percent right, mean over seeds."""
    out = []
    for tier, (title, *_) in TIERS.items():
        lines = [f"### {title}", "", "| attack | " + " | ".join(r.replace("_", " ") for r in RULES) + " |"]
        lines.append("|---" * (len(RULES) + 1) + "|")
        for attack in ATTACKS:
            cells = [_mean(outcome.runs.get(key(tier, attack, rule), [])) for rule in RULES]
            if any(not math.isnan(c) for c in cells):
                lines.append(f"| {attack} | " + " | ".join("–" if math.isnan(c) else f"{c:.1f}" for c in cells) + " |")
        out.append("\n".join(lines))
    return out


def _mean(runs: list[RunFolder]) -> float:
    values = [accuracy("global")(run) for run in runs]
    return sum(values) / len(values) if values else math.nan


STUDY = Study(
    name="robustness",
    paper="robust rules and attackers, docs/robustness.md",
    compared="Accuracy of HierFAVG's global model by attack, rule and tier.",
    unit="% accuracy",
    cases=tuple(Case(key=key(*c), label=key(*c), tables=_tables(*c)) for c in _cases()),
    lines=tuple(
        Line(
            data="Fashion-MNIST",
            method=f"{rule.replace('_', ' ')}, {attack}",
            quantity=TIERS[tier][0],
            algorithm="hierfavg",
            case=key(tier, attack, rule),
            read=accuracy("global"),
        )
        for tier, attack, rule in _cases()
    ),
    notes=(
        "Fifty devices with 100 samples each (Dirichlet 1.0 over labels) in five random teams; logistic regression, "
        "one local epoch, 30 rounds, everybody takes part.",
        "Attackers are drawn over all devices, so that some fogs have more of them than others: rules at the fogs "
        "allow for 30 % of the children, rules at the cloud for one fog of five.",
        f"Sign flip: -3 times the change; noise: 10 times its root mean square in its place; scaling: 20 times; norm "
        f"bound {BOUND:g}. Labels are flipped by devices alone.",
    ),
    claims=_matrix,
)
