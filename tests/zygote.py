"""Python as a real process, forked from one that has imported tierfed and torch already.

A new interpreter spends two seconds or more on imports; a forked process is there at once and is otherwise the same:
a pid and a session of its own, working folder, environment, pipes, exit code, Ctrl-C. `start("-m", "tierfed", …)` and
`start("-c", code, …)` are `python -m tierfed …` and `python -c code …`; the `Child` has what tests use of a
`subprocess.Popen`. The parent of all children, the zygote, never computes and has one thread, as a fork needs, and it
ends, and all children with it, when the test process does. Options of the interpreter and variables that are read at
import (OMP_NUM_THREADS, PYTHON…) are those of the zygote.
"""

import atexit
import fcntl
import gc
import json
import os
import resource
import runpy
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from threading import Thread
from types import ModuleType
from typing import IO, Any, Self

_LONGEST_BYTES = 1 << 17  # of a request: arguments and an environment; a packet of a socket has no more than this
_LOOK_SECONDS = 0.01
_NO_THREAD = {"JE_ARROW_MALLOC_CONF": "background_thread:false"}  # pyarrow begins one at its import otherwise


class Child:
    """A process that was forked from the zygote. At the end of a `with` block it and its session are killed."""

    def __init__(self, pid: int, stdout: IO[str], stderr: IO[str]) -> None:
        self.pid, self.stdout, self.stderr = pid, stdout, stderr
        self.returncode: int | None = None
        self.closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Kills what is left of its session, reaps it, closes the pipes; nothing happens the second time."""
        if not self.closed:
            self.closed = True
            self._end_all()
            self.wait()
            self.stdout.close()
            self.stderr.close()

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def poll(self) -> int | None:
        """How it ended, negative for a signal; None while it is at work."""
        if self.returncode is None:
            self.returncode = _zygote().ask({"ended": self.pid})
        return self.returncode

    def wait(self, timeout: float = float("inf")) -> int:
        """Until it has ended. :raises subprocess.TimeoutExpired: it has not after so many seconds"""
        end = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired("tierfed", timeout)
            time.sleep(_LOOK_SECONDS)
        return code

    def communicate(self, timeout: float = float("inf")) -> tuple[str, str]:
        """The rest of what it writes, until nobody holds its pipes; then it is closed.

        :raises subprocess.TimeoutExpired: that takes longer than so many seconds; it and its session were killed
        """
        end, texts = time.monotonic() + timeout, ["", ""]

        def read(number: int, stream: IO[str]) -> None:
            texts[number] = stream.read()

        readers = [Thread(target=read, args=two) for two in enumerate((self.stdout, self.stderr))]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join(max(0.0, min(end - time.monotonic(), 1e6)))
        late = any(reader.is_alive() for reader in readers)
        if late:
            self._end_all()
        for reader in readers:
            reader.join()
        if late:
            self.close()
            raise subprocess.TimeoutExpired("tierfed", timeout, texts[0], texts[1])
        self.wait(max(1.0, end - time.monotonic()))
        self.close()
        return texts[0], texts[1]

    def _end_all(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)


def start(
    *arguments: str, cwd: Path, env: Mapping[str, str], file_size: int | None = None, in_step: bool = False
) -> Child:
    """Python with some arguments, `-m module …` or `-c code …`, as a process with no input.

    :param file_size: bytes that a file can have at most (RLIMIT_FSIZE), as on a full disk
    :param in_step: its standard output holds one write at a time: it waits until that was read before it writes
        another one, and so never runs away from who reads it (Linux)
    """
    pipes = [os.pipe2(os.O_DIRECT | os.O_CLOEXEC) if in_step else os.pipe(), os.pipe()]
    if in_step:
        fcntl.fcntl(pipes[0][0], fcntl.F_SETPIPE_SZ, 1)  # the least there is: a page, and a packet takes all of it
    theirs = [sink for _, sink in pipes]
    request = {"arguments": arguments, "cwd": str(cwd), "env": dict(env), "file_size": file_size}
    try:
        pid = _zygote().ask(request, theirs)
    finally:
        for sink in theirs:
            os.close(sink)
    stdout, stderr = (os.fdopen(source, encoding="utf-8") for source, _ in pipes)
    return Child(pid, stdout, stderr)


class _Zygote:
    """The parent of the children, seen from the test process."""

    def __init__(self) -> None:
        self.channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, str(Path(__file__)), str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", **_NO_THREAD},
                start_new_session=True,  # Ctrl-C is for the test process, which ends this one
            )
        atexit.register(self.close)

    def ask(self, request: Mapping[str, Any], fds: list[int] | None = None) -> Any:
        socket.send_fds(self.channel, [json.dumps(request).encode()], fds or [])
        answer = self.channel.recv(_LONGEST_BYTES)
        if not answer:
            raise RuntimeError("the parent of the children has died")
        return json.loads(answer)

    def close(self) -> None:
        self.channel.close()
        self.process.wait(30)


@cache
def _zygote() -> _Zygote:
    return _Zygote()


def _serve(channel: socket.socket) -> dict[str, Any]:
    """Forks a child for each request, and returns it in the child alone."""
    alive: set[int] = set()
    while True:
        message, fds, _, _ = socket.recv_fds(channel, _LONGEST_BYTES, 2)
        if not message:
            for pid in alive:
                with suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)
            os._exit(0)
        request = json.loads(message)
        if "ended" in request:
            pid, status = os.waitpid(request["ended"], os.WNOHANG)
            alive.discard(pid)
            channel.send(json.dumps(os.waitstatus_to_exitcode(status) if pid else None).encode())
        else:
            pid = os.fork()
            if pid == 0:
                os.setsid()
                channel.send(str(os.getpid()).encode())  # from here: whoever gets it can signal the new session
                channel.close()
                os.dup2(fds[0], 1)
                os.dup2(fds[1], 2)
                for fd in fds:
                    os.close(fd)
                return request  # type: ignore[no-any-return]
            alive.add(pid)
            for fd in fds:
                os.close(fd)


def _become(request: dict[str, Any]) -> None:
    """Runs in the child, as the interpreter would with these arguments."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.stdout, sys.stderr = (os.fdopen(fd, "w", 1, "utf-8", "backslashreplace", closefd=False) for fd in (1, 2))
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    if request["file_size"] is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["file_size"], request["file_size"]))
    option, what, *rest = request["arguments"]
    given = filter(None, request["env"].get("PYTHONPATH", "").split(os.pathsep))
    sys.path[:1] = [request["cwd"], *(path for path in given if path not in sys.path[1:])]
    sys.argv = [what if option == "-m" else option, *rest]
    if option == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        main = sys.modules["__main__"] = ModuleType("__main__")
        exec(compile(what, "<string>", "exec"), vars(main))


def _main() -> None:
    import scipy.cluster.hierarchy
    import scipy.optimize  # noqa: F401  what JobFed forms teams with

    import tierfed.cli
    import tierfed.report.html  # noqa: F401  what most commands need at their end

    gc.collect()
    gc.freeze()
    if Path("/proc/self/task").exists():
        assert len(list(Path("/proc/self/task").iterdir())) == 1, "a library has begun a thread: it would not be forked"
    _become(_serve(socket.socket(fileno=int(sys.argv[1]))))


if __name__ == "__main__":
    _main()
