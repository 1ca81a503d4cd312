"""Processes that call a function or a command, forked from one that has imported everything: they start at once.

A fresh interpreter takes a second to import the inbox. What is called is found by its name in the new process, which
inherits nothing else from the tests.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import warnings
from collections.abc import Callable
from functools import cache
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

PRELOADED = [
    "__main__",  # pytest's, which would be imported again in each process
    "tests.inbox.killed_worker",
    "tests.inbox.test_receiving",
    # What the first use imports:
    "agentphone.cli.commands",
    "agentphone.sandbox.server",
    "anyio._backends._asyncio",
    "certifi",
    "dbos._sys_db_postgres",
    "dbos._sys_db_sqlite",
    "encodings.idna",
    "h11",
    "httpcore",
    "psycopg",
    "sqlalchemy.dialects.postgresql",
    "sqlalchemy.dialects.sqlite",
]


@cache
def context() -> Any:
    """Return the way to start the processes; not every system has it."""
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(PRELOADED)
    return found


def start(function: Callable[..., object], *arguments: Any, log: Path) -> BaseProcess:
    """Start a process that calls a function; what it writes, and how it fails, goes to the log."""
    process: BaseProcess = context().Process(target=_call, args=(function, arguments, log), daemon=True)
    process.start()
    return process


def start_command(*arguments: str, folder: Path, environment: dict[str, str], log: Path) -> BaseProcess:
    """Start a process that runs `agentphone` in a folder."""
    return start(_command, arguments, folder, environment, log=log)


def _call(function: Callable[..., object], arguments: tuple[Any, ...], log: Path) -> None:
    file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(file, 1)
    os.dup2(file, 2)
    warnings.simplefilter("error")
    function(*arguments)


def _command(arguments: tuple[str, ...], folder: Path, environment: dict[str, str]) -> None:
    from agentphone.__main__ import main
    from agentphone.inbox import _worker

    _worker.LISTEN_SECONDS = 0.02  # the stop takes as long
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.exit(main(arguments))
