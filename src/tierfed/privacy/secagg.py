"""Sums whose terms nobody sees (Bonawitz et al. 2017, "Practical secure aggregation", honest but curious parent).

step     a child says                                        the parent says
keys     two public keys, X25519                             the keys of all who have said theirs (U1)
shares   shares of its two secrets, encrypted for each peer  to each the shares that are for it (of U2)
masked   its words + PRG(b) + sum of +-PRG(pair) over U2     who was heard (U3)
reveal   of each in U3 a share of b, of each in U2 \\ U3 a share of its mask key; never both

The masks of pairs cancel in the sum; those of pairs with a child that was lost after step 2 are made from its key,
which `threshold` shares give, and so are the b of all others. Below the threshold every step fails, and the sum with
it. All functions are pure: a child's state goes in and comes out, so a simulation and a deployment run the same ones.
A state is good for one sum: nobody may call `reveal` twice with it.

Masks are ChaCha20 streams under keys of 256 bits; keys of pairs are HKDF-SHA256 of X25519 secrets; shares travel under
ChaCha20-Poly1305. Needs `cryptography`.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from tierfed.errors import InputError
from tierfed.privacy.fixedpoint import Fixed, Words, summed
from tierfed.privacy.noise import keystream
from tierfed.privacy.shamir import SHARE_BYTES, at_zero, joined, split

KEY_BYTES = 32
SEALED_BYTES = 2 * SHARE_BYTES + 16  # two shares and the tag of Poly1305
Entropy = Callable[[int], bytes]


class TooFewError(InputError):
    """Fewer children than the threshold are left: there is no sum, and nothing was said about one child."""


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What all have agreed on before a sum.

    :param threshold: how many children it takes to open a mask, at least 2
    :param context: what tells this sum from all others: run, round, node
    """

    fixed: Fixed
    threshold: int
    context: bytes

    def __post_init__(self) -> None:
        if self.threshold < 2:
            raise InputError(
                f"secure sums with the threshold {self.threshold}: one child alone could open the mask of another; "
                "wanted at least 2"
            )


class Keys(NamedTuple):
    """The public keys of a child."""

    channel: bytes
    mask: bytes


class Opened(NamedTuple):
    """A child that has said its keys."""

    ident: int
    terms: Terms
    keys: Keys
    channel: bytes
    mask: bytes
    entropy: Entropy


class Shared(NamedTuple):
    """A child that has shared its secrets."""

    opened: Opened
    roster: Mapping[int, Keys]
    own: bytes  # b
    kept: tuple[int, int]  # its own shares, of b and of its mask key


class Masked(NamedTuple):
    """A child that has said its masked words. :param held: peer -> the shares of its b and of its mask key"""

    opened: Opened
    held: Mapping[int, tuple[int, int]]


class Revealed(NamedTuple):
    """Shares by child: of the b of who was heard, of the mask key of who was lost."""

    own: Mapping[int, int]
    mask: Mapping[int, int]


