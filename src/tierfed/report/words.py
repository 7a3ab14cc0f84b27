"""Numbers and names as people read them."""

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tierfed.metrics import Floats

ALPHA = "\N{GREEK SMALL LETTER ALPHA}"
EPSILON = "\N{GREEK SMALL LETTER EPSILON}"
MINUS = "\N{MINUS SIGN}"
NONE = "\N{EN DASH}"
INTERVAL = "± half the width of the 95 % confidence interval for the mean over all devices"
BAND = "10th\N{EN DASH}90th percentile"

MODEL_NAMES = {
    "global": "global",
    "team": "team",
    "personal_pre": "personal, before training",
    "personal_post": "personal, after training",
}

METRIC_NAMES = {
    "accuracy": "accuracy",
    "abs_error": "absolute error",
    "squared_error": "squared error",
    "loss": "loss",
    "alpha": f"mixing weight {ALPHA}",
    "jg": "global loss on validation data",
    "jl": "local loss on validation data",
    "epsilon_device": f"privacy spent per device, {EPSILON}",
    "epsilon_fog": f"privacy spent per team, {EPSILON}",
    "epsilon_sample": f"privacy spent per sample, {EPSILON}",
    "tie": "distance to the parent's model",
    "zeta": "stopping threshold \N{GREEK SMALL LETTER ZETA}",
}

_PREFIXES = ("", "k", "M", "G", "T", "P")


class Grid(NamedTuple):
    """A table of texts: the first `text` columns are words, the others numbers; `note` explains."""

    headers: tuple[str, ...]
    rows: list[list[str]]
    note: str = ""
    text: int = 1


def score(value: float | None, metric: str, signed: bool = False) -> str:
    """A score: a percentage with one decimal for an accuracy, four significant digits for the rest.

    >>> score(0.8125, "accuracy"), score(12.3456, "abs_error"), score(0.05, "accuracy", signed=True)
    ('81.2 %', '12.35', '+5.0 %')
    """
    if value is None:
        return NONE
    if not math.isfinite(value):
        return "not finite"
    text = f"{value:{'+' * signed}.1%}".replace("%", " %") if metric == "accuracy" else f"{value:{'+' * signed}.4g}"
    return text.replace("-", MINUS, 1) if text.startswith("-") else text


def within(value: float | None, half: float | None, metric: str, signed: bool = False) -> str:
    """A score with the half width of its confidence interval, where there is one.

    >>> within(0.8125, 0.0123, "accuracy"), within(12.3456, 0.5, "abs_error"), within(0.5, None, "accuracy")
    ('81.2 % ± 1.2', '12.35 ± 0.5', '50.0 %')
    """
    text = score(value, metric, signed)
    if half is None or not math.isfinite(half) or value is None or not math.isfinite(value):
        return text
    return f"{text} ± {half * 100:.1f}" if metric == "accuracy" else f"{text} ± {half:.2g}"


def amount(value: float | None, unit: str) -> str:
    """A quantity with a decimal prefix and three significant digits.

    >>> amount(1_234_567.0, "B"), amount(0.0, "J"), amount(12.0, "B")
    ('1.23 MB', '0 J', '12 B')
    """
    if value is None:
        return NONE
    if not math.isfinite(value):
        return "not finite"
    step = scale(value)
    return f"{_digits(value / 1000**step)} {_PREFIXES[step]}{unit}"


def scale(largest: float) -> int:
    """The power of 1000 that a column or an axis up to `largest` is written in."""
    return min(max(0, math.floor(math.log10(abs(largest)) / 3)), len(_PREFIXES) - 1) if largest else 0


def unit(step: int, symbol: str) -> str:
    """The symbol of a unit times 1000 ** step: (2, "B") is "MB"."""
    return _PREFIXES[step] + symbol


def duration(seconds: float | None) -> str:
    """A time span.

    >>> duration(0.5), duration(90.0), duration(7260.0), duration(200_000.0)
    ('0.5 s', '1 min 30 s', '2 h 1 min', '2 d 7 h')
    """
    if seconds is None:
        return NONE
    if not math.isfinite(seconds):
        return "not finite"
    if seconds < 60:
        return f"{_digits(seconds)} s"
    whole = round(seconds)
    for big, size, small, part in (("d", 86400, "h", 3600), ("h", 3600, "min", 60)):
        if whole >= size:
            return f"{whole // size} {big} {whole % size // part} {small}"
    return f"{whole // 60} min {whole % 60} s"


def metric_name(metric: str) -> str:
    """What a metric is called in a title."""
    return METRIC_NAMES.get(metric, metric.replace("_", " "))


def spread(values: Floats, metric: str, signed: bool = False) -> str:
    """Mean and, with two values or more, sample standard deviation: "81.2 % ± 0.4"."""
    known = values[~np.isnan(values)]
    if not known.size:
        return NONE
    text = score(float(known.mean()), metric, signed)
    if known.size < 2 or not np.isfinite(known).all():
        return text
    deviation = float(known.std(ddof=1))
    return f"{text} ± {deviation * 100:.1f}" if metric == "accuracy" else f"{text} ± {deviation:.2g}"


def capped(headers: tuple[str, ...], rows: list[list[str]], limit: int = 60, text: int = 1) -> Grid:
    """A table of at most `limit` rows, taken evenly, the first and the last among them."""
    if len(rows) <= limit:
        return Grid(headers, rows, text=text)
    keep = np.unique(np.linspace(0, len(rows) - 1, limit).round().astype(int))
    return Grid(headers, [rows[i] for i in keep], f"{limit} of {len(rows)} rows, evenly taken", text)


def _digits(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 999.5 else f"{value:.0f}"


def data_name(source: str, path: Any) -> str:
    """What data are called in a heading: a file of the user by its name."""
    return Path(path).stem if source in ("csv", "npz", "parquet") and path else source.removeprefix("given:")
