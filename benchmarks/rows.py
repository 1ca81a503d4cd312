"""What is measured, against which peers, and the targets. Data only; the jobs are in `contenders.py`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Contender:
    """Who does a job, and how much of it."""

    label: str
    """How the table calls it."""
    library: str
    """Whose code does it; `vendor` and `other` have our import name and come from folders of their own."""
    size: int | None = None
    """What the job wants to know: if None, the row's."""


@dataclass(frozen=True, kw_only=True)
class Peer(Contender):
    """Somebody to be measured against."""

    goal: float | None = None
    """What ours is to reach, as a multiple of this one, or as a difference; None: told for comparison."""


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
    size: int = 1
    path: str = ""
    """What of the server's URL the job gets; or a whole URL."""
    ours: Contender
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


OURS = Contender(label="ours", library="ours")
VENDOR = Peer(label="vendor's AsyncAgentPhone", library="vendor")
VENDOR_BLOCKING = Peer(label="vendor's AgentPhone", library="vendor")
VENDOR_MODELS = Peer(label="vendor's from_dict, dates left as text", library="vendor", goal=0.8)
HTTPX = Peer(label="httpx.AsyncClient, .json()", library="httpx")
AIOHTTP = Peer(label="aiohttp, json.loads", library="aiohttp")
JSON = Peer(label="json.loads alone", library="json")
NOBODY = "https://127.0.0.1:1"
"""Where nobody listens: a port that only the system may use."""

ROWS = (
    Row(
        name="call",
        work="one call at a time, page of 1",
        job="calls",
        ours=OURS,
        peers=(replace(VENDOR, goal=0.75), replace(HTTPX, goal=1.0), AIOHTTP),
        units=100,
        rounds=60,
        quick_rounds=10,
        unit="µs",
    ),
    Row(
        name="in-flight-50",
        work="50 calls in flight",
        job="calls",
        size=50,
        ours=OURS,
        peers=(replace(VENDOR, goal=0.65), HTTPX, AIOHTTP),
        units=400,
        rounds=15,
        quick_rounds=2,
        unit="µs",
    ),
    Row(
        name="in-flight-200",
        work="200 calls in flight",
        job="calls",
        size=200,
        ours=OURS,
        peers=(replace(VENDOR, goal=0.65), HTTPX, AIOHTTP),
        units=800,
        rounds=11,
        quick_rounds=1,
        unit="µs",
    ),
    Row(
        name="blocking-call",
        work="one blocking call at a time, page of 1",
        job="blocking_calls",
        ours=OURS,
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
        job="iterate",
        size=10_000,
        ours=OURS,
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
        job="decode",
        path="/v1/conversations?limit=100",
        ours=OURS,
        peers=(VENDOR_MODELS, JSON),
        units=50,
        rounds=60,
        quick_rounds=10,
        unit="µs",
    ),
    Row(
        name="decode-messages",
        work="decode a page of 200 messages, dates parsed",
        job="decode",
        path="/v1/conversations/conv_1/messages?limit=200",
        ours=OURS,
        peers=(VENDOR_MODELS, JSON),
        units=50,
        rounds=60,
        quick_rounds=10,
        unit="µs",
    ),
    Row(
        name="import",
        work="import agentphone",
        job="load",
        ours=OURS,
        peers=(
            Peer(label="import httpx, attrs, cattrs, anyio", library="dependencies", goal=1.15),
            Peer(label="vendor's import agentphone", library="vendor"),
        ),
        rounds=25,
        quick_rounds=4,
        is_fresh=True,
        unit="ms",
    ),
    Row(
        name="second-client",
        work="create a second AsyncClient, ready to send over https",
        job="create",
        path=NOBODY,
        ours=Contender(label="the second", library="ours", size=2),
        peers=(Peer(label="the first", library="ours", size=1, goal=0.1),),
        rounds=15,
        quick_rounds=3,
        is_fresh=True,
        unit="ms",
    ),
    Row(
        name="memory",
        work="memory: peak streaming 1,000,000 messages",
        job="stream_memory",
        ours=Contender(label="1,000,000", library="ours", size=1_000_000),
        peers=(Peer(label="peak at 10,000", library="ours", size=10_000, goal=8.0),),
        server=Server(messages=1_000_000),
        rounds=3,
        quick_rounds=1,
        warms_up=False,
        is_fresh=True,
        compares="difference",
        unit="MiB",
    ),
)


def quickly(row: Row) -> Row:
    """Return a row that takes a few seconds: few rounds, and a tenth of the history."""
    if row.name == "memory":
        less = Contender(label="100,000", library="ours", size=100_000)
        row = replace(row, work="memory: peak streaming 100,000 messages", ours=less)
    return replace(row, rounds=row.quick_rounds)
