"""The models' fields in the API's names, and any JSON."""

from __future__ import annotations

from datetime import UTC, datetime

from hypothesis import strategies as st

NOON = datetime(2025, 6, 30, 12, tzinfo=UTC)
# The API's name: its type, and whether it must be present and not null.
CONVERSATION_FIELDS = {
    "id": ("string", True),
    "agentId": ("string", False),
    "phoneNumberId": ("string", False),
    "phoneNumber": ("string", True),
    "participant": ("string", True),
    "lastMessageAt": ("timestamp", False),
    "lastMessagePreview": ("string", False),
    "messageCount": ("integer", False),
    "metadata": ("object", False),
    "createdAt": ("timestamp", False),
}
MESSAGE_FIELDS = {
    "id": ("string", True),
    "body": ("string", False),
    "fromNumber": ("string", True),
    "toNumber": ("string", True),
    "direction": ("string", False),
    "receivedAt": ("timestamp", True),
    "channel": ("string", False),
    "status": ("string", False),
}
# Fields that the API's reference does not describe: a value of another type stays in `extra`.
CONVERSATION_OPTIONS = {
    "channel": "string",
    "isGroup": "boolean",
    "groupId": "string",
    "groupName": "string",
    "participants": "array",
}
MESSAGE_OPTIONS = {
    "reactions": "array",
    "replyTo": "object",
    "senderIdentifier": "string",
    "deliveredAt": "timestamp",
    "readAt": "timestamp",
    "errorCode": "string",
}
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
json_objects = st.dictionaries(st.text(), json_values, max_size=4)
