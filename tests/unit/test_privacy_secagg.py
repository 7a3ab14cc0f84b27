"""Secure sums: the masked sum is the plain one bit for bit, whoever is lost when; a parent sees uniform words."""

import secrets

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from secure_sums import measure

from tierfed.errors import InputError
from tierfed.privacy import secagg
from tierfed.privacy.fixedpoint import KINDS, Fixed, agreed, from_words, summed, to_words
from tierfed.privacy.secagg import Revealed, Terms, TooFewError
from tierfed.privacy.shamir import PRIME, at_zero, joined, split

N, T, SIZE = 7, 4, 257
FIXED = agreed(32, 8.0, N, N)


def words(i: int, size: int = SIZE, fixed: Fixed = FIXED) -> np.ndarray:
    values = np.random.default_rng(i).uniform(-8, 8, size)
    return to_words(values, 1, fixed)


def entropy(seed: int) -> secagg.Entropy:
    return np.random.default_rng(seed).bytes


def protocol(lost: dict[int, int], n: int = N, threshold: int = T, fixed: Fixed = FIXED) -> tuple[np.ndarray, set[int]]:
    """A sum in which children are lost: child -> the step (1 to 4) in which it says nothing any more.

    :return: the sum, and whose words are in it
    """
    terms = Terms(fixed=fixed, threshold=threshold, context=b"run 1 round 2 fog-0")

    def there(step: int) -> list[int]:
        return [i for i in range(n) if lost.get(i, 9) > step]

    begun = {i: secagg.begin(i, terms, entropy(i)) for i in there(1)}
    roster = secagg.roster_of(terms, {i: keys for i, (_, keys) in begun.items()})
    shared = {i: secagg.share(begun[i][0], roster) for i in there(2)}
    parcels = secagg.routed(terms, roster, {i: sealed for i, (_, sealed) in shared.items()})
    masked = {i: secagg.masked(shared[i][0], parcels[i], words(i, fixed=fixed)) for i in there(3)}
    heard = frozenset(masked)
    said = {i: w for i, (_, w) in masked.items()}
    revealed = {i: secagg.reveal(masked[i][0], heard) for i in there(4)}
    return secagg.total(terms, roster, frozenset(shared), said, revealed), set(heard)


@pytest.mark.parametrize("step", [1, 2, 3, 4])
@pytest.mark.parametrize("count", range(N - T + 1))
def test_the_sum_is_exact_with_up_to_all_but_the_threshold_lost_in_any_step(step: int, count: int) -> None:
    gone = {(2 * j + 1) % N: step for j in range(count)}
    out, heard = protocol(gone)
    assert heard == (set(range(N)) - gone.keys() if step < 4 else set(range(N)))
    assert np.array_equal(out, summed([words(i) for i in sorted(heard)], FIXED))


def test_children_may_be_lost_in_every_step_of_one_sum() -> None:
    out, heard = protocol({0: 1, 3: 2, 5: 3})
    assert heard == {1, 2, 4, 6}
    assert np.array_equal(out, summed([words(i) for i in heard], FIXED))


@pytest.mark.parametrize("step", [1, 2, 3, 4])
def test_below_the_threshold_there_is_no_sum(step: int) -> None:
    with pytest.raises(TooFewError, match=f"{T - 1} children .* {T} are needed"):
        protocol(dict.fromkeys(range(N - T + 1), step))


def test_words_of_64_bits() -> None:
    fixed = agreed(64, 8.0, N, N)
    out, heard = protocol({2: 3}, fixed=fixed)
    assert out.dtype == KINDS[64]
    assert np.array_equal(out, summed([words(i, fixed=fixed) for i in heard], fixed))


def test_what_the_parent_gets_is_uniform() -> None:
    """Every byte of a masked reply of zeros, by a chi-squared test; two sums mask the same reply differently."""
    terms = Terms(fixed=FIXED, threshold=2, context=b"c")
    views = []
    for seed in (0, 1):
        begun = {i: secagg.begin(i, terms, entropy(10 * seed + i)) for i in range(3)}
        roster = secagg.roster_of(terms, {i: k for i, (_, k) in begun.items()})
        shared = {i: secagg.share(s, roster) for i, (s, _) in begun.items()}
        parcels = secagg.routed(terms, roster, {i: sealed for i, (_, sealed) in shared.items()})
        views.append(secagg.masked(shared[0][0], parcels[0], np.zeros(50_000, "<u4"))[1])
    for view in (*views, views[0] - views[1]):
        counts = np.bincount(view.view(np.uint8), minlength=256)
        assert stats.chisquare(counts).pvalue > 1e-4
    assert abs(np.corrcoef(*views)[0, 1]) < 0.02


