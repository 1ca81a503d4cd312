"""A local AgentPhone to develop and test against: the vendor's API over SQLite. Needs the extra `sandbox`.

It has conversations, sending, reactions, typing and webhooks, with the API's defaults, limits and errors.

- **By base URL.** `AsyncClient(base_url="sandbox:")` has a sandbox of its own in memory, with demo data and without a
  key; `"sandbox:box.db"` keeps it in a file.
- **In your process**, for tests: `Sandbox()`, as below, or the fixtures of `agentphone.pytest_plugin`.
- **Over HTTP**, for other processes and languages: `python -m agentphone sandbox`, or
  `agentphone.sandbox.server.running` from a thread of yours.

```python
import asyncio

from agentphone import AsyncClient
from agentphone.sandbox import Sandbox


async def main() -> None:
    with Sandbox() as sandbox:
        transport = sandbox.transport()
        async with AsyncClient("any-key", base_url="https://sandbox.test", transport=transport) as client:
            text = sandbox.receive_sms(from_number="+15555550110", to_number="+15555550100", body="Where is my order?")
            sandbox.faults.add(status=503, times=1)  # the next request fails; the client retries

            conversation = await client.conversations.get(text["conversationId"])
            assert [message.body for message in conversation.messages] == ["Where is my order?"]
            assert len(sandbox.requests) == 2


asyncio.run(main())
```

`receive_sms` acts as the person who texts, and `send_sms` as the agent. A fault is a response
(`status=429, retry_after=2, times=3`, or any `body`) or a broken connection: `kind="hang"`, `"reset"`, `"cut"` or
`"lost"` (carried out, and its response is lost). `sandbox.clock = lambda: 1736942400.0` sets the time, in seconds since
1970. `sandbox.behavior` chooses what the API's documentation leaves open.

## Over HTTP

```console
$ python -m agentphone sandbox --port 8765 --db box.db
AgentPhone sandbox at http://127.0.0.1:8765
Open http://127.0.0.1:8765/ in a browser to text with your agent.
```

Set `AGENTPHONE_BASE_URL=http://127.0.0.1:8765` and any `AGENTPHONE_API_KEY`. The page is a phone: text as a person,
watch your agent answer, and see messages, metadata, webhook deliveries and requests as they happen. Buttons deliver a
webhook again, send a text twice or ten at once, and fail the next request. It loads nothing from elsewhere and stores
no key.

It starts empty; `--demo` loads demo data, and `--api-key KEY` accepts that key only. It listens on this machine only,
unless `--host` says otherwise. It rejects requests by pages of other sites, and those whose `Host` is neither an
address nor a local name; `--allow-host NAME` allows one more name, for a tunnel. Beside the API, with the same
`Authorization` header:

| request | what it does |
|---|---|
| `POST /sandbox/messages` | `{"direction", "from", "to", "body"}`: text as the person (`"inbound"`), or as the agent |
| `PUT /sandbox/webhook` | `{"url", "secret", "contextLimit"}`: set the webhook |
| `GET /sandbox/deliveries?conversation_id=ID`, `.../{id}` | webhook deliveries, newest first; one with its payload |
| `POST /sandbox/deliveries/{id}/redeliver` | deliver again now, under the same id |
| `POST /sandbox/faults`, `DELETE /sandbox/faults` | script faults, as `faults.add` and `faults.clear` do |
| `GET /sandbox/requests`, `.../{id}` | the latest requests with their status, duration, headers and body |
| `GET /sandbox/search?q=TEXT` | find conversations by number or by the text of a message |
| `GET /sandbox/events` | stream changes and requests as server-sent events; resumes with `Last-Event-ID` |
| `GET /sandbox/changes?after=ID` | the same changes, for polling; without `after`, the id to start from |

An event `change` has a `kind` (`message`, `metadata`, `delivery`, `webhook` or `removed`) and the ids of what to read
again. After an event `reset`, read everything again. An event `request` has no id; after an interruption, read
`/sandbox/requests`.

## Webhooks

```console
$ python -m agentphone sandbox --webhook http://127.0.0.1:8000/agentphone --secret whsec_local
```

In your process it is `set_webhook(url, secret, context_limit=10)`. Every text that comes in is POSTed there as the API
does it: signed, with the conversation's metadata as `conversationState` and its earlier messages as `recentHistory`. A
delivery succeeds with a 2xx within 30 seconds (`timeout`). A 5xx or no response is retried after 1, 2, 4, 8 and 16
seconds, times `retry_scale`, with the same `X-Webhook-ID` and body; any other response is final. Up to 16 are on their
way at once and none waits for another, so two texts may arrive in the other order. With a file not even a `kill -9`
loses one, but one whose response was lost comes twice.

It imports nothing that knows the API from the rest of the package, so that one misreading of the API cannot be on both
sides.
"""

