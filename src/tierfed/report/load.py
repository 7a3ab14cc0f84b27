"""The files of a run folder, read and checked, behind a few typed accessors."""

import json
import math
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tierfed.config import STAGE
from tierfed.errors import InputError
from tierfed.metrics import METRICS, MODELS, TIES, Floats, Scores, higher_is_better, main_metric, summarize

Ints = npt.NDArray[np.int64]
Direction = Literal["down", "up"]
T = TypeVar("T")

DEVICES = pa.schema(
    [
        ("device", pa.string()),
        ("team", pa.string()),
        ("train", pa.int64()),
        ("val", pa.int64()),
        ("test", pa.int64()),
        ("counts", pa.list_(pa.int64())),
    ]
)
"""The columns of `devices.parquet`, one device a row."""

MAX_DEVICES = 500
"""Devices in a chart that draws every one of them; of more some are taken, evenly."""

# what cost accounting writes beside the traces of the algorithm, with an empty model name as well
_COSTS = ("round_seconds", "clock_seconds", "joules", "compute_seconds", "compute_joules", "edge_seconds")


class Panel(NamedTuple):
    """One metric over rounds and nodes: `rounds` [R], N names in `nodes`, `values` [R, N], NaN where not logged."""

    rounds: Ints
    nodes: tuple[str, ...]
    values: Floats