def test_a_child_says_only_one_share_of_everybody() -> None:
    terms = Terms(fixed=FIXED, threshold=2, context=b"c")
    begun = {i: secagg.begin(i, terms, entropy(i)) for i in range(4)}
    roster = secagg.roster_of(terms, {i: k for i, (_, k) in begun.items()})
    shared = {i: secagg.share(s, roster) for i, (s, _) in begun.items()}
    parcels = secagg.routed(terms, roster, {i: sealed for i, (_, sealed) in shared.items()})
    state, _ = secagg.masked(shared[0][0], parcels[0], words(0))
    said = secagg.reveal(state, frozenset({0, 1, 2}))
    assert (set(said.own), set(said.mask)) == ({0, 1, 2}, {3})
    with pytest.raises(InputError, match="shared no secrets"):
        secagg.reveal(state, frozenset({0, 1, 9}))
    with pytest.raises(TooFewError):
        secagg.reveal(state, frozenset({0}))


def test_a_child_trusts_no_list_without_its_own_keys_or_with_keys_twice() -> None:
    terms = Terms(fixed=FIXED, threshold=2, context=b"c")
    begun = {i: secagg.begin(i, terms, entropy(i)) for i in range(3)}
    keys = {i: k for i, (_, k) in begun.items()}
    for wrong in ({**keys, 0: keys[1]}, {**keys, 2: keys[1]}, {1: keys[1], 2: keys[2]}):
        with pytest.raises(InputError, match="without its own, or with one twice"):
            secagg.share(begun[0][0], wrong)


def test_shares_that_were_changed_are_noticed() -> None:
    terms = Terms(fixed=FIXED, threshold=2, context=b"c")
    begun = {i: secagg.begin(i, terms, entropy(i)) for i in range(3)}
    roster = secagg.roster_of(terms, {i: k for i, (_, k) in begun.items()})
    shared = {i: secagg.share(s, roster) for i, (s, _) in begun.items()}
    parcels = secagg.routed(terms, roster, {i: sealed for i, (_, sealed) in shared.items()})
    other = {**parcels[0], 1: bytes([parcels[0][1][0] ^ 1]) + parcels[0][1][1:]}
    with pytest.raises(InputError, match="changed on their way"):
        secagg.masked(shared[0][0], other, words(0))
    states = {i: secagg.masked(shared[i][0], parcels[i], words(i)) for i in range(2)}
    revealed = {i: secagg.reveal(states[i][0], frozenset({0, 1})) for i in range(2)}
    wrong = {**revealed, 0: Revealed(revealed[0].own, {2: revealed[0].mask[2] + 1})}
    with pytest.raises(InputError, match=r"not of one secret|do not give its key"):
        secagg.total(terms, roster, frozenset(range(3)), {i: w for i, (_, w) in states.items()}, wrong)


def test_the_payload_is_what_the_messages_hold() -> None:
    n, size = 5, 300
    terms = Terms(fixed=FIXED, threshold=3, context=b"c")
    begun = {i: secagg.begin(i, terms, entropy(i)) for i in range(n)}
    roster = secagg.roster_of(terms, {i: k for i, (_, k) in begun.items()})
    shared = {i: secagg.share(s, roster) for i, (s, _) in begun.items()}
    parcels = secagg.routed(terms, roster, {i: sealed for i, (_, sealed) in shared.items()})
    state, view = secagg.masked(shared[0][0], parcels[0], words(0, size))
    said = secagg.reveal(state, frozenset(range(n)))
    up = len(b"".join(begun[0][1])) + len(b"".join(shared[0][1].values())) + view.nbytes
    up += secagg.SHARE_BYTES * (len(said.own) + len(said.mask))
    down = sum(len(b"".join(k)) for k in roster.values()) + len(b"".join(parcels[0].values())) + 1
    assert secagg.message_bytes(n, size, FIXED) == (down, up)


def test_one_process_can_play_all_parts() -> None:
    terms = Terms(fixed=FIXED, threshold=3, context=b"c")
    given_ = {i: words(i) for i in (2, 5, 11, 40)}
    assert np.array_equal(secagg.summed_up(given_, terms), summed(list(given_.values()), FIXED))


