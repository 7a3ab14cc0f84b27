"""What a sweep may choose from: config keys and their values, as Optuna's distributions or as points of a grid."""

import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tierfed.errors import InputError, nearest
from tierfed.settings import flat

KINDS = ("float", "log", "int", "choice")
_EXAMPLE = "wanted a list, or a text such as log:0.001:0.3, float:0:1, int:1:5, choice:a,b"
_MOST_POINTS = 100_000


@dataclass(frozen=True, kw_only=True)
class Values:
    """What one key may be: one of `choices`, or a number of a range.

    :param step: of a range of numbers; of a logarithmic one the number of its points
    """

    kind: Literal["choice", "float", "log", "int"]
    choices: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    step: float | None = None

    def points(self, key: str) -> list[Any]:
        """Every value, in order.

        :raises InputError: a range that has no end of them
        """
        if self.kind == "choice":
            return list(self.choices)
        if self.kind == "int":
            return list(range(int(self.low), int(self.high) + 1, int(self.step or 1)))
        if self.step is None:
            more = f"{self.kind}:{self.low:g}:{self.high:g}:" + ("5 (points)" if self.kind == "log" else "0.1 (step)")
            raise InputError(f"sweep.params {key!r}: a grid needs values to count, for example {more}, or a list")
        if self.kind == "log":
            n = int(self.step)
            ratios = [i / max(1, n - 1) for i in range(n)]
            return [float(f"{math.exp((1 - r) * math.log(self.low) + r * math.log(self.high)):.6g}") for r in ratios]
        count = int((self.high - self.low) / self.step + 1e-9) + 1
        return [round(self.low + i * self.step, 12) for i in range(count)]


def space(params: Mapping[str, Any]) -> dict[str, Values]:
    """Key -> values; tables inside are keys with dots.

    :raises InputError: none, or one that cannot be read
    """
    found = {key: values(key, what) for key, what in flat(params)}
    if not found:
        raise InputError(
            "a sweep needs something to choose from: --param algorithm.lr=log:0.001:0.3, or [sweep.params]"
        )
    return found


def values(key: str, what: Any) -> Values:
    """What a key may be, from a list, or from a text such as "log:0.001:0.3".

    :raises InputError: it is neither
    """
    where = f"sweep.params {key!r} = {what!r}"
    if key.count(".") < 1:
        raise InputError(f"{where}: wanted a key of the config, for example algorithm.lr")
    if isinstance(what, (list, tuple)):
        if not what:
            raise InputError(f"{where}: an empty list; {_EXAMPLE}")
        return Values(kind="choice", choices=tuple(what))
    if not isinstance(what, str):
        raise InputError(f"{where}: one value is no choice; {_EXAMPLE}")
    kind, colon, rest = what.partition(":")
    if not colon:
        return _listed(kind, where)
    if kind not in KINDS:
        raise InputError(f"{where}: no kind of values {kind!r}; {nearest(kind, KINDS)}")
    return _listed(rest, where) if kind == "choice" else _range(kind, rest.split(":"), where)


def _listed(text: str, where: str) -> Values:
    words = [w.strip() for w in text.split(",") if w.strip()]
    if len(words) < 2:
        raise InputError(f"{where}: one value is no choice; {_EXAMPLE}")
    return Values(kind="choice", choices=tuple(map(_word, words)))


def _word(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _range(kind: str, parts: list[str], where: str) -> Values:
    try:
        low, high, *step = (float(p) for p in parts)
    except ValueError:
        raise InputError(f"{where}: wanted numbers, {kind}:LOW:HIGH or {kind}:LOW:HIGH:STEP") from None
    whole = kind == "int" and any(v != int(v) for v in (low, high, *step))
    if not low < high or len(step) > 1 or (step and step[0] <= 0) or whole or (kind == "log" and low <= 0):
        hint = "whole numbers" if whole else "above 0" if kind == "log" else "LOW less than HIGH"
        raise InputError(f"{where}: wanted {kind}:LOW:HIGH or {kind}:LOW:HIGH:STEP, {hint}")
    return Values(kind=kind, low=low, high=high, step=step[0] if step else None)  # type: ignore[arg-type]


def grid(chosen: Mapping[str, Values]) -> list[dict[str, Any]]:
    """Every combination, the last key changing fastest.

    :raises InputError: a range that has no end of values, or too many of them
    """
    axes = {key: v.points(key) for key, v in chosen.items()}
    count = math.prod(map(len, axes.values()))
    if count > _MOST_POINTS:
        raise InputError(f"the grid has {count:,} combinations; take fewer values, or --method tpe")
    return [dict(zip(axes, point, strict=True)) for point in itertools.product(*axes.values())]


def encoded(value: Any) -> Any:
    """A choice as Optuna keeps it: what is no plain value becomes JSON."""
    return value if isinstance(value, (bool, int, float, str)) else json.dumps(value)


def decoded(values: Values, value: Any) -> Any:
    """The choice that `encoded` was made from."""
    return next((c for c in values.choices if encoded(c) == value), value)
