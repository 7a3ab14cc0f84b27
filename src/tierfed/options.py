"""From the options of a command to a config."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from tierfed import config as configs
from tierfed.config import Config
from tierfed.errors import InputError

Sets = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any config key: algorithm.lr=0.05")]
DataDir = Annotated[str | None, typer.Option("--data-dir", help="Where data sets are (or TIERFED_DATA).")]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable.")]
Engine = Annotated[str | None, typer.Option(help="auto, serial, vectorized or ray.")]
Address = Annotated[
    str | None, typer.Option(metavar="HOST:PORT", help="The Ray cluster: auto, or that of its head (engine.address).")
]


def elsewhere(engine: str | None, address: str | None) -> dict[str, Any]:
    """Where visits are computed, as the options say: keys of [engine]."""
    if address is not None:
        return {"name": engine or "ray", "address": address}
    if engine is None:
        return {}
    return {"name": engine} if engine == "ray" else {"name": engine, "address": "", "gpus": 0.0}


def single_run(**options: Any) -> None:
    """:raises InputError: one of some options was given that a grid does not have"""
    for name, value in options.items():
        if value is not None:
            raise InputError(f"--{name} works on one run; give the folder of a run inside the grid")


def numbers(text: str, option: str = "--seeds") -> tuple[int, ...]:
    """:raises InputError: the value of an option is no list of whole numbers"""
    try:
        return tuple(int(s) for s in text.split(","))
    except ValueError:
        raise InputError(f"{option} {text!r}: wanted whole numbers, for example {option} 0,1,2") from None


def load(
    source: str,
    sets: list[str],
    algorithm: list[str] | None,
    seeds: str | None,
    data_dir: str | None,
    out_dir: Path | None,
) -> Config:
    """The config of a command: file or preset, then --set, then the other options."""
    names = [n.strip() for text in algorithm or () for n in text.split(",")]
    named = [f"algorithm.name={json.dumps(names[0])}"] if names else []
    if names and any(s.startswith("algorithm.name") for s in sets):
        raise InputError("--algorithm and --set algorithm.name: give one of them")
    tables = configs.assign(configs.read(source), [*named, *sets])
    for name in ("grid", "run", "data"):
        if not isinstance(tables.setdefault(name, {}), dict):
            raise InputError(f"{name} = {tables[name]!r}: wanted a table, [{name}]")
    grid = tables["grid"]
    if names:
        grid["algorithms"] = [{"name": n} for n in names] if len(names) > 1 else []
    elif any(s.startswith("algorithm.name") for s in sets):
        grid["algorithms"] = []
    if seeds is not None:
        several = list(numbers(seeds))
        grid["seeds"] = several if len(several) > 1 else []
        tables["run"]["seed"] = several[0]
    if data_dir is not None:
        tables["data"]["dir"] = data_dir
    if out_dir is not None:
        tables["run"]["out"] = str(out_dir)
    return configs.from_table(tables)
