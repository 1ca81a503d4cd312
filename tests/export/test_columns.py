"""The columns of CSV and Parquet: every field of the models, each with its type; other fields are in `extra`."""

from __future__ import annotations

import importlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import pytest

from agentphone.export import Result, _fingerprint, export
from tests.support.accounts import lines, read_csv
from tests.support.helpers import client_of, conversation, message, ok, page

parquet: Any = importlib.import_module("pyarrow.parquet")

TIMESTAMP = "timestamp[us, tz=UTC]"
COLUMNS = {
    # Files with other columns cannot be continued: a change here needs another version, so that they are refused.
    "3": {
        "conversations": {
            "id": "string",
            "agentId": "string",
            "phoneNumberId": "string",
            "phoneNumber": "string",
            "participant": "string",
            "lastMessageAt": TIMESTAMP,
            "lastMessagePreview": "string",
            "messageCount": "int64",
            "metadata": "string",
            "createdAt": TIMESTAMP,
            "channel": "string",
            "isGroup": "bool",
            "groupId": "string",
            "groupName": "string",
            "participants": "string",
            "extra": "string",
        },
        "messages": {
            "conversationId": "string",
            "id": "string",
            "body": "string",
            "fromNumber": "string",
            "toNumber": "string",
            "direction": "string",
            "receivedAt": TIMESTAMP,
            "channel": "string",
            "mediaUrls": "list<element: string>",
            "status": "string",
            "reactions": "string",
            "replyTo": "string",
            "senderIdentifier": "string",
            "deliveredAt": TIMESTAMP,
            "readAt": TIMESTAMP,
            "errorCode": "string",
            "extra": "string",
        },
    },
}

GROUP = {
    "channel": "imessage",
    "isGroup": True,
    "groupId": "grp_1",
    "groupName": "Ångström & co",
    "participants": [{"identifier": "+15555550110", "name": None, "color": "red"}, {"identifier": "a@b.example"}],
}
SENT = {
    "reactions": [
        {
            "id": "rct_1",
            "reactionType": "love",
            "fromNumber": "+15555550110",
            "direction": "inbound",
            "createdAt": "2025-06-30T12:00:01Z",
        }
    ],
    "replyTo": {"messageId": "msg_0", "message": 'Say "hi"', "mediaUrls": []},
    "senderIdentifier": "+15555550111",
    "deliveredAt": "2025-06-30T14:00:01.5+02:00",
    "readAt": "2025-06-30T12:00:02Z",
    "errorCode": "30003",
}
OTHER_TYPES = {"deliveredAt": "soon", "readAt": "2025-13-30T12:00:00.000000Z", "errorCode": 30003, "replyTo": "msg_0"}
"""What the models do not take, and leave in `extra`."""


def export_of(directory: Path, format_: Any, listed: dict[str, Any], *messages: dict[str, Any]) -> Result:
    """Export one conversation."""

    async def main() -> Result:
        client, _ = client_of(ok(page(listed, total=1)), ok(page(*messages)))
        async with client:
            return await export(client, directory, format=format_)

    return anyio.run(main)


def test_columns_and_types(directory: Path) -> None:
    result = export_of(directory, "parquet", conversation(), message())
    found = {
        path.stem: {field.name: str(field.type) for field in parquet.read_schema(path)}
        for path in (result.conversations_path, result.messages_path)
    }
    assert found == COLUMNS[_fingerprint.VERSION]
    result = export_of(directory, "csv", conversation(), message())
    for path in (result.conversations_path, result.messages_path):
        [row] = read_csv(path)
        assert [*row] == [*found[path.stem]]


def test_optional_fields_have_columns(directory: Path) -> None:
    full, plain = message(**SENT, more=1), message(id="msg_2", receivedAt="2025-06-30T12:01:00Z")
    result = export_of(directory, "csv", conversation(**GROUP, more=1), plain, full)
    [row] = read_csv(result.conversations_path)
    assert {name: row[name] for name in (*GROUP, "extra")} == {
        "channel": "imessage",
        "isGroup": "true",
        "groupId": "grp_1",
        "groupName": "Ångström & co",
        "participants": row["participants"],
        "extra": '{"more":1}',
    }
    assert json.loads(row["participants"])[0] == {"identifier": "+15555550110", "color": "red"}
    first, second = read_csv(result.messages_path)
    assert (first["deliveredAt"], first["readAt"]) == ("2025-06-30T12:00:01.500000Z", "2025-06-30T12:00:02.000000Z")
    assert (first["senderIdentifier"], first["errorCode"], first["extra"]) == ("+15555550111", "30003", '{"more":1}')
    assert json.loads(first["reactions"]) == SENT["reactions"]
    assert json.loads(first["replyTo"]) == {"messageId": "msg_0", "message": 'Say "hi"'}
    assert {second[name] for name in (*SENT, "extra")} == {""}

    result = export_of(directory, "parquet", conversation(**GROUP, more=1), plain, full)
    [group] = parquet.read_table(result.conversations_path).to_pylist()
    assert (group["isGroup"], group["participants"], group["extra"]) == (True, row["participants"], '{"more":1}')
    one, two = parquet.read_table(result.messages_path).to_pylist()
    assert one["deliveredAt"] == datetime(2025, 6, 30, 12, 0, 1, 500_000, UTC)
    assert one["readAt"] == datetime(2025, 6, 30, 12, 0, 2, tzinfo=UTC)
    assert {name: one[name] for name in ("reactions", "replyTo", "senderIdentifier", "errorCode", "extra")} == {
        name: first[name] for name in ("reactions", "replyTo", "senderIdentifier", "errorCode", "extra")
    }
    assert {two[name] for name in (*SENT, "extra")} == {None}


@pytest.mark.parametrize("format_", ["csv", "parquet"])
def test_values_of_other_types_stay_in_extra(directory: Path, format_: str) -> None:
    listed = conversation(isGroup="yes", groupName=7, participants="two", channel=None)
    result = export_of(directory, format_, listed, message(**OTHER_TYPES))
    read = read_csv if format_ == "csv" else lambda path: parquet.read_table(path).to_pylist()
    null = "" if format_ == "csv" else None
    [row] = read(result.conversations_path)
    assert json.loads(row["extra"]) == {"isGroup": "yes", "groupName": 7, "participants": "two"}
    assert {row[name] for name in ("isGroup", "groupName", "channel", "participants")} == {null}
    [row] = read(result.messages_path)
    assert json.loads(row["extra"]) == OTHER_TYPES
    assert {row[name] for name in OTHER_TYPES} == {null}


def test_json_lines_have_optional_fields_only_with_a_value(directory: Path) -> None:
    result = export_of(directory, "jsonl", conversation(**GROUP), message(**OTHER_TYPES), message(id="msg_0"))
    [row] = lines(result.conversations_path)
    assert row["groupName"] == GROUP["groupName"]
    first, second = lines(result.messages_path)
    assert second.keys() - first.keys() == OTHER_TYPES.keys()
    assert {name: second[name] for name in OTHER_TYPES} == OTHER_TYPES
