"""The config of a run: TOML tables, checked as a whole before anything is touched."""

import itertools
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import tomli_w

from tierfed.around import SelectSettings, SweepSettings, TrackSettings
from tierfed.augment import AugmentSettings
from tierfed.cost import CostSettings
from tierfed.data import DataSettings
from tierfed.deployment import DeploySettings
from tierfed.dpsgd import DpSgdSettings
from tierfed.errors import InputError, nearest
from tierfed.faults import Faults
from tierfed.links import AttackSettings, LinkSettings
from tierfed.lookup import near_file
from tierfed.offload import OffloadSettings
from tierfed.settings import Count, Natural, NonNegative, build, table
from tierfed.topology import TopologySettings

STAGE = "personalized"
"""The folder of a run's second stage, inside its own."""


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """How long, where, and on what."""

    out: str | None = None
    """The run folder; none: runs/<data set>-<algorithm>-s<seed>."""
    rounds: Count = 50
    seed: Natural = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["float32", "float64"] = "float32"
    threads: Natural = 0
    """Threads of PyTorch; 0: one for small dense models, all cores for convolutions."""
    checkpoint_every: Count = 1
    """Rounds between commits."""
    jobs: Natural = 0
    """Runs of a grid at the same time; 0: as many as there are cores."""


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """How rounds are computed; never what."""

    name: Literal["auto", "serial", "vectorized", "ray"] = "auto"
    """serial: one node after the other, every message through the codec, the reference; ray: vectorized, devices being
    trained by Ray workers on any number of machines; "auto": vectorized, where the run allows it."""
    kernel: Literal["auto", "loop", "vmap", "fused", "native", "compile", "graphs"] = "auto"
    """How the vectorized engine trains: loop, one device after the other; vmap, many models as one; fused, by hand for
    chains of dense layers; compile, vmap through torch.compile; graphs, CUDA graphs of fused. "auto": by the kind of
    the model, and by a trial where a run takes longer than a minute."""
    workers: Natural = 0
    """Processes that train, each on one core; 0: one for short runs, else as many as there are cores; with Ray as many
    as the cluster has."""
    bf16: bool = False
    """Products in bfloat16, for convolutions with the kernel "loop": faster, and other results."""
    chunk: Natural = 0
    """Devices that a process trains at once; 0: as many as keep their models in the processor's cache."""
    address: str = ""
    """Of the Ray cluster: "auto", the one that this machine belongs to, or host:port of its head; "": one that is begun
    on this machine, and ends with the run."""
    gpus: NonNegative = 0.0
    """GPUs of each Ray worker, or the share of one; 0: they train on processors."""

    @property
    def here(self) -> "EngineSettings":
        """The same without machines beside this one: to look at what a run has left."""
        return replace(self, name="vectorized", address="", gpus=0.0) if self.name == "ray" else self


@dataclass(frozen=True, kw_only=True)
class KindSettings:
    """A network that some of the devices train, where not all can train the same."""

    name: str
    """As model.name."""
    options: dict[str, Any] = field(default_factory=dict)
    """Arguments of the network."""
    devices: Count | tuple[str, ...] | None = None
    """How many devices train it, drawn once per seed among those that no table names; or their names; none: all the
    rest."""


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """The network that everybody trains, or with `kinds` those of different devices."""

    name: str = "auto"
    """A name of `tierfed.models.MODELS`, "package.module:Class", or "auto": by the shape of the data."""
    loss: str = "auto"
    """cross_entropy, mse, l1, huber, bce, "package.module:function"; "auto": by the labels."""
    weight_decay: NonNegative = 0.0
    options: dict[str, Any] = field(default_factory=dict)
    """Arguments of the network."""
    kinds: tuple[KindSettings, ...] | None = None
    """Tables [[model.kinds]] in the place of name and options: different networks for different devices."""


@dataclass(frozen=True, kw_only=True)
class EvalSettings:
    """When and what is evaluated, always on the devices' own test data."""

    every: Count = 5
    """Rounds; the first and the last are always evaluated."""
    devices: Natural = 0
    """How many devices are evaluated each time, drawn anew for each evaluation; 0: all."""
    final: Literal["sample", "all"] = "sample"
    """Where only some devices are evaluated: whether the last evaluation is of all of them."""
    post: bool = True
    """Also the personal models after local training, which costs a local training of every device."""
    labels: bool = True
    """Also the accuracy of every device on each label, in the last evaluation of a simulation and as long as these are
    at most 20,000 numbers for a model; deployed devices do not tell it."""
    baseline: str | None = None
    """Folder of a finished local-only run on the same data: gains are measured against it."""


