"""Every algorithm, every tree: the serial and the vectorized engine do the same, to the byte and to rounding."""

import pytest

from laws.cases import CASES, VARIANTS, fits, subject, task_of
from laws.world import MODES, TREES
from tierfed.testing import laws

PLACES = [(name, tree) for name in CASES for tree in TREES if fits(name, tree)]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("name", "tree"), PLACES)
def test_engines_agree(name: str, tree: str, mode: str) -> None:
    laws.engines_agree(subject(name), tree, MODES[mode])


@pytest.mark.parametrize("name", CASES)
def test_engines_agree_with_dropout_layers(name: str) -> None:
    laws.engines_agree(subject(name), "4 tiers", MODES["lossy"], task_of(name, dropout=0.3), 2)


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
