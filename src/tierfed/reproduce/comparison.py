"""All methods of the registry with one budget, on two data sets with devices of their own."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from tierfed.registry import REGISTRY
from tierfed.report.load import RunFolder
from tierfed.report.words import NONE
from tierfed.reproduce import comparison_page as page
from tierfed.reproduce.study import Case, Figure, Line, Study, Tables, View, accuracy, merged

NAME = "comparison"
VISIT = 10  # gradients of a minibatch that a device computes per visit
TEAM_ROUNDS = 4  # of the methods whose fogs train with their devices for a while

BASE: dict[str, Any] = {
    "run": {},  # in the order in which a page shows them
    "data": {"batch": 20},
    "model": {},
    "topology": {},
    "algorithm": {"name": "fedavg", "lr": 0.1, "steps": VISIT},
    "eval": {"every": 1000, "post": True},
}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A data set of the comparison.

    :param title: as a reader calls it; :param about: devices, teams and rounds in a sentence or two
    :param tables: beside BASE; run.rounds is the number of visits of the cloud to its fogs
    """

    title: str
    about: str
    tables: Tables


@dataclass(frozen=True, kw_only=True)
class Own:
    """What a method has beside the settings of all.

    :param settings: of its algorithm
    :param visit: how the gradients of a visit are spent, where not on `steps` plain steps
    :param why: the reason for other settings than the default
    :param team_rounds: visits of a fog to its devices per visit of the cloud, which are as many times fewer
    """

    settings: Tables = field(default_factory=dict)
    visit: str = ""
    why: str = ""
    team_rounds: int = 1


SETTINGS: dict[str, Setting] = {
    "uci_har": Setting(
        title="UCI HAR by subject",
        about="30 people with a smartphone at the waist, six activities, windows of one second, split by time within "
        "each recording. Five fogs with random teams; all devices take part in all of 20 rounds. A small 1-d CNN with "
        "batch norm.",
        tables={
            "run": {"rounds": 20},
            "data": {"source": "uci_har", "split": {"by": "time"}},
            "model": {"name": "cnn1d"},
            "topology": {"fogs": 5, "teams": "random", "participation": 1.0},
        },
    ),
    "mnist": Setting(
        title="MNIST by writer",
        about="100 of the 836 writers of MNIST, drawn once per seed among those with 20 training digits or more. Two "
        "fogs, the two groups of writers that the digits were collected from; a fifth of the devices takes part in "
        "each of 40 rounds. A perceptron with one hidden layer of 100 units and batch norm.",
        tables={
            "run": {"rounds": 40},
            "data": {
                "source": "mnist",
                "devices": 100,
                "min_samples": 20,
                "too_small": "drop",
                "split": {"by": "random"},
            },
            "model": {"name": "mlp", "options": {"hidden": [100], "batch_norm": True}},
            "topology": {"fogs": 2, "teams": "natural", "participation": 0.2},
        },
    ),
}

