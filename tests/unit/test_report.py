import base64
import gzip
import io
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from tierfed.errors import InputError
from tierfed.metrics import Row, to_table
from tierfed.report import summary, summary_table, write_report
from tierfed.report.grid import GridFolder
from tierfed.report.load import DEVICES, RunFolder
from tierfed.report.stages import before_and_after
from tierfed.report.words import amount, capped, duration, score

# of each algorithm: where its global and personal accuracy end
LEVELS = {"local": (0.2, 0.82), "fedavg": (0.8, 0.7), "jobfed": (0.78, 0.88), "ditto": (0.79, 0.85)}


def write_run(
    folder: Path,
    algorithm: str = "jobfed",
    seed: int = 0,
    *,
    devices: int = 6,
    teams: int = 2,
    rounds: int = 4,
    regression: bool = False,
    shift: float = 0.0,
) -> Path:
    """A run folder with made-up numbers: learning curves that rise to `LEVELS`, costs, faults, moves, and alphas."""
    rng = np.random.default_rng([seed, sum(algorithm.encode())])
    folder.mkdir(parents=True)
    names = [f"d{i}" for i in range(devices)]
    team = [f"fog {i % teams + 1}" if teams else "" for i in range(devices)]
    source = "air quality" if regression else "digits"
    (folder / "config.toml").write_text(
        f'[run]\nseed = {seed}\nrounds = {rounds}\n\n[algorithm]\nname = "{algorithm}"\neta = {0.1 + shift}\n\n'
        f'[data]\nsource = "{source}"\nalpha = 0.3\n\n[topology]\nfogs = {teams}\n'
    )
    counts = [np.random.default_rng([seed, i]).multinomial(60, [0.5] + [0.05] * 10).tolist() for i in range(devices)]
    table = {
        "device": names,
        "team": team,
        "train": [60] * devices,
        "val": [10] * devices,
        "test": [10 + i for i in range(devices)],
        "counts": [[]] * devices if regression else counts,
    }
    pq.write_table(pa.table(table, schema=DEVICES), folder / "devices.parquet")

    metric = "abs_error" if regression else "accuracy"
    models = {"global": 0, "personal_post": 1} | ({} if algorithm == "fedavg" else {"personal_pre": 1, "team": 0})
    rows = []
    offset = rng.normal(0, 0.04, devices)
    for t in range(1, rounds + 1):
        grown = 1 - np.exp(-4 * t / rounds)
        for model, which in models.items():
            level = LEVELS[algorithm][which] - (0.03 if model in ("personal_pre", "team") else 0)
            good = np.clip(level * grown + offset + rng.normal(0, 0.01, devices), 0, 1)
            for name, value in zip(names, good.tolist(), strict=True):
                rows.append(Row(t, "device", name, model, "test", metric, 10 * (1 - value) if regression else value))
                rows.append(Row(t, "device", name, model, "test", "loss", -np.log(max(value, 1e-3))))
        if algorithm == "jobfed":
            alpha = 0.5 - 0.3 * np.arange(devices) / devices * grown + offset / 2
            rows += [Row(t, "device", n, "", "", "alpha", a) for n, a in zip(names, alpha.tolist(), strict=True)]
            rows += [Row(t, "cloud", "cloud", "", "", m, 2 - grown) for m in ("jg", "jl")]
        if algorithm != "local":
            for link, size in (("cloud-fog", 2e5), ("fog-device", 8e5)):
                for m, v in (("down_bytes", size), ("up_bytes", 1.1 * size), ("seconds", 1.5), ("joules", 0.4)):
                    rows.append(Row(t, "link", link, "", "", m, v))
        rows += [Row(t, "device", "", "", "", m, v) for m, v in (("compute_seconds", 3.0), ("compute_joules", 6.0))]
        for m, v in (("round_seconds", 2.5), ("clock_seconds", 2.5 * t), ("joules", 7.0)):
            rows.append(Row(t, "cloud", "cloud", "", "", m, v))
    pq.write_table(to_table(rows), folder / "metrics.parquet")
    events = [{"event": "start", "round": 0}]
    if algorithm == "jobfed" and teams > 1:
        events += [
            {"round": 1 + i % rounds, "event": "regroup", "device": names[i], "from": team[i], "to": team[(i + 1) % 2]}
            for i in range(0, devices, 2)
        ]
        events += [{"round": 2, "event": "lost", "link": "fog-device", "count": 3}, {"round": 3, "event": "silent"}]
        events += [{"round": rounds, "event": "stop", "rule": "early (eq. 7)"}]
    else:
        events += [{"round": rounds, "event": "done"}]
    (folder / "events.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events))
    return folder


def write_grid(folder: Path, seeds: int = 2, **kwargs: int | bool) -> Path:
    """A grid folder: every algorithm of `LEVELS` with every seed."""
    names = [f"{a}-s{s}" for a in LEVELS for s in range(seeds)]
    for name in names:
        write_run(folder / name, name.partition("-")[0], int(name[-1]), **kwargs)
    (folder / "grid.json").write_text(json.dumps({"runs": names}))
    return folder


class Page(HTMLParser):
    """What a page shows: its visible texts, its charts, and whatever it would load."""

    def __init__(self, text: str):
        super().__init__()
        self.text, self.charts, self.loads, self.labels, self.scripts = "", [], [], [], []
        self._script, self.library = None, ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.loads += [v for k, v in attrs if k in ("src", "data") or (k == "href" and tag == "link")]
        if tag == "div" and found.get("class") == "chart":
            self.labels.append(found["aria-label"])
        if tag in ("script", "style"):
            self._script = found.get("type", tag)

    def handle_endtag(self, tag):
        if tag in ("script", "style"):
            self._script = None

    def handle_data(self, data):
        if self._script == "application/octet-stream":
            self.library += data
        elif self._script == "application/json":
            self.charts.append(json.loads(data))
        elif self._script is None:
            self.text += " ".join(data.split()) + " "
        else:
            self.scripts.append(data)


def page(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("one") / "run")


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    return write_grid(tmp_path_factory.mktemp("many") / "grid")


def rewrite(folder: Path, rows: list[Row]) -> Path:
    pq.write_table(to_table(rows), folder / "metrics.parquet")
    return folder


def two_devices(folder: Path, algorithm: str, values: tuple[float, float], **kwargs) -> Path:
    """A run of two devices with 10 and 11 test samples, of one round, with these accuracies on two models."""
    write_run(folder, algorithm, devices=2, teams=0, **kwargs)
    cells = [(m, f"d{i}", v) for m in ("global", "personal_post") for i, v in enumerate(values)]
    return rewrite(folder, [Row(1, "device", name, m, "test", "accuracy", v) for m, name, v in cells])


def test_report_of_a_run_shows_everything_and_loads_nothing(run):
    path = write_report(run)
    assert path == run / "report.html"
    got = page(path)
    assert got.loads == []
    library = gzip.decompress(base64.b64decode(got.library)).decode()
    assert "plotly.js v" in library
    assert sum("DecompressionStream" in s for s in got.scripts) == 1
    for words in ("jobfed on digits", "6 devices in 2 teams", "stopped in round 4: early (eq. 7)", "Resolved config"):
        assert words in got.text
    for title in ("Accuracy over rounds", "Loss over rounds", "Mixing weight", "Team changes", "Traffic of each round"):
        assert title in got.text
    for title in (
        "Lost messages and silent nodes",
        "Who holds what",
        "Energy of each round",
        "tierfed run run/config.toml",
        "Global loss on validation data (cloud)",
    ):
        assert title in got.text
    assert len(got.labels) == len(got.charts)
    assert all(len(label) > 30 for label in got.labels)
    assert [p.name for p in run.iterdir() if p.name.startswith(".")] == []


def test_the_page_forbids_requests_and_is_the_same_each_time(run, tmp_path):
    text = write_report(run).read_text(encoding="utf-8")
    assert write_report(run, tmp_path / "again.html").read_text(encoding="utf-8") == text
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', text)
    assert policy
    assert "default-src 'none'" in policy[1]
    assert "http" not in policy[1]
    # plotly's tool bar has a button that uploads the chart
    assert 'showSendToCloud: false, plotlyServerURL: ""' in text
    assert '"sendChartToCloud"' in text


def test_statistics_of_a_run_by_hand(tmp_path):
    folder = two_devices(tmp_path / "r", "fedavg", (0.5, 1.0))
    got = summary(folder)["models"]["global"]
    # test samples 10 and 11: (0.5 * 10 + 1 * 11) / 21; position 0.1 between 0.5 and 1
    assert got == pytest.approx(
        {"weighted": 16 / 21, "mean": 0.75, "std": 0.25, "p10": 0.55, "worst": 0.5, "worst_device": 0.5}
    )


def test_costs_of_a_run_by_hand(run):
    got = summary(run)
    # 4 rounds, two links of 0.2 and 0.8 MB down and 1.1 times that up; 7 J and 2.5 s a round
    assert got["total_bytes"] == pytest.approx(4 * 2.1e6)
    assert got["total_joules"] == 28
    assert got["clock_seconds"] == 10
    text = page(write_report(run)).text
    assert "cloud-fog 800 kB 880 kB 1.68 MB 6 s 1.6 J" in text
    assert "whole run 4 MB 4.4 MB 8.4 MB 10 s 28 J" in text


def test_a_logged_gain_is_shown(tmp_path):
    folder = two_devices(tmp_path / "r", "fedavg", (0.5, 1.0))
    rows = [Row(**r) for r in pq.read_table(folder / "metrics.parquet").to_pylist()]
    rewrite(folder, [*rows, Row(1, "cloud", "cloud", "personal_post", "test", "accuracy/gain", -0.125)])
    assert "\N{MINUS SIGN}12.5 %" in page(write_report(folder)).text
    assert summary(folder)["models"]["personal_post"]["gain"] == -0.125


def test_regression_reads_lower_as_better(tmp_path):
    folder = write_run(tmp_path / "r", regression=True)
    got = summary(folder)
    statistics = got["models"]["global"]
    assert got["metric"] == "abs_error"
    assert statistics["p10"] > statistics["mean"]
    assert statistics["worst_device"] == max(RunFolder.read(folder).last_scores("global").values)
    text = page(write_report(folder)).text
    assert "90th percentile" in text
    assert "Absolute error over rounds" in text


def test_a_flat_run_has_no_teams(tmp_path):
    got = page(write_report(write_run(tmp_path / "r", "fedavg", teams=0)))
    assert "6 devices 4 rounds" in got.text
    assert "Team changes" not in got.text
    assert "Faults" not in got.text
    assert "all rounds done" in got.text


def test_a_run_without_any_number_gives_a_page(tmp_path):
    folder = rewrite(write_run(tmp_path / "r", teams=0), [])
    (folder / "events.jsonl").write_text("")
    assert "not finished: round 0 of 4" in page(write_report(folder)).text
    assert summary(folder)["models"] == {}


def test_a_diverged_run_gives_a_page(tmp_path):
    folder = write_run(tmp_path / "r", "fedavg", devices=2)
    values = (("loss", "d0", np.inf), ("loss", "d1", np.nan), ("accuracy", "d0", 0.1), ("accuracy", "d1", np.nan))
    rewrite(folder, [Row(1, "device", n, "global", "test", m, v) for m, n, v in values])
    assert "not finite" in page(write_report(folder)).text
    json.dumps(summary(folder), allow_nan=False)


def test_names_from_outside_cannot_become_markup(tmp_path):
    folder = write_run(tmp_path / "r", "fedavg", devices=2)
    evil = "</script><script>alert(1)</script>"
    devices = pq.read_table(folder / "devices.parquet")
    pq.write_table(devices.set_column(0, "device", pa.array([evil, "d1"])), folder / "devices.parquet")
    rewrite(folder, [Row(1, "device", evil, "global", "test", "accuracy", 0.5)])
    text = write_report(folder).read_text(encoding="utf-8")
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(1)" in text


@pytest.mark.parametrize("name", ["config.toml", "devices.parquet", "metrics.parquet", "events.jsonl"])
def test_a_missing_or_damaged_file_is_named(tmp_path, name):
    folder = write_run(tmp_path / "r")
    (folder / name).write_bytes(b"\x00PAR1 not this\n")
    with pytest.raises(InputError, match=f"{name} cannot be read.*tierfed resume"):
        write_report(folder)
    (folder / name).unlink()
    with pytest.raises(InputError, match=f"has no {name}.*give the folder"):
        write_report(folder)


def test_a_line_cut_by_a_kill_is_left_out(tmp_path):
    folder = write_run(tmp_path / "r")
    with (folder / "events.jsonl").open("a") as file:
        file.write('{"event": "lo')
    assert RunFolder.read(folder).events[-1]["event"] == "stop"


def test_tables_that_do_not_fit_are_refused(tmp_path):
    folder = rewrite(write_run(tmp_path / "r"), [Row(1, "device", "stranger", "global", "test", "accuracy", 1.0)])
    with pytest.raises(InputError, match="'stranger'"):
        write_report(folder)
    pq.write_table(pa.table({"round": [1]}), folder / "metrics.parquet")
    with pytest.raises(InputError, match="no column 'tier'"):
        RunFolder.read(folder)


def test_impossible_folders_are_refused(run, tmp_path):
    with pytest.raises(InputError, match="is no folder"):
        write_report(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"has no config\.toml"):
        write_report(tmp_path)
    with pytest.raises(InputError, match="cannot be written"):
        write_report(run, tmp_path / "no" / "report.html")


def test_missing_libraries_name_the_extra(run, monkeypatch):
    monkeypatch.delitem(sys.modules, "tierfed.report.html", raising=False)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(InputError, match=r"jinja2 is not installed; pip install 'tierfed\[report\]'"):
        write_report(run)
    assert summary(run)["kind"] == "run"


def test_report_of_a_grid(grid):
    write_report(grid / "jobfed-s0")
    got = page(write_report(grid, grid / "alone.html"))
    assert got.loads == []
    for words in ("4 algorithms on digits", "8 runs", "seeds 0, 1", "Balance map: global against personal models"):
        assert words in got.text
    text = (grid / "alone.html").read_text(encoding="utf-8")
    assert '<a href="jobfed-s0/report.html">jobfed-s0</a>' in text
    assert '<a href="ditto-s0' not in text
    assert '<a href="ditto-s0/report.html">ditto-s0</a>' in write_report(grid).read_text(encoding="utf-8")
    # alpha is shown inside the closed part of each jobfed run, and of no other
    assert re.findall(r'<details class="card"><summary>([^<]+)', text) == ["jobfed-s0", "jobfed-s1"]


def test_comparison_by_hand(tmp_path):
    values = {"local-s0": (0.5, 0.5), "local-s1": (0.25, 0.75), "ditto-s0": (0.75, 0.5), "ditto-s1": (0.75, 1.0)}
    for name, pair in values.items():
        two_devices(tmp_path / name, name.partition("-")[0], pair, seed=int(name[-1]))
    (tmp_path / "grid.json").write_text(json.dumps({"runs": list(values)}))
    got = summary(tmp_path)
    # seed 0: mean of (+0.25, 0); seed 1: mean of (+0.5, +0.25)
    assert got["algorithms"]["ditto"]["gain"] == pytest.approx({"mean": 0.25, "std": 0.25 / 2**0.5, "seeds": 2})
    assert got["algorithms"]["local"]["gain"] == {"mean": None, "std": None, "seeds": 0}
    assert got["algorithms"]["ditto"]["worst"]["mean"] == pytest.approx((0.5 + 0.75) / 2)
    folder = GridFolder.read(tmp_path)
    best = {c.key: folder.best(c) for c in folder.columns}
    assert (best["global"], best["worst"], best["bytes"]) == ("ditto", "ditto", "")
    text = write_report(tmp_path).read_text(encoding="utf-8")
    assert '<td class="best">62.5 % ± 17.7</td>' in text


def test_a_lower_error_wins(tmp_path):
    folder = GridFolder.read(write_grid(tmp_path / "g", seeds=1, regression=True))
    column = next(c for c in folder.columns if c.key == "personal_post")
    means = {label: folder.values(label, column).mean() for label in folder.labels}
    assert folder.best(column) == min(means, key=means.__getitem__)
    assert "the lower left" in page(write_report(folder.path)).text


def test_settings_that_differ_tell_runs_of_one_algorithm_apart(tmp_path):
    for name, shift in (("a", 0.0), ("b", 0.1)):
        for seed in (0, 1):
            write_run(tmp_path / f"{name}{seed}", "ditto", seed, shift=shift)
    (tmp_path / "grid.json").write_text(json.dumps({"runs": ["a0", "a1", "b0", "b1"]}))
    assert GridFolder.read(tmp_path).labels == ("ditto (eta=0.1)", "ditto (eta=0.2)")


@pytest.mark.parametrize(
    ("difference", "message"), [({"regression": True}, "wanted one task"), ({"devices": 4}, "different devices")]
)
def test_runs_that_cannot_be_compared_are_refused(tmp_path, difference, message):
    write_run(tmp_path / "a", "local")
    write_run(tmp_path / "b", "ditto", **difference)
    (tmp_path / "grid.json").write_text('{"runs": ["a", "b"]}')
    with pytest.raises(InputError, match=message):
        write_report(tmp_path)


@pytest.mark.parametrize("text", ['{"runs": []}', "[]", '{"runs": [1]}'])
def test_a_grid_needs_runs(tmp_path, text):
    (tmp_path / "grid.json").write_text(text)
    with pytest.raises(InputError, match="lists no runs"):
        write_report(tmp_path)


def test_tables_for_the_terminal(run, grid):
    def shown(folder):
        console = Console(width=200, file=io.StringIO())
        console.print(summary_table(folder))
        return console.file.getvalue()

    text = shown(run)
    assert "jobfed on digits, seed 0" in text
    assert "personal, after training" in text
    assert "worst device" in text
    first_words = [line.split()[1] for line in shown(grid).splitlines() if len(line.split()) > 1]
    assert [word for word in first_words if word in LEVELS] == list(LEVELS)


def test_words():
    assert [amount(v, "B") for v in (0.0, 999.7, 1e6, None)] == ["0 B", "1000 B", "1 MB", "\N{EN DASH}"]
    assert [duration(v) for v in (59.0, 60.0, 3600.0, 90_000.0)] == ["59 s", "1 min 0 s", "1 h 0 min", "1 d 1 h"]
    assert score(float("nan"), "loss") == "not finite"
    assert score(-0.05, "accuracy", signed=True) == "\N{MINUS SIGN}5.0 %"
    thinned = capped(("round",), [[str(i)] for i in range(1000)], 11)
    assert [row[0] for row in thinned.rows][::5] == ["0", "500", "999"]
    assert "11 of 1000" in thinned.note


def test_a_second_stage_by_hand(tmp_path: Path) -> None:
    """Before and after in the page, the table and the JSON; the changes are differences of the two summaries."""
    run = write_run(tmp_path / "r", "fedavg")
    write_run(run / "personalized", "ditto")
    facts = summary(run)
    later = facts["personalized"]
    assert (later["algorithm"], later["folder"]) == ("ditto", str(run / "personalized"))
    grid = before_and_after(RunFolder.read(run), RunFolder.read(run / "personalized"))
    assert [row[0] for row in grid.rows] == ["global", "team", "personal, before training", "personal, after training"]
    for key, row in zip(("global", "personal_post"), (grid.rows[0], grid.rows[3]), strict=True):
        before, after = (f["models"][key] for f in (facts, later))
        for name, cells in (("weighted", row[1:4]), ("worst", row[4:7])):
            change = score(after[name] - before[name], "accuracy", signed=True)
            assert cells == [score(before[name], "accuracy"), score(after[name], "accuracy"), change]
    assert grid.rows[1][1:4] == ["–", score(later["models"]["team"]["weighted"], "accuracy"), "–"]
    text = write_report(run).read_text()
    assert 'href="personalized/report.html"' in text
    assert (run / "personalized" / "report.html").exists()
    assert "personalized" not in summary(run / "personalized")
