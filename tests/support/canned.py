"""A large account that responds as fast as text can be built: for tests of size and memory."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import httpx

START = datetime(2025, 1, 1, tzinfo=UTC)


class CannedTransport(httpx.AsyncBaseTransport):
    """Serve `conversations` with `messages` each, one message a second."""

    def __init__(self, conversations: int, messages: int) -> None:
        self.conversations = conversations
        self.messages = messages

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        query = request.url.params
        conversation_id = request.url.path.split("/")[-2]
        limit = int(query["limit"])
        if request.url.path.endswith("/conversations"):
            offset = int(query["offset"])
            last = min(self.conversations, offset + limit)
            page = [self._conversation(number) for number in range(offset, last)]
            return httpx.Response(
                200, json={"data": page, "hasMore": last < self.conversations, "total": self.conversations}
            )
        end = self.messages
        if "before" in query:
            end = min(end, -((START - datetime.fromisoformat(query["before"])) // timedelta(seconds=1)))
        begin = max(0, end - limit)
        items = ",".join(self._message(conversation_id, index) for index in range(end - 1, begin - 1, -1))
        more = "true" if begin else "false"
        return httpx.Response(200, content=f'{{"data":[{items}],"hasMore":{more}}}')

    def _conversation(self, number: int) -> dict[str, object]:
        at = (START + timedelta(seconds=self.messages)).isoformat()
        return {
            "id": f"conv_{number:09}",
            "phoneNumber": "+15555550100",
            "participant": "+15555550110",
            "lastMessageAt": at,
            "messageCount": self.messages,
            "metadata": {"topic": "order"},
            "createdAt": START.isoformat(),
        }

    def _message(self, conversation_id: str, index: int) -> str:
        return json.dumps(
            {
                "id": f"msg_{conversation_id}_{index:09}",
                "body": "Hi, where is my order ORD-12412? It was due Wednesday, and the neighbours have not got it.",
                "fromNumber": "+15555550110",
                "toNumber": "+15555550100",
                "direction": "inbound",
                "receivedAt": f"{(START + timedelta(seconds=index)).replace(tzinfo=None).isoformat()}Z",
                "channel": "sms",
                "mediaUrls": [],
                "status": "received",
            }
        )
