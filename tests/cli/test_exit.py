"""The command line in processes of its own: the demo, the sandbox, exit codes, and missing extras."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import time
from pathlib import Path

import httpx
import pytest

import agentphone
from agentphone.__main__ import main
from tests.support.forked import PIPE
from tests.support.processes import (
    AGENTPHONE,
    PYTHON,
    SECONDS,
    run,
    run_agentphone,
    run_agentphone_in_terminal,
    run_forked,
    sandbox,
    start_agentphone,
    widest,
)

# The demo


@pytest.fixture(scope="module")
def demo() -> str:
    """Return what the demo writes to a pipe."""
    done = run_agentphone("demo")
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_demo_lists_conversations_in_an_aligned_table(demo: str) -> None:
    rows = re.findall(r"^  \+1555\d+ .*$", demo.partition("2. ")[0], re.MULTILINE)
    assert len(rows) == 12
    assert all(re.fullmatch(r"  \+\d{11}   \d{4}-\d\d-\d\d \d\d:\d\d  +\d+  \S.*", row) for row in rows)
    counts = [re.match(r"  \S+ +\S+ \S+ +\d+", row) for row in rows]
    assert {len(count[0]) for count in counts if count} == {43}
    assert "12 of 36 conversations" in demo


def test_demo_streams_a_long_history_with_progress(demo: str) -> None:
    assert re.findall(r"^  (\d+) of 640 messages$", demo, re.MULTILINE) == ["160", "320", "480", "640"]
    assert "640 messages received" in demo


def test_demo_stores_reads_and_clears_state(demo: str) -> None:
    words = demo.split()
    stored, read_back, cleared = words.index("stored"), words.index("read"), words.index("cleared")
    assert words[stored + 1 : read_back] == words[read_back + 2 : cleared]
    assert words[cleared + 1] == "null"


def test_demo_shows_state_that_comes_with_the_next_text(demo: str) -> None:
    part = demo.partition("4. An agent's loop")[2].partition("5. ")[0]
    assert re.findall(r"^  (text|state|stored) +(.*)$", part, re.MULTILINE) == [
        ("text", '"Where is my order ORD-5?"'),
        ("state", "null"),
        ("stored", '{"texts": 1, "orderId": "ORD-5"}'),
        ("text", '"Will it come today?"'),
        ("state", '{"texts": 1, "orderId": "ORD-5"}'),
        ("stored", '{"texts": 2, "orderId": "ORD-5"}'),
    ]


def test_demo_shows_the_errors_for_a_wrong_key_and_id(demo: str) -> None:
    assert "AuthenticationError: GET /v1/conversations?limit=1&offset=0: 401" in demo
    assert "NotFoundError: GET /v1/conversations/conv_nobody: 404" in demo


def test_demo_is_plain_text_of_eighty_columns(demo: str) -> None:
    assert widest(demo) <= 80
    assert all(c == "\n" or c.isprintable() for c in demo)


def test_demo_redraws_its_progress_line_in_a_terminal() -> None:
    code, shown = run_agentphone_in_terminal("demo")
    assert code == 0
    assert re.search(r"\r  \[#+ +\] +\d+ of 640 messages\r", shown)
    assert re.search(r"\r  \[#{32}\] 640 of 640 messages\r\n", shown)
    assert widest(shown) <= 80
    assert "\x1b" not in shown


def test_demo_works_with_ascii_output() -> None:
    done = run(*AGENTPHONE, "demo", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert "640 messages received" in done.stdout


def test_demo_ignores_the_environment() -> None:
    done = run_agentphone("demo", AGENTPHONE_BASE_URL="https://127.0.0.1:1", AGENTPHONE_API_KEY="a b")
    assert (done.returncode, done.stderr) == (0, "")


def test_ctrl_c_in_the_demo_is_exit_code_130_without_output() -> None:
    done = run_forked(
        "import asyncio, os, signal, sys\n"
        "from agentphone.__main__ import main\n"
        "from agentphone.cli import demo\n"
        "async def interrupted(*_):\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    await asyncio.sleep(60)\n"
        "demo._show_history = interrupted\n"
        "sys.exit(main(['demo']))\n"
    )
    assert (done.returncode, done.stderr) == (130, "")
    assert done.stdout.startswith("A local AgentPhone")


@pytest.mark.parametrize("command", [["demo"], ["sandbox", "--port", "0"]])
def test_closed_pipe_is_exit_code_141_without_output(command: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with start_agentphone(*command, stdout=writer, stderr=PIPE) as process:
        os.close(writer)
        assert process.communicate(timeout=SECONDS)[1] == ""
    assert process.returncode == 141


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux only")
@pytest.mark.parametrize("command", [["demo"], ["sandbox", "--port", "0"]])
def test_full_device_is_one_line_and_exit_code_1(command: list[str]) -> None:
    with (
        Path("/dev/full").open("wb") as full,
        start_agentphone(*command, stdout=full.fileno(), stderr=PIPE) as process,
    ):
        assert process.communicate(timeout=SECONDS)[1] == "agentphone: No space left on device\n"
    assert process.returncode == 1


def test_demo_works_with_closed_stdout() -> None:
    done = run("sh", "-c", 'exec "$@" >&-', "sh", *AGENTPHONE, "demo")
    assert (done.returncode, done.stderr) == (0, "")


# The sandbox command


def test_sandbox_serves_until_ctrl_c() -> None:
    with sandbox("--quiet") as (process, url):
        response = httpx.get(f"{url}/v1/conversations", headers={"Authorization": "Bearer any"}, timeout=SECONDS)
        assert response.json() == {"data": [], "hasMore": False, "total": 0}
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=SECONDS)
    assert (process.returncode, stdout, stderr) == (0, "", "")


def test_sandbox_prints_a_line_per_request_and_delivery() -> None:
    hook = ["--webhook", "http://127.0.0.1:9/hook", "--secret", "whsec_unlikely", "--retry-scale", "1000"]
    with sandbox(*hook) as (process, url):
        assert process.stdout is not None
        assert process.stdout.readline() == f"Open {url}/ in a browser to text with your agent.\n"
        sent = run_agentphone("sandbox", "text", "Hi\x1b[31m", "--url", url)
        assert (sent.returncode, json.loads(sent.stdout)["body"]) == (0, "Hi\x1b[31m")
        headers = {"Authorization": "Bearer any"}
        httpx.get(f"{url}/v1/conversations/none", params={"x": "\x1b\n"}, headers=headers, timeout=SECONDS)
        lines = [process.stdout.readline() for _ in range(3)]
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=SECONDS)
    shown = "".join(sorted(re.sub(r"^\d\d:\d\d:\d\d  |  +", " ", line) for line in lines))
    assert re.fullmatch(
        r" GET /v1/conversations/none\?x=%1B%0A 404 \d+ ms\n"
        r" POST /sandbox/messages 201 \d+ ms\n"
        r" → http://127\.0\.0\.1:9/hook no answer \d+ ms attempt 1, ConnectError: .*; will be retried\n",
        shown,
    )
    assert (process.returncode, stdout, stderr) == (0, "", "")
    assert "unlikely" not in shown


def test_unread_output_does_not_stop_the_sandbox() -> None:
    """More lines than a pipe holds; a program that starts the sandbox may read its URL only."""
    with sandbox() as (process, url), httpx.Client(base_url=url, timeout=SECONDS) as client:
        for _ in range(150):
            assert client.get(f"/{'x' * 90}", params={"y": "z" * 1000}).status_code == 401
        process.send_signal(signal.SIGINT)
        assert process.wait(SECONDS) == 0


def test_sandbox_says_when_other_machines_can_reach_it() -> None:
    with start_agentphone("sandbox", "--port", "0", "--host", "0.0.0.0", stdout=PIPE) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(3)]
        process.kill()
    assert lines[0].startswith("AgentPhone sandbox at http://0.0.0.0:")
    assert lines[1].startswith("Open http://127.0.0.1:")
    assert lines[2] == "It listens on 0.0.0.0: other machines can use it too, with any key.\n"


def test_allowed_host_is_a_name_alone() -> None:
    done = run_agentphone("sandbox", "--allow-host", "https://tunnel.example.com")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--allow-host must be a name without a scheme and port, got 'https://tunnel.example.com'." in done.stderr


def test_text_without_a_sandbox_is_one_line_and_exit_code_1() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    done = run_agentphone("sandbox", "text", "Hi", "--url", f"http://127.0.0.1:{port}")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith(f"agentphone sandbox text: no sandbox at http://127.0.0.1:{port}: ")
    assert done.stderr.endswith("Start one with: agentphone sandbox\n")


def test_text_to_a_sandbox_with_a_key() -> None:
    with sandbox("--api-key", "sk-unlikely-text") as (_, url):
        command = ["sandbox", "text", "Hi", "--from", "+15555550119", "--url", url]
        rejected = run_agentphone(*command)
        assert (rejected.returncode, rejected.stdout) == (1, "")
        assert f"{url} answered 401: Missing or wrong API key" in rejected.stderr
        sent = run_agentphone(*command, AGENTPHONE_API_KEY="sk-unlikely-text")
    assert json.loads(sent.stdout)["fromNumber"] == "+15555550119"


def test_sandbox_with_demo_data() -> None:
    with sandbox("--demo") as (_, url):
        response = httpx.get(f"{url}/v1/conversations", headers={"Authorization": "Bearer any"}, timeout=SECONDS)
        assert response.json()["total"] == 36


def test_sandbox_keeps_data_in_a_file(tmp_path: Path) -> None:
    message = {"direction": "inbound", "from": "+15555550110", "to": "+15555550100", "body": "hello"}
    headers = {"Authorization": "Bearer any"}
    file = str(tmp_path / "box.db")
    with sandbox("--db", file) as (_, url):
        assert httpx.post(f"{url}/sandbox/messages", json=message, headers=headers, timeout=SECONDS).is_success
    with sandbox("--db", file) as (_, url):
        listed = httpx.get(f"{url}/v1/conversations", headers=headers, timeout=SECONDS).json()["data"]
    assert [conversation["lastMessagePreview"] for conversation in listed] == ["hello"]


def test_sandbox_accepts_one_key_and_never_prints_it() -> None:
    with sandbox("--api-key", "sk-unlikely-text") as (process, url):
        good = {"Authorization": "Bearer sk-unlikely-text"}
        bad = {"Authorization": "Bearer another-unlikely-text"}
        assert httpx.get(f"{url}/v1/conversations", headers=good, timeout=SECONDS).status_code == 200
        rejected = httpx.get(f"{url}/v1/conversations", headers=bad, timeout=SECONDS)
        assert rejected.status_code == 401
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=SECONDS)
    assert "unlikely" not in rejected.text + stdout + stderr + url


def test_sandbox_ignores_a_key_in_the_environment() -> None:
    with sandbox(AGENTPHONE_API_KEY="of-the-environment") as (_, url):
        response = httpx.get(f"{url}/v1/conversations", headers={"Authorization": "Bearer any"}, timeout=SECONDS)
        assert response.status_code == 200


def test_sandbox_scales_the_delays_between_webhook_attempts() -> None:
    message = {"direction": "inbound", "from": "+15555550110", "to": "+15555550100", "body": "hello"}
    with (
        sandbox("--retry-scale", "0") as (_, url),
        httpx.Client(base_url=url, headers={"Authorization": "Bearer any"}, timeout=SECONDS) as client,
    ):
        webhook = {"url": "http://127.0.0.1:9/", "secret": "whsec_1"}
        assert client.put("/sandbox/webhook", json=webhook).is_success
        assert client.post("/sandbox/messages", json=message).is_success
        end = time.monotonic() + SECONDS
        while len(client.get("/sandbox/deliveries").json()["data"][0]["attempts"]) < 6:
            assert time.monotonic() < end
            time.sleep(0.05)


def test_port_in_use_is_one_line_and_exit_code_1() -> None:
    with sandbox() as (_, url):
        done = run_agentphone("sandbox", "--port", url.rpartition(":")[2])
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("agentphone sandbox: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["nothing"],
        ["sandbox", "--port", "many"],
        ["sandbox", "--port", "65536"],
        ["sandbox", "--port", "-1"],
        ["sandbox", "--api-key", " "],
        ["sandbox", "--db", ":memory:"],
        ["sandbox", "--retry-scale", "-1"],
        ["sandbox", "--retry-scale", "inf"],
        ["sandbox", "--retry-scale", "nan"],
        ["sandbox", "--retry-scale", "fast"],
        ["sandbox", "--api", "abbreviated"],
        ["sandbox", "--port"],
        ["sandbox", "--webhook", "http://127.0.0.1:9/"],
        ["sandbox", "--webhook", "no-url", "--secret", "s"],
        ["sandbox", "text"],
        ["sandbox", "--port", "1", "text", "Hi"],
        ["demo", "surplus"],
        ["--api-key", "of-an-account", "sandbox"],
        ["--base-url", "sandbox:", "demo"],
    ],
)
def test_usage_error_is_exit_code_2(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(command)
    assert exit_.value.code == 2
    errors = capsys.readouterr().err
    assert "usage: agentphone" in errors
    assert errors.count("\n") == 1 or not command  # without arguments it is the whole help page


def test_usage_error_never_contains_the_key(capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["sandbox", "--api-key=sk-unlikely", "--port", "x"], ["demo", "--api-key=sk-unlikely"]):
        with pytest.raises(SystemExit):
            main(command)
    with pytest.raises(SystemExit):
        main(["--api-key=sk-unlikely", "sandbox"])
    assert "unlikely" not in capsys.readouterr().err


# Missing packages


def run_without(modules: str, *commands: str) -> tuple[int, str, str]:
    """Run commands in one new interpreter that cannot import some modules; return its exit code and its output."""
    code = (
        f"import sys\nfor name in {modules.split()}: sys.modules[name] = None\n"
        "from agentphone.__main__ import main\n"
        f"for command in {commands[:-1]}: print(main(command.split()))\n"
        f"sys.exit(main({commands[-1]!r}.split()))\n"
    )
    done = run(*PYTHON, "-c", code)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("missing", ["starlette", "uvicorn"])
def test_missing_sandbox_extra_names_the_command_that_installs_it(missing: str) -> None:
    code, output, errors = run_without(missing, "demo", "sandbox")
    assert (code, output) == (1, "1\n")
    assert errors == "".join(
        f"agentphone {command}: {missing} is not installed; in the project's folder: pip install '.[sandbox]'\n"
        for command in ("demo", "sandbox")
    )


def test_missing_module_of_our_own_is_a_traceback() -> None:
    code, _, errors = run_without("agentphone.sandbox", "demo")
    assert code == 1
    assert "ModuleNotFoundError" in errors


def test_version_and_help_need_only_click() -> None:
    for option, expected in (("--version", f"agentphone {agentphone.__version__}\n"), ("--help", "agentphone demo")):
        code, output, errors = run_without("rich starlette uvicorn", option)
        assert (code, errors) == (0, "")
        assert expected in output


def test_missing_click_names_the_command_that_installs_it() -> None:
    code, output, errors = run_without("click", "demo", "sandbox", "--help", "conversations list", "")
    assert (code, output) == (1, "1\n" * 4)
    assert errors == 5 * (
        "agentphone: click is not installed; in the project's folder (PyPI has another package of this name):"
        " pip install '.[cli]' for conversations and export, '.[sandbox]' for demo and sandbox, '.[mcp]' for mcp\n"
    )