class Devices(NamedTuple):
    """The devices of a run, N of them: names, initial teams ("" if flat), sample counts [N], label counts [N, L]; of
    many devices some have label counts, the others zeros. Names of labels where they are known."""

    names: tuple[str, ...]
    teams: tuple[str, ...]
    train: Ints
    val: Ints
    test: Ints
    counts: Ints
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """A run as its folder tells it. Make one with `RunFolder.read`."""

    path: Path
    config: dict[str, Any]
    config_text: str
    devices: Devices
    metrics: pa.Table
    events: tuple[dict[str, Any], ...]

    @classmethod
    def read(cls, path: Path) -> "RunFolder":
        """Read and check the four files of a run folder.

        :raises InputError: a file is missing, damaged or does not belong to the others
        """
        text = load(path, "config.toml", lambda p: p.read_text(encoding="utf-8"))
        run = cls(
            path=path,
            config=load(path, "config.toml", lambda p: tomllib.loads(text)),
            config_text=text,
            devices=load(path, "devices.parquet", _devices),
            metrics=load(path, "metrics.parquet", lambda p: read_table(p, METRICS)),
            events=load(path, "events.jsonl", _events),
        )
        if not isinstance(run.setting("algorithm", "name"), str):
            raise InputError(
                f"{path / 'config.toml'} names no algorithm, wanted a table [algorithm] with a name; "
                "give the folder of a run made by 'tierfed run'"
            )
        return run

    def setting(self, section: str, key: str, default: Any = None) -> Any:
        """One value of the resolved config, or the default."""
        table = self.config.get(section)
        return table.get(key, default) if isinstance(table, dict) else default

    @property
    def algorithm(self) -> str:
        """The name of the algorithm."""
        return str(self.setting("algorithm", "name"))

    @property
    def seed(self) -> int:
        """The seed of the run; 0 if the config has none."""
        return int(self.setting("run", "seed", 0))

    @property
    def source(self) -> str:
        """The name of the data set."""
        return str(self.setting("data", "source", "unknown data"))

    @cached_property
    def metric(self) -> str:
        """The metric that headlines show: "accuracy" for classification, "abs_error" for regression."""
        logged = set(pc.unique(self.metrics["metric"]).to_pylist())
        return main_metric("regression" if main_metric("regression") in logged else "classification")

    @property
    def higher_is_better(self) -> bool:
        """The direction of the headline metric."""
        return higher_is_better(self.metric)

    @cached_property
    def models(self) -> tuple[str, ...]:
        """The evaluated models, in the order of `MODELS`."""
        logged = set(pc.unique(self.metrics["model"]).to_pylist())
        return tuple(m for m in MODELS if m in logged)

    @cached_property
    def last_round(self) -> int:
        """The last round that left a number; 0 before the first."""
        return int(pc.max(self.metrics["round"]).as_py() or 0)

    @property
    def teams(self) -> tuple[str, ...]:
        """The names of the initial teams, sorted; empty if the tree is flat."""
        return tuple(sorted({t for t in self.devices.teams if t}))

    @cached_property
    def above(self) -> dict[str, tuple[str, ...]]:
        """The nodes between the cloud and each initial team, from the cloud down; empty where teams are right below.

        :raises InputError: the file of devices is damaged
        """
        return load(self.path, "devices.parquet", _above)

    def panel(self, tier: str, metric: str, model: str = "", split: str = "") -> Panel:
        """One metric of one tier over rounds and nodes; devices come in the order of `devices`.

        :raises InputError: a device that `devices.parquet` does not list
        """
        key = (tier, metric, model, split)
        if key not in self._panels:
            self._panels[key] = self._panel(*key)
        return self._panels[key]

    @cached_property
    def _panels(self) -> dict[tuple[str, str, str, str], Panel]:
        # a report asks for the same panel many times, and each search reads the whole table
        return {}

    def _panel(self, tier: str, metric: str, model: str, split: str) -> Panel:
        table = self._rows(tier, metric, model, split)
        names = self.devices.names if tier == "device" else tuple(sorted(set(table["node"].to_pylist())))
        column = self.places(table, metric, names)
        rounds, row = np.unique(table["round"].to_numpy().astype(np.int64), return_inverse=True)
        values = np.full((len(rounds), len(names)), np.nan)
        values[row, column] = table["value"].to_numpy()
        return Panel(rounds, names, values)

    def places(self, table: pa.Table, metric: str, names: tuple[str, ...]) -> Ints:
        """The places of the nodes of a table among some names."""
        column = pc.index_in(table["node"], value_set=pa.array(names, pa.string())).fill_null(-1).to_numpy()
        if (column < 0).any():
            stranger = table["node"][int(np.argmin(column))].as_py()
            raise InputError(
                f"{self.path / 'metrics.parquet'} holds {metric} of device {stranger!r}, which devices.parquet does "
                "not list; the files come from different runs: run again into an empty folder"
            )
        places: Ints = column.astype(np.int64)
        return places

    def scores(self, model: str, metric: str = "") -> dict[int, Scores]:
        """One metric (the headline metric by default) of a model on each device's test set: evaluated round -> scores
        of the devices that were evaluated.

        :raises InputError: a device that `devices.parquet` does not list
        """
        key = (model, metric or self.metric)
        if key not in self._scores:
            table = self._rows("device", key[1], model, "test")
            places, rounds = self.places(table, key[1], self.devices.names), table["round"].to_numpy()
            order = np.lexsort((places, rounds))
            found, begin = np.unique(rounds[order], return_index=True)
            parts = (np.split(a[order], begin[1:]) for a in (places, table["value"].to_numpy()))
            each = [Scores(*pair) for pair in zip(*parts, strict=True)]
            self._scores[key] = dict(zip(found.tolist(), each, strict=False))  # no rounds: one empty part
        return self._scores[key]

    @cached_property
    def _scores(self) -> dict[tuple[str, str], dict[int, Scores]]:
        return {}

    def last_scores(self, model: str) -> Scores:
        """The headline metric of a model on the devices of the last evaluated round."""
        found = self.scores(model)
        return found[max(found)] if found else Scores(np.zeros(0, np.int64), np.zeros(0))

    def curve(self, model: str, metric: str = "") -> tuple[Ints, Floats]:
        """The mean over devices, weighted by test samples, in each evaluated round: rounds [R] and values [R]."""
        found = self.scores(model, metric)
        means = [summarize(values, self.devices.test[places])["weighted"] for places, values in found.values()]
        return np.array(list(found), np.int64), np.array(means)

    def margins(self, model: str, metric: str = "") -> dict[int, float]:
        """Evaluated round -> half width of the 95 % confidence interval of `curve`; of samples of the devices alone."""
        panel = self.panel("cloud", f"{metric or self.metric}/weighted_ci95", model, "test")
        return dict(zip(panel.rounds.tolist(), panel.values[:, 0].tolist(), strict=True)) if panel.values.size else {}

    def statistics(self, model: str) -> dict[str, float]:
        """The statistics of the headline metric over devices in the last evaluated round, as `metrics.summarize` names
        them, with `worst_device`; where a baseline was known, `gain`; of a sample of the devices, half widths of 95 %
        confidence intervals: `weighted_ci95`, `ci95` of the mean, `gain_ci95`."""
        places, values = self.last_scores(model)
        samples = self.devices.test[places]
        statistics = summarize(values, samples, higher_is_better=self.higher_is_better)
        statistics["worst_device"] = summarize(values, samples, 0.0, self.higher_is_better)["worst"]
        last = max(self.scores(model), default=0)
        for name in ("gain", "gain_ci95", "weighted_ci95", "ci95"):
            panel = self.panel("cloud", f"{self.metric}/{name}", model, "test")
            if panel.values.size and panel.rounds[-1] == last:
                statistics[name] = float(panel.values[-1, 0])
        return statistics

    @cached_property
    def sampled(self) -> int:
        """How many devices the last evaluation has drawn; 0: it was of all."""
        logged = any("ci95" in self.statistics(m) for m in self.models)
        return int(self.setting("eval", "devices", 0)) if logged else 0

    @property
    def sample(self) -> str:
        """The same in words; empty: the last evaluation was of all devices."""
        return f"sample of {self.sampled:,} of {len(self.devices.names):,} devices" if self.sampled else ""

    def cost(self, tier: str, metric: str) -> Panel:
        """A cost over rounds: of each link (tier "link"), of the cloud, or summed over devices (tier "device")."""
        if tier != "device":
            return self.panel(tier, metric)
        table = self._rows(tier, metric, "", "")
        return Panel(table["round"].to_numpy().astype(np.int64), ("",), table["value"].to_numpy()[:, None])

    def total(self, tier: str, metric: str) -> float | None:
        """The sum of a cost over rounds and nodes, or None if it was not logged."""
        values = self.cost(tier, metric).values
        return float(np.nansum(values)) if values.size else None

    @property
    def total_bytes(self) -> float | None:
        """All bytes of all links, both directions, or None if none were counted."""
        down, up = self.total("link", "down_bytes"), self.total("link", "up_bytes")
        return None if down is None and up is None else (down or 0.0) + (up or 0.0)

    @property
    def clock_seconds(self) -> float | None:
        """The virtual time at the end of the run, or None if it was not logged."""
        values = self.panel("cloud", "clock_seconds").values
        return float(values[-1, 0]) if values.size else None

    @cached_property
    def traces(self) -> tuple[tuple[str, str], ...]:
        """What the algorithm itself logs, as sorted (tier, metric) pairs, the mixing weight alpha first."""
        table = self.metrics.filter(pc.and_(pc.equal(self.metrics["model"], ""), pc.equal(self.metrics["split"], "")))
        pairs = table.group_by(["tier", "metric"]).aggregate([]).to_pylist()
        found = {(p["tier"], p["metric"]) for p in pairs if p["tier"] != "link" and p["metric"] not in _COSTS}
        return tuple(sorted(found, key=lambda pair: (pair[1] != "alpha", pair)))

    @cached_property
    def ties(self) -> pa.Table:
        """Who listens to whom (schema `TIES`); no rows where no node mixes the models of its children.

        :raises InputError: the file is damaged
        """
        if not (self.path / "ties.parquet").exists():
            return TIES.empty_table()
        return load(self.path, "ties.parquet", lambda p: read_table(p, TIES))

    @cached_property
    def later(self) -> "RunFolder | None":
        """The personalization of the run's models, once that has left numbers.

        :raises InputError: a file of it is damaged
        """
        path = self.path / STAGE
        return RunFolder.read(path) if (path / "metrics.parquet").exists() else None

    def events_of(self, kind: str) -> list[dict[str, Any]]:
        """The events of one kind, in order."""
        return [e for e in self.events if e["event"] == kind]

    @property
    def ended(self) -> str:
        """How the run ended, in words."""
        stops, planned = self.events_of("stop"), self.setting("run", "rounds")
        if stops:
            return f"stopped in round {stops[-1]['round']}: {stops[-1].get('rule', 'rule not logged')}"
        if self.events_of("done"):
            return "all rounds done"
        of = f" of {planned}" if planned else ""
        return f"not finished: round {self.last_round}{of}"

    def _rows(self, tier: str, metric: str, model: str, split: str) -> pa.Table:
        wanted = {"tier": tier, "metric": metric, "model": model, "split": split}
        table = self.metrics
        # aggregates and costs may or may not name the split; the metric already says which they are
        for column in ("metric", "tier", "model", "split") if tier == "device" else ("metric", "tier", "model"):
            table = table.filter(pc.equal(table[column], wanted[column]))
        return table


