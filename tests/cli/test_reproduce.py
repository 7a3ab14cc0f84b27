"""`tierfed reproduce`: the studies are valid, a tiny one runs end to end, messages weigh what pFedLA's Table 3 says."""

import json
import math
import re
import tomllib
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import linear

from cli.shell import Shell
from tierfed import cli
from tierfed.algorithms import known, make
from tierfed.config import from_table
from tierfed.data import DATASETS, sources
from tierfed.data.layout import form
from tierfed.data.partition import KINDS
from tierfed.engine.evaluate import message_to
from tierfed.errors import InputError
from tierfed.models import build_model
from tierfed.reproduce import (
    STUDIES,
    Case,
    Line,
    Options,
    Study,
    as_dict,
    left_out,
    pfedla_table3,
    pfedla_tables,
    reproduce,
    runner,
    scale_text,
)
from tierfed.reproduce.networks import CenteredRegression
from tierfed.reproduce.page import cells, command, markdown, rankings, shown
from tierfed.reproduce.runner import Entry, Outcome, config_of
from tierfed.reproduce.study import accuracy, merged
from tierfed.result import Progress
from tierfed.setup import prepare
from tierfed.store import MemoryStore

LABELS, EACH = 10, 120
SUBJECTS = 30
CASES = [
    pytest.param(s, c, id=f"{s.name}/{c.key}")
    for s in STUDIES.values()
    for c in s.cases
    if c.work is not None or c.algorithm in known()  # what another version has may have settings of its own
]
SHAPES = {"cifar": (3, 32, 32), "uci_har": (9, 50), "mobiact": (6, 200)}
TINY = ("reproduce", "permfl-table1", "--scale", "0.0025", "--data-dir", "data", "--out", "tried")


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: Any) -> None:
        raise InputError("nothing can be fetched here")

    monkeypatch.setattr(sources, "fetch", refuse)
    monkeypatch.setattr(sources, "DEBIAN_FASHION_MNIST", tmp_path / "nowhere")


@pytest.fixture
def data(tmp_path: Path, no_network: None) -> Path:
    """A data directory with an MNIST of its own: 120 pictures of each digit, one bright row each; no Fashion-MNIST."""
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(LABELS), EACH)
    x = rng.integers(0, 60, (len(y), 28, 28), dtype=np.uint8)
    x[np.arange(len(y)), 2 * y + 3] = 250
    test = np.arange(len(y)) % 6 == 0
    (tmp_path / "data" / "mnist").mkdir(parents=True)
    split = {"x_train": x[~test], "y_train": y[~test], "x_test": x[test], "y_test": y[test]}
    np.savez(tmp_path / "data" / "mnist" / "mnist.npz", **split)
    return tmp_path / "data"


def tiny(data: Path, scale: float = 0.0025, methods: tuple[str, ...] = ("fedavg",), **more: Any) -> Options:
    return Options(scale=scale, data_dir=str(data), methods=methods, **more)


def found(outcome: Outcome, data: str = "MNIST") -> dict[tuple[str, str], Entry]:
    return {(e.line.method, e.line.quantity): e for e in outcome.entries if e.line.data == data}


