"""`agentphone conversations follow` and `watch`: messages in a terminal or a pipe as they arrive, until Ctrl-C."""

from __future__ import annotations

import inspect
import json
import os
import re
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import click
import httpx
import pytest

from agentphone import APIConnectionError, APITimeoutError, Conversations, ServerError
from agentphone.__main__ import main
from agentphone.cli.conversations import _report_retries
from tests.support.forked import PIPE, Forked
from tests.support.processes import ENVIRONMENT, SECONDS, read_terminal, sandbox, start_agentphone

NUMBER = "+15555550100"
HEADERS = {"Authorization": "Bearer any-key"}


class Box:
    """A sandbox over HTTP that receives texts."""

    def __init__(self, url: str) -> None:
        self.url = url

    def text(self, body: str, sender: str = "+15555550110") -> str:
        """Send a text as a person, and return the id of its conversation."""
        message = {"direction": "inbound", "from": sender, "to": NUMBER, "body": body}
        response = httpx.post(f"{self.url}/sandbox/messages", json=message, headers=HEADERS, timeout=SECONDS)
        return cast("str", response.raise_for_status().json()["conversationId"])


@pytest.fixture(scope="module")
def box() -> Iterator[Box]:
    """Serve an empty sandbox in another process."""
    with sandbox() as (_, url):
        yield Box(url)


@contextmanager
def running(box: Box, *arguments: str, stdout: int = PIPE) -> Iterator[Forked]:
    """Run `agentphone conversations ...` against the sandbox, with frequent polls."""
    settings = {"AGENTPHONE_API_KEY": "any-key", "AGENTPHONE_BASE_URL": box.url, "TERM": "xterm"}
    command = ["conversations", *arguments, "--poll-interval", "0.05"]
    with start_agentphone(*command, stdout=stdout, stderr=PIPE, env=ENVIRONMENT | settings) as process:
        try:
            yield process
        finally:
            process.kill()


def test_follow_prints_each_message_at_once_until_ctrl_c(box: Box) -> None:
    conversation_id = box.text("before")
    with running(box, "follow", conversation_id, "--after", "2020-01-01T00:00:00Z") as process:
        output = cast("IO[str]", process.stdout)
        assert json.loads(output.readline())["body"] == "before"
        for body in ("one", "zwei 👍", "[red]\x1b[31m"):
            box.text(body)
            row = json.loads(output.readline())
            assert (row["body"], row["fromNumber"], row["direction"]) == (body, "+15555550110", "inbound")
            assert "conversationId" not in row
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=SECONDS) == ("", "")
    assert process.returncode == 130


def test_watch_prints_messages_with_their_conversations(box: Box) -> None:
    ids = {sender: box.text("first", sender) for sender in ("+15555550120", "+15555550121")}
    after = httpx.get(f"{box.url}/v1/conversations", headers=HEADERS, timeout=SECONDS).json()["data"][0][
        "lastMessageAt"
    ]
    with running(box, "watch", "--after", after) as process:
        output = cast("IO[str]", process.stdout)
        for sender, conversation_id in ids.items():
            box.text("second", sender)
            row = json.loads(output.readline())
            assert (row["conversationId"], row["fromNumber"], row["body"]) == (conversation_id, sender, "second")


def test_closed_pipe_ends_follow_at_the_next_message(box: Box) -> None:
    conversation_id = box.text("before")
    with running(box, "follow", conversation_id, "--after", "2020-01-01T00:00:00Z") as process:
        output = cast("IO[str]", process.stdout)
        assert output.readline()
        output.close()
        box.text("after")
        assert cast("IO[str]", process.stderr).read() == ""
        assert process.wait(SECONDS) == 141


@pytest.mark.parametrize("command", ["follow", "watch"])
def test_terminal_shows_messages_as_they_arrive(box: Box, command: str) -> None:
    pty = pytest.importorskip("pty")
    master, slave = pty.openpty()
    conversation_id = box.text("before")
    arguments = [command, conversation_id] if command == "follow" else [command]
    with running(box, *arguments, "--after", "2020-01-01T00:00:00Z", stdout=slave) as process:
        os.close(slave)
        shown = ""

        def read_until(text: str) -> None:
            nonlocal shown
            while text not in shown:
                chunk = read_terminal(master)
                assert chunk, shown
                shown += chunk.decode()

        read_until("before")
        box.text("[red]\x1b[31mhello\nthere")
        read_until("there")
        process.send_signal(signal.SIGINT)
        while chunk := read_terminal(master):
            shown += chunk.decode()
        assert cast("IO[str]", process.stderr).read() == ""
        assert process.wait(SECONDS) == 130
    os.close(master)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", shown).replace("\r\n", "\n")
    participant = r" +\+15555550110" if command == "watch" else ""
    assert plain.startswith("Waiting for messages. Press Ctrl-C to stop.\nRECEIVED (UTC)")
    assert plain.count("RECEIVED (UTC)") == 1
    row = rf"\n\d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d{participant} +inbound +\[red\]\\x1b\[31mhello *\n +there *\n"
    assert re.search(row, plain), plain


