"""Recipes of the README and the guides, served as they stand there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from agentphone.sandbox import Sandbox
from tests.support.processes import ENVIRONMENT, SECONDS

RECIPES = Path(__file__).parents[1] / "recipes"
SECRET = "whsec_of_the_tests"
GUNICORN = ("gunicorn", "served:application", "--bind", "127.0.0.1:0", "--workers", "2", "--threads", "4")
GUNICORN_SETTINGS = "control_socket_disable = True\n"
"""The contents of `gunicorn.conf.py`: all servers would share a socket in the user's home. Old versions ignore it."""
UVICORN = ("uvicorn", "served:application", "--port", "0", "--lifespan", "off", "--no-access-log")


def environment_of(folder: Path, api: str) -> dict[str, str]:
    """Return the environment of a program in a folder, with the sandbox as its account."""
    return ENVIRONMENT | {
        "PYTHONPATH": os.pathsep.join([ENVIRONMENT["PYTHONPATH"], str(folder)]),
        "AGENTPHONE_BASE_URL": api,
        "AGENTPHONE_API_KEY": "any-key",
        "AGENTPHONE_WEBHOOK_SECRET": SECRET,
        "AGENTPHONE_INBOX_DATABASE": f"sqlite:///{folder / 'inbox.db'}",
        "DJANGO_SETTINGS_MODULE": "django_inbox",
        "DJANGO_SECRET_KEY": "of a test",
    }


@contextmanager
def serving_recipe(recipe: str, folder: Path, api: str, command: Sequence[str]) -> Iterator[str]:
    """Serve `served:application`, a file of the folder that imports the recipe, and yield the URL of its webhook."""
    for name in (recipe, "bot"):
        shutil.copy(RECIPES / f"{name}.py", folder)
    (folder / "gunicorn.conf.py").write_text(GUNICORN_SETTINGS, encoding="utf-8")
    log = folder / f"{recipe}.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            stdout=output,
            stderr=output,
            env=environment_of(folder, api),
            cwd=folder,
        )
    try:
        deadline_at = time.monotonic() + SECONDS
        while not (found := re.search(r"http://127\.0\.0\.1:\d+", log.read_text())):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline_at, log.read_text()
            time.sleep(0.05)
        yield f"{found[0]}/agentphone"
    finally:
        process.terminate()
        try:
            process.wait(SECONDS)
        finally:
            process.kill()


def wait_until_delivered(box: Sandbox) -> list[dict[str, Any]]:
    """Wait until no delivery is pending, and return all."""
    deadline_at = time.monotonic() + SECONDS
    while True:
        deliveries = box.deliveries(1000)
        if all(delivery["status"] != "pending" for delivery in deliveries):
            return deliveries
        assert time.monotonic() < deadline_at, deliveries
        time.sleep(0.05)
