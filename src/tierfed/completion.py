"""`tierfed completion`: a script with which a shell completes commands, options, and what is named in them.

The script holds all words, so that the shell answers at once: asking `tierfed` itself would import PyTorch at every
press of the key. What is in the folder (configs, runs) the shell looks up by itself.
"""

import dataclasses
import shlex
import typing
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from tierfed.algorithms import known
from tierfed.config import Config, presets
from tierfed.data import DATASETS
from tierfed.errors import InputError, nearest
from tierfed.export.deploy import FORMATS, KINDS
from tierfed.metrics import write_atomic
from tierfed.models import MODELS
from tierfed.output import out
from tierfed.reproduce import STUDIES
from tierfed.session import on_disk

FILES, RUNS = "files", "runs"  # what the shell looks up, in the place of words

_VALUED = ("algorithm.name", "personalize.mechanism", "data.source", "model.name")

PLACES = {
    "bash": Path(".local/share/bash-completion/completions/tierfed"),
    "zsh": Path(".config/tierfed/completion.zsh"),
    "fish": Path(".config/fish/completions/tierfed.fish"),
}
MORE = {"zsh": "; let ~/.zshrc have: source ~/.config/tierfed/completion.zsh"}


def completion(
    ctx: typer.Context,
    shell: Annotated[str, typer.Argument(metavar="SHELL", help="bash, zsh or fish.")],
    install: Annotated[bool, typer.Option("--install", help="Write it where the shell looks for it.")] = False,
) -> None:
    """Print a script that completes commands, options, presets, algorithms, data sets and run folders."""
    if shell not in PLACES:
        raise InputError(f"no shell {shell!r}; {nearest(shell, PLACES)}")
    text = script(shell, ctx.find_root().command)
    if not install:
        typer.echo(text, nl=False)
        return
    path = Path.home() / PLACES[shell]
    with on_disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, text)
    out.print(f"written: {path}; it works in new shells{MORE.get(shell, '')}", soft_wrap=True, highlight=False)


def values(name: str) -> Iterable[str] | str:
    """What may follow an option, or be the argument of this metavar: words, files or run folders."""
    words: dict[str, Iterable[str] | str] = {
        "CONFIG": presets(),
        "RUN": RUNS,
        "NAME": sorted(STUDIES),
        "SHELL": sorted(PLACES),
        "--algorithm": sorted(known()),
        "--mechanism": sorted(known()),
        "--set": sorted(keys(Config)),
        "--param": sorted(keys(Config)),
        "--engine": ("auto", "serial", "vectorized", "ray"),
        "--start": ("personal", "global"),
        "--model": sorted(KINDS),
        "--format": sorted(FORMATS),
        "algorithm.name": sorted(known()),
        "personalize.mechanism": sorted(known()),
        "data.source": sorted([*DATASETS, "csv", "npz", "parquet"]),
        "model.name": sorted(MODELS),
    }
    return words.get(name, FILES)


