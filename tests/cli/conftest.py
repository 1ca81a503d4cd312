"""A pytest plugin for the tests of the command line: a sandbox over HTTP, and `agentphone conversations` against it."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from agentphone.__main__ import main
from tests.support.cli_support import KEY, Outcome, RunCommand, parse
from tests.support.processes import SECONDS, sandbox


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """Serve the demo data in another process, which accepts only `KEY`."""
    with sandbox("--demo", "--api-key", KEY) as (_, url):
        yield url


@pytest.fixture(scope="module")
def api(url: str) -> Iterator[httpx.Client]:
    """Create an HTTP client for the API, without the SDK."""
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {KEY}"}, timeout=SECONDS) as client:
        yield client


@pytest.fixture(scope="module")
def listed(api: httpx.Client) -> list[dict[str, Any]]:
    """Return all conversations as the API lists them."""
    found: list[dict[str, Any]] = parse(api.get("/v1/conversations", params={"limit": 100}))["data"]
    return found


@pytest.fixture
def run_command(url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> RunCommand:
    """Return a function that runs `agentphone conversations ...` in this process, with settings in the environment."""
    monkeypatch.setenv("AGENTPHONE_API_KEY", KEY)
    monkeypatch.setenv("AGENTPHONE_BASE_URL", url)

    def run_command(*arguments: str, stdin: bytes = b"") -> Outcome:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        try:
            code = main(["conversations", *arguments])
        except SystemExit as exit_:
            code = int(exit_.code or 0)
        written = capsys.readouterr()
        assert KEY not in written.out + written.err
        return Outcome(code, written.out, written.err)

    return run_command
