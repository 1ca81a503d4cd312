"""How fast the inbox is: `python -m benchmarks.inbox`. Half a minute at most; it needs the extra `inbox`.

Nothing leaves this process except to the disk: the account is a sandbox in memory. What limits `receive` and a worker
is the disk, because each text is stored before it is answered, and each step before the next one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from agentphone import AsyncClient
from agentphone.inbox import Inbox
from agentphone.inbox._listing import list_items  # to know when all is done
from agentphone.sandbox import Sandbox
from agentphone.webhooks import MessageEvent, Webhook

SECRET = "whsec_of_the_benchmark"
AGENT = "+15555550100"


class Account:
    """A sandbox, an inbox for it, and the deliveries that it would send."""

    def __init__(self, database: str) -> None:
        self.box = Sandbox()
        client = AsyncClient("any-key", transport=self.box.transport())
        self.inbox = Inbox(client, webhook_secret=SECRET, database=database)
        self.inbox.on_message(self._answer)

    def _answer(self, text: MessageEvent) -> str:
        return f"re: {text.text}"

    def deliver(self, body: str, person: int) -> tuple[bytes, dict[str, str]]:
        """Return the signed delivery of a new text."""
        message = self.box.receive_sms(from_number=f"+1555555{person:04}", to_number=AGENT, body=body)
        data = {
            "conversationId": message["conversationId"],
            "messageId": message["id"],
            "from": message["fromNumber"],
            "to": message["toNumber"],
            "message": body,
            "direction": "inbound",
        }
        payload = {"event": "agent.message", "channel": "sms", "timestamp": message["receivedAt"], "data": data}
        raw = json.dumps(payload).encode()
        return raw, Webhook(SECRET).sign(raw)

    def replies(self) -> int:
        """Return how many replies were sent."""
        return sum(request.method == "POST" and request.path == "/v1/messages" for request in self.box.requests)


def receive(account: Account, count: int) -> float:
    """Return how many texts a second one thread stores."""
    deliveries = [account.deliver("Hi", number % 20) for number in range(count)]
    began_at = time.perf_counter()
    for delivery in deliveries:
        assert account.inbox.receive(*delivery) == 202
    return count / (time.perf_counter() - began_at)


def receive_in_threads(account: Account, count: int) -> float:
    """Return how many texts a second eight threads store."""
    deliveries = [account.deliver("Hi", number % 20) for number in range(count)]
    began_at = time.perf_counter()
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda delivery: account.inbox.receive(*delivery), deliveries)) == {202}
    return count / (time.perf_counter() - began_at)


def work(account: Account) -> float:
    """Return how many of the texts that are stored one worker answers a second."""
    count = len(list_items(account.inbox._database))  # noqa: SLF001
    began_at = time.perf_counter()
    while account.replies() < count:
        time.sleep(0.005)
    return count / (time.perf_counter() - began_at)


def latency(account: Account, count: int) -> list[float]:
    """Return the seconds from a delivery to its reply, for texts one at a time."""
    seconds = []
    for number in range(count):
        delivery, before = account.deliver("Hi", number), account.replies()
        began_at = time.perf_counter()
        account.inbox.receive(*delivery)
        while account.replies() == before:
            time.sleep(0.001)
        seconds.append(time.perf_counter() - began_at)
        time.sleep(0.01)
    return seconds


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.inbox", description=__doc__)
    parser.add_argument("--database", help="postgresql://... (default: a SQLite file)")
    parser.add_argument("--texts", type=int, default=400, help="how many texts to store and answer (400)")
    given = parser.parse_args(argv)
    if not 10 <= given.texts <= 800:  # the sandbox keeps the last 1,000 requests
        parser.error("--texts must be 10 to 800")
    with tempfile.TemporaryDirectory() as folder:
        account = Account(given.database or f"sqlite:///{Path(folder) / 'inbox.db'}")
        account.inbox.receive(*account.deliver("the first one creates the tables", 0))
        rows = [
            ("texts a second that one thread receives", f"{receive(account, given.texts // 2):,.0f}"),
            ("texts a second that eight threads receive", f"{receive_in_threads(account, given.texts // 2):,.0f}"),
        ]
        worker = threading.Thread(target=account.inbox.work)
        worker.start()
        rows.append(("texts a second that one worker answers, of 20 people", f"{work(account):,.0f}"))
        seconds = latency(account, max(5, given.texts // 10))
        account.inbox.stop()
        worker.join()
        account.inbox._database.close()  # noqa: SLF001
        account.box.close()
    rows.append(("from a delivery to its reply, median", f"{statistics.median(seconds) * 1000:.0f} ms"))
    rows.append(("the same, 95 % at most", f"{sorted(seconds)[int(len(seconds) * 0.95)] * 1000:.0f} ms"))
    for name, value in rows:
        sys.stdout.write(f"{name:<56} {value:>8}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