def threshold_of(share: float, children: int) -> int:
    """How many of so many children a share of them is, at least 2."""
    return max(2, -int(-share * children // 1))


def begin(ident: int, terms: Terms, entropy: Entropy = os.urandom) -> tuple[Opened, Keys]:
    """Step 1 of a child. :param entropy: [n] random bytes; the system's in anything that protects somebody"""
    channel, mask = entropy(KEY_BYTES), entropy(KEY_BYTES)
    keys = Keys(_public(channel), _public(mask))
    return Opened(ident, terms, keys, channel, mask, entropy), keys


def roster_of(terms: Terms, said: Mapping[int, Keys]) -> dict[int, Keys]:
    """Step 1 of the parent: the keys of all, in the order of their numbers.

    :raises TooFewError: fewer than the threshold
    :raises InputError: no keys
    """
    _enough(terms, len(said), "have said their keys")
    for i, keys in said.items():
        if len(keys.channel) != KEY_BYTES or len(keys.mask) != KEY_BYTES:
            raise InputError(f"child {i} has keys of {len(keys.channel)} and {len(keys.mask)} bytes, not {KEY_BYTES}")
    return dict(sorted(said.items()))


def share(opened: Opened, roster: Mapping[int, Keys]) -> tuple[Shared, dict[int, bytes]]:
    """Step 2 of a child: its state, and what is for each peer.

    :raises TooFewError: fewer peers than the threshold
    :raises InputError: a list of keys that this child must not trust
    """
    terms, me = opened.terms, opened.ident
    _enough(terms, len(roster), "have said their keys")
    every = [k for keys in roster.values() for k in keys]
    if roster.get(me) != opened.keys or len(set(every)) != len(every):
        raise InputError(f"child {me} was given a list of keys without its own, or with one twice: no sum with those")
    own = opened.entropy(KEY_BYTES)

    def below(n: int) -> int:
        return int.from_bytes(opened.entropy(SHARE_BYTES + 15), "big") % n

    places = {i: j for j, i in enumerate(sorted(roster), 1)}
    of_own = split(own, terms.threshold, places.values(), below)
    of_mask = split(opened.mask, terms.threshold, places.values(), below)
    sealed = {i: _seal(opened, i, keys, of_own[places[i]], of_mask[places[i]]) for i, keys in roster.items() if i != me}
    return Shared(opened, dict(roster), own, (of_own[places[me]], of_mask[places[me]])), sealed


def routed(terms: Terms, roster: Mapping[int, Keys], said: Mapping[int, Mapping[int, bytes]]) -> dict[int, Any]:
    """Step 2 of the parent: to each who has shared, what the others have sealed for it.

    :raises TooFewError: fewer than the threshold have shared
    :raises InputError: somebody has left out a peer
    """
    _enough(terms, len(said), "have shared their secrets")
    for i, sealed in said.items():
        if sealed.keys() != roster.keys() - {i} or any(len(s) != SEALED_BYTES for s in sealed.values()):
            raise InputError(f"child {i} has not shared its secrets with all of its peers")
    return {i: {j: said[j][i] for j in sorted(said) if j != i} for i in sorted(said)}


def masked(shared: Shared, received: Mapping[int, bytes], words: Words) -> tuple[Masked, Words]:
    """Step 3 of a child: its words under its masks.

    :param received: peer -> what it has sealed for this child; exactly those of U2
    :raises TooFewError: fewer than the threshold have shared
    :raises InputError: shares that are not for this child, or not of this sum
    """
    opened, terms, me = shared.opened, shared.opened.terms, shared.opened.ident
    _enough(terms, len(received) + 1, "have shared their secrets")
    if not received.keys() <= shared.roster.keys() - {me}:
        raise InputError(f"child {me} was given shares of somebody who has not said its keys")
    held = {j: _unseal(opened, j, shared.roster[j], sealed) for j, sealed in received.items()}
    out = words + stream(shared.own, len(words), terms.fixed)
    for j in received:
        _add(out, opened.mask, opened.keys.mask, shared.roster[j].mask, me, j, terms)
    return Masked(opened, {**held, me: shared.kept}), out


def reveal(state: Masked, heard: frozenset[int]) -> Revealed:
    """Step 4 of a child: what opens the sum.

    :param heard: U3
    :raises TooFewError: fewer than the threshold: so few words would say too much about each
    :raises InputError: somebody who has not shared its secrets is said to be heard
    """
    _enough(state.opened.terms, len(heard), "were heard")
    if not heard <= state.held.keys():
        raise InputError(
            f"child {state.opened.ident} is asked about {sorted(heard - state.held.keys())}, who has shared no secrets"
        )
    own = {i: state.held[i][0] for i in sorted(heard)}
    return Revealed(own, {i: state.held[i][1] for i in sorted(state.held.keys() - heard)})


def total(
    terms: Terms,
    roster: Mapping[int, Keys],
    sharing: frozenset[int],
    said: Mapping[int, Words],
    revealed: Mapping[int, Revealed],
) -> Words:
    """Step 4 of the parent: the sum of the words of all who were heard.

    :param sharing: U2; :param said: masked words, of U3; :param revealed: of whoever has answered at last
    :raises TooFewError: fewer than the threshold have answered
    :raises InputError: shares that fit no key: somebody has sent wrong ones
    """
    _enough(terms, len(said), "were heard")
    _enough(terms, len(revealed), "have revealed their shares")
    places = {i: j for j, i in enumerate(sorted(roster), 1)}
    some = sorted(revealed)[: terms.threshold]
    at = {i: places[i] for i in some}
    coefficients = at_zero(at.values())

    def opened(kind: str, child: int) -> bytes:
        shares = {at[i]: getattr(revealed[i], kind).get(child, -1) for i in some}
        if min(shares.values()) < 0:
            raise InputError(f"a share of child {child} is missing, although enough have answered: no sum")
        return joined(shares, coefficients)

    lost = sorted(sharing - said.keys())
    out = summed([said[i] for i in sorted(said)], terms.fixed)
    for i in sorted(said):
        out -= stream(opened("own", i), len(out), terms.fixed)
    for i in lost:
        secret = opened("mask", i)
        if _public(secret) != roster[i].mask:
            raise InputError(f"the shares of child {i} do not give its key: somebody has sent wrong ones; no sum")
        for j in sorted(said):  # what j has added for i, i would have taken away
            _add(out, secret, roster[i].mask, roster[j].mask, i, j, terms)
    return out


def stream(key: bytes, n: int, fixed: Fixed) -> Words:
    """PRG: [n] words of a key."""
    size = fixed.kind.itemsize
    return keystream(key)(-(-n * size // 8)).view(fixed.kind)[:n].copy()


def _add(out: Words, secret: bytes, mine: bytes, other: bytes, me: int, peer: int, terms: Terms) -> None:
    """Adds the mask of a pair as `me` does it, in place."""
    low, high = sorted((mine, other))
    key = _derived(secret, other, b"mask" + low + high, terms)
    if me < peer:
        out += stream(key, len(out), terms.fixed)
    else:
        out -= stream(key, len(out), terms.fixed)


def _enough(terms: Terms, count: int, what: str) -> None:
    if count < terms.threshold:
        raise TooFewError(f"secure sum: {count} children {what}, {terms.threshold} are needed; the round has no sum")


def _seal(opened: Opened, peer: int, keys: Keys, own: int, mask: int) -> bytes:
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305  # noqa: PLC0415

    key = _derived(opened.channel, keys.channel, b"sealed" + _pair(opened.ident, peer), opened.terms)
    plain = own.to_bytes(SHARE_BYTES, "big") + mask.to_bytes(SHARE_BYTES, "big")
    return ChaCha20Poly1305(key).encrypt(bytes(12), plain, opened.terms.context)  # a key seals once


def _unseal(opened: Opened, peer: int, keys: Keys, sealed: bytes) -> tuple[int, int]:
    from cryptography.exceptions import InvalidTag  # noqa: PLC0415
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305  # noqa: PLC0415

    key = _derived(opened.channel, keys.channel, b"sealed" + _pair(peer, opened.ident), opened.terms)
    try:
        plain = ChaCha20Poly1305(key).decrypt(bytes(12), sealed, opened.terms.context)
    except InvalidTag:
        raise InputError(f"the shares of child {peer} for child {opened.ident} were changed on their way") from None
    return int.from_bytes(plain[:SHARE_BYTES], "big"), int.from_bytes(plain[SHARE_BYTES:], "big")


def _pair(a: int, b: int) -> bytes:
    return a.to_bytes(8, "big") + b.to_bytes(8, "big")


def _public(secret: bytes) -> bytes:
    return _x25519().X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()  # type: ignore[no-any-return]


def _derived(secret: bytes, public: bytes, info: bytes, terms: Terms) -> bytes:
    """A key of 256 bits that two share."""
    from cryptography.hazmat.primitives import hashes  # noqa: PLC0415
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF  # noqa: PLC0415

    x = _x25519()
    try:
        common = x.X25519PrivateKey.from_private_bytes(secret).exchange(x.X25519PublicKey.from_public_bytes(public))
    except ValueError:
        raise InputError("a public key is of low order: no sum with whoever has sent it") from None
    return HKDF(hashes.SHA256(), KEY_BYTES, terms.context, b"tierfed " + info).derive(common)


def _x25519() -> Any:
    try:
        from cryptography.hazmat.primitives.asymmetric import x25519  # noqa: PLC0415  an extra
    except ModuleNotFoundError as err:
        if err.name != "cryptography":
            raise
        raise InputError(
            "secure sums need cryptography, which is not installed; pip install 'tierfed[privacy]'"
        ) from None
    return x25519


def message_bytes(children: int, numbers: int, fixed: Fixed) -> tuple[int, int]:
    """Payload of one child's share of a sum, (down, up), when nobody is lost.

    Down: the keys of all, the sealed shares of all peers, who was heard (a bit each). Up: its keys, its sealed shares,
    its words, a share of everybody.
    """
    peers = children - 1
    down = 2 * KEY_BYTES * children + SEALED_BYTES * peers + -(-children // 8)
    up = 2 * KEY_BYTES + SEALED_BYTES * peers + fixed.kind.itemsize * numbers + SHARE_BYTES * children
    return down, up


def summed_up(words: Mapping[int, Words], terms: Terms, entropy: Entropy = os.urandom) -> Words:
    """All steps of a sum in which nobody is lost, in one process."""
    states, keys = {}, {}
    for i in words:
        states[i], keys[i] = begin(i, terms, entropy)
    roster = roster_of(terms, keys)
    shared = {i: share(states[i], roster) for i in words}
    parcels = routed(terms, roster, {i: sealed for i, (_, sealed) in shared.items()})
    said = {i: masked(shared[i][0], parcels[i], words[i]) for i in words}
    heard = frozenset(words)
    revealed = {i: reveal(state, heard) for i, (state, _) in said.items()}
    return total(terms, roster, heard, {i: np.asarray(w) for i, (_, w) in said.items()}, revealed)
