"""`Inbox`: what users create. It puts the parts together; each of them says what it does."""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import signal
import sys
import threading
from collections.abc import AsyncGenerator, Callable, Generator, Iterable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial
from typing import Any, TypeVar

import anyio.to_thread

from agentphone import AsyncClient, Client, ConfigurationError
from agentphone._checks import check_integer
from agentphone._secret import Secret
from agentphone.inbox._database import Database, DatabaseError, quiet_dbos, resolve_database
from agentphone.inbox._endpoints import ASGIEndpoint, DjangoView, WSGIEndpoint
from agentphone.inbox._handlers import Handler, create_handler
from agentphone.inbox._polling import poll
from agentphone.inbox._receiving import TRY_AGAIN, receive_delivery
from agentphone.inbox._server import DEFAULT_HOST, parse_address, serving
from agentphone.inbox._tracing import current_trace, span
from agentphone.inbox._worker import Worker
from agentphone.inbox._workflow import Settings
from agentphone.webhooks import Event, MessageEvent, Webhook

Receiver = Callable[[AsyncClient | Client], AbstractAsyncContextManager[asyncio.Task[None]]]
"""Starts what receives texts in the worker's process; it goes on until the task ends."""

F = TypeVar("F", bound=Callable[..., Any])

SECRET_VARIABLE = "AGENTPHONE_WEBHOOK_SECRET"  # noqa: S105  # the name of the variable
DEFAULT_NAME = "agentphone-inbox"
DEFAULT_WORKER = "main"

logger = logging.getLogger("agentphone.inbox")


