"""Processes seen from outside: the command line, its sandbox, and Python programs.

`run` starts what it is told, such as a new interpreter. The others are forked, see `tests.support.forked`.
"""

from __future__ import annotations

import os
import re
import struct
import subprocess
import sys
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import agentphone
from tests.support.forked import PIPE, Forked

SECONDS = 240
"""A limit that turns a hang into a failure; what waits for it takes about a second, or a minute on a busy machine."""

ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if not name.startswith("AGENTPHONE_")},
    "PYTHONPATH": str(Path(agentphone.__file__).parents[1]),
    "PYTHONIOENCODING": "utf-8",
    "COLUMNS": "80",
}
PYTHON = (sys.executable, "-W", "error")
AGENTPHONE = (*PYTHON, "-m", "agentphone")
MAIN = "import sys\nfrom agentphone.__main__ import main\nsys.exit(main())\n"
"""The program `agentphone`."""


def run(*command: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, with additional environment variables."""
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        encoding="utf-8",
        env=ENVIRONMENT | environment,
        cwd=cwd,
        timeout=SECONDS,
        check=False,
    )


def run_forked(
    code: str, *arguments: str, cwd: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run Python code to its end, with additional environment variables."""
    process = Forked(code, *arguments, stdin=PIPE, stdout=PIPE, stderr=PIPE, env=ENVIRONMENT | environment, cwd=cwd)
    with process:
        stdout, stderr = process.communicate(timeout=SECONDS)
        return subprocess.CompletedProcess(("-c", code, *arguments), process.wait(), stdout, stderr)


def run_agentphone(*arguments: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `agentphone ...` to its end, with additional environment variables."""
    return run_forked(MAIN, *arguments, cwd=cwd, **environment)


def start_agentphone(*arguments: str, **settings: Any) -> Forked:
    """Start `agentphone ...`, with settings as those of `subprocess.Popen`."""
    return Forked(MAIN, *arguments, **{"env": ENVIRONMENT} | settings)


def run_in_terminal(
    *command: str, columns: int = 80, cwd: Path | None = None, typed: str = "", **environment: str
) -> tuple[int, str]:
    """Run a command to its end in a terminal of that width, and type keys; return its exit code and its output."""
    return _run_in_terminal(lambda **settings: subprocess.Popen(command, **settings), columns, cwd, typed, environment)


def run_forked_in_terminal(
    code: str, *arguments: str, columns: int = 80, cwd: Path | None = None, typed: str = "", **environment: str
) -> tuple[int, str]:
    """Run Python code like that."""
    return _run_in_terminal(lambda **settings: Forked(code, *arguments, **settings), columns, cwd, typed, environment)


def run_agentphone_in_terminal(
    *arguments: str, columns: int = 80, cwd: Path | None = None, typed: str = "", **environment: str
) -> tuple[int, str]:
    """Run `agentphone ...` like that."""
    return run_forked_in_terminal(MAIN, *arguments, columns=columns, cwd=cwd, typed=typed, **environment)


def _run_in_terminal(
    start: Callable[..., Any], columns: int, cwd: Path | None, typed: str, environment: dict[str, str]
) -> tuple[int, str]:
    fcntl, pty, termios = (pytest.importorskip(name) for name in ("fcntl", "pty", "termios"))
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    terminal = ENVIRONMENT | {"TERM": "xterm-256color"} | environment
    for name in {"COLUMNS", "NO_COLOR", "FORCE_COLOR"} - environment.keys():
        terminal.pop(name, None)
    with start(stdin=slave, stdout=slave, stderr=slave, env=terminal, cwd=cwd) as process:
        os.close(slave)
        os.write(master, typed.encode())
        seen = b""
        while chunk := read_terminal(master):
            seen += chunk
        code = process.wait(SECONDS)
    os.close(master)
    return code, seen.decode()


def read_terminal(master: int) -> bytes:
    """Return what was written to a terminal, or nothing once its other side is closed."""
    try:
        return os.read(master, 65536)
    except OSError:  # Linux reports the closed side as an error
        return b""


def widest(text: str) -> int:
    """Return the width of the widest line in columns, without colors and what a carriage return overwrites."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text.replace("\r\n", "\n"))
    lines = [line.rpartition("\r")[2] for line in plain.splitlines()]
    return max(sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in line) for line in lines)


@contextmanager
def sandbox(*options: str, **environment: str) -> Iterator[tuple[Forked, str]]:
    """Start `agentphone sandbox` on a free port; yield the process and the URL from its first line."""
    arguments = ["sandbox", "--port", "0", *options]
    with start_agentphone(*arguments, stdout=PIPE, stderr=PIPE, env=ENVIRONMENT | environment) as process:
        try:
            assert process.stdout is not None
            first_line = process.stdout.readline()
            url = re.search(r"http://127\.0\.0\.1:[1-9]\d*", first_line)
            assert url, first_line
            yield process, url[0]
        finally:
            process.kill()
