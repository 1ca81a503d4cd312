"""The benchmarks still run: the short rows once, without the network and without a word about how long it took."""

from __future__ import annotations

import json
import re
import sys
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from benchmarks.growth import Growth, Point
from benchmarks.measure import Result
from benchmarks.report import Report
from benchmarks.rows import ROWS
from benchmarks.server import BEGIN, Project
from tests.support.long import LONG
from tests.support.processes import run

ROOT = Path(__file__).parents[2]
SHORT = ["call", "second-client"] + (["blocking-call", "decode-messages"] if LONG else [])
"""One row whose contenders take turns, and one that starts each anew."""


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


def test_it_measures_the_inbox() -> None:
    done = run(sys.executable, "-m", "benchmarks.inbox", "--texts", "10", cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 5


def test_what_the_server_shows_before_an_instant_is_what_came_before_it() -> None:
    project = Project(conversations=0, messages=10)
    for tick in range(-2, 25):
        before = BEGIN + timedelta(seconds=tick / 2)
        page = body(project.answer(f"/v1/conversations/c/messages?limit=3&before={before.isoformat()}Z"))
        shown = [datetime.fromisoformat(item["receivedAt"]).replace(tzinfo=None) for item in page["data"]]
        earlier = [instant for number in range(10) if (instant := BEGIN + timedelta(seconds=number)) < before]
        assert shown == earlier[::-1][:3]
        assert page["hasMore"] == (len(earlier) > 3)


def test_the_server_counts_what_it_answers() -> None:
    project = Project(conversations=3, messages=0)
    for _ in range(2):
        assert len(body(project.answer("/v1/conversations?limit=2&offset=2"))["data"]) == 1
    assert project.answer("/count").endswith(b"\r\n\r\n2")


def result(row: str, *, ours: float, goal: float | None) -> Result:
    return Result(
        row=row,
        work=f"the work of {row}",
        peer="a peer",
        size=1,
        unit="µs",
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
GROWTH = Report(
    machine="a machine",
    took=1,
    results=[],
    growth=Growth(
        histories=[Point(contender="ours", size=size, time=size, requests=size) for size in (100, 401)],
        in_flight=[Point(contender=name, size=size, time=9) for size in (1, 50) for name in ("ours", "a peer")],
    ),
)


def test_the_table_tells_which_goals_are_met() -> None:
    first, second, third = REPORT.text().splitlines()[1:4]
    assert " ".join(first.split()) == "the work of a a peer 50 µs 100 µs 0.50 0.50 to 0.51 0.25 ≤ 0.5 met"
    assert second.endswith(" missed")
    assert third.endswith(" 0.26")


def test_the_growth_table_tells_requests_beside_pages() -> None:
    assert "| 401 messages | ours | 401 ms | 401 | 3 |" in GROWTH.text(markdown=True).splitlines()


@pytest.mark.parametrize("report", [REPORT, GROWTH], ids=["rows", "growth"])
def test_the_picture_is_the_same_for_the_same_figures(report: Report, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for name in ("one.svg", "two.svg"):
        report.draw(tmp_path / name)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()


def test_the_names_of_the_rows_are_unique() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS)


def test_the_readme_tells_of_every_row_against_every_peer() -> None:
    speed = (ROOT / "README.md").read_text(encoding="utf-8").partition("\n## Speed\n")[2].partition("\n## ")[0]
    told = [[cell.strip() for cell in line.split("|")[1:3]] for line in speed.splitlines() if line.startswith("|")]
    assert told[2:] == [
        [row.work if number == 0 else "", peer.label] for row in ROWS for number, peer in enumerate(row.peers)
    ]
    for name in re.findall(r"\(benchmarks/(\w+\.svg)\)", speed):
        assert (ROOT / "benchmarks" / name).exists()
