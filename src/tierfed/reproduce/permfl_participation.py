"""PerMFL with few participants: 2 % to 50 % of each team's devices, below all teams or below half of them."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from tierfed.report.load import RunFolder
from tierfed.report.svg import lines
from tierfed.reproduce.permfl_table1 import BASE, PERMFL, READ
from tierfed.reproduce.study import Case, Figure, Line, Study, merged

ROUNDS, DEVICES, TEAMS = 50, 200, 4
SHARES = (0.02, 0.05, 0.1, 0.2, 0.5)
WHO = {"all": ("all teams", 1.0), "half": ("half of the teams", 0.5)}
NAMES = {"GM": "global model", "PM": "personal models"}
MODELS = {"GM": "global", "PM": "personal_pre"}
Runs = Mapping[str, list[RunFolder]]


def key(who: str, share: float) -> str:
    """Names the runs of a case."""
    return f"{who}-{round(100 * share)}"


def _tables(who: str, share: float) -> dict[str, Any]:
    own = {
        "run": {"rounds": ROUNDS},
        "data": {"source": "mnist", "partition": {"kind": "shards", "type": 2, "devices": DEVICES}},
        "topology": {"fogs": TEAMS, "teams": "random", "participation": [WHO[who][1], share]},
        "eval": {"every": 5},
        "algorithm": PERMFL,
    }
    base = {k: v for k, v in BASE.items() if k != "data"}
    data = {k: v for k, v in BASE["data"].items() if k != "partition"}
    return merged(base, {"data": data}, own)


def _by_share(runs: Runs) -> str:
    """Accuracy over the share of devices, after the last round, mean over seeds."""
    series = {
        f"{NAMES[quantity]}, {title}": [
            (100 * share, sum(READ[quantity](r) for r in runs[key(who, share)]) / len(runs[key(who, share)]))
            for share in SHARES
        ]
        for quantity in READ
        for who, (title, _) in WHO.items()
    }
    return lines(series, title="After the last round", x="devices of a team polled per team round, %", y="accuracy, %")


def _by_round(quantity: str, runs: Runs) -> str:
    """Accuracy over the rounds, all teams polled, first seed."""
    series = {}
    for share in SHARES:
        rounds, values = runs[key("all", share)][0].curve(MODELS[quantity])
        series[f"{100 * share:g} %"] = [(float(r), 100 * float(v)) for r, v in zip(rounds, values, strict=True)]
    return lines(series, title=f"The {NAMES[quantity]}, all teams polled", x="cloud round", y="accuracy, %")


STUDY = Study(
    name="permfl-participation",
    paper="Banerjee, Dadras, Yurtsever, Bhuyan 2024 (PerMFL), arXiv 2407.14251, participation",
    compared="Accuracy of PerMFL's global (GM) and personal models (PM) by how many devices and teams take part.",
    unit="% accuracy",
    cases=tuple(
        Case(key=key(who, share), label=key(who, share), tables=_tables(who, share)) for who in WHO for share in SHARES
    ),
    lines=tuple(
        Line(
            data="MNIST",
            method=f"PerMFL, {100 * share:g} % of the devices, {title}",
            quantity=quantity,
            algorithm="permfl",
            case=key(who, share),
            read=READ[quantity],
        )
        for who, (title, _) in WHO.items()
        for share in SHARES
        for quantity in ("GM", "PM")
    ),
    notes=(
        "The paper studies 2 % to 50 % with 3,500 and 350 devices (FEMNIST, CIFAR-100) and says that full "
        "participation is fastest; no numbers of these curves are public in a form that could be read here.",
        f"Here MNIST is dealt out to {DEVICES} devices, two label shards each (350 samples), in {TEAMS} random teams "
        "of 50: 2 % is one device of a team. The settings are those of Table 1 (K = 10, L = 20), T = "
        f"{ROUNDS}; devices are drawn anew in every team round, teams in every cloud round.",
        "PM is the model of each device's last visit; a device that was never polled still has the initial model, and "
        "with 2 % that is most of them in the first rounds: 4 of 200 devices are polled at a time, at most 40 in a "
        "cloud round.",
    ),
    figures=(
        Figure(
            name="shares",
            caption="Accuracy by the share of devices that take part.",
            draw=_by_share,
            cases=tuple(key(who, share) for who in WHO for share in SHARES),
        ),
        *(
            Figure(
                name=f"rounds-{quantity.lower()}",
                caption=f"Accuracy of the {NAMES[quantity]} over the rounds.",
                draw=partial(_by_round, quantity),
                cases=tuple(key("all", share) for share in SHARES),
            )
            for quantity in ("GM", "PM")
        ),
    ),
)
