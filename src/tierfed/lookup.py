"""What a user names and is not there: files, run folders, things in modules; messages name the nearest right one."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tierfed.errors import InputError, closest


def near_file(path: Path, suffix: str = "") -> str:
    """The hint for a file that is not there: "; did you mean …?", of a file beside it; else nothing.

    :param suffix: only files that end so, ".toml"
    """
    return _near(path, _beside(path.parent, lambda p: p.is_file() and p.name.endswith(suffix)))


def near_folder(path: Path) -> str:
    """The hint for a folder that is not there, of one beside it; else nothing."""
    return _near(path, _beside(path.parent, Path.is_dir))


def near_module(name: str) -> str:
    """The hint for a module that cannot be imported, of a file in the working folder; else nothing."""
    return near_file(Path(f"{name}.py"), ".py").replace(".py'", "'")


def near_run(path: Path) -> str:
    """The hint for a run folder that is not there, of one beside it or below runs/; else nothing."""
    here = _beside(path.parent, is_run) or _beside(Path("runs"), is_run)
    return _near(path, here) or (f"; there are {', '.join(map(str, here[:5]))}" if here else "")


def is_run(path: Path) -> bool:
    """Whether a folder holds a run or a grid."""
    return (path / "config.toml").is_file()


def _beside(folder: Path, wanted: Callable[[Path], bool]) -> list[Path]:
    try:
        return sorted(p for p in folder.iterdir() if wanted(p))
    except OSError:
        return []


def _near(path: Path, known: list[Path]) -> str:
    names = {str(p): p for p in known}
    close = closest(str(path), names)
    return "" if close is None else f"; did you mean {close!r}?"


def imported(what: str, target: str, wanted: Callable[[Any], bool]) -> Any:
    """The thing that "package.module:name" names.

    :param what: how it is called in messages
    :param wanted: what else in the module would do
    :raises InputError: no such module, or no such name in it (with the nearest one)
    """
    path, _, attribute = target.partition(":")
    try:
        module = importlib.import_module(path)
    except ImportError as err:
        hint = near_module(path) or "; check the module path and the name"
        raise InputError(f"{what} {target!r} cannot be imported: {err}{hint}") from None
    try:
        return getattr(module, attribute)
    except AttributeError as err:
        own = [k for k, v in vars(module).items() if wanted(v) and getattr(v, "__module__", "") == module.__name__]
        close = closest(attribute, own)
        hint = f"did you mean '{path}:{close}'?" if close else "check the module path and the name"
        raise InputError(f"{what} {target!r} cannot be imported: {err}; {hint}") from None
