"""`agentphone mcp` as its clients start it: what it writes, when it ends, resources, prompts and configurations."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import threading
from pathlib import Path
from typing import IO, Any, cast

import anyio
import httpx
import pytest
from mcp import Client, MCPError, StdioServerParameters
from mcp.client.stdio import stdio_client

from agentphone.__main__ import main
from agentphone.sandbox import Sandbox
from tests.mcp.conftest import AGENT, KEY, PERSON, Account, Session, connected, over_http, over_stdio, start
from tests.support.cli_support import Outcome, RunCommand
from tests.support.forked import PIPE, Forked
from tests.support.processes import ENVIRONMENT, PYTHON, SECONDS, run

INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}},
}


@pytest.fixture
def run_command(capsys: pytest.CaptureFixture[str]) -> RunCommand:
    """Return a function that runs `agentphone mcp ...` in this process."""

    def run_command(*arguments: str) -> Outcome:
        try:
            code = main(["mcp", *arguments])
        except SystemExit as exit_:
            code = int(exit_.code or 0)
        written = capsys.readouterr()
        return Outcome(code, written.out, written.err)

    return run_command


def start_on_pipes(*options: str) -> Forked:
    """Start `agentphone mcp` on pipes."""
    return start(*options, stdin=PIPE, stdout=PIPE, stderr=PIPE)


def request(method: str, number: int, **params: Any) -> str:
    return json.dumps({"jsonrpc": "2.0", "id": number, "method": method, "params": params}) + "\n"


def test_stdout_has_nothing_but_the_protocol_and_stdin_ends_it() -> None:
    """Also without a key: it starts, and each tool says what is missing."""
    with start_on_pipes() as process:
        assert process.stdin is not None
        process.stdin.write(json.dumps(INITIALIZE) + "\n")
        process.stdin.write('{"jsonrpc": "2.0", "method": "notifications/initialized"}\n')
        process.stdin.write("not JSON\n")
        process.stdin.write(request("tools/list", 2))
        process.stdin.write(request("tools/call", 3, name="reply", arguments={"conversation_id": "c", "body": "Hi"}))
        process.stdin.flush()
        answers: dict[Any, Any] = {}
        while not {2, 3} <= answers.keys():
            line = json.loads(cast("IO[str]", process.stdout).readline())
            assert line["jsonrpc"] == "2.0"
            answers[line.get("id")] = line
        rest, errors = process.communicate(timeout=SECONDS)  # which closes stdin
    assert (process.returncode, rest) == (0, "")
    assert "Traceback" not in errors
    assert errors.startswith("agentphone mcp: No API key.")
    assert answers[1]["result"]["serverInfo"]["name"] == "agentphone"
    assert "never sent twice" in answers[1]["result"]["instructions"]
    assert len(answers[2]["result"]["tools"]) == 8
    assert answers[3]["result"]["isError"] is True
    assert answers[3]["result"]["content"][0]["text"].startswith(
        "No API key. Pass --api-key KEY or set AGENTPHONE_API_"
    )


@pytest.mark.skipif(os.name != "posix", reason="sends signals")
def test_ctrl_c_ends_it_while_stdin_is_open() -> None:
    with start_on_pipes("--base-url", "sandbox:") as process:
        cast("IO[str]", process.stdin).write(json.dumps(INITIALIZE) + "\n")
        cast("IO[str]", process.stdin).flush()
        cast("IO[str]", process.stdout).readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(SECONDS) == -signal.SIGINT


def test_client_that_has_gone_is_no_error() -> None:
    """It closed both pipes, and an answer was still to be written."""
    with start_on_pipes("--base-url", "sandbox:") as process:
        stdin, stdout = cast("IO[str]", process.stdin), cast("IO[str]", process.stdout)
        stdin.write(json.dumps(INITIALIZE) + "\n")
        stdin.flush()
        stdout.readline()
        stdout.close()
        stdin.write(request("tools/list", 2))
        stdin.close()
        assert (process.wait(SECONDS), cast("IO[str]", process.stderr).read()) == (0, "")


@pytest.mark.skipif(os.name != "posix", reason="sends signals")
def test_http_server_ends_normally_on_a_signal() -> None:
    with start_on_pipes("--base-url", "sandbox:", "--http", "0") as process:
        assert "http://127.0.0.1:" in cast("IO[str]", process.stdout).readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait(SECONDS) == 0
        assert cast("IO[str]", process.stderr).read() == ""


def test_wrong_address_is_one_line(run_command: RunCommand) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run_command("--base-url", "sandbox:", "--http", f"127.0.0.1:{port}")
    assert (done.code, done.output) == (1, "")
    assert re.fullmatch(rf"agentphone mcp: cannot listen on 127.0.0.1 port {port}: .*\n", done.errors)
    for wrong in ("x", "127.0.0.1:", ":70000", "[::1]"):
        done = run_command("--http", wrong)
        assert done.code == 2
        assert f"--http must be PORT or HOST:PORT, got {wrong!r}" in done.errors


def test_key_is_in_no_answer_and_in_no_log(account: Account, tmp_path: Path) -> None:
    wrong = f"wrong-{KEY}"
    log = tmp_path / "log"

    async def program() -> str:
        with log.open("w") as errors:
            async with Client(stdio_client(over_stdio(account.url, key=wrong), errlog=errors)) as client:
                result = await client.call_tool("list_conversations", {})
                with pytest.raises(MCPError) as caught:
                    await client.list_resources()
                return f"{result} {caught.value}"

    said = anyio.run(program)
    assert said.count("401") == 2
    assert "Check the API key" in said
    assert wrong not in said + log.read_text()


@pytest.mark.parametrize("transport", ["stdio", "http"])
def test_cancelled_call_cancels_its_request(transport: str) -> None:
    arrived, gone = threading.Event(), threading.Event()

    def serve(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            arrived.set()
            while connection.recv(65536):
                pass
            gone.set()

    async def program(server: Any) -> None:
        async with Client(server) as client, anyio.create_task_group() as group:
            group.start_soon(client.call_tool, "list_conversations", {})
            assert await anyio.to_thread.run_sync(arrived.wait, SECONDS)
            group.cancel_scope.cancel()
            with anyio.CancelScope(shield=True):
                assert await anyio.to_thread.run_sync(gone.wait, SECONDS)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, args=[listener], daemon=True).start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        if transport == "stdio":
            anyio.run(program, over_stdio(url))
        else:
            with over_http(url) as server:
                anyio.run(program, server)


def test_resource_of_each_conversation(session: Session, account: Account, conversation_id: str) -> None:
    client, portal = session.client, session.portal
    first = portal.call(client.list_resources).resources[0]
    assert first.uri == f"agentphone://conversations/{conversation_id}"
    (template,) = portal.call(client.list_resource_templates).resource_templates
    assert template.uri_template == "agentphone://conversations/{id}"
    (content,) = portal.call(client.read_resource, first.uri).contents
    assert json.loads(content.text) == session.answer(
        "get_conversation", conversation_id=conversation_id, message_limit=20
    )
    for uri, text in [
        ("agentphone://conversations/conv_nobody", "404"),
        ("agentphone://conversations/", "uri must be agentphone://conversations/ID"),
        ("agentphone://other/x", "uri must be agentphone://conversations/ID"),
    ]:
        with pytest.raises(MCPError, match=text):
            portal.call(client.read_resource, uri)


def test_prompt_to_answer_the_latest_text(session: Session, account: Account, conversation_id: str) -> None:
    client, portal = session.client, session.portal
    (prompt,) = portal.call(client.list_prompts).prompts
    assert prompt.name == "answer_latest_text"
    for arguments in ({}, {"conversation_id": conversation_id}):
        (message,) = portal.call(client.get_prompt, prompt.name, arguments).messages
        assert f"the conversation_id {conversation_id}" in message.content.text
        assert "person (msg_" in message.content.text
        assert "Where is it?" in message.content.text
    with pytest.raises(MCPError, match="404"):
        portal.call(client.get_prompt, prompt.name, {"conversation_id": "conv_nobody"})
    with pytest.raises(MCPError, match="There is no prompt 'other'"):
        portal.call(client.get_prompt, "other", {})


@pytest.mark.parametrize("client", ["claude", "cursor", "vscode"])
def test_printed_configuration_has_no_key(
    client: str, run_command: RunCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGENTPHONE_API_KEY", KEY)
    done = run_command("--print-config", client)
    assert done.code == 0
    assert KEY not in done.output + done.errors
    assert done.errors.startswith("Paste this into ")
    config = json.loads(done.output)
    server = config["servers" if client == "vscode" else "mcpServers"]["agentphone"]
    placeholder = "${input:agentphone-api-key}" if client == "vscode" else "YOUR_API_KEY"
    assert server["env"] == {"AGENTPHONE_API_KEY": placeholder}
    assert ("inputs" in config) is (client == "vscode")


def test_printed_configuration_starts_it(
    run_command: RunCommand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with Sandbox("box.db") as box:
        box.receive_sms(from_number=PERSON, to_number=AGENT, body="Hi")
    done = run_command("--print-config", "claude", "--base-url", "sandbox:box.db", "--read-only")
    server = json.loads(done.output)["mcpServers"]["agentphone"]
    assert server["env"] == {"AGENTPHONE_BASE_URL": f"sandbox:{tmp_path / 'box.db'}"}
    environment = {"PYTHONPATH": ENVIRONMENT["PYTHONPATH"]} | server["env"]
    with connected(StdioServerParameters(command=server["command"], args=server["args"], env=environment)) as session:
        assert len(session.answer("list_conversations")["conversations"]) == 1
        assert "There is no tool 'reply'" in session.error("reply", conversation_id="c", body="Hi")


@pytest.mark.parametrize(
    ("client", "server"),
    [
        ("claude", {"type": "http", "url": "http://127.0.0.1:8000/mcp"}),
        ("cursor", {"url": "http://127.0.0.1:8000/mcp"}),
        ("vscode", {"type": "http", "url": "http://127.0.0.1:8000/mcp"}),
    ],
)
def test_printed_configuration_of_a_url(client: str, server: dict[str, str], run_command: RunCommand) -> None:
    (group,) = json.loads(run_command("--print-config", client, "--http", "8000").output).values()
    assert group == {"agentphone": server}


def test_missing_extra_is_named() -> None:
    code = "import sys; sys.modules['mcp_types'] = None; from agentphone.__main__ import main; sys.exit(main())"
    done = run(*PYTHON, "-c", code, "mcp", "--base-url", "sandbox:")
    assert done.returncode == 1
    assert re.fullmatch(
        r"agentphone mcp: mcp_types is not installed; in the project's folder: pip install '\.\[mcp\]'\n",
        done.stderr,
    )


def test_page_of_another_site_cannot_use_the_server(http_url: str) -> None:
    """A browser sends the name that it looked up, and the site of the page."""
    headers = {"Accept": "application/json, text/event-stream"}
    assert httpx.post(http_url, json=INITIALIZE, headers=headers).status_code == 200
    assert httpx.post(http_url, json=INITIALIZE, headers=headers | {"Host": "evil.example"}).status_code == 421
    assert httpx.post(http_url, json=INITIALIZE, headers=headers | {"Origin": "http://evil.example"}).status_code == 403


def test_page_in_a_browser_cannot_use_a_server_on_another_address() -> None:
    """Its names are unknown there, but it has no page that could be the origin of a request."""
    headers = {"Accept": "application/json, text/event-stream", "Host": "evil.example"}
    with over_http("sandbox:", host="0.0.0.0") as url:
        assert httpx.post(url, json=INITIALIZE, headers=headers).status_code == 200
        response = httpx.post(url, json=INITIALIZE, headers=headers | {"Origin": "http://evil.example"})
        assert (response.status_code, response.text) == (403, "Pages in a browser cannot use this server.")
