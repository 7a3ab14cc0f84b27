"""What a study is: ordinary configs, what is read off their runs, and a paper's numbers beside it."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tierfed.config import Config
from tierfed.report.load import RunFolder
from tierfed.result import Watcher

if TYPE_CHECKING:
    from rich.console import RenderableType

    from tierfed.reproduce.runner import Outcome

Tables = Mapping[str, Any]
TRANSCRIBED = "third-party transcription of the paper's table, not compared with the paper"


@dataclass(frozen=True, kw_only=True)
class Case:
    """One config of a study; with each seed it is a run.

    :param key: names its run folders, <key>-s<seed>
    :param tables: an ordinary config; seed, data directory, folder and scaled rounds are put in by the command
    :param label: what --methods calls it; the algorithm's name by default
    :param costly: it is run only when asked for (--accuracy)
    :param work: writes the run folder in the place of `tierfed.run`: a baseline that is no federated training, with an
        algorithm that the registry need not know
    """

    key: str
    tables: Tables
    label: str = ""
    costly: bool = False
    work: Callable[[Config, Watcher | None], None] | None = None

    @property
    def algorithm(self) -> str:
        """Its name in the registry."""
        return str(self.tables["algorithm"]["name"])

    @property
    def method(self) -> str:
        """What --methods calls it."""
        return self.label or self.algorithm

    @property
    def source(self) -> str:
        """The name of the data set."""
        return str(self.tables["data"]["source"])

    @property
    def clients(self) -> int:
        """How many devices the data are dealt out to; 0: the data say so themselves."""
        return int(self.tables["data"].get("partition", {}).get("devices", 0))


@dataclass(frozen=True, kw_only=True)
class Line:
    """One number of a study's table: the paper's and where ours comes from.

    :param data: what it was measured on; :param method: as a reader calls it; :param quantity: what was measured
    :param algorithm: the name in the registry of what ours needs
    :param case: key of the case whose finished runs `read` is asked about
    :param count: ours without a run folder, of one seed (a number that no training can change)
    :param paper: the published number, None: there is none; :param std: the published standard deviation
    :param source: where the published number was read
    :param remark: what the paper says where it has no number
    """

    data: str
    method: str
    quantity: str
    algorithm: str
    case: str = ""
    read: Callable[[RunFolder], float] | None = None
    count: Callable[[], float] | None = None
    paper: float | None = None
    std: float | None = None
    source: str = ""
    remark: str = ""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A picture beside a study's page, in the file <study>-<name>.svg.

    :param caption: what it shows, a sentence or two
    :param draw: (runs by case, one for each seed) -> SVG, see `tierfed.report.svg`; empty: there is nothing to show
    :param cases: without finished runs of all of these it is left out
    """

    name: str
    caption: str
    draw: Callable[[Mapping[str, list[RunFolder]]], str]
    cases: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class View:
    """How a study is shown that is no table of a paper.

    :param page: its page, below the working folder
    :param markdown: that page without what is written by hand
    :param table: for the terminal
    """

    page: str
    markdown: Callable[["Outcome"], str]
    table: Callable[["Outcome"], "RenderableType"]


@dataclass(frozen=True, kw_only=True)
class Study:
    """A table of a paper.

    :param compared: what is compared, one sentence
    :param unit: of all its numbers
    :param notes: what the paper leaves open and how it was filled in, what differs
    :param ranked: quantities by which methods are put in order, the paper's beside ours
    :param figures: what is drawn of its runs
    :param claims: what a paper says in words, checked, and tables of figures: more parts of its page
    :param optional: data sets (`Line.data`) that not everybody can have: one sentence where they are not to be had
    :param seeds: that are run unless told otherwise
    :param tolerant: a run that refuses its config stands in the table with the reason, and the others go on
    :param view: its own way to be shown
    """

    name: str
    paper: str
    compared: str
    unit: str
    cases: tuple[Case, ...]
    lines: tuple[Line, ...]
    notes: tuple[str, ...]
    ranked: tuple[str, ...] = ()
    figures: tuple[Figure, ...] = ()
    claims: Callable[["Outcome"], list[str]] | None = None
    optional: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0,)
    tolerant: bool = False
    view: View | None = None

    @property
    def page(self) -> str:
        """The page in the docs, below the working folder."""
        return f"docs/reproduction/{self.name}.md" if self.view is None else self.view.page


def accuracy(model: str) -> Callable[[RunFolder], float]:
    """Percent right of an evaluated model after the last round, all test samples of all devices alike; NaN: none."""
    return lambda run: 100 * run.statistics(model).get("weighted", math.nan) if model in run.models else math.nan


def merged(*tables: Tables) -> dict[str, Any]:
    """Tables with those that follow on top, table by table."""
    out: dict[str, Any] = {}
    for table in tables:
        for key, value in table.items():
            inner = out.get(key, {})
            mixed = isinstance(value, Mapping) and isinstance(inner, Mapping)
            out[key] = merged(inner, value) if mixed else value
    return out