OWN: dict[str, Own] = {
    "hierfavg": Own(team_rounds=TEAM_ROUNDS, why="with one team round it is FedAvg"),
    "h-sgd": Own(team_rounds=TEAM_ROUNDS, why="with one team round it is FedAvg with equal weights"),
    "permfl": Own(
        settings={"lam": 1.0, "gamma": 0.25, "eta": 0.8, "beta": 4.0},
        team_rounds=TEAM_ROUNDS,
        why="the largest steps of teams and cloud that its bounds allow, eta (lam + gamma) = beta gamma = 1: with the "
        "defaults, made for thousands of visits, the team and global models would hardly leave the initial one",
    ),
    "ditto": Own(settings={"steps": VISIT // 2}, visit="5 of the global model, 5 of the personal one"),
    "apfl": Own(settings={"steps": VISIT // 2}, visit="5 batches, a gradient of both models on each"),
    "fedrep": Own(
        settings={"steps": VISIT // 2, "head_epochs": 1},
        visit="5 of the head, then 5 of the body",
        why="ten passes of the head would be 50 steps",
    ),
    "per-fedavg": Own(settings={"steps": VISIT // 2}, visit="5 steps, two gradients each"),
    "pfedme": Own(
        settings={"steps": VISIT // 5, "inner": 5, "lam": 1.0, "eta": 1.0},
        visit="2 batches, 5 steps on each",
        why="with two batches a visit w must move all the way to theta (eta lam = 1), and a weak pull (lam) let theta "
        "learn",
    ),
    "finetune": Own(
        settings={"tune_epochs": 1},
        visit="10; the personal model is tuned by 10 more when it is evaluated",
        why="as long a tuning as a visit",
    ),
    "al2gd": Own(
        settings={"p0": 0.05, "p1": 0.05, "gamma": 0.5},
        why="rarer averaging, so that about 10 local steps lie between two exchanges; gamma: the largest that the step "
        "allows",
    ),
    "jobfed": Own(settings={"stopping": "none"}, why="all methods train alike long"),
    "cfl": Own(settings={"start": 10}, why="half of the first data set's rounds; the default is all of them"),
}


def _cost(read: Callable[[RunFolder], float | None]) -> Callable[[RunFolder], float]:
    """A number that may not have been logged; NaN: it was not."""

    def number(run: RunFolder) -> float:
        value = read(run)
        return math.nan if value is None else value

    return number


def _worst_tenth(run: RunFolder) -> float:
    return 100 * run.statistics("personal_pre").get("p10", math.nan)


READ: dict[str, Callable[[RunFolder], float]] = {
    page.GLOBAL: accuracy("global"),
    page.TEAM: accuracy("team"),
    page.BEFORE: accuracy("personal_pre"),
    page.AFTER: accuracy("personal_post"),
    page.WORST: _worst_tenth,
    page.BYTES: _cost(lambda run: None if run.total_bytes is None else run.total_bytes / 1e6),
    page.SECONDS: _cost(lambda run: run.clock_seconds),
    page.JOULES: _cost(lambda run: run.total("cloud", "joules")),
    page.SAMPLES: lambda run: float(run.devices.test.sum()),
}

NOTES = (
    f"Every visit of a device is {VISIT} gradients of minibatches of 20 samples, with a step of 0.1. Methods that need "
    "more than one gradient per step, or that train two models, take fewer steps (table of settings). What is no "
    "gradient is free: the losses that JobFed and FedFomo measure on held-out data and IFCA on training data, and all "
    "work of the servers; seconds and joules count gradients and transfers.",
    f"Visits are the same for all. HierFAVG, h-SGD and PerMFL, whose fogs go on by themselves, have {TEAM_ROUNDS} team "
    f"rounds per round and a {TEAM_ROUNDS}th of the rounds. L2GD and AL2GD draw by coins how many of the steps they "
    "take.",
    "Nothing was tuned on these seeds. Where a default cannot work with so few visits, another value was chosen on "
    "another seed and is in the table of settings with its reason; all else is the default of this project. A method "
    "that is sensitive to its settings looks worse here than after tuning, and some hundred visits of 10 steps are a "
    "short training: methods that begin slowly are at a disadvantage.",
    "A fifth of the training data is held out on every device for methods that measure on it, and left out by all "
    "others too.",
    "The personal model before training is what a device predicts with as things stand: for FedAvg and its like the "
    "global model. After training means after one more visit's local training on the device; that of Per-FedAvg and "
    "the fine-tuning of FedAvg + fine-tuning are part of their personal model already. A device that was never visited "
    "has the first model as its own; with few rounds (`--scale`) on MNIST there are such devices.",
    "Methods that must hear every device in every round have numbers on UCI HAR alone, methods for another kind of "
    "model, or that learn from public samples, none: the table says why.",
    "Seconds and joules are those of the cost model for one set of assumed devices and links, not a measurement. The "
    "time of the run is that of a simulation on one core, which may have had other work.",
)


def tables_of(setting: Setting, name: str, own: Own) -> dict[str, Any]:
    """The config of a method on a data set."""
    rounds, k = setting.tables["run"]["rounds"], own.team_rounds
    more: dict[str, Any] = {"algorithm": {"name": name, **own.settings}, "run": {"rounds": max(1, rounds // k)}}
    return merged(BASE, setting.tables, more, {"topology": {"team_rounds": k}} if k > 1 else {})


def build(settings: Mapping[str, Setting], names: Iterable[str]) -> Study:
    """The comparison of some methods on some data sets, by their names in the registry."""
    every = [(data, name) for data in settings for name in names]
    own = {name: OWN.get(name, Own()) for _, name in every}
    sets = {s.title: (s.about, tables_of(s, "fedavg", Own())) for s in settings.values()}
    return Study(
        name=NAME,
        paper="none: this project's methods beside each other",
        compared="Every method of the registry with the same data, teams, model, participation, number of device "
        "visits, gradients per visit and seeds: how good its global, team and personal models are, and what they cost.",
        unit="accuracies in %",
        cases=tuple(
            Case(key=f"{data}-{name}", tables=tables_of(settings[data], name, own[name])) for data, name in every
        ),
        lines=tuple(
            Line(
                data=settings[data].title,
                method=name,
                quantity=quantity,
                algorithm=name,
                case=f"{data}-{name}",
                read=read,
            )
            for data, name in every
            for quantity, read in READ.items()
        ),
        notes=NOTES,
        figures=tuple(
            Figure(
                name=data,
                caption=f"{setting.title}: the global and the personal model of every method that has both.",
                draw=partial(page.draw, setting.title, {f"{data}-{name}": name for name in own}),
            )
            for data, setting in settings.items()
        ),
        tolerant=True,
        view=View(
            page=f"docs/{NAME}.md",
            markdown=partial(page.markdown, sets, _rows(own)),
            table=page.tables,
        ),
    )


def _rows(own: Mapping[str, Own]) -> list[tuple[str, ...]]:
    """The table of settings: method, gradients of a visit, team rounds, own settings, why."""
    return [
        (
            f"`{name}`",
            o.visit or str(VISIT),
            str(o.team_rounds),
            ", ".join(f"`{k} = {v}`" for k, v in o.settings.items()) or NONE,
            o.why or NONE,
        )
        for name, o in own.items()
        if o != Own()
    ]


STUDY = build(SETTINGS, REGISTRY)
