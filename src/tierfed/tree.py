"""Arithmetic on trees: nested dicts of tensors (parameters, messages, states). Always by key, never by position."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

Params = dict[str, Tensor]
Tree = dict[str, Any]  # nested dicts with tensors at the leaves

SEPARATOR = "\x1f"  # joins the keys of a path; no key of a module or a message holds the ASCII unit separator


def tmap(fn: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """fn on corresponding leaves of trees with the same keys, in any order.

    :raises KeyError: the trees do not have the same keys
    """
    if not isinstance(tree, dict):
        return fn(tree, *rest)
    for other in rest:
        if other.keys() != tree.keys():
            raise KeyError(f"trees differ in the keys {sorted(other.keys() ^ tree.keys())}")
    return {k: tmap(fn, v, *(r[k] for r in rest)) for k, v in tree.items()}


def leaves(tree: Any) -> Iterator[Tensor]:
    """All tensors, in the order of the keys as inserted."""
    if isinstance(tree, dict):
        for v in tree.values():
            yield from leaves(v)
    else:
        yield tree


def add(a: Any, b: Any, scale: float | Tensor = 1.0) -> Any:
    """a + scale b"""
    return tmap(lambda x, y: x + scale * y, a, b)


def sub(a: Any, b: Any) -> Any:
    """a - b"""
    return tmap(torch.sub, a, b)


def scale(a: Any, factor: float | Tensor) -> Any:
    """factor a"""
    return tmap(lambda x: factor * x, a)


def mix(a: Any, b: Any, t: float | Tensor) -> Any:
    """(1 - t) a + t b; exactly b at t = 1 and exactly a at t = 0."""

    return tmap(lambda x, y: torch.lerp(x, y, t.to(x.dtype) if isinstance(t, Tensor) else t), a, b)


def dot(a: Any, b: Any) -> Tensor:
    """<a, b> summed over all leaves: a scalar."""
    return torch.stack([t.sum() for t in leaves(tmap(torch.mul, a, b))]).sum()


def where(cond: Tensor, a: Any, b: Any) -> Any:
    """a where the scalar `cond` holds, else b."""
    return tmap(lambda x, y: torch.where(cond, x, y), a, b)


def zeros(a: Any) -> Any:
    """Zeros like a."""
    return tmap(torch.zeros_like, a)


def take(a: Mapping[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    """The entries of a under `keys`."""
    return {k: a[k] for k in keys}


def vector(a: Any) -> Tensor:
    """All leaves as one vector [d]."""
    parts = [t.reshape(-1) for t in leaves(a)]
    return torch.cat(parts) if parts else torch.zeros(0)


def stack(trees: list[Any]) -> Any:
    """H trees with the same keys as one tree with leaves [H, ...]."""
    return tmap(lambda *ts: torch.stack(ts), *trees)


def row(tree: Any, index: Any) -> Any:
    """tree[index] on the leading dimension of every leaf: the inverse of `stack` for an integer."""
    return tmap(lambda t: t[index], tree)


def flatten(tree: Tree, prefix: str = "") -> Params:
    """One flat dict from path to tensor; a codec's view of a tree. Empty dicts are kept by the mark path +
    SEPARATOR.
    """
    out: Params = {}
    for k, v in tree.items():
        if not isinstance(v, dict):
            out[prefix + k] = v
        elif v:
            out |= flatten(v, prefix + k + SEPARATOR)
        else:
            out[prefix + k + SEPARATOR] = torch.zeros(0)
    return out


def unflatten(flat: Mapping[str, Tensor]) -> Tree:
    """The inverse of `flatten`.

    :raises ValueError: one path leads through the tensor at another
    """
    out: Tree = {}
    for path, value in flat.items():
        *parents, last = path.split(SEPARATOR)
        node = out
        for part in parents:
            node = node.setdefault(part, {})
            if not isinstance(node, dict):
                raise ValueError(f"the path {path!r} leads through a tensor")
        if last in node:
            raise ValueError(f"the path {path!r} is a tensor and a branch")
        if last:
            node[last] = value
    return out


def nbytes(tree: Any) -> int:
    """Bytes of all tensors."""
    return sum(t.numel() * t.element_size() for t in leaves(tree))


def scalar(value: float, like: Params) -> Tensor:
    """A number [] in the precision and on the device of some parameters; of the default kind if there are none."""
    return next(iter(like.values()), torch.zeros(())).new_tensor(value)
