"""Cursors of answers: one word of text that is read back as it was; anything else is rejected."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from agentphone import Cursor
from agentphone.mcp._cursors import ListCursor, SearchCursor, parse_message_cursor

times = st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30)).map(lambda at: at.replace(tzinfo=UTC))
ids = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
positions = st.builds(ListCursor, st.integers(0, 10**9 - 1), ids, st.none() | times)
cursors = st.builds(Cursor, times, ids)


@given(positions, st.none() | cursors)
def test_cursor_is_read_back_as_it_was(position: ListCursor, message: Cursor | None) -> None:
    search = SearchCursor(position, message)
    for text in (str(position), str(search), str(message)):
        assert len(text.split()) == 1
    assert ListCursor.parse(str(position)) == position
    assert SearchCursor.parse(str(search)) == search
    assert parse_message_cursor(None if message is None else str(message)) == message


@given(st.text(max_size=30) | st.builds("{0}{1}".format, positions | cursors, st.text(max_size=3)))
def test_other_text_is_a_value_error(text: str) -> None:
    for parse in (ListCursor.parse, SearchCursor.parse, parse_message_cursor):
        with suppress(ValueError):
            parse(text)