class TestStudies:
    @pytest.mark.parametrize(("study", "case"), CASES)
    def test_every_config_is_valid(self, study: Any, case: Case) -> None:
        config = config_of(case, 3, Options(), Path("there"))
        assert config.run.seed == 3
        assert config.run.out == str(Path("there") / f"{case.key}-s3")
        assert config.data.source in DATASETS
        assert config.data.partition.kind in KINDS
        settings = {k: v for k, v in config.algorithm.items() if k != "name"}
        if case.algorithm in known():
            make(case.algorithm, settings)
        shape = SHAPES.get(case.source.partition("1")[0], (1, 28, 28))
        shape = (3, *form(shape[1])) if config.data.layout == "bitmap" else shape
        if config.model.name != "auto":
            build_model(config.model.name, shape, LABELS, config.model.options, 0)

    @pytest.mark.parametrize("study", STUDIES.values(), ids=lambda s: s.name)
    def test_lines_and_cases_belong_together(self, study: Any) -> None:
        keys = [c.key for c in study.cases]
        assert len(set(keys)) == len(keys)
        assert {line.case for line in study.lines if line.read} == set(keys)
        for line in study.lines:
            assert (line.read is None) != (line.count is None)
            assert bool(line.source) == (line.paper is not None)
        algorithms = {c.key: c.algorithm for c in study.cases}
        assert [line for line in study.lines if line.read and algorithms[line.case] != line.algorithm] == []

    def test_permfl_is_run_as_published(self) -> None:
        (case,) = [c for c in STUDIES["permfl-table1"].cases if c.key == "mnist-permfl"]
        config = config_of(case, 0, Options(), Path())
        settings = {"lr": 0.01, "steps": 20, "lam": 0.5, "gamma": 1.5, "beta": 0.6, "eta": 0.03}
        assert config.algorithm == {"name": "permfl", **settings}
        assert (config.run.rounds, config.topology.team_rounds, config.topology.fogs) == (400, 10, 4)
        assert (config.data.batch, config.data.partition.devices, config.data.partition.classes) == (124, 40, 2)

    def test_jobfed_has_no_published_number(self) -> None:
        assert {line.paper for line in STUDIES["jobfed-partitions"].lines} == {None}
        assert "No accuracies" in STUDIES["jobfed-partitions"].notes[0]

    def test_scale_is_a_share_of_the_rounds(self) -> None:
        (case,) = [c for c in STUDIES["permfl-table1"].cases if c.key == "mnist-permfl"]
        rounds = [config_of(case, 0, Options(scale=s), Path()).run.rounds for s in (1.0, 0.25, 0.0001)]
        assert rounds == [400, 100, 1]

    def test_listed(self, shell: Shell) -> None:
        assert [s["name"] for s in json.loads(shell.good("reproduce", "--json"))] == list(STUDIES)
        assert "permfl-table1" in shell.good("reproduce")


@pytest.fixture
def activities(tmp_path: Path, no_network: None) -> Path:
    """A data directory with a UCI HAR of its own: 30 subjects, 200 readings of each activity, its number their mean."""
    rng = np.random.default_rng(0)
    label, subject = (a.ravel() for a in np.meshgrid(np.arange(6), np.arange(SUBJECTS)))
    x = rng.normal(np.repeat(label, 200)[:, None], 1.0, (200 * len(label), 9)).astype(np.float32)
    (tmp_path / "data" / "uci_har").mkdir(parents=True)
    np.savez(
        tmp_path / "data" / "uci_har" / "uci_har.npz",
        x=x,
        length=np.full(len(label), 200),
        y=label,
        subject=subject + 1,
        official_test=np.zeros(len(label), np.int64),
    )
    return tmp_path / "data"


class TestPerFit:
    def test_a_tiny_one(self, shell: Shell, activities: Path) -> None:
        """A round of FTL with both networks, and a classic baseline."""
        options = ("--scale", "0.005", "--methods", "cknn,ftl-3nn,ftl-cnn", "--seeds", "3", "--jobs", "1")
        said = json.loads(shell.good("reproduce", "perfit", *options, "--data-dir", "data", "--json"))
        rows = {(r["data"], r["method"], r["quantity"]): r for r in said["rows"]}
        har = "UCI HAR by subject"
        for method in ("ckNN", "FL-3NN", "FTL-3NN", "FL-CNN", "FTL-CNN"):
            assert 0 < rows[har, method, "accuracy"]["ours"] <= 100
        assert rows[har, "ckNN", "accuracy"]["ours"] > 90  # means of six are far apart
        # a dense layer from 300 numbers, and one from 32 after the convolutions, for six activities
        dense = 300 * 400 + 400 + 400 * 100 + 100 + 100 * 6 + 6
        folded = 896 + 4624 + 1160 + 32 * 128 + 128 + 128 * 6 + 6
        assert rows[har, "FTL-3NN", "payload per round, numbers"]["ours"] == dense
        assert rows[har, "FTL-CNN", "payload per round, numbers"]["ours"] == folded
        assert rows["MobiAct", "FTL-CNN", "accuracy"]["missing"].startswith("skipped: mobiact is not here")
        assert rows[har, "cSVM", "accuracy"]["missing"] == "not asked for"
        assert said["rounds"] == {
            "uci_har-cknn-s3": [1, 1],
            "uci_har-ftl-3nn-s3": [1, 200],
            "uci_har-ftl-cnn-s3": [1, 200],
        }
        page = Path("runs/perfit/perfit.md").read_text("utf-8")
        assert "--seeds 3 " in page
        assert "| Tuning helps" in page
        assert "not checked: needs c3NN, cCNN, cSVM, cRF" in page
        assert Path("runs/perfit/perfit-uci_har-fig7.svg").exists()

    def test_five_seeds(self) -> None:
        study = STUDIES["perfit"]
        outcome = Outcome(
            study=study, options=Options(seeds=study.seeds), entries=(), rounds={}, seconds={}, finished=True
        )
        assert len(study.seeds) == 5
        assert command(outcome) == "tierfed reproduce perfit"


