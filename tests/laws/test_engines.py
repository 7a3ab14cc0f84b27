"""Every algorithm, every tree: the serial and the vectorized engine do the same, to the byte and to rounding."""

import pytest

from laws.cases import CASES, VARIANTS, fits, subject, task_of
from tierfed.testing import laws
from tierfed.testing.trees import MODES, TREES


def _places() -> list[tuple[str, str, str]]:
    """Every case on every tree with messages lost, which leaves out devices as well; with everybody, and with a part
    and dropout layers, every case too, each on a tree that changes from one case to the next.
    """
    out = []
    for number, name in enumerate(CASES):
        fitting = [tree for tree in TREES if fits(name, tree)]
        out += [(name, tree, "lossy") for tree in fitting]
        out += [(name, fitting[number % len(fitting)], "full"), (name, fitting[(number - 1) % len(fitting)], "partial")]
    return out


@pytest.mark.parametrize(("name", "tree", "mode"), _places())
def test_engines_agree(name: str, tree: str, mode: str) -> None:
    """A third round where it shows something new: a device of the flat tree is asked once a round, and clusters are
    formed anew after the second.
    """
    rounds = 3 if mode == "lossy" and tree in ("flat", "clusters") else 2
    task = task_of(name, dropout=0.3 if mode == "partial" else 0.0)
    laws.engines_agree(subject(name), tree, MODES[mode], task, rounds)


@pytest.mark.parametrize("name", CASES)
def test_engines_agree_in_float32(name: str) -> None:
    laws.float32_agrees(subject(name))


@pytest.mark.parametrize("name", CASES)
def test_chunks_do_not_matter(name: str) -> None:
    laws.chunks_do_not_matter(subject(name))


@pytest.mark.parametrize("name", [n for n in CASES if fits(n, "3 tiers")])
def test_engines_agree_while_devices_change_team(name: str) -> None:
    laws.moving_devices(subject(name))


@pytest.mark.parametrize("name", [n for n in CASES if n not in VARIANTS])
def test_states_keep_their_form(name: str) -> None:
    laws.states_keep_their_form(subject(name))
