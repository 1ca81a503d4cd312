"""What `agentphone export` says when it is stopped or refuses: for a terminal and for a log, in the shell's words."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from agentphone.__main__ import main
from tests.support.processes import AGENTPHONE, ENVIRONMENT, SECONDS, read_terminal

LOCAL = ["--base-url", "sandbox:"]
RESUMES = "Run the same command again to resume.\n"
TERMINATED = -signal.SIGTERM


@contextmanager
def waiting_export(folder: Path, **settings: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Start an export that waits for the first response."""
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts connections, and never responds
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        command = [*AGENTPHONE, "export", "backup", "--api-key", "any", "--base-url", url]
        with subprocess.Popen(command, cwd=folder, **settings) as process:
            silent.settimeout(SECONDS)
            connection, _ = silent.accept()
            with connection:
                yield process


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, TERMINATED)])
def test_stopped_export_says_in_a_log_how_to_resume(tmp_path: Path, number: signal.Signals, code: int) -> None:
    with waiting_export(tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT) as process:
        process.send_signal(number)
        assert process.communicate(timeout=SECONDS) == (b"", RESUMES.encode())
    assert process.returncode == code


def test_sigterm_leaves_the_terminal_as_it_was(tmp_path: Path) -> None:
    pty = pytest.importorskip("pty")
    master, slave = pty.openpty()
    terminal = ENVIRONMENT | {"TERM": "xterm-256color"}
    with waiting_export(tmp_path, stdout=slave, stderr=slave, env=terminal) as process:
        os.close(slave)
        process.send_signal(signal.SIGTERM)
        output = b""
        while chunk := read_terminal(master):
            output += chunk
        assert process.wait(SECONDS) == TERMINATED
    os.close(master)
    assert output.decode().endswith(RESUMES.replace("\n", "\r\n"))
    assert re.findall(rb"\x1b\[\?25[hl]", output)[-1] == b"\x1b[?25h"  # the cursor is shown again


def test_ctrl_c_before_anything_is_stored_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("agentphone.export.export", interrupted)
    assert main(["export", str(tmp_path), *LOCAL]) == 130
    assert capsys.readouterr() == ("", "")


def test_sigterm_has_its_usual_handler_after_an_export(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    assert main(["export", str(tmp_path), *LOCAL]) == 0
    assert signal.getsignal(signal.SIGTERM) == before


def test_refusals_name_the_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refusal(*options: str) -> str:
        assert main(["export", str(tmp_path), *options, *LOCAL]) == 2
        return capsys.readouterr().err

    assert main(["export", str(tmp_path), "--since", "last", *LOCAL]) == 0
    assert f"{str(tmp_path)!r} is kept up to date with --since 'last' in" in (text := refusal("--since", "24h"))
    assert ", and an export with --since '24h' would replace it by less. Use another directory, or delete '" in text
    (tmp_path / "messages.jsonl").unlink()
    assert refusal("--since", "last").endswith(
        " is missing, so it cannot be continued. Restore it, or export without --since.\n"
    )
