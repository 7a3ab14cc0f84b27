"""Compression of changes, with what did not travel kept by the child and added to its next change (error feedback).

A change is first thinned out: the largest entries (Aji, Heafield 2017), entries that both ends draw alike, matrices as
products of narrow ones (PowerSGD; Vogels, Karimireddy, Jaggi 2019), or whole layers while others are retained
(HeurpFedLA). The numbers that are left may be rounded at random to 4 or 8 bits (QSGD; Alistarh et al. 2017). Error
feedback: Seide et al. 2014; Karimireddy et al. 2019, Algorithm 2.

What travels is a tree of the very tensors whose bytes are counted; `like` holds the shapes, in tensors without entries.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, prod

import numpy as np
import torch
from torch import Tensor

from tierfed.errors import InputError
from tierfed.links.case import Case
from tierfed.links.link import At
from tierfed.links.settings import CompressSettings
from tierfed.rng import Purpose, generator
from tierfed.tree import SEPARATOR, Params, Tree, flatten, unflatten

Shapes = Mapping[str, tuple[int, ...]]
_LEVELS = {4: 7, 8: 127}
_PLACES, _ROUNDING, _SKETCH = 0, 1, 2  # what numbers are drawn for


@dataclass(frozen=True, kw_only=True)
class Compress:
    """The step of `CompressSettings`; a child keeps the residual {path: [...]} of its change."""

    settings: CompressSettings
    name = "compress"
    joint = False

    @property
    def shows(self) -> str:
        s = self.settings
        what = {
            "topk": f"largest {s.ratio:.3g} of it",
            "randomk": f"{s.ratio:.3g} of it, drawn",
            "lowrank": f"rank {s.rank}",
            "layers": f"{s.count} of its layers",
            "dense": "",
        }[s.kind]
        return ", ".join(filter(None, (what, f"{s.bits} bits" if s.bits else "")))

    def refuses(self, case: Case) -> str:
        if case.inside:
            return "both ends of these links are in one machine, where no byte travels; compress another link"
        if self.settings.kind == "dense" and not self.settings.bits:
            return 'compress.kind = "dense" without compress.bits sends changes as they are; set bits to 8 or 4'
        return ""

    def send(self, change: Tree, memory: Tree, at: At) -> tuple[Tree, Tree]:
        flat, old = flatten(change), flatten(memory.get("residual", {}))
        if not self.settings.feedback:
            return self.packed(flat, at), {}
        total = {p: t + old[p] if p in old else t for p, t in flat.items()}
        wire = self.packed(total, at)
        there = flatten(self.receive(wire, at))
        return wire, {"residual": unflatten({**old, **{p: t - there[p] for p, t in total.items()}})}

    def packed(self, flat: Params, at: At) -> Tree:
        """What travels in the place of a change {path: [...]}."""
        if not flat:
            return {}
        groups, extra = _KINDS[self.settings.kind].pick(flat, self.settings, at)
        like = {p: t.new_empty(0, *t.shape) for p, t in flat.items()}
        return {"like": unflatten(like), **extra, **coded(groups, self.settings.bits, at)}

    def receive(self, wire: Tree, at: At) -> Tree:
        if not wire:
            return {}
        try:
            like = flatten(wire["like"])
            shapes = {p: tuple(t.shape[1:]) for p, t in like.items()}
            if at.room and sum(map(prod, shapes.values())) > at.room:
                raise InputError(f"a compressed change has more than {at.room} entries")
            kind, s = _KINDS[self.settings.kind], self.settings
            groups = decoded(wire, kind.lengths(shapes, wire, s), s.bits, next(iter(like.values())))
            return unflatten(kind.place(groups, shapes, wire, s, at))
        except (KeyError, AttributeError, TypeError, IndexError, RuntimeError, ValueError) as err:
            if isinstance(err, InputError):
                raise
            raise InputError(f"the change is not compressed as [links] says ({type(err).__name__}: {err})") from None

    def size(self, shapes: Shapes, element_bytes: int, sent: int | None = None) -> int:
        """Bytes of a compressed change.

        :param shapes: of its entries, by path; :param element_bytes: of a number of it
        :param sent: numbers in the layers that travel, layers
        """
        s = self.settings
        total = sum(prod(shape) for shape in shapes.values())
        count, groups, extra = total, len(shapes), 0
        if s.kind in ("topk", "randomk"):
            count, groups = kept(total, s.ratio), 1
            extra = 4 * count if s.kind == "topk" else 0
        elif s.kind == "lowrank":
            ranks = [rank_of(shape, s.rank) for shape in shapes.values()]
            count = sum(r * sum(sides(v)) if r else prod(v) for r, v in zip(ranks, shapes.values(), strict=True))
            groups += sum(map(bool, ranks))
        elif s.kind == "layers":
            layers = layers_of(shapes)
            count = total if sent is None else sent
            extra, groups = -(-len(layers) // 8), min(s.count, len(layers))
        return extra + (-(-count * s.bits // 8) + groups * element_bytes if s.bits else count * element_bytes)


def kept(total: int, ratio: float) -> int:
    """How many of `total` entries travel."""
    return min(total, ceil(ratio * total))


def coded(groups: list[Tensor], bits: int, at: At) -> Tree:
    """Vectors as one; with bits, as whole multiples of a step of each vector, rounded up or down at random so that the
    mean is right. Two numbers of 4 bits make a byte.
    """
    whole = torch.cat(groups)
    if not bits:
        return {"numbers": whole}
    top = _LEVELS[bits]
    step = torch.stack([g.abs().max() / top if g.numel() else g.new_zeros(()) for g in groups])
    each = torch.repeat_interleave(step, torch.tensor([g.numel() for g in groups], device=step.device))
    drawn = whole.new_tensor(generator(*at.key(Purpose.COMPRESS, _ROUNDING)).random(len(whole)))
    q = torch.floor(torch.where(each > 0, whole / torch.where(each > 0, each, 1.0), 0.0) + drawn).clamp(-top, top)
    return {"numbers": _nibbles(q) if bits == 4 else q.to(torch.int8), "step": step}


def decoded(wire: Tree, lengths: list[int], bits: int, like: Tensor) -> list[Tensor]:
    """The inverse, up to the rounding.

    :param like: of the kind of the numbers
    :raises InputError: as many numbers are not there
    """
    numbers, count = wire["numbers"], sum(lengths)
    if not bits:
        _expect("numbers", numbers, like.dtype, count)
        return list(numbers.split(lengths))
    _expect("step", wire["step"], like.dtype, len(lengths))
    _expect("numbers", numbers, torch.uint8 if bits == 4 else torch.int8, -(-count // 2) if bits == 4 else count)
    q = _from_nibbles(numbers, count) if bits == 4 else numbers
    return [s * part.to(s.dtype) for s, part in zip(wire["step"], q.split(lengths), strict=True)]


def _expect(what: str, t: Tensor, dtype: torch.dtype, count: int) -> None:
    if t.dtype != dtype or tuple(t.shape) != (count,):
        raise InputError(f"{what} of a compressed change are {t.dtype} {list(t.shape)}, wanted {dtype} [{count}]")


def _nibbles(q: Tensor) -> Tensor:
    codes = (q + 8).to(torch.uint8)
    if len(codes) % 2:
        codes = torch.cat([codes, codes.new_zeros(1)])
    return codes[::2] + 16 * codes[1::2]


def _from_nibbles(packed: Tensor, count: int) -> Tensor:
    return torch.stack([packed % 16, packed // 16], 1).flatten()[:count].to(torch.int8) - 8


class _Dense:
    """All of a change."""

    def pick(self, flat: Params, s: CompressSettings, at: At) -> tuple[list[Tensor], Tree]:
        return [t.flatten() for t in flat.values()], {}

    def lengths(self, shapes: Shapes, wire: Tree, s: CompressSettings) -> list[int]:
        return _sizes(shapes)

    def place(self, groups: list[Tensor], shapes: Shapes, wire: Tree, s: CompressSettings, at: At) -> Params:
        return {p: g.reshape(shape) for (p, shape), g in zip(shapes.items(), groups, strict=True)}


def _sizes(shapes: Shapes) -> list[int]:
    return [prod(shape) for shape in shapes.values()]


class _Entries(_Dense):
    """Some entries of the change as one vector [d]."""

    drawn = False

    def pick(self, flat: Params, s: CompressSettings, at: At) -> tuple[list[Tensor], Tree]:
        whole = torch.cat([t.flatten() for t in flat.values()])
        k = kept(len(whole), s.ratio)
        if self.drawn:
            index, scale = _drawn(len(whole), k, at, whole), 1.0 if s.feedback else len(whole) / k
            return [scale * whole[index]], {}
        index = torch.topk(whole.abs(), k, sorted=False).indices.sort().values
        return [whole[index]], {"index": index.to(torch.int32)}

    def lengths(self, shapes: Shapes, wire: Tree, s: CompressSettings) -> list[int]:
        return [kept(sum(_sizes(shapes)), s.ratio)]

    def place(self, groups: list[Tensor], shapes: Shapes, wire: Tree, s: CompressSettings, at: At) -> Params:
        sizes = _sizes(shapes)
        whole = groups[0].new_zeros(sum(sizes))
        if self.drawn:
            index = _drawn(len(whole), len(groups[0]), at, whole)
        else:
            index = wire["index"].long()
            _expect("index", wire["index"], torch.int32, len(groups[0]))
            if len(index) and (int(index[0]) < 0 or int(index[-1]) >= len(whole) or bool((index.diff() <= 0).any())):
                raise InputError(f"places in a compressed change are not in order below {len(whole)}")
        whole[index] = groups[0]
        return super().place(list(whole.split(sizes)), shapes, wire, s, at)


class _Drawn(_Entries):
    drawn = True


def _drawn(total: int, k: int, at: At, like: Tensor) -> Tensor:
    """k of `total` places, ascending; the same on both ends."""
    rng = generator(*at.key(Purpose.COMPRESS, _PLACES))
    return torch.as_tensor(np.sort(rng.choice(total, k, replace=False, shuffle=False)), device=like.device)


class _LowRank(_Dense):
    """Matrices [m, n] as P Q^T with P [m, r] orthonormal and Q [n, r]: one step of a subspace iteration from a drawn
    Q. What would not become smaller stays as it is.
    """

    def pick(self, flat: Params, s: CompressSettings, at: At) -> tuple[list[Tensor], Tree]:
        groups = []
        for i, t in enumerate(flat.values()):
            r = rank_of(tuple(t.shape), s.rank)
            if not r:
                groups.append(t.flatten())
                continue
            matrix = t.reshape(sides(tuple(t.shape)))
            rng = generator(*at.key(Purpose.COMPRESS, _SKETCH, i))
            p = torch.linalg.qr(matrix @ t.new_tensor(rng.standard_normal((matrix.shape[1], r)))).Q
            groups += [p.flatten(), (matrix.T @ p).flatten()]
        return groups, {}

    def lengths(self, shapes: Shapes, wire: Tree, s: CompressSettings) -> list[int]:
        out = []
        for shape in shapes.values():
            r = rank_of(shape, s.rank)
            out += [side * r for side in sides(shape)] if r else [prod(shape)]
        return out

    def place(self, groups: list[Tensor], shapes: Shapes, wire: Tree, s: CompressSettings, at: At) -> Params:
        out, left = {}, iter(groups)
        for path, shape in shapes.items():
            r, one = rank_of(shape, s.rank), next(left)
            out[path] = (one.view(-1, r) @ next(left).view(-1, r).T if r else one).reshape(shape)
        return out


def sides(shape: tuple[int, ...]) -> tuple[int, int]:
    """A tensor as a matrix: its first dimension, and all others together."""
    return shape[0], prod(shape[1:])


def rank_of(shape: tuple[int, ...], rank: int) -> int:
    """The rank r that a tensor is sent with; 0: r (m + n) numbers are no fewer than m n."""
    if len(shape) < 2:
        return 0
    m, n = sides(shape)
    r = min(rank, m, n)
    return r if r * (m + n) < m * n else 0


class _Layers(_Dense):
    """The layers that have changed most, by the root mean square of their entries; a bit for each says which."""

    def pick(self, flat: Params, s: CompressSettings, at: At) -> tuple[list[Tensor], Tree]:
        layers = layers_of({p: tuple(t.shape) for p, t in flat.items()})
        whole = [torch.cat([flat[p].flatten() for p in paths]) for paths in layers.values()]
        size = torch.stack([w.square().mean() if w.numel() else w.new_zeros(()) for w in whole])
        chosen = size.argsort(descending=True, stable=True)[: s.count].sort().values.tolist()
        mask = np.zeros(len(whole), bool)
        mask[chosen] = True
        return [whole[i] for i in chosen], {"which": torch.from_numpy(np.packbits(mask)).to(size.device)}

    def lengths(self, shapes: Shapes, wire: Tree, s: CompressSettings) -> list[int]:
        layers = list(layers_of(shapes).values())
        return [sum(prod(shapes[p]) for p in layers[i]) for i in self._chosen(wire, len(layers), s)]

    def place(self, groups: list[Tensor], shapes: Shapes, wire: Tree, s: CompressSettings, at: At) -> Params:
        layers = list(layers_of(shapes).values())
        out = {p: groups[0].new_zeros(shape) for p, shape in shapes.items()}
        for i, group in zip(self._chosen(wire, len(layers), s), groups, strict=True):
            parts = group.split([prod(shapes[p]) for p in layers[i]])
            out |= {p: part.reshape(shapes[p]) for p, part in zip(layers[i], parts, strict=True)}
        return out

    def _chosen(self, wire: Tree, count: int, s: CompressSettings) -> list[int]:
        _expect("which", wire["which"], torch.uint8, -(-count // 8))
        chosen = np.flatnonzero(np.unpackbits(wire["which"].cpu().numpy())[:count]).tolist()
        if len(chosen) != min(s.count, count):
            raise InputError(f"{len(chosen)} layers of a compressed change have come, wanted {min(s.count, count)}")
        return chosen


def layers_of(shapes: Shapes) -> dict[str, list[str]]:
    """Entries by layer, the module that they belong to: "0.weight" and "0.bias"."""
    out: dict[str, list[str]] = {}
    for path in shapes:
        branch, _, name = path.rpartition(SEPARATOR)
        out.setdefault(f"{branch}{SEPARATOR}{name.rpartition('.')[0]}", []).append(path)
    return out


_KINDS: dict[str, _Dense] = {
    "dense": _Dense(),
    "topk": _Entries(),
    "randomk": _Drawn(),
    "lowrank": _LowRank(),
    "layers": _Layers(),
}
