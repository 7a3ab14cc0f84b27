"""Engines: how a round of an algorithm is walked over a tree."""

from tierfed.engine.base import Engine
from tierfed.engine.log import RoundLog
from tierfed.engine.serial import Serial
from tierfed.engine.vectorized import Vectorized

ENGINES: dict[str, type[Engine]] = {"serial": Serial, "vectorized": Vectorized}

__all__ = ["ENGINES", "Engine", "RoundLog", "Serial", "Vectorized"]