class TestFixedPoint:
    @given(
        st.integers(1, 200), st.integers(1, 5000), st.floats(1e-3, 1e3), st.sampled_from([32, 64]), st.integers(0, 99)
    )
    @settings(max_examples=60, deadline=None)
    def test_no_sum_wraps_around(self, children: int, weight: int, bound: float, bits: int, seed: int) -> None:
        """The worst case: everybody sends the bound with the largest weight."""
        fixed = agreed(bits, bound, children, children * weight)
        worst = int(to_words(np.array([bound]), weight, fixed)[0]) * children
        assert worst < 2 ** (bits - 1)
        assert 4 * worst >= 2 ** (bits - 1) - 4 * children  # no coarser than it has to be
        x = np.random.default_rng(seed).uniform(-bound, bound, (children, 5))
        total = summed([to_words(row, weight, fixed) for row in x], fixed)
        mean = from_words(total, children * weight, fixed)
        slack = 1e-12 * bound  # float64 has 53 bits
        assert np.abs(mean - x.mean(0)).max() <= fixed.error(children, children * weight) + slack

    def test_weights_are_whole_numbers_of_samples(self) -> None:
        fixed = agreed(32, 4.0, 2, 40)
        total = summed([to_words(np.array([1.0, -2.0]), 10, fixed), to_words(np.array([3.0, 0.5]), 30, fixed)], fixed)
        assert np.allclose(from_words(total, 40, fixed), [2.5, -0.125], atol=fixed.error(2, 40))

    @pytest.mark.parametrize("bad", [4.1, np.nan, np.inf])
    def test_a_number_beyond_the_range_is_refused(self, bad: float) -> None:
        with pytest.raises(InputError, match="agreed on for numbers up to 4"):
            to_words(np.array([0.0, bad]), 1, agreed(32, 4.0, 2, 2))

    def test_too_much_for_the_words(self) -> None:
        with pytest.raises(InputError, match="does not fit"):
            agreed(32, 1.0, 1 << 31, 1)
        with pytest.raises(InputError, match="32 or 64 bits"):
            agreed(16, 1.0, 2, 2)


class TestShamir:
    @pytest.mark.parametrize(("threshold", "places"), [(1, 1), (2, 3), (5, 5), (34, 100)])
    def test_any_threshold_of_shares_give_the_secret(self, threshold: int, places: int) -> None:
        secret = bytes(range(32))
        shares = split(secret, threshold, range(1, places + 1))
        some = dict(list(shares.items())[-threshold:])
        assert joined(some) == secret
        assert joined(some, at_zero(some)) == secret

    def test_one_share_fewer_fits_every_secret(self) -> None:
        """For two shares of a threshold of three, and any value at 0, there is a polynomial of degree 2."""
        shares = split(secrets.token_bytes(32), 3, [1, 2, 3])
        for wanted in (0, 1, PRIME - 1):
            weights = at_zero([1, 2, 3])
            third = (wanted - weights[1] * shares[1] - weights[2] * shares[2]) * pow(weights[3], -1, PRIME) % PRIME
            assert sum(weights[j] * s for j, s in {1: shares[1], 2: shares[2], 3: third}.items()) % PRIME == wanted

    def test_the_prime_is_one(self) -> None:
        """Fermat, for several bases."""
        assert all(pow(a, PRIME - 1, PRIME) == 1 for a in (2, 3, 5, 7, 11, 13))

    def test_impossible_shares(self) -> None:
        for threshold, places in ((4, [1, 2, 3]), (2, [0, 1]), (2, [1, 1])):
            with pytest.raises(InputError, match="wanted that many"):
                split(bytes(32), threshold, places)
        with pytest.raises(InputError, match="one secret"):
            joined({1: PRIME - 1}, {1: 1})


def test_the_threshold_is_a_share_of_the_children() -> None:
    assert [secagg.threshold_of(2 / 3, n) for n in (2, 3, 10, 100)] == [2, 2, 7, 67]
    with pytest.raises(InputError, match="at least 2"):
        Terms(fixed=FIXED, threshold=1, context=b"")


def test_the_benchmark_measures_sums_that_are_exact() -> None:
    found = measure(4, 100, 0.25, threshold=0.5)
    assert (found["lost"], found["threshold"]) == (1, 2)
    assert (found["child_down_bytes"], found["child_up_bytes"]) == (64 * 4 + 82 * 3 + 1, 64 + 82 * 3 + 400 + 33 * 4)
