"""Names of processes, and what a certificate makes of them."""

from urllib.parse import unquote

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tierfed.deploy import certificates
from tierfed.deploy.identity import identity_of
from tierfed.deploy.names import ROAMING, Node, check_name, folder_name, from_uri, moving, tree_nodes, uri
from tierfed.errors import InputError
from tierfed.topology import TopologySettings, build_topology

NOW = certificates.utc_now()
KEY = certificates.new_key()
CA = certificates.new_authority(KEY, 1, NOW)


def usable(name: str) -> bool:
    try:
        check_name(name, "device")
    except (InputError, UnicodeEncodeError):
        return False
    return True


names = st.text(min_size=1, max_size=60).filter(usable)
fogs = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?", fullmatch=True).filter(lambda s: s != "cloud")


@settings(max_examples=40, deadline=None)
@given(name=names, parent=st.one_of(fogs, st.just(ROAMING)))
@example(name="a/b?parent=fog-9#x%2F", parent="fog-0")
@example(name="..", parent="fog-0")
@example(name="日本" * 20, parent="fog-0")
def test_a_certificate_keeps_a_name(name: str, parent: str) -> None:
    made = certificates.certificate_for(
        KEY.public_key(), CA, KEY, tier="device", name=name, parent=parent, days=9, now=NOW
    )
    found = identity_of(certificates.pem(made))
    assert (found.tier, found.name, found.parent) == ("device", name, parent)
    assert certificates.signed_by(made, CA)


@settings(deadline=None)
@given(name=names)
@example(name="..")
@example(name=".hidden")
@example(name="a/../../b")
def test_a_folder_has_room_for_a_name(name: str) -> None:
    folder = folder_name(name)
    assert unquote(folder) == name  # so two names have two folders
    assert "/" not in folder
    assert not folder.startswith(".")
    assert folder.isascii()


@given(st.one_of(st.text(), st.text().map("tierfed://device/{}".format), st.text().map("tierfed://fog/a?{}".format)))
def test_what_is_no_name_is_said_to_be_none(text: str) -> None:
    try:
        tier, name, parent = from_uri(text)
    except InputError:
        return
    assert uri(tier, name, parent) == text


def test_a_flat_tree() -> None:
    topology = build_topology(TopologySettings(), np.full(2, 5))
    assert tree_nodes(topology, ["ann", "bob"]) == (
        Node(name="cloud", tier="cloud"),
        Node(name="ann", tier="device", parent="cloud", level=1, index=0),
        Node(name="bob", tier="device", parent="cloud", level=1, index=1),
    )


def test_a_deep_tree() -> None:
    """Two regions over three fogs over four devices in order: 0, 1 | 2 | 3."""
    topology = build_topology(TopologySettings(fogs=(2, 3), teams="sequential"), np.full(4, 5))
    found = [(n.name, n.tier, n.parent, n.level, n.index) for n in tree_nodes(topology, ["a", "b", "c", "d"])]
    assert found == [
        ("cloud", "cloud", "", 0, 0),
        ("region-0", "fog", "cloud", 1, 0),
        ("region-1", "fog", "cloud", 1, 1),
        ("fog-0", "fog", "region-0", 2, 0),
        ("fog-1", "fog", "region-0", 2, 1),
        ("fog-2", "fog", "region-1", 2, 2),
        ("a", "device", "fog-0", 3, 0),
        ("b", "device", "fog-0", 3, 1),
        ("c", "device", "fog-1", 3, 2),
        ("d", "device", "fog-2", 3, 3),
    ]


def test_clusters_live_on_their_fog() -> None:
    topology = build_topology(TopologySettings(fogs=2, clusters=2, teams="sequential"), np.full(4, 5))
    found = [(n.name, n.parent) for n in tree_nodes(topology, ["a", "b", "c", "d"])]
    assert found == [
        ("cloud", ""),
        ("fog-0", "cloud"),
        ("fog-1", "cloud"),
        ("a", "fog-0"),
        ("b", "fog-0"),
        ("c", "fog-1"),
        ("d", "fog-1"),
    ]


def test_a_name_is_that_of_one_node() -> None:
    topology = build_topology(TopologySettings(fogs=2, teams="sequential"), np.full(2, 5))
    with pytest.raises(InputError, match="'fog-1' is the name of a fog and of a device"):
        tree_nodes(topology, ["ann", "fog-1"])
    with pytest.raises(InputError, match="'cloud' cannot be the name of a device"):
        tree_nodes(topology, ["ann", "cloud"])
    with pytest.raises(InputError, match="'ann' is the name of a device and of a device"):
        tree_nodes(topology, ["ann", "ann"])


def test_teams_that_are_found_in_a_run() -> None:
    assert [moving(teams) for teams in ("ifca", "cfl", "natural", "random")] == [True, True, False, False]
