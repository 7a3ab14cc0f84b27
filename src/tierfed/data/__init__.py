"""Data: sources, who holds what, and what each device trains and tests on."""

from tierfed.data.dataset import Dataset, Federation
from tierfed.data.loading import federate, load
from tierfed.data.public import public_samples
from tierfed.data.settings import Columns, DataSettings, DrawSettings, PartitionSettings, SplitSettings
from tierfed.data.show import heatmap
from tierfed.data.sources import DATASETS, Source, open_source

__all__ = [
    "DATASETS",
    "Columns",
    "DataSettings",
    "Dataset",
    "DrawSettings",
    "Federation",
    "PartitionSettings",
    "Source",
    "SplitSettings",
    "federate",
    "heatmap",
    "load",
    "open_source",
    "public_samples",
]
