"""PerFit's case study (Wu, He, Chen 2020): human activities of thirty clients, personal models by tuning or scores."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from tierfed.algorithm import Batch, Data
from tierfed.algorithms import make
from tierfed.models import build_model
from tierfed.report.load import RunFolder
from tierfed.reproduce import classic, perfit_page
from tierfed.reproduce.perfit_page import ACCURACY, PAYLOAD, SECONDS, SPREAD
from tierfed.reproduce.study import Case, Figure, Line, Study, Tables, accuracy, merged
from tierfed.task import Task
from tierfed.tree import leaves

NAME, ROUNDS, CLIENTS, POLLED = "perfit", 200, 30, 5
SCORES = 500  # public samples of a round whose scores travel
WINDOW, ACTIVITIES = (3, 20, 20), 10  # of MobiAct
SOURCE = "the paper's text; its figures show the other numbers without digits"


@dataclass(frozen=True, kw_only=True)
class Windows:
    """A data set of the study.

    :param title: as a reader calls it; :param window: readings in a second; :param step: in a fifth of it
    """

    title: str
    window: int
    step: int


SETS = {
    "uci_har": Windows(title=perfit_page.TITLES["uci_har"], window=50, step=10),
    "mobiact": Windows(title=perfit_page.TITLES["mobiact"], window=200, step=40),
}

BASE: dict[str, Any] = {
    "run": {"rounds": ROUNDS},
    "data": {
        "devices": CLIENTS,
        "batch": 20,
        "layout": "bitmap",
        "split": {"by": "time", "test": 0.3, "val": 0.0},
        "draw": {"train": 480, "test": 160, "alpha": 3.0},
    },
    "topology": {"participation": POLLED},
    "faults": {"slowdown": 0.5},
    "eval": {"every": 20, "post": False},
    "algorithm": {"lr": 0.01, "epochs": 1},
}


@dataclass(frozen=True, kw_only=True)
class Method:
    """A bar of Figure 6: a model of the runs of a case.

    :param title: as the paper calls it; :param case: whose runs; :param model: the evaluated one
    :param paper: the published accuracy; :param said: what is said of it beside, or how the number was come by
    """

    title: str
    case: str
    model: str
    paper: float | None = None
    said: str = ""


METHODS = (
    Method(title="cSVM", case="csvm", model="global"),
    Method(title="ckNN", case="cknn", model="global"),
    Method(title="cRF", case="crf", model="global"),
    Method(title="c3NN", case="c3nn", model="global"),
    Method(title="cCNN", case="ccnn", model="global", said="paper: about that of FL-CNN, 85.22"),
    Method(title="FL-3NN", case="ftl-3nn", model="global", paper=84.25, said="95.37 less 11.12, read as points"),
    Method(title="FL-CNN", case="ftl-cnn", model="global", paper=85.22),
    Method(title="FTL-3NN", case="ftl-3nn", model="personal_pre", paper=95.37),
    Method(title="FTL-CNN", case="ftl-cnn", model="personal_pre", said="paper: above 90"),
    Method(title="FD-1", case="fd-1", model="personal_pre", said="paper: above 90; CNN clients with FD 90.91"),
    Method(title="FD-2", case="fd-2", model="personal_pre", said="paper: above 90"),
)
PAYLOADS = {"FTL-3NN": 521_510, "FTL-CNN": 33_698, "FD-1": 5_000, "FD-2": 5_000}
POLLS = {3: "ftl-cnn-k3", POLLED: "ftl-cnn", 10: "ftl-cnn-k10", 30: "ftl-cnn-k30"}


def _mixed(dense: int) -> dict[str, Any]:
    """Clients with two kinds of models that learn from each other's scores of public samples."""
    return {
        "data": {"public": 0.1},
        "model": {"kinds": [{"name": "har_3nn", "devices": dense}, {"name": "har_cnn", "devices": CLIENTS - dense}]},
        "algorithm": {"name": "perfit-fd", "subset": SCORES, "public_epochs": 30},
    }


def _one(network: str, algorithm: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"model": {"name": network}, "algorithm": algorithm, **more}


_TUNED: dict[str, Any] = {"name": "finetune", "tune_epochs": 5}
_CENTRAL: dict[str, Any] = {
    "run": {"rounds": round(ROUNDS * POLLED / CLIENTS)},  # a client's windows are seen as often as in FL
    "data": {"pooled": True},
    "topology": {"participation": 1},
    "eval": {"every": 4},
}
OWN: dict[str, dict[str, Any]] = {
    "csvm": {"run": {"rounds": 1}, "algorithm": {"name": "svm"}},
    "cknn": {"run": {"rounds": 1}, "algorithm": {"name": "knn"}},
    "crf": {"run": {"rounds": 1}, "algorithm": {"name": "random-forest"}},
    "c3nn": _one("har_3nn", {"name": "fedavg"}, **_CENTRAL),
    "ccnn": _one("har_cnn", {"name": "fedavg"}, **_CENTRAL),
    "ftl-3nn": _one("har_3nn", _TUNED),
    "ftl-cnn": _one("har_cnn", _TUNED),
    "fd-1": _mixed(10),
    "fd-2": _mixed(20),
    **{case: _one("har_cnn", _TUNED, topology={"participation": k}) for k, case in POLLS.items() if k != POLLED},
}
"""What each case has beside BASE."""


