"""`python -m tierfed.deploy` has the commands of long-running nodes alone, without what only other commands need."""

from typing import Any

import typer
from typer.core import TyperGroup

from tierfed.deploy.commands import cloud, device, fog
from tierfed.errors import InputError
from tierfed.output import err


class Nodes(TyperGroup):
    """Bad input ends with one message and exit code 2, Ctrl-C with 130, as with all commands."""

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]
        try:
            return super().invoke(ctx)
        except InputError as e:
            err.print(f"error: {' '.join(str(e).split())}", markup=False, soft_wrap=True, highlight=False)
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            raise typer.Exit(130) from None


def main() -> None:
    """The entry point `tierfed` for these commands."""
    app = typer.Typer(cls=Nodes, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
    for command in (cloud, fog, device):
        app.command()(command)
    app()


if __name__ == "__main__":
    main()
