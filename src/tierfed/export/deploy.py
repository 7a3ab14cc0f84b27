"""From a finished run to one file: take a device's model, prune it, write it, quantize it, check it on test data."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from tierfed.algorithm import Algorithm
from tierfed.data import Federation
from tierfed.engine.evaluate import models
from tierfed.errors import InputError, nearest
from tierfed.evaluation import kind as kind_of
from tierfed.export import onnx, tensors
from tierfed.export.card import ModelCard
from tierfed.export.check import Variant, compared, losses, refuse_other_predictions
from tierfed.export.prune import keep_largest, masked, tuned, weights
from tierfed.export.quantize import quantized
from tierfed.loop import at_best, open_run
from tierfed.metrics import main_metric, write_atomic
from tierfed.models import MODELS, default_model
from tierfed.result import Result
from tierfed.selection import BEST
from tierfed.session import on_disk
from tierfed.tree import Params

KINDS = ("personal", "personal_post", "team", "global")
FORMATS = {"onnx": ".onnx", "safetensors": ".safetensors"}
Told = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Export:
    """What was written, and how it does.

    :param variants: the stages, float first; the file holds the last one
    :param metric: of their scores: accuracy, or abs_error of a regression
    :param samples: of the device's test data, that they were checked on
    :param warnings: what pruning and quantization cost, where it is more than one point of accuracy (one percent of the
        error)
    """

    file: Path
    format: str
    card: ModelCard
    variants: tuple[Variant, ...]
    metric: str
    samples: int
    warnings: tuple[str, ...]


def export(
    run: Path | str | Result,
    device: str,
    out: Path | str | None = None,
    *,
    model: str = "personal",
    format: Literal["onnx", "safetensors"] = "onnx",
    prune: float | None = None,
    tune_epochs: int = 2,
    int8: bool = False,
    data: Any = None,
    module: nn.Module | None = None,
    last: bool = False,
    watch: Told | None = None,
) -> Export:
    """Writes the model of one device of a finished run to a file, after it was checked on that device's test data.

    :param run: the folder of a run, or what `tierfed.run` gave
    :param device: its name
    :param out: the file; by default export/<device>-<model>… in the run folder (of a run without one: here)
    :param model: personal (what the device predicts with), personal_post (the same after one more local training), team
        or global
    :param format: onnx: raw samples in; logits, probabilities and label out, in float32. safetensors: for
        `tierfed.load_model`
    :param prune: share of the weights of linear layers and convolutions that becomes zero, in [0, 1)
    :param tune_epochs: passes over the device's training data after pruning, with the learning rate of the run
    :param int8: static quantization, calibrated on the device's training data
    :param data: what was given to `run`; :param module: the same; only where `run` is a folder
    :param last: of the last round, where the run has kept its best one ([select]), whose model is taken otherwise
    :param watch: is told what is being done
    :raises InputError: what cannot be exported, or does not predict what PyTorch does; nothing is then written
    """
    _check(model, format, prune, tune_epochs, int8)
    folder = run.folder if isinstance(run, Result) else Path(run)
    path = Path(out) if out is not None else _default(folder, device, model, format, prune, int8)
    _refuse(path, made=out is None)
    if format == "onnx":
        onnx.require_packages()
    told = watch or (lambda text: None)
    with _opened(run, data, module, last) as result:
        source = _source(result, device, model, format, prune, int8)
        variants, content = _stages(source, format, prune, tune_epochs, int8, told)
        kind = kind_of(result.world)
    told(f"writing {path}")
    with on_disk(path.parent):
        if out is None:
            path.parent.mkdir(parents=True, exist_ok=True)
        _refuse(path, made=out is None)
        write_atomic(path, content)
    return Export(
        file=path,
        format=format,
        card=source.card,
        variants=variants,
        metric=main_metric(kind),
        samples=len(source.test),
        warnings=losses(variants, kind, len(source.test)),
    )


@dataclass(frozen=True, kw_only=True)
class _Source:
    """A device's model and data."""

    result: Result
    index: int
    params: Params
    card: ModelCard
    test: Tensor  # rows of the pool

    def raw(self, rows: Tensor) -> Tensor:
        """Samples as the source gave them [n, *shape]."""
        return self.card.scaling.raw(self.result.world.federation.x[rows])

    def module(self, params: Params) -> nn.Module:
        """A module of its own, on the CPU, in evaluation mode."""
        module = copy.deepcopy(self.result.engine.task(self.index).module).cpu().eval()
        module.load_state_dict({k: v.cpu() for k, v in params.items()}, strict=False)
        return module


