"""How the comparison of all methods is shown: a table per data set, what follows from it, settings, caveats."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import tomli_w
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tierfed.report.load import RunFolder
from tierfed.report.svg import scatter
from tierfed.report.words import NONE, duration
from tierfed.reproduce.page import command, drawn, grid, scale_text
from tierfed.reproduce.runner import NOT_ASKED, Entry, Outcome
from tierfed.reproduce.study import Tables, accuracy

BALANCE = "balance"
GLOBAL, TEAM, BEFORE, AFTER, WORST = "global", "team", "personal, before", "personal, after", "worst tenth"
BYTES, SECONDS, JOULES, SAMPLES = "MB", "simulated s", "simulated J", "test samples"
RUN, REMARK = "run, s", "remark"
SCORES = (BALANCE, GLOBAL, TEAM, BEFORE, AFTER, WORST)
COSTS = (BYTES, SECONDS, JOULES)
HEADERS = ("method", *SCORES, *COSTS, RUN, REMARK)
MEANING = (
    "Accuracies in % after the last round, every test sample alike: of the cloud's model, of the fogs' models on the "
    "devices of their teams, and of what each device predicts with, before and after one more local training. Balance: "
    "the mean of global and personal accuracy before training, by which the table is sorted; methods without a global "
    "model follow, sorted by the personal one. Worst tenth: the accuracy that a tenth of the devices do not reach "
    "with their personal model before training. MB: all links, both directions, all rounds. Simulated seconds and "
    "joules: see the [cost model](cost-model.md). Run: seconds of this simulation, data and evaluation included."
)
MOST_NAMED = 6


@dataclass(frozen=True, kw_only=True)
class Row:
    """One method on one data set.

    :param wall: mean seconds of its runs on this machine; NaN: there are none
    """

    method: str
    entries: Mapping[str, Entry]
    wall: float

    @property
    def problem(self) -> str:
        """Why there are no numbers; empty: there are."""
        return self.entries[BYTES].missing

    @property
    def balances(self) -> tuple[float, ...]:
        """(global + personal before) / 2 of every seed; none where one of both is not there."""
        both = zip(self.entries[GLOBAL].values, self.entries[BEFORE].values, strict=False)
        return tuple((a + b) / 2 for a, b in both)

    def values(self, quantity: str) -> tuple[float, ...]:
        """One number for each seed; none: there is no such model."""
        return self.balances if quantity == BALANCE else self.entries[quantity].values

    def mean(self, quantity: str) -> float:
        """The mean over seeds; NaN: there is none."""
        found = self.values(quantity)
        return float(np.mean(found)) if found else math.nan

    def cell(self, quantity: str) -> str:
        """The mean over seeds and, of several, the sample standard deviation."""
        found, mean = self.values(quantity), self.mean(quantity)
        if not found:
            return NONE
        digits = 1 if quantity in SCORES else max(0, 2 - math.floor(math.log10(mean))) if mean > 0 else 0
        spread = f" ± {np.std(found, ddof=1):.{digits}f}" if len(found) > 1 else ""
        return f"{mean:.{digits}f}{spread}"


def rows_of(outcome: Outcome, data: str) -> list[Row]:
    """The methods that were asked for, best first; what failed comes last."""
    found: dict[str, dict[str, Entry]] = {}
    for entry in outcome.entries:
        if entry.line.data == data and entry.missing != NOT_ASKED:
            found.setdefault(entry.line.method, {})[entry.line.quantity] = entry
    rows = [Row(method=m, entries=entries, wall=_wall(outcome, entries[BYTES])) for m, entries in found.items()]

    def key(row: Row) -> tuple[float, float, str]:
        balance, before = row.mean(BALANCE), row.mean(BEFORE)
        return (_last(balance), _last(before), row.method)

    return sorted(rows, key=key)


def _last(value: float) -> float:
    """A key that puts the largest first and what is not there last."""
    return math.inf if math.isnan(value) else -value


def _wall(outcome: Outcome, entry: Entry) -> float:
    names = [f"{entry.line.case}-s{seed}" for seed in outcome.options.seeds]
    known = [outcome.seconds[n] for n in names if n in outcome.seconds]
    return float(np.mean(known)) if known and not entry.missing else math.nan


def cells(rows: Sequence[Row], mark: Callable[[str], str] = str) -> list[tuple[str, ...]]:
    """The texts under `HEADERS`.

    :param mark: of the best of every kind of accuracy
    """
    best = {q: max((m for r in rows if not math.isnan(m := r.mean(q))), default=math.nan) for q in SCORES}
    return [
        (
            row.method,
            *(mark(row.cell(q)) if row.mean(q) == best[q] else row.cell(q) for q in SCORES),
            *(row.cell(q) for q in COSTS),
            NONE if math.isnan(row.wall) else f"{row.wall:.0f}",
            row.problem,
        )
        for row in rows
    ]


def tables(outcome: Outcome) -> RenderableType:
    """A table per data set, for the terminal."""
    out = []
    for data in dict.fromkeys(e.line.data for e in outcome.entries):
        table = Table(title=Text(data), title_justify="left")
        for name in HEADERS:
            table.add_column(name, justify="left" if name in ("method", REMARK) else "right", overflow="fold")
        for texts in cells(rows_of(outcome, data)):
            table.add_row(*map(Text, texts))
        out.append(table)
    return Group(*out)


def draw(title: str, names: Mapping[str, str], runs: Mapping[str, list[RunFolder]]) -> str:
    """Global against personal accuracy before training as SVG; empty: no method has both.

    :param names: case -> method
    """
    points = {
        name: (_mean(runs[case], "global"), _mean(runs[case], "personal_pre"))
        for case, name in names.items()
        if runs.get(case)
    }
    if not any(math.isfinite(a) and math.isfinite(b) for a, b in points.values()):
        return ""
    axes = {"x": "global accuracy, %", "y": "personal accuracy before training, %"}
    return scatter(points, title=title, size=(760, 560), **axes)


def _mean(runs: list[RunFolder], model: str) -> float:
    return float(np.mean([accuracy(model)(run) for run in runs]))


def facts(rows: Sequence[Row]) -> list[str]:
    """What can be read off the table of a data set, as sentences."""
    rows = [r for r in rows if not r.problem]
    if not rows:
        return []
    samples = _samples(rows)
    out = [text for q in (BALANCE, GLOBAL, TEAM, BEFORE, AFTER) if (text := _leaders(rows, q, samples))]
    if worst := _ranked(rows, WORST):
        out.append(f"Best for the worst tenth of the devices: {_named(worst[:3], WORST)}.")
    return [*out, *_against(rows), *_cheapest(rows, samples)]


def _samples(rows: Sequence[Row]) -> float:
    """Test samples of all devices, a mean over seeds."""
    return next(r.mean(SAMPLES) for r in rows if not r.problem)


def noise(percent: float, samples: float) -> float:
    """Two standard errors of an accuracy on so many test samples, in percentage points."""
    share = percent / 100
    return 200 * math.sqrt(share * (1 - share) / samples)


def _ranked(rows: Sequence[Row], quantity: str) -> list[Row]:
    return sorted((r for r in rows if r.values(quantity)), key=lambda r: -r.mean(quantity))


def _close(rows: Sequence[Row], quantity: str, samples: float) -> list[Row]:
    """The best, and those that are not to be told from it."""
    ranked = _ranked(rows, quantity)
    if not ranked:
        return []
    best = ranked[0].mean(quantity)
    return [r for r in ranked if best - r.mean(quantity) <= noise(best, samples)]


def _leaders(rows: Sequence[Row], quantity: str, samples: float) -> str:
    close = _close(rows, quantity, samples)
    if not close:
        return ""
    best, *others = close
    if len(_ranked(rows, quantity)) == 1:
        return f"Alone in the column {quantity}: {_named([best], quantity)}."
    far = f"{noise(best.mean(quantity), samples):.1f}"
    if not others:
        return f"Best {quantity}: {_named([best], quantity)}, by more than the {far} points of chance."
    more = f" and {len(others) - MOST_NAMED} more" if len(others) > MOST_NAMED else ""
    return (
        f"Best {quantity}: {_named([best], quantity)}; within the {far} points of chance: "
        f"{_named(others[:MOST_NAMED], quantity)}{more}."
    )


def _named(rows: Sequence[Row], quantity: str) -> str:
    return ", ".join(f"`{r.method}` {r.mean(quantity):.1f}" for r in rows)


def _against(rows: Sequence[Row]) -> list[str]:
    by = {r.method: r for r in rows}
    out = []
    if "local" in by and len(by) > 1:
        base = by["local"].mean(BEFORE)
        others = [r for r in rows if r.method != "local" and r.values(BEFORE)]
        better = [r for r in others if r.mean(BEFORE) > base]
        out.append(
            f"Local-only training has {base:.1f}: {len(better)} of {len(others)} other methods predict better than "
            "that before local training."
        )
    if "fedavg" in by and by["fedavg"].values(GLOBAL):
        base = by["fedavg"].mean(GLOBAL)
        others = [r for r in rows if r.method != "fedavg" and r.values(GLOBAL)]
        better = [r for r in others if r.mean(GLOBAL) > base]
        out.append(
            f"FedAvg's global model has {base:.1f}: {len(better)} of {len(others)} other global models are better."
        )
    if teams := [r for r in rows if r.values(TEAM) and r.values(GLOBAL)]:
        better = [r for r in teams if r.mean(TEAM) > r.mean(GLOBAL)]
        out.append(f"The team models are better than the global one for {len(better)} of {len(teams)} methods.")
    return out


def _cheapest(rows: Sequence[Row], samples: float) -> list[str]:
    close = [r for r in _close(rows, BEFORE, samples) if r.values(BYTES)]
    if not close:
        return []
    least = min(close, key=lambda r: r.mean(BYTES))
    beside = next((f"; FedAvg: {r.cell(BYTES)} MB" for r in rows if r.method == "fedavg"), "")
    return [f"Least traffic among the best personal models: `{least.method}`, {least.cell(BYTES)} MB{beside}."]


def markdown(sets: Mapping[str, tuple[str, Tables]], settings: Sequence[tuple[str, ...]], outcome: Outcome) -> str:
    """The page.

    :param sets: title of a data set -> what it is, and the config of a plain method
    :param settings: rows of the table of settings
    """
    study, seeds = outcome.study, outcome.options.seeds
    over = f"Seed {', '.join(map(str, seeds))}" + (", mean ± standard deviation" if len(seeds) > 1 else "")
    parts = [
        "# All methods, one budget",
        study.compared,
        *([f"**{scale_text(outcome)}**"] if outcome.scaled else []),
        f"{MEANING} {over}. Bold: the best of a column; {NONE}: there is no such model.",
    ]
    if skipped := sorted({e.line.method for e in outcome.entries if e.missing == NOT_ASKED}):
        parts.append(f"Not asked for (`--methods`): {', '.join(f'`{m}`' for m in skipped)}.")
    pictures = drawn(outcome)
    for figure, (title, (about, _)) in zip(study.figures, sets.items(), strict=True):
        file, rows = f"{study.name}-{figure.name}.svg", rows_of(outcome, title)
        parts += [f"## {title}", about, _table(rows)]
        if file in pictures:
            parts.append(f"![{figure.caption}]({file})")
        if said := facts(rows):
            parts += [
                'What follows from the numbers. "Chance" is two standard errors of the best accuracy on the '
                f"{_samples(rows):.0f} test samples; how far training scatters is seen over seeds.",
                "\n".join(f"- {fact}" for fact in said),
            ]
    parts += ["## Settings", "FedAvg on each data set; what is not there is the default:"]
    parts += [f"```toml\n{tomli_w.dumps(dict(config))}```" for _, config in sets.values()]
    parts += [
        "The others have another `algorithm.name` and nothing else, but for these:",
        grid(("method", "gradients of a visit", "team rounds", "own settings", "why"), settings),
        "## What to keep in mind",
        "\n".join(f"- {note}" for note in study.notes),
        "## To repeat it",
        f"```sh\n{command(outcome)} --write-docs\n```",
        f"The runs took {duration(sum(outcome.seconds.values()))} in all. The command goes on where it was stopped; "
        "`--data-dir` says where the data sets are, `--methods` chooses some, `--scale` trains a share of the rounds.",
    ]
    return "\n\n".join(parts) + "\n"


def _table(rows: Sequence[Row]) -> str:
    """The table of a data set, or the one reason why there is none."""
    reasons = {r.problem for r in rows}
    if len(reasons) == 1 and (reason := next(iter(reasons))):
        return f"No numbers: {reason}."
    remarks = bool(reasons - {""})
    texts = [(f"`{method}`", *rest) for method, *rest in cells(rows, lambda text: f"**{text}**")]
    return grid(HEADERS if remarks else HEADERS[:-1], texts if remarks else [t[:-1] for t in texts])
