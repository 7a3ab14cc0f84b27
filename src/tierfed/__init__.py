"""tierfed: hierarchical, personalized federated learning over a tree of computers: cloud, fog, device.

    result = tierfed.run({"algorithm": {"name": "jobfed"}, "run": {"rounds": 20}}, data=frame, module=Net())

trains a global model, team models and personal models; `tierfed run` does the same from a TOML file.
"""

from importlib.metadata import PackageNotFoundError, version

from tierfed import waiting as _  # noqa: F401
from tierfed.algorithm import Algorithm, Average, Batch, Data, Info, Relay, Tier
from tierfed.config import Config, load_config
from tierfed.data import Dataset, Federation
from tierfed.errors import InputError
from tierfed.export import export, load_model
from tierfed.frames import from_table
from tierfed.loop import Progress, Result, open_run
from tierfed.pipeline import personalize, resume, run
from tierfed.progress import watching
from tierfed.servers import Idle
from tierfed.task import Task

try:
    __version__ = version("tierfed")
except PackageNotFoundError:  # used from a source tree that is not installed
    __version__ = "0+unknown"

__all__ = [
    "Algorithm",
    "Average",
    "Batch",
    "Config",
    "Data",
    "Dataset",
    "Federation",
    "Idle",
    "Info",
    "InputError",
    "Progress",
    "Relay",
    "Result",
    "Task",
    "Tier",
    "__version__",
    "export",
    "from_table",
    "load_config",
    "load_model",
    "open_run",
    "personalize",
    "resume",
    "run",
    "watching",
]
