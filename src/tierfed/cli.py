"""The command line. Bad input ends with one message and exit code 2, Ctrl-C with 130, neither with a traceback."""

import json
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from typer.core import TyperGroup

from tierfed import __version__
from tierfed import config as configs
from tierfed.catalog import catalog
from tierfed.compare_command import compare
from tierfed.completion import completion
from tierfed.config import STAGE
from tierfed.data import DATASETS, heatmap
from tierfed.deploy.commands import cloud, device, fog, health, up
from tierfed.deploy.keys_command import keys
from tierfed.deploy.units import units
from tierfed.doctor import doctor
from tierfed.errors import InputError, nearest
from tierfed.export_command import export
from tierfed.folders import default_folder, refuse_existing
from tierfed.grid import is_grid, is_grid_folder, members, resume_grid, run_grid
from tierfed.options import Address, DataDir, Engine, Json, Sets, elsewhere, load, numbers, single_run
from tierfed.output import err, facts_table, folded, listing, out, say
from tierfed.pipeline import personalize as personalize_run
from tierfed.pipeline import resume as resume_run
from tierfed.pipeline import run as run_one
from tierfed.preview import placement_rows, preview, readable
from tierfed.progress import watching
from tierfed.project import new
from tierfed.report import summary, summary_table, write_report
from tierfed.report.holdings import write_holdings
from tierfed.reproduce import STUDIES, Options, as_dict, left_out, reproduce, result_table, scale_text, write_page
from tierfed.reproduce import command as to_repeat
from tierfed.session import on_disk
from tierfed.setup import World, prepare
from tierfed.sweep.command import sweep
from tierfed.sweep.study import is_sweep_folder
from tierfed.ui_command import ui


class Commands(TyperGroup):
    """All commands; what they raise becomes a message and an exit code."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if not ctx.resilient_parsing and args[0] not in self.commands and not args[0].startswith("-"):
            ctx.fail(f"no command {args[0]!r}; {nearest(args[0], self.commands)}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]
        try:
            return super().invoke(ctx)
        except InputError as e:
            # one message is one line, whatever a library put into it
            text = " ".join(str(e).split())
            Console(stderr=True).print(f"error: {text}", markup=False, soft_wrap=True, highlight=False)
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            raise typer.Exit(130) from None


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Hierarchical, personalized federated learning: global, team and personal models over a tree.",
)
Source = Annotated[
    str, typer.Argument(metavar="CONFIG", help="A TOML file or a preset (quickstart, har, fmnist-shards).")
]
Folder = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run or a grid.")]
Algorithms = Annotated[
    list[str] | None, typer.Option("--algorithm", "-a", help="In place of the config's; several: a grid.")
]
Seeds = Annotated[str | None, typer.Option("--seeds", metavar="0,1,2", help="One seed, or several for a grid.")]


def tell_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"tierfed {__version__}")
        raise typer.Exit


Version = Annotated[
    bool, typer.Option("--version", is_eager=True, callback=tell_version, help="Print the version and end.")
]


@app.callback()
def options(version: Version = False) -> None:
    """What goes before a command."""


@app.command()
def run(
    source: Source,
    set_: Sets = None,
    algorithm: Algorithms = None,
    seeds: Seeds = None,
    rounds: Annotated[int | None, typer.Option(help="Cloud rounds.")] = None,
    data_dir: DataDir = None,
    out_dir: Annotated[Path | None, typer.Option("--out", help="The run folder (run.out).")] = None,
    engine: Engine = None,
    address: Address = None,
    report_: Annotated[bool, typer.Option("--report/--no-report", help="Write report.html at the end.")] = True,
    as_json: Json = False,
) -> None:
    """Train. Several algorithms or seeds make a grid: one folder with a comparison."""
    extra = [
        *(set_ or []),
        *([f"run.rounds={rounds}"] if rounds is not None else []),
        *(f"engine.{key}={json.dumps(value)}" for key, value in elsewhere(engine, address).items()),
    ]
    config = load(source, extra, algorithm, seeds, data_dir, out_dir)
    grid = is_grid(config)
    folder = Path(config.run.out or (f"runs/{Path(source).stem}" if grid else default_folder(config)))
    config = replace(config, run=replace(config.run, out=str(folder)))
    refuse_existing(folder)
    with stoppable(folder), watching(out, quiet=as_json) as watch:
        finished = run_grid(config, folder, watch) if grid else not run_one(config, watch=watch).interrupted
    conclude(folder, finished, report_, as_json)


@app.command()
def resume(
    folder: Folder,
    rounds: Annotated[int | None, typer.Option(help="Another number of rounds.")] = None,
    engine: Engine = None,
    address: Address = None,
    report_: Annotated[bool, typer.Option("--report/--no-report", help="Write report.html at the end.")] = True,
    as_json: Json = False,
) -> None:
    """Go on with a run or a grid after its last committed round."""
    if is_sweep_folder(folder):
        raise InputError(f"{folder} is a sweep; go on with it: tierfed sweep {folder}")
    with stoppable(folder), watching(out, quiet=as_json) as watch:
        if is_grid_folder(folder):
            single_run(rounds=rounds, engine=engine, address=address)
            finished = resume_grid(folder, watch)
        else:
            result = resume_run(folder, rounds=rounds, engine=elsewhere(engine, address), watch=watch)
            finished = not result.interrupted
            if finished and not result.trained:
                err.print(f"{folder} is complete: there was nothing left to train", markup=False, soft_wrap=True)
    conclude(folder, finished, report_, as_json)


@app.command()
def personalize(
    folder: Folder,
    mechanism: Annotated[str | None, typer.Option("--mechanism", "-m", help="Any algorithm: ftl, ditto, ...")] = None,
    rounds: Annotated[int | None, typer.Option(help="Cloud rounds of the stage.")] = None,
    start: Annotated[str | None, typer.Option(help="What devices begin with: personal or global.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any option of the mechanism: tune=head")
    ] = None,
    out_dir: Annotated[Path | None, typer.Option("--out", help="The folder of the stage; RUN/personalized.")] = None,
    report_: Annotated[bool, typer.Option("--report/--no-report", help="Write report.html at the end.")] = True,
    as_json: Json = False,
) -> None:
    """Personalize the models of a finished run."""
    if is_grid_folder(folder):
        raise InputError(f"{folder} is a grid; give the folder of one of its runs")
    target = folder / STAGE if out_dir is None else out_dir
    refuse_existing(target)
    with stoppable(target), watching(out, quiet=as_json) as watch:
        result = personalize_run(
            folder,
            mechanism,
            rounds=rounds,
            start=start,
            options=configs.options(set_ or ()),
            out=target,
            watch=watch,
        )
    conclude(folder if out_dir is None else target, not result.interrupted, report_, as_json, target)


@app.command()
def report(
    folder: Folder,
    out_file: Annotated[
        Path | None, typer.Option("--out", help="The HTML file; report.html in the folder by default.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write the report of a run or a grid: one HTML file that can be mailed."""
    with on_disk(folder if out_file is None else out_file.parent):
        path = write_report(folder, out_file)
    if as_json:
        say({**summary(folder), "report": str(path)})
    else:
        out.print(folded(summary_table(folder)))
        out.print(f"report: {path}", soft_wrap=True)


