"""A local AgentPhone to develop and test against: the vendor's conversations API over SQLite.

It imports nothing from the rest of the package, so that one misunderstanding of the API cannot hide on both sides.
"""

import os
from collections.abc import Callable
from datetime import datetime
from types import TracebackType
from typing import Any, NoReturn, Self

import httpx

from agentphone.sandbox._app import CONTEXT_LIMIT, DELIVERIES, App, deliveries_limit, new_message, new_webhook
from agentphone.sandbox._behavior import Behavior
from agentphone.sandbox._delivery import WebhookDispatcher
from agentphone.sandbox._demo_data import demo_data
from agentphone.sandbox._faults import Faults, ReceivedRequest, Requests
from agentphone.sandbox._store import Store
from agentphone.sandbox._transport import InProcessTransport

__all__ = ["Faults", "Behavior", "ReceivedRequest", "Sandbox"]


class Sandbox:
    """A local AgentPhone, in memory or in a SQLite file.

    Its methods may be called from any thread. A forked child has the same file, or an empty memory of its own (with the
    demonstration data, if that was loaded).

    Once a webhook is set, a thread delivers to it what is received, until the sandbox is closed; one that is opened on
    the same file goes on with what is pending, whoever stored it.

    Args:
        path: The database file, made if it is missing; None keeps the data in memory.
        api_key: The only bearer key to accept over HTTP; None accepts any that is not empty.
        retry_scale: The factor on the pauses of 1, 2, 4, 8 and 16 seconds between the attempts of a webhook delivery,
            from 0; a small one for tests.

    Attributes:
        app: The ASGI application.
        faults: Scripted faults.
        requests: The last 1,000 requests received, oldest first; a deque, to be read and cleared.

    Raises:
        ValueError: The path is `":memory:"`, the key is empty, or the factor is not a number from 0 on.
        sqlite3.Error: The file cannot be opened as a database, or is one of something else.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        api_key: str | None = None,
        retry_scale: float = 1.0,
    ) -> None:
        if api_key is not None and not api_key.strip():
            raise ValueError("api_key must not be empty")
        if not 0 <= retry_scale < float("inf"):
            raise ValueError(f"retry_scale must be a number from 0 on: {retry_scale}")
        self._store = Store(path)
        self._deliverer = WebhookDispatcher(self._store, retry_scale=retry_scale, polls=path is not None)
        self._store.on_webhook = self._deliverer.wake
        if self._store.has_webhook():  # What is pending in the file since its last process ended, goes out now.
            self._deliverer.wake()
        self.faults: Faults = Faults()
        self.requests: Requests = Requests()
        self.app: App = App(self._store, api_key, self.faults, self.requests)

    @property
    def behavior(self) -> Behavior:
        """How the sandbox behaves where the vendor's documentation is silent; may be replaced at any time."""
        return self._store.behavior

    @behavior.setter
    def behavior(self, behavior: Behavior) -> None:
        self._store.behavior = behavior

    @property
    def clock(self) -> Callable[[], float]:
        """The time in seconds since 1970, as a function; `time.time` unless replaced, which may be at any time.

        A text that comes without `at` is received then, and webhooks are signed as of then; pauses are not of this
        clock. A test that sets it gives `agentphone.webhooks.Webhook` the same one, for a timestamp of another day is
        refused.
        """
        return self._store.clock

    @clock.setter
    def clock(self, clock: Callable[[], float]) -> None:
        self._store.clock = clock

    def transport(self) -> httpx.AsyncBaseTransport:
        """Give a transport that calls the application inside this process, on any event loop, asyncio or trio.

        It fails as a network does: `httpx.ReadTimeout`, and under the scripted faults `httpx.ReadError` and
        `httpx.RemoteProtocolError`.
        """
        return InProcessTransport(self.app)

    def receive_sms(
        self, *, from_number: str, to_number: str, body: str, at: datetime | str | None = None
    ) -> dict[str, Any]:
        """Store a text from a person to the agent's number, as if it had just come in.

        The pair's first text makes their conversation; every one moves it to the front of the list, unless it is dated
        before the last one. If a webhook is set, it is delivered there soon.

        Args:
            from_number: The person's number.
            to_number: The agent's number.
            body: The text; may be empty.
            at: When: an aware datetime or ISO 8601 text with an offset; None is now, by `clock`.

        Returns:
            The message as the API shows it, and its `conversationId`.

        Raises:
            ValueError: `at` has no offset or is not ISO 8601, a number is empty, or a text is not a str.
        """
        message = new_message("inbound", from_number, to_number, body, at)
        return self._store.add(message)

    def send_sms(
        self, *, from_number: str, to_number: str, body: str, at: datetime | str | None = None
    ) -> dict[str, Any]:
        """Store a text from the agent's number to a person; otherwise the same as `receive_sms`.

        Args:
            from_number: The agent's number.
            to_number: The person's number.
            body: The text; may be empty.
            at: When: an aware datetime or ISO 8601 text with an offset; None is now, by `clock`.

        Returns:
            The message as the API shows it, and its `conversationId`.

        Raises:
            ValueError: `at` has no offset or is not ISO 8601, a number is empty, or a text is not a str.
        """
        message = new_message("outbound", from_number, to_number, body, at)
        return self._store.add(message)

    def set_webhook(self, url: str, secret: str, context_limit: int = CONTEXT_LIMIT) -> None:
        """Deliver every text that is received from now on to a URL, as the API does: signed, and again if it fails.

        It is kept with the data, and takes the place of the one before, for deliveries that are pending as well. A
        delivery has the conversation's metadata and history as they were when the text came. It succeeds with a 2xx
        within 10 seconds; after 6 attempts it has failed. Up to 16 are attempted at once and none waits for another, so
        that they may arrive in another order, and one whose answer was lost arrives twice, under the same id.

        Args:
            url: Where to, `http://` or `https://`; proxies are not used.
            secret: The key of the signatures.
            context_limit: How many earlier messages of the conversation come along, oldest first, 0 to 50.

        Raises:
            ValueError: One of them cannot be; the text does not tell the secret.
        """
        self._store.set_webhook(new_webhook(url, secret, context_limit))

    def deliveries(self, limit: int = DELIVERIES) -> list[dict[str, Any]]:
        """Give the webhook deliveries, newest first, as `GET /sandbox/deliveries` does.

        Args:
            limit: How many, 1 to 1,000.

        Returns:
            Each with `id`, `event`, `conversationId`, `messageId`, `createdAt`, its `status` (`pending`, `delivered` or
            `failed`) and its `attempts`: when each began (`at`), the HTTP `status` of its answer or None, the `error`
            or None, and the `seconds` that it took.

        Raises:
            ValueError: The limit is out of range.
        """
        deliveries: list[dict[str, Any]] = self._store.deliveries(limit=deliveries_limit(limit))["data"]
        return deliveries

    def remove_conversation(self, conversation_id: str) -> bool:
        """Remove a conversation with its messages, as a real list may lose one while it is read.

        Returns:
            Whether it was there.
        """
        return self._store.remove(conversation_id)

    def load_demo_data(self) -> None:
        """Load a few dozen believable conversations, one of 640 messages; the same ones, ids included, each time.

        Does nothing if the sandbox has a conversation already.
        """
        self._store.fill(*demo_data())

    def close(self) -> None:
        """End the deliveries and close the database; what was in memory is gone. May be called twice."""
        self._deliverer.close()
        self._store.close()

    def __enter__(self) -> Self:
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError("A Sandbox is neither copied nor pickled. Open another one on the same file.")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
