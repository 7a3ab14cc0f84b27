"""Bad input: exit code 2, one clear message, no traceback, nothing half-written (`Shell.bad` checks that each time)."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import tierfed
from cli.shell import TOY, Shell, interpreter, process, toy_arrays
from tierfed.data import sources
from tierfed.data.download import Remote


def test_unknown_key(shell: Shell) -> None:
    assert "run has no setting 'roundz'; did you mean 'rounds'?" in shell.bad(
        "run", "toy.toml", "--set", "run.roundz=3"
    )
    assert "did you mean 'label'?" in shell.bad("run", "toy.toml", "--set", "data.columns.labels=y")
    assert "did you mean 'mu'?" not in shell.bad("run", "toy.toml", "--set", "algorithm.zzzzzz=1")


def test_unknown_table(shell: Shell) -> None:
    (shell.folder / "bad.toml").write_text(TOY.replace("[topology]", "[topologie]"))
    assert "the config has no setting 'topologie'; did you mean 'topology'?" in shell.bad("run", "bad.toml")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("run.rounds=0", "run.rounds = 0: input should be greater than or equal to 1"),
        ("algorithm.lr=-1", "algorithm.lr = -1"),
        ("data.batch=0", "data.batch = 0"),
        ("run.dtype=float16", "'float32' or 'float64'"),
        ("faults.dropout=1.5", "faults.dropout = 1.5"),
        ("data.split.test=1.0", "data.split.test = 1.0"),
        ("topology.participation=nan", "topology.participation = nan"),
        ("topology=3", "wanted section.key=value"),
        ("topology.fogs.deeper.still=3", "topology.fogs = {'deeper'"),
    ],
)
def test_impossible_value(shell: Shell, setting: str, message: str) -> None:
    assert message in shell.bad("run", "toy.toml", "--set", setting)


def test_two_wrong_settings_are_both_named(shell: Shell) -> None:
    message = shell.bad("run", "toy.toml", "--set", "run.rounds=0", "--set", "run.sed=1")
    assert "run.rounds = 0" in message
    assert "did you mean 'seed'?" in message


def test_missing_files(shell: Shell) -> None:
    assert "cannot read the config no.toml" in shell.bad("run", "no.toml")
    assert "there is no file no.npz" in shell.bad("run", "toy.toml", "--set", "data.path=no.npz")
    assert "no run folder" in shell.bad("resume", "no")
    assert "no is no folder" in shell.bad("report", "no")


def test_unknown_preset(shell: Shell) -> None:
    assert "did you mean 'quickstart'?" in shell.bad("run", "quickstrat")


def test_invalid_toml(shell: Shell) -> None:
    (shell.folder / "bad.toml").write_text("[run\nrounds = 3")
    assert "bad.toml is no valid TOML" in shell.bad("run", "bad.toml")
    (shell.folder / "binary.toml").write_bytes(b"\xff\xfe\x00")
    assert "cannot read the config binary.toml" in shell.bad("run", "binary.toml")
    (shell.folder / "flat.toml").write_text("run = 3\n")
    assert "run = 3" in shell.bad("run", "flat.toml")


def test_seeds_that_are_no_numbers(shell: Shell) -> None:
    assert "--seeds 'x': wanted whole numbers" in shell.bad("run", "toy.toml", "--seeds", "x")


def test_set_without_a_value(shell: Shell) -> None:
    assert "--set 'run.rounds': wanted section.key=value" in shell.bad("run", "toy.toml", "--set", "run.rounds")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("algorithm.name=fedavgg", "unknown algorithm 'fedavgg'; did you mean 'fedavg'?"),
        ("model.name=mpl", "unknown model 'mpl'; did you mean 'mlp'?"),
        ("model.loss=cross_entropi", "unknown loss 'cross_entropi'; did you mean 'cross_entropy'?"),
        ("data.source=wotch", "data.source = 'wotch' is unknown; did you mean 'watch'?"),
        ("algorithm.name=nowhere:Thing", "cannot be imported"),
        ("model.name=nowhere:Thing", "importing 'nowhere' failed"),
        ("model.loss=nowhere:thing", "cannot be imported"),
    ],
)
def test_unknown_name(shell: Shell, setting: str, message: str) -> None:
    (shell.folder / "plain.toml").write_text(TOY.replace("[model.options]\nhidden = [8]\nbatch_norm = true\n", ""))
    assert message in shell.bad("run", "plain.toml", "--set", setting)


def test_wrong_checksum(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    (shell.folder / "published.gz").write_bytes(b"not what was published")
    url = (shell.folder / "published.gz").as_uri()
    monkeypatch.setitem(sources.REMOTES, "mnist", (Remote(name="a.gz", urls=(url,), md5="0" * 32),))
    (shell.folder / "mnist.toml").write_text('[data]\nsource = "mnist"\n[data.partition]\nkind = "iid"\n')
    before = sorted(shell.folder.iterdir())
    code, out, err = shell("run", "mnist.toml", "--data-dir", "sets", "--out", "r")
    assert (code, out) == (2, "")
    assert err.startswith("error: file://")
    assert "checksum" in err
    assert err.count("\n") == 1
    assert sorted(p for p in shell.folder.iterdir() if p.name != "sets") == before
    assert not any(p.is_file() for p in (shell.folder / "sets").rglob("*"))


def test_label_out_of_range(shell: Shell) -> None:
    arrays = toy_arrays()
    arrays["y"][7] = 5
    np.savez(shell.folder / "toy.npz", **arrays)
    message = shell.bad("run", "toy.toml", "--set", 'data.columns.classes=["no", "yes"]')
    assert "label 5 in row 7 is out of range; the 2 classes are 0 … 1" in message


def test_nan_feature(shell: Shell) -> None:
    arrays = toy_arrays()
    arrays["x"][9, 2] = np.nan
    np.savez(shell.folder / "toy.npz", **arrays)
    assert "1 feature value is NaN or infinite, the first in row 9" in shell.bad("run", "toy.toml")


@pytest.mark.parametrize("left", [0, 1])
def test_device_with_too_few_samples(shell: Shell, left: int) -> None:
    arrays = toy_arrays()
    keep = np.concatenate([np.arange(left), np.arange(20, 160)])
    arrays = {k: v[keep] for k, v in arrays.items()}
    if left == 0:  # it occurs in the file, but all of its rows test
        arrays = {k: np.concatenate([v, toy_arrays()[k][:1]]) for k, v in arrays.items()}
        arrays["split"] = np.where(np.arange(141) % 2, "train", "test")
        np.savez(shell.folder / "toy.npz", **arrays)
        message = shell.bad("run", "toy.toml", "--set", "data.split.by=given")
    else:
        np.savez(shell.folder / "toy.npz", **arrays)
        message = shell.bad("run", "toy.toml")
    assert f"device '0' has too few training samples: {left}" in message


def test_team_without_devices(shell: Shell) -> None:
    more = ("--set", "topology.teams=random")
    assert "a team would have no devices (8 in all)" in shell.bad("run", "toy.toml", "--set", "topology.fogs=9", *more)
    few = ("--set", "topology.teams=worst", "--set", "topology.fogs=5")
    assert "has no devices" in shell.bad("run", "toy.toml", *few)


def test_more_participants_than_devices(shell: Shell) -> None:
    assert "asks for 5 participants per fog" in shell.bad("run", "toy.toml", "--set", "topology.participation=5")
    flat = ("--set", "topology.fogs=0", "--set", "topology.participation=9")
    assert "asks for 9 participants per cloud" in shell.bad("run", "toy.toml", *flat)


def test_model_that_does_not_fit(shell: Shell) -> None:
    (shell.folder / "lenet.toml").write_text(
        TOY.replace('"mlp"', '"lenet16_bn"').replace("[model.options]\nhidden = [8]\nbatch_norm = true\n", "")
    )
    message = shell.bad("run", "lenet.toml")
    assert "'lenet16_bn'" in message
    assert "[5]" in message


def test_loss_that_does_not_fit(shell: Shell) -> None:
    assert "check that model, loss and labels fit together" in shell.bad("run", "toy.toml", "--set", "model.loss=mse")


def test_batch_norm_with_batches_of_one(shell: Shell) -> None:
    assert "batch norm, which needs two" in shell.bad("run", "toy.toml", "--set", "data.batch=1")


def test_jobfed_without_validation_data(shell: Shell) -> None:
    message = shell.bad("run", "toy.toml", "-a", "jobfed", "--set", "data.split.val=0")
    assert "held-out local data" in message
    assert "data.split.val" in message


def test_run_folder_that_exists(shell: Shell) -> None:
    (shell.folder / "taken").mkdir()
    (shell.folder / "taken" / "thesis.txt").write_text("mine")
    assert "the run folder taken exists" in shell.bad("run", "toy.toml", "--out", "taken")
    assert "the run folder taken exists" in shell.bad("run", "toy.toml", "--out", "taken", "--seeds", "0,1")
    shell.good("run", "toy.toml", "--out", "done", "--no-report", "--rounds", "1")
    assert "`tierfed resume done` goes on with it" in shell.bad("run", "toy.toml", "--out", "done")


def test_run_folder_below_a_file(shell: Shell) -> None:
    assert "cannot write to toy.toml" in shell.bad("run", "toy.toml", "--out", "toy.toml/run")


def test_baseline_that_is_no_run(shell: Shell) -> None:
    assert "eval.baseline = 'none' cannot be read" in shell.bad("run", "toy.toml", "--set", "eval.baseline=none")


def test_plot_and_report_into_nowhere(shell: Shell) -> None:
    assert "choose another --plot" in shell.bad("show", "toy.toml", "--plot", "no/plot.html")
    shell.good("run", "toy.toml", "--out", "r", "--no-report", "--rounds", "1")
    assert "choose another --out" in shell.bad("report", "r", "--out", "no/report.html")


def test_grid_with_one_bad_member_writes_nothing(shell: Shell) -> None:
    assert "unknown algorithm 'nope'" in shell.bad("run", "toy.toml", "-a", "fedavg", "-a", "nope", "--out", "g")
    assert "two runs are named 'fedavg-s0'" in shell.bad("run", "toy.toml", "-a", "fedavg,fedavg", "--out", "g")


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run over toy data that has one of its three rounds to go."""
    folder = tmp_path_factory.mktemp("stopped")
    np.savez(folder / "toy.npz", **toy_arrays())

    def interrupt(progress: tierfed.Progress) -> None:
        if progress.round == 2:
            raise KeyboardInterrupt

    settings = {"threads": 1, "rounds": 3, "out": str(folder / "r")}
    model = {"name": "mlp", "options": {"hidden": [8]}}
    data = {"source": "npz", "path": str(folder / "toy.npz"), "batch": 5}
    result = tierfed.run({"run": settings, "model": model, "data": data}, watch=interrupt)
    assert result.interrupted
    return folder / "r"


