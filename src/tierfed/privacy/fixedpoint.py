"""Numbers of a model as integers modulo 2^bits, so that a sum of masked terms is exact.

A child with the weight w_i (a whole number) sends q_i = round(2^f w_i x_i) for every number x_i of its reply, with
|x_i| <= R. The sum over the children is exact as long as it does not wrap around:

    |sum_i q_i| <= sum_i (2^f w_i R + 1) <= 2^f W R + n < 2^(bits - 1)              W >= sum_i w_i

f is the largest whole number for which that holds, whatever the children send; the mean sum_i q_i / (2^f W) is then
within n / (2^(f + 1) W) of the weighted mean of the x_i.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tierfed.errors import InputError

Words = npt.NDArray[Any]  # of uint32 or uint64
Floats = npt.NDArray[np.float64]
KINDS: "dict[int, np.dtype[Any]]" = {32: np.dtype("<u4"), 64: np.dtype("<u8")}


@dataclass(frozen=True, kw_only=True)
class Fixed:
    """How numbers become integers, agreed on by all children of a node.

    :param bits: 32 or 64
    :param fraction: f; may be negative
    :param bound: R
    """

    bits: int
    fraction: int
    bound: float

    @property
    def kind(self) -> "np.dtype[Any]":
        """Of the words that travel, little-endian."""
        return KINDS[self.bits]

    def error(self, children: int, weight: float) -> float:
        """How far a mean can be from the exact one, for every number of it."""
        return children / (math.ldexp(1.0, self.fraction + 1) * weight)


def agreed(bits: int, bound: float, children: int, weight: int) -> Fixed:
    """The finest grid on which no sum wraps around.

    :param bound: R; :param children: n, the most there can be; :param weight: W, the most that they weigh together
    :raises InputError: too many or too heavy children for so few bits
    """
    if bits not in KINDS:
        raise InputError(f"secure sums have words of {' or '.join(map(str, KINDS))} bits, not {bits}")
    room = (1 << (bits - 1)) - 1 - children
    if room <= 0 or bound <= 0 or weight <= 0:
        raise InputError(
            f"a secure sum of {children} children with a weight of {weight} and numbers up to {bound} does not fit "
            f"into {bits} bits; take more bits"
        )
    fraction = math.floor(math.log2(room) - math.log2(bound) - math.log2(weight))
    while math.ldexp(bound * weight, fraction) > room:  # logarithms are rounded
        fraction -= 1
    return Fixed(bits=bits, fraction=fraction, bound=bound)


def to_words(values: Floats, weight: int, fixed: Fixed) -> Words:
    """q [n] of numbers [n], modulo 2^bits.

    :raises InputError: a number beyond the bound, or none at all: a sum could wrap around
    """
    largest = float(np.abs(values).max(initial=0.0))
    if not largest <= fixed.bound:
        raise InputError(
            f"a reply has the number {largest:.4g}, and secure sums were agreed on for numbers up to {fixed.bound:g}; "
            "set a larger bound of secure sums (secure_range), or clip the updates"
        )
    whole = np.rint(np.ldexp(values.astype(np.longdouble), fixed.fraction) * weight)
    return np.asarray(whole.astype(np.int64).astype(np.uint64), fixed.kind)


def from_words(total: Words, weight: float, fixed: Fixed) -> Floats:
    """The weighted mean [n] from the sum of q [n]; `weight`: of those in the sum."""
    signed = total.astype(np.dtype(f"<i{fixed.bits // 8}")).astype(np.longdouble)
    return np.asarray(np.ldexp(signed, -fixed.fraction) / weight, np.float64)


def summed(parts: list[Words], fixed: Fixed) -> Words:
    """The sum modulo 2^bits."""
    total = np.zeros(len(parts[0]), fixed.kind)
    for part in parts:
        total += part  # unsigned words wrap around
    return total
