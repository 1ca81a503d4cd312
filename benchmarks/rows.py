"""What is measured, against which peers, and the goals. Data only; the jobs are in `jobs/`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Contender:
    """Who does a job, and how much of it."""

    label: str
    """Its name in the table."""
    library: str
    """Whose code does it; `vendor` and `other` have our import name and come from folders of their own."""
    job: str | None = None
    """What it does: if None, the row's job."""
    size: int | None = None
    """What the job wants to know: if None, the row's."""


@dataclass(frozen=True, kw_only=True)
class Peer(Contender):
    """Somebody to be measured against."""

    goal: float | None = None
    """What ours is to reach, as a multiple of this one, or as a difference; None: shown for comparison."""


@dataclass(frozen=True, kw_only=True)
class Server:
    """What the server of a row shows."""

    conversations: int = 100
    messages: int = 200
    delay: float = 0
    """Seconds before each answer."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table for each peer."""

    name: str
    work: str
    job: str
    """The module in `jobs/`, and its function."""
    size: int = 1
    path: str = ""
    """The path of the URL that the job gets; or a whole URL."""
    needs: str | None = None
    """The package that all contenders need, if it is not one of the core's."""
    ours: Contender = Contender(label="ours", library="ours")
    peers: tuple[Peer, ...]
    server: Server = Server()
    units: int = 1
    """How many units of work a turn has."""
    rounds: int
    quick_rounds: int = 1
    warms_up: bool = True
    """If True, a round that does not count comes first. Long turns do not need it."""
    is_fresh: bool = False
    """If True, each turn runs in a process of its own."""
    compares: Literal["ratio", "difference"] = "ratio"
    unit: Literal["µs", "ms", "s", "MiB"]
    per_second: bool = False
    """If True, the table adds how many units a second that is."""


VENDOR = Peer(label="vendor's AsyncAgentPhone", library="vendor")
VENDOR_BLOCKING = Peer(label="vendor's AgentPhone", library="vendor")
VENDOR_MODELS = Peer(label="vendor's from_dict, dates left as text", library="vendor", goal=0.8)
HTTPX = Peer(label="httpx.AsyncClient, .json()", library="httpx")
AIOHTTP = Peer(label="aiohttp, json.loads", library="aiohttp")
JSON = Peer(label="json.loads alone", library="json")
DBOS = Peer(label="DBOS alone, an empty workflow", library="dbos")
DBOS_AND_HTTPX = Peer(label="DBOS alone, a step that sends with httpx", library="dbos+httpx")
NOBODY = "https://127.0.0.1:1"
"""Where nobody listens: a port that only the system may use."""


