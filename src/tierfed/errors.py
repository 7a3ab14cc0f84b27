"""The errors that a user can cause. Each message says what was got, what was wanted, and what to do."""

import difflib
from collections.abc import Iterable
from itertools import islice

_MOST_NAMES = 2000


class InputError(ValueError):
    """Bad input from outside: a config, a file, a model, a run folder. The command line prints it and exits with 2."""


def nearest(got: str, known: Iterable[str]) -> str:
    """The hint for a name nobody knows: the nearest valid one, or all of them.

    >>> nearest("algoritm", ["algorithm", "data"])
    "did you mean 'algorithm'?"
    """
    names = sorted(islice(known, _MOST_NAMES + 1))
    if len(names) > _MOST_NAMES:
        return f"there are more than {_MOST_NAMES} names, such as {names[0]!r}"
    close = closest(got, names)
    return f"known: {', '.join(names) or 'none'}" if close is None else f"did you mean {close!r}?"


def closest(got: str, known: Iterable[str]) -> str | None:
    """The nearest of some names, if one is near."""
    return next(iter(difflib.get_close_matches(got, list(known), 1, cutoff=0.5)), None)