def finite(value: float | None) -> float | None:
    """The value if it is a number, else None: what JSON and a chart can hold."""
    return value if value is not None and math.isfinite(value) else None


def read_json(path: Path, name: str) -> Any:
    """A JSON file of a folder.

    :raises InputError: missing or not JSON
    """
    return load(path, name, lambda p: json.loads(p.read_text(encoding="utf-8")))


def load(folder: Path, name: str, parse: Callable[[Path], T]) -> T:
    path = folder / name
    try:
        return parse(path)
    except FileNotFoundError:
        raise InputError(
            f"{folder} has no {name}, wanted a run folder with config.toml, devices.parquet, metrics.parquet and "
            "events.jsonl; give the folder that 'tierfed run' printed"
        ) from None
    # pyarrow's and the decoders' errors are all one of these
    except (OSError, ValueError, KeyError, TypeError) as err:
        if isinstance(err, InputError):
            raise
        reason = str(err).splitlines()[0] if str(err) else type(err).__name__
        raise InputError(
            f"{path} cannot be read ({reason}), wanted the file as the run wrote it; "
            "continue the run with 'tierfed resume', or run it again"
        ) from None


def read_table(path: Path, schema: pa.Schema) -> pa.Table:
    table = pq.read_table(path)
    missing = [name for name in schema.names if name not in table.column_names]
    if missing:
        raise ValueError(f"no column {missing[0]!r}")
    return table.select(schema.names).cast(schema)