@dataclass(frozen=True, kw_only=True)
class PersonalizeSettings:
    """A stage after the training: the models that it has left are personalized, in a run folder of their own."""

    mechanism: str = "none"
    """Any algorithm (`tierfed algorithms`): ftl, reptile, fedper, ditto, ...; "none": no such stage."""
    rounds: Count = 10
    """Cloud rounds of the stage."""
    start: Literal["personal", "global"] = "personal"
    """What every device begins with: its own model as the training has left it (personal_pre), or the global one."""
    options: dict[str, Any] = field(default_factory=dict)
    """Hyper-parameters of the mechanism; lr, epochs and steps are those of [algorithm] where they are left out."""


@dataclass(frozen=True, kw_only=True)
class StartSettings:
    """Another run whose models are the beginning of this one; it must be finished and have the same devices."""

    run: str | None = None
    """Its folder; none: everybody begins with the initial model."""
    of: Literal["personal", "global"] = "personal"
    """What every device begins with: its own model there (personal_pre), or the global one."""
    round: Natural | None = None
    """The round that it must be at; none: any."""


@dataclass(frozen=True, kw_only=True)
class GridSettings:
    """Several runs in one folder, for comparison: every algorithm with every seed."""

    algorithms: tuple[dict[str, Any], ...] = ()
    """Tables like [algorithm]; what they leave out comes from there. An optional `label` names the runs."""
    seeds: tuple[Natural, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything a run depends on."""

    run: RunSettings = field(default_factory=RunSettings)
    data: DataSettings = field(default_factory=DataSettings)
    augment: AugmentSettings = field(default_factory=AugmentSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    algorithm: dict[str, Any] = field(default_factory=lambda: {"name": "fedavg"})
    """`name` and hyper-parameters, see `tierfed algorithms`."""
    topology: TopologySettings = field(default_factory=TopologySettings)
    faults: Faults = field(default_factory=Faults)
    links: dict[str, LinkSettings] = field(default_factory=dict)
    """[links.NAME]: what happens to replies on one level of links."""
    attack: AttackSettings = field(default_factory=AttackSettings)
    dp_sgd: DpSgdSettings = field(default_factory=DpSgdSettings)
    cost: CostSettings = field(default_factory=CostSettings)
    offload: OffloadSettings = field(default_factory=OffloadSettings)
    eval: EvalSettings = field(default_factory=EvalSettings)
    engine: EngineSettings = field(default_factory=EngineSettings)
    deploy: DeploySettings = field(default_factory=DeploySettings)
    personalize: PersonalizeSettings = field(default_factory=PersonalizeSettings)
    start: StartSettings = field(default_factory=StartSettings)
    grid: GridSettings = field(default_factory=GridSettings)
    select: SelectSettings = field(default_factory=SelectSettings)
    track: TrackSettings = field(default_factory=TrackSettings)
    sweep: SweepSettings = field(default_factory=SweepSettings)


def from_table(tables: Mapping[str, Any]) -> Config:
    """:raises InputError: an unknown key (with the nearest valid name) or an impossible value"""
    config = build(Config, tables, "")
    for algorithm in (config.algorithm, *config.grid.algorithms):
        if not isinstance(algorithm.get("name", "-"), str):
            raise InputError(f"algorithm.name = {algorithm['name']!r}: wanted a name, see `tierfed algorithms`")
    if "name" in config.personalize.options:
        raise InputError("personalize.options has a name; the mechanism is named by personalize.mechanism")
    return config


def personalization(config: Config) -> dict[str, Any] | None:
    """The table of the algorithm that personalizes after the training; none: there is no such stage."""
    stage = config.personalize
    if stage.mechanism == "none":
        return None
    return {"name": stage.mechanism, **local_training(config.algorithm), **stage.options}


def load_config(
    source: Config | Mapping[str, Any] | str | Path, overrides: Mapping[str, Any] | Iterable[str] = ()
) -> Config:
    """A config from whatever describes one.

    :param source: a TOML file, the name of a preset, a dict of tables, or a config
    :param overrides: {"algorithm.lr": 0.05} or ["algorithm.lr=0.05"], applied on top
    :raises InputError: no such file or preset, no valid TOML, an unknown key or an impossible value
    """
    if isinstance(source, Config):
        tables = table(source)
    else:
        tables = dict(source) if isinstance(source, Mapping) else read(str(source))
    if isinstance(overrides, Mapping):
        pairs = [(str(k), k.split("."), v) for k, v in overrides.items()]
    elif isinstance(overrides, str):
        raise InputError(f"overrides = {overrides!r}: wanted a dict or a list, for example {{'algorithm.lr': 0.05}}")
    else:
        return from_table(assign(tables, overrides))
    out: dict[str, Any] = _copied(tables)
    for text, keys, value in pairs:
        _put(out, text, keys, value)
    return from_table(out)


def presets() -> list[str]:
    """Names of the configs that come along."""
    return sorted(
        p.name.removesuffix(".toml") for p in resources.files("tierfed.presets").iterdir() if p.name.endswith(".toml")
    )


def preset_about(name: str) -> str:
    """What a preset is: the remark at its head."""
    lines = _preset(name).splitlines()
    return " ".join(line.removeprefix("# ") for line in itertools.takewhile(lambda t: t.startswith("#"), lines))


def _preset(name: str) -> str:
    return resources.files("tierfed.presets").joinpath(f"{name}.toml").read_text("utf-8")


def read(source: str) -> dict[str, Any]:
    """The tables of a TOML file, or of a preset by its name.

    :raises InputError: no such file or preset, or no valid TOML
    """
    path = Path(source)
    if path.suffix == ".toml" or path.exists():
        try:
            text = path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as err:
            raise InputError(
                f"cannot read the config {source}: {err}"
                f"{near_file(path, '.toml') or '; give the path of a TOML file'}; presets: {', '.join(presets())}"
            ) from None
    elif source in presets():
        text = _preset(source)
    else:
        hint = near_file(path, ".toml").removeprefix("; ") or nearest(source, presets())
        raise InputError(f"{source!r} is no TOML file and no preset; {hint}")
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as err:
        raise InputError(f"{source} is no valid TOML: {err}") from None


def assign(tables: dict[str, Any], assignments: Iterable[str]) -> dict[str, Any]:
    """Tables with "section.key=value" applied; values are TOML, bare words are strings.

    :raises InputError: no "=", or a path through something that is no table
    """
    out: dict[str, Any] = _copied(tables)
    for text in assignments:
        path, eq, value = text.partition("=")
        if not eq:
            raise InputError(f"--set {text!r}: wanted section.key=value, for example --set algorithm.lr=0.05")
        _put(out, text, [k.strip() for k in path.split(".")], _value(value.strip()))
    return out


def options(assignments: Iterable[str]) -> dict[str, Any]:
    """A table of hyper-parameters from "key=value".

    :raises InputError: no "="
    """
    out: dict[str, Any] = {}
    for text in assignments:
        key, eq, value = text.partition("=")
        if not (eq and key.strip()):
            raise InputError(f"--set {text!r}: wanted key=value, for example --set tune=head")
        out[key.strip()] = _value(value.strip())
    return out


def _put(tables: dict[str, Any], text: str, keys: list[str], value: Any) -> None:
    """One value into its table; `text` is what the user wrote."""
    if len(keys) < 2 or not all(keys):
        raise InputError(f"--set {text!r}: wanted section.key=value, for example --set algorithm.lr=0.05")
    node = tables
    for key in keys[:-1]:
        node = node.setdefault(key, {})
        if not isinstance(node, dict):
            raise InputError(f"--set {text!r}: {key} is no table")
    if keys == ["algorithm", "name"] and value != node.get("name"):
        kept = local_training(node)  # the other hyper-parameters would not fit another algorithm
        node.clear()
        node.update(kept)
    if keys == ["personalize", "mechanism"] and value != node.get("mechanism"):
        node.pop("options", None)
    node[keys[-1]] = value


def local_training(algorithm: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that every algorithm has: those of local training."""
    return {k: v for k, v in algorithm.items() if k in ("lr", "epochs", "steps")}


def _copied(value: Any) -> Any:
    return {k: _copied(v) for k, v in value.items()} if isinstance(value, Mapping) else value


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        return text


def to_toml(config: Config) -> str:
    """The resolved config, defaults included; `from_table` of it is the same config."""
    return tomli_w.dumps(table(config))