@pytest.fixture
def half(shell: Shell, stopped: Path) -> Path:
    """A copy of the stopped run to do harm to."""
    shutil.copytree(stopped, shell.folder / "r")
    return shell.folder / "r"


@pytest.mark.parametrize("size", [0, 100, 4096, 10_000, 20_480])
def test_truncated_checkpoint(shell: Shell, half: Path, size: int) -> None:
    data = (half / "state" / "data.mdb").read_bytes()
    assert size < len(data)
    (half / "state" / "data.mdb").write_bytes(data[:size])
    message = shell.bad("resume", "r")
    assert "damaged" in message or "missing or empty" in message


def test_flipped_bytes_in_the_checkpoint(shell: Shell, half: Path) -> None:
    data = (half / "state" / "data.mdb").read_bytes()
    assert b'"F32"' in data
    (half / "state" / "data.mdb").write_bytes(data.replace(b'"F32"', b'"F64"'))
    assert "the checkpoint in r/state is damaged" in shell.bad("resume", "r")


def test_one_flipped_bit_in_a_record(shell: Shell, half: Path) -> None:
    data = bytearray((half / "state" / "data.mdb").read_bytes())
    places = [i for i in range(len(data)) if data.startswith(b'"clock_seconds"', i)]
    for place in places:
        data[place + 20] ^= 1
    (half / "state" / "data.mdb").write_bytes(data)
    assert "the checksum of record meta is wrong" in shell.bad("resume", "r")


