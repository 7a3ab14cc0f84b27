"""Secrets in shares (Shamir 1979): any `threshold` of them give the secret, fewer say nothing about it.

A secret of 256 bits is the value at 0 of a random polynomial of degree threshold - 1 over the integers modulo a prime
above 2^256; the share at the place j is its value at j.
"""

import secrets
from collections.abc import Callable, Iterable, Mapping

from tierfed.errors import InputError

PRIME = (1 << 256) + 297  # the smallest above 2^256
SECRET_BYTES = 32
SHARE_BYTES = 33


def split(
    secret: bytes, threshold: int, places: Iterable[int], below: Callable[[int], int] = secrets.randbelow
) -> dict[int, int]:
    """Share by place, for places 1, 2, ....

    :param below: a random number below another one
    :raises InputError: fewer places than the threshold, a place twice or below 1, a secret that is too long
    """
    all_ = list(places)
    if not 1 <= threshold <= len(set(all_)) == len(all_) or min(all_) < 1 or max(all_) >= PRIME:
        raise InputError(
            f"shares for the places {all_} with the threshold {threshold}: wanted that many or more, each "
            "above 0 and once"
        )
    if len(secret) != SECRET_BYTES:
        raise InputError(f"a secret of {len(secret)} bytes, wanted {SECRET_BYTES}")
    coefficients = [below(PRIME) for _ in range(threshold - 1)]
    first = int.from_bytes(secret, "big")
    out = {}
    for x in all_:
        value = 0
        for c in coefficients:
            value = (value + c) * x % PRIME
        out[x] = (value + first) % PRIME
    return out


def at_zero(places: Iterable[int]) -> dict[int, int]:
    """The Lagrange coefficients of shares at these places, for the value at 0."""
    all_ = list(places)
    out = {}
    for j in all_:
        above, below = 1, 1
        for m in all_:
            if m != j:
                above, below = above * m % PRIME, below * (m - j) % PRIME
        out[j] = above * pow(below, -1, PRIME) % PRIME
    return out


def joined(shares: Mapping[int, int], coefficients: Mapping[int, int] | None = None) -> bytes:
    """The secret of at least `threshold` shares. :param coefficients: `at_zero` of their places

    :raises InputError: these are no shares of one secret of 256 bits
    """
    weights = at_zero(shares) if coefficients is None else coefficients
    value = sum(weights[j] * s for j, s in shares.items()) % PRIME
    if value >> 256:
        raise InputError("the shares are not of one secret: somebody has changed one")
    return value.to_bytes(SECRET_BYTES, "big")
