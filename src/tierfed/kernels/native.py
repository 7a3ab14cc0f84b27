"""The kernel "native": all steps of a device in one call of C, which is compiled for this processor at its first use.

`native.c` has the mathematics; here is what it is told of models, data and memory. What was compiled stays in the
user's cache folder, one file for each source, compiler and processor. Every device is trained by itself, so that its
bits depend on nothing else.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from tierfed.kernels.call import Work
from tierfed.kernels.chain import Chain, Layer
from tierfed.kernels.fused import fits_labels
from tierfed.tree import Params

SOURCES = [Path(__file__).with_name(f"native{part}") for part in (".c", "_layers.h", "_memory.h", "_products.h")]
COMPILERS = ("cc", "gcc", "clang")
_REALS = {torch.float32: ("float", "int32_t"), torch.float64: ("double", "int64_t")}  # and integers of their size
_FLAGS = ("-O3", "-std=gnu11", "-fPIC", "-shared", "-fno-math-errno", "-fno-trapping-math")
_KINDS = {"dense": 0, "conv": 1, "norm": 2, "relu": 3, "pool": 4}
_LOSSES = {"cross_entropy": 0, "mse": 1}
_MOST_LAYERS = 64
_COMPILE_SECONDS = 120


class _Push(ctypes.Structure):
    _fields_ = [
        ("p", ctypes.c_void_p),
        ("step", ctypes.c_int64),
        ("by", ctypes.c_void_p),
        ("by_step", ctypes.c_int64),
    ]


class _Entry(ctypes.Structure):
    _fields_ = [
        ("p", ctypes.c_void_p),
        ("step", ctypes.c_int64),
        ("to", ctypes.c_void_p),
        ("size", ctypes.c_int64),
        ("pushes", ctypes.c_int64),
        ("push", _Push * 2),
        ("beta", ctypes.c_void_p),
        ("beta_step", ctypes.c_int64),
    ]


_SIZES = ("kind", "in_c", "in_h", "in_w", "out_c", "out_h", "out_w")
_WINDOW = ("kernel_h", "kernel_w", "pad_h", "pad_w", "stride_h", "stride_w", "learns")


class _Layer(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in (*_SIZES, *_WINDOW)),
        *((name, ctypes.c_double) for name in ("momentum", "eps")),
        *((name, _Entry) for name in ("weight", "bias", "mean", "var")),
    ]


class _Call(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("layers", "steps", "batch", "loss")),
        *((name, ctypes.c_void_p) for name in ("x", "labels", "values", "rows", "live", "scale")),
        ("scale_step", ctypes.c_int64),
    ]


class Room:
    """Memory that calls work in, one after the other; it is not pickled."""

    def __init__(self) -> None:
        self._bytes = torch.empty(0, dtype=torch.uint8)

    def of(self, threads: int, size: int) -> Tensor:
        """[threads, size]"""
        if len(self._bytes) < threads * size:
            self._bytes = torch.empty(threads * size, dtype=torch.uint8)
        return self._bytes[: threads * size].view(threads, size)


def missing(dtype: torch.dtype) -> str:
    """Why nothing can be compiled for this processor; empty: it was."""
    if dtype not in _REALS:
        return f"knows float32 and float64, and the model has {str(dtype).removeprefix('torch.')}"
    built = _library(*_REALS[dtype])
    return built if isinstance(built, str) else ""


def shapes(chain: Chain, sample: tuple[int, ...]) -> list[tuple[int, int, int]] | None:
    """(channels, height, width) in front of every layer, and after the last; none: they do not fit a sample's shape."""
    if len(chain.layers) > _MOST_LAYERS or (chain.pictures and len(sample) != 3):
        return None
    c, h, w = sample if chain.pictures else (torch.Size(sample).numel(), 1, 1)
    out = [(c, h, w)]
    for layer in chain.layers:
        if layer.kind == "dense":
            fits = layer.inputs == c * h * w
            c, h, w = layer.outputs, 1, 1
        elif layer.kind == "conv":
            fits = layer.inputs == c
            c = layer.outputs
            h, w = (n + 2 * p - k + 1 for n, p, k in zip((h, w), layer.padding, layer.window, strict=True))
        elif layer.kind == "pool":
            fits = True
            h, w = ((n - k) // s + 1 for n, k, s in zip((h, w), layer.window, layer.stride, strict=True))
        else:
            fits = layer.kind == "relu" or (layer.inputs == c and (layer.pictures or h * w == 1))
        if not fits or min(h, w) < 1:
            return None
        out.append((c, h, w))
    return out


def reordered(chain: Chain) -> Chain:
    """The same function, gradients too: the largest value is found before ReLU, which has less to do then."""
    layers = list(chain.layers)
    for i, (a, b) in enumerate(pairwise(chain.layers)):
        if (a.kind, b.kind) == ("relu", "pool"):
            layers[i : i + 2] = b, a
    return replace(chain, layers=tuple(layers))


def native(chain: Chain, room: Room, threads: int, work: Work) -> Params | None:
    """Local SGD of all devices of a call, some of them at the same time; none where a label is no class, or samples are
    of another shape.
    """
    dtype = work.params[chain.layers[-1].key("weight")].dtype
    library, sizes = _library(*_REALS[dtype]), shapes(chain, tuple(work.x.shape[1:]))
    if sizes is None or isinstance(library, str) or not fits_labels(chain, work):
        return None
    weights = {k: work.empty(k) for k in work.call.out}
    described = _Description(chain, work, weights)
    layers = (_Layer * len(chain.layers))(*described.layers(sizes))
    call = described.call(dtype)
    size = library.tierfed_room(ctypes.byref(call), layers)
    parts = torch.arange(work.c).tensor_split(min(threads, work.c))

    def train(part: Tensor, own: Tensor) -> None:
        begin, end = int(part[0]), int(part[-1]) + 1
        library.tierfed_train(ctypes.byref(call), layers, ctypes.c_void_p(own.data_ptr()), begin, end)

    rooms = room.of(len(parts), size)
    if len(parts) == 1:
        train(parts[0], rooms[0])
    else:
        with ThreadPoolExecutor(len(parts)) as pool:
            list(pool.map(train, parts, rooms))
    return weights


class _Description:
    """A call in C's words. It holds the tensors that C has the addresses of."""

    def __init__(self, chain: Chain, work: Work, weights: Params) -> None:
        self.chain, self.work, self.weights, self.held = chain, work, weights, list[Tensor]()
        decay = work.call.task.weight_decay
        self.rate, lam = (_doubles(v) for v in (work.lr, work.lam))
        self.beta = 1.0 - self.rate * decay
        self.pulled = 1.0 - self.rate * (decay + lam)
        self.pull, self.drift = self.rate * lam, -self.rate

    def _at(self, t: Tensor) -> int:
        self.held.append(t.contiguous())
        return self.held[-1].data_ptr()

    def call(self, dtype: torch.dtype) -> _Call:
        work, last = self.work, self.chain.layers[-1]
        _, steps, batch = work.rows.shape
        scale = self.rate * ((2.0 / last.outputs if self.chain.loss == "mse" else 1.0) / batch)
        values = self.chain.loss == "mse"
        return _Call(
            layers=len(self.chain.layers),
            steps=steps,
            batch=batch,
            loss=_LOSSES[self.chain.loss],
            x=self._at(work.x),
            labels=None if values else self._at(work.y),
            values=self._at(work.y.to(dtype)) if values else None,
            rows=self._at(work.rows),
            live=self._at(work.live.to(torch.uint8)),
            scale=self._at(scale),
            scale_step=int(len(scale) > 1),
        )

    def layers(self, sizes: list[tuple[int, int, int]]) -> Iterator[_Layer]:
        moved = set(self.work.call.moved)
        for layer, before, after in zip(self.chain.layers, sizes[:-1], sizes[1:], strict=True):
            numbers = (_KINDS[layer.kind], *before, *after, *layer.window, *layer.padding, *layer.stride)
            learns = layer.kind == "norm" and (not layer.tracked or layer.key("running_mean") in moved)
            entries = (self._entry(layer, name) for name in ("weight", "bias", "running_mean", "running_var"))
            yield _Layer(*numbers, int(learns), layer.momentum, layer.eps, *entries)

    def _entry(self, layer: Layer, name: str) -> _Entry:
        key = layer.key(name)
        if key not in layer.entries:
            return _Entry()
        work, t = self.work, self.work.params[key]
        out = _Entry(p=self._at(t), step=_step(t))
        if key in self.weights:
            out.to, out.size = self.weights[key].data_ptr(), self.weights[key][0].numel()
        if key in work.call.keys:
            beta = self.pulled if key in work.anchor else self.beta
            out.beta, out.beta_step = self._at(beta), int(len(beta) > 1)
            pushes = [
                self._push(v[key], by) for v, by in ((work.anchor, self.pull), (work.drift, self.drift)) if key in v
            ]
            out.pushes, out.push = len(pushes), (_Push * 2)(*pushes)
        return out

    def _push(self, t: Tensor, by: Tensor) -> _Push:
        return _Push(p=self._at(t), step=_step(t), by=self._at(by), by_step=int(len(by) > 1))


def _doubles(value: float | Tensor) -> Tensor:
    """A number of each device [c], or of all [1]."""
    return torch.as_tensor(value, dtype=torch.float64).reshape(-1)


def _step(t: Tensor) -> int:
    """From one device's entry to the next one's."""
    return t[0].numel() if t.shape[0] > 1 else 0


@cache
def _library(real: str, whole: str) -> ctypes.CDLL | str:
    """The compiled source, or why there is none."""
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        return f"needs a C compiler (none of {', '.join(COMPILERS)} is on the path)"
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tierfed" / "native"
    machine = "-mcpu=native" if platform.machine() in ("arm64", "aarch64") else "-march=native"
    command = [compiler, *_FLAGS, machine, f"-DREAL={real}", f"-DWHOLE={whole}"]
    facts = ([s.read_bytes() for s in SOURCES], command, platform.platform(), _processor())
    path = folder / f"{hashlib.sha256(repr(facts).encode()).hexdigest()[:32]}.so"
    try:
        if not path.exists():
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _compile(command, path)
        return _opened(path)
    except subprocess.CalledProcessError as err:
        return f"the C compiler {compiler} failed: {' '.join(err.stderr.decode(errors='replace').split())[:200]}"
    except (OSError, subprocess.TimeoutExpired) as err:
        return f"could not be compiled in {folder}: {err}"


def _compile(command: list[str], path: Path) -> None:
    """Several processes may do so at once: the file appears whole."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        whole = [*command, str(SOURCES[0]), "-o", str(made), "-lm"]
        subprocess.run(whole, check=True, capture_output=True, timeout=_COMPILE_SECONDS)
        os.replace(made, path)


def _opened(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    library.tierfed_room.restype = ctypes.c_int64
    library.tierfed_room.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    library.tierfed_train.restype = None
    library.tierfed_train.argtypes = [*[ctypes.c_void_p] * 3, *[ctypes.c_int64] * 2]
    return library


def _processor() -> str:
    """What code that was compiled for this processor may use: a home folder may be shared by several machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.lower().startswith(("flags", "features"))), platform.processor())
