"""`tierfed sweep`: tries settings, and leaves the best one as a config."""

import json
import shlex
from dataclasses import asdict, replace
from pathlib import Path
from statistics import stdev
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from tierfed.around import SweepSettings
from tierfed.config import Config
from tierfed.errors import InputError
from tierfed.folders import read_run
from tierfed.options import DataDir, Json, Sets, load, numbers
from tierfed.output import err, folded, out, say
from tierfed.progress import watching
from tierfed.report import write_report
from tierfed.session import on_disk
from tierfed.settings import build, table
from tierfed.sweep.study import Outcome, is_sweep_folder
from tierfed.sweep.study import sweep as run_sweep

_SHOWN = 15


def sweep(
    source: Annotated[
        str, typer.Argument(metavar="CONFIG", help="A TOML file, a preset, or the folder of a sweep to go on with.")
    ],
    param: Annotated[
        list[str] | None,
        typer.Option("--param", metavar="KEY=VALUES", help="What to choose from: algorithm.lr=log:0.001:0.3"),
    ] = None,
    objective: Annotated[
        str | None, typer.Option(metavar="SUM", help="What to judge by: personal_pre, 0.5*global + 0.5*personal_pre")
    ] = None,
    method: Annotated[str | None, typer.Option(help="tpe, random or grid.")] = None,
    trials: Annotated[int | None, typer.Option(help="How many settings; of a grid all by default.")] = None,
    seeds: Annotated[
        str | None, typer.Option(metavar="0,1,2", help="Every trial with each of these; judged by the mean.")
    ] = None,
    jobs: Annotated[int | None, typer.Option(help="Trials at the same time; 0: as many as there are cores.")] = None,
    prune: Annotated[bool | None, typer.Option("--prune/--no-prune", help="End trials that fall behind.")] = None,
    set_: Sets = None,
    algorithm: Annotated[str | None, typer.Option("--algorithm", "-a", help="In place of the config's.")] = None,
    rounds: Annotated[int | None, typer.Option(help="Cloud rounds of every trial.")] = None,
    data_dir: DataDir = None,
    out_dir: Annotated[
        Path | None, typer.Option("--out", help="The folder of the sweep; runs/sweep-NAME by default.")
    ] = None,
    report_: Annotated[bool, typer.Option("--report/--no-report", help="Write report.html at the end.")] = True,
    as_json: Json = False,
) -> None:
    """Search for good settings: grid, random or TPE. Run anew, the command goes on where it was stopped."""
    extra = [*(set_ or []), *([f"run.rounds={rounds}"] if rounds is not None else [])]
    asked: dict[str, Any] = {"objective": objective, "method": method, "trials": trials, "jobs": jobs, "prune": prune}
    asked["seeds"] = None if seeds is None else numbers(seeds)
    if is_sweep_folder(Path(source)):
        folder, config = Path(source), read_run(Path(source))
        if extra or param or algorithm or out_dir is not None or seeds is not None:
            raise InputError(f"{source} is a sweep that has begun; only --trials and --jobs may be other ones")
    else:
        config = load(source, extra, [algorithm] if algorithm else None, None, data_dir, None)
        folder = out_dir or Path("runs") / f"sweep-{Path(source).stem}"
    config = _with(config, param or [], asked)
    again = f"go on with: tierfed sweep {shlex.quote(str(folder))}"
    try:
        with watching(out, quiet=as_json) as watch:
            outcome = run_sweep(config, folder, watch)
    except KeyboardInterrupt:
        outcome = None
    if outcome is None or not outcome.finished:
        err.print(f"stopped; {again}", soft_wrap=True, markup=False, highlight=False)
        raise typer.Exit(130)
    _conclude(outcome, report_, as_json)


def _with(config: Config, param: list[str], asked: dict[str, Any]) -> Config:
    """The config with [sweep] as the options say."""
    params = dict(config.sweep.params)
    for text in param:
        key, eq, values = text.partition("=")
        if not eq:
            raise InputError(f"--param {text!r}: wanted KEY=VALUES, for example --param algorithm.lr=log:0.001:0.3")
        params[key.strip()] = _values(values.strip())
    given = {k: v for k, v in asked.items() if v is not None}
    return replace(config, sweep=build(SweepSettings, {**table(config.sweep), **given, "params": params}, "sweep"))


def _values(text: str) -> Any:
    """A list as TOML and JSON write it, or the text of a range."""
    try:
        found = json.loads(text)
    except json.JSONDecodeError:
        return text
    return found if isinstance(found, list) else text


def _conclude(outcome: Outcome, with_report: bool, as_json: bool) -> None:
    page = None
    if with_report and outcome.best is not None:
        try:
            with on_disk(outcome.folder):
                page = write_report(outcome.folder)
        except InputError as e:  # the sweep itself is complete
            err.print(f"no report: {e}", markup=False, soft_wrap=True, highlight=False)
    best = outcome.best
    if as_json:
        say(
            {
                "folder": str(outcome.folder),
                "objective": outcome.objective,
                "higher_is_better": outcome.higher,
                "best": None if best is None else {"name": best.name, **asdict(best)},
                "config": None if best is None else str(outcome.folder / "best.toml"),
                "trials": [{"name": t.name, **asdict(t)} for t in outcome.trials],
                "report": None if page is None else str(page),
            }
        )
        return
    out.print(folded(result_table(outcome)))
    lines = [f"folder: {outcome.folder}"]
    if best is None:
        lines.append("no trial came to its end; the table says why")
    else:
        lines.append(f"best: {best.name}; run it with: tierfed run {shlex.quote(str(outcome.folder / 'best.toml'))}")
    if page is not None:
        lines.append(f"report: {page}")
    out.print("\n".join(lines), soft_wrap=True, markup=False, highlight=False)


def result_table(outcome: Outcome) -> Table:
    """The best trials, and what became of those without a value."""
    side = "higher" if outcome.higher else "lower"
    shown = outcome.trials[:_SHOWN]
    title = f"{outcome.objective} ({side} is better), {len(outcome.trials)} trials"
    out = Table(title=Text(title), title_justify="left")
    keys = list(dict.fromkeys(k for t in outcome.trials for k in t.params))
    for column in ("trial", "value", *keys, "state"):
        out.add_column(column)
    for t in shown:
        value = "–" if t.value is None else f"{t.value:.4g}"
        value += f" ± {stdev(t.values):.2g}" if len(t.values) > 1 else ""
        state = f"{t.state}: {t.why}" if t.why else t.state
        out.add_row(t.name, value, *(Text(_shown(t.params.get(k))) for k in keys), Text(state))
    if len(outcome.trials) > _SHOWN:
        out.caption = f"{len(outcome.trials) - _SHOWN} more in {outcome.folder / 'trials.json'}"
    return out


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
