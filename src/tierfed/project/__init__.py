"""`tierfed new`: a small project that works, to be changed piece by piece."""

import runpy
import shutil
from importlib import resources
from pathlib import Path
from typing import Annotated

import typer

from tierfed.errors import InputError
from tierfed.output import out, say
from tierfed.session import on_disk

_END = ".in"  # the files of the template are no modules of this package
_NAMES = {"gitignore": ".gitignore"}


def new(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The new folder.")],
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """Begin a project: a config, a model, an algorithm and data of your own, with tests that they keep the laws."""
    files = make_project(folder)
    if as_json:
        say({"folder": str(folder), "files": [str(p) for p in files]})
        return
    for text in (
        f"{folder}: {', '.join(p.name for p in files)}",
        f"cd {folder}",
        "tierfed run config.toml       # train, and write a report",
        "pytest                        # does the algorithm keep the laws? (pip install pytest)",
    ):
        out.print(text, soft_wrap=True, markup=False, highlight=False)


def make_project(folder: Path) -> list[Path]:
    """Writes the files of a new project, and its data.

    :return: the files
    :raises InputError: the folder exists, or cannot be written
    """
    if folder.exists() or folder.is_symlink():
        raise InputError(f"{folder} exists; choose another name for the project")
    with on_disk(folder):
        folder.mkdir(parents=True)
        try:
            for entry in resources.files("tierfed.project").joinpath("template").iterdir():
                name = entry.name.removesuffix(_END)
                text = entry.read_text("utf-8").replace("{{name}}", folder.resolve().name)
                (folder / _NAMES.get(name, name)).write_text(text, "utf-8")
            runpy.run_path(str(folder / "my_data.py"))["write"](folder / "data.csv")
        except BaseException:
            shutil.rmtree(folder)
            raise
    return sorted(folder.iterdir())
