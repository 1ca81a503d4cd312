"""Workers that are killed: every text is handled and answered once, whatever the moment.

`AGENTPHONE_LONG=1` makes the tests long: more kills, and more texts.
"""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest

from tests.inbox.world import World, until
from tests.support import long
from tests.support.processes import SECONDS

KILLS = long.count(2, 20)
"""How often a worker is killed at a random moment; half as often at each moment that is named."""
PEOPLE = long.count(8, 20)
TEXTS = long.count(8, 10)
"""How many arrive before each kill, and after the last one."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name != "posix", reason="SIGKILL"),
    pytest.mark.timeout(long.count(600, 6000)),
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
def test_workers_killed_at_random_moments(database: str, tmp_path: Path, workers: int) -> None:
    source = random.Random(workers)
    with World.opened(tmp_path, database, faults=True) as world:
        for number in range(workers):
            world.start(f"worker-{number}")
        for kill in range(KILLS + 1):
            calls = len(world.records("start"))
            world.send_texts([f"text {kill} {number}" for number in range(TEXTS)], people=PEOPLE)
            if kill < KILLS:
                world.wait_for_calls(calls + 1)
                time.sleep(source.uniform(0, 0.3))
                world.restart(f"worker-{source.randrange(workers)}")
        world.finish((KILLS + 1) * TEXTS)
        # Those that were about to be sent at a kill: one of each conversation at most.
        world.check((KILLS + 1) * TEXTS, unconfirmed=KILLS * PEOPLE)


def test_worker_that_dies_at_each_moment(database: str, tmp_path: Path) -> None:
    texts = [f"{moment}, {number}" for number in range(KILLS // 2) for moment in MOMENTS] + ["the last"]
    with World.opened(tmp_path, database) as world:
        world.send_texts(texts, people=1)  # one at a time, so that a death interrupts no other text
        world.start("main")
        world.finish(len(texts))
        deaths = [moment for text in texts for moment in text.split(", ")[:-1]]
        assert sorted(record["moment"] for record in world.records("death")) == sorted(deaths)
        # Killed after the note, before the message: that it was not sent cannot be known.
        unconfirmed = [text for text in texts if text.startswith("before send")]
        assert sorted(item["text"] for item in world.items("unconfirmed")) == sorted(unconfirmed)
        world.check(len(texts), unconfirmed=len(unconfirmed))


def test_others_take_over_what_a_dead_worker_has_left(database: str, tmp_path: Path) -> None:
    with World.opened(tmp_path, database) as world:
        world.send_texts(["after handle", "two", "three"], people=1)
        world.start("one")
        until(lambda: world.records("death"))
        world.workers.pop("one").join(SECONDS)  # it never comes back
        world.start("two")
        world.finish(3)
        world.check(3)
