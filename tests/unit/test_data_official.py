"""Official files of built-in sets, made here in small and read back."""

import gzip
import io
import pickle
import struct
import tarfile
import zipfile

import numpy as np
import pytest
import torch

from tierfed.data import DataSettings, open_source, sources
from tierfed.data.arrays import parse_batch, parse_idx
from tierfed.data.sensors import HAR_SIGNALS
from tierfed.errors import InputError


def idx(array, kind=0x08, packed=False):
    data = struct.pack(f">HBB{array.ndim}I", 0, kind, array.ndim, *array.shape) + array.tobytes()
    return gzip.compress(data) if packed else data


@pytest.mark.parametrize("packed", [False, True])
def test_idx(packed):
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    np.testing.assert_array_equal(parse_idx(idx(array, packed=packed), "a"), array)
    wide = np.array([1, -2, 300], ">i4")
    got = parse_idx(idx(wide, 0x0C, packed), "a")
    np.testing.assert_array_equal(got, wide)
    assert got.dtype == np.int32


@pytest.mark.parametrize(
    "data", [b"", b"\x00\x00\x08", idx(np.zeros(3, np.uint8))[:-1], idx(np.zeros(3), 7), b"\x1f\x8bxx", b"\x01" * 20]
)
def test_broken_idx(data):
    with pytest.raises(InputError, match="train-images is no idx file"):
        parse_idx(data, "train-images")


def mnist_files(folder, stem="{}", packed=False, parts=("train", "t10k"), first=0):
    """Six training and four test pictures of 28 x 28, the first pixel of the second row counts them."""
    folder.mkdir(parents=True)
    for part, n in zip(parts, (6, 4), strict=True):
        x = np.zeros((n, 28, 28), np.uint8)
        x[:, 1, 0] = np.arange(n)
        end = ".gz" if packed else ""
        name = stem.format(part)
        (folder / f"{name}-images-idx3-ubyte{end}").write_bytes(idx(x, packed=packed))
        (folder / f"{name}-labels-idx1-ubyte{end}").write_bytes(
            idx(np.arange(n, dtype=np.uint8) + first, packed=packed)
        )


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_mnist_family(tmp_path, name, packed):
    mnist_files(tmp_path / name, packed=packed)
    data = open_source(DataSettings(source=name, dir=str(tmp_path)))
    assert data.x.shape == (10, 1, 28, 28)
    assert data.x[:, 0, 1, 0].tolist() == [0, 1, 2, 3, 4, 5, 0, 1, 2, 3]
    assert data.y.tolist() == [0, 1, 2, 3, 4, 5, 0, 1, 2, 3]
    assert data.split.tolist() == [0] * 6 + [2] * 4
    assert len(data.classes) == 10
    assert data.bits_per_sample == 784 * 8


def test_the_folder_of_a_package_is_found_by_itself(tmp_path, monkeypatch):
    mnist_files(tmp_path / "package", packed=True)
    monkeypatch.setattr(sources, "DEBIAN_FASHION_MNIST", tmp_path / "package")
    assert sources.DATASETS["fashion_mnist"].available(str(tmp_path))
    assert len(open_source(DataSettings(source="fashion_mnist", dir=str(tmp_path)))) == 10


