"""Privacy over the registry: what a device can move, engines that agree, what is refused and why."""

import re
from typing import Any

import numpy as np
import pytest
import torch

from laws.cases import CASES, REGISTRY, task_of
from tierfed.config import Config
from tierfed.dpsgd import PrivateTask, refusal
from tierfed.engine import Engine
from tierfed.engine.evaluate import message_to
from tierfed.errors import InputError
from tierfed.link_checks import check_links
from tierfed.links import AttackSettings, Heard, Links, LinkSettings, arriving, build_links, leaving, parted, rejoined
from tierfed.links.link import At
from tierfed.settings import build
from tierfed.store import MemoryStore, Store
from tierfed.testing.laws import agree, same
from tierfed.testing.toy import make_engine, toy_task
from tierfed.testing.trees import MODES, by_name, small_plan, trace, trees
from tierfed.topology import TopologySettings, build_topology
from tierfed.tree import Tree, leaves, sub, vector, zeros

CLIP = 0.05
PRIVATE = {"clip": CLIP, "noise_multiplier": 1.0}
HIERARCHY = {"weighting": "devices"}


def linked(settings: TopologySettings, links: dict[str, Any]) -> Links:
    plan = small_plan()
    tree = build_topology(settings, plan.samples)
    tables = {k: build(LinkSettings, v, f"links.{k}") for k, v in links.items()}
    weight = int(plan.samples.sum())
    return build_links(tables, AttackSettings(), tree.levels, tree.shape, 0, expected=tree.expected, weight=weight)


def engine_of(
    kind: str,
    name: str,
    settings: TopologySettings,
    links: dict[str, Any],
    store: Store | None = None,
    mode: str = "lossy",
) -> Engine:
    there, faults = linked(settings, links), MODES[mode].faults
    return make_engine(kind, CASES[name], task_of(name), small_plan(), settings, faults, store=store, links=there)


WAYS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "noise of devices": ("ditto", "3 tiers", {"fog-device": {"privacy": {**PRIVATE, "noise_at": "child"}}}),
    "noise of fogs, by layers": ("permfl", "3 tiers", {"fog-device": {"privacy": {**PRIVATE, "layers": "even"}}}),
    "noise of the cloud": ("fedavg", "3 tiers", {"fog-device": {"privacy": {**PRIVATE, "noise_at": "cloud"}}}),
    "adaptive": ("hierfavg", "4 tiers", {"fog-device": {"privacy": {**PRIVATE, "adaptive": {"quantile": 0.5}}}}),
    "secure sums": ("fedper", "3 tiers", {"fog-device": {"secure": {"on": True, "threshold": 0.1}}}),
    "secure and noised": (
        "fedavg",
        "3 tiers",
        {"fog-device": {"secure": {"on": True, "threshold": 0.1, "bits": 64}, "privacy": PRIVATE}},
    ),
    "noise of devices, compressed": (
        "fedamp",
        "3 tiers",
        {"fog-device": {"privacy": {**PRIVATE, "noise_at": "child"}, "compress": {"kind": "randomk", "ratio": 0.3}}},
    ),
    "teams": ("hierfavg", "3 tiers", {"cloud-fog": {"privacy": PRIVATE}}),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("sampling", ["fixed", "poisson"])
def test_engines_agree(way: str, sampling: str) -> None:
    name, tree, links = WAYS[way]
    settings = trees(0.7, sampling=sampling, weighting="children" if way == "teams" else "devices")[tree]
    both = [trace(engine_of(kind, name, settings, links)) for kind in ("serial", "vectorized")]
    agree(*both)


@pytest.mark.parametrize("way", ["adaptive", "noise of devices", "secure sums"])
def test_a_run_that_goes_on_has_the_same_bits(way: str) -> None:
    name, tree, links = WAYS[way]
    settings = trees(0.7, **HIERARCHY)[tree]
    whole = trace(engine_of("vectorized", name, settings, links), 4)
    store = MemoryStore()
    first = trace(engine_of("vectorized", name, settings, links, store), 2).engine
    later = engine_of("vectorized", name, settings, links, store)
    later.restore(first.meta())
    same("resumed", by_name(whole.engine), by_name(trace(later, 2).engine), 0.0)


