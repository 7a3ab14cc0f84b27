"""What differential privacy costs: (epsilon, delta) of noised releases, by the accountants of `dp-accounting`.

Adjacent are two runs in one of which a unit (a device, or one of its samples) leaves no trace: its clipped contribution
is zero ("zero-out"). What a release is worth depends on how the unit came to take part in it:

sampling   the unit                                      by                               accountants
all        takes part for certain                        the Gaussian mechanism           rdp, pld
poisson    takes part with probability q, independently  Poisson subsampling; the sum     rdp, pld
           of all others                                 has to be divided by a constant
fixed      is one of k drawn out of n                    Wang, Balle, Kasiviswanathan     rdp
                                                         2019, for replacing one unit

Replacing a unit, of which zeroing it is a special case, moves a sum by up to twice the bound of clipping: an amplified
"fixed" release counts with half its noise multiplier. Without amplification it is worth what "all" is, since that
holds for every draw; the smaller epsilon of the two is taken.
"""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from tierfed.errors import InputError

Sampling = Literal["all", "poisson", "fixed"]
Accountant = Literal["auto", "rdp", "pld"]
_STEP, _COARSE = 1e-4, 1e-3  # of the privacy loss in PLDs, of all / of Poisson draws: an upper bound either way


@dataclass(frozen=True, kw_only=True)
class Release:
    """One noised sum that somebody sees.

    :param noise_multiplier: standard deviation of the noise / bound of one unit's contribution
    :param rate: probability q that a unit takes part
    :param drawn: k of "fixed"; :param among: n of "fixed"
    :param slip: probability that the release is not what the accountants take it for, which is added to delta
    """

    noise_multiplier: float
    sampling: Sampling = "all"
    rate: float = 1.0
    drawn: int = 0
    among: int = 0
    slip: float = 0.0

    def __post_init__(self) -> None:
        if self.noise_multiplier < 0 or not 0 <= self.rate <= 1:
            raise InputError(
                f"a release with noise_multiplier = {self.noise_multiplier} and rate = {self.rate}: wanted a "
                "multiplier of at least 0 and a rate from 0 to 1"
            )
        if self.sampling == "fixed" and not 0 < self.drawn <= self.among:
            raise InputError(f"a release draws {self.drawn} units out of {self.among}: wanted 1 to all of them")


def tools() -> Any:
    """The module `dp_accounting`.

    :raises InputError: it is not installed
    """
    try:
        import dp_accounting  # noqa: PLC0415  an extra, and seconds of importing
    except ModuleNotFoundError as err:
        if err.name != "dp_accounting":
            raise
        raise InputError(
            "differential privacy counts with dp-accounting, which is not installed; pip install 'tierfed[privacy]'"
        ) from None
    logging.getLogger("absl").setLevel(logging.ERROR)  # it warns of every order of a divergence that it leaves out
    return dp_accounting


def epsilon(releases: Mapping[Release, int], delta: float, accountant: Accountant = "auto") -> float:
    """The epsilon of so many of each kind of releases, together, at a delta; inf: nothing is promised.

    :param accountant: "rdp", Renyi divergences; "pld", privacy loss distributions, tighter; "auto": "pld" where no
        release is of a fixed draw
    :raises InputError: a delta outside of (0, 1), or PLDs of fixed draws, which nobody knows
    """
    check_delta(delta)
    delta -= sum(r.slip * n for r, n in releases.items())
    if delta <= 0:
        return math.inf
    kept = tuple(sorted(((r, n) for r, n in releases.items() if n > 0 and r.rate > 0), key=repr))
    if any(r.noise_multiplier == 0 for r, _ in kept):
        return math.inf
    fixed = any(_amplified(r) for r, _ in kept)
    if accountant == "pld" and fixed:
        raise InputError(
            "privacy.accountant = 'pld' with a fixed number of participants: there is no privacy loss distribution of "
            "a draw without replacement; take 'rdp' or 'auto', or topology.sampling = 'poisson'"
        )
    if not kept:
        return 0.0
    if not fixed:
        return _epsilon(kept, delta, "rdp" if accountant == "rdp" else "pld")
    certain = tuple((Release(noise_multiplier=r.noise_multiplier), n) for r, n in kept if r.sampling != "poisson")
    poisson = tuple((r, n) for r, n in kept if r.sampling == "poisson")
    plain = math.inf if poisson else _epsilon(certain, delta, "rdp" if accountant == "rdp" else "pld")
    return min(_epsilon(kept, delta, "rdp"), plain)


def releases_within(release: Release, budget: float, delta: float, accountant: Accountant = "auto") -> int:
    """The most releases of one kind whose epsilon stays within a budget; at most 2**40."""
    most = 1 << 40
    if epsilon({release: 1}, delta, accountant) > budget:
        return 0
    low, high = 1, 2
    while high < most and epsilon({release: high}, delta, accountant) <= budget:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if epsilon({release: middle}, delta, accountant) <= budget else (low, middle)
    return low


def check_delta(delta: float) -> None:
    """:raises InputError: no probability strictly between 0 and 1"""
    if not 0 < delta < 1:
        raise InputError(f"delta = {delta}: wanted a probability between 0 and 1, such as 1e-5")


def _amplified(release: Release) -> bool:
    return release.sampling == "fixed" and release.drawn < release.among


@lru_cache(4096)
def _epsilon(releases: tuple[tuple[Release, int], ...], delta: float, accountant: str) -> float:
    dp = tools()
    relation = dp.NeighboringRelation
    fixed = any(_amplified(r) for r, _ in releases)
    if accountant == "rdp":
        ledger = dp.rdp.RdpAccountant(
            neighboring_relation=relation.REPLACE_ONE if fixed else relation.ADD_OR_REMOVE_ONE
        )
    else:
        step = _COARSE if any(r.sampling == "poisson" for r, _ in releases) else _STEP
        ledger = dp.pld.PLDAccountant(
            neighboring_relation=relation.ADD_OR_REMOVE_ONE, value_discretization_interval=step
        )
    for release, count in releases:
        ledger.compose(event(release, replace_one=fixed), count)
    return float(ledger.get_epsilon(delta))


def event(release: Release, replace_one: bool = False) -> Any:
    """A release as `dp_accounting` knows it.

    :param replace_one: the adjacency is that of replacing a unit, which moves a sum twice as far
    """
    dp = tools()
    gaussian = dp.GaussianDpEvent(release.noise_multiplier / (2 if replace_one else 1))
    if release.sampling == "poisson" and release.rate < 1:
        return dp.PoissonSampledDpEvent(release.rate, gaussian)
    if _amplified(release):
        return dp.SampledWithoutReplacementDpEvent(release.among, release.drawn, gaussian)
    return gaussian