def outcome_of(entries: list[Entry], options: Options = Options(), **more: Any) -> Outcome:  # noqa: B008
    study = Study(name="s", paper="p", compared="c.", unit="%", cases=(), lines=(), notes=(), ranked=("PM",))
    rest: dict[str, Any] = {"rounds": {}, "seconds": {}, "finished": True, **more}
    return Outcome(study=study, options=options, entries=tuple(entries), **rest)


def entry(method: str, paper: float | None, ours: float | None, quantity: str = "PM", missing: str = "") -> Entry:
    line = Line(data="D", method=method, quantity=quantity, algorithm=method, case="c", paper=paper)
    return Entry(line=line, values=() if ours is None else (ours,), missing=missing)


class TestPage:
    def test_rankings(self) -> None:
        """Ranks 1 2 3 4 against 2 1 3 4: rho = 1 - 6 (1 + 1) / (4 (16 - 1)) = 0.8."""
        entries = [entry("a", 40, 30), entry("b", 30, 35), entry("c", 20, 9), entry("d", 10, 2)]
        others = [entry("a", 1, 2, "GM"), entry("e", None, 99), entry("f", 99, None)]
        (row,) = rankings(outcome_of([*entries, *others]))
        assert row[:4] == ("D", "PM", "a > b > c > d", "b > a > c > d")
        assert row[4] == pytest.approx(0.8)
        assert "| a > b > c > d | b > a > c > d | +0.80 |" in markdown(outcome_of(entries))
        assert rankings(outcome_of(entries[:3])) == []

    def test_what_was_not_asked_for_is_one_sentence(self) -> None:
        outcome = outcome_of([entry("a", 1, 2), entry("b", 1, None, missing=runner.NOT_ASKED)])
        assert [e.line.method for e in shown(outcome)] == ["a"]
        assert "\n\n1 more lines of the study were not asked for" in markdown(outcome)
        assert left_out(outcome_of([entry("a", 1, 2)])) == ""

    def test_fewer_local_epochs_are_said(self) -> None:
        outcome = outcome_of([], Options(local=0.5), rounds={"a": (3, 3)})
        assert "a share of 0.5 of the local epochs" in scale_text(outcome)
        assert "--local-scale 0.5" in command(outcome)
        assert "All rounds" in scale_text(outcome_of([], rounds={"a": (3, 3)}))


class TestPFedLA:
    def test_published_numbers_are_found(self) -> None:
        assert pfedla_tables.published(1, "fedbn", "CIFAR10", 10) == (59.36, 0.92)
        assert pfedla_tables.published(1, "pfedla", "FMNIST", 10) == (94.34, 0.29)
        assert pfedla_tables.published(2, "heurpfedla", "CIFAR100", 100) == (48.72, 1.75)

    def test_gradient_steps_of_all_methods_are_alike(self) -> None:
        """Batches times gradients per batch of a round, in epochs: 10 with ten clients, 20 with a hundred."""
        for case in STUDIES["pfedla-table1"].cases:
            settings = {k: v for k, v in case.tables["algorithm"].items() if k != "name"}
            algorithm = make(case.algorithm, settings)
            assert algorithm.passes * settings.get("inner", 1) == {10: 10, 100: 20}[case.clients]

    def test_numbers_of_clients_are_chosen_and_epochs_scaled(self) -> None:
        study = STUDIES["pfedla-table1"]
        case = next(c for c in study.cases if (c.method, c.clients) == ("fedrep", 10))
        config = config_of(case, 0, Options(local=0.5, scale=0.0834), Path())
        assert (config.algorithm["epochs"], config.algorithm["head_epochs"], config.run.rounds) == (2, 2, 50)
        reasons = {c.clients: runner._reason(c, Options(clients=(10,)), {c.method}) for c in study.cases}
        assert reasons == {10: "", 100: runner.NOT_ASKED}


