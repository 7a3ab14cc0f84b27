"""Settings of what goes on around a training: searching, tracking, stopping in time."""

from dataclasses import dataclass, field
from typing import Any, Literal

from tierfed.settings import Count, Natural, NonNegative


@dataclass(frozen=True, kw_only=True)
class SelectSettings:
    """The best round of a run, by validation data (data.split.val), which never train: its models are kept beside the
    last ones, and `tierfed export` takes them.
    """

    by: str = ""
    """What is judged at every evaluation, as sweep.objective: `personal_pre`, `global/loss`,
    `0.5*global + 0.5*personal_pre`; "": nothing, the last models are the result."""
    patience: Natural = 0
    """Evaluations without a better one after which the run ends; 0: it trains all rounds."""
    min_delta: NonNegative = 0.0
    """How much better is better."""
    devices: Natural = 0
    """How many devices validate, drawn once per seed among those with validation data; 0: all of them."""


@dataclass(frozen=True, kw_only=True)
class TrackSettings:
    """Where the numbers of every round go beside the run folder's own files."""

    to: tuple[Literal["tensorboard", "mlflow", "wandb", "csv", "parquet"], ...] = ()
    """tensorboard: `tensorboard/` in the run folder; mlflow: `mlflow.db` beside it; wandb: `wandb/` in it; csv and
    parquet: `track.csv`, `track.parquet`, a row per round."""
    project: str = "tierfed"
    """Of Weights & Biases; the experiment of MLflow."""
    uri: str = ""
    """Of MLflow: "sqlite:///FILE", or the address of a server; "": the file beside the run folder."""
    mode: Literal["offline", "online"] = "offline"
    """Of Weights & Biases."""


@dataclass(frozen=True, kw_only=True)
class SweepSettings:
    """A search for good settings: `tierfed sweep`. A run without it ignores this table."""

    method: Literal["tpe", "random", "grid"] = "tpe"
    """tpe: where earlier trials were good (Bergstra et al. 2011); random: independent; grid: every combination."""
    trials: Count | None = None
    """How many settings are tried; none: 20, of a grid all combinations."""
    objective: str = "personal_pre"
    """What a run is judged by at its end: `personal_pre`, `global/loss`, `personal_post/accuracy/worst`,
    `0.5*global + 0.5*personal_pre`, `personal_pre - 1e-9*link/up_bytes`."""
    params: dict[str, Any] = field(default_factory=dict)
    """Config key -> values: `["a", "b"]`, `"float:0.1:0.9"`, `"log:0.001:0.3"`, `"int:1:5"`; with a fourth part the
    step, or the number of points of a logarithmic range."""
    seeds: tuple[Natural, ...] = ()
    """Every trial is run with each of these seeds and judged by the mean; none: with run.seed alone."""
    jobs: Natural = 0
    """Runs at the same time; 0: as many as there are cores. The search is the same for the same number."""
    prune: bool = False
    """End a trial that is worse than the median of the earlier ones at the same round; needs jobs = 1."""
