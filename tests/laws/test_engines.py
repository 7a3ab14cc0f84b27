"""Every algorithm, every tree: the serial and the vectorized engine do the same, to the byte and to rounding."""

import pytest

from laws.cases import CASES, VARIANTS, fits, subject, task_of
from tierfed.testing import laws
from tierfed.testing.trees import MODES, TREES


def _places() -> list[tuple[str, str, str]]:
    """Every case on every tree with messages lost, which leaves out devices as well; in the other modes every case too,
    on trees that change from one case to the next: on two with everybody, on one with a part.
    """
    out = []
    for number, name in enumerate(CASES):
        fitting = [tree for tree in TREES if fits(name, tree)]
        turned = fitting[number % len(fitting) :] + fitting[: number % len(fitting)]
        out += [(name, tree, "lossy") for tree in fitting]
        out += [(name, tree, "full") for tree in turned[:2]]
        out.append((name, turned[-1], "partial"))
    return out


@pytest.mark.parametrize(("name", "tree", "mode"), _places())
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