def test_an_official_folder_with_a_gap(tmp_path):
    mnist_files(tmp_path / "m")
    (tmp_path / "m" / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(InputError, match=r"has no file t10k-labels-idx1-ubyte or t10k-labels-idx1-ubyte.gz"):
        open_source(DataSettings(source="mnist", path=str(tmp_path / "m")))
    with pytest.raises(InputError, match=r"there is nothing at data.path = 'gone'"):
        open_source(DataSettings(source="mnist", path="gone"))


def test_mnist_with_writers(tmp_path):
    (tmp_path / "mnist").mkdir()
    np.savez(
        tmp_path / "mnist" / "mnist.npz",
        x_train=np.zeros((4, 28, 28), np.uint8),
        y_train=np.arange(4, dtype=np.uint8),
        x_test=np.zeros((2, 28, 28), np.uint8),
        y_test=np.arange(2, dtype=np.uint8),
        writer_train=np.array([7, 3, 7, 3], np.int16),
        writer_test=np.array([9, 9], np.int16),
        hsf_train=np.array([0, 4, 0, 4], np.int8),
        hsf_test=np.array([4, 4], np.int8),
    )
    data = open_source(DataSettings(source="mnist", dir=str(tmp_path)))
    assert data.devices == ("writer-0003", "writer-0007", "writer-0009")
    assert data.device.tolist() == [1, 0, 1, 0, 2, 2]
    assert data.teams == ("hsf-0", "hsf-4")
    assert data.team.tolist() == [1, 0, 1]


@pytest.mark.parametrize(("variant", "first", "classes"), [("digits", 0, 10), ("letters", 1, 26), ("byclass", 0, 62)])
def test_emnist(tmp_path, variant, first, classes):
    mnist_files(tmp_path / "raw", f"emnist-{variant}-{{}}", True, ("train", "test"), first)
    (tmp_path / "emnist").mkdir()
    with zipfile.ZipFile(tmp_path / "emnist" / "gzip.zip", "w") as archive:
        for file in (tmp_path / "raw").iterdir():
            archive.write(file, f"gzip/{file.name}")
    data = open_source(DataSettings(source="emnist", variant=variant, dir=str(tmp_path)))
    # The files' rows are the pictures' columns.
    assert data.x[:6, 0, 0, 1].tolist() == [0, 1, 2, 3, 4, 5]
    assert data.y.tolist() == [0, 1, 2, 3, 4, 5, 0, 1, 2, 3]
    assert len(data.classes) == classes


def test_merged_letters():
    names = {name: len(classes) for name, classes in sources.images.EMNIST.items()}
    assert names == {"digits": 10, "mnist": 10, "letters": 26, "byclass": 62, "bymerge": 47, "balanced": 47}


def cifar10_files():
    files = {f"data_batch_{i}": {b"data": np.full((2, 3072), i, np.uint8), b"labels": [i, 9 - i]} for i in range(1, 6)}
    files["test_batch"] = {b"data": np.arange(3072, dtype=np.uint8)[None], b"labels": [0]}
    files["batches.meta"] = {b"label_names": [f"kind{i}".encode() for i in range(10)]}
    return {name: pickle.dumps(content, protocol=4) for name, content in files.items()}


def test_cifar10_folder_and_archive(tmp_path):
    folder = tmp_path / "a" / "cifar10" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    (tmp_path / "b" / "cifar10").mkdir(parents=True)
    with tarfile.open(tmp_path / "b" / "cifar10" / "cifar-10-python.tar.gz", "w:gz") as archive:
        for name, content in cifar10_files().items():
            (folder / name).write_bytes(content)
            info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    for root in ("a", "b"):
        data = open_source(DataSettings(source="cifar10", dir=str(tmp_path / root)))
        assert data.x.shape == (11, 3, 32, 32)
        assert data.x[:10, 0, 0, 0].tolist() == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
        # Channel by channel, row by row: the second channel begins after 1,024 bytes, 1024 mod 256 = 0.
        assert data.x[10, 1, 1, 1].item() == 33
        assert data.y.tolist() == [1, 8, 2, 7, 3, 6, 4, 5, 5, 4, 0]
        assert data.split.tolist() == [0] * 10 + [2]
        assert data.classes[9] == "kind9"


def test_cifar100(tmp_path):
    batch = {b"data": np.zeros((2, 3072), np.uint8), b"fine_labels": [99, 0], b"coarse_labels": [1, 1]}
    meta = {b"fine_label_names": [b"x"] * 100}
    for name, content in {"train": batch, "test": batch, "meta": meta}.items():
        (tmp_path / name).write_bytes(pickle.dumps(content, protocol=4))
    data = open_source(DataSettings(source="cifar100", path=str(tmp_path)))
    assert data.y.tolist() == [99, 0, 99, 0]
    assert len(data.classes) == 100


def test_a_batch_as_python_2_wrote_it():
    # {'data': array([[1, 2], [3, 4]], uint8), 'labels': [7]} with Python 2's opcodes: text is bytes ("U").
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR"
        b"(K\x01(K\x02K\x02tcnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89U\x04\x01\x02\x03\x04tb"
    )
    got = parse_batch(b"\x80\x02}(U\x04data" + array + b"U\x06labels](K\x07eu.", "batch")
    np.testing.assert_array_equal(got[b"data"], [[1, 2], [3, 4]])
    assert got[b"labels"] == [7]


