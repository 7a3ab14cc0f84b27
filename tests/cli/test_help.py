"""What helps people along: completion, `doctor`, presets, nearest right words, no colors where none are wanted."""

import re
import subprocess
from pathlib import Path

import pytest
import typer

from cli.shell import Shell
from cli.test_commands import told
from tierfed import doctor
from tierfed.cli import app
from tierfed.completion import PLACES, keys, script
from tierfed.config import Config

COLOR = re.compile(r"\x1b\[[\d;]*(3[0-7]|9[0-7]|38;\d)[\d;]*m")


def completed(folder: Path, *words: str) -> set[str]:
    """What a real bash offers for the last of some words after `tierfed`."""
    (folder / "c.sh").write_text(script("bash", typer.main.get_command(app)))
    ask = 'source ./c.sh; COMP_WORDS=(tierfed "$@"); COMP_CWORD=$#; _tierfed; printf "%s\\n" "${COMPREPLY[@]}"'
    done = subprocess.run(["bash", "-c", ask, "bash", *words], cwd=folder, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_a_shell_completes_what_there_is(tmp_path: Path) -> None:
    for run in ("runs/toy-ditto-s0", "runs/g", "runs/g/ditto-s0"):
        (tmp_path / run).mkdir(parents=True)
        (tmp_path / run / "config.toml").touch()
    (tmp_path / "mine.toml").touch()
    assert completed(tmp_path, "re") == {"report", "reproduce", "resume"}
    assert completed(tmp_path, "run", "qu") == {"quickstart"}
    assert completed(tmp_path, "run", "mi") == {"mine.toml"}
    assert completed(tmp_path, "run", "x.toml", "-a", "jo") == {"jobfed"}
    assert completed(tmp_path, "run", "x.toml", "--ro") == {"--rounds"}
    assert completed(tmp_path, "run", "x.toml", "--set", "data.split.t") == {"data.split.test="}
    assert completed(tmp_path, "run", "x.toml", "--set", "data.source", "=", "wa") == {"watch"}
    assert completed(tmp_path, "report", "toy") == {"runs/toy-ditto-s0"}
    assert completed(tmp_path, "export", "runs/g/") == {"runs/g/ditto-s0"}


def test_scripts_know_every_command_and_option() -> None:
    group = typer.main.get_command(app)
    for shell in PLACES:
        text = script(shell, group)
        for name, command in group.commands.items():  # type: ignore[attr-defined]
            assert name in text
            for option in (o for p in command.params for o in p.opts if o.startswith("--")):
                assert (f"-l {option[2:]}" if shell == "fish" else option) in text
    assert {"run.rounds=", "data.split.test=", "algorithm.lr="} <= set(keys(Config))


def test_completion_is_written_where_the_shell_looks(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(shell.folder))
    assert "works in new shells" in shell.good("completion", "bash", "--install")
    file = shell.folder / PLACES["bash"]
    assert file.read_text() == shell.good("completion", "bash")
    assert "did you mean 'bash'?" in shell.bad("completion", "bahs")


def test_presets(shell: Shell) -> None:
    found = {row["name"]: row["about"] for row in told(shell.good("presets", "--json"))}
    assert found["quickstart"].startswith("JobFed, FedAvg and local-only training")
    assert "quickstart" in shell.good("presets")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("run", "toi.toml"), "did you mean 'toy.toml'?"),
        (("show", "toy.tom"), "did you mean 'toy.toml'?"),
        (("run", "toy.toml", "--set", "data.path=toi.npz"), "no file toi.npz; did you mean 'toy.npz'?"),
        (("run", "toy.toml", "--engine", "seriel"), "'ray'; did you mean 'serial'?"),
        (("run", "toy.toml", "--set", "topology.teams=natral"), "did you mean 'natural'?"),
        (("run", "toy.toml", "-a", "jobfed", "--set", "algorithm.alpha_rule=controler"), "did you mean 'controller'?"),
        (("run", "toy.toml", "--set", "start.run=runs/toi"), "did you mean 'runs/toy'?"),
        (("run", "toy.toml", "--set", "eval.baseline=runs/toi"), "did you mean 'runs/toy'?"),
        (("run", "toy.toml", "-a", "near_words:Mien"), "did you mean 'near_words:Mine'?"),
        (("run", "toy.toml", "-a", "nearwords:Mine"), "did you mean 'near_words'?"),
        (("run", "toy.toml", "--set", "model.loss=near_words:los"), "did you mean 'near_words:loss'?"),
        (("resume", "runs/toi"), "did you mean 'runs/toy'?"),
        (("report", "toi"), "there are runs/toy"),
        (("personalize", "runs/toi", "-m", "ftl"), "did you mean 'runs/toy'?"),
        (("export", "runs/toi", "--device", "1"), "did you mean 'runs/toy'?"),
        (("reproduce", "pfedla-table1", "--clients", "11"), "pfedla-table1 has 10 and 100"),
    ],
)
def test_the_nearest_right_word(shell: Shell, words: tuple[str, ...], message: str) -> None:
    (shell.folder / "runs" / "toy").mkdir(parents=True)
    (shell.folder / "runs" / "toy" / "config.toml").write_text("")
    (shell.folder / "near_words.py").write_text(
        "import tierfed\n\n\nclass Mine(tierfed.Algorithm): ...\n\n\ndef loss(out, y): ...\n"
    )
    assert message in shell.bad(*words)