def test_random_damage(shell: Shell, half: Path) -> None:
    """In a process of its own, lest it die: LMDB trusts its file."""
    data = (half / "state" / "data.mdb").read_bytes()
    rng = np.random.default_rng(0)
    damaged = bytearray(data)
    for i in rng.integers(0, len(data), 400):
        damaged[i] ^= 0x55
    (half / "state" / "data.mdb").write_bytes(damaged)
    done = process(shell.folder, "resume", "r", "--no-report")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_deleted_checkpoint(shell: Shell, half: Path) -> None:
    shutil.rmtree(half / "state")
    assert "checkpoint (r/state/data.mdb) is missing" in shell.bad("resume", "r")


def test_edited_config(shell: Shell, half: Path) -> None:
    text = (half / "config.toml").read_text()
    (half / "config.toml").write_text(text.replace("batch = 5", "batch = 6"))
    assert "was changed since the run began" in shell.bad("resume", "r")
    (half / "config.toml").write_text(text.replace("batch = 5", "batch = ["))
    assert "no valid TOML" in shell.bad("resume", "r")
    (half / "config.toml").unlink()
    assert "is no run folder" in shell.bad("resume", "r")


def test_a_moved_data_directory_is_no_edited_config(shell: Shell, half: Path) -> None:
    config = half / "config.toml"
    config.write_text(config.read_text().replace("[data]\n", '[data]\ndir = "elsewhere"\n', 1))
    shell.good("resume", "r", "--no-report")


