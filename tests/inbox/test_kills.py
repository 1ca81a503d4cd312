"""Workers that are killed: every text is handled and answered once, whatever the moment.

`INBOX_KILLS=20` makes the tests long: so many kills of each kind instead of a few.
"""

from __future__ import annotations

import os
import random
import subprocess
import time
from pathlib import Path

import pytest

from tests.inbox.world import World, is_alive, until

KILLS = int(os.environ.get("INBOX_KILLS", "2"))
IS_LONG = KILLS > 2
PEOPLE = 20 if IS_LONG else 8
TEXTS = 200 if IS_LONG else 40
LONGEST = 600 if IS_LONG else 60

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name != "posix", reason="SIGKILL"),
    pytest.mark.timeout(LONGEST + 60),
]

MOMENTS = [
    "before handle",
    "after handle",
    "before write_state",
    "after write_state",
    "before send",
    "after send",
    "after send, before look_up",
]


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_killed_at_random_moments(
    database: str,
    tmp_path: Path,
    forking: subprocess.Popen[str],
    workers: int,
) -> None:
    with World.opened(tmp_path, database, forking, faults=True) as world:
        for number in range(workers):
            world.start(f"worker-{number}")
        world.send_texts(TEXTS, PEOPLE)
        source = random.Random(workers)
        remaining = KILLS
        progress, next_kill = 0, 0.0

        def kill() -> None:
            nonlocal remaining, progress, next_kill
            # Only workers that have done something since the last kill: a start takes longer than this test may.
            if not remaining or len(world.records("start")) <= progress:
                return
            if not next_kill:
                next_kill = time.monotonic() + source.uniform(0, 0.4)
            if time.monotonic() >= next_kill:
                world.kill(f"worker-{source.randrange(workers)}")
                remaining, progress, next_kill = remaining - 1, len(world.records("start")), 0.0

        world.finish(TEXTS, between=kill, seconds=LONGEST)
        world.check(TEXTS, PEOPLE, unconfirmed=KILLS)
        assert IS_LONG or not remaining


@pytest.mark.parametrize("moment", MOMENTS)
def test_worker_that_dies_at_each_moment(
    database: str, tmp_path: Path, forking: subprocess.Popen[str], moment: str
) -> None:
    deaths = KILLS if IS_LONG else 1
    texts = 2 * deaths
    with World.opened(tmp_path, database, forking) as world:
        world.environment = {"DIE_AT": moment, "DEATHS": str(deaths)}
        world.send_texts(texts, 1)  # one at a time, so that a death interrupts no other text
        world.start("main")
        world.finish(texts, seconds=LONGEST)
        assert len(world.records("death")) == deaths * len(moment.split(", "))
        # Killed after the note, before the message: that it was not sent cannot be known.
        unconfirmed = deaths if moment == "before send" else 0
        world.check(texts, 1, unconfirmed=unconfirmed)
        assert len(world.items("unconfirmed")) == unconfirmed


def test_others_take_over_what_a_dead_worker_has_left(
    database: str, tmp_path: Path, forking: subprocess.Popen[str]
) -> None:
    with World.opened(tmp_path, database, forking) as world:
        world.environment = {"DIE_AT": "after handle"}
        world.send_texts(4, 1)
        world.start("one")
        until(lambda: world.records("death"))
        until(lambda: not is_alive(world.workers["one"]))
        del world.workers["one"]  # it never comes back
        world.start("two")
        world.finish(4)
        world.check(4, 1)
