"""An account without a network, and an inbox for it whose worker runs in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from attrs import define

from agentphone import AsyncClient, Client
from agentphone.inbox import Inbox
from agentphone.inbox._listing import list_items, retry_item
from agentphone.sandbox import Sandbox
from agentphone.webhooks import MessageEvent
from tests.inbox.deliveries import of_message
from tests.inbox.world import AGENT, SECRET, create_sqlite, person, until


@define
class OrderState:
    order_id: str | None = None
    texts: int = 0


class Account:
    """A sandbox without a network, and an inbox for it."""

    def __init__(self, folder: Path, *, box: Sandbox | None = None, **options: Any) -> None:
        self.box = box or Sandbox()
        self.client = AsyncClient("any-key", transport=self.box.transport(), max_retries=0)
        database = create_sqlite(folder)
        self.inbox = Inbox(options.pop("client", self.client), webhook_secret=SECRET, database=database, **options)

    def close(self) -> None:
        self.inbox._database.close()
        self.box.close()

    def text(self, body: str = "Hi", *, person_number: int = 0) -> dict[str, Any]:
        """Receive a text, and return it."""
        message = self.box.receive_sms(from_number=person(person_number), to_number=AGENT, body=body)
        assert self.inbox.receive(*of_message(message)) == 202
        return message

    def wait(self, *statuses: str, count: int = 1) -> list[dict[str, Any]]:
        """Wait until so many texts have come to one of these ends, and return them, oldest first."""
        until(lambda: len(self.items(*statuses)) >= count)
        return self.items(*statuses)

    def items(self, *statuses: str) -> list[dict[str, Any]]:
        return list_items(self.inbox._database, statuses=statuses)[::-1]

    def retry(self, item_id: str) -> str:
        return retry_item(self.inbox._database, item_id)

    def conversation(self, message: dict[str, Any]) -> Any:
        transport = self.box.transport()
        with Client("any-key", transport=transport) as client:
            return client.conversations.get(message["conversationId"], message_limit=100)

    def replies(self, message: dict[str, Any]) -> list[str]:
        messages = sorted(self.conversation(message).messages, key=lambda each: each.received_at)
        return [each.body for each in messages if each.direction == "outbound"]

    def state(self, message: dict[str, Any]) -> Any:
        return self.conversation(message).metadata


def counting(account: Account) -> list[str]:
    """Register a handler that counts, and return its calls."""
    calls: list[str] = []

    @account.inbox.on_message
    async def answer(text: MessageEvent, state: OrderState) -> str:
        calls.append(str(text.text))
        state.texts += 1
        return "ok"

    return calls