def refused(name: str, links: dict[str, Any], settings: TopologySettings) -> str:
    """Why an algorithm does not go with links; empty: it does."""
    try:
        engine = engine_of("serial", name, settings, links, mode="full")
        check_links(Config(algorithm={"name": name}), engine.algorithm, lambda _: engine)
    except InputError as err:
        return str(err)
    return ""


def said(engine: Engine) -> tuple[list[Tree], list[Tree]]:
    """(messages, replies as they arrive) of all devices in the first round, over the links of the engine."""
    sent, got = [], []
    for i in range(engine.topology.devices):
        message = message_to(engine, i)
        data = engine.plan.one(i, engine.algorithm, 0, 0)
        reply, _ = engine.algorithm.device(engine.task(i), message, engine.own(i), data)
        at = At(engine.seed, engine.depth, i, 0, 0)
        wire, _ = leaving(engine.links, message, reply, {}, at)
        sent.append(message)
        got.append(arriving(engine.links, message, wire, at))
    return sent, got


@pytest.mark.parametrize("layers", ["flat", "even"])
@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_one_device_moves_what_a_parent_takes_by_at_most_clip_over_their_number(name: str, layers: str) -> None:
    """Of every algorithm that claims it: with its own reply, and with the message that it got in its place."""
    links = {"cloud-device": {"privacy": {"clip": CLIP, "noise_multiplier": 0.0, "layers": layers}}}
    settings = trees(1.0, **HIERARCHY)["flat"]
    if why := refused(name, links, settings):
        pytest.skip(f"{name} claims no protection of devices: {why}")
    engine = engine_of("serial", name, settings, links, mode="full")
    sent, got = said(engine)
    n, rule, at = len(got), engine.links.at(0).rule, At(0, 1, 0, 0, 0)
    assert rule is not None
    kids = np.arange(n)
    base, _ = rule.reduce(Heard(got, sent, np.ones(n), kids, kids), {}, at)
    moved = []
    for i in range(n):
        replies = [*got[:i], unmoved(sent[i], got[i]), *got[i + 1 :]]
        other, _ = rule.reduce(Heard(replies, sent, np.ones(n), kids, kids), {}, at)
        moved.append(float(vector(sub(base, other)).norm()))
    assert max(moved) <= CLIP / n * (1 + 1e-9)
    if any(True for _ in leaves(got[0])):  # who sends nothing moves nothing
        assert max(moved) > 0.5 * CLIP / n  # the bound is reached, so this test can fail


def unmoved(sent: Tree, reply: Tree) -> Tree:
    """The reply of a device whose change is zero."""
    change, rest = parted(sent, reply)
    return rejoined(sent, zeros(change), rest)


def test_who_claims_protection_of_devices_and_who_does_not() -> None:
    links = {"cloud-device": {"privacy": PRIVATE}}
    why = {name: refused(name, links, trees(1.0, **HIERARCHY)["flat"]) for name in sorted(REGISTRY)}
    for name in (
        "fedavg",
        "hierfavg",
        "fedprox",
        "fedadam",
        "h-sgd",
        "permfl",
        "ditto",
        "apfl",
        "pfedme",
        "fedrep",
    ):
        assert why[name] == "", name
    for name, reason in {
        "jobfed": "beside the change",
        "fedamp": "takes no mean",
        "fedmd": "sends nothing up that is a change",
        "epflu": "from device to device",
        "ifca": "is a part of what it was sent",
        "mtfl": "params.1.weight, params.1.bias, params.1.running_mean and 1 more beside",
    }.items():
        assert re.search(reason, why[name]), (name, why[name])


def test_who_claims_protection_of_samples_and_who_does_not() -> None:
    why = {}
    for name in sorted(REGISTRY):
        algorithm, task = CASES[name], toy_task(norm=False)
        if name == "mocha":
            task = task_of(name)
        try:
            engine = make_engine("serial", algorithm, task, small_plan(), trees(1.0)["flat"])
        except InputError:
            continue
        data = engine.plan.one(0, algorithm, 0, 0)
        why[name] = refusal(algorithm, task, message_to(engine, 0), engine.own(0), data)
    for name in (
        "fedavg",
        "hierfavg",
        "fedprox",
        "fedadam",
        "scaffold",
        "ditto",
        "permfl",
        "fedrep",
        "fedamp",
        "cfl",
        "local",
    ):
        assert why[name] == "", (name, why[name])
    for name in ("jobfed", "apfl", "pfedme", "per-fedavg", "fedfomo", "mocha", "fd", "fedmd"):
        assert why[name], name