class TestRun:
    def test_end_to_end(self, shell: Shell, data: Path) -> None:
        said = json.loads(shell.good(*TINY, "--methods", "fedavg,permfl", "--seeds", "0,1", "--json"))
        assert (said["study"], said["scaled"], said["seeds"]) == ("permfl-table1", True, [0, 1])
        rows = {(r["data"], r["method"], r["quantity"]): r for r in said["rows"]}
        ours = rows["MNIST", "FedAvg", "GM"]
        assert len(ours["values"]) == 2
        assert ours["ours"] == pytest.approx(np.mean(ours["values"]))
        assert ours["difference"] == pytest.approx(ours["ours"] - 84.87)
        assert 0 < ours["ours"] <= 100
        assert rows["MNIST", "PerMFL", "PM"]["missing"] is None
        skipped = rows["Fashion-MNIST", "FedAvg", "GM"]
        assert skipped["ours"] is None
        assert skipped["missing"] == "skipped: nothing can be fetched here"
        assert rows["MNIST", "Ditto", "GM"]["missing"] == "not asked for"
        assert said["rounds"]["mnist-permfl-s1"] == [1, 400]
        assert said["seconds"].keys() == said["rounds"].keys()
        assert {p.name for p in Path("tried").iterdir() if p.is_dir()} == {
            f"mnist-{method}-s{seed}" for method in ("fedavg", "permfl") for seed in (0, 1)
        }
        assert said["pages"] == [str(Path("tried") / "permfl-table1.md")]
        assert not Path("docs").exists()

    def test_the_page(self, shell: Shell, data: Path) -> None:
        arguments = (*TINY, "--methods", "fedavg", "--write-docs")
        said = shell.good(*arguments)
        assert "SCALED DOWN: 1 of 400 rounds" in said
        assert "page: docs/reproduction/permfl-table1.md" in said
        page = Path("docs/reproduction/permfl-table1.md")
        text = page.read_text("utf-8")
        assert text == Path("tried/permfl-table1.md").read_text("utf-8")
        assert "**SCALED DOWN: 1 of 400 rounds" in text
        assert "| MNIST | FedAvg | GM | 84.87 ± 0.054 |" in text
        assert "third-party transcription" in text
        assert "| skipped: no data |" in text
        assert "nothing can be fetched here" not in text
        assert "nothing can be fetched here" in said
        assert "tierfed reproduce permfl-table1 --scale 0.0025 --methods fedavg\n" in text
        (block,) = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
        common = tomllib.loads(block)
        assert from_table(common).data.batch == 124
        assert common["data"]["source"] == "mnist"  # of what was run, all runs have it
        assert "algorithm" not in common
        own = '| `mnist-fedavg` | `algorithm.lr = 0.01`; `algorithm.steps = 20`; `algorithm.name = "fedavg"` |'
        assert own in text
        page.write_text(text + "\n## Reading the differences\n\nBecause.\n", "utf-8")
        shell.good(*arguments)
        assert page.read_text("utf-8").endswith("\n## Reading the differences\n\nBecause.\n")
        assert "Because" not in Path("tried/permfl-table1.md").read_text("utf-8")

    def test_what_is_finished_is_not_trained_again_and_what_is_short_goes_on(self, data: Path, tmp_path: Path) -> None:
        study, folder = STUDIES["permfl-table1"], tmp_path / "tried"
        once = reproduce(study, folder, tiny(data))
        told: list[Progress] = []
        assert as_dict(reproduce(study, folder, tiny(data), told.append)) == as_dict(once)
        assert told == []
        longer = reproduce(study, folder, tiny(data, scale=0.005), told.append)
        assert [p.round for p in told] == [2]
        whole = reproduce(study, tmp_path / "whole", tiny(data, scale=0.005))
        assert as_dict(longer)["rows"] == as_dict(whole)["rows"]
        assert longer.rounds == {"mnist-fedavg-s0": (2, 400)}
        with pytest.raises(InputError, match="has trained 2 rounds already"):
            reproduce(study, folder, tiny(data))

    def test_stopped_and_gone_on_with(self, data: Path, tmp_path: Path) -> None:
        study, options = STUDIES["permfl-table1"], tiny(data, scale=0.0075)

        def stop(progress: Progress) -> None:
            if progress.round == 1:
                raise KeyboardInterrupt

        part = reproduce(study, tmp_path / "a", options, stop)
        assert not part.finished
        assert {e.missing for e in part.entries} == {"not finished"}
        told: list[Progress] = []
        rest = reproduce(study, tmp_path / "a", options, told.append)
        assert [p.round for p in told] == [2, 3]
        assert rest.finished
        assert as_dict(rest)["rows"] == as_dict(reproduce(study, tmp_path / "b", options))["rows"]

    def test_killed_before_the_first_file_and_after_the_last_commit(self, data: Path, tmp_path: Path) -> None:
        study, path = STUDIES["permfl-table1"], tmp_path / "tried" / "mnist-fedavg-s0"
        path.mkdir(parents=True)
        (path / ".config.toml.1234.tmp").write_text("half", "utf-8")
        once = reproduce(study, path.parent, tiny(data))
        (path / "metrics.parquet").unlink()
        assert as_dict(reproduce(study, path.parent, tiny(data)))["rows"] == as_dict(once)["rows"]
        assert found(once)["FedAvg", "GM"].values != ()

    def test_another_setting_in_the_folder(self, data: Path, tmp_path: Path) -> None:
        study, folder = STUDIES["permfl-table1"], tmp_path / "tried"
        reproduce(study, folder, tiny(data))
        config = folder / "mnist-fedavg-s0" / "config.toml"
        config.write_text(config.read_text("utf-8").replace("batch = 124", "batch = 100"), "utf-8")
        with pytest.raises(InputError, match="is another setting than what shall run here"):
            reproduce(study, folder, tiny(data))

    def test_a_method_that_is_not_there(self, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(runner, "known", lambda: {"fedavg": known()["fedavg"]})
        rows = found(reproduce(STUDIES["permfl-table1"], tmp_path / "tried", tiny(data)))
        assert rows["PerMFL", "GM"].missing == "not available: no algorithm 'permfl' in this version"
        assert rows["FedAvg", "GM"].missing == ""

    def test_ctrl_c(self, shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupted(*_: Any) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(cli, "reproduce", interrupted)
        code, out, err = shell(*TINY)
        assert (code, out) == (130, "")
        assert err == "stopped; the same command goes on, with the runs in tried\n"

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (("permfl-tabel1",), "did you mean 'permfl-table1'?"),
            (("permfl-table1", "--methods", "fedavgg"), "did you mean 'fedavg'?"),
            (("permfl-table1", "--scale", "0"), "wanted a share of the rounds"),
            (("permfl-table1", "--scale", "1.5"), "wanted a share of the rounds"),
            (("permfl-table1", "--scale", "nan"), "wanted a share of the rounds"),
            (("permfl-table1", "--seeds", "x"), "wanted whole numbers"),
            (("permfl-table1", "--seeds", "1,1"), "wanted different whole numbers"),
            (("permfl-table1", "--out", "toy.npz"), "toy.npz"),
        ],
    )
    def test_bad_input(self, shell: Shell, arguments: tuple[str, ...], said: str) -> None:
        assert said in shell.bad("reproduce", *arguments)


