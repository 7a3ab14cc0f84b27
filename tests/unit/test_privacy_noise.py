"""Clipping bounds what it says; noise has the variance that it says."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch.func import vmap

from tierfed.errors import InputError
from tierfed.links import AttackSettings, Heard, LinkSettings, build_links, real
from tierfed.links.link import At
from tierfed.privacy.clipping import Adaptive, clip, clip_by_layer, even_bounds, norm
from tierfed.privacy.noise import box_muller, counted, keystream, noised, normal_like, secure
from tierfed.settings import build
from tierfed.tree import flatten


def tree(scale: float) -> dict[str, dict[str, torch.Tensor]]:
    g = torch.Generator().manual_seed(0)
    return {"params": {"w": scale * torch.randn(7, 3, generator=g), "b": scale * torch.randn(3, generator=g)}}


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e20, 1e38])
def test_a_clipped_tree_is_at_most_as_long_as_the_bound(scale: float) -> None:
    assert float(norm(clip(tree(scale), 0.7))) <= 0.7
    whole = even_bounds(tree(scale), 0.7)
    assert math.hypot(*whole.values()) == pytest.approx(0.7)
    assert float(norm(clip_by_layer(tree(scale), whole))) <= 0.7


def test_what_is_short_stays_as_it_is() -> None:
    short = tree(1e-3)
    assert all(
        torch.equal(a, b) for a, b in zip(flatten(clip(short, 1.0)).values(), flatten(short).values(), strict=True)
    )


def test_the_direction_stays() -> None:
    long, cut = flatten(tree(5.0)), flatten(clip(tree(5.0), 1.0))
    factor = float(cut["params\x1fb"][0] / long["params\x1fb"][0])
    assert all(torch.allclose(cut[k], factor * v, rtol=1e-6) for k, v in long.items())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_no_number_becomes_zero(bad: float) -> None:
    out = clip({"a": torch.tensor([1.0, bad]), "b": torch.ones(2)}, 1.0)
    assert float(norm(out)) == 0.0


def test_a_layer_without_a_bound_is_refused() -> None:
    with pytest.raises(InputError, match="no bound"):
        clip_by_layer(tree(1.0), {"params\x1fw": 1.0})


def test_the_adaptive_bound_goes_to_the_quantile() -> None:
    """Norms 1 ... 100: the bound settles at the median."""
    rule, bound, norms = Adaptive(quantile=0.5, rate=0.2), 0.1, np.arange(1, 101)
    for _ in range(200):
        bound = rule.bound(bound, float((norms <= bound).mean()))
    assert 48 < bound < 53


def test_adaptive_noise_shares_the_budget() -> None:
    """Theorem 1: z^-2 = z_delta^-2 + (2 sigma_b)^-2."""
    rule = Adaptive(noise=5.0)
    z_delta = rule.multiplier(1.0)
    assert z_delta**-2 + (2 * 5.0) ** -2 == pytest.approx(1.0)
    with pytest.raises(InputError, match=r"above 0\.5"):
        Adaptive(noise=0.4).multiplier(1.0)


def normal(sample: np.ndarray, deviation: float) -> None:
    """Mean, variance and shape at the level 1e-4; with a fixed seed the outcome is fixed."""
    n = len(sample)
    assert abs(sample.mean()) < stats.norm.ppf(1 - 5e-5) * deviation / math.sqrt(n)
    low, high = stats.chi2.ppf([5e-5, 1 - 5e-5], n - 1)
    assert low < (n - 1) * sample.var(ddof=1) / deviation**2 < high
    assert stats.kstest(sample / deviation, "norm").pvalue > 1e-4


def test_the_variance_of_noise_is_the_configured_one() -> None:
    zero = {"a": torch.zeros(300, 100), "b": torch.zeros(20_000)}
    out = noised(zero, 0.3, counted(7, 1, 2))
    normal(torch.cat([t.flatten() for t in out.values()]).double().numpy(), 0.3)


def test_noise_is_a_function_of_its_key() -> None:
    a, b, c = (counted(7, 1, k)(1000) for k in (2, 2, 3))
    assert np.array_equal(a, b)
    assert abs(np.corrcoef(a, c)[0, 1]) < 0.15


def test_noise_below_vmap_is_normal_and_every_device_has_its_own() -> None:
    seeds, zero = torch.arange(50), torch.zeros(50, 40, 25)
    mapped = vmap(lambda t, s: normal_like(t, s, 3))(zero, seeds)
    assert torch.equal(mapped[17], normal_like(zero[17], torch.tensor(17), 3))
    normal(mapped.flatten().double().numpy(), 1.0)
    assert float(torch.corrcoef(mapped.flatten(1)).triu(1).abs().max()) < 0.2
    assert not torch.equal(mapped[0], normal_like(zero[0], torch.tensor(0), 4))


def test_secure_noise_is_normal() -> None:
    """A stream under a key that is known here; that of the system has another key every time."""
    normal(box_muller(keystream(bytes(range(32)))(100_000)), 1.0)
    assert not np.array_equal(secure()(8), secure()(8))


def test_links_of_a_deployment_draw_noise_that_nobody_knows() -> None:
    tables = {"all": build(LinkSettings, {"privacy": {"clip": 1.0}}, "links.all")}
    there = build_links(tables, AttackSettings(), ("cloud", "device"), (1, 3), 0)
    change, at = {"params": {"w": torch.zeros(4)}}, At(0, 1, 0, 0, 0)
    heard = Heard([change] * 2, [change] * 2, np.ones(2), np.arange(2), np.arange(2))
    simulated, deployed = (links.at(0).rule for links in (there, real(there)))
    assert simulated is not None
    assert deployed is not None
    again = [[rule.reduce(heard, {}, at)[0]["params"]["w"] for _ in range(2)] for rule in (simulated, deployed)]
    assert torch.equal(*again[0])
    assert not torch.equal(*again[1])


def test_the_stream_is_chacha20() -> None:
    """RFC 8439, appendix A.1, test vector 1: the key 0, the nonce 0, the counter 0."""
    begin = keystream(bytes(32))(2).tobytes()
    assert begin.hex() == "76b8e0ada0f13d90405d6ae55386bd28"