@app.command()
def show(
    source: Source,
    set_: Sets = None,
    algorithm: Algorithms = None,
    seeds: Seeds = None,
    data_dir: DataDir = None,
    plot: Annotated[Path | None, typer.Option(help="Also an HTML heat map of who holds what.")] = None,
    offload: Annotated[bool, typer.Option("--offload", help="What every way to offload would need.")] = False,
    as_json: Json = False,
) -> None:
    """What would run: tree, data per device, bytes, memory. Nothing is trained."""
    config = load(source, set_ or [], algorithm, seeds, data_dir, None)
    worlds = {name: prepare(c, draft=True) for name, c in members(config, Path("runs")).items()}
    first = next(iter(worlds.values()))
    if plot is not None:
        with on_disk(plot.parent):
            write_holdings(first.federation, plot)
    if offload:
        show_offload(worlds, as_json)
        return
    facts = {name: preview(world) for name, world in worlds.items()}
    if as_json:
        say({"runs": facts, **({} if plot is None else {"plot": str(plot)})})
        return
    out.print(heatmap(first.federation, own=None if first.augmentation is None else first.augmentation.own))
    for name, fact in facts.items():
        sights = fact.pop("who_sees_what")
        out.print(facts_table(name, fact))
        listing(f"{name}: who sees what", sights, False)
    if plot is not None:
        out.print(f"plot: {plot}", soft_wrap=True)


def show_offload(worlds: dict[str, World], as_json: bool) -> None:
    """Per round of the median device: no offloading, every cut, trusted edge."""
    rows = {name: placement_rows(world) for name, world in worlds.items()}
    if as_json:
        say({"runs": {name: [asdict(row) for row in found] for name, found in rows.items()}})
        return
    for name, found in rows.items():
        listing(f"{name}: per round of the median device", readable(found), False)


@app.command()
def algorithms(as_json: Json = False) -> None:
    """All algorithms: where they come from, what travels, which models they give, what they need."""
    listing("Algorithms", catalog(), as_json)


@app.command("presets")
def list_presets(as_json: Json = False) -> None:
    """All configs that come along, by name: `tierfed run NAME`."""
    listing("Presets", [{"name": name, "about": configs.preset_about(name)} for name in configs.presets()], as_json)


