"""`agentphone conversations` in a terminal: tables of any width, whose texts cannot drive the terminal."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.text import Text

from agentphone.cli._tables import ARRIVALS, CONVERSATIONS, GAP, MESSAGES, Column, widths
from agentphone.sandbox import Sandbox
from tests.support.cli_support import KEY
from tests.support.processes import run_agentphone_in_terminal, widest

TEXTS = [
    "[red]not red[/red] [link=https://example.com]no link[/link] :smile:",
    "\x1b[31mred?\x1b[0m \x1b]0;title\x07 \x9b2J \x08\x7f",
    "\u202eturned round\u202c \u2066isolated\u2069 \ufeff",
    "first line\r\nsecond line\nthird\tline\rback",
    "日本語のとても長いテキストがここにあります。折り返しは二列幅の文字でも正しくなければなりません。",
    "👍 👩\u200d🚀 ❤️",
    "https://example.com/" + 100 * "x",
    "",
]
"""Untrusted texts."""


@pytest.fixture(scope="module")
def untrusted(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Return the base URL of a sandbox with these texts, and the id of the conversation that has them all."""
    path = tmp_path_factory.mktemp("untrusted") / "box.db"
    with Sandbox(path) as box:
        for minute, text in enumerate(TEXTS):
            for number in ("+15555550110", f"+1555555012{minute}"):
                at = datetime(2025, 1, 15, 12, minute, tzinfo=UTC)
                held = box.receive_sms(from_number=number, to_number="+15555550100", body=text, at=at)
                if number == "+15555550110":
                    conversation_id = held["conversationId"]
    return f"sandbox:{path}", conversation_id


def in_terminal(*arguments: str, columns: int = 80, **environment: str) -> str:
    """Run `agentphone conversations ...` in a terminal, and return its output."""
    code, shown = run_agentphone_in_terminal("conversations", *arguments, columns=columns, cwd=None, **environment)
    assert code == 0, shown
    return shown.replace("\r\n", "\n")


def plain(shown: str) -> str:
    """Remove the colors from the output of a terminal."""
    return re.sub(r"\x1b\[[0-9;]*m", "", shown)


def test_list_is_a_table_with_complete_ids(url: str, listed: list[dict[str, Any]]) -> None:
    shown = plain(in_terminal("list", "--limit", "5", AGENTPHONE_API_KEY=KEY, AGENTPHONE_BASE_URL=url))
    titles, *rows, note = shown.splitlines()
    assert titles.split() == ["ID", "PARTICIPANT", "LATEST", "(UTC)", "MESSAGES", "PREVIEW"]
    assert note == "5 of 36 conversations. --all shows every one."
    for row, conversation in zip(rows, listed[:5], strict=True):
        time = conversation["lastMessageAt"][:16].replace("T", " ")
        expected = [
            conversation["id"],
            conversation["participant"],
            *time.split(),
            str(conversation["messageCount"]),
        ]
        assert row.split()[:5] == expected
        assert row.endswith("…") or conversation["lastMessagePreview"] in row


def test_json_option_prints_json_lines_in_a_terminal(listed: list[dict[str, Any]]) -> None:
    shown = in_terminal("list", "--json", "--limit", "5", "--base-url", "sandbox:")
    assert [json.loads(line)["id"] for line in shown.splitlines()] == [row["id"] for row in listed[:5]]


def test_get_shows_metadata_and_messages() -> None:
    shown = plain(in_terminal("get", "conv_9e37b2288a186049", "--messages", "2", "--base-url", "sandbox:"))
    assert re.search(r"^Participant +\+15555550110 *$", shown, re.MULTILINE)
    assert '"customerName": "Ada",' in shown
    assert re.search(r"^channel +sms *$", shown, re.MULTILINE)
    assert len(re.findall(r"^2025-\d\d-\d\d \d\d:\d\d:\d\d  (?:in|out)bound ", shown, re.MULTILINE)) == 2


@pytest.mark.parametrize("columns", [25, 80])
@pytest.mark.parametrize("command", ["list", "get", "messages"])
def test_untrusted_text_cannot_drive_the_terminal(untrusted: tuple[str, str], command: str, columns: int) -> None:
    base_url, conversation_id = untrusted
    arguments = [command] if command == "list" else [command, conversation_id]
    shown = in_terminal(*arguments, "--base-url", base_url, columns=columns)
    assert widest(shown.replace("\u200d🚀", "")) <= columns  # one emoji of two columns in a terminal that knows it
    assert set(re.findall(r"\x1b.[0-9;]*.", shown)) <= {"\x1b[0m", "\x1b[1m", "\x1b[2m", "\x1b[32m", "\x1b[36m"}
    assert all(letter.isprintable() or letter in "\n\u200d" for letter in plain(shown))
    if command == "messages" and columns >= 80:
        for text in (
            "[red]not red[/red] [link=https://example.com]no",
            r"\x1b[31mred?\x1b[0m \x1b]0;title\x07 \x9b2J",
            r"\u202eturned round\u202c \u2066isolated",
            "third line\\rback",
        ):
            assert text in shown


