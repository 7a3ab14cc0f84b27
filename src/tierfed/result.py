"""What a run tells while it runs, and what it leaves in the hands of Python."""

import copy
import html
import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from torch import nn

from tierfed.engine import Engine
from tierfed.engine.evaluate import models
from tierfed.errors import InputError, nearest
from tierfed.metrics import Row, to_table
from tierfed.record import headline
from tierfed.setup import World
from tierfed.task import Task
from tierfed.ties import Ties
from tierfed.ties import to_table as ties_table
from tierfed.tree import Params


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What a watcher is told after every round (0: before the first one)."""

    name: str
    round: int
    rounds: int
    scores: dict[str, float]  # model -> main metric, sample-weighted, of the last evaluation
    evaluated: bool  # in this round
    bytes: int  # on all links so far
    stopped: str = ""
    doing: str = ""  # what goes on between rounds and before round 0, where that takes a while
    spent: str = ""
    """Differential privacy spent up to the last evaluation: epsilon of every promise; empty: nothing is promised."""
    margins: dict[str, float] = field(default_factory=dict)
    """Half widths of the 95 % confidence intervals of the scores, where a sample of the devices was evaluated."""
    metrics: dict[str, float] = field(default_factory=dict, repr=False)
    """Numbers of this round, not those of single devices: scores as "personal_pre/accuracy/worst", costs as
    "cloud/joules", "link/cloud-fog/up_bytes"."""


Watcher = Callable[[Progress], None]


@dataclass(frozen=True, kw_only=True)
class Result:
    """A finished or interrupted run."""

    folder: Path | None
    rows: list[Row] = field(repr=False)
    events: list[dict[str, Any]] = field(repr=False)
    world: World = field(repr=False)
    engine: Engine = field(repr=False)
    recorded: list[Ties] = field(repr=False)
    """Who listens to whom, of every evaluation; `ties` is a table of it."""
    trained: int
    """Rounds of this call; none where a finished run was resumed."""
    interrupted: bool = False
    personalized: "Result | None" = field(default=None, repr=False)
    """The stage after the training, where the config asks for one."""

    @property
    def metrics(self) -> pa.Table:
        """All metrics in long form: round, tier, node, model, split, metric, value."""
        return to_table(self.rows)

    @property
    def ties(self) -> pa.Table:
        """Who listens to whom in long form: round, node, layer, device, other, weight; empty where nobody mixes."""
        return ties_table(self.world, self.recorded)

    def frame(self, library: Literal["pandas", "polars"] = "pandas") -> Any:
        """`metrics` as a data frame.

        :raises InputError: no such library, or it is not installed
        """
        if library not in ("pandas", "polars"):
            raise InputError(f"library = {library!r} is unknown; {nearest(library, ('pandas', 'polars'))}")
        try:
            frames = importlib.import_module(library)
        except ModuleNotFoundError as err:
            if err.name != library:
                raise
            raise InputError(
                f"{library} is not installed; pip install {library}, or take `metrics`, a pyarrow table"
            ) from None
        return self.metrics.to_pandas() if library == "pandas" else frames.from_arrow(self.metrics)

    def _repr_html_(self) -> str:
        """What a notebook shows: the last scores."""
        where = "no folder" if self.folder is None else html.escape(str(self.folder))
        rows = "".join(f"<tr><th>{name}</th><td>{value:.4f}</td></tr>" for name, value in self.scores.items())
        return f"<table><caption>round {self.engine.round}, {where}</caption>{rows}</table>"

    @property
    def scores(self) -> dict[str, float]:
        """The sample-weighted main metric of every model in the last evaluation; empty before the first one."""
        last = max((r.round for r in self.rows if r.model), default=0)
        return headline([r for r in self.rows if r.round == last])

    def global_model(self) -> nn.Module:
        """The cloud's model.

        :raises InputError: the algorithm has none
        """
        params = self.engine.tiers[0].model(self.engine.kept(0, 0))
        if params is None or params.keys() < set(self.world.task.keys):
            raise InputError(
                f"{type(self.world.algorithm).__name__} has no complete global model; ask for a personal_model"
            )
        return _module(self.world.task, params)

    def personal_model(self, device: str) -> nn.Module:
        """What a device predicts with now (personal_pre).

        :raises InputError: no such device
        """
        names = self.world.federation.devices
        if device not in names:
            raise InputError(f"no device {device!r}; {nearest(device, names)}")
        i = names.index(device)
        (found,) = models(self.engine, np.array([i]), post=False)
        return _module(self.world.task_of(i), found.personal_pre)


def _module(task: Task, params: Params) -> nn.Module:
    module = copy.deepcopy(task.module).cpu().eval()
    module.load_state_dict({k: v.cpu() for k, v in params.items()}, strict=False)
    return module
