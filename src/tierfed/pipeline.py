"""A run in stages: the training, then the personalization of the models that it has left."""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from tierfed import loop
from tierfed.config import (
    STAGE,
    Config,
    GridSettings,
    PersonalizeSettings,
    StartSettings,
    load_config,
    personalization,
)
from tierfed.errors import InputError
from tierfed.folders import read_run
from tierfed.result import Progress, Result, Watcher
from tierfed.session import fingerprint
from tierfed.settings import build

__all__ = ["clear_leftover", "personalize", "resume", "run"]


def run(
    config: Config | Mapping[str, Any] | str | Path,
    *,
    data: Any = None,
    module: nn.Module | None = None,
    watch: Watcher | None = None,
    folder: bool = True,
) -> Result:
    """Trains one run from the start, and personalizes its models where the config asks for it ([personalize]).

    :param config: a `Config`, a dict of its tables, a TOML file or the name of a preset. A [grid] in it is for the
        command line: here [algorithm] is trained with run.seed
    :param data: in the place of data.source: a `Dataset`, or a table (pandas, polars, pyarrow, a dict of columns) whose
        columns [data.columns] names; "label" and "device" by default
    :param module: in the place of model.name: any nn.Module; the run works on a copy
    :param watch: is told after every round
    :param folder: write the run folder; without it nothing outlives the process
    :return: the result of the training; that of the personalization is its `personalized`
    :raises InputError: anything in the config that does not fit; the folder exists; the disk is full
    """
    first = loop.run(load_config(config), data=data, module=module, watch=watch, folder=folder)
    return _then(first, data, module, watch)


def resume(
    path: Path | str,
    *,
    rounds: int | None = None,
    engine: Mapping[str, Any] | None = None,
    data: Any = None,
    module: nn.Module | None = None,
    watch: Watcher | None = None,
) -> Result:
    """Goes on with whichever stage of a run is unfinished, after its last committed round; the same bits as if it had
    never stopped.

    :param rounds: another number of rounds of the training than the run was begun with
    :param engine: keys of [engine] that are other ones from now on: name, workers, address, gpus
    :param data: what was given to `run`; :param module: the same
    :raises InputError: no run folder, another config, data or model than the run began with, a damaged checkpoint,
        another process at work on it; more rounds of a training whose models are personalized already
    """
    path = Path(path)
    if (path / STAGE / "config.toml").exists():
        _check_stage(path, rounds)
    first = loop.resume(path, rounds=rounds, engine=engine, data=data, module=module, watch=watch)
    return _then(first, data, module, watch, engine)


def personalize(
    path: Path | str,
    mechanism: str | None = None,
    *,
    rounds: int | None = None,
    start: str | None = None,
    options: Mapping[str, Any] | None = None,
    out: Path | str | None = None,
    data: Any = None,
    module: nn.Module | None = None,
    watch: Watcher | None = None,
) -> Result:
    """Personalizes the models of a finished run; what is not given is as its [personalize] says.

    :param path: the folder of the run
    :param mechanism: any algorithm by name
    :param rounds: of the stage
    :param start: "personal" or "global": what every device begins with
    :param options: hyper-parameters of the mechanism; lr, epochs and steps are those of the run by default
    :param out: the folder of the stage; `personalized` inside that of the run by default
    :param data: what was given to `run`; :param module: the same
    :raises InputError: the run is not finished, or is a grid; what the mechanism does not have or needs; the folder
        exists
    """
    path = Path(path)
    config = loop.begun(path, data, module, "personalize")
    if config.grid != GridSettings():
        raise InputError(f"{path} is a grid; give the folder of one of its runs")
    before = config.personalize
    name = before.mechanism if mechanism is None else mechanism
    if name == "none":
        raise InputError("no mechanism to personalize with; name an algorithm, for example --mechanism ftl")
    settings = {
        "mechanism": name,
        "rounds": before.rounds if rounds is None else rounds,
        "start": before.start if start is None else start,
        "options": {**(before.options if name == before.mechanism else {}), **(options or {})},
    }
    config = replace(config, personalize=build(PersonalizeSettings, settings, "personalize"))
    folder = path / STAGE if out is None else Path(out)
    stage = staged(config, str(path), folder)
    return loop.run(stage, data=data, module=module, watch=_named(watch, path) if folder.parent == path else watch)


def staged(config: Config, before: str, out: Path, round_: int | None = None) -> Config:
    """The config of the second stage.

    :param before: the folder of the first one
    :param round_: the round that it ended with
    """
    stage = config.personalize
    return replace(
        config,
        run=replace(config.run, out=str(out), rounds=stage.rounds),
        algorithm=personalization(config) or {},
        start=StartSettings(run=before, of=stage.start, round=round_),
        personalize=PersonalizeSettings(),
        grid=GridSettings(),
    )


def clear_leftover(path: Path) -> None:
    """Takes away a run folder that was made, and then the process was killed."""
    if path.is_dir() and all(p.name.startswith(".") for p in path.iterdir()):
        shutil.rmtree(path)


def _check_stage(path: Path, rounds: int | None) -> None:
    """:raises InputError: the second stage of a run is begun, and does not fit to the first one"""
    config, out = read_run(path), path / STAGE
    if rounds not in (None, config.run.rounds):
        raise InputError(
            f"the models of {path} are personalized already ({out}), from the round that it ended with; for other "
            f"rounds start a new run, or delete {out}"
        )
    if personalization(config) is None:
        return
    found = read_run(out)
    if fingerprint(found) != fingerprint(staged(config, str(path), out, found.start.round)):
        raise InputError(
            f"{out} holds another personalization than {path / 'config.toml'} asks for; undo the change, or delete "
            "that folder"
        )


def _then(
    first: Result,
    data: Any,
    module: nn.Module | None,
    watch: Watcher | None,
    engine: Mapping[str, Any] | None = None,
) -> Result:
    """The second stage after the first one, where there is one; begun, or gone on with."""
    config = first.world.config
    if first.interrupted or personalization(config) is None:
        return first
    if first.folder is None:
        stage = staged(config, "the training in this process", Path(STAGE), first.engine.round)
        second = loop.run(stage, data=data, module=module, watch=watch, folder=False, before=first)
        return _both(first, second)
    out = first.folder / STAGE
    stage = staged(config, str(first.folder), out, first.engine.round)
    watch = _named(watch, first.folder)
    if not (out / "config.toml").exists():
        clear_leftover(out)
        return _both(first, loop.run(stage, data=data, module=module, watch=watch))
    return _both(first, loop.resume(out, engine=engine, data=data, module=module, watch=watch))


def _both(first: Result, second: Result) -> Result:
    trained = first.trained + second.trained
    return replace(first, personalized=second, trained=trained, interrupted=second.interrupted)


def _named(watch: Watcher | None, path: Path) -> Watcher | None:
    """A watcher that is told of the run and of its stage."""

    def told(progress: Progress) -> None:
        if watch is not None:
            watch(replace(progress, name=f"{path.name}/{progress.name}"))

    return None if watch is None else told
