"""A table at hand (pandas, polars, pyarrow, a dict of columns) as a data set, read just as a parquet file would be."""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.interchange import from_dataframe

from tierfed.data import Columns, Dataset
from tierfed.data.tables import from_table as from_file
from tierfed.errors import InputError


def from_table(
    frame: Any,
    *,
    label: str = "label",
    device: str | None = None,
    features: tuple[str, ...] | list[str] = (),
    team: str | None = None,
    split: str | None = None,
    target: Literal["class", "number"] = "class",
    classes: tuple[str, ...] | list[str] = (),
    name: str = "table",
) -> Dataset:
    """A data set from a table with one row per sample; the arguments are those of `tierfed.data.Columns`.

    :param frame: a pandas or polars data frame, a pyarrow table, a dict of columns, or anything that speaks Arrow
    :param label: the target column; :param target: "class", or "number" for a regression
    :param device: who holds the row; None: the column "device" where there is one
    :param features: the input columns; none named: all numeric columns that have no other use
    :raises InputError: no table, a column that is not there (with the nearest name), a feature that is no number
    """
    columns = Columns(
        features=tuple(features),
        label=label,
        device=device,
        team=team,
        split=split,
        target=target,
        classes=tuple(classes),
    )
    return dataset(frame, columns, name)


def dataset(frame: Any, columns: Columns, name: str = "table") -> Dataset:
    """A data set as it is, or a table (see `from_table`) by the columns of a config.

    :raises InputError: see `from_table`
    """
    if isinstance(frame, Dataset):
        return frame
    table = _without_index(to_arrow(frame), columns)
    # one reader for all tables: a frame means what the same rows in a parquet file mean
    with tempfile.TemporaryDirectory(prefix="tierfed-") as folder:
        path = Path(folder) / f"{name}.parquet"
        try:
            pq.write_table(table, path)
            return from_file(path, columns, "parquet")
        except InputError as err:
            raise InputError(str(err).replace(str(path), f"the {name}")) from None
        except (pa.ArrowException, OSError) as err:
            raise InputError(f"the {name} cannot be read: {err}; give columns of numbers and of names") from None


def to_arrow(frame: Any) -> pa.Table:
    """Any kind of table as a pyarrow table; neither pandas nor polars is imported.

    :raises InputError: it is no table
    """
    try:
        if isinstance(frame, pa.Table):
            return frame
        if isinstance(frame, Mapping) or hasattr(frame, "__arrow_c_stream__"):
            return pa.table(frame)
        if hasattr(frame, "__dataframe__"):
            return from_dataframe(frame)
    except (pa.ArrowException, TypeError, ValueError) as err:
        raise InputError(f"the table cannot be read: {err}; give one row per sample and one type per column") from None
    raise InputError(
        f"data is {type(frame).__module__}.{type(frame).__qualname__}; wanted a tierfed.Dataset, or a table: a "
        "pandas or polars data frame, a pyarrow table, a dict of columns"
    )


def _without_index(table: pa.Table, columns: Columns) -> pa.Table:
    """The table without the index of a pandas frame, which is no feature; an index that the columns name stays."""
    about = json.loads((table.schema.metadata or {}).get(b"pandas", b"{}"))
    index = [i for i in about.get("index_columns", ()) if isinstance(i, str)]
    named = {columns.label, columns.device, columns.team, columns.split, *columns.features, "device", "team", "split"}
    return table.drop_columns([i for i in index if i in table.column_names and i not in named])
