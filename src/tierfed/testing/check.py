"""An algorithm of one's own against the laws that all of tierfed's algorithms pass."""

import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from tierfed.algorithm import Algorithm
from tierfed.algorithms import make
from tierfed.errors import InputError, nearest
from tierfed.task import Task
from tierfed.testing import laws
from tierfed.testing.laws import LawError, Subject
from tierfed.testing.toy import toy_task
from tierfed.testing.trees import MODES

_PACKAGE = Path(__file__).parents[1]
_VMAP = ("vmap", "data-dependent control flow", "functorch", "batched tensor")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one law."""

    law: str
    state: str
    """"holds", "broken", or "left out": it is about something that the algorithm does not do."""
    why: str = ""
    seconds: float = 0.0


def _engines(tree: str, mode: str) -> Callable[[Subject], None]:
    return lambda s: laws.engines_agree(s, tree, MODES[mode])


LAWS: Mapping[str, Callable[[Subject], None]] = {
    **{
        f"engines agree, {tree}, {mode}": _engines(tree, mode)
        for tree, mode in (
            ("flat", "full"),
            ("flat", "partial"),
            ("3 tiers", "full"),
            ("3 tiers", "lossy"),
            ("4 tiers", "partial"),
            ("4 tiers", "lossy"),
            ("clusters", "lossy"),
        )
    },
    "states keep their form": laws.states_keep_their_form,
    "engines agree with dropout layers": lambda s: laws.engines_agree(
        s, s.tree, MODES["lossy"], s.task(nn.ReLU, dropout=0.3), 2
    ),
    "engines agree in float32": lambda s: laws.float32_agrees(s, s.tree),
    "engines agree while devices change team": laws.moving_devices,
    "chunks do not matter": lambda s: laws.chunks_do_not_matter(s, s.tree),
    "relays are not there": laws.relays_are_not_there,
    "resumed is uninterrupted": laws.temporary(laws.resumed_is_uninterrupted),
    "silence changes nothing": laws.silence_changes_nothing,
    "evaluation leaves no trace": laws.evaluation_leaves_no_trace,
}
"""The laws by name; what each asks for is said by the function of `tierfed.testing.laws` that it calls."""


def check_algorithm(
    algorithm: Algorithm | type[Algorithm] | str,
    settings: Mapping[str, Any] | None = None,
    *,
    task: Callable[..., Task] = toy_task,
    only: Iterable[str] = (),
    raises: bool = True,
) -> list[Outcome]:
    """Tries an algorithm on nine ragged devices below flat trees, trees with 3 and 4 tiers and clusters, with full and
    partial participation, dropouts and lost replies, in both engines; takes some seconds.

    :param algorithm: an instance, a class, or a name as in a config ("my_module:Mine")
    :param settings: hyper-parameters, where it is a class or a name
    :param task: makes the task from (activation, dtype, dropout), of samples [8] in 4 classes, where the toy network
        with its batch norm does not do
    :param only: some of `LAWS`; all by default
    :param raises: an error at the end where a law is broken; else the caller looks at the outcomes
    :raises LawError: at least one does not hold; the message lists them
    :raises InputError: no such law, algorithm or setting
    """
    names = list(only) or list(LAWS)
    for name in names:
        if name not in LAWS:
            raise InputError(f"no law {name!r}; {nearest(name, LAWS)}")
    subject = Subject(algorithm=_instance(algorithm, settings), task=task)
    outcomes = [_outcome(name, subject) for name in names]
    broken = [o for o in outcomes if o.state == "broken"]
    if broken and raises:
        reasons = list(dict.fromkeys(o.why for o in broken))
        lines = "\n".join(f"- {'; '.join(o.law for o in broken if o.why == why)}: {why}" for why in reasons)
        raise LawError(f"{type(subject.algorithm).__name__} breaks {len(broken)} of {len(names)} laws\n{lines}")
    return outcomes


def _instance(algorithm: Algorithm | type[Algorithm] | str, settings: Mapping[str, Any] | None) -> Algorithm:
    if isinstance(algorithm, Algorithm):
        if settings:
            raise InputError("settings come with a class or a name; an instance has its own")
        return algorithm
    if isinstance(algorithm, str):
        return make(algorithm, settings)
    if isinstance(algorithm, type) and issubclass(algorithm, Algorithm):
        return algorithm(**(settings or {}))
    raise InputError(f"algorithm is {algorithm!r:.80}; wanted a tierfed.Algorithm, its class, or a name")


def _outcome(name: str, subject: Subject) -> Outcome:
    began = time.monotonic()
    try:
        if name == "relays are not there" and not laws.is_relayed(subject):
            return Outcome(law=name, state="left out", why="its fogs do more than relay")
        LAWS[name](subject)
    except LawError as err:
        return Outcome(law=name, state="broken", why=str(err), seconds=time.monotonic() - began)
    except Exception as err:  # whatever the author's code does
        return Outcome(law=name, state="broken", why=_explained(err), seconds=time.monotonic() - began)
    return Outcome(law=name, state="holds", seconds=time.monotonic() - began)


def _explained(err: Exception) -> str:
    """An error of the algorithm's own code, with what usually causes it."""
    told = f"{type(err).__name__}: {' '.join(str(err).split())[:300]}"
    frames = traceback.extract_tb(err.__traceback__)
    own = [f for f in frames if "site-packages" not in f.filename and not Path(f.filename).is_relative_to(_PACKAGE)]
    if own:
        told += f" ({own[-1].filename}, line {own[-1].lineno})"
    if any(word in str(err) for word in _VMAP):
        told += (
            "; `device` is mapped over many devices at once: no Python `if` on values of tensors (take "
            "tierfed.tree.where), no .item(), nothing changed in place"
        )
    return told
