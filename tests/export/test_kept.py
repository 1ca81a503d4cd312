"""A directory that `since="last"` keeps: an interrupted full export is finished, and nothing replaces it by less."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from agentphone import Client, ConfigurationError, ServerError
from agentphone.export import Progress, export
from agentphone.sandbox import Sandbox
from tests.support.accounts import DAY, FORMATS, START, Watched, both, contents, fill, names, rows_of


def interrupt(box: Sandbox, directory: Path, **arguments: Any) -> None:
    """Export until the messages of one conversation are read."""
    failing = Watched(box, lambda number, _: httpx.Response(500) if number == 3 else None)
    with Client("key", transport=failing, max_retries=0) as client, pytest.raises(ServerError):
        export(client, directory, concurrency=1, **arguments)


@pytest.mark.parametrize("is_kept", [False, True])
def test_since_last_finishes_a_full_export(box: Sandbox, directory: Path, is_kept: bool) -> None:
    fill(box, 3, 10)
    with Client("key", transport=box.transport()) as client:
        if is_kept:
            export(client, directory, since="last")
        interrupt(box, directory)
        transport, seen = Watched(box), list[Progress]()
        with Client("key", transport=transport) as watched:
            assert export(watched, directory, since="last", on_progress=seen.append).messages_total == 30
        assert len(transport.asked) == 2  # what was not read yet
        assert (seen[0].phase, seen[0].messages_total) == ("reading", 30)
        assert both(directory) == rows_of(box)
        fill(box, 3, 2, START + DAY)
        result = export(client, directory, since="last")
    assert (result.messages, result.messages_total) == (6, 36)


UNFINISHED = [
    (None, "24h", "begun without since. Run it once more without since"),
    ("9999d", "last", "begun with since '9999d'. Run it once more with since '9999d'"),
    ("last", None, "begun with since 'last'. Run it once more with since 'last'"),
    (
        START - DAY,
        "last",
        "begun with since '2025-06-29T12:00:00Z'. Run it once more with since '2025-06-29T12:00:00Z'",
    ),
]


@pytest.mark.parametrize(("unfinished", "other", "reason"), UNFINISHED)
def test_unfinished_export_is_finished_as_the_error_says(
    box: Sandbox, directory: Path, unfinished: Any, other: Any, reason: str
) -> None:
    fill(box, 3, 10)
    interrupt(box, directory, since=unfinished)
    with Client("key", transport=box.transport()) as client:
        with pytest.raises(ConfigurationError) as caught:
            export(client, directory, since=other)
        assert str(caught.value) == (
            f"{str(directory)!r} holds an unfinished export that was {reason} to finish it, or delete"
            f" {str(directory / '.partial')!r} to begin again."
        )
        assert export(client, directory, since=unfinished).messages_total == 30


REPLACED = {
    "an age": ({"since": "24h"}, "an export with since '24h' would replace it by less"),
    "a time": ({"since": START}, "an export with since '2025-06-30T12:00:00Z' would replace it by less"),
    "a format": ({"format": "csv"}, "an export in format 'csv' would end that"),
    "both": ({"format": "csv", "since": "24h"}, "an export with since '24h' would replace it by less"),
}


@pytest.mark.parametrize("is_refreshed", [False, True])
@pytest.mark.parametrize("replaced", REPLACED)
def test_kept_export_is_not_replaced_by_less(box: Sandbox, directory: Path, replaced: str, is_refreshed: bool) -> None:
    arguments: Any
    arguments, reason = REPLACED[replaced]
    fill(box, 2, 3)
    transport = Watched(box)
    with Client("key", transport=transport) as client:
        export(client, directory, since="last")
        if is_refreshed:
            export(client, directory)
        before, asked = contents(directory), len(transport.asked)
        with pytest.raises(ConfigurationError) as caught:
            export(client, directory, **arguments)
        assert str(caught.value) == (
            f"{str(directory)!r} is kept up to date with since 'last' in format 'jsonl', and {reason}."
            f" Use another directory, or delete {str(directory / '.last-export.db')!r} first."
        )
        assert (contents(directory), len(transport.asked)) == (before, asked)
        assert export(client, directory, since="last").messages_total == 6  # nothing is in its way
        (directory / ".last-export.db").unlink()
        export(client, directory, **arguments)


@pytest.mark.parametrize("format_", FORMATS)
def test_export_that_is_not_kept_is_replaced(box: Sandbox, directory: Path, format_: Any) -> None:
    fill(box, 2, 3)
    with Client("key", transport=box.transport()) as client:
        for since in (None, "24h", "9999d", "24h", START, "yesterday"):
            export(client, directory, format=format_, since=since)
        export(client, directory)
    assert both(directory) == rows_of(box)
    assert ".partial" not in names(directory)


def test_damaged_state_is_replaced_by_a_full_export_only(box: Sandbox, directory: Path) -> None:
    fill(box, 2, 3)
    with Client("key", transport=box.transport()) as client:
        export(client, directory, since="last")
        (directory / ".last-export.db").write_bytes(b"")
        with pytest.raises(ConfigurationError, match=r"\.last-export\.db' cannot be read"):
            export(client, directory, since="24h")
        export(client, directory)
    assert both(directory) == rows_of(box)
