"""What a sweep has tried: how good every trial was, and how that depends on each setting."""

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go

from tierfed.report.colors import PALETTE
from tierfed.report.load import read_json
from tierfed.report.style import Chart, chart, plain, safe
from tierfed.report.words import NONE, capped

TRIALS = "trials.json"
_RATIO = 30.0  # a setting that spans more than this is drawn on a logarithmic axis
_ABOUT = ("trial", "value", "values", "state", "why")


class Trial(NamedTuple):
    """One setting that came to its end: its name, what it reached with each seed, what was chosen."""

    name: str
    values: tuple[float, ...]
    params: dict[str, Any]

    @property
    def mean(self) -> float:
        """What it is judged by."""
        return math.fsum(self.values) / len(self.values)

    @property
    def std(self) -> float:
        """Over its seeds; 0 of a single one."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else 0.0


def search(folder: Path, objective: str) -> list[Chart]:
    """All trials of a sweep in their order, and one chart for each setting; nothing where the folder is no sweep.

    :raises InputError: the list of trials is damaged
    """
    if not (folder / TRIALS).is_file():
        return []
    rows = read_json(folder, TRIALS)
    found = [
        Trial(r["trial"], tuple(r.get("values") or (r["value"],)), {k: v for k, v in r.items() if k not in _ABOUT})
        for r in rows
        if r["value"] is not None
    ]
    if not found:
        return []
    keys = list(dict.fromkeys(k for t in found for k in t.params))
    return [_over_time(found, objective), *(_over(found, key, objective) for key in keys)]


def _over_time(best_first: list[Trial], objective: str) -> Chart:
    """Every trial and the best one so far."""
    trials = sorted(best_first, key=lambda t: t.name)
    higher = best_first[0].mean >= best_first[-1].mean
    best = (np.maximum if higher else np.minimum).accumulate([t.mean for t in trials])
    seeds = len(trials[0].values)
    return chart(
        "Trials",
        [
            _points([t.name.removeprefix("trial-") for t in trials], trials),
            go.Scatter(
                x=[t.name.removeprefix("trial-") for t in trials],
                y=plain(best),
                name="best so far",
                mode="lines",
                line={"color": PALETTE[1], "shape": "hv", "width": 2},
                hoverinfo="skip",
            ),
        ],
        x="trial",
        y=objective,
        alt=f"{objective} of {len(trials)} trials in their order. The best is {best_first[0].name} with "
        f"{best_first[0].mean:.4g}.",
        data=_table(best_first),
        note=f"{objective}; {'higher' if higher else 'lower'} is better."
        + f" Mean and standard deviation over {seeds} seeds." * (seeds > 1),
        layout={"hovermode": "closest", "xaxis": {"type": "category"}},
    )


def _over(trials: list[Trial], key: str, objective: str) -> Chart:
    """How good trials were by one setting."""
    found = [t for t in trials if key in t.params]
    values = [t.params[key] for t in found]
    numbers = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values)
    xs = values if numbers else safe(_text(v) for v in values)
    low, high = (min(values), max(values)) if numbers else (0, 0)
    axis = {"type": "log" if low > 0 and high > _RATIO * low else "linear"} if numbers else {"type": "category"}
    return chart(
        key,
        [_points(xs, found)],
        x=key,
        y=objective,
        alt=f"{objective} of {len(found)} trials over {key}; the best has {_text(found[0].params[key])}.",
        data=_table(found),
        half=True,
        height=300,
        layout={"hovermode": "closest", "showlegend": False, "xaxis": axis},
    )


def _points(xs: list[Any], trials: list[Trial]) -> Any:
    std = [t.std for t in trials]
    return go.Scatter(
        x=xs,
        y=plain([t.mean for t in trials]),
        error_y={"type": "data", "array": plain(std), "thickness": 1.5, "width": 3} if any(std) else None,
        text=safe(f"{t.name}: {', '.join(f'{k} = {_text(v)}' for k, v in t.params.items())}" for t in trials),
        name="trial",
        mode="markers",
        marker={"color": PALETTE[0], "size": 8, "opacity": 0.8},
        hovertemplate="%{text}<br>%{y:.4g}<extra></extra>",
    )


def _table(trials: list[Trial]) -> Any:
    keys = list(dict.fromkeys(k for t in trials for k in t.params))
    rows = [
        [t.name, *(_text(t.params[k]) if k in t.params else NONE for k in keys), _value(t)]
        for t in sorted(trials, key=lambda t: t.name)
    ]
    return capped(("trial", *keys, "value"), rows, 200)


def _value(trial: Trial) -> str:
    return f"{trial.mean:.4g}" + (f" ± {trial.std:.2g}" if len(trial.values) > 1 else "")


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
