"""How `agentphone conversations` fails: exit codes, and errors as one line on stderr."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from agentphone import APIConnectionError, APIStatusError, APITimeoutError, DeadlineExceededError
from agentphone.__main__ import main
from agentphone.cli._base import describe
from tests.support.cli_support import KEY, RunCommand
from tests.support.forked import PIPE
from tests.support.listener import listening
from tests.support.processes import (
    AGENTPHONE,
    ENVIRONMENT,
    PYTHON,
    SECONDS,
    run,
    run_agentphone,
    start_agentphone,
)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["list", "--limit", "0"], "Invalid value for '--limit': 0 is not in the range x>=1"),
        (["list", "--limit", "ten"], "Invalid value for '--limit': 'ten' is not a valid integer"),
        (["list", "--limit", "9" * 5000], "Invalid value for '--limit': "),
        (["list", "--offset", "-1"], "Invalid value for '--offset': -1 is not in the range x>=0"),
        (["list", "--limit", "5", "--all"], "--limit and --all"),
        (["list", "surplus"], "surplus"),
        (["get"], "Missing argument 'ID'"),
        (["get", ""], "conversation_id must not be empty"),
        (["get", "a" * 5000], "conversation_id must have at most 4096 characters, got 5000"),
        (["get", "conv_1\n"], "conversation_id must not contain control characters, got 'conv_1\\n'"),
        (["get", "conv_\udcff"], "conversation_id must be Unicode text"),
        (["get", "conv_1", "--messages", "101"], "Invalid value for '--messages': 101 is not in the range 1<=x<=100"),
        (["messages", "conv_1", "--order", "up"], "'up' is not one of 'asc', 'desc'"),
        (["messages", "conv_1", "--before", "2025-01-15"], "--before"),
        (["messages", "conv_1", "--before", "2025-01-15T12:00:00"], "--before"),
        (["messages", "conv_1", "--after", "yesterday"], "--after"),
        (["follow", "conv_1", "--after", "2025-01-15"], "--after"),
        (["follow", ""], "conversation_id must not be empty"),
        (["watch", "--after", "now"], "--after"),
        (["watch", "--poll-interval", "0"], "Invalid value for '--poll-interval': 0.0 is not in the range x>0"),
        (["watch", "--poll-interval", "often"], "Invalid value for '--poll-interval'"),
        (["watch", "--poll-interval", "inf"], "poll_interval must be at most"),
        (["follow", "conv_1", "--poll-interval", "nan"], "poll_interval must be more than 0 seconds, got nan"),
        (["update", "conv_1"], "Pass exactly one of --set, --file and --clear"),
        (["update", "conv_1", "--clear", "--set", "a=1"], "Pass exactly one of --set, --file and --clear"),
        (["update", "conv_1", "--set", "a"], "--set must be KEY=VALUE, got 'a'"),
        (["update", "conv_1", "--set", "=a"], "--set must be KEY=VALUE, got '=a'"),
        (["update", "conv_1", "--file", "/nowhere/state.json"], "No such file"),
        (["update", "conv_1", "--file", "/"], "Is a directory"),
        (["update", "conv_1", "--file", "-"], "--file -: the body is empty, not JSON"),
        (["update", "conv_1", "--fil", "-"], "No such option"),
        (["update", "conv_1", "--set"], "requires an argument"),
        (["update", "conv_1", "--file", "/no\nwhere"], "/no where: No such file"),
        (["lis"], "No such command 'lis'"),
    ],
)
def test_usage_error_is_one_line_and_exit_code_2(run_command: RunCommand, arguments: list[str], reason: str) -> None:
    outcome = run_command(*arguments)
    assert (outcome.code, outcome.output) == (2, "")
    assert outcome.errors.startswith("agentphone conversations")
    assert reason in outcome.errors
    assert outcome.errors.count("\n") == 1
    assert "(usage: agentphone conversations" in outcome.errors


CLASSES: list[type[Any]] = [
    APIConnectionError,
    APITimeoutError,
    DeadlineExceededError,
    *APIStatusError.__subclasses__(),
]
ADVICE = [(cls, name) for cls in CLASSES for name in vars(cls) if name.startswith("advice")]


@pytest.mark.parametrize(("cls", "name"), ADVICE, ids=[f"{cls.__name__}.{name}" for cls, name in ADVICE])
def test_advice_is_about_the_command_line(cls: type[Any], name: str) -> None:
    """No error of the API advises to change an argument of a Python function."""
    status = {"status_code": 400} if issubclass(cls, APIStatusError) else {}
    error = cls("no", request="GET /", **status)
    error.advice = getattr(cls, name)
    assert describe(error).startswith("GET /: ")
    assert not re.search(r"`|\w\(\)|\b[a-z_]+=|\b[a-z]+_[a-z]+\b", describe(error))


def test_api_error_is_one_line_and_exit_code_1(run_command: RunCommand) -> None:
    for command in (["get"], ["update", "--set", "a=1"], ["update", "--clear"], ["messages"]):
        outcome = run_command(*command, "conv_nobody")
        assert (outcome.code, outcome.output) == (1, "")
        assert outcome.errors.startswith(f"agentphone conversations {command[0]}: ")
        assert "/v1/conversations/conv_nobody" in outcome.errors
        assert ": 404 " in outcome.errors
        assert outcome.errors.count("\n") == 1


def test_wrong_key_is_exit_code_1_and_names_the_options(run_command: RunCommand) -> None:
    outcome = run_command("list", "--api-key", "sk-another-unlikely-text")
    assert (outcome.code, outcome.output) == (1, "")
    assert "Check the API key (--api-key or AGENTPHONE_API_KEY)" in outcome.errors
    assert "unlikely" not in outcome.errors


def test_base_url_may_end_in_v1(run_command: RunCommand, url: str) -> None:
    assert run_command("list", "--base-url", f"{url}/v1").code == 0


def test_404_of_the_list_says_to_check_the_base_url(run_command: RunCommand, url: str) -> None:
    outcome = run_command("list", "--base-url", f"{url}/elsewhere")
    assert (outcome.code, outcome.output) == (1, "")
    assert "check --base-url and AGENTPHONE_BASE_URL (it stops before /v1)" in outcome.errors


def test_missing_key_is_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["conversations", "list"]) == 2
    assert capsys.readouterr().err == (
        "agentphone conversations list: No API key. Pass --api-key KEY or set AGENTPHONE_API_KEY;"
        " --base-url sandbox: tries the SDK without one.\n"
    )


@pytest.mark.parametrize(
    "value", ["ftp://x", "nonsense", "http://api.example", "https://user:word@api.example", "sandbox:/nowhere/x.db"]
)
def test_unusable_base_url_is_exit_code_2(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["conversations", "list", "--api-key", "any", "--base-url", value]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("agentphone conversations list: base_url")
    assert "--base-url or AGENTPHONE_BASE_URL" in errors
    assert errors.count("\n") == 1


def test_connection_failure_is_one_line_and_exit_code_1() -> None:
    done = run_agentphone("conversations", "list", "--api-key", "any", "--base-url", "http://127.0.0.1:1")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("agentphone conversations list: GET /v1/conversations?limit=20&offset=0: ")
    assert done.stderr.count("\n") == 1
    assert "try again" in done.stderr


def test_ctrl_c_is_exit_code_130_without_output() -> None:
    with (
        listening() as listener,
        start_agentphone(
            *("conversations", "get", "hold", "--api-key", "any", "--base-url", listener.url), stdout=PIPE, stderr=PIPE
        ) as process,
    ):
        try:
            assert listener.wait_for(lambda: bool(listener.requests))
            process.send_signal(signal.SIGINT)
            assert process.communicate(timeout=SECONDS) == ("", "")
        finally:
            process.kill()
    assert process.returncode == 130


def test_closed_pipe_is_exit_code_141_without_output(url: str, listed: list[dict[str, Any]]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    settings = {"AGENTPHONE_API_KEY": KEY, "AGENTPHONE_BASE_URL": url}
    with start_agentphone(
        *("conversations", "messages", listed[0]["id"]), stdout=writer, stderr=PIPE, env=ENVIRONMENT | settings
    ) as process:
        os.close(writer)
        assert process.communicate(timeout=SECONDS)[1] == ""
    assert process.returncode == 141


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux only")
@pytest.mark.parametrize(("target", "code"), [("/dev/full", 1), ("&-", 0), ("&- 2>&-", 0)])
def test_full_or_closed_stdout_prints_no_traceback(target: str, code: int) -> None:
    command = [*AGENTPHONE, "conversations", "list", "--base-url", "sandbox:"]
    done = run("sh", "-c", f'exec "$@" >{target}', "sh", *command)
    assert (done.returncode, done.stderr) == (code, "agentphone: No space left on device\n" if code else "")


def test_closed_stdin_prints_no_traceback() -> None:
    command = [*AGENTPHONE, "conversations", "update", "conv_1", "--file", "-", "--base-url", "sandbox:"]
    done = run("sh", "-c", 'exec "$@" <&-', "sh", *command)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


def test_missing_rich_names_the_command_that_installs_it() -> None:
    commands = ["conversations list", "conversations update conv_1 --clear", "conversations watch", "export backup"]
    code = (
        "import sys\nsys.modules['rich'] = None\nfrom agentphone.__main__ import main\n"
        f"print([main(command.split()) for command in {commands}])\n"
    )
    done = run(*PYTHON, "-c", code)
    assert done.stdout == f"{[1] * 4}\n"
    assert done.stderr.splitlines() == [
        f"agentphone {command}: rich is not installed; in the project's folder: pip install '.[cli]'"
        for command in ("conversations list", "conversations update", "conversations watch", "export")
    ]
