"""The benchmarks still run: every job once, without the network and whatever the figures are."""

from __future__ import annotations

import json
import re
import socket
import sys
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from benchmarks.measure import Result, is_installed, measure, serving
from benchmarks.report import Report
from benchmarks.rows import PICTURE, ROWS, Peer, Row, Server, large_rows, quickly
from benchmarks.server import BEGIN, Project
from tests.support.processes import run

ROOT = Path(__file__).parents[2]
SHORT = ["decode-messages", "second-client"]
"""One row whose contenders take turns, and one that starts each anew."""
SMALL = {row.name: row for row in large_rows(1000)} | {"memory": large_rows(10_000)[-1]}
"""The peer of `memory` reads 10,000 messages."""
JOBS = {row.job: row for row in ROWS if row.name not in SHORT}
"""A row for each of the other jobs."""
ONE_PEER = {"inbox.work": slice(0, 1), "inbox.answer": slice(1, 2)}
"""These two have the same two peers, and each takes a second to start."""


def body(answer: bytes) -> dict[str, Any]:
    head, _, text = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert f"Content-Length: {len(text)}".encode() in head
    decoded: dict[str, Any] = json.loads(text)
    return decoded


@pytest.mark.slow
def test_it_measures_rows_and_writes_them_as_a_table_and_as_json(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    rows = [argument for name in SHORT for argument in ("--row", name)]
    # Measured against itself, so that each row has a peer where nothing else is installed.
    options = ["--quick", "--rounds", "1", "--without-vendor", "--against", ".", "--json", str(path)]
    done = run(sys.executable, "-m", "benchmarks", *rows, *options, cwd=ROOT)
    assert done.returncode in (0, 1), done.stderr
    assert "Traceback" not in done.stderr
    results = json.loads(path.read_text(encoding="utf-8"))["results"]
    assert {result["row"] for result in results} == set(SHORT)
    assert all(
        result["ours"] > 0 and result["theirs"] > 0 and result["cpu"] > 0 and result["rounds"] == 1
        for result in results
    )
    assert all(result["work"] in done.stdout and result["peer"] in done.stdout for result in results)


@pytest.mark.slow
@pytest.mark.parametrize("row", JOBS.values(), ids=JOBS)
def test_every_job_runs(row: Row) -> None:
    row = SMALL.get(row.name) or replace(row, units=min(row.units, 5))
    missing = {"vendor"} if is_installed("aiohttp") else {"vendor", "aiohttp"}
    peers = [peer for peer in row.peers if peer.library not in missing][ONE_PEER.get(row.job, slice(None))]
    peers = peers or [Peer(label="itself", library="other")]
    results = measure(replace(row, peers=tuple(peers), rounds=1, warms_up=False), {"ours": ROOT, "other": ROOT})
    assert [result.peer for result in results] == [peer.label for peer in peers]
    assert all(result.ours > 0 and result.theirs > 0 for result in results)


def test_a_row_without_the_package_that_it_needs_is_left_out() -> None:
    assert measure(replace(ROWS[0], needs="not_installed"), {"ours": ROOT}) == []


def test_what_the_server_shows_before_an_instant_is_what_came_before_it() -> None:
    project = Project(conversations=0, messages=10)
    for tick in range(-2, 25):
        before = BEGIN + timedelta(seconds=tick / 2)
        page = body(project.answer("GET", f"/v1/conversations/c/messages?limit=3&before={before.isoformat()}Z"))
        shown = [datetime.fromisoformat(item["receivedAt"]).replace(tzinfo=None) for item in page["data"]]
        earlier = [instant for number in range(10) if (instant := BEGIN + timedelta(seconds=number)) < before]
        assert shown == earlier[::-1][:3]
        assert page["hasMore"] == (len(earlier) > 3)


def test_the_server_pages_its_list() -> None:
    project = Project(conversations=3, messages=0)
    assert len(body(project.answer("GET", "/v1/conversations?limit=2&offset=2"))["data"]) == 1


def test_the_server_answers_when_the_whole_body_has_arrived() -> None:
    with serving(Server()) as url, socket.create_connection(("127.0.0.1", urlsplit(url).port)) as connection:
        for part in (b"POST /v1/messages HTTP/1.1\r\nContent-Length: 4\r\n\r\n{", b'"}', b"}GET /v1/conv"):
            connection.sendall(part)
        connection.sendall(b"ersations HTTP/1.1\r\n\r\n")
        received = b""
        while received.count(b"HTTP/1.1 200 OK") < 2:
            received += (chunk := connection.recv(65536))
            assert chunk, received
        assert received.index(b'"msg_sent"') < received.index(b'"hasMore"')


def result(row: str, *, ours: float, goal: float | None) -> Result:
    return Result(
        row=row,
        work=f"the work of {row}",
        peer="a peer",
        unit="µs",
        per_second=False,
        compares="ratio",
        ours=ours,
        theirs=100,
        compared=ours / 100,
        quartiles=(ours / 101, ours / 99),
        cpu=ours / 200,
        goal=goal,
        rounds=3,
    )


REPORT = Report(
    machine="a machine",
    took=1,
    results=[result("a", ours=50, goal=0.5), result("b", ours=51, goal=0.5), result("c", ours=51, goal=None)],
)


def test_the_table_tells_which_goals_are_met() -> None:
    first, second, third = REPORT.text().splitlines()[1:4]
    assert " ".join(first.split()) == "the work of a a peer 50 µs 100 µs 0.50 0.50 to 0.51 0.25 ≤ 0.5 met"
    assert second.endswith(" missed")
    assert third.endswith(" 0.26")


def test_the_table_tells_how_many_units_a_second_that_is() -> None:
    report = replace(REPORT, results=[replace(REPORT.results[0], per_second=True)])
    assert "| 50 µs, 20,000/s | 100 µs, 10,000/s | 0.50 |" in report.text(markdown=True)


def test_the_picture_is_small_and_the_same_for_the_same_figures(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    results = [
        replace(result(row.name, ours=70, goal=peer.goal), work=row.work, peer=peer.label)
        for row in ROWS
        for peer in row.peers
    ]
    for name in ("one.svg", "two.svg"):
        replace(REPORT, results=results).draw(tmp_path / name, rows=PICTURE)
    picture = (tmp_path / "one.svg").read_bytes()
    assert picture == (tmp_path / "two.svg").read_bytes()
    assert len(picture) < 100_000
    shown = {row.name for row in ROWS if f">{row.work} ".encode() in picture}
    assert shown == set(PICTURE)


def test_the_names_of_the_rows_are_unique() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS)
    assert len(PICTURE) == 6


def test_the_readme_shows_six_rows_that_exist() -> None:
    speed = (ROOT / "README.md").read_text(encoding="utf-8").partition("\n## Speed\n")[2].partition("\n## ")[0]
    told = [tuple(cell.strip() for cell in line.split("|")[1:3]) for line in speed.splitlines() if line.startswith("|")]
    assert len(told[2:]) == 6
    measured = (*ROWS, *map(quickly, ROWS))
    assert set(told[2:]) <= {(row.work, peer.label) for row in measured for peer in row.peers}
    for name in re.findall(r"\(benchmarks/(\w+\.svg)\)", speed):
        assert (ROOT / "benchmarks" / name).exists()
