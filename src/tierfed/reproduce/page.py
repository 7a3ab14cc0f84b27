"""A study's outcome as a table for the terminal, as a page in Markdown, and as plain values for JSON."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import tomli_w
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from tierfed.metrics import write_atomic
from tierfed.report.words import MINUS, NONE, duration
from tierfed.reproduce.runner import NOT_ASKED, Entry, Outcome
from tierfed.reproduce.study import Figure, Tables

BY_HAND = "## Reading the differences"
HEADERS = ("data", "method", "quantity", "paper", "ours", "difference", "remark")


def scale_text(outcome: Outcome) -> str:
    """How far the runs went, in one sentence; empty where nothing was trained."""
    pairs, local = sorted(set(outcome.rounds.values())), outcome.options.local
    if not pairs:
        return ""
    if not outcome.scaled:
        return "All rounds of the study's setting were trained."
    said = ", ".join(f"{trained} of {full}" for trained, full in pairs)
    fewer = "" if local == 1 else f", a share of {local:g} of the local epochs (--local-scale {local:g})"
    return (
        f"SCALED DOWN: {said} rounds (--scale {outcome.options.scale:g}){fewer}. This is not the study's setting, and "
        "the differences are not those of the methods alone."
    )


def shown(outcome: Outcome) -> list[Entry]:
    """The lines that were asked for, without those on a data set that not everybody can have and that is not here."""
    absent = _absent(outcome)
    return [e for e in outcome.entries if e.missing != NOT_ASKED and e.line.data not in absent]


def left_out(outcome: Outcome) -> str:
    """How many lines were not asked for or have no data, in a sentence for each; empty: none."""
    absent = _absent(outcome)
    n = sum(e.missing == NOT_ASKED and e.line.data not in absent for e in outcome.entries)
    said = [f"{n} more lines of the study were not asked for (--methods, --clients)."] if n else []
    for data in absent:
        lines = sum(e.line.data == data for e in outcome.entries)
        said.append(f"{lines} more lines are about {data}, which is not in the data directory.")
    return " ".join(said)


def _absent(outcome: Outcome) -> list[str]:
    """The data sets of `Study.optional` that are not to be had."""
    skipped = {e.line.data for e in outcome.entries if e.missing.startswith("skipped:")}
    there = {e.line.data for e in outcome.entries if e.values}
    return [data for data in outcome.study.optional if data in skipped - there]


def rankings(outcome: Outcome) -> list[tuple[str, str, str, str, float]]:
    """(data, quantity, the paper's order, ours, Spearman's rank correlation) where four methods or more have both."""
    from scipy.stats import spearmanr  # noqa: PLC0415  (a second to import)

    out = []
    for quantity in outcome.study.ranked:
        for data in dict.fromkeys(e.line.data for e in outcome.entries):
            some = [e for e in outcome.entries if (e.line.data, e.line.quantity) == (data, quantity)]
            both = [e for e in some if e.line.paper is not None and e.ours is not None]
            if len(both) < 4:
                continue
            papers = {e.line.method: e.line.paper or 0.0 for e in both}
            ours = {e.line.method: e.ours or 0.0 for e in both}

            rho = float(spearmanr(list(papers.values()), list(ours.values())).statistic)
            out.append((data, quantity, _best_first(papers), _best_first(ours), rho))
    return out


def _best_first(values: Mapping[str, float]) -> str:
    return " > ".join(sorted(values, key=lambda name: -values[name]))


def cells(entry: Entry) -> tuple[str, ...]:
    """The texts of one row, under `HEADERS`."""
    line = entry.line
    paper = NONE if line.paper is None else _number(line.paper, line.std)
    ours = NONE if entry.ours is None else _number(round(entry.ours, 2), entry.std)
    difference = NONE if entry.difference is None else f"{round(entry.difference, 2) + 0.0:+.2f}".replace("-", MINUS)
    return (line.data, line.method, line.quantity, paper, ours, difference, entry.missing or line.remark)


def result_table(outcome: Outcome) -> RenderableType:
    """Paper, ours, difference, for the terminal."""
    if outcome.study.view is not None:
        return outcome.study.view.table(outcome)
    title = f"{outcome.study.name}: {outcome.study.unit}"
    table = Table(title=Text(title), title_justify="left")
    for name in HEADERS:
        table.add_column(name, justify="right" if name in ("paper", "ours", "difference") else "left", overflow="fold")
    for entry in shown(outcome):
        table.add_row(*map(Text, cells(entry)))
    return table


def as_dict(outcome: Outcome) -> dict[str, Any]:
    """The same as plain values; what is not known is None."""
    study, options = outcome.study, outcome.options
    rows = [
        {
            "data": e.line.data,
            "method": e.line.method,
            "quantity": e.line.quantity,
            "algorithm": e.line.algorithm,
            "paper": e.line.paper,
            "paper_std": e.line.std,
            "paper_source": e.line.source or None,
            "ours": e.ours,
            "std": e.std,
            "values": list(e.values),
            "difference": e.difference,
            "missing": e.missing or None,
        }
        for e in outcome.entries
    ]
    return {
        "study": study.name,
        "paper": study.paper,
        "unit": study.unit,
        "scale": options.scale,
        "scaled": outcome.scaled,
        "seeds": list(options.seeds),
        "rows": rows,
        "rounds": {name: list(pair) for name, pair in outcome.rounds.items()},
        "seconds": outcome.seconds,
    }


def markdown(outcome: Outcome) -> str:
    """The page of a study: setting, table, what is different, wall time, how to repeat it."""
    if outcome.study.view is not None:
        return outcome.study.view.markdown(outcome)
    study, options = outcome.study, outcome.options
    seeds = ", ".join(map(str, options.seeds))
    sources = sorted({e.line.source for e in outcome.entries if e.line.source})
    said = f"**{text}**" if outcome.scaled and (text := scale_text(outcome)) else scale_text(outcome)
    parts = [
        f"# {study.name}",
        study.compared,
        f"Paper: {study.paper}.",
        *(f"Published numbers: {s}." for s in sources),
        *([said] if said else []),
        "## Numbers",
        f"{study.unit}; seed {seeds}"
        + (", mean and standard deviation over seeds" if len(options.seeds) > 1 else "")
        + ". Difference: ours minus the paper's.",
        grid(HEADERS, [cells(e) for e in shown(outcome)]),
        *([text] if (text := left_out(outcome)) else []),
        *_ranked(outcome),
        *_pictures(outcome),
        *(study.claims(outcome) if study.claims else []),
        "## What the paper leaves open, and what is different",
        "\n".join(f"- {note}" for note in study.notes),
        *_setting(outcome),
        "## Wall time",
        _wall(outcome),
        "## To repeat it",
        f"```sh\n{command(outcome)}\n```",
        "The command goes on where it was stopped; `--data-dir` says where the data sets are, `--out` where the runs "
        "shall be. Without `--scale` it trains all rounds, a run that has fewer then goes on.",
    ]
    return "\n\n".join(parts) + "\n"


def command(outcome: Outcome) -> str:
    """The line that repeats a study."""
    o = outcome.options
    options = [
        *([f"--scale {o.scale:g}"] if o.scale != 1 else []),
        *([f"--local-scale {o.local:g}"] if o.local != 1 else []),
        *([f"--seeds {','.join(map(str, o.seeds))}"] if o.seeds != outcome.study.seeds else []),
        *([f"--methods {','.join(o.methods)}"] if o.methods else []),
        *([f"--clients {','.join(map(str, o.clients))}"] if o.clients else []),
        *(["--accuracy"] if o.accuracy else []),
    ]
    return " ".join(["tierfed reproduce", outcome.study.name, *options])


def write_page(outcome: Outcome, path: Path) -> Path:
    """Writes figures and then the page, each whole or not at all; a last part "Reading the differences", written by
    hand, is kept.

    :raises OSError: it cannot be written
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    before = path.read_text("utf-8") if path.exists() else ""
    _, found, by_hand = before.partition(f"\n{BY_HAND}\n")
    for name, picture in drawn(outcome).items():
        write_atomic(path.parent / name, picture)
    write_atomic(path, markdown(_without_places(outcome)) + (f"\n{BY_HAND}\n{by_hand}" if found else ""))
    return path


