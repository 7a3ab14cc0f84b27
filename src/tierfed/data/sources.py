"""The table of built-in sets, and where their files come from."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tierfed.data import images, sensors, tables
from tierfed.data.dataset import Dataset
from tierfed.data.download import Remote, fetch, resolve
from tierfed.data.mobiact import files_in, mobiact
from tierfed.data.settings import DataSettings
from tierfed.errors import InputError, nearest

# Where Debian's package dataset-fashion-mnist puts its files.
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")

MNIST_URL = "https://ossci-datasets.s3.amazonaws.com/mnist/"
FASHION_URL = "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/"
CIFAR_URLS = ("https://www.cs.toronto.edu/~kriz/", "https://cave.cs.toronto.edu/kriz/")
EMNIST_URL = "https://biometrics.nist.gov/cs_links/EMNIST/"

IDX_FILES = tuple(f"{p}-{what}-ubyte.gz" for p in ("train", "t10k") for what in ("images-idx3", "labels-idx1"))


def _remotes(names: tuple[str, ...], md5: tuple[str, ...], *bases: str) -> tuple[Remote, ...]:
    return tuple(
        Remote(name=name, urls=tuple(base + name for base in bases), md5=digest)
        for name, digest in zip(names, md5, strict=True)
    )


# MD5 checksums of the published files.
REMOTES: dict[str, tuple[Remote, ...]] = {
    "mnist": _remotes(
        IDX_FILES,
        (
            *("f68b3c2dcbeaaa9fbdd348bbdeb94873", "d53e105ee54ea40749a09fcbcd1e9432"),
            *("9fb629c4189551a2d022fa330f9573f3", "ec29112dd5afa0611ce80d1b7f02629c"),
        ),
        MNIST_URL,
    ),
    "fashion_mnist": _remotes(
        IDX_FILES,
        (
            *("8d4fb7e6c68d591d4c3dfef9ec88bf0d", "25c81989df183df01b3e8a0aad5dffbe"),
            *("bef4ecab320f06d8554ea6380940ec79", "bb300cfdad3c16e7a12a480ee83cd310"),
        ),
        FASHION_URL,
    ),
    "cifar10": _remotes(("cifar-10-python.tar.gz",), ("c58f30108f718f92721af3b95e74349a",), *CIFAR_URLS),
    "cifar100": _remotes(("cifar-100-python.tar.gz",), ("eb9058c3a382ffc7106e4002c42a8d85",), *CIFAR_URLS),
    "emnist": _remotes(("gzip.zip",), ("58c8d27c78d21e728a6bc7b3cc06412e",), EMNIST_URL),
}


@dataclass(frozen=True, kw_only=True)
class Source:
    """A built-in set, as the list of data sets shows it.

    :param about: what a sample is
    :param devices: the natural devices and teams
    :param license: as its authors state it
    :param origin: where the files come from
    :param available: whether the files are here already, given the data directory
    :param open: the pool of samples
    """

    name: str
    about: str
    devices: str
    license: str
    origin: str
    available: Callable[[str | None], bool]
    open: Callable[[DataSettings], Dataset]


def open_source(settings: DataSettings) -> Dataset:
    """The pool of samples that `settings.source` names.

    :raises InputError: an unknown name, a missing file, a file that cannot be read
    """
    name = settings.source
    if name in FILES:
        if settings.path is None:
            raise InputError(f"data.source = {name!r} needs a file; name it: data.path")
        path = Path(settings.path).expanduser()
        return (
            tables.from_npz(path, settings.columns)
            if name == "npz"
            else tables.from_table(path, settings.columns, name)
        )
    if name not in DATASETS:
        raise InputError(f"data.source = {name!r} is unknown; {nearest(name, (*DATASETS, *FILES))}")
    return DATASETS[name].open(settings)


def _place(name: str, data_dir: str | None) -> Path | None:
    """The npz file, or the folder or archive of official files, that is here already."""
    folder = resolve(data_dir) / name
    names = [file.name for file in REMOTES.get(name, ())]
    if (folder / f"{name}.npz").is_file():
        return folder / f"{name}.npz"
    if names and all((folder / n).is_file() or (folder / n.removesuffix(".gz")).is_file() for n in names):
        return folder / names[0] if len(names) == 1 else folder
    inside = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python", "uci_har": "UCI HAR Dataset"}
    if name in inside and (folder / inside[name]).is_dir():
        return folder / inside[name]
    if name == "mobiact" and next(files_in(folder), None) is not None:
        return folder
    if name == "fashion_mnist" and all((DEBIAN_FASHION_MNIST / n).is_file() for n in names):
        return DEBIAN_FASHION_MNIST
    return None


def _located(name: str, settings: DataSettings) -> Path:
    """The path that the user names, else what is here, else a download.

    :raises InputError: nothing is here, and nothing can be had
    """
    if settings.path is not None:
        path = Path(settings.path).expanduser()
        if not path.exists():
            raise InputError(f"there is nothing at data.path = {settings.path!r}; check it, or leave it out")
        return path
    if (path_here := _place(name, settings.dir)) is not None:
        return path_here
    folder = resolve(settings.dir) / name
    if name in REMOTES:
        fetch(REMOTES[name], folder)
        return folder / REMOTES[name][0].name if len(REMOTES[name]) == 1 else folder
    official = {"uci_har": "uci_har.npz or the official folder", "mobiact": "its folder of annotated data"}
    what = official.get(name, f"{name}.npz")
    raise InputError(
        f"{name} is not here and cannot be downloaded by itself; put {what} into {folder}, "
        f"or name your data directory (data.dir, or the variable TIERFED_DATA)"
    )


def _mnist_family(name: str, classes: tuple[str, ...]) -> Callable[[DataSettings], Dataset]:
    def open_(settings: DataSettings) -> Dataset:
        path = _located(name, settings)
        if path.suffix == ".npz":
            return images.from_npz(path, name, classes)
        return images.from_idx(images.files_of(path), name, classes)

    return open_


def _cifar(name: str) -> Callable[[DataSettings], Dataset]:
    return lambda settings: images.cifar(images.files_of(_located(name, settings)), name)


def _cifar10_subset(settings: DataSettings) -> Dataset:
    return images.from_npz(_located("cifar10_subset", settings), "cifar10_subset", images.CIFAR10)


def _emnist(settings: DataSettings) -> Dataset:
    return images.emnist(images.files_of(_located("emnist", settings)), settings.variant)


def _uci_har(settings: DataSettings) -> Dataset:
    path = _located("uci_har", settings)
    if path.is_dir():
        inner = path / "UCI HAR Dataset"
        return sensors.uci_har_folder(inner if inner.is_dir() else path, settings)
    return sensors.uci_har_npz(path, settings)


def _mobiact(settings: DataSettings) -> Dataset:
    return mobiact(_located("mobiact", settings), settings)


def _here(name: str) -> Callable[[str | None], bool]:
    return lambda data_dir: _place(name, data_dir) is not None


DATASETS: dict[str, Source] = {
    source.name: source
    for source in (
        Source(
            name="watch",
            about="7 shoulder exercises, smartwatch, 6 channels at 50 Hz, 1 s windows",
            devices="20 arms in 10 subjects",
            license="BSD-3-Clause, (c) 2018 David M. Burns",
            origin="comes with tierfed; Python package seglearn, arXiv:1802.01489",
            available=lambda data_dir: True,
            open=sensors.watch,
        ),
        Source(
            name="uci_har",
            about="6 activities, smartphone at the waist, 9 channels at 50 Hz, 1 s windows",
            devices="30 subjects",
            license="cite Anguita et al., ESANN 2013; no commercial use",
            origin="archive.ics.uci.edu, set 240: put it there by hand",
            available=_here("uci_har"),
            open=_uci_har,
        ),
        Source(
            name="mobiact",
            about="10 daily activities, smartphone in the pocket, 6 channels at 200 Hz (data.window = 200 is 1 s)",
            devices="the subjects with all activities (of 67)",
            license="on request from its authors, for research; may not be passed on",
            origin="MobiAct 2.0, doi 10.5220/0005792401430151: put its annotated data there by hand",
            available=_here("mobiact"),
            open=_mobiact,
        ),
        Source(
            name="mnist",
            about="70,000 digits, 28 x 28",
            devices="836 writers in 2 groups (npz with writer ids), else none",
            license="not stated in the files",
            origin=MNIST_URL,
            available=_here("mnist"),
            open=_mnist_family("mnist", images.DIGITS),
        ),
        Source(
            name="fashion_mnist",
            about="70,000 articles of clothing, 28 x 28",
            devices="none",
            license="MIT, (c) 2017 Zalando SE",
            origin=f"{FASHION_URL}; Debian package dataset-fashion-mnist",
            available=_here("fashion_mnist"),
            open=_mnist_family("fashion_mnist", images.FASHION),
        ),
        Source(
            name="cifar10",
            about="60,000 color pictures of 10 kinds, 3 x 32 x 32",
            devices="none",
            license="not stated in the files",
            origin=CIFAR_URLS[0],
            available=_here("cifar10"),
            open=_cifar("cifar10"),
        ),
        Source(
            name="cifar100",
            about="60,000 color pictures of 100 kinds, 3 x 32 x 32",
            devices="none",
            license="not stated in the files",
            origin=CIFAR_URLS[0],
            available=_here("cifar100"),
            open=_cifar("cifar100"),
        ),
        Source(
            name="emnist",
            about="handwritten characters, 28 x 28; data.variant: digits (10 kinds) … byclass (62)",
            devices="none",
            license="not stated in the files",
            origin=EMNIST_URL,
            available=_here("emnist"),
            open=_emnist,
        ),
        Source(
            name="cifar10_subset",
            about="24,000 of CIFAR-10's pictures with a split of their own: for comparisons among themselves",
            devices="none",
            license="not stated in the files",
            origin="put it there by hand",
            available=_here("cifar10_subset"),
            open=_cifar10_subset,
        ),
    )
}
FILES = ("npz", "parquet", "csv")
