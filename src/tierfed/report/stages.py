"""The two stages of a run beside each other: what the training has left, and what the personalization made of it."""

from tierfed.metrics import MODELS
from tierfed.report.load import RunFolder
from tierfed.report.words import INTERVAL, MODEL_NAMES, NONE, Grid, amount, duration, score, within


def before_and_after(run: RunFolder, later: RunFolder) -> Grid:
    """One row a model: the headline metric after the training and after the personalization, mean weighted by test
    samples and mean over the worst 10 % of the devices."""
    rows = []
    for model in (m for m in MODELS if m in run.models or m in later.models):
        row = [MODEL_NAMES[model]]
        for key in ("weighted", "worst"):
            found = [r.statistics(model) if model in r.models else {} for r in (run, later)]
            before, after = (s.get(key) for s in found)
            halves = [s.get("weighted_ci95") if key == "weighted" else None for s in found]
            change = None if before is None or after is None else after - before
            row += [within(v, half, run.metric) for v, half in zip((before, after), halves, strict=True)]
            row += [score(change, run.metric, signed=True)]
        rows.append(row)
    first, second = run.algorithm, later.algorithm
    headers = ("model", first, second, "change", f"worst 10 %, {first}", f"worst 10 %, {second}", "change")
    drawn = f" Evaluated on a {run.sample or later.sample}; {INTERVAL}." if run.sample or later.sample else ""
    return Grid(headers, rows, f"{_cost(run)} Then {later.ended}: {_cost(later)}{drawn}")


def _cost(run: RunFolder) -> str:
    rounds = f"{run.last_round} round{'s' * (run.last_round != 1)}"
    return f"{run.algorithm}, {rounds}: {amount(run.total_bytes, 'B')}, {duration(run.clock_seconds)} on the clock."


def origin(run: RunFolder) -> list[str]:
    """What a run began with, in words, where that was another run."""
    where = run.setting("start", "run")
    return [] if where is None else [f"begun with the {run.setting('start', 'of', NONE)} models of {where}"]
