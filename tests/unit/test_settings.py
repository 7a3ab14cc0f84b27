"""Settings from tables: what is valid comes back, what is not is explained."""

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tierfed.errors import InputError, nearest
from tierfed.faults import Faults
from tierfed.settings import Count, Fraction, Positive, Share, build, table
from tierfed.topology import TopologySettings


@dataclass(frozen=True, kw_only=True)
class Inner:
    depth: Count = 1
    names: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Outer:
    rate: Positive
    share: Share = 0.5
    decay: Fraction = 0.0
    limit: float | None = None
    inner: Inner = field(default_factory=Inner)
    more: dict[str, int] = field(default_factory=dict)


def test_a_table_becomes_settings() -> None:
    got = build(Outer, {"rate": 2, "inner": {"depth": 3, "names": ["a", "b"]}, "more": {"k": 1}}, "outer")
    assert got == Outer(rate=2.0, inner=Inner(depth=3, names=("a", "b")), more={"k": 1})


def test_none_is_left_out() -> None:
    assert "limit" not in table(Outer(rate=1.0))
    assert table(Outer(rate=1.0, limit=2.0))["limit"] == 2.0
    assert table(Outer(rate=1.0, inner=Inner(names=("a",))))["inner"] == {"depth": 1, "names": ["a"]}


@given(
    rate=st.floats(1e-9, 1e9),
    share=st.floats(0, 1),
    limit=st.one_of(st.none(), st.floats(allow_nan=False, allow_infinity=False)),
    depth=st.integers(1, 9),
    names=st.lists(st.text(max_size=3), max_size=3).map(tuple),
)
@settings(max_examples=25, deadline=None)
def test_build_is_the_inverse_of_table(
    rate: float, share: float, limit: float | None, depth: int, names: tuple[str, ...]
) -> None:
    one = Outer(rate=rate, share=share, limit=limit, inner=Inner(depth=depth, names=names))
    assert build(Outer, table(one), "outer") == one


@pytest.mark.parametrize(
    "one",
    [
        TopologySettings(),
        TopologySettings(fogs=(2, 6), participation=(1, 0.5, 1.0), team_rounds=(1, 2), clusters=2),
        TopologySettings(fogs=0, participation=1),
        Faults(loss=(0.1, 0.2), deadline_seconds=3.0),
        Faults(),
    ],
)
def test_real_settings_survive_the_round_trip(one: Any) -> None:
    again = build(type(one), table(one), "x")
    assert again == one
    assert repr(again) == repr(one)  # 1 stays a number, 1.0 a share


@pytest.mark.parametrize(
    ("got", "message"),
    [
        ({"rate": 1, "shar": 0.1}, "outer has no setting 'shar'; did you mean 'share'?"),
        ({"rate": 1, "inner": {"dept": 2}}, "outer.inner has no setting 'dept'; did you mean 'depth'?"),
        ({"rate": 1, "qqqq": 0.1}, "known: decay, inner, limit, more, rate, share"),
        ({"rate": 0}, "outer.rate = 0: input should be greater than 0"),
        ({"rate": "fast"}, "outer.rate = 'fast'"),
        ({"rate": 1, "share": 1.01}, "outer.share = 1.01"),
        ({"rate": 1, "decay": 1.0}, "outer.decay = 1.0: input should be less than 1"),
        ({"rate": 1, "inner": {"depth": 0}}, "outer.inner.depth = 0"),
        ({"rate": float("nan")}, "outer.rate"),
        ({"rate": float("inf")}, "outer.rate"),
    ],
)
def test_what_is_wrong_is_explained(got: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        build(Outer, got, "outer")
    assert message in str(caught.value)


def test_a_missing_setting_is_named() -> None:
    with pytest.raises(InputError, match=r"outer\.rate.*required"):
        build(Outer, {}, "outer")


def test_all_mistakes_at_once() -> None:
    with pytest.raises(InputError) as caught:
        build(Outer, {"rate": -1, "share": 2, "x": 3}, "outer")
    assert all(part in str(caught.value) for part in ("outer.rate = -1", "outer.share = 2", "no setting 'x'"))


def test_without_a_table_name() -> None:
    with pytest.raises(InputError, match="the config has no setting 'rat'; did you mean 'rate'"):
        build(Outer, {"rate": 1, "rat": 2}, "")


def test_nearest() -> None:
    assert nearest("algoritm", ["algorithm", "data"]) == "did you mean 'algorithm'?"
    assert nearest("zzz", ["b", "a"]) == "known: a, b"
    assert nearest("zzz", []) == "known: none"
