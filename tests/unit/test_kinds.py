"""Which device trains which network: by name, by number, the rest; and what is said where that does not work out."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import tierfed
from tierfed.config import KindSettings, ModelSettings, from_table
from tierfed.errors import InputError
from tierfed.kinds import assign, labels
from tierfed.settings import table
from tierfed.setup import World, prepare

NAMES = tuple(f"d{i}" for i in range(6))


def kinds(*devices: Any) -> list[KindSettings]:
    return [KindSettings(name=f"net{k}", devices=d) for k, d in enumerate(devices)]


def world(*tables: dict[str, Any], **changes: Any) -> World:
    config = {
        "data": {"source": "watch", "train_fraction": 0.1},
        "model": {"kinds": list(tables)},
        "algorithm": {"name": "local"},
    }
    return prepare(tierfed.load_config(from_table(config), changes))


def test_names_numbers_and_the_rest() -> None:
    found = assign(kinds(("d4", "d1"), 2, None), NAMES, 0)
    assert found[[1, 4]].tolist() == [0, 0]
    assert np.bincount(found).tolist() == [2, 2, 2]


@given(seed=st.integers(0, 2**40), sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4), rest=st.booleans())
@settings(max_examples=25, deadline=None)
def test_everybody_has_one(seed: int, sizes: list[int], rest: bool) -> None:
    names = tuple(map(str, range(sum(sizes) + 3 * rest)))
    tables = kinds(*sizes, *([None] if rest else []))
    found = assign(tables, names, seed)
    assert np.bincount(found).tolist() == [*sizes, *([3] if rest else [])]
    assert np.array_equal(assign(tables, names, seed), found)


def test_the_seed_draws() -> None:
    drawn = {tuple(assign(kinds(3, None), NAMES, seed).tolist()) for seed in range(40)}
    assert len(drawn) > 10  # of 20


@pytest.mark.parametrize(
    ("devices", "message"),
    [
        ((4, 3), "ask for 7 devices, but only 6 are there"),
        ((7, None), "ask for 7 devices, but only 6 are there"),
        ((2, 3), "ask for 5 devices, but 6 are there; .*leave one table without `devices`"),
        ((("d1",), 3), "ask for 4 devices, but 6 are there"),
        ((None, None), r"model.kinds.0 \(net0\) and model.kinds.1 \(net1\) both take all the rest"),
        ((6, None), r"model.kinds.1 \(net1\) would be trained by no device"),
        ((("d7",), None), r"model.kinds.0 \(net0\) names the device 'd7'; .*'d"),
        (
            (("d1",), ("d2", "d1"), None),
            r"kinds.1 \(net1\) names the device 'd1', and model.kinds.0 \(net0\) too",
        ),
    ],
)
def test_what_does_not_work_out(devices: tuple[Any, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        assign(kinds(*devices), NAMES, 0)


def test_labels_tell_kinds_apart() -> None:
    three = tuple(KindSettings(name=name) for name in ("mlp", "cnn1d", "mlp"))
    assert labels(ModelSettings(kinds=three)) == ("mlp 1", "cnn1d", "mlp 2")


def test_a_world_of_two() -> None:
    made = world({"name": "mlp", "options": {"hidden": [8]}, "devices": 5}, {"name": "auto"})
    assert made.kinds is not None
    assert (len(made.tasks), made.kind_names, int((made.kinds == 0).sum())) == (2, ("mlp", "auto"), 5)
    assert [made.task_of(i) is made.tasks[k] for i, k in enumerate(made.kinds)] == [True] * 20
    assert made.engine_name == "vectorized"
    assert world({"name": "mlp"}).kinds is None


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"name": "lenet16"}, r"^model.kinds.1 \(lenet16\): model 'lenet16' does not fit"),
        ({"name": "mpl"}, r"^model.kinds.1 \(mpl\): unknown model 'mpl'; did you mean 'mlp'"),
        ({"name": "mlp", "options": {"hiden": [3]}}, r"^model.kinds.1 \(mlp\): .* has no option 'hiden'"),
        (
            {"name": "unit.test_kinds:ThreeOutputs"},
            r"^model.kinds.1 \(unit.*\): .*an output of shape \[2, 3\], want",
        ),
    ],
)
def test_a_kind_that_does_not_fit_is_named(table: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        world({"name": "mlp", "devices": 3}, table)


class ThreeOutputs(nn.Module):
    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.head = nn.Linear(shape[0] * shape[1], 3)

    def forward(self, x: Any) -> Any:
        return self.head(x.flatten(1))


def test_settings_of_a_table_are_named() -> None:
    tables: dict[str, Any] = {"model": {"kinds": [{"name": "mlp"}, {"name": "mlp", "device": 3}]}}
    with pytest.raises(InputError, match=r"^model.kinds.1 has no setting 'device'; did you mean 'devices'\?$"):
        from_table(tables)
    with pytest.raises(InputError, match=r"^model.kinds.0.devices = 0: "):
        from_table({"model": {"kinds": [{"name": "mlp", "devices": 0}]}})
    with pytest.raises(InputError, match=r"^model.kinds.0.name: field required"):
        from_table({"model": {"kinds": [{"devices": 4}]}})


def test_one_way_to_name_the_networks() -> None:
    two = ({"name": "mlp", "devices": 3}, {"name": "cnn1d"})
    with pytest.raises(InputError, match=r"\[\[model.kinds\]\] and model.name = 'mlp'"):
        world(*two, **{"model.name": "mlp"})
    config = tierfed.load_config({"data": {"source": "watch"}, "model": {"kinds": list(two)}})
    with pytest.raises(InputError, match=r"\[\[model.kinds\]\] and a module at hand"):
        prepare(config, module=nn.Linear(3, 3))


def test_a_config_without_kinds_is_what_it_was() -> None:
    """A run that was begun before there were kinds has the same fingerprint, and goes on."""
    tables = table(from_table({}))
    assert tables["model"].keys() == {"name", "loss", "weight_decay", "options"}
    assert "public_path" not in tables["data"]


def test_teams_by_models_need_one_model() -> None:
    two = ({"name": "mlp", "devices": 3}, {"name": "cnn1d"})
    with pytest.raises(InputError, match=r"topology.teams = 'ifca' forms teams by models"):
        world(*two, **{"topology.teams": "ifca", "topology.fogs": 2})