class Attack:
    """A pickle that runs a command when it is opened by the usual means."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("wrap", [lambda a: a, lambda a: {b"data": a}, lambda a: {b"data": np.array([a], object)}])
def test_a_pickle_that_wants_to_run_code_is_refused(tmp_path, wrap):
    data = pickle.dumps(wrap(Attack(str(tmp_path / "owned"))), protocol=4)
    with pytest.raises(InputError, match=r"data_batch_1 is refused, for it could run code: it names \w*io\w*.open"):
        parse_batch(data, "data_batch_1")
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    "name", ["os system", "builtins eval", "numpy load", "numpy.core.multiarray scalar", "numpy ndarray.tofile"]
)
def test_other_names_are_refused(name):
    module, function = name.split()
    with pytest.raises(InputError, match="refused"):
        parse_batch(f"c{module}\n{function}\n(tR.".encode(), "batch")


def test_a_pickle_that_points_outside_is_refused():
    with pytest.raises(InputError, match="refused"):
        parse_batch(b"\x80\x02K\x01Q.", "batch")


@pytest.mark.parametrize("data", [b"", b"nonsense", pickle.dumps([1], protocol=2)])
def test_broken_batches(data):
    with pytest.raises(InputError, match="batch is no CIFAR batch"):
        parse_batch(data, "batch")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({b"data": np.zeros((2, 10), np.uint8)}, "data_batch_1 has no pictures of 3 x 32 x 32"),
        ({b"labels": [1]}, "data_batch_1 has not one label per picture"),
    ],
)
def test_batches_with_other_content(tmp_path, change, message):
    for name, content in cifar10_files().items():
        (tmp_path / name).write_bytes(content)
    good = {b"data": np.zeros((2, 3072), np.uint8), b"labels": [1, 2]}
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps({**good, **change}, protocol=4))
    with pytest.raises(InputError, match=message):
        open_source(DataSettings(source="cifar10", path=str(tmp_path)))


def har_folder(root, recordings):
    """The official files of these recordings (x [128 + 64 k, 9], label, subject), the last one in the test part."""
    for part, chosen in (("train", recordings[:-1]), ("test", recordings[-1:])):
        (root / part / "Inertial Signals").mkdir(parents=True)
        windows = [(x[a : a + 128], y, s) for x, y, s in chosen for a in range(0, len(x) - 127, 64)]
        for i, signal in enumerate(HAR_SIGNALS):
            np.savetxt(
                root / part / "Inertial Signals" / f"{signal}_{part}.txt", [w[:, i] for w, _, _ in windows], "%.9e"
            )
        np.savetxt(root / part / f"y_{part}.txt", [y for _, y, _ in windows], "%d")
        np.savetxt(root / part / f"subject_{part}.txt", [s for _, _, s in windows], "%d")


def test_official_uci_har_folder_is_joined_to_the_recordings(tmp_path):
    rng = np.random.default_rng(0)
    sizes, labels, subjects = (256, 128, 192, 128), (5, 5, 1, 2), (1, 1, 3, 2)
    xs = [rng.normal(size=(n, 9)).astype(np.float32) for n in sizes]
    har_folder(tmp_path / "UCI HAR Dataset", list(zip(xs, labels, subjects, strict=True)))
    (tmp_path / "uci_har").mkdir()
    np.savez(
        tmp_path / "uci_har" / "uci_har.npz",
        x=np.concatenate(xs),
        length=np.array(sizes),
        y=np.array(labels) - 1,
        subject=np.array(subjects),
        official_test=np.array([0, 0, 0, 1]),
    )
    official = open_source(DataSettings(source="uci_har", path=str(tmp_path)))
    continuous = open_source(DataSettings(source="uci_har", dir=str(tmp_path)))
    torch.testing.assert_close(official.x, continuous.x, rtol=0, atol=0)
    for name in ("y", "device", "split", "segment", "start", "stop"):
        assert getattr(official, name).tolist() == getattr(continuous, name).tolist()
    assert official.devices == ("subject-01", "subject-02", "subject-03")
    assert official.classes[4] == "STANDING"
    # 256 samples give 9 windows of 50 with step 25, 128 give 4, 192 give 6.
    assert len(official) == 9 + 4 + 6 + 4


def test_a_broken_uci_har_folder(tmp_path):
    har_folder(tmp_path, [(np.ones((128, 9)), 1, 1), (np.ones((128, 9)), 1, 2)])
    (tmp_path / "train" / "y_train.txt").write_text("1\n2\n")
    with pytest.raises(InputError, match=r"the files have \[1, 2\] rows, not one number"):
        open_source(DataSettings(source="uci_har", path=str(tmp_path)))
    (tmp_path / "train" / "y_train.txt").write_text("one\n")
    with pytest.raises(InputError, match=r"y_train.txt is not a table of numbers"):
        open_source(DataSettings(source="uci_har", path=str(tmp_path)))
    (tmp_path / "train" / "y_train.txt").unlink()
    with pytest.raises(InputError, match=r"^there is no file .*y_train.txt"):
        open_source(DataSettings(source="uci_har", path=str(tmp_path)))