def _without_places(outcome: Outcome) -> Outcome:
    """A page may be read elsewhere: where data were looked for on this machine is not in it."""
    told = [replace(e, missing="skipped: no data") if e.missing.startswith("skipped:") else e for e in outcome.entries]
    return replace(outcome, entries=tuple(told))


def _number(value: float, std: float | None) -> str:
    digits = max(2, len(f"{value:.10g}".partition(".")[2]))
    return f"{value:.{digits}f}" + ("" if std is None else f" ± {std:.3g}")


def grid(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""

    def row(texts: Sequence[str]) -> str:
        return "| " + " | ".join(t.replace("|", "\\|") for t in texts) + " |"

    return "\n".join([row(headers), "|" + "---|" * len(headers), *map(row, rows)])


def drawn(outcome: Outcome) -> dict[str, str]:
    """The figures of a study whose runs are finished, file name -> SVG."""
    figures = [f for f in outcome.study.figures if all(outcome.runs.get(c) for c in f.cases)]
    pictures = {_file(outcome, f): f.draw(outcome.runs) for f in figures}
    return {name: picture for name, picture in pictures.items() if picture}


def _file(outcome: Outcome, figure: Figure) -> str:
    return f"{outcome.study.name}-{figure.name}.svg"


def _pictures(outcome: Outcome) -> list[str]:
    there = drawn(outcome)
    shown = [f for f in outcome.study.figures if _file(outcome, f) in there]
    parts = [f"![Figure {f.name}]({_file(outcome, f)})\n\n*{f.caption}*" for f in shown]
    return ["## Figures", *parts] if parts else []


def _ranked(outcome: Outcome) -> list[str]:
    rows = [(*row[:4], f"{row[4]:+.2f}".replace("-", MINUS)) for row in rankings(outcome)]
    if not rows:
        return []
    headers = ("data", "quantity", "the paper's order", "our order", "rank correlation")
    return ["## Rankings", "Best first; Spearman's rank correlation of the two orders.", grid(headers, rows)]


def _setting(outcome: Outcome) -> list[str]:
    """The configs at full scale of what was run, or of all: what all have in common, and what each has beside it."""
    cases = [c for c in outcome.study.cases if outcome.runs.get(c.key)] or outcome.study.cases
    if not cases:
        return []
    common: Tables = {k: v for k, v in cases[0].tables.items() if k != "algorithm"}  # belongs to each run
    for case in cases[1:]:
        common = _shared(common, case.tables)
    rows = [(f"`{c.key}`", "; ".join(f"`{t}`" for t in _beside(c.tables, common))) for c in cases]
    return [
        "## Setting",
        "All runs have this config, before --scale and --local-scale; what is not in it is the default:",
        f"```toml\n{tomli_w.dumps(dict(common))}```",
        "Each has beside it, and its whole config lies in its folder (`config.toml`):",
        grid(("run", "settings"), rows),
    ]


def _shared(a: Tables, b: Tables) -> dict[str, Any]:
    both = {
        k: _shared(v, b[k]) if isinstance(v, dict) and isinstance(b[k], dict) else v
        for k, v in a.items()
        if k in b and (v == b[k] or isinstance(v, dict))
    }
    return {k: v for k, v in both.items() if v != {}}


def _beside(tables: Tables, common: Tables, path: str = "") -> list[str]:
    out: list[str] = []
    for key, value in tables.items():
        if isinstance(value, dict):
            out += _beside(value, common.get(key, {}), f"{path}{key}.")
        elif key not in common:
            out.append(path + " ".join(tomli_w.dumps({key: value}).split()))  # in a row of a table
    return out


def _wall(outcome: Outcome) -> str:
    if not outcome.seconds:
        return "Nothing was trained."
    total = duration(sum(outcome.seconds.values()))
    head = f"{total} in all, on a machine with {os.cpu_count()} processor cores that may have had other work."
    return f"{head}\n\n{grid(('run', 'time'), [(n, duration(s)) for n, s in outcome.seconds.items()])}"
