"""`python -m tierfed` is `tierfed`."""

from tierfed.cli import main

if __name__ == "__main__":  # a process of a grid imports this module as well
    main()
