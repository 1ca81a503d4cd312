"""`agentphone export`: its files, its progress bar in a terminal, and its errors, which say how to resume."""

from __future__ import annotations

import csv
import importlib
import json
import os
import re
import signal
import socket
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from agentphone.__main__ import main
from agentphone.sandbox import Sandbox
from tests.support.forked import PIPE
from tests.support.processes import (
    ENVIRONMENT,
    SECONDS,
    read_terminal,
    run_agentphone,
    run_agentphone_in_terminal,
    run_forked_in_terminal,
    sandbox,
    start_agentphone,
    widest,
)

LOCAL = ["--base-url", "sandbox:"]
RESUMES = "Run the same command again to resume."


def test_export_writes_two_files_of_json_lines(tmp_path: Path) -> None:
    done = run_agentphone("export", "backup", *LOCAL, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    conversations, messages = Path("backup") / "conversations.jsonl", Path("backup") / "messages.jsonl"
    assert json.loads(done.stdout) == {
        "conversations": 36,
        "messages": 1817,
        "messagesTotal": 1817,
        "skipped": 0,
        "conversationsPath": str(conversations),
        "messagesPath": str(messages),
    }
    listed = run_agentphone("conversations", "list", "--all", *LOCAL).stdout
    assert parsed((tmp_path / conversations).read_text()) == parsed(listed)
    rows = [json.loads(line) for line in (tmp_path / messages).read_text().splitlines()]
    assert len(rows) == 1817
    assert {row["conversationId"] for row in rows} == {json.loads(line)["id"] for line in listed.splitlines()}


def parsed(lines: str) -> dict[str, dict[str, Any]]:
    """Return the rows by id, with their timestamps as such: an export prints more digits."""
    rows = {row["id"]: row for row in map(json.loads, lines.splitlines())}
    for row in rows.values():
        for name in ("lastMessageAt", "createdAt"):
            row[name] = datetime.fromisoformat(row[name])
    return rows


@pytest.mark.parametrize("format_", ["csv", "parquet"])
def test_format_option(format_: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(tmp_path), "--format", format_, "--concurrency", "8", *LOCAL]) == 0
    file = tmp_path / f"messages.{format_}"
    assert json.loads(capsys.readouterr().out)["messagesPath"] == str(file)
    if format_ == "csv":
        with file.open(newline="", encoding="utf-8") as lines:
            assert len([*csv.reader(lines)]) == 1818
    else:
        assert importlib.import_module("pyarrow.parquet").read_metadata(file).num_rows == 1817


@pytest.mark.parametrize(
    ("since", "messages"),
    [("2025-06-30T12:00:00Z", range(1, 100)), ("9999d", [1817]), ("90m", [0]), ("24h", [0]), ("yesterday", [0])],
)
def test_since_a_time(since: str, messages: Sequence[int], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(tmp_path), "--since", since, *LOCAL]) == 0
    assert json.loads(capsys.readouterr().out)["messages"] in messages


def test_since_last_appends_new_messages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for count in (1817, 0):
        assert main(["export", str(tmp_path), "--since", "last", *LOCAL]) == 0
        counts = json.loads(capsys.readouterr().out)
        assert (counts["messages"], counts["messagesTotal"]) == (count, 1817)
    assert len((tmp_path / "messages.jsonl").read_text().splitlines()) == 1817


def test_terminal_shows_progress_bars_and_then_the_paths(tmp_path: Path) -> None:
    for columns, setting in ((80, {}), (60, {"NO_COLOR": "1"})):
        code, shown = run_agentphone_in_terminal("export", "backup", *LOCAL, columns=columns, cwd=tmp_path, **setting)
        assert code == 0
        plain = re.sub(r"\x1b\[[0-9;]*m", "", shown)
        assert re.search(r"Listing conversations .* 36/36 ", plain)
        assert re.search(r"Reading messages .* 1,817/1,817 +[\d,]+/s", plain)
        assert re.search(r"Writing messages .* 1,817/1,817 ", plain)
        *_, first, second = re.sub(r"\x1b\[[0-9?]*[A-Za-z]", "", plain).replace("\r\n", "\n").splitlines()
        assert first == f"Exported 36 conversations to {Path('backup') / 'conversations.jsonl'}"
        assert second == f"Exported 1,817 messages to {Path('backup') / 'messages.jsonl'}"
        assert widest(re.sub(r"\x1b\[[0-9?]*[A-Za-z]", "", plain)) <= columns
        assert bool(setting) != bool(re.search(r"\x1b\[[0-9;]*m", shown))


