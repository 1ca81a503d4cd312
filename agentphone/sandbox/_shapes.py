"""The API's JSON shapes: how rows of the database are shown in responses and in webhook payloads.

Conversations and messages have camelCase names, the answers to sends snake_case ones. Fields that the vendor documents
as occasional (groups, reactions, replies, media) are there only where there is something to show. Nothing here reads
the database or knows HTTP.
"""

import hashlib
import json
import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any

from agentphone.sandbox._behavior import Settings

Row = sqlite3.Row | Mapping[str, Any]


def id_of(prefix: str, number: str) -> str:
    """Return the id of an agent's number (`num`), or of its agent (`agt`), derived from the number."""
    return f"{prefix}_{hashlib.sha256(f'{prefix} {number}'.encode()).hexdigest()[:16]}"


def details_of(message: Row) -> dict[str, Any]:
    """Return what few messages have: `senderIdentifier`, `mediaUrls`, `replyTo`, `reactions`."""
    details: dict[str, Any] = json.loads(message["details"] or "{}")
    return details


class Shapes:
    """Show rows as the API does.

    Args:
        settings: How timestamps are shown.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def conversation(self, row: Row) -> dict[str, Any]:
        """Return a conversation as every endpoint shows it."""
        return {
            "id": row["id"],
            "agentId": id_of("agt", row["agent_number"]),
            "phoneNumberId": id_of("num", row["agent_number"]),
            "phoneNumber": row["agent_number"],
            "participant": row["participant"],
            "lastMessageAt": self._settings.format(row["last_message_at"]),
            "messageCount": row["message_count"],
            "metadata": None if row["metadata"] is None else json.loads(row["metadata"]),
            "createdAt": self._settings.format(row["created_at"]),
            "channel": row["channel"],
            **_group(row),
        }

    def message(self, row: Row, conversation: Row) -> dict[str, Any]:
        """Return a message of a conversation's history."""
        shown = {
            "id": row["id"],
            "body": row["body"],
            "fromNumber": conversation["participant"],
            "toNumber": conversation["agent_number"],
            "direction": row["direction"],
            "receivedAt": self._settings.format(row["received_at"]),
            "channel": row["channel"],
            "mediaUrls": [],
            "status": row["status"],
        }
        if shown["direction"] == "outbound":
            shown["fromNumber"], shown["toNumber"] = shown["toNumber"], shown["fromNumber"]
        if row["details"] is not None:
            details = details_of(row)
            shown |= details
            if "senderIdentifier" in details:
                shown["fromNumber"] = details["senderIdentifier"]
            if "mediaUrls" in details:
                shown["mediaUrl"] = details["mediaUrls"][0]
            if "reactions" in details:
                shown["reactions"] = [self.reaction(reaction) for reaction in details["reactions"]]
        return shown

    def reaction(self, stored: Mapping[str, Any]) -> dict[str, Any]:
        """Return a reaction of a message."""
        return {**stored, "createdAt": self._settings.format(stored["createdAt"])}

    def message_event(self, row: Row, conversation: Row, earlier: Sequence[Row]) -> dict[str, Any]:
        """Return the webhook payload of a message.

        Args:
            row: The message.
            conversation: Its conversation.
            earlier: The messages before it, oldest first.
        """
        message = self.message(row, conversation)
        data = {
            "conversationId": conversation["id"],
            "messageId": message["id"],
            "numberId": id_of("num", conversation["agent_number"]),
            "from": message["fromNumber"],
            "to": message["toNumber"],
            "message": message["body"],
            "mediaUrl": message.get("mediaUrl"),
            "direction": message["direction"],
            "receivedAt": message["receivedAt"],
        }
        if message["mediaUrls"]:
            data["mediaUrls"] = message["mediaUrls"]
        if "senderIdentifier" in message:
            data["senderIdentifier"] = message["senderIdentifier"]
        if group := _group(conversation):
            data["group"] = group
        return self._event("agent.message", row["channel"], message["receivedAt"], data, conversation, earlier)

    def reaction_event(
        self, stored: Mapping[str, Any], row: Row, conversation: Row, earlier: Sequence[Row]
    ) -> dict[str, Any]:
        """Return the webhook payload of a reaction.

        Args:
            stored: The reaction.
            row: The message that it is for.
            conversation: Its conversation.
            earlier: The conversation's latest messages, oldest first.
        """
        message = self.message(row, conversation)
        reaction = self.reaction(stored)
        data = {
            "conversationId": conversation["id"],
            "numberId": id_of("num", conversation["agent_number"]),
            "reactionType": reaction["reactionType"],
            "fromNumber": reaction["fromNumber"],
            "direction": reaction["direction"],
            "messageId": message["id"],
            "messageBody": message["body"],
            "messageMediaUrls": message["mediaUrls"],
            "createdAt": reaction["createdAt"],
        }
        return self._event("agent.reaction", row["channel"], reaction["createdAt"], data, conversation, earlier)

    def _event(
        self,
        event: str,
        channel: str,
        timestamp: str,
        data: dict[str, Any],
        conversation: Row,
        earlier: Sequence[Row],
    ) -> dict[str, Any]:
        return {
            "event": event,
            "channel": channel,
            "timestamp": timestamp,
            "agentId": id_of("agt", conversation["agent_number"]),
            "data": data,
            "conversationState": None if conversation["metadata"] is None else json.loads(conversation["metadata"]),
            "recentHistory": [
                {
                    "content": row["body"],
                    "direction": row["direction"],
                    "channel": row["channel"],
                    "at": self._settings.format(row["received_at"]),
                    "messageId": row["id"],
                }
                for row in earlier
            ],
        }


def _group(conversation: Row) -> dict[str, Any]:
    if conversation["members"] is None:
        return {}
    return {
        "isGroup": True,
        "groupId": conversation["participant"],
        "groupName": None,
        "participants": [{"identifier": member} for member in json.loads(conversation["members"])],
    }
