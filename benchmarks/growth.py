"""How cost grows: with the length of a history, and with how many calls are in flight. Rows of one size each."""

from __future__ import annotations

import sys
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.measure import Result, measure, serving, take_turn, working
from benchmarks.rows import AIOHTTP, HTTPX, OURS, VENDOR, Row, Server

LENGTHS = (100, 1_000, 10_000, 100_000, 1_000_000)
WIDTHS = (1, 2, 5, 10, 20, 50, 100, 200)
PAGE = 200
"""How many messages a request brings at most."""

HISTORY = Row(
    name="history",
    work="read a history",
    job="stream",
    ours=OURS,
    peers=(replace(VENDOR, label="vendor's loop"),),
    rounds=5,
    unit="ms",
)
IN_FLIGHT = Row(
    name="in-flight",
    work="calls in flight",
    job="calls",
    ours=OURS,
    peers=(VENDOR, HTTPX, AIOHTTP),
    rounds=5,
    unit="µs",
)


@dataclass(frozen=True, kw_only=True)
class Point:
    """What one size costs."""

    size: int
    results: list[Result]
    """Ours against each peer; a history in all, a call in flight by itself."""
    requests: int | None = None
    """How many of ours a history took."""


@dataclass(frozen=True, kw_only=True)
class Growth:
    """The points of both curves."""

    histories: list[Point]
    in_flight: list[Point]


def measure_growth(folders: Mapping[str, Path]) -> Growth:
    """Measure all points."""
    histories = []
    for length in LENGTHS:
        print(f"a history of {length:,} messages ...", file=sys.stderr, flush=True)
        is_long = length >= 100_000  # seconds for each turn
        row = replace(HISTORY, size=length, server=Server(messages=length), warms_up=not is_long)
        row = replace(row, rounds=1 if is_long else row.rounds)
        histories.append(Point(size=length, results=measure(row, folders), requests=_requests(row, folders)))
    in_flight = []
    for width in WIDTHS:
        print(f"{width} calls in flight ...", file=sys.stderr, flush=True)
        row = replace(IN_FLIGHT, size=width, units=max(200, 4 * width))
        in_flight.append(Point(size=width, results=measure(row, folders)))
    return Growth(histories=histories, in_flight=in_flight)


def _requests(row: Row, folders: Mapping[str, Path]) -> int:
    with serving(row.server) as url, working(row, row.ours, url, folders) as worker:
        take_turn(worker, 1)
        with urllib.request.urlopen(f"{url}/count") as answer:
            return int(answer.read())
