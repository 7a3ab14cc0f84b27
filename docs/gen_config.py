"""Writes docs/reference/config.md from the settings themselves: python docs/gen_config.py [--check]"""

import ast
import dataclasses
import inspect
import re
import sys
import textwrap
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Union

from annotated_types import Ge, Gt, Le, Lt

from tierfed.algorithms import REGISTRY, make
from tierfed.config import Config
from tierfed.data.drawn import draw
from tierfed.data.partition import DRAWN, ON_DEMAND
from tierfed.models import MODELS

TARGET = Path(__file__).parent / "reference" / "config.md"
ALGORITHM = """`name` is a name of `tierfed algorithms` or `"package.module:Class"` (default `"fedavg"`), `label` an
optional name for folders and reports; all other keys are hyper-parameters of the method."""
HEAD = """# Configuration reference

Every table and key of a config, with its default and what it means. A config is TOML; whatever it leaves out has the
default. `tierfed run CONFIG --set section.key=value` changes one key, and an unknown key is an error that names the
nearest valid one. This page is written by `docs/gen_config.py` from the settings in the source.

The defaults of `[algorithm]` are those of the class; a name of the registry may start from other values (its *preset*).
"""

# What the source leaves to the name of a key.
MORE: dict[str, dict[str, str]] = {
    "RunSettings": {
        "rounds": "Cloud rounds T; an algorithm may end a run earlier.",
        "seed": "Of everything random: partition, teams, first model, participation, batches, dropout masks, faults.",
        "device": "Where PyTorch computes; auto: CUDA where there is one.",
        "dtype": "Precision of model and data.",
    },
    "ModelSettings": {"weight_decay": "Adds weight_decay / 2 · |w|² over the trainable entries to the trained loss."},
    "EngineSettings": {
        "name": "auto: serial for recurrent networks and, on a CPU, for networks with convolutions; else vectorized."
    },
    "GridSettings": {"seeds": "Seeds of the grid; none: run.seed."},
    "FedAdam": {
        "server_lr": "Step of the cloud.",
        "beta1": "Decay of the first moment m.",
        "beta2": "Decay of the second moment v.",
        "optimizer": "sgd: x ← x + server_lr · m.",
    },
    "FineTune": {
        "tune_epochs": "Passes of the fine-tuning.",
    },
    "Scaffold": {"server_lr": "Step of the cloud towards the mean, η_g."},
    "JobFed": {
        "eta": "Step η of α.",
        "gamma": "Target γ of R: above it α falls, below it α rises.",
        "beta": "Weight β of the loss proportion in R; 1 − β weighs the change-rate proportion.",
        "alpha_min": "Floor of α; above 0 a device never stops listening to the global model.",
        "alpha_max": "Ceiling of α.",
        "alpha_rule": "controller: α − η (R − γ); gradient (Eq. 4): α − η (J_g − J_l); fixed: α stays.",
        "alpha_effect": "np_mix: training starts at α NP + (1 − α) NP_i; none: α is only followed; prox: it weighs a "
        "pull to NP.",
        "alpha_scope": "Who has an α: every device, every team, or the cloud alone.",
        "change_share": "Whose change is the numerator of the change-rate proportion.",
        "global_loss": "Where J_g comes from: (NP, P_i) on the device, the complete global model on the device, or "
        "data of the cloud (needs data.public).",
        "private_set": "Which batch-norm entries are P: y weight, b bias, u running mean, s running variance.",
        "recluster_start": "First round after which devices may change team.",
        "direction": "Whose change is a device's direction: batch-norm weights and biases, the whole model, or NP.",
        "clustering": "Average linkage of 1 − cosine, or k-means on the sphere for many devices.",
        "cluster_scope": "Devices move among all fogs, or among the clusters of their fog (needs topology.clusters).",
        "min_team_size": "Smaller teams get the nearest outsiders.",
        "stopping": "Which rules may end the run: Eq. 5 (normal), Eq. 7 (early).",
        "kappa": "Decay κ of ζ in Eq. 6.",
        "epsilon": "Largest change of both losses for the normal stop, ε.",
        "theta_r": "Ratio of successive changes of the global loss for the early stop, θ_r.",
        "patience": "Rounds in a row that a rule must hold.",
        "min_rounds": "No stop before this many rounds.",
        "stop_units": "Gap and changes of the losses relative to the losses, or as they are.",
    },
}


def page() -> str:
    """The whole reference."""
    parts = [HEAD]
    for field in dataclasses.fields(Config):
        default = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
        if dataclasses.is_dataclass(default):
            parts += sections(f"[{field.name}]", type(default))
        elif (kind := named_tables(hints(Config)[field.name])) is not None:
            parts += sections(f"[{field.name}.NAME]", kind)
        else:
            parts.append(f"## `[{field.name}]`\n\n{ALGORITHM}\n")
            parts += algorithms()
    return "\n".join([*parts, partitions(), models()])


def partitions() -> str:
    """The kinds of data.partition."""
    lines = ["## Partitions", "", "| `data.partition.kind` | who holds what |", "|---|---|"]
    lines.append("| `natural` | The source's own devices, as they are. |")
    kinds = {**DRAWN, ON_DEMAND: draw}
    said = {k: one_line((inspect.getdoc(f) or "").partition(":param")[0]) for k, f in kinds.items()}
    return "\n".join(lines + [f"| `{k}` | {text} |" for k, text in said.items()]) + "\n"


def models() -> str:
    """The networks that come along."""
    lines = ["## Models", "", "| `model.name` | what it is | samples | after |", "|---|---|---|---|"]
    lines += [f"| `{m.name}` | {m.about} | {m.wants} | {m.source} |" for m in MODELS.values()]
    return "\n".join(lines) + "\n"


