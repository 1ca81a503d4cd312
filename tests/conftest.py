"""Fixtures of all tests: both event loops, no settings from outside, a sandbox behind a real socket."""

from __future__ import annotations

import gc
import os
import signal
import ssl
import sys
from collections.abc import Generator, Iterator
from typing import IO, cast

import pytest
import trustme
from attrs import frozen
from hypothesis import HealthCheck, settings

from agentphone.sandbox import Sandbox
from tests.support.forked import PIPE, Forked
from tests.support.long import count
from tests.support.processes import SECONDS

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # A shell starts background jobs with SIGINT ignored, and children inherit that. A handler is reset to the default
    # in a child, so the SIGINT that tests send reaches children, and the tests themselves still ignore it.
    signal.signal(signal.SIGINT, lambda *_: None)

# Workers and child processes share compiled files. Without them, each worker compiles all tests again, for ten seconds.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# An example may take any time: how long depends on what else runs on the machine.
settings.register_profile(
    "patient", deadline=None, max_examples=count(50, 1000), suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("patient")

SERVE = "import sys; from agentphone.sandbox.server import serve; sys.exit(serve(port=0, db=sys.argv[1]))"


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Look for no garbage while all tests are imported, nor later among the million objects that stay."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture(params=["asyncio", "trio"], scope="module")
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Run each test of a coroutine on both event loops."""
    return cast("str", request.param)


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AGENTPHONE_API_KEY", "AGENTPHONE_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


@frozen
class Server:
    """A sandbox in a process of its own."""

    url: str
    """Where it listens, on a free port of this machine."""
    box: Sandbox
    """The same database from within this process, to put messages in."""


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Serve a sandbox with uvicorn on a real socket, once for all tests."""
    path = tmp_path_factory.mktemp("server") / "box.db"
    with Forked(SERVE, path, stdout=PIPE) as process:
        try:
            first_line = cast("IO[str]", process.stdout).readline()
            with Sandbox(path) as box:
                yield Server(first_line.split()[-1], box)
        finally:
            process.terminate()
            process.wait(SECONDS)


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    """Give a certificate authority of the tests' own."""
    return trustme.CA()


@pytest.fixture(scope="session")
def tls(authority: trustme.CA) -> ssl.SSLContext:
    """Give the server's side of TLS for `localhost`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    return context


@pytest.fixture(scope="session")
def trusting(authority: trustme.CA) -> ssl.SSLContext:
    """Give the client's side, which trusts that authority."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context
