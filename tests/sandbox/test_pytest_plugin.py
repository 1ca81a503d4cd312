"""The pytest plugin, in test runs of its own: every fixture with every async plugin, and its lazy imports."""

from __future__ import annotations

import importlib.metadata
import os
import re
import tomllib
from pathlib import Path

import pytest

from tests.support.processes import ENVIRONMENT

pytest_plugins = ["pytester"]

ROOT = Path(__file__).parents[2]
NAME = "agentphone.pytest_plugin"
# With this name the plugin is loaded once, whether the entry point is installed or not.
OPTIONS = ("-W", "error", "-p", NAME, "-p", "no:cacheprovider")
WITH_ANYIO = ("-p", "anyio.pytest_plugin")
WITH_ASYNCIO = ("-p", "pytest_asyncio.plugin")


@pytest.fixture(autouse=True)
def _users_environment(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([ENVIRONMENT["PYTHONPATH"], os.environ.get("PYTHONPATH", "")]))
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    # All plugins that the tests of this project install take three seconds to import. One test has them all.
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")


def run(pytester: pytest.Pytester, code: str, *options: str) -> pytest.RunResult:
    pytester.makepyfile(code)
    return pytester.runpytest_subprocess(*OPTIONS, *options, timeout=100)


def test_entry_point_has_the_modules_name() -> None:
    # With another name, `-p agentphone.pytest_plugin` and `pytest_plugins = [...]` would load it twice, which fails.
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["entry-points"]["pytest11"] == {NAME: NAME}
    installed = {entry.name: entry.value for entry in importlib.metadata.entry_points(group="pytest11")}
    assert installed.get(NAME, NAME) == NAME


PLAIN = """
import asyncio
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

import agentphone
from agentphone.webhooks import Webhook

@pytest.mark.parametrize("again", range(2))
def test_each_test_has_its_own_sandbox(agentphone_sandbox, agentphone_client, again):
    assert list(agentphone_client.conversations.list()) == []
    text = agentphone_sandbox.receive_sms(from_number="+15555550110", to_number="+15555550100", body="Hi")
    [message] = agentphone_client.conversations.messages(text["conversationId"])
    assert message.body == "Hi"

def test_unused_async_client_is_fine(agentphone_async_client):
    assert agentphone_async_client.conversations is not None

def test_async_client_works_on_several_event_loops(agentphone_async_client):
    async def count():
        return (await agentphone_async_client.conversations.list()).total

    assert [asyncio.run(count()), asyncio.run(count())] == [0, 0]

@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ({"status": 429, "retry_after": 2}, agentphone.RateLimitError),
        ({"status": 502, "body": "<h1>Bad gateway</h1>"}, agentphone.ServerError),
        ({"status": 200, "body": b'{"da'}, agentphone.ResponseDecodeError),
        ({"kind": "hang"}, agentphone.APITimeoutError),
        ({"kind": "reset"}, agentphone.APIConnectionError),
        ({"kind": "cut"}, agentphone.APIConnectionError),
    ],
)
def test_each_fault_raises_an_sdk_error(agentphone_sandbox, agentphone_client, fault, expected):
    agentphone_sandbox.faults.add(**fault)
    timeout = 0.5 if fault == {"kind": "hang"} else 30
    with pytest.raises(expected):
        agentphone_client.with_options(max_retries=0, timeout=timeout).conversations.list(limit=1).page()
    assert agentphone_client.conversations.list(limit=1).page().total == 0
    assert len(agentphone_sandbox.requests) == 2

def test_webhook_is_retried_and_dated_by_the_clock(agentphone_sandbox):
    noon = datetime(2025, 1, 15, 12, tzinfo=UTC)
    agentphone_sandbox.clock = noon.timestamp
    webhook = Webhook("whsec_test", clock=agentphone_sandbox.clock)
    events = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            events.append(webhook.parse(body, dict(self.headers)))
            self.send_response(500 if len(events) == 1 else 204)
            self.end_headers()

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        agentphone_sandbox.set_webhook(f"http://127.0.0.1:{server.server_port}/", "whsec_test")
        agentphone_sandbox.receive_sms(from_number="+15555550110", to_number="+15555550100", body="Hi")
        server.handle_request()
        server.handle_request()
    assert [(event.text, event.timestamp) for event in events] == [("Hi", noon)] * 2
    assert events[0].delivery_id == events[1].delivery_id
"""