def _tables(source: str, own: Tables) -> dict[str, Any]:
    place = {"data": {"source": source, "window": SETS[source].window, "step": SETS[source].step}}
    return merged(BASE, place, own)


def _case(source: str, name: str) -> Case:
    tables = _tables(source, OWN[name])
    work = classic.fit if tables["algorithm"]["name"] in classic.CLASSIC else None
    return Case(key=f"{source}-{name}", label=name, tables=tables, work=work)


def spread(model: str, run: RunFolder) -> float:
    """The standard deviation over clients of a model's accuracy in points, after the last round."""
    return 100 * float(np.nanstd(run.last_scores(model).values))


def payload(run: RunFolder) -> float:
    """Numbers that a client sends up in a round, of four bytes each."""
    sent, polled = run.total("link", "up_bytes"), int(run.setting("topology", "participation"))
    return float("nan") if sent is None or not run.last_round else sent / (4 * polled * run.last_round)


def seconds(run: RunFolder) -> float:
    """The virtual time at the end of the training."""
    found = run.clock_seconds
    return float("nan") if found is None else found


def parameters(network: str) -> float:
    """How many numbers a network for MobiAct's windows has."""
    return float(sum(p.numel() for p in build_model(network, WINDOW, ACTIVITIES, {}, 0).parameters()))


def scores(network: str) -> float:
    """How many numbers a client with this network sends in a visit with public windows of MobiAct."""
    none = torch.zeros((), dtype=torch.int64)
    x, y = torch.zeros(SCORES, *WINDOW), none.expand(SCORES)
    public = Batch(x, y, torch.ones(SCORES, dtype=torch.bool), none)
    task = Task(build_model(network, WINDOW, ACTIVITIES, {}, 0), public=public, classes=ACTIVITIES)
    algorithm = make("perfit-fd", {"subset": SCORES})
    cloud = algorithm.tiers(task, (1, CLIENTS))[0]
    step = torch.zeros(1, 1, 2, dtype=torch.int64)
    data = Data(x, y, step, torch.ones(1, 1, dtype=torch.bool), step[..., 0], step[0, 0], step[0, 0] > 0)
    up, _ = algorithm.device(task, cloud.send(cloud.init({}), none), algorithm.init(task, task.init()), data)
    return float(sum(t.numel() for t in leaves(up)))


def _lines(source: str) -> list[Line]:
    title, out = SETS[source].title, []
    for m in METHODS:
        shown: dict[str, Any] = {
            "data": title,
            "method": m.title,
            "algorithm": str(OWN[m.case]["algorithm"]["name"]),
            "case": f"{source}-{m.case}",
        }
        out.append(
            Line(
                quantity=ACCURACY,
                read=accuracy(m.model),
                paper=m.paper,
                source="" if m.paper is None else SOURCE,
                remark=m.said,
                **shown,
            )
        )
        out.append(Line(quantity=SPREAD, read=partial(spread, m.model), **shown))
        if m.title in PAYLOADS:
            out.append(Line(quantity=PAYLOAD, read=payload, remark=_on_mobiact(m.title), **shown))
    for k, case in POLLS.items():
        shown = {"data": title, "method": perfit_page.polled(k), "algorithm": "finetune", "case": f"{source}-{case}"}
        out += [
            Line(quantity=f"{ACCURACY}, FL", read=accuracy("global"), **shown),
            Line(quantity=f"{ACCURACY}, FTL", read=accuracy("personal_pre"), **shown),
            Line(quantity=SECONDS, read=seconds, **shown),
        ]
    return out


def _on_mobiact(method: str) -> str:
    return f"paper, with other windows and 10 activities: {PAYLOADS[method]:,}"


def _counted() -> list[Line]:
    """The paper's payloads, which no training can change."""
    count = {
        "FTL-3NN": partial(parameters, "har_3nn"),
        "FTL-CNN": partial(parameters, "har_cnn"),
        "FD-1": partial(scores, "har_3nn"),
        "FD-2": partial(scores, "har_cnn"),
    }
    return [
        Line(
            data="windows of MobiAct",
            method=method,
            quantity=PAYLOAD,
            algorithm="finetune" if method.startswith("FTL") else "perfit-fd",
            count=counting,
            paper=PAYLOADS[method],
            source=SOURCE,
        )
        for method, counting in count.items()
    ]


