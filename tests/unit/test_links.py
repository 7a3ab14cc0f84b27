"""[links] and [attack] of a config: what is refused before the first round and why, who attacks, who sees what."""

from typing import Any

import numpy as np
import pytest

import tierfed
from tierfed.errors import InputError
from tierfed.links import AttackSettings, build_links
from tierfed.links.attacks import attack_of
from tierfed.preview import preview
from tierfed.settings import table
from tierfed.setup import World, prepare
from tierfed.sight import who_sees_what

TOP = {"compress": {"kind": "topk", "ratio": 0.02}}
NORMED = {"name": "epflu_mlp"}
MEDIAN = {"reduce": {"rule": "median"}}


def world(algorithm: str = "fedavg", **tables: Any) -> World:
    """Twenty devices with windows of a watch in four fogs."""
    base = {
        "data": {"source": "watch"},
        "model": {"name": "mclr"},
        "topology": {"fogs": 4, "teams": "random"},
        "run": {"rounds": 2},
        "algorithm": {"name": algorithm},
    }
    return prepare(tierfed.load_config({**base, **tables}), draft=True)


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "no such link": ("fedavg", {"links": {"fog-devices": TOP}}, r"\[links.fog-devices\].*'fog-device'"),
    "no such key": ("fedavg", {"links": {"all": {"compres": {}}}}, "links.all has no setting 'compres'.*'compress'"),
    "no such rule": ("fedavg", {"links": {"all": {"reduce": {"rule": "medain"}}}}, "did you mean 'median'"),
    "a path": ("epflu", {"links": {"fog-device": TOP}, "model": NORMED}, "a sum goes from device to device"),
    "a rule on a path": (
        "epflu",
        {"links": {"fog-device": MEDIAN}, "model": NORMED},
        "a sum goes from device to device",
    ),
    "no change": ("perfit-fd", {"links": {"all": TOP}, "data": {"source": "watch", "public": 0.1}}, "nothing up"),
    "a part": ("ifca", {"links": {"fog-device": TOP}}, "a part of what it was sent"),
    "a rule for a part": ("ifca", {"links": {"all": MEDIAN}}, "a part of what it was sent"),
    "no such level": ("fedamp", {"links": {"fog-device": MEDIAN}, "topology": {"fogs": 0}}, "tree has the links"),
    "own weights": ("fedamp", {"links": {"all": MEDIAN}, "topology": {"fogs": 0}}, "takes no mean"),
    "handed on": ("pfedla", {"links": {"all": TOP}}, "hears every device by itself.*link fog-device alone"),
    "a sum of increments": ("scaffold", {"links": {"all": MEDIAN}}, "counts on the sum of all increments"),
    "too few for Krum": (
        "hierfavg",
        {"links": {"cloud-fog": {"reduce": {"rule": "krum", "attackers": 0.3}}}},
        "needs 5 children, but a cloud may poll no more than 4",
    ),
    "all as it is": ("fedavg", {"links": {"all": {"compress": {"kind": "dense"}}}}, "set bits to 8 or 4"),
    "inside a machine": (
        "hierfavg",
        {"links": {"fog-cluster": TOP}, "topology": {"fogs": 4, "teams": "random", "clusters": 2}},
        "in one machine",
    ),
    "a cut model": (
        "fedavg",
        {"links": {"fog-device": TOP}, "offload": {"mode": "split"}, "model": {"name": "mlp"}},
        "offload.mode = 'split'",
    ),
    "a stage": (
        "fedavg",
        {"links": {"all": MEDIAN}, "personalize": {"mechanism": "scaffold"}},
        "personalize.mechanism = 'scaffold': .*sum of all increments",
    ),
    "no such tier": ("fedavg", {"attack": {"kind": "scale", "tier": "fogs"}}, "attack.tier = 'fogs'.*'fog'"),
    "too many": ("fedavg", {"attack": {"kind": "scale", "tier": "fog", "attackers": 5}}, "has 4 nodes"),
    "labels of fogs": ("fedavg", {"attack": {"kind": "label_flip", "tier": "fog"}}, "set attack.tier = 'device'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_before_the_first_round(case: str) -> None:
    name, tables, why = REFUSED[case]
    with pytest.raises(InputError, match=why):
        world(name, **tables)


def test_attackers_train_on_flipped_labels_and_nobody_else_does() -> None:
    plain, attacked = world(), world(attack={"kind": "label_flip", "attackers": 0.2})
    attack, classes = attacked.links.attack, len(plain.federation.classes)
    assert attack is not None
    assert len(attack.nodes) == round(0.2 * len(plain.federation))
    for i in range(len(plain.federation)):
        before, after = (w.plan.y[w.plan.train[i]] for w in (plain, attacked))
        if i in attack.nodes:
            assert (after == classes - 1 - before).all()
            assert not attack.attacks(2, i)  # what it sends is what it has learned
        else:
            assert (after == before).all()
        assert (plain.plan.x[plain.plan.train[i]] == attacked.plan.x[attacked.plan.train[i]]).all()
    rows = np.concatenate([*plain.federation.test, *plain.federation.val])
    assert (plain.plan.y[rows] == attacked.plan.y[rows]).all()


def test_attackers_are_drawn_once_per_seed() -> None:
    def drawn(seed: int) -> frozenset[int]:
        attack = attack_of(AttackSettings(kind="noise", attackers=5), ("cloud", "device"), (1, 40), seed)
        assert attack is not None
        return attack.nodes

    assert drawn(0) == drawn(0)
    assert len(drawn(0)) == 5
    assert len({drawn(s) for s in range(20)}) > 10


def test_a_stage_that_sends_nothing_goes_with_any_link() -> None:
    world(links={"all": {**TOP, **MEDIAN}}, personalize={"mechanism": "ftl"})


def test_a_named_link_is_not_as_all_says() -> None:
    config = tierfed.load_config({"links": {"all": TOP, "cloud-fog": MEDIAN}})
    assert tierfed.load_config(table(config)) == config
    links = build_links(config.links, config.attack, ("cloud", "fog", "device"), (1, 2, 8), 0)
    assert [len(link.steps) for link in links.below] == [0, 1]
    assert [link.rule is None for link in links.below] == [False, True]
    changed = tierfed.load_config({}, {"links.fog-device.compress.kind": "topk"})
    assert changed.links["fog-device"].compress.kind == "topk"


def seen(found: World) -> set[tuple[str, str, str, str]]:
    return {(s.who, s.whom, s.what, s.how) for s in who_sees_what(found)}


def test_who_sees_what() -> None:
    counts = {
        ("cloud", "fog", "numbers of samples and devices", "in the clear"),
        ("fog", "device", "numbers of samples and devices", "in the clear"),
    }
    down = {("device", "fog", "model", "in the clear")}
    assert seen(world()) == {
        ("cloud", "fog", "mean of what its children send", "in the clear"),
        ("fog", "device", "model's change", "in the clear"),
        *counts,
        *down,
    }
    links = {"fog-device": {**TOP, **MEDIAN}}
    assert seen(world("hierfavg", links=links)) == {
        ("cloud", "fog", "its model, made with the median", "in the clear"),
        ("fog", "device", "model's change", "in the clear, largest 0.02 of it"),
        *counts,
        *down,
    }
    pfedla = seen(world("pfedla", links={"fog-device": TOP}))
    for who in ("cloud", "fog"):  # what a fog hands on it has seen
        assert (who, "device", "model's change", "in the clear, largest 0.02 of it") in pfedla
    path = seen(world("epflu", model=NORMED))
    assert ("fog", "fog", "the sum of what its devices send, along a path", "in the clear") in path
    edge = seen(world(offload={"mode": "edge"}))
    assert ("fog", "device", "raw data", "in the clear") in edge


def test_a_look_at_a_run_says_who_attacks_and_how_little_goes_up() -> None:
    plain = preview(world())
    facts = preview(world(links={"all": TOP}, attack={"kind": "noise", "tier": "fog", "attackers": 1}))
    entries = plain["bytes_per_visit"]["up"] // 4
    assert facts["bytes_per_visit"] == {"down": 4 * entries, "up": 8 * -(-entries // 50)}
    assert facts["attack"]["kind"] == "noise"
    assert facts["attack"]["attackers"].startswith("fog ")
    assert {row["who"] for row in facts["who_sees_what"]} == {"cloud", "fog", "device"}