def test_the_nearest_command_and_option(shell: Shell) -> None:
    for words, message in (
        (["rnu"], "no command 'rnu'; did you mean 'run'?"),
        (["xyzzy"], "known: algorithms"),
        (["run", "toy.toml", "--roundz", "3"], "--rounds"),
    ):
        code, out, err = shell(*words)
        assert (code, out) == (2, "")
        assert message in " ".join(err.replace("│", " ").split())


def test_no_color(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a terminal there are colors, with NO_COLOR there is none: of typer's help, of our errors and progress."""
    from rich.console import Console
    from typer import rich_utils

    from tierfed.progress import watching

    def bars() -> str:
        console = Console(force_terminal=True, width=80)
        with console.capture() as said, watching(console) as watch:
            from tierfed import Progress

            assert watch is not None
            watch(Progress(name="r", round=1, rounds=2, scores={"global": 0.5}, evaluated=True, bytes=1))
        return said.get()

    monkeypatch.setattr(rich_utils, "FORCE_TERMINAL", True)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert COLOR.search(shell.good("run", "--help"))
    assert COLOR.search(bars())
    monkeypatch.setenv("NO_COLOR", "1")
    assert not COLOR.search(shell.good("run", "--help"))
    assert not COLOR.search(bars())


def test_doctor(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TIERFED_DATA", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    found = told(shell.good("doctor", "--json"))
    topics = {f["topic"]: f for f in found["findings"]}
    assert found["problems"] == 0
    assert {"tierfed", "Python", "packages", "extra report", "GPU", "threads", "data folder", "data sets"} <= set(
        topics
    )
    assert "torch" in topics["packages"]["found"]
    assert "watch" in topics["data sets"]["found"]
    assert "threads" in shell.good("doctor")
    monkeypatch.setenv("TIERFED_DATA", str(shell.folder / "nowhere"))
    monkeypatch.setenv("OMP_NUM_THREADS", "4000")
    code, out, err = shell("doctor")
    assert code == 1
    assert "problem" in out
    assert "data folder: TIERFED_DATA is" in err
    assert "OMP_NUM_THREADS=4000; more threads than cores" in err


def test_what_doctor_calls_a_problem(tmp_path: Path) -> None:
    """Machines that this one is not."""
    assert doctor.gpu(False, True, "2.6.0+cpu", "").state == "problem"
    assert doctor.gpu(True, True, "2.6.0+cu124", "H100").found == "H100; PyTorch 2.6.0+cu124"
    assert doctor.gpu(False, False, "2.6.0+cpu", "").state == "ok"
    assert doctor.threads({}, 2, 8, 8).state == "problem"
    assert doctor.threads({"OMP_WAIT_POLICY": "ACTIVE"}, 8, 8, 8).state == "note"
    assert doctor.threads({"OMP_NUM_THREADS": "2"}, 2, 2, 2).state == "ok"
    assert [doctor.shared_memory(mib).state for mib in (64, 2048)] == ["problem", "ok"]
    assert doctor.data_folder({"TIERFED_DATA": str(tmp_path)}, None).state == "ok"
    (tmp_path / "torch.py").touch()
    assert doctor.working_folder(tmp_path).todo.startswith("rename it")
