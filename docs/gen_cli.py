"""Writes docs/reference/cli.md from the commands themselves: python docs/gen_cli.py [--check]"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from tierfed.cli import app

TARGET = Path(__file__).parent / "reference" / "cli.md"
HEAD = """# Command line

Every command with its arguments and options. This page is written by `docs/gen_cli.py` from the commands in the source.

- `--json`, where a command has it, writes one JSON value and nothing else to the standard output.
- Tables and progress go to the standard output, errors and hints to the standard error. In a pipe there are no colors
  and no bars, but a line per evaluation; `NO_COLOR=1` takes the colors away in a terminal too.
- `tierfed completion bash --install` (or zsh, fish) lets the shell complete commands, options, presets, algorithms,
  data sets, config keys and run folders. Write it anew after an update.
- `tierfed doctor` looks for what would get in the way of a run.

## Exit codes

| code | meaning |
|---|---|
"""
CODES = {
    0: "Done.",
    1: "`tierfed doctor` has found a problem; of any other command: a mistake of tierfed itself, with a traceback to "
    "report.",
    2: "Bad input: an unknown command, option, name or key, a value or file that does not fit, a full disk. One line "
    "says what was got, what was wanted, and what to do; nothing is left half-written.",
    130: "Stopped by Ctrl-C. What is committed stays, and the last line says how to go on.",
}


def page() -> str:
    """The whole reference."""
    group: Any = typer.main.get_command(app)
    codes = "".join(f"| {code} | {text} |\n" for code, text in CODES.items())
    return "\n".join([HEAD + codes, *(section(name, command) for name, command in sorted(group.commands.items()))])


def section(name: str, command: Any) -> str:
    """One command."""
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    usage = " ".join(["tierfed", name, *(f"[{p.metavar}]" if not p.required else str(p.metavar) for p in arguments)])
    rows = [f"| `{p.metavar}` | {cell(p.help)} | {'required' if p.required else ''} |" for p in arguments]
    rows += [line for p in command.params if p.param_type_name == "option" for line in option(p)]
    table = ["", "| argument or option | meaning | default |", "|---|---|---|", *rows] if rows else []
    about = " ".join((command.help or "").split())
    return "\n".join([f"## `tierfed {name}`", "", about, "", f"`{usage} [OPTIONS]`", *table, ""])


def option(p: Any) -> Iterator[str]:
    """One option."""
    names = ", ".join(f"`{o}`" for o in [*p.opts, *p.secondary_opts])
    value = "" if p.is_flag else f" `{p.metavar or max(p.opts, key=len)[2:].upper()}`"
    shown = "required" if p.required else "" if p.default in (None, False) else f"`{str(p.default).lower()}`"
    yield f"| {names}{value} | {cell(p.help)} | {shown} |"


def cell(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", r"\|")


def main() -> int:
    """Writes the page, or with --check says whether it is up to date."""
    if "--check" in sys.argv[1:]:
        return 0 if TARGET.read_text("utf-8") == page() else 1
    TARGET.write_text(page(), "utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
