"""A local AgentPhone to develop and test against: the vendor's conversations API over SQLite.

It imports nothing from the rest of the package, so that one misunderstanding of the API cannot hide on both sides.
"""

import os
from datetime import datetime
from types import TracebackType
from typing import Any, Self

import httpx

from agentphone.sandbox._app import App, new_message
from agentphone.sandbox._demonstration import demonstration
from agentphone.sandbox._faults import Faults, ReceivedRequest, Requests
from agentphone.sandbox._reading import Reading
from agentphone.sandbox._store import Store

__all__ = ["Faults", "Reading", "ReceivedRequest", "Sandbox"]


class Sandbox:
    """A local AgentPhone, in memory or in a SQLite file.

    Its methods may be called from any thread. A forked child has the same file, or an empty memory of its own (with the
    demonstration data, if that was loaded).

    Args:
        path: The database file, made if it is missing; None keeps the data in memory.
        api_key: The only bearer key to accept over HTTP; None accepts any that is not empty.

    Attributes:
        app: The ASGI application.
        faults: Scripted faults.
        requests: The last 1,000 requests received, oldest first; a deque, to be read and cleared.

    Raises:
        ValueError: The key is empty.
        sqlite3.Error: The file cannot be opened as a database.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None, *, api_key: str | None = None) -> None:
        if api_key is not None and not api_key.strip():
            raise ValueError("api_key must not be empty")
        self._store = Store(path)
        self.faults: Faults = Faults()
        self.requests: Requests = Requests()
        self.app: App = App(self._store, api_key, self.faults, self.requests)

    @property
    def reading(self) -> Reading:
        """How the sandbox behaves where the vendor's documentation is silent; may be replaced at any time."""
        return self._store.reading

    @reading.setter
    def reading(self, reading: Reading) -> None:
        self._store.reading = reading

    def transport(self) -> httpx.AsyncBaseTransport:
        """Give a transport that calls the application inside this process, on any event loop, asyncio or trio."""
        return httpx.ASGITransport(self.app, raise_app_exceptions=False)

    def receive_sms(
        self, *, from_number: str, to_number: str, body: str, at: datetime | str | None = None
    ) -> dict[str, Any]:
        """Store a text from a person to the agent's number, as if it had just come in.

        The pair's first text makes their conversation; every one moves it to the front of the list, unless it is dated
        before the last one.

        Args:
            from_number: The person's number.
            to_number: The agent's number.
            body: The text; may be empty.
            at: When: an aware datetime or ISO 8601 text with an offset; None is now.

        Returns:
            The message as the API shows it, and its `conversationId`.

        Raises:
            ValueError: `at` has no offset or is not ISO 8601, a number is empty, or a text is not a str.
        """
        return self._store.add(new_message("inbound", from_number, to_number, body, at))

    def send_sms(
        self, *, from_number: str, to_number: str, body: str, at: datetime | str | None = None
    ) -> dict[str, Any]:
        """Store a text from the agent's number to a person; otherwise the same as `receive_sms`.

        Args:
            from_number: The agent's number.
            to_number: The person's number.
            body: The text; may be empty.
            at: When: an aware datetime or ISO 8601 text with an offset; None is now.

        Returns:
            The message as the API shows it, and its `conversationId`.

        Raises:
            ValueError: `at` has no offset or is not ISO 8601, a number is empty, or a text is not a str.
        """
        return self._store.add(new_message("outbound", from_number, to_number, body, at))

    def remove_conversation(self, conversation_id: str) -> bool:
        """Remove a conversation with its messages, as a real list may lose one while it is read.

        Returns:
            Whether it was there.
        """
        return self._store.remove(conversation_id)

    def load_demonstration(self) -> None:
        """Load a few dozen believable conversations, one of 640 messages; the same ones, ids included, each time.

        Does nothing if the sandbox has a conversation already.
        """
        self._store.fill(*demonstration())

    def close(self) -> None:
        """Close the database; what was in memory is gone. May be called twice."""
        self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