def test_other_data_than_the_run_began_with(shell: Shell, half: Path, stopped: Path) -> None:
    arrays = toy_arrays()
    arrays["x"][0] *= 1.5
    other = shell.folder / "other.npz"
    np.savez(other, **arrays)
    config = half / "config.toml"
    config.write_text(config.read_text().replace(str(stopped.parent / "toy.npz"), str(other)))
    assert "was changed" in shell.bad("resume", "r")
    original = stopped.parent / "toy.npz"
    before = original.read_bytes()
    try:
        np.savez(original, **arrays)
        shutil.copy(stopped / "config.toml", config)
        assert "the data of the run in r are not those that it began with" in shell.bad("resume", "r")
    finally:
        original.write_bytes(before)


def test_fewer_rounds_than_trained(shell: Shell, half: Path) -> None:
    assert "has trained 2 rounds already" in shell.bad("resume", "r", "--rounds", "1")


def test_report_of_a_damaged_folder(shell: Shell, half: Path) -> None:
    (half / "metrics.parquet").write_bytes(b"PAR1 or so")
    assert "metrics.parquet cannot be read" in shell.bad("report", "r")
    pq.write_table(pa.table({"round": [1]}), half / "metrics.parquet")
    assert "no column 'tier'" in shell.bad("report", "r")


def test_a_second_process_on_one_run(shell: Shell, half: Path) -> None:
    from tierfed.store import DiskStore

    first = DiskStore(half / "state")
    try:
        assert "another process is at work on the run in r" in shell.bad("resume", "r")
    finally:
        first.close()
    shell.good("resume", "r", "--no-report")


def test_a_real_process(shell: Shell) -> None:
    done = interpreter(shell.folder, "run", "toy.toml", "--set", "algorithm.lrr=1", "--out", "r")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "error: algorithm has no setting 'lrr'; did you mean 'lr'?\n"
    assert not (shell.folder / "r").exists()


def test_usage_errors_exit_with_2(shell: Shell) -> None:
    for arguments in (["run"], ["run", "toy.toml", "--no-such-option"], ["no-such-command"]):
        code, out, err = shell(*arguments)
        assert (code, out) == (2, "")
        assert "Usage" in err


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("-a", "fedbn", "--set", "model.options.batch_norm=false"), "'mlp' has no batch norm; set model.options."),
        (("-a", "jobfed", "--set", "model.name=mclr", "--set", "model.options={}"), "no batch norm; take one that has"),
        (("-a", "heurpfedla", "--set", "algorithm.retain=4"), "retain = 4 layers, but the model has 3 (fc1, bn1, fc2)"),
        (("-a", "fedper", "--set", "algorithm.depth=4"), "depth = 4 layers, but the model has 3"),
        (("-a", "finetune", "--set", "algorithm.depth=4", "--set", "algorithm.tune=head"), "depth = 4 layers"),
        (("-a", "cfl", "--set", "topology.participation=0.5"), "cfl needs every device in every round"),
        (("-a", "fedfomo", "--set", "data.split.val=0.0"), "held-out local data"),
        (("-a", "mocha"), "take model.name = 'mclr'"),
        (
            ("-a", "mocha", "--set", "model.name=mclr", "--set", "model.options={}", "--set", "algorithm.samples=5"),
            "mocha has room for 5 training samples per device, but device '0' has 15 in whole batches",
        ),
        (
            ("-a", "pfedhn", "--set", "model.options.hidden=[100000]", "--set", "algorithm.width=50000"),
            "the nodes above the devices would need",
        ),
        (("-a", "fedavg", "--set", "algorithm.name=local"), "--algorithm and --set algorithm.name: give one of them"),
    ],
)
def test_a_method_that_does_not_get_what_it_needs(shell: Shell, settings: tuple[str, ...], message: str) -> None:
    assert message in shell.bad("run", "toy.toml", *settings)


def test_settings_go_to_the_algorithm_that_is_chosen_beside_them(shell: Shell) -> None:
    shell.good("run", "toy.toml", "-a", "fedprox", "--set", "algorithm.mu=0.5", "--rounds", "1", "--out", "r")
    assert "mu = 0.5" in (shell.folder / "r" / "config.toml").read_text()
