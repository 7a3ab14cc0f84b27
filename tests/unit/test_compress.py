"""Compressed changes: what travels is what the formula says, what comes out is what went in up to what was left out."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tierfed.errors import InputError
from tierfed.links import At, Compress, CompressSettings
from tierfed.links.compress import layers_of
from tierfed.settings import build
from tierfed.tree import Tree, flatten, tmap, vector, zeros
from tierfed.wire import decode, encode, payload

AT = At(0, 2, 3, 5, 7)
EVERY: list[dict[str, Any]] = [
    {"kind": "topk", "ratio": 0.1},
    {"kind": "topk", "ratio": 0.1, "bits": 8},
    {"kind": "randomk", "ratio": 0.1},
    {"kind": "randomk", "ratio": 0.3, "bits": 4},
    {"kind": "lowrank", "rank": 1},
    {"kind": "lowrank", "rank": 2, "bits": 8},
    {"kind": "layers", "count": 1},
    {"kind": "layers", "count": 2, "bits": 4},
    {"kind": "dense", "bits": 8},
    {"kind": "dense", "bits": 4},
]
IDS = ["-".join(map(str, e.values())) for e in EVERY]


def step(table: dict[str, Any]) -> Compress:
    return Compress(settings=build(CompressSettings, table, "compress"))


def change(seed: int = 0, dtype: torch.dtype = torch.float32) -> Tree:
    """Of a network with three layers, and something that is owed."""
    g = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)

    params = {"a.weight": drawn(12, 9), "a.bias": drawn(12), "b.weight": 5 * drawn(6, 4, 3, 3), "c.weight": drawn(7, 5)}
    return {"params": params, "owed": {"c": drawn(3)}}


def test_top_entries_by_hand() -> None:
    """(3, -4, 0.5, 1, -2) at 0.4: -4 and 3 travel, with their places; the rest waits, and goes first next time."""
    it = step({"kind": "topk", "ratio": 0.4})
    v = {"w": torch.tensor([3.0, -4.0, 0.5, 1.0, -2.0])}
    wire, kept = it.send(v, {}, AT)
    assert wire["index"].tolist() == [0, 1]
    assert wire["numbers"].tolist() == [3.0, -4.0]
    assert payload(wire) == 2 * (4 + 4)
    assert it.receive(wire, AT)["w"].tolist() == [3.0, -4.0, 0.0, 0.0, 0.0]
    assert kept["residual"]["w"].tolist() == [0.0, 0.0, 0.5, 1.0, -2.0]
    wire, kept = it.send({"w": torch.tensor([0.0, 0.0, 0.0, 1.0, -1.0])}, kept, AT)
    assert it.receive(wire, AT)["w"].tolist() == [0.0, 0.0, 0.0, 2.0, -3.0]
    assert kept["residual"]["w"].tolist() == [0.0, 0.0, 0.5, 0.0, 0.0]


def test_eight_bits_by_hand() -> None:
    """The step is 1.27 / 127 = 0.01: whole multiples of it come through, others go up or down."""
    it = step({"kind": "dense", "bits": 8, "feedback": False})
    wire, kept = it.send({"w": torch.tensor([1.27, -0.5, 0.123], dtype=torch.float64)}, {}, AT)
    assert not kept
    assert wire["numbers"].tolist()[:2] == [127, -50]
    assert wire["numbers"].tolist()[2] in (12, 13)
    assert payload(wire) == 3 + 8


def test_one_rank_is_exact_on_a_product() -> None:
    u, v = torch.arange(1.0, 9.0), torch.arange(1.0, 7.0)
    it = step({"kind": "lowrank", "rank": 1})
    wire, kept = it.send({"w": torch.outer(u, v)}, {}, AT)
    assert payload(wire) == 4 * (8 + 6)
    assert torch.allclose(it.receive(wire, AT)["w"], torch.outer(u, v), atol=1e-4)
    assert float(kept["residual"]["w"].abs().max()) < 1e-4


def test_the_layer_that_changed_most_travels() -> None:
    it = step({"kind": "layers", "count": 1})
    wire, kept = it.send(change(), {}, AT)
    got = it.receive(wire, AT)
    assert torch.equal(got["params"]["b.weight"], change()["params"]["b.weight"])
    assert not float(got["params"]["a.weight"].abs().sum())
    assert torch.equal(kept["residual"]["params"]["a.bias"], change()["params"]["a.bias"])
    assert payload(wire) == 4 * 6 * 4 * 3 * 3 + 1


@pytest.mark.parametrize("table", EVERY, ids=IDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bytes_are_those_of_the_formula(table: dict[str, Any], dtype: torch.dtype) -> None:
    it, size = step(table), torch.zeros((), dtype=dtype).element_size()
    wire, _ = it.send(change(dtype=dtype), {}, AT)
    shapes = {p: tuple(t.shape) for p, t in flatten(change()).items()}
    sent = None
    if table["kind"] == "layers":
        there = it.receive(wire, AT)
        sent = sum(
            sum(int(np.prod(shapes[p])) for p in paths)
            for paths in layers_of(shapes).values()
            if any(float(flatten(there)[p].abs().sum()) for p in paths)
        )
    assert payload(wire) == it.size(shapes, size, sent)
    assert payload(decode(encode(wire))) == payload(wire)
    assert len(encode(wire)) > payload(wire)


@pytest.mark.parametrize("table", EVERY, ids=IDS)
def test_what_left_and_what_waits_are_all_that_there_was(table: dict[str, Any]) -> None:
    """Error feedback: over some rounds, what has arrived and the residual add up to all changes."""
    it, memory = step(table), Tree()
    arrived = came = zeros(change(dtype=torch.float64))
    for r in range(6):
        one, at = change(r, torch.float64), AT._replace(round=r)
        wire, memory = it.send(one, memory, at)
        got = it.receive(decode(encode(wire)), at)
        came, arrived = (tmap(torch.add, a, b) for a, b in ((came, one), (arrived, got)))
    left = tmap(torch.add, arrived, memory["residual"])
    for p, t in flatten(came).items():
        assert torch.allclose(flatten(left)[p], t, atol=1e-12)


@pytest.mark.parametrize("table", [e for e in EVERY if e["kind"] in ("dense", "randomk")])
def test_the_mean_is_right_without_feedback(table: dict[str, Any]) -> None:
    """Rounding at random and drawn entries are unbiased: the mean over many draws comes near the change."""
    it, one = step({**table, "feedback": False}), {"w": torch.linspace(-1, 1, 40, dtype=torch.float64)}
    n, places = 150, [AT._replace(round=r) for r in range(150)]
    drawn = torch.stack([it.receive(it.send(one, {}, at)[0], at)["w"] for at in places])
    error = (drawn.mean(0) - one["w"]).abs() / (drawn.std(0) / n**0.5 + 1e-12)
    assert float(error.max()) < 4.5
    assert float(drawn.std(0).max()) > 0


@given(st.integers(0, 2**31), st.sampled_from(EVERY), st.integers(1, 40), st.integers(1, 12))
@settings(max_examples=25, deadline=None)
def test_any_shape_comes_back(seed: int, table: dict[str, Any], m: int, n: int) -> None:
    g = torch.Generator().manual_seed(seed)
    params = {"x.weight": torch.randn(m, n, generator=g), "x.bias": torch.zeros(n), "s": torch.randn((), generator=g)}
    one = {"p": params}
    it = step(table)
    wire, kept = it.send(one, {}, AT)
    got = it.receive(wire, AT)
    assert {p: t.shape for p, t in flatten(got).items()} == {p: t.shape for p, t in flatten(one).items()}
    assert torch.allclose(vector(one), vector(got) + vector(kept["residual"]), atol=1e-5)
    again, _ = it.send(one, {}, AT)
    assert encode(again) == encode(wire)


def test_nothing_is_no_change() -> None:
    it = step({"kind": "topk"})
    assert it.receive(it.send({}, {}, AT)[0], AT) == {}
    zero = {"w": torch.zeros(8)}
    for table in EVERY:
        assert not float(step(table).receive(step(table).send(zero, {}, AT)[0], AT)["w"].abs().sum())


def test_garbage_is_refused() -> None:
    it = step({"kind": "topk", "ratio": 0.5})
    good, _ = it.send({"w": torch.arange(4.0)}, {}, AT)
    bad: list[tuple[str, Tree]] = [
        ("not in order", {**good, "index": torch.tensor([1, 4], dtype=torch.int32)}),
        ("not in order", {**good, "index": torch.tensor([-1, 2], dtype=torch.int32)}),
        ("not in order", {**good, "index": torch.tensor([2, 2], dtype=torch.int32)}),
        ("index of", {**good, "index": torch.tensor([1, 2, 3], dtype=torch.int32)}),
        ("numbers of", {**good, "numbers": torch.ones(3)}),
        ("numbers of", {**good, "numbers": torch.ones(2, dtype=torch.int64)}),
        ("not compressed", {"numbers": torch.ones(2)}),
        ("not compressed", {"like": torch.ones(2)}),
    ]
    for why, wire in bad:
        with pytest.raises(InputError, match=why):
            it.receive(wire, AT)
    huge = {**good, "like": {"w": torch.empty(0, 1 << 40)}}
    with pytest.raises(InputError, match="more than 100 entries"):
        it.receive(huge, AT._replace(room=100))
    layers = step({"kind": "layers"})
    wire, _ = layers.send(change(), {}, AT)
    with pytest.raises(InputError, match="3 layers"):
        layers.receive({**wire, "which": torch.tensor([0b11100000], dtype=torch.uint8)}, AT)
