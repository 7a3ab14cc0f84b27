"""The data directory, and downloads into it that are checked and never half-written."""

import hashlib
import os
import sys
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import IO
from urllib.response import addinfourl

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from tierfed.errors import InputError

CHUNK_BYTES = 1 << 18
TIMEOUT_SECONDS = 30.0


@dataclass(frozen=True, kw_only=True)
class Remote:
    """A file as its project publishes it.

    :param name: the name of the file here
    :param urls: where it is; the second is asked where the first does not answer
    :param md5: of the published file; guards against damage and mix-ups
    """

    name: str
    urls: tuple[str, ...]
    md5: str


def resolve(data_dir: str | None) -> Path:
    """The data directory: the one that is named, else TIERFED_DATA, else the user's cache folder."""
    if data_dir or (data_dir := os.environ.get("TIERFED_DATA")):
        return Path(data_dir).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "tierfed"


def fetch(files: tuple[Remote, ...], folder: Path) -> Path:
    """Puts those of the files that are not there yet into the folder, each as a whole or not at all.

    :returns: the folder
    :raises InputError: no network, or a checksum that differs
    """
    wanted = [file for file in files if not (folder / file.name).is_file()]
    with _progress() as progress:
        for file in wanted:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                _fetch(file, folder, progress)
            except (OSError, HTTPException) as err:
                names = ", ".join(f.name for f in wanted)
                raise InputError(
                    f"cannot download {file.urls[0]} to {folder} ({err}); without a network put these files there: "
                    f"{names}; or name your data directory (data.dir, or the variable TIERFED_DATA)"
                ) from None
    return folder


def _fetch(file: Remote, folder: Path, progress: Progress) -> None:
    # A name of its own, so that two processes may download at the same time.
    temporary = folder / f".{file.name}.{uuid.uuid4().hex}"
    try:
        with temporary.open("xb") as out:
            digest = _stream(file, out, progress)
        if digest != file.md5:
            raise InputError(
                f"{file.urls[0]}: the checksum of what came is {digest}, it should be {file.md5}; nothing was kept. "
                f"Try again later, or put the right {file.name} into {folder}"
            )
        os.replace(temporary, folder / file.name)
    finally:
        temporary.unlink(missing_ok=True)


def _stream(file: Remote, out: IO[bytes], progress: Progress) -> str:
    """Writes the file and returns the MD5 checksum of what was written."""
    with _opened(file.urls) as response:
        size = response.headers.get("Content-Length")
        task = progress.add_task(file.name, total=int(size) if size else None)
        digest = hashlib.md5(usedforsecurity=False)
        while chunk := response.read(CHUNK_BYTES):
            out.write(chunk)
            digest.update(chunk)
            progress.advance(task, len(chunk))
    return digest.hexdigest()


@contextmanager
def _opened(urls: tuple[str, ...]) -> Iterator[addinfourl]:
    """The first address that answers."""
    for last, url in zip([False] * (len(urls) - 1) + [True], urls, strict=True):
        # Some archives refuse Python's own name.
        request = urllib.request.Request(url, headers={"User-Agent": "Mozilla/5.0 (compatible; tierfed)"})
        try:
            response = urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
        except OSError:
            if last:
                raise
            continue
        with response:
            yield response
        return


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    terminal = sys.stderr.isatty()
    return Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True, disable=not terminal)