def _devices(path: Path) -> Devices:
    table = read_table(path, DEVICES)
    names, teams = tuple(table["device"].to_pylist()), tuple(t or "" for t in table["team"].to_pylist())
    if not names or len(set(names)) < len(names):
        raise ValueError("no devices" if not names else "a device is listed twice")
    width = pc.max(pc.list_value_length(table["counts"])).as_py() or 0
    counts = np.zeros((len(names), width), np.int64)
    known = np.flatnonzero(table["counts"].is_valid().to_numpy(zero_copy_only=False))
    for i, count in zip(known, table["counts"].drop_null().to_pylist(), strict=True):
        counts[i, : len(count)] = count
    train, val, test = (table[key].to_numpy().astype(np.int64) for key in ("train", "val", "test"))
    labels = json.loads((pq.read_schema(path).metadata or {}).get(b"labels", b"[]"))
    return Devices(names, teams, train, val, test, counts, tuple(map(str, labels)))


def _above(path: Path) -> dict[str, tuple[str, ...]]:
    if "above" not in pq.read_schema(path).names:
        return {}
    table = pq.read_table(path, columns=["team", "above"]).to_pylist()
    return {row["team"]: tuple(row["above"]) for row in table}


def _events(path: Path) -> tuple[dict[str, Any], ...]:
    text = path.read_text(encoding="utf-8")
    lines = text.split("\n")
    # a line without its end is one that a killed run was writing
    events = [(n, json.loads(line)) for n, line in enumerate(lines[:-1], 1) if line.strip()]
    for number, event in events:
        if not isinstance(event, dict) or not isinstance(event.get("event"), str):
            raise ValueError(f"line {number} is no event")
    return tuple({"round": 0, **event} for _, event in events)