class TestNumbers:
    LINE = Line(data="D", method="M", quantity="Q", algorithm="fedavg", paper=80.5, source="Table 9")

    def test_mean_deviation_and_difference(self) -> None:
        """80 and 82: mean 81, deviation sqrt(((-1)^2 + 1^2) / 1); 81 - 80.5 = 0.5"""
        entry = Entry(line=self.LINE, values=(80.0, 82.0))
        assert (entry.ours, entry.difference) == (81.0, 0.5)
        assert entry.std == pytest.approx(math.sqrt(2))
        assert cells(entry) == ("D", "M", "Q", "80.50", "81.00 ± 1.41", "+0.50", "")

    def test_nothing_found(self) -> None:
        assert cells(Entry(line=self.LINE, missing="why"))[3:] == ("80.50", "–", "–", "why")

    def test_accuracy_of_a_model_that_is_not_there(self) -> None:
        class Run:
            models = ("global",)

            def statistics(self, model: str) -> dict[str, float]:
                return {"weighted": 0.25}

        run: Any = Run()
        assert accuracy("global")(run) == 25.0
        assert math.isnan(accuracy("team")(run))

    def test_tables_on_top_of_each_other(self) -> None:
        assert merged({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"c": 4}, "e": {}}) == {
            "a": {"b": 1, "c": 4},
            "d": 3,
            "e": {},
        }

    def test_the_command_that_repeats(self) -> None:
        options = Options(scale=0.5, seeds=(1, 2), methods=("a", "b"), accuracy=True)
        study = STUDIES["pfedla-table3"]
        outcome = Outcome(study=study, options=options, entries=(), rounds={}, seconds={}, finished=True)
        assert command(outcome) == "tierfed reproduce pfedla-table3 --scale 0.5 --seeds 1,2 --methods a,b --accuracy"
        assert "Nothing was trained." in markdown(outcome)

    def test_centered_regression(self) -> None:
        """W (2 x - 1) + b and its gradients."""
        net = CenteredRegression((1, 2, 3), 4)
        x = torch.rand(5, 1, 2, 3, generator=torch.Generator().manual_seed(0))
        w, b = (p.detach().clone().requires_grad_() for p in (net.fc.weight, net.fc.bias))
        plain = linear(2 * x.flatten(1) - 1, w, b)
        torch.testing.assert_close(net(x), plain)
        net(x).square().sum().backward()
        plain.square().sum().backward()
        torch.testing.assert_close(net.fc.weight.grad, w.grad)
        torch.testing.assert_close(net.fc.bias.grad, b.grad)


