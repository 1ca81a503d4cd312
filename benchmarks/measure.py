"""Let the contenders of a row take turns, and compare their times. It starts processes, and knows no library.

Others use the machine, too: so each round gives every contender a turn, the next in another order, and what is compared
is the two figures of one round. The server has a core of its own where there are two, and all contenders share another.
That favours a contender of two threads, which need not wake each other across cores then: without it our blocking call
came out at 0.82 and 1.24 of its peers' time, and not at 0.69 and 1.09.
"""

from __future__ import annotations

import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple, cast

from benchmarks.rows import Contender, Peer, Row, Server

HERE = Path(__file__).parent
LONGEST_TURN = 600
"""Seconds after which a contender has hung. The longest turn is an export, of a minute, or two on a busy machine."""
SCALE = {"µs": 1e6, "ms": 1e3, "s": 1.0, "MiB": 1 / 1024**2}


@dataclass(frozen=True, kw_only=True)
class Result:
    """Ours against one peer: a line of the table. Figures are in the row's unit, medians of all rounds."""

    row: str
    work: str
    peer: str
    unit: str
    per_second: bool
    compares: str
    ours: float
    theirs: float
    compared: float
    """The median of ours ÷ theirs, or of ours less theirs, of one round."""
    quartiles: tuple[float, float]
    """Its spread: between these lie half of the rounds."""
    cpu: float | None
    """The median of our CPU time ÷ theirs: what others do with the machine shows least in it."""
    goal: float | None
    rounds: int

    @property
    def is_met(self) -> bool | None:
        """True if the goal was reached; None without one."""
        return None if self.goal is None else self.compared <= self.goal


class Turn(NamedTuple):
    """What a contender tells of one turn."""

    figure: float
    """Seconds for one unit, or bytes."""
    cpu: float
    """The CPU time of the whole turn, in seconds."""


def measure(row: Row, folders: Mapping[str, Path]) -> list[Result]:
    """Measure a row.

    Args:
        row: What to measure. Peers that are not installed are left out; so is a row that needs what is not.
        folders: Where each library's `agentphone` is imported from; `ours` is that of all others, too.

    Returns:
        A result for each peer.
    """
    if row.needs is not None and not is_installed(row.needs):
        return []
    peers = [peer for peer in row.peers if _is_available(peer.library, folders)]
    contenders = [row.ours, *peers] if peers else []
    turns: dict[Contender, list[Turn]] = {contender: [] for contender in contenders}
    with ExitStack() as stack:
        url = row.path
        if not url.startswith("https:"):
            url = stack.enter_context(serving(row.server)) + url
        if not row.is_fresh:
            workers = {each: stack.enter_context(working(row, each, url, folders)) for each in contenders}
        for number in range(-int(row.warms_up), row.rounds):
            units = row.units if number >= 0 else max(1, row.units // 5)
            for contender in contenders if number % 2 else reversed(contenders):
                if row.is_fresh:
                    with working(row, contender, url, folders) as worker:
                        turn = take_turn(worker, units)
                else:
                    turn = take_turn(workers[contender], units)
                if number >= 0:  # the one before warms up
                    turns[contender].append(turn)
    return [_compare(row, peer, turns[row.ours], turns[peer]) for peer in peers]


def is_installed(package: str) -> bool:
    """Return whether a package can be imported."""
    return importlib.util.find_spec(package) is not None


def _is_available(library: str, folders: Mapping[str, Path]) -> bool:
    if library in ("vendor", "other"):
        return library in folders
    return library != "aiohttp" or is_installed(library)


def _compare(row: Row, peer: Peer, our_turns: Sequence[Turn], their_turns: Sequence[Turn]) -> Result:
    scale = SCALE[row.unit]
    ours, theirs = ([turn.figure * scale for turn in turns] for turns in (our_turns, their_turns))
    pairs = zip(ours, theirs, strict=True)
    compared = [mine / other if row.compares == "ratio" else mine - other for mine, other in pairs]
    cpu = statistics.median(mine.cpu / other.cpu for mine, other in zip(our_turns, their_turns, strict=True))
    low, _, high = statistics.quantiles(compared, n=4, method="inclusive") if len(compared) > 1 else compared * 3
    return Result(
        row=row.name,
        work=row.work,
        peer=peer.label,
        unit=row.unit,
        per_second=row.per_second,
        compares=row.compares,
        ours=statistics.median(ours),
        theirs=statistics.median(theirs),
        compared=statistics.median(compared),
        quartiles=(low, high),
        cpu=cpu if row.compares == "ratio" else None,
        goal=peer.goal,
        rounds=len(compared),
    )


@contextmanager
def serving(server: Server) -> Iterator[str]:
    """Serve on a core of its own, and yield the URL."""
    options = ("--conversations", server.conversations, "--messages", server.messages, "--delay", server.delay)
    with _process("server.py", *options, core=-1) as process:
        yield f"http://127.0.0.1:{cast('IO[str]', process.stdout).readline().strip()}"


@contextmanager
def working(row: Row, contender: Contender, url: str, folders: Mapping[str, Path]) -> Iterator[subprocess.Popen[str]]:
    """Start a contender at its job, on the core of the contenders."""
    size = row.size if contender.size is None else contender.size
    library = "ours" if contender.library == "other" else contender.library
    path = folders.get(contender.library, folders["ours"])
    with _process("contenders.py", contender.job or row.job, library, url, size, core=0, path=path) as process:
        yield process


def take_turn(worker: subprocess.Popen[str], units: int) -> Turn:
    """Let a contender do so many units, and return the figures that it prints."""
    bound = threading.Timer(LONGEST_TURN, worker.kill)
    bound.start()
    try:
        cast("IO[str]", worker.stdin).write(f"{units}\n")
        cast("IO[str]", worker.stdin).flush()
        said = cast("IO[str]", worker.stdout).readline()
    finally:
        bound.cancel()
    if not said:
        raise SystemExit(f"{' '.join(map(str, cast('list[str]', worker.args)[2:]))} ended or hung; its error is above.")
    figure, cpu = map(float, said.split())
    return Turn(figure, cpu)


@contextmanager
def _process(script: str, *arguments: object, core: int, path: Path | None = None) -> Iterator[subprocess.Popen[str]]:
    """Run one of the two scripts in an empty folder, on one core, the last or the first, until the context ends."""
    # Nothing from outside: a proxy would stand between some and the server, and not between others.
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("AGENTPHONE_")
        and not name.lower().endswith("_proxy")
        # Or ours alone would be compiled at each import: what pip installs has its bytecode.
        and name != "PYTHONDONTWRITEBYTECODE"
    }
    environment["PYTHONPATH"] = str(path or "")
    command = [sys.executable, "-P", str(HERE / script), *map(str, arguments)]
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=folder
        ) as process,
    ):
        try:
            if sys.platform == "linux":
                cores = sorted(os.sched_getaffinity(0))
                os.sched_setaffinity(process.pid, {cores[core]})
            yield process
        finally:
            process.kill()
