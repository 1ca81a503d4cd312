"""Fixtures of the inbox's tests: its databases, among them a real PostgreSQL, which pgserver brings and starts."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from agentphone.inbox import _worker
from tests.support.processes import ENVIRONMENT

NUMBERS = count()


@pytest.fixture(autouse=True)
def _quick_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_worker, "LISTEN_SECONDS", 0.02)


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """Start PostgreSQL once for all tests, and yield the URL of its server."""
    pgserver = pytest.importorskip("pgserver")
    # As root it runs as another user, who cannot enter pytest's folders.
    folder = tempfile.mkdtemp(prefix="agentphone-postgresql-")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        server = pgserver.get_server(folder)
        yield server.get_uri()
        server.cleanup()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return the URL of a database of its own for the test."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'inbox.db'}"
    server: str = request.getfixturevalue("postgresql")
    return server.replace("/postgres?", f"/inbox_{os.getpid()}_{next(NUMBERS)}?")


@pytest.fixture(scope="session")
def forking() -> Iterator[subprocess.Popen[str]]:
    """Start the process that forks workers."""
    command = [sys.executable, "-W", "error", "-m", "tests.inbox.forking"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT
    ) as process:
        yield process
        process.terminate()
