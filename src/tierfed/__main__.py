"""`python -m tierfed` is `tierfed`. Nodes of a deployed run import what they need and no more."""

import sys

NODES = ("cloud", "fog", "device")


def main() -> None:
    """The entry point `tierfed`."""
    if sys.argv[1:2] and sys.argv[1] in NODES:
        from tierfed.deploy.__main__ import main as nodes  # noqa: PLC0415

        nodes()
    else:
        from tierfed.cli import main as all_commands  # noqa: PLC0415

        all_commands()


if __name__ == "__main__":  # a process of a grid imports this module as well
    main()
