"""What PerFit's page has beside the table: Figures 5 to 8, their tables, and what the paper says of them, checked."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from tierfed.report.boxes import QUARTILES, boxes, quartiles
from tierfed.report.load import RunFolder
from tierfed.report.svg import bars, beside, lines, scatter
from tierfed.report.words import NONE, duration
from tierfed.reproduce.page import grid
from tierfed.reproduce.runner import Outcome
from tierfed.reproduce.study import accuracy

TITLES = {"uci_har": "UCI HAR by subject", "mobiact": "MobiAct"}
ACCURACY, SPREAD, PAYLOAD, SECONDS = "accuracy", "std over clients", "payload per round, numbers", "virtual time, s"
CLASSIC, DEEP, FEDERATED = ("cSVM", "ckNN", "cRF"), ("c3NN", "cCNN"), ("FL-3NN", "FL-CNN")
TUNED, DISTILLED = ("FTL-3NN", "FTL-CNN"), ("FD-1", "FD-2")
POLLED = (3, 5, 10, 30)
NEAR = 2.0  # points of accuracy that count as alike

Runs = Mapping[str, list[RunFolder]]
Models = Mapping[str, tuple[str, str]]  # method -> (case, evaluated model)
Numbers = Mapping[tuple[str, str], float]  # (method, quantity) -> mean over seeds


class Claim(NamedTuple):
    """What the paper says, and how it is checked.

    :param needs: keys of the numbers it is about
    :param holds: of these numbers, in this order
    """

    said: str
    needs: tuple[tuple[str, str], ...]
    holds: Callable[[Sequence[float]], bool]


def polled(k: int) -> str:
    """The name of the runs with K clients in a round."""
    return f"FTL-CNN, K = {k}"


def _of(quantity: str, *groups: Sequence[str]) -> tuple[tuple[str, str], ...]:
    return tuple((name, quantity) for group in groups for name in group)


def _above(first: int) -> Callable[[Sequence[float]], bool]:
    """Each of the first numbers is larger than each of the others."""
    return lambda values: min(values[:first]) > max(values[first:])


def _pairs(values: Sequence[float]) -> bool:
    """Each number of the first half is larger than its partner in the second one."""
    half = len(values) // 2
    return all(a > b for a, b in zip(values[:half], values[half:], strict=True))


def _ratio(values: Sequence[float]) -> float:
    return max(values) / min(values) if min(values) > 0 else math.inf


_BY_K = tuple(polled(k) for k in POLLED)
CLAIMS = (
    Claim("Deep networks are better than classic methods, both in one place.", _of(ACCURACY, DEEP, CLASSIC), _above(2)),
    Claim(
        f"FL-CNN is about as good as cCNN (within {NEAR:g} points).",
        _of(ACCURACY, ("FL-CNN", "cCNN")),
        lambda v: abs(v[0] - v[1]) <= NEAR,
    ),
    Claim("Tuning helps: FTL is above FL, with both networks.", _of(ACCURACY, TUNED, FEDERATED), _pairs),
    Claim("Distillation helps: FD-1 and FD-2 are above FL.", _of(ACCURACY, DISTILLED, FEDERATED), _above(2)),
    Claim("All four personal methods are above 90 %.", _of(ACCURACY, TUNED, DISTILLED), lambda v: min(v) > 90),
    Claim("Clients are closer to each other with tuned models than with FL.", _of(SPREAD, FEDERATED, TUNED), _pairs),
    Claim(
        "Clients are closer to each other with distillation than with FL.", _of(SPREAD, FEDERATED, DISTILLED), _above(2)
    ),
    Claim(
        f"Accuracy is alike for all K (within {NEAR:g} points).",
        _of(f"{ACCURACY}, FTL", _BY_K),
        lambda v: max(v) - min(v) <= NEAR,
    ),
    Claim(
        "K changes the time more than the accuracy (ratio of the largest to the smallest).",
        _of(SECONDS, _BY_K) + _of(f"{ACCURACY}, FTL", _BY_K),
        lambda v: _ratio(v[: len(POLLED)]) > _ratio(v[len(POLLED) :]),
    ),
    Claim("FD has the smallest payload.", _of(PAYLOAD, TUNED, DISTILLED), lambda v: max(v[2:]) < min(v[:2])),
)


def numbers(outcome: Outcome, data: str) -> dict[tuple[str, str], float]:
    """The means over seeds of one data set, by method and quantity; what is missing is not there."""
    found = ((e.line, e.ours) for e in outcome.entries if e.line.data == data)
    return {(line.method, line.quantity): ours for line, ours in found if ours is not None}


def checked(found: Numbers) -> list[tuple[str, str, str]]:
    """(what the paper says, yes or no or what it needs, the numbers) of every claim."""
    out = []
    for claim in CLAIMS:
        missing = dict.fromkeys(name for name, quantity in claim.needs if (name, quantity) not in found)
        if missing:
            out.append((claim.said, f"not checked: needs {', '.join(missing)}", NONE))
            continue
        values = [found[key] for key in claim.needs]
        shown = ", ".join(f"{_short(name)} {_digits(v)}" for (name, _), v in zip(claim.needs, values, strict=True))
        out.append((claim.said, "yes" if claim.holds(values) else "no", shown))
    return out


def _short(name: str) -> str:
    return name.removeprefix("FTL-CNN, ")


def _digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.2f}"


def claims(models: Mapping[str, Models], outcome: Outcome) -> list[str]:
    """The parts of the page after the figures; none of a data set of which nothing was run.

    :param models: name of a data set -> what each method is read from
    """
    out = []
    for source, data in TITLES.items():
        found = numbers(outcome, data)
        if not found:
            continue
        out += [f"## {data}: the numbers of the figures", *_polls(outcome, found, source)]
        out += _clients(clients(models[source], outcome.runs))
        out += [
            f"## {data}: what the paper says, checked",
            "By the means over seeds; whether a difference is more than chance is another question.",
            grid(("the paper", "here", "numbers"), checked(found)),
        ]
    return out


def _polls(outcome: Outcome, found: Numbers, source: str) -> list[str]:
    """The table of Figure 5; the times of the simulation are not in the run folders."""
    rows, first = [], POLLED[0]
    clock = {k: found.get((polled(k), SECONDS), math.nan) for k in POLLED}
    wall = {k: _wall(outcome, f"{source}-ftl-cnn" + ("" if k == 5 else f"-k{k}")) for k in POLLED}
    for k in POLLED:
        if math.isnan(clock[k]):
            continue
        scores = [found.get((polled(k), f"{ACCURACY}, {which}"), math.nan) for which in ("FL", "FTL")]
        times = [f"{clock[k]:,.0f}", f"{clock[k] / clock[first]:.2f}", *_told(wall[k], wall[first])]
        rows.append((str(k), *(f"{v:.2f}" for v in scores), *times))
    if not rows:
        return []
    headers = ("K", "FL-CNN, %", "FTL-CNN, %", SECONDS, "by that of K = 3", "wall time", "by that of K = 3")
    return ["Figure 5. The paper: the training time with K = 30 is 3.26 times that with K = 3.", grid(headers, rows)]


def _wall(outcome: Outcome, case: str) -> float:
    """Mean seconds of the runs of a case; NaN: not known."""
    known = [s for name, s in outcome.seconds.items() if name.rpartition("-s")[0] == case]
    return float(np.mean(known)) if known else math.nan


def _told(wall: float, first: float) -> tuple[str, str]:
    if math.isnan(wall):
        return NONE, NONE
    return duration(wall), NONE if math.isnan(first) else f"{wall / first:.2f}"


def _clients(values: Mapping[str, Sequence[float]]) -> list[str]:
    """The table of Figure 7."""
    if not values:
        return []
    rows = [(name, *(f"{q:.1f}" for q in quartiles(v))) for name, v in values.items()]
    return ["Figure 7, accuracy of a client in %, over clients and seeds:", grid(("method", *QUARTILES), rows)]


def clients(models: Models, runs: Runs) -> dict[str, list[float]]:
    """Percent right of every client of every seed, by method; methods without runs are left out."""
    values = {
        method: [100 * float(v) for run in runs[case] for v in run.last_scores(model).values if math.isfinite(v)]
        for method, (case, model) in models.items()
        if runs.get(case)
    }
    return {method: some for method, some in values.items() if some}


def draw_clients(title: str, models: Models, runs: Runs) -> str:
    """Figure 7: a box of clients for each method; empty: nothing was run."""
    values = clients(models, runs)
    return boxes(values, title=f"{title}: clients", y="accuracy of a client, %", size=(900, 400)) if values else ""


def draw_methods(title: str, models: Models, runs: Runs) -> str:
    """Figure 6: a bar for each method, mean and standard deviation over seeds; empty: nothing was run."""
    values = {m: [accuracy(model)(run) for run in runs[case]] for m, (case, model) in models.items() if runs.get(case)}
    means = {m: {ACCURACY: float(np.mean(v))} for m, v in values.items()}
    if not any(math.isfinite(v[ACCURACY]) for v in means.values()):
        return ""
    spread = {m: {ACCURACY: float(np.std(v, ddof=1))} for m, v in values.items() if len(v) > 1}
    return bars(means, spread=spread, title=f"{title}: methods", y="accuracy, %", size=(900, 400))


def draw_polls(title: str, cases: Mapping[int, str], runs: Runs) -> str:
    """Figure 5: accuracy of the tuned models over rounds, and time by that with the fewest clients."""
    series = {}
    for k, case in cases.items():
        rounds = runs[case][0].curve("personal_pre")[0]
        mean = np.mean([run.curve("personal_pre")[1] for run in runs[case]], 0)
        series[f"K = {k}"] = [(float(r), 100 * float(v)) for r, v in zip(rounds, mean, strict=True)]
    clock = {k: float(np.mean([run.clock_seconds or math.nan for run in runs[case]])) for k, case in cases.items()}
    first = clock[min(clock)]
    times = {f"K = {k}": {"time": value / first} for k, value in clock.items()}
    over = lines(series, title="FTL-CNN", x="round", y="accuracy, %", size=(520, 380))
    until = bars(times, title="Virtual time until the end", y="by that of K = 3", size=(380, 380))
    return beside([over, until], title=f"{title}: clients in a round")


def draw_payloads(title: str, models: Models, payload: Callable[[RunFolder], float], runs: Runs) -> str:
    """Figure 8: accuracy against payload; empty: nothing was run."""
    points = {
        method: (
            math.log10(float(np.mean([payload(run) for run in runs[case]]))),
            float(np.mean([accuracy(model)(run) for run in runs[case]])),
        )
        for method, (case, model) in models.items()
        if runs.get(case)
    }
    if not any(math.isfinite(x) and math.isfinite(y) for x, y in points.values()):
        return ""
    axis = "payload: numbers up from a client in a round, as a power of ten"
    return scatter(points, title=f"{title}: payload", x=axis, y="accuracy, %")
