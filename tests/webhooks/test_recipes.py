"""The recipe for webhooks without the inbox, as the README shows it: a real server, driven by the sandbox.

Six people send many messages at once, and the agent's work fails every fifth time: each message is handled exactly
once, and the state is correct.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import pytest

from agentphone import Client
from agentphone.sandbox import Sandbox
from agentphone.sandbox.server import running
from tests.support.long import count
from tests.support.recipes import GUNICORN, SECRET, serving_recipe, wait_until_delivered

AGENT = "+15555550100"
PEOPLE, TEXTS = 6, count(30, 300)

FAILING = """\
import itertools
import json
import threading

import bare_webhook

work, count, lock = bare_webhook.think, itertools.count(1), threading.Lock()


def think(event, state):
    with lock:
        if next(count) % 5 == 0:
            raise RuntimeError("every fifth time")
    work(event, state)
    with open("carried.jsonl", "a") as file:
        file.write(json.dumps([event.conversation_id, event.text]) + "\\n")


bare_webhook.think = think
application = bare_webhook.application
"""
"""The recipe with work that fails every fifth time."""


@pytest.mark.skipif(os.name != "posix", reason="gunicorn forks")
def test_each_message_is_handled_exactly_once(tmp_path: Path) -> None:
    (tmp_path / "served.py").write_text(FAILING)
    with (
        Sandbox(retry_scale=0.2) as box,
        running(box) as api,
        serving_recipe("bare_webhook", tmp_path, api, GUNICORN) as url,
        Client("any-key", base_url=api) as client,
    ):
        box.set_webhook(url, SECRET)
        sent: Counter[str] = Counter()
        for number in range(TEXTS):
            person = f"+1555555{number % PEOPLE:04}"
            text = box.receive_sms(from_number=person, to_number=AGENT, body=f"text {number}")
            sent[text["conversationId"]] += 1
        deliveries = wait_until_delivered(box)
        assert {delivery["status"] for delivery in deliveries} == {"delivered"}
        assert any(len(delivery["attempts"]) > 1 for delivery in deliveries), "no delivery was retried"
        for conversation in client.conversations.list():
            assert conversation.metadata == {"texts": sent[conversation.id]}
    handled = [json.loads(line)[1] for line in (tmp_path / "carried.jsonl").read_text().splitlines()]
    assert sorted(handled) == sorted(f"text {number}" for number in range(TEXTS))


@pytest.mark.skipif(os.name != "posix", reason="gunicorn forks")
def test_delivery_of_another_sender_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "served.py").write_text(FAILING)
    with (
        Sandbox(retry_scale=0) as box,
        running(box) as api,
        serving_recipe("bare_webhook", tmp_path, api, GUNICORN) as url,
    ):
        box.set_webhook(url, "whsec_of_another_sender")
        box.receive_sms(from_number="+15555550199", to_number=AGENT, body="Hello")
        [delivery] = wait_until_delivered(box)
    assert [attempt["status"] for attempt in delivery["attempts"]] == [503] * 6
    assert not (tmp_path / "carried.jsonl").exists()