# weights and bias of each layer: 5 x 5 kernels, a batch norm after each convolution of the second network
SIZES = {
    "lenet16_28": {"conv1": 416, "conv2": 12_832, "fc1": 61_560, "fc2": 10_164, "fc3": 850},
    "lenet16_bn": {"conv1": 1_216, "bn": 96, "conv2": 12_832, "fc1": 96_120, "fc2": 10_164, "fc3": 850},
}
ROWS = [
    pytest.param(network, retained, mbytes, id=f"{name}-k{k}")
    for name, (_, network, _, rows) in pfedla_table3.SETS.items()
    for k, (retained, mbytes, _) in enumerate(rows)
]


class TestTraffic:
    @pytest.mark.parametrize(("network", "retained", "mbytes"), ROWS)
    def test_published_digits(self, network: str, retained: tuple[str, ...], mbytes: float) -> None:
        """All digits of EMNIST; CIFAR-10's published numbers are up to four floats a message above ours."""
        ours = pfedla_table3.traffic(network, retained, rounds=1)
        sizes = SIZES[network]
        floats = 2 * sum(sizes.values()) - sum(sizes[layer] for layer in retained)
        told = 2 if retained else 0  # one bit for each of at most 16 tensors
        assert ours == pytest.approx(750 * (4 * floats + told) / 2**20, rel=1e-12)
        if network == "lenet16_28":
            assert round(ours, 2) == mbytes
        else:
            assert 0 <= mbytes - ours < 750 * 2 * 4 * 4 / 2**20 + 0.005

    def test_more_rounds_count_the_same(self) -> None:
        count = partial(pfedla_table3.traffic, "lenet16_28", ("fc3",))
        assert count(rounds=2) == pytest.approx(count(rounds=1), rel=1e-12)

    def test_the_named_layers_stay(self) -> None:
        shape = pfedla_table3.SHAPES["lenet16_28"]
        tables = {
            "data": {"batch": 2},
            "model": {"name": "lenet16_28"},
            "algorithm": {"name": "heurpfedla", "retain": 2},
        }
        engine = prepare(from_table(tables), pfedla_table3.noise(shape)).engine(MemoryStore())
        pfedla_table3.set_retained(engine, ("fc3", "conv1"))
        for device in (0, 9):
            mask = message_to(engine, device)["mask"]
            kept = {key.rpartition(".")[0] for key, sent in mask.items() if not bool(sent)}
            assert kept == {"fc3", "conv1"}

    def test_in_the_table_without_any_training(self, shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
        quick = [
            Line(**{**vars(line), "count": line.count and partial(line.count, rounds=1)})
            for line in STUDIES["pfedla-table3"].lines
        ]
        study = type(STUDIES["pfedla-table3"])(**{**vars(STUDIES["pfedla-table3"]), "lines": tuple(quick)})
        monkeypatch.setitem(cli.STUDIES, "pfedla-table3", study)
        said = json.loads(shell.good("reproduce", "pfedla-table3", "--json"))
        counted = [r for r in said["rows"] if r["quantity"].startswith("traffic")]
        assert [round(r["ours"], 2) for r in counted[:3]] == [491.08, 488.65, 312.52]
        assert {r["missing"] for r in said["rows"] if r not in counted} == {"not trained: needs --accuracy"}
        assert not said["scaled"]
        assert said["rounds"] == {}
