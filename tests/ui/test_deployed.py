"""The nodes of a really deployed run on the page of the live view, from their states wherever these are."""

import tomllib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from deploy.harness import config
from deploy.processes import RUN, running
from tierfed.ui.nodes import elsewhere, health, states
from ui.browser import Browser, wait

Serve = Callable[..., str]
FOGS = {f"fog-{i}": [str(d) for d in range(12) if d % 3 == i] for i in range(3)}
TIERS = {"cloud": "cloud", **dict.fromkeys(FOGS, "fog"), **{str(i): "device" for i in range(12)}}


def nodes(root: Path, allowed: list[Path]) -> dict[str, dict[str, Any]]:
    return {n["node"]: n for n in health(root / RUN, allowed)}


def test_nodes_of_a_run_at_work(tmp_path: Path, browser: Browser, serve: Serve) -> None:
    """Cloud, three fogs and twelve devices as processes; deploy.folder is beside what is shown. A fog is killed."""
    root, kept = tmp_path / "runs", tmp_path / "states"
    root.mkdir()
    kept.mkdir()
    tables = {"run": {"rounds": 2000, "out": f"runs/{RUN}"}, "deploy": {"folder": "states"}, "eval": {"every": 1000}}
    with running(tmp_path, partial(config, tmp_path, {"name": "fedavg"}), TIERS, **tables) as run:
        for some in (["cloud"], *([fog] for fog in FOGS), *FOGS.values()):
            run.start(*some)
        found = wait(lambda: (n := nodes(root, [root, kept])) and len(n) == len(TIERS) and n, "all nodes")
        wait(lambda: all(n["round"] > 0 for n in nodes(root, [root, kept]).values()), "a round of all")
        assert {n["state"] for n in found.values()} <= {"at work", "not connected"}
        assert states(root / RUN) == kept.parent / "states"
        assert tomllib.loads((root / RUN / "config.toml").read_text())["deploy"]["folder"] == "states"
        # without leave nothing outside of the root is read, and the page says so
        assert set(nodes(root, [root])) == {"cloud"}
        assert elsewhere(root / RUN, [root]) == str(kept)

        browser.theme("light")
        browser.open(serve(root) + f"run/{RUN}")
        assert str(kept) in browser.until(
            "[...document.querySelectorAll('.note')].find(e => /--nodes/.test(e.textContent))?.textContent"
        )
        browser.open(serve(root, nodes=[kept]) + f"run/{RUN}")
        rows = "[...document.querySelectorAll('#nodes tbody tr')].map(r => [...r.children].map(c => c.textContent))"
        browser.until(f"{rows}.length === {len(TIERS)}")
        browser.until(f"{rows}.every(r => r[1] === 'at work')")
        assert browser.js(f"{rows}.find(r => r[0] === 'cloud')[3]") == "3 of 3"
        browser.shoot("live-nodes-light")
        run.kill("fog-1")
        browser.until(f"{rows}.filter(r => r[1] === 'not connected').length === 4")
        browser.until(f"{rows}.find(r => r[0] === 'cloud')[3] === '2 of 3'")
        browser.theme("dark")
        browser.shoot("live-nodes-dark")
        assert browser.complaints() == []
