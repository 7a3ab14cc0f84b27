"""Epsilons are those of dp-accounting called directly."""

import math

import dp_accounting as dp
import pytest

from tierfed.errors import InputError
from tierfed.privacy.accounting import Release, epsilon, releases_within

ADD = dp.NeighboringRelation.ADD_OR_REMOVE_ONE
REPLACE = dp.NeighboringRelation.REPLACE_ONE


def test_poisson_is_the_subsampled_gaussian_of_either_accountant() -> None:
    event = dp.SelfComposedDpEvent(dp.PoissonSampledDpEvent(0.1, dp.GaussianDpEvent(1.1)), 50)
    release = Release(noise_multiplier=1.1, sampling="poisson", rate=0.1)
    rdp = dp.rdp.RdpAccountant(neighboring_relation=ADD).compose(event).get_epsilon(1e-5)
    pld = dp.pld.PLDAccountant(ADD, 1e-3).compose(event).get_epsilon(1e-5)
    assert epsilon({release: 50}, 1e-5, "rdp") == pytest.approx(rdp, rel=1e-9)
    assert epsilon({release: 50}, 1e-5, "pld") == pytest.approx(pld, rel=1e-9)
    assert pld < rdp  # the PLD is the tighter one, and what "auto" takes
    assert epsilon({release: 50}, 1e-5) == epsilon({release: 50}, 1e-5, "pld")


def test_fixed_draws_are_without_replacement_at_half_the_multiplier() -> None:
    """Replacing one of 20 out of 200 moves the sum by twice the clip."""
    event = dp.SelfComposedDpEvent(dp.SampledWithoutReplacementDpEvent(200, 20, dp.GaussianDpEvent(2.0)), 30)
    wanted = dp.rdp.RdpAccountant(neighboring_relation=REPLACE).compose(event).get_epsilon(1e-5)
    release = Release(noise_multiplier=4.0, sampling="fixed", rate=0.1, drawn=20, among=200)
    assert epsilon({release: 30}, 1e-5) == pytest.approx(wanted, rel=1e-9)
    with pytest.raises(InputError, match="draw without replacement"):
        epsilon({release: 30}, 1e-5, "pld")


def test_fixed_draws_are_never_charged_more_than_taking_part_for_certain() -> None:
    nearly = Release(noise_multiplier=1.0, sampling="fixed", rate=0.9, drawn=9, among=10)
    certain = Release(noise_multiplier=1.0)
    assert epsilon({nearly: 10}, 1e-5) == epsilon({certain: 10}, 1e-5)


def test_one_gaussian_is_the_analytic_one() -> None:
    """Balle, Wang 2018: delta = Phi(1/2z - eps z) - e^eps Phi(-1/2z - eps z)."""
    z = 1.5
    eps = epsilon({Release(noise_multiplier=z): 1}, 1e-5, "pld")

    def phi(t: float) -> float:
        return 0.5 * math.erfc(-t / math.sqrt(2))

    delta = phi(1 / (2 * z) - eps * z) - math.exp(eps) * phi(-1 / (2 * z) - eps * z)
    assert delta == pytest.approx(1e-5, rel=2e-3)
    assert delta <= 1e-5  # an upper bound


def test_no_noise_promises_nothing_and_no_release_costs_nothing() -> None:
    assert epsilon({Release(noise_multiplier=0.0): 1}, 1e-5) == math.inf
    assert epsilon({Release(noise_multiplier=0.0): 0}, 1e-5) == 0.0
    assert epsilon({Release(noise_multiplier=1.0, sampling="poisson", rate=0.0): 9}, 1e-5) == 0.0


def test_as_many_releases_as_a_budget_allows() -> None:
    release = Release(noise_multiplier=2.0)
    n = releases_within(release, 3.0, 1e-5, "rdp")
    assert epsilon({release: n}, 1e-5, "rdp") <= 3.0 < epsilon({release: n + 1}, 1e-5, "rdp")
    assert releases_within(Release(noise_multiplier=0.1), 3.0, 1e-5, "rdp") == 0


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5])
def test_a_delta_is_a_probability(delta: float) -> None:
    with pytest.raises(InputError, match="delta"):
        epsilon({Release(noise_multiplier=1.0): 1}, delta)
