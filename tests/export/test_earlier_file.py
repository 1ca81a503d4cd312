"""Incremental exports continue the file that the last export wrote, byte for byte, and no other."""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from agentphone import Client, ConfigurationError, ServerError
from agentphone.export import _files, export
from agentphone.sandbox import Sandbox
from tests.support.accounts import DAY, FORMATS, START, Watched, altered, both, contents, fill, rows_of

RESTORE = "so it cannot be continued. Restore it, or export without since."


def keep_half_of_the_lines(path: Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[: len(lines) // 2]))


def append_a_line(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b'{"junk": true}\n')


def change_a_byte(path: Path) -> None:
    changed = bytearray(path.read_bytes())
    changed[len(changed) // 2] ^= 1
    path.write_bytes(changed)


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut in the middle of a line": (lambda path: os.truncate(path, path.stat().st_size - 10), r"[\d,]+ bytes, not \d+"),
    "an older copy": (keep_half_of_the_lines, r"[\d,]+ bytes, not \d+"),
    "with a line at the end": (append_a_line, r"[\d,]+ bytes, not \d+"),
    "empty": (lambda path: os.truncate(path, 0), r"\(0 bytes, not \d+"),
    "changed in the middle": (change_a_byte, "the same size, another SHA-256"),
}


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("change", CHANGES)
def test_since_last_rejects_a_changed_file_before_any_request(
    box: Sandbox, directory: Path, format_: Any, change: str
) -> None:
    alter, reason = CHANGES[change]
    fill(box, 2, 30)
    transport = Watched(box)
    with Client("key", transport=transport) as client:
        messages = export(client, directory, format=format_).messages_path
        saved = messages.read_bytes()
        alter(messages)
        before, asked = contents(directory), len(transport.asked)
        with pytest.raises(ConfigurationError) as caught:
            export(client, directory, format=format_, since="last")
        assert str(caught.value).startswith(f"{str(messages)!r}, which the last export wrote, has changed since (")
        assert str(caught.value).endswith(f"), {RESTORE}")
        assert caught.match(reason)
        assert (contents(directory), len(transport.asked)) == (before, asked)

        messages.write_bytes(saved)  # as the text says
        fill(box, 2, 5, START + DAY)
        assert export(client, directory, format=format_, since="last").messages_total == 70
        alter(messages)
        export(client, directory, format=format_)  # as the text says, too
        assert export(client, directory, format=format_, since="last").messages_total == 70


def test_since_last_rejects_a_file_that_changes_while_it_is_interrupted(box: Sandbox, directory: Path) -> None:
    fill(box, 3, 10)
    with Client("key", transport=box.transport()) as client:
        messages = export(client, directory).messages_path
    fill(box, 3, 1, START + DAY)
    failing = Watched(box, lambda number, _: httpx.Response(500) if number == 3 else None)
    with Client("key", transport=failing, max_retries=0) as client:
        with pytest.raises(ServerError):
            export(client, directory, since="last", concurrency=1)
        saved = messages.read_bytes()
        change_a_byte(messages)
        with pytest.raises(ConfigurationError, match=r"messages\.jsonl', which the last export wrote, has changed"):
            export(client, directory, since="last")
        messages.write_bytes(saved)
        assert export(client, directory, since="last").messages_total == 33
    assert sorted(map(repr, both(directory)[1])) == sorted(map(repr, rows_of(box)[1]))


def test_state_has_the_size_and_checksum_of_the_file(
    box: Sandbox, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_files, "BLOCK", 100)
    fill(box, 1, 2)
    with Client("key", transport=box.transport()) as client:
        path = export(client, directory).messages_path
        assert export(client, directory, since="last").messages == 0
    with closing(sqlite3.connect(directory / ".last-export.db")) as connection:
        notes = dict(connection.execute("SELECT name, value FROM meta"))
    assert notes["digest"] == f"{path.stat().st_size}:{hashlib.sha256(path.read_bytes()).hexdigest()}"


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        ("UPDATE meta SET value = 'some:thing' WHERE name = 'digest'", r"\.last-export\.db' cannot be read"),
        ("DELETE FROM meta WHERE name = 'digest'", r"messages\.jsonl', which the last export wrote, has changed since"),
    ],
)
def test_state_without_a_digest_is_rejected(box: Sandbox, directory: Path, statement: str, reason: str) -> None:
    fill(box, 1, 2)
    with Client("key", transport=box.transport()) as client:
        export(client, directory)
        altered(directory / ".last-export.db", statement)
        with pytest.raises(ConfigurationError, match=reason):
            export(client, directory, since="last")