def test_terminal_shows_how_many_messages_are_new(tmp_path: Path) -> None:
    command = ["export", "backup", "--since", "last", "--base-url", "sandbox:box.db"]
    with Sandbox(tmp_path / "box.db") as box:
        for new, line in (
            (2, "+2 new messages, 2 in all"),
            (1, "+1 new message, 3 in all"),
            (0, "+0 new messages, 3 in all"),
        ):
            for _ in range(new):
                box.receive_sms(from_number="+15555550110", to_number="+15555550100", body="Hi")
            code, shown = run_agentphone_in_terminal(*command, cwd=tmp_path)
            assert code == 0
            assert f"{line}: {Path('backup') / 'messages.jsonl'}\r\n" in shown


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "Missing argument 'DIR'"),
        ([""], "DIR must not be empty"),
        (["x", "--concurrency", "0"], "Invalid value for '--concurrency': 0 is not in the range x>=1"),
        (["x", "--format", "xml"], "'xml' is not one of"),
        (
            ["x", "--since", "noon"],
            "--since must be a time with its offset such as 2025-06-01T00:00:00Z, an age such as",
        ),
        (["x", "--since", "2025-06-30T12:00:00"], "--since must be a time with its offset such as"),
        (["x", "--since", "2025-06-30"], "'yesterday' or 'last', got '2025-06-30'"),
    ],
)
def test_usage_error_is_one_line_and_exit_code_2(
    arguments: list[str],
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_:
        main(["export", *arguments, *LOCAL])
    written = capsys.readouterr()
    assert (exit_.value.code, written.out) == (2, "")
    assert reason in written.err
    assert written.err.count("\n") == 1
    assert [*tmp_path.iterdir()] == []


def test_unusable_directory_is_one_line_and_exit_code_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert main(["export", str(tmp_path / "file" / "backup"), *LOCAL]) == 1
    written = capsys.readouterr()
    assert (
        written.err == f"agentphone export: Not a directory: {tmp_path / 'file' / 'backup' / '.partial'}. {RESUMES}\n"
    )


def test_error_names_a_directory_in_place_of_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "messages.jsonl").mkdir()
    assert main(["export", str(tmp_path), *LOCAL]) == 1
    assert f": {tmp_path / 'messages.jsonl'}. {RESUMES}\n" in capsys.readouterr().err


def test_export_resumes_after_a_wrong_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with sandbox("--demo", "--api-key", "sk-unlikely-text") as (_, url):
        command = ["export", str(tmp_path), "--base-url", url, "--api-key"]
        assert main([*command, "sk-another-text"]) == 1
        errors = capsys.readouterr().err
        assert re.search(r": 401 .*\(--api-key or AGENTPHONE_API_KEY\).*\n", errors)
        assert errors.endswith(f" {RESUMES}\n")
        assert main([*command, "sk-unlikely-text"]) == 0


def test_ctrl_c_is_exit_code_130_and_says_how_to_resume(tmp_path: Path) -> None:
    pty = pytest.importorskip("pty")
    master, slave = pty.openpty()
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts connections, and never responds
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with start_agentphone(
            *("export", "backup", "--api-key", "any", "--base-url", url),
            stdout=PIPE,
            stderr=slave,
            cwd=tmp_path,
            env=ENVIRONMENT | {"TERM": "dumb"},
        ) as process:
            os.close(slave)
            silent.settimeout(SECONDS)
            connection, _ = silent.accept()
            with connection:
                process.send_signal(signal.SIGINT)
                output = b""
                while chunk := read_terminal(master):
                    output += chunk
                assert process.wait(SECONDS) == 130
    os.close(master)
    assert output.decode().endswith(f"{RESUMES}\r\n")
    assert b"Traceback" not in output


INTERRUPTED = """
import os, signal, sys, threading
from agentphone import _portal
from agentphone.__main__ import main
from agentphone.export import _files
write, cancel, is_cancelled = _files._Parquet.write, _portal._BlockingCall._cancel, threading.Event()
def interrupted_write(*args):
    write(*args)
    os.kill(os.getpid(), signal.SIGINT)
    is_cancelled.wait(60)
def observed_cancel(*args):
    cancel(*args)
    is_cancelled.set()
_files._Parquet.write, _portal._BlockingCall._cancel = interrupted_write, observed_cancel
sys.exit(main(["export", "backup", "--format", "parquet", "--base-url", "sandbox:"]))
"""


def test_ctrl_c_while_parquet_is_written_prints_no_traceback(tmp_path: Path) -> None:
    code, shown = run_forked_in_terminal(INTERRUPTED, cwd=tmp_path, TERM="dumb")
    assert code == 130
    assert shown.endswith(f"{RESUMES}\r\n")
    assert not re.search("Traceback|Error|Exception", shown)
    assert main(["export", str(tmp_path / "backup"), "--format", "parquet", *LOCAL]) == 0
