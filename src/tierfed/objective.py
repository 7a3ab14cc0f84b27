"""What a run is judged by, as one number: a metric of a model, a cost, or a weighted sum of them.

personal_pre                                   its main metric (accuracy, or the absolute error), sample-weighted
global/loss  ·  personal_post/accuracy/worst   another metric, another statistic over devices
0.5*global + 0.5*personal_pre                  a balance
personal_pre - 1e-9*link/up_bytes              costs of the whole run: link/METRIC, cloud/METRIC, device/METRIC
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

from tierfed.errors import InputError, nearest
from tierfed.metrics import MODELS, STATISTICS, Row, higher_is_better

COSTS = {
    "link": ("down_bytes", "up_bytes", "seconds", "joules"),
    "cloud": ("round_seconds", "clock_seconds", "joules"),
    "device": ("compute_seconds", "compute_joules"),
}
MEASURES = ("accuracy", "abs_error", "squared_error", "loss")
_SHORT = {"personal": "personal_pre"}
_NUMBER = r"(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?"
_TERM = re.compile(rf"\s*([+-]?)\s*(?:({_NUMBER})\s*\*\s*)?([A-Za-z_]\w*(?:/\w+)*)\s*")


@dataclass(frozen=True, kw_only=True)
class Term:
    """One part of the sum. :param measure: "": the main metric; :param statistic: "" for a cost"""

    weight: float
    of: str
    measure: str
    statistic: str


@dataclass(frozen=True, kw_only=True)
class Objective:
    """A sum of terms; `sign` is 1 where more is better, else -1."""

    text: str
    terms: tuple[Term, ...]

    def sign(self, main: str) -> int:
        """Whether more of it is better.

        :param main: the main metric of the task
        :raises InputError: some of the terms say yes, others no
        """
        good = {(_higher(t, main) == (t.weight > 0)) for t in self.terms}
        if len(good) > 1:
            raise InputError(
                f"objective {self.text!r}: more of one term is better and less of another; give what shall be small a "
                "minus sign, or all terms one direction"
            )
        return 1 if good.pop() else -1

    def value(self, rows: Iterable[Row]) -> float | None:
        """The number after the last evaluation among some rows of metrics; costs are those of all rounds. None: a term
        was never measured.
        """
        known = list(rows)
        parts = [_measured(t, known) for t in self.terms]
        if any(p is None for p in parts):
            return None
        return math.fsum(t.weight * p for t, p in zip(self.terms, parts, strict=True) if p is not None)


def parse(text: str, where: str = "objective") -> Objective:
    """:raises InputError: no sum of terms, or a word that nobody knows (with the nearest one)"""
    terms: list[Term] = []
    place = 0
    while place < len(text):
        found = _TERM.match(text, place)
        if found is None or (terms and not found[1]):
            raise InputError(
                f"{where} = {text!r}: cannot be read from {text[place:]!r} on; wanted a sum such as "
                "0.5*global + 0.5*personal_pre"
            )
        weight = float(found[2] or 1.0) * (-1 if found[1] == "-" else 1)
        terms.append(_term(found[3].split("/"), weight, f"{where} = {text!r}"))
        place = found.end()
    if not terms:
        raise InputError(f"{where} is empty; wanted for example personal_pre")
    return Objective(text=text, terms=tuple(terms))


def _term(parts: list[str], weight: float, where: str) -> Term:
    of, *rest = _SHORT.get(parts[0], parts[0]), *parts[1:]
    if weight == 0:
        raise InputError(f"{where}: a term with weight 0 says nothing; leave it out")
    if of in COSTS:
        if len(rest) != 1 or rest[0] not in COSTS[of]:
            got = "/".join(rest)
            raise InputError(f"{where}: {of} has no number {got!r}; {nearest(got, COSTS[of])}")
        return Term(weight=weight, of=of, measure=rest[0], statistic="")
    if of not in MODELS:
        raise InputError(f"{where}: no model {parts[0]!r}; {nearest(parts[0], (*MODELS, *COSTS))}")
    measure, statistic = (*rest, "", "")[:2] if len(rest) < 2 else (rest[0], rest[1])
    if len(rest) > 2:
        raise InputError(f"{where}: {'/'.join(parts)} has too many parts; wanted model/metric/statistic")
    if measure and measure not in MEASURES:
        raise InputError(f"{where}: no metric {measure!r}; {nearest(measure, MEASURES)}")
    statistics = (*STATISTICS, "worst_device", "gain")
    if statistic and statistic not in statistics:
        raise InputError(f"{where}: no statistic {statistic!r}; {nearest(statistic, statistics)}")
    return Term(weight=weight, of=of, measure=measure, statistic=statistic or "weighted")


def _higher(term: Term, main: str) -> bool:
    if term.of in COSTS:
        return False
    # a lower spread is better, whatever it is the spread of
    return term.statistic == "gain" or (higher_is_better(term.measure or main) and term.statistic != "std")


def _measured(term: Term, rows: list[Row]) -> float | None:
    if term.of in COSTS:
        found = [r for r in rows if r.tier == term.of and not r.model and r.metric == term.measure]
        if not found:
            return None
        return found[-1].value if term.measure == "clock_seconds" else math.fsum(r.value for r in found)
    wanted = {f"{m}/{term.statistic}" for m in ([term.measure] if term.measure else ["accuracy", "abs_error"])}
    scores = [r for r in rows if r.tier == "cloud" and r.model == term.of and r.metric in wanted]
    return max(scores, key=lambda r: r.round).value if scores else None