def large_rows(messages: int) -> tuple[Row, ...]:
    """Return the rows about a history or an account with so many messages."""
    account = Server(conversations=100, messages=messages // 100)
    return (
        Row(
            name="export",
            work=f"export {messages:,} messages as JSON lines, time for each",
            job="reading.export",
            peers=(
                Peer(label="reading alone", library="ours", job="reading.read_all"),
                Peer(label="httpx and json.dumps, cannot resume", library="httpx"),
            ),
            server=account,
            units=messages,
            rounds=3,
            warms_up=False,
            unit="µs",
            per_second=True,
        ),
        Row(
            name="export-memory",
            work=f"memory: peak exporting {messages:,} messages",
            job="reading.export_memory",
            peers=(Peer(label="peak of reading alone", library="ours", job="reading.read_all_memory", goal=16.0),),
            server=account,
            units=messages,
            rounds=1,
            warms_up=False,
            is_fresh=True,
            compares="difference",
            unit="MiB",
        ),
        Row(
            name="memory",
            work=f"memory: peak streaming {messages:,} messages",
            job="reading.history_memory",
            ours=Contender(label=f"{messages:,}", library="ours", size=messages),
            peers=(Peer(label="peak at 10,000", library="ours", size=10_000, goal=8.0),),
            server=Server(messages=messages),
            rounds=3,
            warms_up=False,
            is_fresh=True,
            compares="difference",
            unit="MiB",
        ),
    )


ROWS = (
    Row(
        name="call",
        work="one call at a time, page of 1",
        job="calls.pages",
        peers=(replace(VENDOR, goal=0.75), replace(HTTPX, goal=1.0), AIOHTTP),
        units=100,
        rounds=60,
        quick_rounds=10,
        unit="µs",
    ),
    Row(
        name="in-flight-50",
        work="50 calls in flight",
        job="calls.pages",
        size=50,
        peers=(replace(VENDOR, goal=0.65), HTTPX, AIOHTTP),
        units=400,
        rounds=15,
        quick_rounds=2,
        unit="µs",
    ),
    Row(
        name="in-flight-200",
        work="200 calls in flight",
        job="calls.pages",
        size=200,
        peers=(replace(VENDOR, goal=0.65), HTTPX, AIOHTTP),
        units=800,
        rounds=11,
        quick_rounds=1,
        unit="µs",
    ),
    Row(
        name="blocking-call",
        work="one blocking call at a time, page of 1",
        job="calls.blocking_pages",
        peers=(
            replace(VENDOR_BLOCKING, goal=0.95),
            Peer(label="httpx.Client, .json()", library="httpx", goal=1.3),
        ),
        units=100,
        rounds=60,
        quick_rounds=10,
        unit="µs",
    ),
    Row(
        name="iterate",
        work="iterate 10,000 conversations, 50 ms an answer, concurrency=8",
        job="reading.conversations",
        size=10_000,
        peers=(replace(VENDOR, label="vendor's loop, 100 a page", goal=0.16),),
        server=Server(conversations=10_000, delay=0.05),
        rounds=7,
        quick_rounds=1,
        warms_up=False,
        unit="s",
    ),
    Row(
        name="decode-conversations",
        work="decode a page of 100 conversations, dates parsed",
        job="reading.decode",
        path="/v1/conversations?limit=100",
        peers=(VENDOR_MODELS, JSON),
        units=50,
        rounds=60,
        quick_rounds=10,
        unit="µs",
    ),
    Row(
        name="decode-messages",
        work="decode a page of 200 messages, dates parsed",
        job="reading.decode",
        path="/v1/conversations/conv_1/messages?limit=200",
        peers=(VENDOR_MODELS, JSON),
        units=50,
        rounds=60,
        quick_rounds=10,
        unit="µs",
    ),
    Row(
        name="import",
        work="from agentphone import AsyncClient",
        job="starts.load",
        peers=(
            Peer(label="import httpx, attrs, cattrs, anyio", library="dependencies", goal=1.15),
            Peer(label="vendor's import agentphone, and httpx", library="vendor"),
        ),
        rounds=25,
        quick_rounds=4,
        is_fresh=True,
        unit="ms",
    ),
    Row(
        name="second-client",
        work="create a second AsyncClient, ready to send over https",
        job="starts.create",
        path=NOBODY,
        ours=Contender(label="the second", library="ours", size=2),
        peers=(Peer(label="the first", library="ours", size=1, goal=0.1),),
        rounds=15,
        quick_rounds=3,
        is_fresh=True,
        unit="ms",
    ),
    Row(
        name="help",
        work="agentphone --help, from start to end",
        job="starts.command",
        needs="click",
        peers=(
            Peer(label="a program with click, --help", library="click", goal=1.5),
            Peer(label="python -c pass", library="python"),
        ),
        units=5,
        rounds=15,
        quick_rounds=2,
        unit="ms",
    ),
    Row(
        name="reply",
        work="reply in a conversation, sent at most once",
        job="calls.replies",
        peers=(
            replace(VENDOR, label="vendor's messages.send"),
            replace(HTTPX, label="httpx.AsyncClient.post, .json()"),
        ),
        units=100,
        rounds=60,
        quick_rounds=10,
        unit="µs",
    ),
    Row(
        name="webhook",
        work="webhooks.parse: verify and parse a delivery",
        job="webhook.parse",
        peers=(
            Peer(label="vendor's construct_event", library="vendor"),
            Peer(label="hmac, json.loads", library="json"),
        ),
        units=200,
        rounds=60,
        quick_rounds=10,
        unit="µs",
    ),
    Row(
        name="receive",
        work="inbox.receive: verify and store a text, SQLite",
        job="inbox.receive",
        size=20,
        needs="dbos",
        peers=(
            Peer(label="DBOSClient.enqueue alone", library="dbos"),
            Peer(label="hmac, json.loads, INSERT, commit", library="sqlite"),
        ),
        units=50,
        rounds=30,
        quick_rounds=4,
        unit="µs",
        per_second=True,
    ),
    Row(
        name="worker",
        work="inbox worker: answer stored texts of 20 conversations, SQLite",
        job="inbox.work",
        size=20,
        needs="dbos",
        peers=(DBOS, DBOS_AND_HTTPX),
        units=300,
        rounds=5,
        quick_rounds=1,
        warms_up=False,
        is_fresh=True,
        unit="ms",
        per_second=True,
    ),
    Row(
        name="answer",
        work="inbox: from a delivery to its reply, one at a time, SQLite",
        job="inbox.answer",
        size=20,
        needs="dbos",
        peers=(DBOS, DBOS_AND_HTTPX),
        units=20,
        rounds=5,
        quick_rounds=1,
        warms_up=False,
        is_fresh=True,
        unit="ms",
    ),
    *large_rows(1_000_000),
)


def quickly(row: Row) -> Row:
    """Return a row that takes a few seconds: few rounds, and a tenth of a million messages."""
    smaller = {row.name: row for row in large_rows(100_000)}
    return replace(smaller.get(row.name, row), rounds=row.quick_rounds)


PICTURE = ("call", "blocking-call", "in-flight-50", "iterate", "reply", "export")
"""The rows that matter most, which the picture shows; the table has all."""
