"""A run folder with made-up ties, for what reads them."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tierfed.metrics import METRICS, TIES
from tierfed.report.load import DEVICES


def write_ties(
    folder: Path, weights: dict[int, dict[str, Any]], nodes: dict[str, list[str]], counts: list[Any]
) -> Path:
    """A run folder with these ties; in each node the first rows and columns of a matrix belong to its devices."""
    folder.mkdir(parents=True)
    names = [d for devices in nodes.values() for d in devices]
    (folder / "config.toml").write_text('[algorithm]\nname = "pfedla"\n[data]\nsource = "toy"\n')
    n = len(names)
    table = {"device": names, "team": [""] * n, **dict.fromkeys(("train", "val", "test"), [60] * n), "counts": counts}
    pq.write_table(pa.table(table, schema=DEVICES), folder / "devices.parquet")
    pq.write_table(METRICS.empty_table(), folder / "metrics.parquet")
    (folder / "events.jsonl").write_text("")
    rows = [
        (r, node, layer, a, b, float(m[i][j]))
        for r, layers in weights.items()
        for node, devices in nodes.items()
        for layer, m in layers.items()
        for i, a in enumerate(devices)
        for j, b in enumerate(devices)
    ]
    columns = list(zip(*rows, strict=True))
    pq.write_table(
        pa.table([pa.array(c, f.type) for c, f in zip(columns, TIES, strict=True)], schema=TIES),
        folder / "ties.parquet",
    )
    return folder
