"""Start Python programs quickly: each is forked from a process that has imported the package already.

`python -m agentphone` takes half a second of CPU time, nearly all of it for imports; a fork takes a hundredth. The
program is a process like any other, with files, environment, signals and an exit of its own. Tests of imports, and of
the interpreter's start, start a new interpreter instead.

Modules that were imported before the fork are frozen: the garbage collector does not visit them, and the exit does not
free them, which would take a tenth of a second. A test of what an exit frees calls `gc.unfreeze` first.
"""

from __future__ import annotations

import atexit
import functools
import gc
import importlib
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import CodeType, TracebackType
from typing import IO, Any

PIPE = subprocess.PIPE
NUMBER = struct.Struct("!i")
ROOT = Path(__file__).parents[2]
PRELOADED = (
    "agentphone._conversations",
    "agentphone._http.connection",
    "agentphone._portal",
    "agentphone.cli._progress",
    "agentphone.cli._tables",
    "agentphone.cli.commands",
    "agentphone.cli.demo",
    "agentphone.export",
    "anyio._backends._asyncio",
    "anyio.streams.tls",
    "encodings.idna",
    "httpcore._backends.anyio",
)
"""What the commands and the first call of a client import."""


class Forked:
    """A program in a forked process, with the interface of `subprocess.Popen` for text."""

    def __init__(
        self,
        code: str,
        *arguments: object,
        stdin: int | None = None,
        stdout: int | None = None,
        stderr: int | None = None,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        warning_action: str | None = "error",
        options: tuple[str, ...] = (),
        modules: tuple[str, ...] = PRELOADED,
    ) -> None:
        """Start a program.

        Args:
            code: The program.
            arguments: `sys.argv[1:]`.
            stdin: A descriptor or `PIPE`.
            stdout: As well.
            stderr: As well.
            env: The environment.
            cwd: The directory.
            warning_action: What a warning does; None for Python's defaults.
            options: Options of the interpreter.
            modules: What is imported before.
        """
        self.returncode: int | None = None
        self.stdin, child_stdin = _open_pipe(stdin, 0)
        self.stdout, child_stdout = _open_pipe(stdout, 1)
        self.stderr, child_stderr = _open_pipe(stderr, 2)
        self._status, status = os.pipe()
        order = {
            "code": code,
            "arguments": [str(argument) for argument in arguments],
            "env": dict(os.environ if env is None else env),
            "cwd": str(cwd or Path.cwd()),
            "warning_action": warning_action,
        }
        _fork_server(options, modules).send(order, [child_stdin, child_stdout, child_stderr, status])
        for ours, file in ((self.stdin, child_stdin), (self.stdout, child_stdout), (self.stderr, child_stderr)):
            if ours is not None:
                os.close(file)
        os.close(status)
        self.pid = self._read_number()

    def __enter__(self) -> Forked:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc_value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._close_files()
        self.wait()

    def _close_files(self) -> None:
        for file in (self.stdin, self.stdout, self.stderr):
            if file is not None:
                with suppress(BrokenPipeError):  # it ended before it read everything
                    file.close()

    def _read_number(self, timeout: float | None = None) -> int:
        if not select.select([self._status], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired("a forked program", timeout or 0.0)
        return int(NUMBER.unpack(os.read(self._status, NUMBER.size))[0])

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end, and return the exit code, negative for a signal."""
        if self.returncode is None:
            self.returncode = self._read_number(timeout)
            os.close(self._status)
        return self.returncode

    def poll(self) -> int | None:
        """Return the exit code, or None while the program runs."""
        with suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def communicate(self, input: str = "", timeout: float | None = None) -> tuple[str, str]:
        """Write `input` to stdin and close it; return what is left of stdout and stderr at the end."""
        with ThreadPoolExecutor(2) as pool:
            out, err = (file and pool.submit(file.read) for file in (self.stdout, self.stderr))
            if self.stdin is not None:
                with suppress(BrokenPipeError):
                    self.stdin.write(input)
                    self.stdin.close()
            try:
                self.wait(timeout)
                result = out.result(timeout) if out else "", err.result(timeout) if err else ""
            except (TimeoutError, subprocess.TimeoutExpired):
                self.kill()  # which ends the reading
                raise
        self._close_files()
        return result

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the program has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)


def _open_pipe(file: int | None, number: int) -> tuple[IO[str] | None, int]:
    """Return our end of a pipe and the program's file; without a pipe only the latter."""
    if file != PIPE:
        return None, number if file is None else file
    reader, writer = os.pipe()
    if number == 0:
        return os.fdopen(writer, "w", encoding="utf-8"), reader
    return os.fdopen(reader, encoding="utf-8"), writer


class _ForkServer:
    """The process that forks, an interpreter with these options and modules."""

    def __init__(self, options: Sequence[str], modules: Sequence[str]) -> None:
        self._lock = threading.Lock()
        self._control, its = socket.socketpair()
        code = f"from tests.support.forked import serve; exec(serve({its.fileno()}, {modules!r}))"
        path = filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])
        with its:
            self._process = subprocess.Popen(
                [sys.executable, *options, "-c", code],
                pass_fds=[its.fileno()],
                cwd=ROOT,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(path)},
            )
        atexit.register(self._end)

    def send(self, order: Mapping[str, Any], files: Sequence[int]) -> None:
        """Start a program; `files` are its stdin, stdout and stderr, and where its pid and exit code are written."""
        text = json.dumps(order).encode()
        with self._lock:
            socket.send_fds(self._control, [NUMBER.pack(len(text))], files)
            self._control.sendall(text)

    def _end(self) -> None:
        self._control.close()
        self._process.wait()


