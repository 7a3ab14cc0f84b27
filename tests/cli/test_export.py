"""`tierfed export`: the table, JSON, where files go, and what is refused with one line."""

import json

import onnx
import pytest

import tierfed
from cli.shell import Shell, content

RUN = ("run", "toy.toml", "--out", "r", "--set", "run.rounds=1", "--no-report")


@pytest.fixture
def trained(shell: Shell) -> Shell:
    shell.good(*RUN)
    return shell


def test_a_table_of_stages_and_a_file(trained: Shell) -> None:
    out = trained.good("export", "r", "--device", "0", "--prune", "0.5", "--tune-epochs", "1", "--int8")
    assert [line.split()[1] for line in out.splitlines() if line.startswith("│")] == [
        "float",
        "pruned",
        "tuned",
        "int8",
    ]
    # 5 * 8 + 8 * 2 weights
    assert "28 of 56" in out
    assert out.splitlines()[-1] == "file: r/export/0-personal-pruned-int8.onnx"
    assert "onnx: int8" in out.splitlines()
    proto = onnx.load(str(trained.folder / "r/export/0-personal-pruned-int8.onnx"))
    assert [o.name for o in proto.graph.output] == ["logits", "probabilities", "label"]


def test_the_run_stays_as_it_was(trained: Shell) -> None:
    before = content(trained.folder / "r")
    trained.good("export", "r", "--device", "3", "--format", "safetensors", "--out", "three.safetensors")
    assert content(trained.folder / "r") == before
    module, card = tierfed.load_model(trained.folder / "three.safetensors")
    with tierfed.open_run(trained.folder / "r") as run:
        federation = run.world.federation
        x = federation.x[federation.test[3]]
        assert module(x).equal(run.personal_model("3")(x))
    assert (card.model, card.options, card.run) == ("mlp", {"hidden": [8], "batch_norm": True}, "r")


def test_json(trained: Shell) -> None:
    told = json.loads(trained.good("export", "r", "--device", "1", "--model", "global", "--json"))
    assert told["file"] == "r/export/1-global.onnx"
    assert told["variants"][0]["bytes"] == (trained.folder / told["file"]).stat().st_size
    assert (told["metric"], told["card"]["kind"]) == ("accuracy", "global")


def test_what_is_refused(trained: Shell) -> None:
    export = ("export", "r", "--device", "0")
    assert "no device '9'" in trained.bad("export", "r", "--device", "9")
    assert "int8 is for ONNX" in trained.bad(*export, "--int8", "--format", "safetensors")
    assert "prune = 1.0: wanted" in trained.bad(*export, "--prune", "1")
    assert "FedAvg has no complete team model" in trained.bad(*export, "--model", "team")
    assert "did you mean 'global'" in trained.bad(*export, "--model", "globl")
    assert "is no run folder" in trained.bad("export", "nowhere", "--device", "0")
    trained.good(*export)
    assert "r/export/0-personal.onnx exists" in trained.bad(*export)


def test_a_run_before_its_end_and_a_grid(shell: Shell) -> None:
    (shell.folder / "r").mkdir()
    (shell.folder / "r" / "config.toml").write_text(shell.config.read_text())
    assert "has no committed round; go on with it: `tierfed resume r`" in shell.bad("export", "r", "--device", "0")
    for name in ("fedavg-s0", "fedavg-s1"):
        (shell.folder / "g" / name).mkdir(parents=True)
        (shell.folder / "g" / name / "config.toml").write_text(shell.config.read_text())
    (shell.folder / "g" / "grid.json").write_text(json.dumps({"runs": ["fedavg-s0", "fedavg-s1"]}))
    said = shell.bad("export", "g", "--device", "0")
    assert "holds several runs; give the folder of one: fedavg-s0, fedavg-s1" in said