def _models(source: str) -> dict[str, tuple[str, str]]:
    """The case and the evaluated model of every method."""
    return {m.title: (f"{source}-{m.case}", m.model) for m in METHODS}


def _figures(source: str) -> list[Figure]:
    title = SETS[source].title
    of = _models(source)
    polls = {k: f"{source}-{case}" for k, case in POLLS.items()}
    return [
        Figure(
            name=f"{source}-fig5",
            caption=f"{title}, as Figure 5: accuracy of FTL-CNN over the rounds by the number K of clients in a "
            "round, and the time until the end on the virtual clock.",
            draw=partial(perfit_page.draw_polls, title, polls),
            cases=tuple(polls.values()),
        ),
        Figure(
            name=f"{source}-fig6",
            caption=f"{title}, as Figure 6: test accuracy, whiskers of one standard deviation over seeds. c: trained "
            "in one place.",
            draw=partial(perfit_page.draw_methods, title, of),
        ),
        Figure(
            name=f"{source}-fig7",
            caption=f"{title}, as Figure 7: accuracy of each client, of all seeds; whiskers reach to the extremes.",
            draw=partial(perfit_page.draw_clients, title, of),
        ),
        Figure(
            name=f"{source}-fig8",
            caption=f"{title}, as Figure 8: accuracy against the numbers that a client sends up in a round, on a "
            "logarithmic scale.",
            draw=partial(perfit_page.draw_payloads, title, {m: of[m] for m in PAYLOADS}, payload),
        ),
    ]


STUDY = Study(
    name=NAME,
    paper="Wu, He, Chen 2020 (PerFit), arXiv 2002.10671, Figures 5 to 8",
    compared="Recognition of human activities by thirty clients: training in one place (cSVM … cCNN), FedAvg (FL), "
    "FedAvg with a personal model by fine-tuning (FTL), and federated distillation between clients with models of two "
    "kinds (FD-1: 10 dense and 20 convolutional ones, FD-2: 20 and 10).",
    unit="% accuracy, points, numbers of a message, virtual seconds",
    cases=tuple(_case(source, name) for source in SETS for name in OWN),
    lines=(*(line for source in SETS for line in _lines(source)), *_counted()),
    optional=(SETS["mobiact"].title,),
    seeds=(0, 1, 2, 3, 4),
    figures=tuple(figure for source in SETS for figure in _figures(source)),
    claims=partial(perfit_page.claims, {source: _models(source) for source in SETS}),
    notes=(
        "The paper's data are MobiAct's, which may not be passed on: those lines have numbers where the user has "
        "put the folder into the data directory. UCI HAR stands for them: 30 people as well, but six activities, "
        "and a phone at the waist that was read 50 times a second. The published numbers stand beside both.",
        "As in the paper: 30 clients, 480 training windows each with random numbers of every activity, 160 test "
        "windows with the same number of each, windows of one second, K = 5 clients a round, plain SGD with steps "
        "of 0.01, cross entropy, five repetitions, the two networks. Not in the paper and chosen here: 200 rounds "
        "of one local epoch with batches of 20, five epochs of tuning, a window every 0.2 s (so that a subject has "
        "enough), the last 30 % of each recording for tests. The random numbers are 480 times shares from Dir(3), "
        "which scatter as much as uniform ones.",
        "A window is a picture with the three axes as colors, readings of the accelerometer in the upper half and "
        "of the gyroscope in the lower one: 3 x 20 x 20 at 200 Hz, 3 x 10 x 10 at 50 Hz. Each half is standardized "
        "by itself. Of UCI HAR it is the acceleration with gravity, as the sensor measures it. On the smaller "
        "pictures the networks are smaller too, and so are payloads.",
        "MobiAct's ten activities are not named in what could be read of the paper. Here they are the ten that all "
        "subjects were asked for and that are no falls; subjects without one of them are left out, 30 of the "
        "others are drawn per seed.",
        "c3NN and cCNN make 33 passes over the training windows of all clients; in 200 rounds of FL each client is "
        "asked about 33 times, too. cSVM, ckNN and cRF are scikit-learn's with its defaults, on the same flattened "
        "windows.",
        "FL and FTL are two models of the same runs: the cloud's, and that after five epochs on the client's "
        f"windows. A tenth of each client's training windows is public for FD. As FedMD has it, clients learn the "
        f"labels of these before the first round (30 passes; not in the virtual time); then scores of {SCORES} of them "
        "travel in a round.",
        "Time: links and processors of the [cost model](../cost-model.md), clients at the same time, and a "
        "client's speed in a round scatters by exp(0.5 z) with z standard normal: a round waits for the slowest of "
        "its K clients. How the paper measured time is not known. The wall time is that of a simulation that "
        "trains one client after the other, evaluations included.",
    ),
)
