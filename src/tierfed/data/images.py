"""Pictures: the MNIST family, CIFAR-10, CIFAR-100 and EMNIST, from npz files or from the official files."""

import string
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from tierfed.data.arrays import Array, existing, parse_batch, parse_idx, read_npz
from tierfed.data.dataset import TEST, TRAIN, Dataset, Ints, bits
from tierfed.errors import InputError

Read = Callable[[str], bytes]
Pair = tuple[Array, ...]
EMPTY: Mapping[str, Any] = MappingProxyType({})

DIGITS = tuple(string.digits)
FASHION = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

# Letters whose two cases look alike are one class in the merged variants of EMNIST.
MERGED = set("cijklmopsuvwxyz")
BY_CLASS = tuple(string.digits + string.ascii_uppercase + string.ascii_lowercase)
EMNIST = {
    "digits": DIGITS,
    "mnist": DIGITS,
    "letters": tuple(string.ascii_lowercase),
    "byclass": BY_CLASS,
    "bymerge": tuple(c for c in BY_CLASS if c not in MERGED),
    "balanced": tuple(c for c in BY_CLASS if c not in MERGED),
}


def from_npz(path: Path, name: str, classes: tuple[str, ...]) -> Dataset:
    """x_train, y_train, x_test, y_test; and who drew them (writer_…, hsf_…) where the file tells."""
    data = read_npz(path, ("x_train", "y_train", "x_test", "y_test"))
    writers: dict[str, Any] = {}
    if {"writer_train", "writer_test"} <= data.keys():
        numbers, device = np.unique(np.concatenate([data["writer_train"], data["writer_test"]]), return_inverse=True)
        writers = {"devices": tuple(f"writer-{n:04d}" for n in numbers), "device": device.astype(np.int64)}
        if {"hsf_train", "hsf_test"} <= data.keys():
            hsf, team = np.unique(np.concatenate([data["hsf_train"], data["hsf_test"]]), return_inverse=True)
            of_writer = np.zeros(len(numbers), np.int64)
            of_writer[device] = team
            writers |= {"teams": tuple(f"hsf-{n}" for n in hsf), "team": of_writer}
    return _images(name, (data["x_train"], data["x_test"]), (data["y_train"], data["y_test"]), classes, writers)


def from_idx(read: Read, name: str, classes: tuple[str, ...]) -> Dataset:
    """The four files of MNIST and Fashion-MNIST."""
    x, y = _idx_parts(read, "{}-images-idx3-ubyte", "{}-labels-idx1-ubyte", ("train", "t10k"))
    return _images(name, x, y, classes)


def emnist(read: Read, variant: str) -> Dataset:
    """One variant of EMNIST. The files hold every picture mirrored at its diagonal; here they are upright."""
    stem = f"emnist-{variant}-{{}}"
    x, y = _idx_parts(read, f"{stem}-images-idx3-ubyte", f"{stem}-labels-idx1-ubyte", ("train", "test"))
    # The labels of this one variant count from 1.
    first = 1 if variant == "letters" else 0
    upright = tuple(part.transpose(0, 2, 1) for part in x)
    return _images("emnist", upright, tuple(part.astype(np.int64) - first for part in y), EMNIST[variant])


def cifar(read: Read, name: str) -> Dataset:
    """CIFAR-10 (five batches and one to test) or CIFAR-100 (fine labels), the python version."""
    if name == "cifar10":
        train, test = tuple(f"data_batch_{i}" for i in range(1, 6)), ("test_batch",)
        label, names, classes = b"labels", "batches.meta", b"label_names"
    else:
        train, test = ("train",), ("test",)
        label, names, classes = b"fine_labels", "meta", b"fine_label_names"
    parts = [[_cifar_batch(read, file, label) for file in files] for files in (train, test)]
    x = tuple(np.concatenate([batch[0] for batch in part]) for part in parts)
    y = tuple(np.concatenate([batch[1] for batch in part]) for part in parts)
    known = parse_batch(read(names), names).get(classes, [])
    return _images(name, x, y, tuple(c.decode() if isinstance(c, bytes) else str(c) for c in known))


def files_of(path: Path) -> Read:
    """Reads files by name (packed or not) out of a folder, a tar.gz or a zip archive, whatever folders are inside.

    :raises InputError: no such path, no archive; and from the function that is returned: no such file
    """
    if path.is_dir():
        files = {file.name: file for file in sorted(path.rglob("*")) if file.is_file()}
        return lambda name: files[_pick(files, name, path)].read_bytes()
    try:
        if zipfile.is_zipfile(existing(path)):
            return _zip_reader(path)
        with tarfile.open(path) as tar:
            members = {m.name.rpartition("/")[2]: tar.extractfile(m) for m in tar.getmembers() if m.isfile()}
            # At once: going back in a packed archive means unpacking it again.
            contents = {name: file.read() for name, file in members.items() if file}
        return lambda name: contents[_pick(contents, name, path)]
    except (tarfile.TarError, zipfile.BadZipFile, OSError, EOFError, zlib.error) as err:
        raise InputError(f"{path} is no archive that can be read: {err}; get it again") from None


def _zip_reader(path: Path) -> Read:
    with zipfile.ZipFile(path) as archive:
        names = {name.rpartition("/")[2]: name for name in archive.namelist()}

    def read(name: str) -> bytes:
        with zipfile.ZipFile(path) as archive:
            return archive.read(names[_pick(names, name, path)])

    return read


def _pick(names: Iterable[str], wanted: str, where: Path) -> str:
    found = next((name for name in (wanted, f"{wanted}.gz") if name in names), None)
    if found is None:
        raise InputError(f"{where} has no file {wanted} or {wanted}.gz; put all official files there")
    return found


def _idx_parts(read: Read, images: str, labels: str, parts: tuple[str, str]) -> tuple[Pair, Pair]:
    x, y = (tuple(parse_idx(read(form.format(part)), form.format(part)) for part in parts) for form in (images, labels))
    return x, y


def _cifar_batch(read: Read, file: str, label: bytes) -> tuple[Array, Ints]:
    batch = parse_batch(read(file), file)
    data, labels = batch.get(b"data"), batch.get(label)
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3072:
        raise InputError(f"{file} has no pictures of 3 x 32 x 32 bytes under 'data'; get the official python version")
    if not isinstance(labels, list) or len(labels) != len(data):
        raise InputError(f"{file} has not one label per picture under {label.decode()!r}; get the official file")
    return data.reshape(-1, 3, 32, 32), np.array(labels, np.int64)


def _images(
    name: str, x: tuple[Array, ...], y: tuple[Array, ...], classes: tuple[str, ...], extra: Mapping[str, Any] = EMPTY
) -> Dataset:
    """Training and test pictures as one pool; pictures without a channel get one."""
    for part, images, labels in zip(("training", "test"), x, y, strict=True):
        if len(images) != len(labels):
            raise InputError(f"{name}: {len(images)} {part} pictures but {len(labels)} labels; get the files again")
    pool = np.concatenate(x)
    tensor = torch.from_numpy(np.ascontiguousarray(pool[:, None] if pool.ndim == 3 else pool, dtype=np.uint8))
    return Dataset(
        name=name,
        x=tensor,
        y=torch.from_numpy(np.concatenate(y).astype(np.int64)),
        classes=classes,
        bits_per_sample=bits(tensor),
        split=np.repeat(np.array([TRAIN, TEST], np.int8), [len(x[0]), len(x[1])]),
        **extra,
    )
