"""Configs: files, presets, tables and overrides become one checked config, and back."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tierfed.config import Config, assign, from_table, load_config, presets, read, to_toml
from tierfed.errors import InputError
from tierfed.settings import table


def test_defaults_survive_the_way_to_toml_and_back() -> None:
    assert from_table(tomllib.loads(to_toml(Config()))) == Config()


@given(
    rounds=st.integers(1, 10**6),
    seed=st.integers(0, 2**31),
    batch=st.one_of(st.integers(1, 500), st.just("all")),
    participation=st.one_of(
        st.integers(1, 50), st.floats(0.01, 1.0), st.lists(st.floats(0.01, 1.0), min_size=1).map(tuple)
    ),
    classes=st.lists(st.text(max_size=5)).map(tuple),
    lr=st.floats(1e-6, 10),
)
@settings(max_examples=25, deadline=None)
def test_any_config_survives(
    rounds: int, seed: int, batch: Any, participation: Any, classes: tuple[str, ...], lr: float
) -> None:
    config = from_table(
        {
            "run": {"rounds": rounds, "seed": seed},
            "data": {"batch": batch, "columns": {"classes": classes}},
            "topology": {"participation": participation},
            "algorithm": {"name": "fedavg", "lr": lr},
            "grid": {"algorithms": [{"name": "local"}], "seeds": [seed]},
        }
    )
    assert (config.run.rounds, config.data.batch, config.topology.participation) == (rounds, batch, participation)
    assert from_table(tomllib.loads(to_toml(config))) == config
    assert from_table(table(config)) == config


@pytest.mark.parametrize("name", presets())
def test_presets_are_valid(name: str) -> None:
    assert load_config(name).algorithm["name"]


def test_presets_are_found_by_name() -> None:
    assert presets() == ["fmnist-shards", "har", "quickstart"]
    assert read("har")["data"]["source"] == "uci_har"


def test_load_config_takes_whatever_describes_one(tmp_path: Path) -> None:
    path = tmp_path / "my.toml"
    path.write_text("[run]\nrounds = 7\n")
    tables = {"run": {"rounds": 7}}
    assert load_config(path) == load_config(str(path)) == load_config(tables) == load_config(from_table(tables))


@pytest.mark.parametrize("overrides", [{"run.rounds": 2, "algorithm.lr": 0.5}, ["run.rounds=2", "algorithm.lr=0.5"]])
def test_overrides_win(overrides: Any) -> None:
    tables = {"run": {"rounds": 7, "seed": 3}, "algorithm": {"name": "fedavg", "lr": 0.1}}
    config = load_config(tables, overrides)
    assert (config.run.rounds, config.run.seed, config.algorithm["lr"]) == (2, 3, 0.5)
    assert tables == {"run": {"rounds": 7, "seed": 3}, "algorithm": {"name": "fedavg", "lr": 0.1}}


def test_overrides_that_are_a_text_are_refused() -> None:
    with pytest.raises(InputError, match="wanted a dict or a list"):
        load_config({}, "run.rounds=2")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3), ("0.5", 0.5), ("true", True), ("[1, 2]", [1, 2]), ("word", "word"), ("'3'", "3"), ("a=b", "a=b"),
        ("", ""),
    ],
)  # fmt: skip
def test_values_are_toml_and_bare_words_are_strings(text: str, value: Any) -> None:
    assert assign({}, [f"data.path={text}"]) == {"data": {"path": value}}


def test_a_deep_key_makes_its_tables() -> None:
    assert assign({"data": {"batch": 2}}, ["data.split.val=0.1"]) == {"data": {"batch": 2, "split": {"val": 0.1}}}


def test_another_algorithm_drops_what_only_the_former_one_has() -> None:
    tables = {"algorithm": {"name": "jobfed", "lr": 0.3, "alpha": 0.2}}
    assert assign(tables, ["algorithm.name=fedavg"]) == {"algorithm": {"name": "fedavg", "lr": 0.3}}
    assert assign(tables, ["algorithm.name=jobfed"]) == tables
    later = assign(tables, ["algorithm.name=fedprox", "algorithm.mu=0.5"])
    assert later == {"algorithm": {"name": "fedprox", "lr": 0.3, "mu": 0.5}}


@pytest.mark.parametrize("text", ["rounds=3", "run.rounds", ".rounds=3", "run..rounds=3", "=3", "run.rounds.deep=3"])
def test_assignments_that_make_no_sense(text: str) -> None:
    with pytest.raises(InputError, match="--set"):
        assign({"run": {"rounds": 1}}, [text])


def test_one_sentence_for_a_setting_of_several_types() -> None:
    with pytest.raises(InputError) as caught:
        from_table({"topology": {"fogs": "x"}})
    message = str(caught.value)
    assert message.startswith("topology.fogs = 'x': input should be 'auto', or a valid integer")
    assert message.count("topology.fogs") == 1
    assert "\n" not in message


def test_every_wrong_setting_is_named() -> None:
    with pytest.raises(InputError) as caught:
        from_table({"run": {"rounds": 0, "sed": 1}, "data": {"splitt": {}}})
    for part in ("run.rounds = 0", "did you mean 'seed'?", "did you mean 'split'?"):
        assert part in str(caught.value)


def test_algorithm_names_are_texts() -> None:
    for tables in ({"algorithm": {"name": 3}}, {"grid": {"algorithms": [{"name": 3}]}}):
        with pytest.raises(InputError, match=r"algorithm\.name = 3: wanted a name"):
            from_table(tables)
