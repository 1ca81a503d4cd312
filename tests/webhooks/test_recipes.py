"""The recipes for webhooks, as the README shows them: real servers, driven by the sandbox.

Several people send many messages at once, and the agent's work fails every fifth time: each message is handled
exactly once, and the state is correct.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from agentphone import Client
from agentphone.sandbox import Sandbox
from agentphone.sandbox.server import running
from agentphone.webhooks import Webhook
from tests.support.helpers import sample
from tests.support.long import count
from tests.support.processes import ENVIRONMENT, PYTHON, SECONDS, run

RECIPES = Path(__file__).parents[1] / "recipes"
README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
SECRET = "whsec_of_the_tests"
AGENT = "+15555550100"
PEOPLE, TEXTS = count(8, 20), count(48, 200)

FAILING = """\
import inspect
import itertools
import json
import threading

import {recipe} as recipe

work, count, lock = recipe.think, itertools.count(1), threading.Lock()


def record_state(event, state):
    with lock:
        if next(count) % 5 == 0:
            raise RuntimeError("every fifth time")
        with open("carried.jsonl", "a") as file:
            record = [event.conversation_id, event.text, event.state(recipe.OrderState).texts, state.texts]
            file.write(json.dumps(record) + "\\n")


def think(event, state):
    record_state(event, state)
    return work(event, state)


recipe.think = think
"""
"""The recipe with work that fails every fifth time, and records the state in the payload each time."""

DYING = """\
import os
import signal

import {recipe} as recipe

recipe.LOCK_SECONDS = 5