def test_example_level_engines_agree() -> None:
    plan, settings = small_plan(), trees(0.7)["3 tiers"]
    task = PrivateTask(toy_task(torch.nn.Tanh, norm=False), 0.5, 1.0)
    both = [
        trace(make_engine(kind, CASES["hierfavg"], task, plan, settings, MODES["lossy"].faults))
        for kind in ("serial", "vectorized")
    ]
    agree(*both)


@pytest.mark.parametrize(
    ("name", "tree", "links", "changes", "reason"),
    [
        ("fedavg", "flat", {"cloud-device": {"privacy": PRIVATE}}, {}, "weighs what it hears by samples"),
        ("hierfavg", "3 tiers", {"fog-device": {"privacy": {**PRIVATE, "noise_at": "cloud"}}}, HIERARCHY, "average by"),
        ("fedavg", "3 tiers", {"cloud-fog": {"privacy": PRIVATE}}, {"weighting": "children"}, "only hands on"),
        (
            "fedavg",
            "flat",
            {"cloud-device": {"privacy": {**PRIVATE, "noise_at": "child", "adaptive": {"quantile": 0.5}}}},
            HIERARCHY,
            "needs noise at the parent",
        ),
        (
            "fedavg",
            "3 tiers",
            {"fog-device": {"privacy": {**PRIVATE, "noise_at": "cloud", "adaptive": {"quantile": 0.5}}}},
            HIERARCHY,
            "does not hear",
        ),
        ("demlearn", "3 tiers", {"fog-device": {"privacy": PRIVATE}}, HIERARCHY, "remembers every child"),
        ("jobfed", "3 tiers", {"fog-device": {"secure": {"on": True}}}, HIERARCHY, "would see them"),
        ("scaffold", "flat", {"cloud-device": {"secure": {"on": True}}}, {}, "whose reply is missing"),
        ("fedamp", "flat", {"cloud-device": {"secure": {"on": True}}}, {}, "takes no mean|own reply"),
        (
            "fedavg",
            "flat",
            {"cloud-device": {"secure": {"on": True}, "reduce": {"rule": "median"}}},
            {},
            "which a secure sum hides",
        ),
        (
            "fedavg",
            "flat",
            {"cloud-device": {"privacy": PRIVATE, "reduce": {"rule": "median"}}},
            HIERARCHY,
            "another rule of the same nodes",
        ),
        ("fedavg", "flat", {"cloud-device": {"privacy": {**PRIVATE, "noise_at": "fog"}}}, HIERARCHY, "wanted 'child'"),
        (
            "fedavg",
            "flat",
            {"cloud-device": {"privacy": PRIVATE, "compress": {"kind": "topk"}}},
            HIERARCHY,
            "compress changes what was clipped",
        ),
        (
            "fedavg",
            "flat",
            {"cloud-device": {"secure": {"on": True}, "compress": {"kind": "topk"}}},
            {},
            "number by number",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(
    name: str, tree: str, links: dict[str, Any], changes: dict[str, Any], reason: str
) -> None:
    why = refused(name, links, trees(1.0, team_rounds=1, **changes)[tree])
    assert re.search(reason, why), why


def test_secure_sums_are_the_plain_mean_within_the_stated_error() -> None:
    settings = trees(1.0, **HIERARCHY)["3 tiers"]
    secure = {"fog-device": {"secure": {"on": True, "range": 4.0, "bits": 64}}}
    far = [
        by_name(trace(engine_of("serial", "hierfavg", settings, links, mode="full"), 2).engine)
        for links in ({}, secure)
    ]
    same("sums", *far, 1e-9)


def test_a_sum_of_too_few_replies_is_none_and_the_run_goes_on() -> None:
    settings = trees(1.0, **HIERARCHY)["flat"]
    links = {"cloud-device": {"secure": {"on": True, "threshold": 1.0}}}
    both = [trace(engine_of(kind, "fedavg", settings, links), 2) for kind in ("serial", "vectorized")]
    agree(*both)
    engine = both[0].engine
    assert all(log.lost[0] == engine.topology.devices - log.silent.get(0, 0) for log in both[0].logs)
    same("unmoved", engine.kept(0, 0)["params"], engine.tasks[0].init(), 0.0)
