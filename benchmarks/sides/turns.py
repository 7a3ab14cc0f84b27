"""A contestant's end of the pipe: it trains one round when it is told to, and answers how long that took."""

import json
import os
import sys
import time
from typing import Any


class StoppedError(Exception):
    """No more rounds are wanted."""


class Turns:
    """Commands come line by line on the standard input, answers go to what was the standard output; whatever libraries
    print there goes to the standard error.
    """

    def __init__(self) -> None:
        self._answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)
        self._since = 0.0

    def wait(self) -> bool:
        """Waits for a command: True, a round is to be trained, whose time runs from here; False, no more."""
        asked = sys.stdin.readline().strip() == "round"
        self._since = time.perf_counter()
        return asked

    def done(self) -> None:
        """The round is over."""
        self.say(seconds=time.perf_counter() - self._since)

    def turn(self) -> None:
        """Between two rounds of somebody else's loop.

        :raises StoppedError: no more rounds are wanted
        """
        self.done()
        if not self.wait():
            raise StoppedError

    def say(self, **what: Any) -> None:
        """One answer."""
        self._answers.write(json.dumps(what) + "\n")
        self._answers.flush()