def test_narrow_table_hides_columns_and_keeps_ids_complete(listed: list[dict[str, Any]]) -> None:
    for columns, titles in ((30, ["ID"]), (60, ["ID", "PARTICIPANT", "LATEST", "(UTC)"])):
        shown = plain(in_terminal("list", "--limit", "1", "--base-url", "sandbox:", columns=columns))
        assert shown.splitlines()[0].split() == titles
        assert shown.splitlines()[1].split()[0] == listed[0]["id"]


@pytest.mark.parametrize(("columns", "inbound"), [(25, "in"), (47, "in"), (48, "inbound")])
def test_narrow_table_of_messages_shortens_the_direction(
    untrusted: tuple[str, str], columns: int, inbound: str
) -> None:
    shown = plain(in_terminal("messages", untrusted[1], "--base-url", untrusted[0], columns=columns))
    titles, first, *_ = shown.splitlines()
    assert ("DIRECTION" if inbound == "inbound" else "DIR") in titles.split()
    assert inbound in first.split()


@pytest.mark.parametrize(
    ("available", "titles"),
    [
        (200, ["RECEIVED (UTC)", "CONVERSATION", "PARTICIPANT", "DIRECTION", "TEXT"]),
        (80, ["RECEIVED (UTC)", "PARTICIPANT", "DIRECTION", "TEXT"]),
        (66, ["RECEIVED (UTC)", "PARTICIPANT", "DIRECTION", "TEXT"]),
        (60, ["RECEIVED (UTC)", "PARTICIPANT", "DIR", "TEXT"]),
        (59, ["PARTICIPANT", "DIR", "TEXT"]),
        (38, ["DIR", "TEXT"]),
        (20, ["TEXT"]),
    ],
)
def test_direction_is_shortened_before_time_and_participant_are_hidden(available: int, titles: list[str]) -> None:
    row = [Text(text) for text in ("2025-01-15 12:00:00", "conv_9e37b2288a186049", "+15555550110", "outbound", "hello")]
    computed = zip(ARRIVALS, widths(ARRIVALS, [row], available), strict=True)
    assert [
        "DIR" if column.title == "DIRECTION" and width == 3 else column.title for column, width in computed if width
    ] == titles


@pytest.mark.parametrize("setting", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_no_color_means_plain_text(setting: dict[str, str]) -> None:
    for command in (["list"], ["get", "conv_9e37b2288a186049"]):
        assert "\x1b" not in in_terminal(*command, "--base-url", "sandbox:", columns=80, **setting)


def test_unknown_width_means_eighty_columns() -> None:
    command = ("list", "--base-url", "sandbox:")
    assert in_terminal(*command, COLUMNS="0") == in_terminal(*command, COLUMNS="80")


def test_emoji_that_cannot_be_encoded_is_a_question_mark(untrusted: tuple[str, str]) -> None:
    base_url, conversation_id = untrusted
    assert "?" in in_terminal("messages", conversation_id, "--base-url", base_url, PYTHONIOENCODING="ascii")


def test_empty_results_print_a_note(tmp_path: Path, untrusted: tuple[str, str]) -> None:
    assert plain(in_terminal("list", "--base-url", f"sandbox:{tmp_path / 'box.db'}")) == "No conversations.\n"
    before = ["--before", "2025-01-15T12:00:00Z"]
    assert plain(in_terminal("messages", untrusted[1], *before, "--base-url", untrusted[0])) == "No messages.\n"


@pytest.mark.parametrize("columns", [CONVERSATIONS, MESSAGES, ARRIVALS], ids=["list", "messages", "watch"])
@settings(deadline=None)
@given(data=st.data(), available=st.integers(1, 200))
def test_columns_fit_the_terminal(columns: tuple[Column, ...], data: st.DataObject, available: int) -> None:
    cells = st.text(st.sampled_from("ab 日👍"), max_size=40).map(Text)
    rows = data.draw(st.lists(st.tuples(*[cells] * len(columns)), min_size=1, max_size=5))
    computed = widths(columns, rows, available)
    shown = [width for width in computed if width]
    assert sum(shown) + GAP * (len(shown) - 1) <= available
    assert all(width > 0 for column, width in zip(columns, computed, strict=True) if column.rank == 0)
    assert min(computed) >= 0