class Inbox:
    """The inbox of an agent: each text is handled once, one at a time per conversation, and answered at most once.

    Register a handler, then start a worker: `agentphone run MODULE:INBOX`, or `run()`. Texts arrive by polling, or by
    webhook through `receive` and what stands on it: `asgi`, `wsgi`, `django`.

    Creating one does nothing: no connection, no file. The same object serves in the processes of a web server, which
    receive, and in the workers, which handle.

    What is guaranteed:
        A text that was received (202) is lost in no crash. The handler runs again only while it has not succeeded:
        after an exception (after 1, 2, 4, ... s, 60 at most; after `max_attempts` the text is set aside as failed), and
        after a crash. Once it has succeeded, its new state is stored and its reply sent without running it again, each
        at most once. A reply whose outcome is unclear is looked up in the history; if that does not tell, it is
        `unconfirmed`, and not sent again by itself.

        One text per conversation at a time, over all workers, in the order of arrival as far as crashes allow. While a
        text waits for its next attempt, later texts of its conversation wait too; those of others do not.

    Args:
        client: An `AsyncClient` or a `Client`, which the caller closes. Default: an `AsyncClient` made from the
            environment when a worker starts.
        webhook_secret: The webhook's secret, or several during a rotation. Default: the environment variable
            AGENTPHONE_WEBHOOK_SECRET, in which white space separates several.
        database: `sqlite:///FILE` or `postgresql://...`. Default: the environment variable AGENTPHONE_INBOX_DATABASE,
            or `sqlite:///agentphone-inbox.db`.
        name: The name of the inbox; inboxes of different names may share a database.
        concurrency: How many texts one worker handles at once, at least 1.
        max_attempts: How often a handler runs that raises, at least 1.

    Raises:
        ConfigurationError: A value is invalid.
        TypeError: An argument has the wrong type.
    """

    def __init__(
        self,
        client: AsyncClient | Client | None = None,
        *,
        webhook_secret: str | Iterable[str] | None = None,
        database: str | None = None,
        name: str = DEFAULT_NAME,
        concurrency: int = 16,
        max_attempts: int = 5,
    ) -> None:
        if not isinstance(client, AsyncClient | Client | None):
            raise TypeError(f"client must be an AsyncClient or a Client, got {type(client).__name__}")
        if not isinstance(name, str):
            raise TypeError(f"name must be a string, got {type(name).__name__}")
        if not name.strip() or not name.isprintable() or name.startswith("_"):
            raise ConfigurationError(f"name must be printable and not begin with an underscore, got {name!r}")
        check_integer("concurrency", concurrency, minimum=1, error=ConfigurationError)
        check_integer("max_attempts", max_attempts, minimum=1, error=ConfigurationError)
        self._client = client
        self._webhook = None if webhook_secret is None else Webhook(webhook_secret)
        del webhook_secret  # tracebacks with locals would show it
        self._database = Database(resolve_database(database), name)
        self._name = name
        self._concurrency = concurrency
        self._max_attempts = max_attempts
        self._handlers: dict[type[Event], Handler] = {}
        self._stop: Callable[[], object] | None = None

    @property
    def asgi(self) -> ASGIEndpoint:
        """The inbox as an ASGI application: mount it in Starlette or FastAPI, or serve it alone."""
        return ASGIEndpoint(self)

    @property
    def wsgi(self) -> WSGIEndpoint:
        """The inbox as a WSGI application."""
        return WSGIEndpoint(self)

    @property
    def django(self) -> DjangoView:
        """The inbox as a Django view, exempt from CSRF checks; blocking, or awaited by async callers."""
        return DjangoView(self)

    def on_message(self, function: F) -> F:
        """Register the handler of texts.

        Args:
            function: `def` or `async def`, of `(text)` or `(text, state)`. A blocking one runs in a thread. `text` is a
                `MessageEvent`; `state` is the conversation's state, of the class of its annotation: dict, an attrs
                class, a dataclass, a TypedDict or a pydantic model. It is changed in place, and stored if the function
                returns. The function returns the reply: a str, a `Reply`, or None for no reply.

        Returns:
            The function.

        Raises:
            ConfigurationError: There is a handler already.
            TypeError: It is not such a function.
        """
        return self._register(MessageEvent, function, with_state=True)

    def on_event(self, cls: type[Event]) -> Callable[[F], F]:
        """Register the handler of other events: `@inbox.on_event(ReactionEvent)`. It has no state and no reply.

        Args:
            cls: The class of the events.

        Returns:
            The decorator of a function of `(event)`.

        Raises:
            TypeError: It is not a class of events, or `MessageEvent`, which has `on_message`.
        """
        if not inspect.isclass(cls) or not issubclass(cls, Event):  # type: ignore[redundant-expr]
            raise TypeError(f"cls must be a class of events, such as ReactionEvent, got {cls!r}")
        if cls in (Event, MessageEvent):
            raise TypeError(f"cls must be a class of events other than texts, got {cls.__name__}; see on_message")
        return lambda function: self._register(cls, function, with_state=False)

    def receive(self, body: bytes, headers: Any) -> int:
        """Receive a webhook delivery: verify it, and store it durably. It calls no API, and no handler.

        It works before any worker has run, in threads, and in processes that were forked.

        Args:
            body: The request's body as raw bytes.
            headers: The request's headers, in any form that `Webhook.parse` takes.

        Returns:
            The HTTP status to answer. 202: stored, or nothing to do: a repeated delivery, an echo of the agent's own
            message, an event without a handler. 400: malformed, or without a signature. 413: above 1 MiB. 503: the
            signature or the timestamp does not fit, or the database cannot be used; AgentPhone sends it again, and
            during a rotation of the secret nothing is lost.

        Raises:
            ConfigurationError: There is no secret.
            TypeError: `body` is not bytes, or `headers` are not headers.
        """
        with span("receive"):
            status, item = receive_delivery(self._get_webhook(), body, headers, handled=self._handlers)
            if item is None:
                return status
            try:
                self._database.add(item, trace=current_trace())
            except DatabaseError:
                logger.exception("The inbox's database cannot be used; a delivery was answered with 503.")
                return TRY_AGAIN
            return status

    async def areceive(self, body: bytes, headers: Any) -> int:
        """Receive a webhook delivery without blocking the event loop, asyncio's or trio's. See `receive`."""
        return await anyio.to_thread.run_sync(self.receive, body, headers)

    def check_receiving(self) -> None:
        """Check that deliveries can be verified.

        Raises:
            ConfigurationError: There is no secret.
        """
        self._get_webhook()

    def work(self, name: str = DEFAULT_WORKER) -> None:
        """Handle what was received, until SIGINT or SIGTERM: one worker of several.

        Args:
            name: The worker's name, its own among all that run, and the same when it is restarted: it continues what
                it was doing.

        Raises:
            ConfigurationError: A worker of this name is running, there is no handler, or a setting cannot be used.
        """
        self._run(name, None)

    def run(self, webhook: str | None = None, *, name: str = DEFAULT_WORKER, poll_interval: float = 5.0) -> None:
        """Receive and handle, until SIGINT or SIGTERM: the whole inbox in one process.

        Args:
            webhook: The address to serve the webhook on, `HOST:PORT`, at any path. Default: texts are polled, which
                needs no public address.
            name: The worker's name, see `work`.
            poll_interval: Seconds between polls while texts arrive; see `conversations.watch`.

        Raises:
            ConfigurationError: A worker of this name is running, there is no handler, or a setting cannot be used.
            AgentPhoneError: Polling could not begin.
        """
        if webhook is None:
            self._run(name, lambda client: self._polling(client, poll_interval))
            return
        parse_address(webhook)
        self._get_webhook()
        self._run(name, lambda _: serving(self.asgi, webhook, _log_address))

    def stop(self) -> None:
        """Stop `work` or `run` from another thread; what is being handled is finished first."""
        if self._stop is not None:
            self._stop()

    def _develop(self, *, secret: str, database: str, when_ready: Callable[[str], object]) -> None:
        """Run with a local AgentPhone, which the environment names: `agentphone dev`.

        Whatever the inbox was created with is replaced, so that no text reaches an account or its database.

        Args:
            secret: The webhook's secret.
            database: The URL of the database.
            when_ready: Called with the webhook's URL once it is served.
        """
        self._client = None
        self._webhook = Webhook(secret)
        self._database = Database(database, self._name)
        self._run(DEFAULT_WORKER, lambda _: serving(self.asgi, f"{DEFAULT_HOST}:0", when_ready))

    def __repr__(self) -> str:
        return f"<Inbox {self._name!r}>"

    def _register(self, cls: type[Event], function: F, *, with_state: bool) -> F:
        if cls in self._handlers:
            raise ConfigurationError(f"There is a handler for {cls.__name__} already; register one.")
        # The decorator is two frames up: annotations that are text may name its local classes.
        names = sys._getframe(2).f_locals  # noqa: SLF001  # the one way to them
        self._handlers[cls] = create_handler(function, with_state=with_state, local_names=names)
        return function

    def _get_webhook(self) -> Webhook:
        if self._webhook is None:
            secret = Secret(os.environ.get(SECRET_VARIABLE))
            if not (secret.value or "").strip():
                raise ConfigurationError(f"No webhook secret. Pass webhook_secret=... or set {SECRET_VARIABLE}.")
            self._webhook = Webhook((secret.value or "").split())
        return self._webhook

    def _run(self, name: str, receiver: Receiver | None) -> None:
        if not self._handlers:
            raise ConfigurationError("The inbox has no handler: register one with @inbox.on_message.")
        if not name.strip() or not name.isprintable():
            raise ConfigurationError(f"name must be a printable string, got {name!r}")
        with quiet_dbos():  # also while the loop ends, which cancels what waits for its next attempt
            asyncio.run(self._main(name, receiver))

    async def _main(self, name: str, receiver: Receiver | None) -> None:
        stopped = asyncio.Event()
        loop = asyncio.get_running_loop()
        settings = Settings(self._name, self._database, self._handlers, self._concurrency, self._max_attempts)
        client, own = self._client, None
        if client is None:
            client = own = AsyncClient()
        async with AsyncExitStack() as stack:
            stack.callback(self._database.close)
            if own is not None:
                stack.push_async_callback(own.aclose)
            stack.enter_context(_stopping_on_signals(loop, stopped))
            await asyncio.to_thread(self._database.get, "start")  # creates the tables
            care = await stack.enter_async_context(Worker(settings, client).running(name))
            logger.info("Worker %r is running.", name)
            self._stop = partial(loop.call_soon_threadsafe, stopped.set)
            stack.callback(setattr, self, "_stop", None)
            stop = asyncio.create_task(stopped.wait())
            tasks: list[asyncio.Task[Any]] = [stop, care]
            if receiver is not None:
                tasks.append(await stack.enter_async_context(receiver(client)))
            ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            stop.cancel()
            for task in ended - {stop}:
                await task  # raises why it has ended

    @asynccontextmanager
    async def _polling(self, client: AsyncClient | Client, poll_interval: float) -> AsyncGenerator[asyncio.Task[None]]:
        task = asyncio.create_task(poll(client, self._database, poll_interval=poll_interval))
        try:
            yield task
        finally:
            task.cancel()
            await asyncio.wait([task])


def open_database(database: str | None = None, name: str = DEFAULT_NAME) -> Database:
    """Return the database of an inbox, for the commands that need no inbox: see `Inbox` for the arguments."""
    return Database(resolve_database(database), name)


def _log_address(url: str) -> None:
    logger.info("The webhook is served at %s.", url)


@contextmanager
def _stopping_on_signals(loop: asyncio.AbstractEventLoop, stopped: asyncio.Event) -> Generator[None]:
    """Set the event on SIGINT and SIGTERM. A second signal has its usual effect, which ends the process."""
    numbers = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()

    def stop() -> None:
        stopped.set()
        restore()

    def restore() -> None:
        for number in numbers:
            loop.remove_signal_handler(number)

    for number in numbers:
        loop.add_signal_handler(number, stop)
    try:
        yield
    finally:
        restore()
