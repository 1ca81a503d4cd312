"""The growth of cost with the length of a history and with the number of calls in flight.

All sizes of all contenders take turns in one row, since a machine that others use is not the same for two sizes that
are measured one after the other. Each time is a multiple of one base, of the same round.
"""

from __future__ import annotations

import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.measure import measure, serving, take_turn, working
from benchmarks.rows import AIOHTTP, HTTPX, OURS, VENDOR, Contender, Peer, Row, Server

LENGTHS = (100, 1_000, 10_000, 100_000, 1_000_000)
WIDTHS = (1, 2, 5, 10, 20, 50, 100, 200)
PAGE = 200
"""How many messages a request brings at most."""


def _all_sizes(sizes: tuple[int, ...], *contenders: Contender) -> tuple[Peer, ...]:
    return tuple(
        Peer(label=contender.label, library=contender.library, size=size) for size in sizes for contender in contenders
    )


HISTORIES = Row(
    name="histories",
    work="read a history",
    job="stream",
    ours=replace(OURS, size=10_000),
    peers=_all_sizes(LENGTHS, OURS, replace(VENDOR, label="vendor's loop")),
    server=Server(messages=LENGTHS[-1]),
    rounds=3,
    warms_up=False,
    unit="ms",
)
IN_FLIGHT = Row(
    name="in-flight",
    work="calls in flight",
    job="calls",
    ours=replace(OURS, size=1),
    peers=_all_sizes(WIDTHS, OURS, VENDOR, HTTPX, AIOHTTP),
    units=2 * WIDTHS[-1],
    rounds=5,
    unit="µs",
)


@dataclass(frozen=True, kw_only=True)
class Point:
    """What one size costs a contender."""

    contender: str
    size: int
    time: float
    """For a whole history in milliseconds, for one call in microseconds."""
    requests: int | None = None
    """How many a history of ours took."""


@dataclass(frozen=True, kw_only=True)
class Growth:
    """The points of both curves."""

    histories: list[Point]
    in_flight: list[Point]


def measure_growth(folders: Mapping[str, Path]) -> Growth:
    """Measure all points."""
    histories = [
        replace(point, requests=_requests(point.size, folders)) if point.contender == OURS.label else point
        for point in _points(HISTORIES, folders)
    ]
    return Growth(histories=histories, in_flight=_points(IN_FLIGHT, folders))


def _points(row: Row, folders: Mapping[str, Path]) -> list[Point]:
    return [
        Point(contender=result.peer, size=result.size, time=result.ours / result.compared)
        for result in measure(row, folders)
    ]


def _requests(length: int, folders: Mapping[str, Path]) -> int:
    """Count what it takes to read a whole history, to its end."""
    with (
        serving(Server(messages=length)) as url,
        working(HISTORIES, replace(OURS, size=length), url, folders) as worker,
    ):
        take_turn(worker, 1)
        with urllib.request.urlopen(f"{url}/count") as answer:
            return int(answer.read())
