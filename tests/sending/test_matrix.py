"""Whatever happens to a send, it is on the wire at most once, and its outcome is the right error or the message.

Each fault of a network, a proxy or the API; carried out or not; with each client; on a fresh connection and on one that
was kept alive. All cases of one client run at the same time, each with a server of its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anyio
import pytest
from attrs import frozen

from agentphone import (
    AgentPhoneError,
    APIStatusError,
    AsyncClient,
    Client,
    ConflictError,
    NotFoundError,
    PermissionDeniedError,
    SendUnconfirmedError,
    SentMessage,
    UnprocessableEntityError,
)
from tests.support.fault_server import Connection, Received
from tests.support.helpers import KEY
from tests.support.send_server import SendServer, send_server

SILENCE_TIMEOUT = 2.0
LONG_TIMEOUT = 60.0
CONFIRM_ABSENT = 0.6
CONFIRM_PRESENT = 60.0
"""Short only where the whole time must pass, so that a slow machine changes no outcome."""

OnPost = Callable[[Connection, Received, SendServer], None]


@frozen
class Fault:
    """What happens to the first POST."""

    on_post: OnPost | None = None
    before_request: Callable[[Connection], None] | None = None
    """What happens to the connection of the POST before it is read; nothing can be carried out then."""
    error: type[AgentPhoneError] = SendUnconfirmedError
    """What a send that was not carried out raises, or one that was and is not looked for."""
    times: int = 1
    is_rejected: bool = False
    """The API carries out nothing."""
    sent_at_once: bool = False
    """The send is repeated, and arrives."""


def status(code: int, body: Any = b"", **headers: str) -> OnPost:
    return lambda connection, _, server: server.answer(connection, code, body, **headers)


def unconfirmed_409(connection: Connection, _: Received, server: SendServer) -> None:
    server.answer(connection, 409, {"error": {"message": "maybe", "code": "DELIVERY_UNCONFIRMED"}})


def truncated(connection: Connection, _: Received, __: SendServer) -> None:
    connection.answer(200, b'{"id": "msg', length=200)
    connection.close()


FAULTS: dict[str, Fault] = {
    "reset before the request": Fault(before_request=lambda connection: connection.reset()),
    "closed before the request": Fault(before_request=lambda connection: connection.close()),
    "silence before the request": Fault(before_request=lambda connection: connection.wait_until_gone()),
    "reset after the request": Fault(lambda connection, *_: connection.reset()),
    "closed after the request": Fault(lambda connection, *_: connection.close()),
    "silence after the request": Fault(lambda connection, *_: connection.wait_until_gone()),
    "truncated": Fault(truncated),
    **{str(code): Fault(status(code)) for code in (408, 500, 501, 502, 503, 504)},
    "503 with Retry-After": Fault(status(503, retry_after="0")),
    "409 DELIVERY_UNCONFIRMED": Fault(unconfirmed_409),
    "HTML with 200": Fault(status(200, b"<html>Sign in</html>", content_type="text/html")),
    "wrong JSON": Fault(status(200, {"ok": True})),
    "nothing with 200": Fault(status(200)),
    "429": Fault(status(429), is_rejected=True, sent_at_once=True),
    "409": Fault(status(409), error=ConflictError, is_rejected=True),
    "302": Fault(status(302, location="https://elsewhere.example/"), error=APIStatusError, is_rejected=True),
    "402": Fault(status(402), error=APIStatusError, is_rejected=True),
    "403": Fault(status(403), error=PermissionDeniedError, is_rejected=True),
    "404": Fault(status(404), error=NotFoundError, is_rejected=True),
    "422": Fault(status(422), error=UnprocessableEntityError, is_rejected=True),
}


@frozen
class Case:
    """One fault under one circumstance."""

    name: str
    fault: Fault
    is_applied: bool
    is_kept_alive: bool

    def settings(self, url: str) -> dict[str, Any]:
        """Return the settings of the client."""
        timeout = SILENCE_TIMEOUT if self.name.startswith("silence") else LONG_TIMEOUT
        return {"api_key": KEY, "base_url": url, "timeout": timeout}

    @property
    def confirm(self) -> float:
        """How long to look for the message."""
        return CONFIRM_PRESENT if self.is_applied else CONFIRM_ABSENT

    def server(self) -> SendServer:
        """Return a server that meets the first POST with the fault."""
        left = [self.fault.times]

        def on_post(connection: Connection, post: Received, server: SendServer) -> None:
            if left[0] and self.fault.on_post is not None:
                left[0] -= 1
                if self.is_applied:
                    server.apply(post)
                self.fault.on_post(connection, post, server)
            else:
                server.accept(connection, post)

        def on_connect(connection: Connection, server: SendServer) -> bool:
            # The conversation was read by then, over another connection that the server closed.
            if self.fault.before_request is None or not left[0] or not server.gets:
                return False
            left[0] -= 1
            self.fault.before_request(connection)
            return True

        return SendServer(on_post=on_post, on_connect=on_connect)

    def check(self, outcome: SentMessage | Exception, server: SendServer) -> None:
        """Check the outcome of `reply`, and what was on the wire."""
        copies = [item for item in server.history if item["body"] == "Hello"]
        assert len(copies) <= 1, self
        # A connection that is closed before anything was written is certain not to have sent it: then it is retried.
        is_unsent = self.fault.before_request is not None and isinstance(outcome, SentMessage)
        expected = 1 if self.fault.before_request is None else int(is_unsent)
        assert len(server.posts) == expected + self.fault.sent_at_once, self
        if self.is_applied or self.fault.sent_at_once or is_unsent:
            assert isinstance(outcome, SentMessage), (self, outcome)
            assert (outcome.id, outcome.status) == (copies[0]["id"], "sent"), self
        else:
            assert type(outcome) is self.fault.error, (self, outcome)
            assert copies == [], self
        if isinstance(outcome, SendUnconfirmedError):
            assert isinstance(outcome.__cause__, AgentPhoneError), self
            assert outcome.attempts, self


CASES = [
    Case(name, fault, is_applied, is_kept_alive)
    for (name, fault), is_applied, is_kept_alive in itertools.product(FAULTS.items(), [False, True], [False, True])
    if not (is_applied and (fault.is_rejected or fault.before_request))
    if not (is_kept_alive and fault.before_request)
]


async def reply(case: Case) -> None:
    with send_server(case.server()) as server:
        async with AsyncClient(**case.settings(server.url)) as client:
            target = await client.conversations.get("conv_1")
            if not case.is_kept_alive:
                await drop_idle(client)
            outcome: SentMessage | Exception
            try:
                outcome = await client.conversations.reply(target, "Hello", confirm=case.confirm)
            except AgentPhoneError as error:
                outcome = error
    case.check(outcome, server)


async def drop_idle(client: AsyncClient) -> None:
    """Close the connections that are kept alive."""
    pool: Any = await client._connections.pool()
    for _, connection in pool._idle:
        await pool.discard(connection)
    pool._idle.clear()


@pytest.mark.anyio
async def test_async_reply_is_on_the_wire_once() -> None:
    async with anyio.create_task_group() as group:
        for case in CASES:
            group.start_soon(reply, case)


def test_blocking_reply_is_on_the_wire_once() -> None:
    def blocking(case: Case) -> None:
        with send_server(case.server()) as server, Client(**case.settings(server.url)) as client:
            target = client.conversations.get("conv_1")
            if not case.is_kept_alive:
                from agentphone import _portal

                _portal.run(drop_idle, client._async)
            outcome: SentMessage | Exception
            try:
                outcome = client.conversations.reply(target, "Hello", confirm=case.confirm)
            except AgentPhoneError as error:
                outcome = error
        case.check(outcome, server)

    with ThreadPoolExecutor(len(CASES)) as threads:
        for _ in threads.map(blocking, CASES):
            pass