def die_once(where):
    try:
        os.close(os.open(f"died in {{where}}", os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


work, mark = recipe.think, recipe.CacheDeliveryLog.mark


def think(event, state):
    work(event, state)
    die_once("think")


def mark_later(log, delivery_id):
    die_once("mark")
    mark(log, delivery_id)


recipe.think, recipe.CacheDeliveryLog.mark = think, mark_later
"""
"""The recipe with a worker that is killed once before it stores the state, and once before it marks the delivery."""

SETTINGS = """\
from pathlib import Path

SECRET_KEY = "of a test"
ALLOWED_HOSTS = ["127.0.0.1"]
ROOT_URLCONF = "{recipe}"
MIDDLEWARE = ["django.middleware.common.CommonMiddleware"]
DATABASES = {{
    "default": {{
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": Path(__file__).parent / "django.db",
        "OPTIONS": {{"timeout": 30, "transaction_mode": "IMMEDIATE"}},
    }}
}}
CACHES = {{
    "default": {{
        "BACKEND": "django.core.cache.backends.db.DatabaseCache",
        "LOCATION": "cache",
        "OPTIONS": {{"MAX_ENTRIES": 100000}},
    }}
}}
"""

GUNICORN = ["gunicorn", "served:application", "--bind", "127.0.0.1:0", "--workers", "2", "--threads", "4"]
UVICORN = ["uvicorn", "served:application", "--port", "0", "--lifespan", "off", "--no-access-log"]
WSGI = "from django.core.wsgi import get_wsgi_application\napplication = get_wsgi_application()\n"
ASGI = WSGI.replace("wsgi", "asgi")
SERVED = {
    "django_webhook": (WSGI, GUNICORN),
    "django_async_webhook": (ASGI, UVICORN),
    "starlette_webhook": ("from starlette_webhook import app as application\n", UVICORN),
}


@contextmanager
def serving(recipe: str, folder: Path, api: str, failing: str = FAILING) -> Iterator[str]:
    """Serve a recipe with failures, and yield the URL of its webhook."""
    application, command = SERVED[recipe]
    files = {
        f"{recipe}.py": (RECIPES / f"{recipe}.py").read_text(encoding="utf-8"),
        "failing.py": failing.format(recipe=recipe),
        "served.py": f"{application}import failing\n",
        "settings.py": SETTINGS.format(recipe=recipe),
    }
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    environment = ENVIRONMENT | {
        "PYTHONPATH": os.pathsep.join([ENVIRONMENT["PYTHONPATH"], str(folder)]),
        "DJANGO_SETTINGS_MODULE": "settings",
        "AGENTPHONE_BASE_URL": api,
        "AGENTPHONE_API_KEY": "any-key",
        "AGENTPHONE_WEBHOOK_SECRET": SECRET,
    }
    if "django" in recipe:
        prepare = [sys.executable, "-m", "django", "createcachetable"]
        subprocess.run(prepare, env=environment, cwd=folder, check=True, timeout=SECONDS)
    log = folder / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *command], stdout=output, stderr=output, env=environment, cwd=folder
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


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="gunicorn forks")
@pytest.mark.parametrize("recipe", SERVED)
def test_each_message_is_handled_exactly_once(recipe: str, tmp_path: Path) -> None:
    with (
        Sandbox(tmp_path / "box.db", retry_scale=0.2) as box,
        running(box) as api,
        serving(recipe, tmp_path, api) as url,
        Client("any-key", base_url=api) as client,
    ):
        box.set_webhook(url, SECRET)
        first = box.receive_sms(from_number="+15555550199", to_number=AGENT, body="Where is ORD-5 now?")
        wait_until_delivered(box)
        again = client.conversations.get(first["conversationId"])
        assert again.metadata == {"orderId": "ORD-5", "texts": 1}
        box.receive_sms(from_number="+15555550199", to_number=AGENT, body="Hello?")
        wait_until_delivered(box)
        record = [json.loads(line) for line in (tmp_path / "carried.jsonl").read_text().splitlines()]
        assert record == [
            [first["conversationId"], "Where is ORD-5 now?", 0, 0],
            [first["conversationId"], "Hello?", 1, 1],
        ]

        sent: Counter[str] = Counter()
        last: dict[str, str] = {}
        for number in range(TEXTS):
            person = f"+1555555{number % PEOPLE:04}"
            text = box.receive_sms(from_number=person, to_number=AGENT, body=f"It is ORD-{number % PEOPLE}")
            sent[text["conversationId"]] += 1
            last[text["conversationId"]] = f"ORD-{number % PEOPLE}"
        deliveries = wait_until_delivered(box)
        assert {delivery["status"] for delivery in deliveries} == {"delivered"}
        assert any(len(delivery["attempts"]) > 1 for delivery in deliveries), "no delivery was retried"
        for conversation in client.conversations.list():
            if conversation.id != first["conversationId"]:
                wanted = {"orderId": last[conversation.id], "texts": sent[conversation.id]}
                assert conversation.metadata == wanted
        assert sum(sent.values()) == TEXTS


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="gunicorn forks")
def test_killed_worker_loses_no_message(tmp_path: Path) -> None:
    with (
        Sandbox(tmp_path / "box.db", retry_scale=0.5) as box,
        running(box) as api,
        serving("django_webhook", tmp_path, api, DYING) as url,
        Client("any-key", base_url=api) as client,
    ):
        box.set_webhook(url, SECRET)
        # From one person, so that a worker has a single message when it dies.
        texts = [box.receive_sms(from_number="+15555550199", to_number=AGENT, body="Hi") for _ in range(4)]
        assert {delivery["status"] for delivery in wait_until_delivered(box)} == {"delivered"}
        assert {path.name for path in tmp_path.glob("died in *")} == {"died in think", "died in mark"}
        stored = client.conversations.get(texts[0]["conversationId"]).metadata
    assert stored == {"texts": 5}, "one message twice: its state was stored, but its delivery not yet marked"


SLOW = """\
import asyncio
import inspect
import os
import time

import {recipe} as recipe

work = recipe.think


def think(event, state):
    while not os.path.exists("continue"):
        time.sleep(0.01)
    with open("worked", "a") as file:
        file.write("once.")
    return work(event, state)


async def think_async(event, state):
    while not os.path.exists("continue"):
        await asyncio.sleep(0.01)
    await work(event, state)
    with open("worked", "a") as file:
        file.write("once.")


recipe.think = think_async if inspect.iscoroutinefunction(work) else think
"""
"""The recipe with work that lasts until a file exists."""


@pytest.mark.skipif(os.name != "posix", reason="gunicorn forks")
@pytest.mark.parametrize("recipe", SERVED)
def test_retry_during_the_work_is_handled_once(recipe: str, tmp_path: Path) -> None:
    with (
        Sandbox(tmp_path / "box.db", retry_scale=0.2) as box,
        running(box) as api,
        serving(recipe, tmp_path, api, SLOW) as url,
        Client("any-key", base_url=api) as client,
    ):
        box.set_webhook(url, SECRET, timeout=1.0)
        text = box.receive_sms(from_number="+15555550199", to_number=AGENT, body="Hi")
        deadline_at = time.monotonic() + SECONDS
        while len(box.deliveries()[0]["attempts"]) < 2:
            assert time.monotonic() < deadline_at
            time.sleep(0.05)
        (tmp_path / "continue").touch()
        wait_until_delivered(box)
        assert client.conversations.get(text["conversationId"]).metadata == {"texts": 1}
    assert (tmp_path / "worked").read_text() == "once."


LOCKS = """
import asyncio
from django.conf import settings
settings.configure()
from django.core.cache import cache
from tests.recipes import django_async_webhook, django_webhook

KEY = "agentphone:lock:conv_1"

def expire():
    assert not cache.add(KEY, "mine")
    cache.set(KEY, "of another worker")

async def hold(during):
    async with django_async_webhook.one_at_a_time("conv_1"):
        during()

def hold_blocking(during):
    with django_webhook.one_at_a_time("conv_1"):
        during()

for hold_it in (hold_blocking, lambda during: asyncio.run(hold(during))):
    hold_it(lambda: None)
    assert cache.get(KEY) is None
    hold_it(expire)
    assert cache.get(KEY) == "of another worker"
    cache.clear()
"""


def test_expired_lock_is_left_to_its_new_owner() -> None:
    done = run(*PYTHON, "-c", LOCKS, AGENTPHONE_API_KEY="any-key", AGENTPHONE_WEBHOOK_SECRET=SECRET)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("recipe", SERVED)
def test_readme_shows_each_recipe(recipe: str) -> None:
    text = (RECIPES / f"{recipe}.py").read_text(encoding="utf-8")
    assert text.startswith(f"# {recipe}.py\n")
    assert f"```python\n{text}```\n" in README


@pytest.mark.skipif(os.name != "posix", reason="gunicorn forks")
@pytest.mark.parametrize("recipe", SERVED)
def test_delivery_of_another_sender_is_rejected(recipe: str, tmp_path: Path) -> None:
    with Sandbox(retry_scale=0) as box, running(box) as api, serving(recipe, tmp_path, api) as url:
        box.set_webhook(url, "whsec_of_another_sender")
        box.receive_sms(from_number="+15555550199", to_number=AGENT, body="Hello")
        [delivery] = wait_until_delivered(box)
        body = sample("webhook_message")
        signed = Webhook(SECRET).sign(body)
        del signed["X-Webhook-ID"]
        for _ in range(2):  # without an id a retry could not be recognized
            assert httpx.post(url, content=body, headers=signed, timeout=SECONDS).status_code == 400
    assert [attempt["status"] for attempt in delivery["attempts"]] == [400]  # final
    assert delivery["status"] == "failed"
    assert not (tmp_path / "carried.jsonl").exists()
