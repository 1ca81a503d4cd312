"""Many calls through a network where a fifth fails: every result is compared with the sandbox's data.

Short by default. `AGENTPHONE_LONG=1 pytest tests/http/test_soak.py -n 0 -s` runs longer and prints the figures.
"""

from __future__ import annotations

import gc
import http.client
import itertools
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio
import pytest
from attrs import define, field

from agentphone import AgentPhoneError, APIConnectionError, APIStatusError, AsyncClient, Client, ResponseDecodeError
from tests.conftest import Server
from tests.support.fault_server import Connection, serving
from tests.support.helpers import KEY
from tests.support.long import count

CALLS = count(600, 5000)
FAULTY = 0.2
WORKERS = 24
KINDS = ["asyncio", "trio", "blocking"]
OWN_NUMBERS = itertools.count(5_550_000)


@define
class Network:
    """A server in front of the sandbox where a share of the requests meets a fault."""

    url: str
    rand: random.Random = field(factory=lambda: random.Random(11))
    met: Counter[str] = field(factory=Counter)

    def relay(self, connection: Connection) -> None:
        """Pass the requests of a connection on, or let them fail."""
        parts = urlsplit(self.url)
        upstream = http.client.HTTPConnection(parts.hostname or "", parts.port)
        try:
            while (received := connection.read()) is not None:
                fault = self.rand.choice(FAULTS) if self.rand.random() < FAULTY else None
                self.met[fault or "none"] += 1
                if fault in ANSWERS:
                    status, body, told = ANSWERS[fault]
                    connection.answer(status, body, **told)
                    continue
                if fault == "reset":
                    return connection.reset()
                if fault == "closed":
                    return None
                if fault == "silence":
                    return connection.wait_until_gone()
                headers = {name: value for name, value in received.headers.items() if name != "accept-encoding"}
                upstream.request(received.method, received.target, received.body, headers)
                answer = upstream.getresponse()
                body = answer.read()
                if fault == "answer lost":  # it was done, and nobody hears of it
                    return connection.reset()
                if fault == "half an answer":
                    return connection.answer(answer.status, body[: len(body) // 2], length=len(body))
                connection.answer(answer.status, body)
                if fault == "reset afterwards":
                    return connection.reset()
        finally:
            upstream.close()
        return None


ANSWERS: dict[str | None, tuple[int, bytes, dict[str, Any]]] = {
    "500": (500, b"", {}),
    "503 at once": (503, b"", {"retry_after": "0"}),
    "429": (429, b'{"error":{"message":"slow down","code":"RATE_LIMIT_EXCEEDED"}}', {"retry_after": "0.01"}),
    "502 in HTML": (502, b"<html>Bad gateway</html>", {"content_type": "text/html"}),
    "503 of a broken encoding": (503, b"no gzip", {"content_encoding": "gzip"}),
    "HTML with 200": (200, b"<html>Sign in</html>", {"content_type": "text/html"}),
}
FAULTS = [*ANSWERS, "reset", "closed", "silence", "answer lost", "half an answer", "reset afterwards"]


@define
class Soak:
    """The expected results of the calls, and their outcomes."""

    ids: list[str]
    bodies: dict[str, list[str]]
    listed: list[str]
    known: dict[str, list[Any]]
    """The possible metadata of a conversation: one value, or two after an update with unknown outcome."""
    went: Counter[str] = field(factory=Counter)

    def judge(self, what: str, right: bool) -> None:
        self.went["right" if right else f"WRONG {what}"] += 1

    def fail(self, error: AgentPhoneError) -> None:
        """Count an error: what cannot be read, or more failures in a row than there are retries."""
        assert isinstance(error, ResponseDecodeError | APIConnectionError | APIStatusError)
        assert error.attempts
        if isinstance(error, ResponseDecodeError):
            assert error.body == b"<html>Sign in</html>"
        else:
            assert len(error.attempts) == 9
        self.went[type(error).__name__] += 1

    def steps(self, number: int) -> tuple[Callable[[Any], Any], Callable[[Any], None], Callable[[], None]]:
        """Give a call, what to do with its answer, and what to note before it."""
        worker = number % WORKERS
        conversation_id = self.ids[worker]
        match number // WORKERS % 4:
            case 0:
                value = {"n": number}
                known = self.known[conversation_id]

                def note() -> None:
                    known.append(value)

                def updated(answer: Any) -> None:
                    self.judge("update", answer.metadata == value)
                    known[:] = [value]

                return lambda c: c.update(conversation_id, metadata=value), updated, note
            case 1:

                def got(answer: Any) -> None:
                    texts = [message.body for message in answer.messages]
                    known = self.known[conversation_id]
                    right = sorted(texts) == sorted(self.bodies[conversation_id]) and answer.metadata in known
                    self.judge("get", right and answer.id == conversation_id)
                    known[:] = [answer.metadata]

                return lambda c: c.get(conversation_id), got, lambda: None
            case 2:

                def read(answer: Any) -> None:
                    texts = sorted(message.body for message in answer)
                    self.judge("messages", texts == sorted(self.bodies[conversation_id]))

                return lambda c: c.messages(conversation_id).page(), read, lambda: None
            case _:

                def listed(answer: Any) -> None:
                    self.judge("list", [conversation.id for conversation in answer] == self.listed)

                return lambda c: c.list(limit=len(self.listed)).page(), listed, lambda: None


def is_no_more_than(before: tuple[int, int]) -> bool:
    return descriptors() <= before[0] and threading.active_count() <= before[1]


def descriptors() -> int:
    gc.collect()
    folder = Path("/proc/self/fd")
    return len(list(folder.iterdir())) if folder.exists() else 0


@pytest.fixture
def soak(server: Server) -> Soak:
    """Add one conversation per worker to the sandbox."""
    bodies: dict[str, list[str]] = {}
    own_number = f"+1555{next(OWN_NUMBERS)}"
    for worker in range(WORKERS):
        for number in range(3 + worker % 5):
            body = f"{worker}, {number}: größer 👟"
            told = server.box.receive_sms(from_number=f"+1555777{worker:04}", to_number=own_number, body=body)
            bodies.setdefault(told["conversationId"], []).append(body)
    ids = list(bodies)
    with Client(KEY, base_url=server.url) as client:
        listed = [conversation.id for conversation in client.conversations.list(limit=30).page()]
    return Soak(ids, bodies, listed, {conversation_id: [None] for conversation_id in ids})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.timeout(1200)
def test_no_wrong_result_and_nothing_leaked(
    kind: str, server: Server, soak: Soak, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentphone._http.retry.INITIAL_BACKOFF", 0.01)
    network = Network(server.url)
    numbers = range(CALLS // len(KINDS))
    with Client(KEY, base_url=server.url) as client:  # the portal's thread is there from here on
        client.conversations.list(limit=1).page()
    before = descriptors(), threading.active_count()
    began = time.monotonic()
    with serving(network.relay, times=float("inf")) as relay:
        settings: dict[str, Any] = {"base_url": relay.url, "timeout": 0.5, "max_retries": 8, "max_connections": 10}

        def work(client: Client, worker: int) -> None:
            for number in numbers[worker::WORKERS]:
                ask, compare, note = soak.steps(number)
                note()
                try:
                    compare(ask(client.conversations))
                except AgentPhoneError as error:
                    soak.fail(error)

        async def work_async(client: AsyncClient, worker: int) -> None:
            for number in numbers[worker::WORKERS]:
                ask, compare, note = soak.steps(number)
                note()
                try:
                    compare(await ask(client.conversations))
                except AgentPhoneError as error:
                    soak.fail(error)

        async def main() -> None:
            async with AsyncClient(KEY, **settings) as client, anyio.create_task_group() as tasks:
                for worker in range(WORKERS):
                    tasks.start_soon(work_async, client, worker)

        if kind == "blocking":
            with Client(KEY, **settings) as client, ThreadPoolExecutor(WORKERS) as threads:
                list(threads.map(lambda worker: work(client, worker), range(WORKERS)))
        else:
            anyio.run(main, backend=kind)
        assert relay.wait_until_left()
    took = time.monotonic() - began
    assert not [kind for kind in soak.went if kind.startswith("WRONG")]
    assert sum(soak.went.values()) == len(numbers)
    assert soak.went["right"] > 0.9 * len(numbers)
    with Client(KEY, base_url=server.url) as client:
        for conversation_id, known in soak.known.items():
            assert client.conversations.get(conversation_id).metadata in known
    for _ in range(500):  # threads of the relay end a moment later, and those of tests before this one
        if is_no_more_than(before):
            break
        time.sleep(0.01)
    assert is_no_more_than(before), (descriptors(), threading.active_count(), before)
    print(f"{kind}: {len(numbers)} calls in {took:.1f} s: {dict(soak.went)}; met {dict(network.met)}")  # noqa: T201
