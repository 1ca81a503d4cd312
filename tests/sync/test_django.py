"""A Django project on gunicorn and uvicorn: many requests each, every response is checked, nothing is logged."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from agentphone import Client
from tests.support.long import count
from tests.support.processes import ENVIRONMENT, SECONDS, sandbox
from tests.support.recipes import GUNICORN_SETTINGS

PROJECT = Path(__file__).parents[1] / "django_project"
REQUESTS = count(120, 2000)
CONCURRENCY = 12

GUNICORN = ("gunicorn", "wsgi:application", "--preload", "--bind", "127.0.0.1:0", "--worker-tmp-dir", ".")
UVICORN = ("uvicorn", "asgi:application", "--port", "0", "--lifespan", "off", "--no-access-log")

needs_gunicorn = pytest.mark.skipif(os.name != "posix", reason="gunicorn forks")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def api() -> Iterator[str]:
    """Serve a sandbox with demo data, in a process of its own."""
    with sandbox("--demo") as (_, url):
        yield url


@contextmanager
def serving(folder: Path, api: str, *command: str) -> Iterator[int]:
    """Serve the project, yield the port, and check that the server exits normally and has logged no error."""
    (folder / "gunicorn.conf.py").write_text(GUNICORN_SETTINGS, encoding="utf-8")
    log = folder / "log"
    environment = ENVIRONMENT | {
        "PYTHONPATH": os.pathsep.join([ENVIRONMENT["PYTHONPATH"], str(PROJECT)]),
        "DJANGO_SETTINGS_MODULE": "settings",
        "AGENTPHONE_BASE_URL": api,
        "AGENTPHONE_API_KEY": "any-key",
    }
    with log.open("w") as stderr:
        process = subprocess.Popen([sys.executable, "-m", *command], stderr=stderr, env=environment, cwd=folder)
    try:
        yield port_in(log, process)
        process.send_signal(signal.SIGTERM if os.name == "posix" else signal.SIGINT)
        assert process.wait(SECONDS) in (0, -signal.SIGTERM)
        assert not re.search(r"Traceback|Error|Warning|WARNING|ERROR|Exception|SIGKILL", log.read_text()), (
            log.read_text()
        )
    finally:
        process.kill()
        process.wait()


def port_in(log: Path, process: subprocess.Popen[bytes]) -> int:
    """Wait until the server has logged its address; return the port."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end and process.poll() is None:
        if found := re.search(r"http://127\.0\.0\.1:(\d+)", log.read_text()):
            return int(found[1])
        time.sleep(0.05)
    pytest.fail(log.read_text())


def drive(port: int, api: str, *kinds: str) -> tuple[list[str], Counter[int]]:
    """Send the requests; return the wrong responses, and how many responses each server process sent."""
    with Client("any-key", base_url=api) as client:
        ids = [conversation.id for conversation in client.conversations.list()]
    total = len(ids)

    def ask(number: int) -> tuple[str | None, int]:
        asked, token = ids[number % total], f"token-{number}"
        connection = HTTPConnection("127.0.0.1", port, timeout=SECONDS)
        try:
            connection.request("GET", f"/{kinds[number % len(kinds)]}/{asked}/{token}")
            response = connection.getresponse()
            body = response.read()
        finally:
            connection.close()
        if response.status != 200:
            return f"{number}: {response.status} {body[:300]!r}", 0
        result: dict[str, Any] = json.loads(body)
        process = result.pop("process")
        if result != {"listed": [3, total], "read": [asked, 1], "updated": [asked, token]}:
            return f"{number}: asked for {asked} and {token}, got {result}", process
        return None, process

    with ThreadPoolExecutor(CONCURRENCY) as pool:
        outcomes = list(pool.map(ask, range(REQUESTS)))
    return [wrong for wrong, _ in outcomes if wrong], Counter(process for _, process in outcomes)


@needs_gunicorn
@pytest.mark.parametrize(
    ("workers", "processes"),
    [
        (("--workers", "2", "--worker-class", "sync"), 2),
        (("--workers", "1", "--worker-class", "gthread", "--threads", "8"), 1),
    ],
    ids=["2 sync workers", "8 threads"],
)
def test_gunicorn_with_a_client_used_before_the_fork(
    workers: tuple[str, ...], processes: int, tmp_path: Path, api: str
) -> None:
    with serving(tmp_path, api, *GUNICORN, *workers) as port:
        wrong, counts = drive(port, api, "blocking")
    assert wrong == []
    assert len(counts) == processes


def test_uvicorn_with_async_and_blocking_views(tmp_path: Path, api: str) -> None:
    with serving(tmp_path, api, *UVICORN) as port:
        wrong, counts = drive(port, api, "async", "blocking")
    assert wrong == []
    assert len(counts) == 1
