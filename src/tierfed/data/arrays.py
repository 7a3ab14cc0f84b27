"""Reading arrays from files without ever running what is in them: npz, idx, text tables, CIFAR batches."""

import gzip
import io
import math
import pickle
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt
from numpy._core.multiarray import _reconstruct

from tierfed.errors import InputError, nearest
from tierfed.lookup import near_file

Array = npt.NDArray[Any]

IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
GZIP_MAGIC = b"\x1f\x8b"


def existing(path: Path) -> Path:
    """The path of a file that is there.

    :raises InputError: it is not
    """
    if not path.is_file():
        raise InputError(f"there is no file {path}{near_file(path) or '; check data.path and data.dir'}")
    return path


def read_npz(path: Path, wanted: Iterable[str] = ()) -> dict[str, Array]:
    """All arrays of an npz file.

    :raises InputError: no such file, no npz file, pickled objects inside, or one of the `wanted` arrays is not there
    """
    existing(path)
    try:
        content = np.load(path, allow_pickle=False)
        if isinstance(content, np.lib.npyio.NpzFile):
            with content as file:
                arrays = {name: file[name] for name in file.files}
        else:
            arrays = {}
    except (ValueError, BadZipFile, EOFError, OSError) as err:
        raise InputError(f"{path} cannot be read as an npz file of plain arrays: {err}") from None
    if not arrays:
        raise InputError(f"{path} is no npz file with named arrays; write it with numpy.savez(path, x=…, y=…)")
    for name in wanted:
        if name not in arrays:
            raise InputError(f"{path} has no array {name!r}; {nearest(name, arrays)}")
    return arrays


def read_table(path: Path) -> npt.NDArray[np.float32]:
    """A text file of numbers between blanks, [rows, columns].

    :raises InputError: no such file, or something else in it
    """
    existing(path)
    try:
        return np.loadtxt(path, dtype=np.float32, ndmin=2)
    except ValueError as err:
        raise InputError(f"{path} is not a table of numbers: {err}") from None


def parse_idx(data: bytes, where: object) -> Array:
    """An array in the idx format of the MNIST family, packed with gzip or not.

    :param where: the name of the file, for messages
    :raises InputError: it is not in this format
    """
    try:
        data = gzip.decompress(data) if data.startswith(GZIP_MAGIC) else data
        zero, kind, dims = struct.unpack_from(">HBB", data)
        shape = struct.unpack_from(f">{dims}I", data, 4)
        dtype = np.dtype(IDX_TYPES[kind])
        # frombuffer alone would take a file with too many bytes.
        if zero != 0 or len(data) != 4 + 4 * dims + math.prod(shape) * dtype.itemsize:
            raise ValueError("its header does not fit its length")
        return np.frombuffer(data, dtype, offset=4 + 4 * dims).reshape(shape).astype(dtype.newbyteorder("="))
    except (ValueError, KeyError, struct.error, EOFError, OSError, zlib.error) as err:
        raise InputError(f"{where} is no idx file: {err}; get it again") from None


class ArrayUnpickler(pickle.Unpickler):
    """Reads a CIFAR batch, which is published as a pickle of a dict, and can do nothing else.

    A pickle may name any function and have it called. Here exactly the three names that rebuild a numpy array are
    known; every other name is refused before anything is called. Bytes, text, numbers, lists and dicts need no name.
    """

    CORE = ("numpy.core.multiarray", "numpy._core.multiarray")

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data), encoding="bytes")

    def find_class(self, module: str, name: str) -> Any:
        if module in self.CORE and name == "_reconstruct":
            return _reconstruct
        if module == "numpy" and name in ("ndarray", "dtype"):
            return np.ndarray if name == "ndarray" else np.dtype
        raise RefusedError(f"it names {module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        raise RefusedError("it points outside of itself")


class RefusedError(Exception):
    """A pickle wants more than arrays."""


def parse_batch(data: bytes, where: object) -> dict[bytes, Any]:
    """A file of the official CIFAR python version: b"data" [n, 3072] uint8 and b"labels" or b"fine_labels" [n].

    :param where: the name of the file, for messages
    :raises InputError: other content, or a pickle that wants to do more than hold arrays
    """
    try:
        content = ArrayUnpickler(data).load()
    except RefusedError as err:
        raise InputError(f"{where} is refused, for it could run code: {err}; get the official file") from None
    # Whatever a broken pickle raises: there is no common class.
    except Exception as err:
        raise InputError(f"{where} is no CIFAR batch ({type(err).__name__}: {err}); get the official file") from None
    if not isinstance(content, dict):
        raise InputError(f"{where} is no CIFAR batch but a {type(content).__name__}; get the official file")
    return content
