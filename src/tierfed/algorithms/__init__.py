"""Algorithms: one file per method, a row for each in `tierfed.registry`; third parties add theirs by the entry point
group `tierfed.algorithms`, or name them in a config as "package.module:Class"."""

from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from tierfed.algorithm import Algorithm
from tierfed.errors import InputError, nearest
from tierfed.lookup import imported
from tierfed.registry import REGISTRY, Entry
from tierfed.settings import build

GROUP = "tierfed.algorithms"

__all__ = ["GROUP", "REGISTRY", "Entry", "known", "make"]


@cache
def known() -> dict[str, Entry]:
    """All rows: the registry, and what other installed packages add."""
    others = {
        e.name: Entry(
            target=e.value, paper=f"from {e.dist.name if e.dist else 'a package'}", up="?", down="?", models="?"
        )
        for e in entry_points(group=GROUP)
    }
    return {**others, **REGISTRY}


def make(name: str, settings: Mapping[str, Any] | None = None, where: str = "algorithm") -> Algorithm:
    """An algorithm by its name in the registry, or by "package.module:Class", with hyper-parameters from a plain table.

    :param where: the name of the table in the config, for messages
    :raises InputError: unknown name or hyper-parameter (with the nearest valid one), impossible value, failed import
    """
    entry = known().get(name)
    if entry is None and ":" not in name:
        raise InputError(
            f"unknown algorithm {name!r}; {nearest(name, known())}; or give your own as 'package.module:Class'"
        )
    target, preset = (entry.target, entry.preset) if entry else (name, {})
    cls: Any = imported("algorithm", target, _is_algorithm)
    if not _is_algorithm(cls):
        raise InputError(f"algorithm {name!r} is {cls!r}; wanted a subclass of tierfed.algorithm.Algorithm")
    algorithm: Algorithm = build(cls, {**preset, **(settings or {})}, where)
    return algorithm


def _is_algorithm(found: Any) -> bool:
    return isinstance(found, type) and issubclass(found, Algorithm)
