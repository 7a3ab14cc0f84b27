"""`python -m tierfed.engine.worker`: a process of `tierfed.engine.processes.Processes`, over its standard streams."""

import os
import sys
import threading
import time

from tierfed.engine.processes import serve

_LOOK_SECONDS = 0.5


def _end_with(parent: int) -> None:
    """A worker whose parent was killed in a visit would compute on for nobody."""
    while os.getppid() == parent:
        time.sleep(_LOOK_SECONDS)
    os._exit(1)


def main() -> None:
    """Serves its parent; whatever a model prints goes to the standard error."""
    source, sink = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.stdout = sys.stderr
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    serve(source, sink)


if __name__ == "__main__":
    main()