def test_fixtures_in_plain_tests(pytester: pytest.Pytester) -> None:
    run(pytester, PLAIN).assert_outcomes(passed=11)


ASYNC = """
import pytest
from agentphone import ServerError

pytestmark = {mark}

async def test_async_client_works_on_the_tests_event_loop(agentphone_sandbox, agentphone_async_client):
    text = agentphone_sandbox.receive_sms(from_number="+15555550110", to_number="+15555550100", body="Hi")
    messages = agentphone_async_client.conversations.messages(text["conversationId"])
    assert [message.body async for message in messages] == ["Hi"]

async def test_faults_and_requests_are_available(agentphone_sandbox, agentphone_async_client):
    agentphone_sandbox.faults.add(status=502, body="<h1>Bad gateway</h1>")
    async with agentphone_async_client as client:
        with pytest.raises(ServerError):
            await client.with_options(max_retries=0).conversations.list(limit=1)
        await client.conversations.list(limit=1)
    assert [request.path for request in agentphone_sandbox.requests] == ["/v1/conversations"] * 2
"""


def test_fixtures_with_the_anyio_plugin(pytester: pytest.Pytester) -> None:
    run(pytester, ASYNC.format(mark="pytest.mark.anyio"), *WITH_ANYIO).assert_outcomes(passed=4)


@pytest.mark.parametrize("mode", ["strict", "auto"])
def test_fixtures_with_pytest_asyncio(pytester: pytest.Pytester, mode: str) -> None:
    pytest.importorskip("pytest_asyncio")
    pytester.makeini(f"[pytest]\nasyncio_mode = {mode}\nasyncio_default_fixture_loop_scope = function\n")
    mark = "pytest.mark.asyncio" if mode == "strict" else "[]"
    run(pytester, ASYNC.format(mark=mark), *WITH_ASYNCIO).assert_outcomes(passed=2)


LOADED = """
import subprocess
import sys

def test_sandbox_is_not_imported(pytestconfig):
    assert pytestconfig.pluginmanager.has_plugin("agentphone.pytest_plugin")
    for name in ("sqlite3", "starlette", "uvicorn", "agentphone.sandbox", "agentphone.cli"):
        assert name not in sys.modules

def test_plugin_imports_only_the_package():
    def modules(name):
        command = [sys.executable, "-c", f"import sys, pytest, agentphone, {name}; print(*sys.modules)"]
        return set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())

    assert modules("agentphone.pytest_plugin") - modules("agentphone") == {"agentphone.pytest_plugin"}
"""


def test_plugin_imports_nothing_until_a_fixture_is_requested(pytester: pytest.Pytester) -> None:
    run(pytester, LOADED).assert_outcomes(passed=2)


def test_missing_extra_fails_only_the_tests_that_need_it(
    pytester: pytest.Pytester,
) -> None:
    pytester.makepyfile(starlette="raise ModuleNotFoundError(\"No module named 'starlette'\", name='starlette')")
    code = "def test_it(agentphone_client): pass\ndef test_other(): pass\n"
    result = run(pytester, code)
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*need the extra packages of the sandbox (No module named 'starlette')*pip install*"])


@pytest.mark.slow
def test_readme_example_passes_beside_all_plugins(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    [example] = re.findall(r"^```python\n(# test_orders\.py\n.*?)^```$", readme, re.MULTILINE | re.DOTALL)
    outcomes = run(pytester, example, "-p", "no:asyncio").parseoutcomes()  # it warns if it is not configured
    assert outcomes == {"passed": 4}, "three tests, one of them on both loops"
