"""Clipping: what bounds how much one device can move a sum."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tierfed.errors import InputError
from tierfed.settings import Positive, Share
from tierfed.tree import Tree, flatten, leaves, tmap

ROUNDING = 1.0 - 2.0**-20  # a norm that was computed in float32 may be this much too small


def norm(tree: Any) -> Tensor:
    """The L2 norm [] over all leaves together, in float64."""
    squares = [t.double().square().sum() for t in leaves(tree)]
    return torch.stack(squares).sum().sqrt() if squares else torch.zeros((), dtype=torch.float64)


def clip(tree: Any, bound: float | Tensor) -> Any:
    """The tree scaled down to an L2 norm of at most `bound`; what is shorter is not changed.

    Not a number nowhere: whatever holds an infinity or a NaN becomes zero, which every bound allows.
    """
    length = norm(tree)
    factor = torch.where(length.isfinite(), (bound / length.clamp(min=1e-300)).clamp(max=1.0), 0.0)
    factor = torch.where(factor < 1, factor * ROUNDING, factor)
    return tmap(lambda t: torch.where(length.isfinite(), t * factor.to(t.dtype), torch.zeros_like(t)), tree)


def clip_by_layer(tree: Tree, bounds: Mapping[str, float]) -> Tree:
    """Every leaf clipped to a bound of its own, by path as in `tierfed.tree.flatten`; the whole has at most the norm
    `math.hypot(*bounds.values())`.

    :raises InputError: a leaf without a bound
    """
    paths = iter(flatten(tree))

    def one(leaf: Tensor) -> Tensor:
        path = next(paths)
        if path not in bounds:
            raise InputError(f"no bound for {path!r}; there are bounds for {', '.join(map(repr, bounds)) or 'nothing'}")
        return clip({"": leaf}, bounds[path])[""]  # type: ignore[no-any-return]

    return tmap(one, tree)  # type: ignore[no-any-return]


def even_bounds(tree: Tree, bound: float) -> dict[str, float]:
    """A bound for every leaf, so that all together have `bound`: each the same (McMahan et al. 2018, section 3.2)."""
    flat = flatten(tree)
    return dict.fromkeys(flat, bound / math.sqrt(max(1, len(flat))))


@dataclass(frozen=True, kw_only=True)
class Adaptive:
    """The bound follows a quantile of the norms (Andrew, Thakkar, McMahan, Ramaswamy 2021, arXiv 1905.03871).

    C <- C exp(-rate (b - quantile)), b: the noised share of the devices whose update was not longer than C.
    Each device sends b_i - 1/2 along with its update, so the sum has the sensitivity 1/2; to keep the noise
    multiplier z of both together, the updates are noised with z_delta = (z^-2 - (2 sigma_b)^-2)^(-1/2) (Theorem 1).

    :param noise: sigma_b, the standard deviation of the noise on the sum of the b_i - 1/2
    """

    quantile: Share = 0.5
    rate: Positive = 0.2
    noise: Positive = 10.0

    def multiplier(self, z: float) -> float:
        """z_delta, the noise multiplier of the updates.

        :raises InputError: sigma_b is too small to leave anything for the updates
        """
        rest = z**-2 - (2 * self.noise) ** -2
        if rest <= 0:
            raise InputError(
                f"adaptive clipping with the noise {self.noise} on its counts spends more than the noise multiplier "
                f"{z} allows; take privacy.adaptive.noise above {z / 2:g}"
            )
        return 1.0 / math.sqrt(rest)

    def bound(self, before: float, share: float) -> float:
        """The next C, after a noised share b."""
        return before * math.exp(-self.rate * (min(1.0, max(0.0, share)) - self.quantile))