def sections(path: str, cls: type) -> list[str]:
    """A table of the keys of one settings class, then those of the tables inside."""
    inner = {f.name: t for f in dataclasses.fields(cls) if dataclasses.is_dataclass(t := hints(cls)[f.name])}
    own = [f for f in fields(cls) if f.name not in inner]
    out = [f"## `{path}`\n\n{summary(cls)}\n" + (f"\n{table(cls, own)}" if own else "")]
    for name, kind in inner.items():
        out += sections(f"[{path[1:-1]}.{name}]", kind)
    for field in dataclasses.fields(cls):
        kind = tables_of(hints(cls)[field.name])
        if kind is not None:
            out += sections(f"[[{path[1:-1]}.{field.name}]]", kind)
    return out


def tables_of(hint: Any) -> type | None:
    """The settings class of a list of tables."""
    inside = [t for part in typing.get_args(hint) for t in typing.get_args(part)]
    return next((t for t in inside if isinstance(t, type) and dataclasses.is_dataclass(t)), None)


def named_tables(hint: Any) -> type | None:
    """The settings class of tables by name."""
    return next((t for t in typing.get_args(hint) if isinstance(t, type) and dataclasses.is_dataclass(t)), None)


def algorithms() -> list[str]:
    """Names, presets and hyper-parameters, one table for each class of the registry."""
    out: list[str] = []
    of_class: dict[type, list[tuple[str, Mapping[str, Any]]]] = {}
    for name, entry in sorted(REGISTRY.items()):
        of_class.setdefault(type(make(name)), []).append((name, entry.preset))
    for cls, names in of_class.items():
        title = ", ".join(f"`{name}`" for name, _ in names)
        presets = "; ".join(f"`{n}`: {values(p)}" for n, p in names if p)
        about = f"{title} ({cls.__name__})" + (f". Presets: {presets}" if presets else "")
        out.append(f"### {', '.join(n for n, _ in names)}\n\n{about}\n\n{table(cls, fields(cls))}")
    return out


def values(preset: Mapping[str, Any]) -> str:
    return ", ".join(f"{k} = {shown(v)}" for k, v in preset.items())


def fields(cls: type) -> list[dataclasses.Field[Any]]:
    return list(dataclasses.fields(cls))


def hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls, include_extras=True)


def table(cls: type, rows: list[dataclasses.Field[Any]]) -> str:
    said, kinds = descriptions(cls), hints(cls)
    lines = ["| key | default | values | meaning |", "|---|---|---|---|"]
    for f in rows:
        cells = (f"`{f.name}`", default_of(f), values_of(kinds[f.name]), said.get(f.name, ""))
        lines.append("| " + " | ".join(c.replace("|", r"\|") for c in cells) + " |")
    return "\n".join(lines) + "\n"


def default_of(field: dataclasses.Field[Any]) -> str:
    if field.default is not dataclasses.MISSING:
        return f"`{shown(field.default)}`"
    return "required" if field.default_factory is dataclasses.MISSING else f"`{shown(field.default_factory())}`"


def shown(value: Any) -> str:
    """A default as TOML would say it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, tuple):
        return "[" + ", ".join(map(shown, value)) + "]"
    return str(value)


def values_of(hint: Any) -> str:
    """What a key may be, in words."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return values_of(args[0]) + ",".join(bound(a) for a in args[1:])
    if origin is Literal:
        return ", ".join(f"`{shown(a)}`" for a in args)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(values_of(a) for a in args if a is not type(None)))
    if origin is tuple:
        return f"list of {values_of(args[0])}"
    if origin is dict:
        return "table"
    return {int: "whole number", float: "number", str: "text", bool: "true, false"}.get(hint, "tables")


def bound(limit: Any) -> str:
    for kind, sign, name in ((Gt, ">", "gt"), (Ge, "≥", "ge"), (Lt, "<", "lt"), (Le, "≤", "le")):
        if isinstance(limit, kind):
            return f" {sign} {getattr(limit, name)}"
    return ""


def summary(cls: type) -> str:
    """The docstring without its parameters."""
    return one_line((inspect.getdoc(cls) or "").partition(":param")[0])


def descriptions(cls: type) -> dict[str, str]:
    """What is said about each field: the text below it, a :param: of the class, or the remark behind it."""
    out: dict[str, str] = {}
    for base in reversed([c for c in cls.__mro__ if dataclasses.is_dataclass(c)]):
        source = textwrap.dedent(inspect.getsource(base))
        lines, body = source.splitlines(), typing.cast("ast.ClassDef", ast.parse(source).body[0]).body
        said = re.findall(r":param (\w+): (.*?)(?=\n\s*:param|\Z)", inspect.getdoc(base) or "", re.DOTALL)
        out |= {name: one_line(text) for name, text in said}
        for node, after in zip(body, [*body[1:], None], strict=True):
            if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)):
                continue
            remark = re.search(r"  # (?!type:|noqa)(.+)$", lines[(node.end_lineno or node.lineno) - 1])
            if remark:
                out[node.target.id] = one_line(remark[1])
            if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                out[node.target.id] = one_line(str(after.value.value))
        out |= {name: text for name, text in MORE.get(base.__name__, {}).items() if name not in out}
    return out


def one_line(text: str) -> str:
    return " ".join(text.split())


def main() -> int:
    """Writes the page, or with --check says whether it is up to date."""
    text = page()
    if "--check" in sys.argv[1:]:
        return 0 if TARGET.read_text("utf-8") == text else 1
    TARGET.write_text(text, "utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
