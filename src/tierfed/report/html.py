"""The page: what goes where, rendered into one file that needs nothing else."""

import base64
import gzip
import json
import os
import shlex
import tomllib
from dataclasses import replace
from functools import cache
from importlib import resources
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import jinja2
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from tierfed.metrics import MODELS
from tierfed.report import charts, compare, costs, forest, fronts, labels, spread, ties
from tierfed.report.grid import GridFolder, Member, member_of
from tierfed.report.load import RunFolder
from tierfed.report.pairs import paired_grid, paired_tests
from tierfed.report.search import search
from tierfed.report.stages import before_and_after, origin
from tierfed.report.style import Chart
from tierfed.report.tables import comparison_cell, summary_grid
from tierfed.report.words import (
    EPSILON,
    INTERVAL,
    MODEL_NAMES,
    NONE,
    Grid,
    amount,
    data_name,
    duration,
    metric_name,
    score,
    within,
)

MAX_EMBEDDED = 24
MAX_LAYERS = 8
MAX_TREES = 8
SPENT = "epsilon_"


class Tile(NamedTuple):
    """A headline number."""

    label: str
    value: str
    hint: str = ""


class Section(NamedTuple):
    """A part of the page: a title, tables, charts, and closed parts that hold more charts."""

    title: str
    charts: list[Chart]
    table: Grid | None = None
    bold: frozenset[tuple[int, int]] = frozenset()
    links: dict[str, str] = {}
    closed: list[tuple[str, list[Chart]]] = []


def render(found: RunFolder | Member | GridFolder, out: Path, reference: str = "") -> str:
    """The whole page as text.

    :param out: where it will lie, for links to the pages of runs
    :param reference: of a comparison: the label that all others are tested against, see `paired_tests`
    """
    return filled(**content(found, out, reference))


def content(found: RunFolder | Member | GridFolder, out: Path, reference: str = "") -> dict[str, Any]:
    """What the page says, before it is HTML; see `filled`."""
    if isinstance(found, GridFolder):
        return _grid_page(found, out, reference)
    return _run_page(found if isinstance(found, Member) else member_of(found), out)


def filled(**page: Any) -> str:
    """The template of all pages with its parts: title, kind, facts, tiles, sections, configs, commands."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    parts = {"css": Markup(part("page.css")), "look": Markup(part("look.js")), "figure": embedded}
    return environment.from_string(part("template.html")).render(page | parts | {"plotly": packed_library()})


def part(name: str) -> str:
    """A file of the page."""
    return resources.files("tierfed.report").joinpath(name).read_text(encoding="utf-8")


@cache
def packed_library() -> Markup:
    """Plotly's script as base64 of gzip, the same each time: less than half of the file that it makes."""
    return Markup(base64.b64encode(gzip.compress(get_plotlyjs().encode(), 9, mtime=0)).decode())