@app.command()
def datasets(data_dir: DataDir = None, as_json: Json = False) -> None:
    """All built-in data sets, and whether they are at hand."""
    rows = [
        {
            "name": s.name,
            "about": s.about,
            "devices": s.devices,
            "license": s.license,
            "origin": s.origin,
            "here": s.available(data_dir),
        }
        for s in DATASETS.values()
    ]
    listing("Data sets", rows, as_json)


app.add_typer(keys, name="keys")
for command in (export, compare, sweep, ui, new, cloud, fog, device, up, health, units, doctor, completion):
    app.command()(command)


@app.command("reproduce")
def reproduce_table(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="A study; without one they are listed.")] = None,
    scale: Annotated[float, typer.Option(help="Share of the rounds: 0.1 trains a tenth of them.")] = 1.0,
    local: Annotated[float, typer.Option("--local-scale", help="Share of the local epochs.")] = 1.0,
    seeds: Seeds = None,
    data_dir: DataDir = None,
    out_dir: Annotated[Path | None, typer.Option("--out", help="Where the runs are; runs/NAME by default.")] = None,
    methods: Annotated[str | None, typer.Option(metavar="A,B", help="Only these of the study.")] = None,
    clients: Annotated[str | None, typer.Option(metavar="10,100", help="Only these numbers of devices.")] = None,
    accuracy: Annotated[bool, typer.Option("--accuracy", help="Also what is costly to train.")] = False,
    jobs: Annotated[int, typer.Option(help="Runs at the same time; 0: as many as there are cores.")] = 0,
    write_docs: Annotated[bool, typer.Option("--write-docs", help="Also the page in docs/.")] = False,
    as_json: Json = False,
) -> None:
    """Run a published table again: paper, ours, difference. Run anew, the command goes on where it was stopped."""
    if name is None:
        rows = [{"name": s.name, "paper": s.paper, "compared": s.compared} for s in STUDIES.values()]
        listing("Studies", rows, as_json)
        return
    if name not in STUDIES:
        raise InputError(f"no study {name!r}; {nearest(name, STUDIES)}")
    folder = out_dir or Path("runs") / name
    options = Options(
        scale=scale,
        local=local,
        seeds=STUDIES[name].seeds if seeds is None else numbers(seeds),
        data_dir=data_dir,
        methods=tuple(m.strip() for m in methods.split(",")) if methods else (),
        clients=() if clients is None else numbers(clients, "--clients"),
        accuracy=accuracy,
        jobs=jobs,
    )
    again = f"the same command goes on, with the runs in {folder}"
    try:
        with watching(out, quiet=as_json) as watch:
            outcome = reproduce(STUDIES[name], folder, options, watch)
    except KeyboardInterrupt:
        stopped(folder, again)
    if not outcome.finished:
        stopped(folder, again)
    pages = [folder / f"{name}.md", *([Path(STUDIES[name].page)] if write_docs else [])]
    with on_disk(folder):
        written = [str(write_page(outcome, page)) for page in pages]
    if as_json:
        say({**as_dict(outcome), "command": to_repeat(outcome), "pages": written})
        return
    out.print(result_table(outcome))
    for text in filter(None, (left_out(outcome), scale_text(outcome), *(f"page: {page}" for page in written))):
        out.print(text, soft_wrap=True, markup=False, highlight=False)


def conclude(folder: Path, finished: bool, with_report: bool, as_json: bool, stage: Path | None = None) -> None:
    """What is said at the end of a run. :param stage: the folder to go on with, where it is another one"""
    if not finished:
        stopped(stage or folder)
    path = None
    if with_report:
        try:
            with on_disk(folder):
                path = write_report(folder)
        except InputError as e:  # the run itself is complete
            err.print(f"no report: {e}", markup=False, soft_wrap=True, highlight=False)
    if as_json:
        say({**summary(folder), "folder": str(folder), "report": None if path is None else str(path)})
        return
    out.print(folded(summary_table(folder)))
    out.print(f"folder: {folder}" + (f"\nreport: {path}" if path else ""), soft_wrap=True, markup=False)


@contextmanager
def stoppable(folder: Path) -> Iterator[None]:
    """Ctrl-C where no round is under way: while data are read, while the last files are written."""
    try:
        yield
    except KeyboardInterrupt:
        stopped(folder)


def stopped(folder: Path, hint: str = "") -> NoReturn:
    """What is said after Ctrl-C."""
    if not hint:
        begun = (folder / "config.toml").exists()
        hint = f"go on with: tierfed resume {shlex.quote(str(folder))}" if begun else "nothing was written"
    err.print(f"stopped; {hint}", soft_wrap=True, markup=False, highlight=False)
    raise typer.Exit(130)


def main() -> None:
    """The entry point `tierfed`."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # a table is no reason to fail where there are no block characters
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # for "module:Class" in the folder that the user works in
    app()