def keys(cls: type, prefix: str = "") -> Iterator[str]:
    """The keys of a config, "data.split.test="."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        kind = hints[field.name]
        if dataclasses.is_dataclass(kind):
            yield from keys(typing.cast("type", kind), f"{prefix}{field.name}.")
        elif prefix:
            yield f"{prefix}{field.name}="
    if not prefix:
        yield from ("algorithm.name=", "algorithm.lr=", "algorithm.epochs=", "algorithm.steps=")


def script(shell: str, group: Any) -> str:
    """The script for a shell.

    :param group: the command line, as click sees it
    """
    commands = {name: c for name, c in group.commands.items() if not c.hidden}
    return _fish(commands) if shell == "fish" else _bash(commands, zsh=shell == "zsh")


def _options(command: Any) -> list[Any]:
    return [p for p in command.params if p.param_type_name == "option"]


def _argument(command: Any) -> Iterable[str] | str:
    """What the first argument of a command may be."""
    return next((values(p.metavar or "") for p in command.params if p.param_type_name == "argument"), ())


def _flags(command: Any) -> list[str]:
    return sorted({*(o for p in _options(command) for o in (*p.opts, *p.secondary_opts)), "--help"})


def _takers(commands: dict[str, Any]) -> dict[str, Iterable[str] | str]:
    """Every option of any command that takes a value."""
    return {
        o: values(max(p.opts, key=len))
        for command in commands.values()
        for p in _options(command)
        if not p.is_flag
        for o in p.opts
    }


def _bash(commands: dict[str, Any], zsh: bool) -> str:
    lines = ["autoload -U +X compinit && compinit", "autoload -U +X bashcompinit && bashcompinit"] if zsh else []
    lines += [
        "# written by `tierfed completion`; write it anew after an update",
        "_tierfed_runs() {",
        "    local d",
        '    for d in "$1"*/ "$1"*/*/ runs/"$1"*/ runs/*/"$1"*/; do',
        '        [ -f "${d}config.toml" ] && printf "%s\\n" "${d%/}"',
        "    done",
        "}",
        "_tierfed() {",
        '    local cur="${COMP_WORDS[COMP_CWORD]}" prev="${COMP_WORDS[COMP_CWORD-1]}" words="" files="" runs=""',
        "    COMPREPLY=()",
        # readline breaks words at "="
        '    local key=""',
        '    if [ "$cur" = "=" ]; then key="$prev"; cur=""; fi',
        '    if [ "$prev" = "=" ]; then key="${COMP_WORDS[COMP_CWORD-2]}"; fi',
        '    if [ -n "$key" ]; then',
        '        case "$key" in',
        *_cases({k: values(k) for k in _VALUED}, 12),
        "        esac",
        '    elif [ "$COMP_CWORD" -eq 1 ]; then',
        f"        words={shlex.quote(' '.join([*sorted(commands), '--help', '--version']))}",
        "    else",
        '        case "$prev" in',
        *_cases(_takers(commands), 12),
        '            *) case "${COMP_WORDS[1]}" in',
        *(line for name, command in sorted(commands.items()) for line in _of_command(name, command)),
        "            esac ;;",
        "        esac",
        "    fi",
        '    [ -n "$words" ] && COMPREPLY=( $(compgen -W "$words" -- "$cur") )',
        '    [ -n "$files" ] && COMPREPLY+=( $(compgen -f -- "$cur") )',
        '    [ -n "$runs" ] && COMPREPLY+=( $(_tierfed_runs "$cur") )',
        '    case "${COMPREPLY[0]-}" in *=) compopt -o nospace 2>/dev/null ;; esac',
        "    return 0",
        "}",
        "complete -F _tierfed tierfed",
    ]
    return "\n".join(lines) + "\n"


def _set(what: Iterable[str] | str) -> str:
    """The shell's variable for what may stand at a place."""
    return f"{what}=1" if isinstance(what, str) else f"words={shlex.quote(' '.join(what))}"


def _cases(of: dict[str, Iterable[str] | str], indent: int) -> list[str]:
    same: dict[str, list[str]] = {}
    for option, what in sorted(of.items()):
        same.setdefault(_set(what), []).append(option)
    return [f"{' ' * indent}{'|'.join(options)}) {setting} ;;" for setting, options in same.items()]


def _of_command(name: str, command: Any) -> Iterator[str]:
    what, flags = _argument(command), shlex.quote(" ".join(_flags(command)))
    more = "; files=1" if command.params and not isinstance(what, str) and name in ("run", "show", "sweep") else ""
    yield f'                {name}) if [ "${{cur#-}}" != "$cur" ]; then words={flags}; else {_set(what)}{more}; fi ;;'


def _fish(commands: dict[str, Any]) -> str:
    lines = ["# written by `tierfed completion`; write it anew after an update", "complete -c tierfed -f"]
    for name, command in sorted(commands.items()):
        about = shlex.quote((command.help or "").strip().partition("\n")[0])
        lines.append(f"complete -c tierfed -n __fish_use_subcommand -a {name} -d {about}")
        seen = f"-n '__fish_seen_subcommand_from {name}'"
        lines.append(f"complete -c tierfed {seen} {_fish_words(_argument(command))}")
        for p in _options(command):
            names = " ".join(f"-l {o[2:]}" if o.startswith("--") else f"-s {o[1:]}" for o in p.opts)
            takes = "" if p.is_flag else f" -r {_fish_words(values(max(p.opts, key=len)))}"
            lines.append(f"complete -c tierfed {seen} {names}{takes} -d {shlex.quote(p.help or '')}")
    return "\n".join(lines) + "\n"


def _fish_words(what: Iterable[str] | str) -> str:
    if what == FILES:
        return "-F"
    if what == RUNS:
        return "-a '(for f in */config.toml runs/*/config.toml runs/*/*/config.toml; dirname $f; end)'"
    return f"-a {shlex.quote(' '.join(what))}" + (" -F" if "quickstart" in what else "")