@functools.cache
def _fork_server(options: tuple[str, ...], modules: tuple[str, ...]) -> _ForkServer:
    return _ForkServer(options, modules)


def serve(control_fd: int, modules: Sequence[str]) -> CodeType:
    """Fork a process for each order, and report its pid and exit code; in the forked process, return its program."""
    for name in modules:
        importlib.import_module(name)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    ended, wakeup = os.pipe()
    os.set_blocking(wakeup, False)
    signal.set_wakeup_fd(wakeup)
    control = socket.socket(fileno=control_fd)
    statuses: dict[int, int] = {}
    gc.freeze()
    sources: list[Any] = [control, ended]
    while True:
        ready = select.select(sources, [], [])[0]
        if ended in ready:
            os.read(ended, 4096)
            while statuses and (found := os.waitpid(-1, os.WNOHANG))[0]:
                _report(statuses.pop(found[0]), os.waitstatus_to_exitcode(found[1]), is_last=True)
        if control in ready:
            size, files, _, _ = socket.recv_fds(control, NUMBER.size, 4)
            if not size:
                os._exit(0)
            order = json.loads(control.recv(NUMBER.unpack(size)[0], socket.MSG_WAITALL))
            pid = os.fork()
            if pid == 0:
                control.detach()
                return _become(order, files)
            statuses[pid] = files.pop()
            _report(statuses[pid], pid, is_last=False)
            for file in files:
                os.close(file)


def _report(file: int, number: int, *, is_last: bool) -> None:
    with suppress(BrokenPipeError):  # nobody waits for it any more
        os.write(file, NUMBER.pack(number))
    if is_last:
        os.close(file)


def _become(order: Mapping[str, Any], files: Sequence[int]) -> CodeType:
    """Set up this process as a new one: signals, files, environment and directory."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, file in enumerate(files[:3]):
        os.dup2(file, number)
    os.closerange(3, 1024)
    os.environ.clear()
    os.environ.update(order["env"])
    os.chdir(order["cwd"])
    encoding, unbuffered = os.environ.get("PYTHONIOENCODING", "utf-8"), bool(os.environ.get("PYTHONUNBUFFERED"))
    streams = {
        "stdin": os.fdopen(0, encoding=encoding, closefd=False),
        "stdout": os.fdopen(1, "w", buffering=1 if unbuffered else -1, encoding=encoding, closefd=False),
        "stderr": os.fdopen(2, "w", buffering=1, encoding=encoding, errors="backslashreplace", closefd=False),
    }
    for name, stream in streams.items():
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)  # the interpreter's end puts these back
    if order["warning_action"]:
        warnings.simplefilter(order["warning_action"])
    sys.argv = ["-c", *order["arguments"]]
    return compile(order["code"], "<string>", "exec")