def _stages(
    source: _Source, format: str, prune: float | None, tune_epochs: int, int8: bool, told: Told
) -> tuple[tuple[Variant, ...], bytes]:
    """All stages, each checked, and the file of the last one."""
    result, i = source.result, source.index
    world, task = result.world, result.engine.task(i)
    made = {"float": source.params}
    if prune is not None:
        masks = keep_largest(task.module, source.params, prune)
        made["pruned"] = masked(source.params, masks)
        if tune_epochs:
            lessons = world.plan.one(i, Algorithm(epochs=tune_epochs), result.engine.round, 0)
            made["tuned"] = made["pruned"]
            for e in range(tune_epochs):
                told(f"fine-tuning what is left of it, pass {e + 1} of {tune_epochs}")
                once = lessons.passes(e, e + 1)
                made["tuned"] = tuned(task, made["tuned"], masks, once, world.algorithm.lr)
    x, y = world.federation.x[source.test], world.federation.y[source.test]
    raw, kind, variants = source.raw(source.test), kind_of(world), []
    for name, params in made.items():
        told(f"{format}: {name}")
        with torch.no_grad():
            expected = source.module(params)(x)
        inner = [params[k] for k in weights(task.module, params)]
        graph, content = _written(source, params, format)
        got = _outputs(source, content, format, raw)
        variants.append(compared(name, content, got, expected, y, kind, task.loss, inner))
        refuse_other_predictions(variants[-1], len(raw))
    if int8:
        told("onnx: int8")
        content = onnx.with_card(quantized(graph, source.raw(torch.from_numpy(world.federation.train[i]))), source.card)
        got = onnx.outputs(content, raw)
        variants.append(compared("int8", content, got, expected, y, kind, task.loss, inner))
    return tuple(variants), content


def _written(source: _Source, params: Params, format: str) -> tuple[bytes, bytes]:
    """(graph without a card, file) of ONNX; of safetensors the file twice."""
    if format == "onnx":
        graph = onnx.to_bytes(source.module(params), source.card)
        return graph, onnx.with_card(graph, source.card)
    content = tensors.to_bytes(source.module(params), source.card)
    return content, content


def _outputs(source: _Source, content: bytes, format: str, raw: Tensor) -> Any:
    """What a file gives for raw samples [n, C], read as a user would read it."""
    if format == "onnx":
        return onnx.outputs(content, raw)
    own = None if source.card.model in MODELS else source.result.engine.task(source.index).module
    module, card = tensors.from_bytes(content, own, "the exported file")
    with torch.no_grad():
        return module.cpu()(card.prepare(raw)).numpy()


def _check(model: str, format: str, prune: float | None, tune_epochs: int, int8: bool) -> None:
    if model not in KINDS:
        raise InputError(f"model = {model!r} is unknown; {nearest(model, KINDS)}")
    if format not in FORMATS:
        raise InputError(f"format = {format!r} is unknown; {nearest(format, FORMATS)}")
    if prune is not None and not 0 <= prune < 1:
        raise InputError(f"prune = {prune}: wanted the share of the weights to take out, at least 0 and less than 1")
    if tune_epochs < 0:
        raise InputError(f"tune_epochs = {tune_epochs}: wanted a number of passes, 0 or more")
    if int8 and format != "onnx":
        raise InputError(f"int8 is for ONNX, and the format is {format}; use format onnx, or leave int8 out")


def _default(folder: Path | None, device: str, model: str, format: str, prune: float | None, int8: bool) -> Path:
    parts = [device, model, *([] if prune is None else ["pruned"]), *(["int8"] if int8 else [])]
    name = "-".join(parts).replace("/", ".").replace("\\", ".") + FORMATS[format]
    return Path(name) if folder is None else folder / "export" / name


def _refuse(path: Path, made: bool) -> None:
    """:raises InputError: there is something at the place of a new file, or no folder for it that will not be `made`"""
    if path.exists() or path.is_symlink():
        raise InputError(f"{path} exists; delete it, or choose another file with --out")
    if not made and not path.parent.is_dir():
        raise InputError(f"there is no folder {path.parent} for {path.name}; make it, or choose another --out")