import os
from collections.abc import Callable, Sequence
from datetime import datetime
from types import TracebackType
from typing import Any, NoReturn, Self

import httpx

from agentphone._checks import check_integer
from agentphone.sandbox._app import DEFAULT_CONTEXT_LIMIT, App
from agentphone.sandbox._behavior import Behavior, Settings
from agentphone.sandbox._controls import DEFAULT_PAGE, MAX_PAGE
from agentphone.sandbox._deliveries import DEFAULT_TIMEOUT
from agentphone.sandbox._demo_data import demo_data
from agentphone.sandbox._dispatcher import WebhookDispatcher
from agentphone.sandbox._faults import Faults, ReceivedRequest, Requests
from agentphone.sandbox._inputs import check_string, parse_message, parse_webhook
from agentphone.sandbox._sending import parse_reaction
from agentphone.sandbox._store import Store
from agentphone.sandbox._transport import InProcessTransport

__all__ = ["Behavior", "Faults", "ReceivedRequest", "Sandbox"]


class Sandbox:
    """A local AgentPhone, in memory or in a SQLite file.

    Its methods may be called from any thread. A forked child uses the same file; in memory it starts empty, or with the
    demo data if that was loaded.

    Once a webhook is set, a thread delivers incoming texts to it until the sandbox is closed. A sandbox that is opened
    on an existing file continues its pending deliveries, whichever process stored them.

    Args:
        path: The database file, created if it is missing; None keeps the data in memory.
        api_key: The only bearer key to accept over HTTP; None accepts any non-empty key.
        retry_scale: The factor on the delays of 1, 2, 4, 8 and 16 seconds between the attempts of a webhook delivery,
            at least 0; use a small one in tests.

    Attributes:
        app: The ASGI application.
        faults: Scripted faults.
        requests: The last 1,000 requests received, oldest first; a deque to read and clear.

    Raises:
        ValueError: The path is `":memory:"`, the key is empty, or `retry_scale` is negative or not finite.
        sqlite3.Error: The file cannot be opened, or is another program's database.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        api_key: str | None = None,
        retry_scale: float = 1.0,
    ) -> None:
        if not isinstance(api_key, str | None):
            raise TypeError(f"api_key must be a string or None, got {type(api_key).__name__}")
        if api_key is not None and not api_key.strip():
            raise ValueError("api_key must not be empty")
        if isinstance(retry_scale, bool) or not isinstance(retry_scale, int | float):
            raise TypeError(f"retry_scale must be a number, got {retry_scale!r}")
        if not 0 <= retry_scale < float("inf"):
            raise ValueError(f"retry_scale must be at least 0 and finite, got {retry_scale}")
        self._settings = Settings()
        self._store = Store(path, self._settings)
        queue = self._store.queue
        self._dispatcher = WebhookDispatcher(queue, self._settings, retry_scale=retry_scale, polls=path is not None)
        queue.on_change = self._dispatcher.wake
        if queue.has_webhook():  # The file may have pending deliveries of an earlier process.
            self._dispatcher.wake()
        self.faults: Faults = Faults()
        self.requests: Requests = Requests()
        self.app: App = App(self._store, self._settings, api_key, self.faults, self.requests)

    @property
    def behavior(self) -> Behavior:
        """How the sandbox behaves where the vendor's documentation is silent; may be replaced at any time."""
        return self._settings.behavior

    @behavior.setter
    def behavior(self, behavior: Behavior) -> None:
        if not isinstance(behavior, Behavior):
            raise TypeError(f"behavior must be a Behavior, got {type(behavior).__name__}")
        self._settings.behavior = behavior

    @property
    def clock(self) -> Callable[[], float]:
        """A function that returns the time in seconds since 1970, `time.time` by default; may be replaced at any time.

        It dates texts that come without `at`, and signs webhooks. Delays between attempts follow real time. A test that
        replaces it passes the same clock to `agentphone.webhooks.Webhook`, which rejects signatures of another time.
        """
        return self._settings.clock

    @clock.setter
    def clock(self, clock: Callable[[], float]) -> None:
        self._settings.clock = clock

    def transport(self) -> httpx.AsyncBaseTransport:
        """Return a transport that calls the application inside this process, on any event loop, asyncio or trio.

        It fails as a network does: with `httpx.ReadTimeout`, and under scripted faults with `httpx.ReadError` and
        `httpx.RemoteProtocolError`.
        """
        return InProcessTransport(self.app)

    def receive_sms(
        self,
        *,
        from_number: str,
        to_number: str,
        body: str,
        at: datetime | str | None = None,
        channel: str | None = None,
        media_urls: Sequence[str] = (),
        group: str | None = None,
    ) -> dict[str, Any]:
        """Store a text from a person to the agent's number, as if it had just arrived.

        The first text between two numbers creates their conversation. Each text moves its conversation to the top of
        the list, unless it is dated before the last one. If a webhook is set, the text is delivered to it soon.

        Args:
            from_number: The person's number.
            to_number: The agent's number.
            body: The text; may be empty.
            at: Its timestamp: an aware datetime or ISO 8601 text with an offset; None for now, by `clock`.
            channel: `"sms"`, `"mms"`, `"imessage"` or `"whatsapp"`; None for the conversation's latest channel, SMS for
                a new one. WhatsApp between the same numbers is a conversation of its own. Only iMessage shows typing,
                and SMS takes no reactions.
            media_urls: The `http://` or `https://` URLs of its media, at most 20; with any, an SMS is an MMS.
            group: The group's id (`grp_...`), for a text of one of its members. Sending to several `recipients` creates
                a group.

        Returns:
            The message as the API shows it, and its `conversationId`.

        Raises:
            ValueError: `at` has no offset or is not ISO 8601, a number is empty, or another argument is invalid.
            LookupError: The agent's number has no such group, or the person is not a member of it.
        """
        return self._store.add(parse_message("inbound", from_number, to_number, body, at, channel, media_urls, group))

    def send_sms(
        self,
        *,
        from_number: str,
        to_number: str,
        body: str,
        at: datetime | str | None = None,
        channel: str | None = None,
        media_urls: Sequence[str] = (),
    ) -> dict[str, Any]:
        """Store a text from the agent's number to a person, as delivered; otherwise the same as `receive_sms`.

        `POST /v1/messages` is how the API sends one.

        Args:
            from_number: The agent's number.
            to_number: The person's number, or a group's id.
            body: The text; may be empty.
            at: Its timestamp: an aware datetime or ISO 8601 text with an offset; None for now, by `clock`.
            channel: Its channel, as for `receive_sms`.
            media_urls: The URLs of its media, as for `receive_sms`.

        Returns:
            The message as the API shows it, and its `conversationId`.

        Raises:
            ValueError: `at` has no offset or is not ISO 8601, a number is empty, or another argument is invalid.
        """
        return self._store.add(parse_message("outbound", from_number, to_number, body, at, channel, media_urls))

    def receive_reaction(self, message_id: str, reaction: str, *, from_number: str | None = None) -> dict[str, Any]:
        """Store a person's reaction to a message. If a webhook is set, it is delivered as an `agent.reaction`.

        Args:
            message_id: The message's id.
            reaction: `"love"`, `"like"`, `"dislike"`, `"laugh"`, `"emphasize"`, `"question"`, or one emoji.
            from_number: Who reacts; None for the conversation's participant. Needed in a group.

        Returns:
            The reaction as the message shows it in its `reactions`, and its `channel`, `messageId` and
            `conversationId`.

        Raises:
            ValueError: It is not a reaction, or the message is an SMS or MMS, which take none.
            LookupError: There is no such message, or the person does not belong to its conversation.
        """
        sender = None if from_number is None else check_string("from", from_number)
        return self._store.react(
            check_string("message_id", message_id), parse_reaction(reaction), direction="inbound", from_number=sender
        )

    def set_webhook(
        self,
        url: str,
        secret: str,
        context_limit: int = DEFAULT_CONTEXT_LIMIT,
        *,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> None:
        """Deliver every text and reaction received from now on to a URL, as the API does: signed, and retried.

        The webhook is stored with the data. It replaces the previous one, for pending deliveries as well. A delivery
        carries the conversation's metadata and history as they were when the text arrived. It succeeds with a 2xx.
        It is attempted again after a 5xx and if there is no response in time, up to 6 times in all; any other response
        is final (see `Behavior.webhook_retries`). Up to 16 attempts run at once, so deliveries may arrive out of order.
        If a response is lost, the delivery arrives again with the same id.

        Args:
            url: The receiver's URL, `http://` or `https://`; proxies are not used.
            secret: The key of the signatures.
            context_limit: How many earlier messages of the conversation each delivery carries, oldest first, 0 to 50.
            timeout: How many seconds a response may take, more than 0. The API itself accepts 5 to 120.

        Raises:
            ValueError: An argument is invalid; the error does not contain the secret.
        """
        self._store.queue.set_webhook(parse_webhook(url, secret, context_limit, timeout))

    def deliveries(self, limit: int = DEFAULT_PAGE) -> list[dict[str, Any]]:
        """Return the webhook deliveries, newest first, as `GET /sandbox/deliveries` does.

        Args:
            limit: The largest number of deliveries, 1 to 1,000.

        Returns:
            Each delivery with `id`, `event`, `conversationId`, `messageId`, `createdAt`, `status` (`pending`,
            `delivered` or `failed`) and `attempts`. Each attempt has its start (`at`), the HTTP `status` of the
            response or None, the `error` or None, and its duration in `seconds`.

        Raises:
            ValueError: The limit is out of range.
            TypeError: The limit is not an integer.
        """
        check_integer("limit", limit, minimum=1, maximum=MAX_PAGE)
        deliveries: list[dict[str, Any]] = self._store.queue.page(limit=limit)["data"]
        return deliveries

    def redeliver(self, delivery_id: str) -> dict[str, Any]:
        """Deliver a webhook again now, under the same id, whatever became of it.

        Args:
            delivery_id: The delivery's id.

        Returns:
            The delivery, as `deliveries` returns it.

        Raises:
            LookupError: There is no such delivery.
        """
        delivery: dict[str, Any] | None = self._store.queue.redeliver(check_string("delivery_id", delivery_id))
        if delivery is None:
            raise LookupError(f"There is no delivery {delivery_id!r}.")
        return delivery

    def remove_conversation(self, conversation_id: str) -> bool:
        """Remove a conversation with its messages, as a real list may lose one while it is read.

        Returns:
            Whether it existed.
        """
        return self._store.remove(conversation_id)

    def load_demo_data(self) -> None:
        """Load a few dozen plausible conversations, one of them with 640 messages; the same, ids included, each time.

        Does nothing if the sandbox has a conversation already.
        """
        self._store.fill(*demo_data())

    def close(self) -> None:
        """Stop delivering and close the database; data in memory is lost. May be called twice."""
        self._dispatcher.close()
        self._store.close()

    def __enter__(self) -> Self:
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError("A Sandbox cannot be copied or pickled. Open another one on the same file.")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