def embedded(chart: Chart) -> Markup:
    """A figure as JSON inside of a page."""
    text = json.dumps(chart.figure, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _known(*found: Chart | None) -> list[Chart]:
    return in_rows([c for c in found if c is not None])


def in_rows(charts: list[Chart]) -> list[Chart]:
    """Charts of half a width stand in pairs; one without a partner takes the whole width."""
    out: list[Chart] = []
    for half, group in groupby(charts, key=lambda c: c.half):
        some = list(group)
        out += [*some[:-1], replace(some[-1], half=False)] if half and len(some) % 2 else some
    return out


def _data(run: RunFolder) -> str:
    return data_name(run.source, run.setting("data", "path"))


def _run_page(member: Member, out: Path) -> dict[str, Any]:
    run = member.run
    devices = f"{len(run.devices.names)} devices" + (f" in {len(run.teams)} teams" if run.teams else "")
    learning = [charts.learning(run, m) for m in dict.fromkeys((run.metric, "loss"))]
    alpha = [charts.trace(run, *pair) for pair in run.traces if pair[1] == "alpha"]
    spent = [pair for pair in run.traces if pair[1].startswith(SPENT)]
    other = [charts.trace(run, *pair) for pair in run.traces if pair[1] != "alpha" and pair not in spent]
    maps = _listening(run)
    more = maps[MAX_LAYERS:]
    sections = [
        Section("Models", [], summary_grid(run)) if run.models else Section("Models", []),
        *_personalization(run, out),
        Section("Learning", _known(*learning)),
        Section("Devices", _known(spread.per_device(run), spread.ranked(run), spread.gained(member))),
        Section("The tree", _known(forest.tree(run), forest.memberships(run), charts.moves(run))),
        Section("Inside the algorithm", _known(*alpha, *other)),
        Section("Privacy", _known(*(charts.trace(run, *pair) for pair in spent))),
        Section("Who listens to whom", maps[:MAX_LAYERS], closed=[("More layers", more)] if more else []),
        Section(
            "Cost",
            _known(costs.traffic(run), costs.usage(run, "seconds"), costs.usage(run, "joules")),
            costs.cost_table(run),
        ),
        Section("Faults", _known(charts.faults(run))),
        Section("Data", [labels.holdings(run), *labels.accuracies(run)]),
    ]
    folder = shlex.quote(run.path.resolve().name)
    return {
        "title": f"{run.algorithm} on {_data(run)}",
        "kind": "run",
        "facts": [
            devices,
            f"{run.last_round} round{'s' * (run.last_round != 1)}",
            f"seed {run.seed}",
            run.ended,
            *([f"evaluated on a {run.sample}"] if run.sample else []),
            *origin(run),
        ],
        "tiles": _run_tiles(run),
        "sections": [s for s in sections if s.charts or s.table],
        "configs": [("Resolved config", run.config_text)],
        "commands": [f"tierfed run {folder}/config.toml", f"tierfed report {folder}"],
    }


def _personalization(run: RunFolder, out: Path) -> list[Section]:
    """Before and after, with a link to the page of the stage."""
    if run.later is None:
        return []
    link = _relative(run.later.path / "report.html", out)
    pages = Grid(("stage", "how it ended"), [[run.later.algorithm, run.later.ended]], text=2)
    return [
        Section("Personalization", [], before_and_after(run, run.later)),
        Section("Its own report", [], pages, links={run.later.algorithm: link}),
    ]


def _listening(run: RunFolder) -> list[Chart]:
    """Own weights over rounds, and a heat map for each layer."""
    return [*_known(ties.own_over_rounds(run)), *ties.heat_maps(run)]


def _run_tiles(run: RunFolder) -> list[Tile]:
    tiles = []
    for model in ("global", "personal_post"):
        if model in run.models:
            statistics = run.statistics(model)
            hint = f"{metric_name(run.metric)}, mean weighted by test samples; std over devices " + score(
                statistics["std"], run.metric
            )
            hint += f"; {run.sample}" if run.sample else ""
            value = within(statistics["weighted"], statistics.get("weighted_ci95"), run.metric)
            tiles.append(Tile(MODEL_NAMES[model], value, hint))
    for model in [m for m in ("personal_post", "global") if m in run.models][:1]:
        value = score(run.statistics(model)["worst"], run.metric)
        tiles.append(Tile("worst 10 % of devices", value, f"mean, {MODEL_NAMES[model]}"))
    for tier, metric in run.traces:
        if metric.startswith(SPENT):
            value = f"{EPSILON} = {run.panel(tier, metric).values[-1, 0]:.3g}"
            name = metric_name(metric).partition(",")[0]
            tiles.append(Tile(name, value, "differential privacy, at the delta of its table"))
    return [*tiles, *_cost_tiles(run)]


def _cost_tiles(run: RunFolder) -> list[Tile]:
    joules = run.total("cloud", "joules")
    tiles = [
        Tile("traffic", amount(run.total_bytes, "B"), "all links, down and up"),
        Tile("virtual time", duration(run.clock_seconds), "clock at the end"),
        Tile("energy", amount(joules, "J"), "links and computing"),
    ]
    return [t for t in tiles if t.value != NONE]


def _grid_page(grid: GridFolder, out: Path, reference: str) -> dict[str, Any]:
    holdings = [labels.holdings(grid.members[0].run)]
    sources = sorted({_data(m.run) for m in grid.members})
    sizes = sorted({len(m.run.devices.names) for m in grid.members})
    winners = [grid.best(c) for c in grid.columns]
    rows = [[label, *(comparison_cell(grid, label, c) for c in grid.columns)] for label in grid.labels]
    bold = {(r, c + 1) for r, label in enumerate(grid.labels) for c, best in enumerate(winners) if best == label}
    note = (
        f"{metric_name(grid.metric).capitalize()} in the last evaluated round, mean ± standard deviation over seeds; "
        "the best in bold. Percentile, worst devices and gain are those of the model a device would use: the personal "
        "one after training, or the team or global one where there is none. The gain is the mean over devices of the "
        "difference to the same device in the local-only run of the same seed."
    )
    if grid.sample:
        note += (
            f" Evaluated on a {grid.sample}, where a label has one run {INTERVAL}; gains are over those that both drew."
        )
    links = {m.name: _link(m, out) for m in grid.members if (m.run.path / "report.html").exists()}
    runs = Grid(
        ("run", "algorithm", "how it ended", "seed", "rounds"),
        [[m.name, m.label, m.run.ended, str(m.run.seed), str(m.run.last_round)] for m in grid.members],
        text=3,
    )
    tests = paired_grid(paired_tests(grid, reference), grid.metric)
    sections = [
        Section(
            "Comparison",
            _known(fronts.balance(grid)),
            Grid(("algorithm", *(c.title for c in grid.columns)), rows, " ".join([note, *grid.notes])),
            frozenset(bold),
        ),
        Section("Search", in_rows(_search(grid))),
        Section("Paired tests", [], tests),
        Section(
            "Score against cost",
            _known(*(fronts.pareto(grid, model, cost) for model in ("own", "global") for cost in ("bytes", "joules"))),
        ),
        Section("Learning", _known(*(compare.learning(grid, m) for m in MODELS))),
        Section("Devices", _known(compare.per_device(grid), compare.ranked(grid), compare.gained(grid))),
        Section("Trees", _trees(grid)),
        Section("Cost", _known(*(compare.totals(grid, key) for key in ("bytes", "seconds", "joules")))),
        Section("Inside the algorithms", [], closed=_insides(grid)),
        Section("Data", [replace(c, title=f"{c.title}, in {grid.members[0].name}") for c in holdings]),
        Section("Runs", [], runs, links=links),
    ]
    folder = shlex.quote(grid.path.resolve().name)
    places = [shlex.quote(_under(grid.path, m.run.path)) for m in grid.members]
    end = f"report {folder}" if (grid.path / "grid.json").exists() else f"compare {' '.join(places)}"
    commands = [*(f"tierfed run {place}/config.toml" for place in places), f"tierfed {end}"]
    return {
        "title": f"{len(grid.labels)} algorithms on {', '.join(sources)}",
        "kind": "comparison",
        "facts": [
            f"{' or '.join(map(str, sizes))} devices",
            f"{len(grid.members)} runs",
            f"seed{'s' * (len(grid.seeds) > 1)} {', '.join(map(str, grid.seeds))}",
        ],
        "tiles": _grid_tiles(grid),
        "sections": [s for s in sections if s.charts or s.table or s.closed],
        "configs": [(f"Resolved config of {m.name}", m.run.config_text) for m in grid.members],
        "commands": commands,
    }


def _search(grid: GridFolder) -> list[Chart]:
    """What a sweep has tried, where the grid is one."""
    own = all(m.run.path.parent == grid.path for m in grid.members)
    try:
        settings = tomllib.loads((grid.path / "config.toml").read_text("utf-8")).get("sweep", {})
    except (OSError, ValueError):
        return []
    return search(grid.path, str(settings.get("objective", "value"))) if own else []


def _grid_tiles(grid: GridFolder) -> list[Tile]:
    wanted = {
        "global": "best global",
        "personal_post": "best personal",
        "worst": "best worst 10 %",
        "gain": "most gain",
    }
    return [
        Tile(wanted[column.key], comparison_cell(grid, best, column), best)
        for column in grid.columns
        if column.key in wanted and (best := grid.best(column))
    ]


def _trees(grid: GridFolder) -> list[Chart]:
    """The trees of the first run of each algorithm, side by side, in colors that mean the same in all."""
    firsts = [grid.of_label(label)[0] for label in grid.labels[:MAX_TREES]]
    found = [(m, c) for m in firsts if (c := forest.tree(m.run)) is not None]
    markers = [c.figure["data"][2]["marker"] for _, c in found]
    for marker, (_, c) in zip(markers, found, strict=True):
        marker |= {"cmin": min(m["cmin"] for m in markers), "cmax": max(m["cmax"] for m in markers)}
        c.figure["layout"]["height"] = 400
    return [replace(c, title=f"{c.title}: {m.name}", half=True) for m, c in found]


def _insides(grid: GridFolder) -> list[tuple[str, list[Chart]]]:
    """Team changes, mixing weights, ties and who listens to whom, of each run that logs them."""
    found = []
    for member in grid.members:
        run = member.run
        shown = _known(
            forest.memberships(run),
            *(charts.trace(run, *pair) for pair in run.traces if pair[1] in ("alpha", "tie")),
        )
        shown += _listening(run)[:MAX_LAYERS]
        if shown:
            found.append((member.name, shown))
    return found[:MAX_EMBEDDED]


def _link(member: Member, out: Path) -> str:
    return _relative(member.run.path / "report.html", out)


def _under(root: Path, path: Path) -> str:
    """The path of a run from the folder that holds the root, or the run's own name where it lies elsewhere."""
    root, path = root.resolve(), path.resolve()
    return path.relative_to(root.parent).as_posix() if path.is_relative_to(root) else path.name


def _relative(page: Path, out: Path) -> str:
    """A link from a page to another one."""
    return quote(Path(os.path.relpath(page, out.parent)).as_posix())