@contextmanager
def _opened(run: Path | str | Result, data: Any, module: nn.Module | None, last: bool) -> Iterator[Result]:
    """A finished run, at its best round where it has kept one.

    :raises InputError: it is a grid, or not at its end
    """
    if isinstance(run, Result):
        _finished(run)
        if last or run.folder is None or not (run.folder / BEST / "data.mdb").is_file():
            yield run
            return
        with at_best(run) as result:
            yield result
        return
    folder = Path(run)
    if (folder / "grid.json").exists():
        runs = sorted(p.name for p in folder.iterdir() if (p / "config.toml").exists())
        raise InputError(f"{folder} holds several runs; give the folder of one: {', '.join(runs) or 'none yet'}")
    with open_run(folder, data=data, module=module) as result:
        _finished(result)
        if last or not (folder / BEST / "data.mdb").is_file():
            yield result
            return
        with at_best(result) as best:
            yield best


def _finished(result: Result) -> None:
    done, wanted = result.engine.round, result.world.config.run.rounds
    stopped = any(event.get("event") == "stop" for event in result.events)
    if done < wanted and not stopped:
        where = "tierfed.run" if result.folder is None else f"`tierfed resume {result.folder}`"
        raise InputError(
            f"the run has trained {done} of its {wanted} rounds; bring it to its end first: {where} "
            f"(or `--rounds {done}` to end it here)"
        )


def _source(result: Result, device: str, model: str, format: str, prune: float | None, int8: bool) -> _Source:
    """:raises InputError: no such device, it has no test data, or no such model"""
    federation = result.world.federation
    if device not in federation.devices:
        raise InputError(f"no device {device!r}; {nearest(device, federation.devices)}")
    i = federation.devices.index(device)
    if not len(federation.test[i]):
        raise InputError(
            f"device {device!r} has no test samples, so its model cannot be checked; choose another device, or give it "
            "some (data.split.test)"
        )
    return _Source(
        result=result,
        index=i,
        params=_params(result, i, model),
        card=_card(result, i, model, format, prune, int8),
        test=torch.from_numpy(federation.test[i]),
    )


def _params(result: Result, i: int, model: str) -> Params:
    engine = result.engine
    (found,) = models(engine, np.array([i]), post=model == "personal_post")
    have = {"personal": found.personal_pre, "team": found.team, "global": found.global_model}
    have["personal_post"] = found.personal_post
    params = have[model]
    keys = set(engine.task(i).keys)
    if params is None or params.keys() < keys:
        whole = [name for name, p in have.items() if p is not None and not p.keys() < keys]
        raise InputError(
            f"{type(result.world.algorithm).__name__} has no complete {model} model for the device "
            f"{result.world.federation.devices[i]!r}; choose {' or '.join([*whole, 'personal_post'])}"
        )
    return params


def _card(result: Result, i: int, model: str, format: str, prune: float | None, int8: bool) -> ModelCard:
    from tierfed import __version__  # noqa: PLC0415

    world, scaling = result.world, result.world.federation.scaling
    name, options = _network(result, i)
    return ModelCard(
        model=name,
        options=options,
        shape=tuple(world.federation.shape),
        outputs=_outputs_of(world.federation),
        classes=world.federation.classes,
        dtype="float32" if format == "onnx" else world.config.run.dtype,
        raw_dtype="uint8" if scaling.divisor != 1 else "float32",
        divisor=scaling.divisor,
        mean=None if scaling.mean is None else tuple(scaling.mean.flatten().tolist()),
        std=None if scaling.std is None else tuple(scaling.std.flatten().tolist()),
        device=world.federation.devices[i],
        kind=model,
        data=world.federation.name,
        algorithm=str(world.config.algorithm.get("name")),
        run="" if result.folder is None else result.folder.name,
        round=result.engine.round,
        sparsity=prune,
        int8=int8,
        tierfed=__version__,
    )


def _network(result: Result, i: int) -> tuple[str, dict[str, Any]]:
    """The name and the options of a device's network, or the class of the user's own."""
    settings, module = result.world.config.model, result.engine.task(i).module
    chosen = settings.kinds[result.engine.kind(i)] if settings.kinds else settings
    name = chosen.name if chosen.name != "auto" else default_model(result.world.federation.shape)
    if name in MODELS:
        return name, dict(chosen.options)
    return f"{type(module).__module__}:{type(module).__qualname__}", {}


def _outputs_of(federation: Federation) -> int:
    """Numbers per sample that the model gives."""
    return len(federation.classes) or (1 if federation.y.dim() == 1 else federation.y.shape[1])