def test_connection_failures_are_reported_and_retried(box: Box, tmp_path: Path) -> None:
    file = str(tmp_path / "box.db")
    with sandbox("--db", file) as (server, url):
        port = url.rpartition(":")[2]
        conversation_id = Box(url).text("before")
        with running(Box(url), "follow", conversation_id, "--after", "2020-01-01T00:00:00Z") as process:
            assert json.loads(cast("IO[str]", process.stdout).readline())["body"] == "before"
            server.kill()
            server.wait(SECONDS)
            report = cast("IO[str]", process.stderr).readline()
            assert report.startswith(
                f"agentphone conversations follow: GET /v1/conversations/{conversation_id}/messages"
            )
            assert report.endswith(
                ". Trying again until it works. Check the network and the base URL (--base-url or"
                " AGENTPHONE_BASE_URL).\n"
            )
            with sandbox("--db", file, "--port", port):
                Box(url).text("after")
                assert json.loads(cast("IO[str]", process.stdout).readline())["body"] == "after"


@pytest.mark.parametrize("command", [["watch"], ["follow", "conv_1"]], ids=["watch", "follow"])
def test_repeated_failures_are_reported_once(command: list[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(SECONDS)
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        with running(Box(url), *command) as process:
            for _ in range(6):  # more than the attempts of one call
                server.accept()[0].close()
            process.send_signal(signal.SIGINT)
            stdout, stderr = process.communicate(timeout=SECONDS)
    assert (process.returncode, stdout) == (130, "")
    assert stderr.startswith(f"agentphone conversations {command[0]}: GET /v1/conversations")
    assert stderr.count("\n") == 1


def test_lasting_failure_is_reported_every_minute(capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    report = _report_retries(click.Context(click.Command("watch"), info_name="watch"), clock=lambda: now)
    errors = [
        APIConnectionError("refused", request="GET /"),
        ServerError("Bad Gateway", request="GET /", status_code=502),
        APITimeoutError("no response", request="GET /"),
    ]
    for now in (0.0, 1.0, 59.9, 60.0, 60.1, 119.9, 125.0, 180.0, 185.0):
        report(errors[int(now // 60) % 3], 1.0)
        assert capsys.readouterr().err.count("\n") == (now in (0.0, 60.0, 125.0, 185.0))


@pytest.mark.parametrize(("command", "idle"), [(["watch"], 60), (["follow", "conv_1"], 30)], ids=["watch", "follow"])
def test_poll_interval_option_sets_the_interval(
    command: list[str], idle: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    method = getattr(Conversations, command[0])
    passed: list[dict[str, Any]] = []

    def record(*_: object, **arguments: Any) -> Iterator[Any]:
        passed.append(arguments)
        return iter(())

    monkeypatch.setattr(Conversations, command[0], record)
    for options in ([], ["--poll-interval", "0.5"]):
        assert main(["conversations", *command, *options, "--base-url", "sandbox:"]) == 0
    defaults = inspect.signature(method).parameters
    assert [arguments["poll_interval"] for arguments in passed] == [defaults["poll_interval"].default, 0.5]
    with pytest.raises(SystemExit):
        main(["conversations", command[0], "--help"])
    assert defaults["max_poll_interval"].default == idle
    assert re.search(rf"up\s+to\s+{idle}\s+seconds", capsys.readouterr().out)


def test_watch_of_a_wrong_base_url_is_exit_code_1(box: Box) -> None:
    with running(Box(f"{box.url}/wrong"), "watch") as process:
        stdout, stderr = process.communicate(timeout=SECONDS)
    assert (process.returncode, stdout) == (1, "")
    assert stderr.startswith("agentphone conversations watch: GET /v1/conversations?")
    assert "--base-url" in stderr
    assert stderr.count("\n") == 1


def test_not_found_is_exit_code_1(box: Box) -> None:
    with running(box, "follow", "conv_nobody") as process:
        stdout, stderr = process.communicate(timeout=SECONDS)
    assert (process.returncode, stdout) == (1, "")
    assert stderr.startswith("agentphone conversations follow: GET /v1/conversations/conv_nobody")
    assert stderr.count("\n") == 1
