"""The settings of the data: the source, who holds what, and what each device trains and tests on."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Gt, Le

from tierfed.settings import Count, Fraction, Natural, Positive, Share


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The columns of a csv or parquet file. (An npz file has arrays x and y and, if it likes, device, team, split.)

    :param features: the input columns; none named: all numeric columns that have no other use
    :param label: the target column
    :param device: who holds the row; None: the column "device" where there is one
    :param team: the natural team of the row's device; None: the column "team" where there is one
    :param split: "train", "val" or "test"; None: the column "split" where there is one
    :param target: "class" (labels are names or 0, 1, 2 …) or "number" (regression)
    :param classes: the names of all classes, in order; none: those that occur in the file
    """

    features: tuple[str, ...] = ()
    label: str = "label"
    device: str | None = None
    team: str | None = None
    split: str | None = None
    target: Literal["class", "number"] = "class"
    classes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class SplitSettings:
    """Training, validation and test rows of every device.

    :param by: "time" (earliest rows train, latest rows test), "random" (the same share of every label),
        "given" (the source's own split), "auto": recordings by time, else the source's split where every device has
        a part of it, else random
    :param test: share of a device's rows that tests
    :param val: share of the training part that validates
    """

    by: Literal["auto", "time", "random", "given"] = "auto"
    test: Fraction = 0.3
    val: Fraction = 0.2


@dataclass(frozen=True, kw_only=True)
class PartitionSettings:
    """Who holds what. See `tierfed.data.partition` for the kinds.

    :param kind: natural, iid, dirichlet, classes, shards, pfedla1, pfedla2, permfl, quantity, drawn
    :param devices: number of devices; None: the source's own devices (natural, classes), else 20
    :param alpha: concentration of `dirichlet`, of `quantity` with the Dirichlet law and of the labels of a device
        (drawn); small is more uneven
    :param min_size: the fewest training rows of a device (dirichlet, quantity); the fewest rows in all (drawn)
    :param classes: labels per device; None: 2 (classes, permfl), 4 (pfedla1), 2 dominant ones (pfedla2), shares from
        Dir(alpha) of all (drawn)
    :param type: 1 balanced IID, 2 balanced non-IID, 3 imbalanced non-IID, 4 imbalanced and mixed (shards)
    :param shards: shards per device (type 2)
    :param min_shards: least shards per device (types 3 and 4)
    :param max_shards: most shards per device (types 3 and 4)
    :param iid_share: share of the devices whose rows are IID (type 4)
    :param size: rows per device (pfedla1, pfedla2); of all parts together, on average (drawn)
    :param sizes: how the rows per device vary: lognormal with `sigma`, uniform from `min_size` up; None: not at all
        (drawn)
    :param dominance: share of a device's rows that its dominant labels have together (pfedla2)
    :param law: of the sizes (quantity)
    :param sigma: standard deviation of the logarithm of a size (quantity with the lognormal law, drawn)
    """

    kind: str = "natural"
    devices: Count | None = None
    alpha: Positive = 0.5
    min_size: Natural = 10
    classes: Count | None = None
    type: Literal[1, 2, 3, 4] = 2
    shards: Count = 2
    min_shards: Count = 1
    max_shards: Count = 2
    iid_share: Share = 0.5
    size: Count = 600
    sizes: Literal["lognormal", "uniform"] | None = None
    dominance: Share = 0.8
    law: Literal["lognormal", "dirichlet"] = "lognormal"
    sigma: Positive = 1.0

    @property
    def number(self) -> int:
        """How many devices are drawn."""
        return self.devices or 20


@dataclass(frozen=True, kw_only=True)
class DrawSettings:
    """How many of its rows each device keeps, drawn once per seed after the split; validation rows stay as they are.

    :param train: training rows of a device, or all it has where these are fewer. Numbers per label are random: shares
        from Dir(alpha), as far as there are rows, at least one row of every label; none: all
    :param test: test rows of a device, the same number of every label it trains on (one more of some where the labels
        do not divide it); fewer of all where one label has fewer; none: all
    :param alpha: concentration of the shares of labels in training; small is more uneven
    """

    train: Count | None = None
    test: Count | None = None
    alpha: Positive = 1.0


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Everything about the data of a run.

    :param source: a built-in set (`tierfed.data.DATASETS`), or npz, parquet, csv together with `path`
    :param path: the user's file, or the official folder of a built-in set
    :param dir: the data directory; None: the variable TIERFED_DATA, else the user's cache folder
    :param variant: which part of EMNIST
    :param batch: samples per minibatch, or "all"
    :param standardize: to mean 0 and variance 1 per channel or feature, by training rows only; "auto": numbers yes,
        images no (bytes are always divided by 255)
    :param train_fraction: keep only this share of every device's training and validation rows (at least one row per
        label stays); test rows are never touched
    :param devices: take only this many of the source's own devices (natural, classes), drawn once per seed among those
        that are not dropped; None: all
    :param public: share of every device's training rows that goes to the cloud before the run, as data of its own
    :param public_path: an npz, csv or parquet file with the cloud's data, in the place of `public`: raw samples with
        the shape, the columns and the classes of all others
    :param pooled: every device trains on the training rows of all devices; with FedAvg and topology.participation = 1
        that is training in one place, the baseline without any federation. Test rows stay those of each device
    :param layout: of a window of worn sensors. "signal": [channels, window]; "bitmap": [3, height, width], a pixel is
        a triple of axes, those of the accelerometer in order of time, row by row, then those of the gyroscope
    :param min_samples: the fewest training rows that a device may have
    :param too_small: what to do with a device that has fewer
    :param window: samples per window (recordings)
    :param step: samples from one window to the next (recordings)
    """

    source: str = "watch"
    path: str | None = None
    dir: str | None = None
    variant: Literal["digits", "letters", "balanced", "byclass", "bymerge", "mnist"] = "digits"
    batch: Count | Literal["all"] = 20
    standardize: bool | Literal["auto"] = "auto"
    train_fraction: Annotated[float, Gt(0), Le(1)] = 1.0
    devices: Count | None = None
    public: Fraction = 0.0
    public_path: str | None = None
    pooled: bool = False
    layout: Literal["signal", "bitmap"] = "signal"
    min_samples: Count = 2
    too_small: Literal["error", "drop"] = "error"
    window: Count = 50
    step: Count = 25
    columns: Columns = field(default_factory=Columns)
    split: SplitSettings = field(default_factory=SplitSettings)
    partition: PartitionSettings = field(default_factory=PartitionSettings)
    draw: DrawSettings = field(default_factory=DrawSettings)
