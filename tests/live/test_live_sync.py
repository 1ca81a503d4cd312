"""`follow` and `watch` through the sync client: loops, threads and Ctrl-C."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import IO, cast

import pytest

from agentphone import (
    Client,
    Stream,
)
from agentphone.sandbox import Sandbox
from agentphone.sandbox.server import running
from tests.live.support import (
    AGENT,
    PERSON,
    Phone,
)
from tests.support.forked import PIPE, Forked
from tests.support.helpers import KEY
from tests.support.processes import ENVIRONMENT, SECONDS


def test_sync_client_follows_and_watches() -> None:
    with Sandbox() as sandbox, Client(KEY, base_url="https://sandbox.test", transport=sandbox.transport()) as client:
        phone = Phone(sandbox)
        conversation = phone.text("old")
        follow = client.conversations.follow(conversation, after=phone.now, poll_interval=0.01)
        watch = client.conversations.watch(after=phone.now, poll_interval=0.01)
        assert isinstance(follow, Stream)
        for number in range(5):
            phone.text(str(number))
        assert [next(follow).body for _ in range(2)] == ["0", "1"]
        seen = []
        for found, item in watch:
            assert found.id == conversation
            seen.append(item.body)
            if len(seen) == 5:
                break
        assert seen == ["0", "1", "2", "3", "4"]
        # Each step continues where the one before ended.
        assert [next(follow).body for _ in range(3)] == ["2", "3", "4"]


def test_closing_a_stream_ends_the_loop_of_another_thread() -> None:
    with Sandbox() as sandbox, Client(KEY, base_url="https://sandbox.test", transport=sandbox.transport()) as client:
        conversation = Phone(sandbox).text("old")
        stream = client.conversations.follow(conversation, poll_interval=0.05)
        ended = threading.Event()

        def read() -> None:
            for _ in stream:
                pass
            ended.set()

        thread = threading.Thread(target=read)
        thread.start()
        while not sandbox.requests:
            ended.wait(0.01)
        stream.close()
        assert ended.wait(SECONDS)
        thread.join()
        assert list(stream) == []


ENDED_BY_CTRL_C = """\
import sys, time
from agentphone import Client

client = Client("key", base_url=sys.argv[1])
try:
    for message in client.conversations.follow(sys.argv[2], poll_interval=0.05, max_poll_interval=0.05):
        print(message.body, flush=True)
except KeyboardInterrupt:
    print("ended", flush=True)
    sys.stdin.read()
"""


@pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
def test_ctrl_c_ends_a_loop_and_all_polling() -> None:
    with Sandbox() as sandbox, running(sandbox) as url:
        conversation = Phone(sandbox).text("old")
        with Forked(ENDED_BY_CTRL_C, url, conversation, stdin=PIPE, stdout=PIPE, env=ENVIRONMENT) as process:
            try:
                output = cast("IO[str]", process.stdout)
                while len(sandbox.requests) < 5:
                    assert process.poll() is None
                    time.sleep(0.01)
                sandbox.receive_sms(from_number=PERSON, to_number=AGENT, body="new")
                assert output.readline() == "new\n"
                process.send_signal(signal.SIGINT)
                assert output.readline() == "ended\n"
                time.sleep(0.2)  # the last request has arrived
                count = len(sandbox.requests)
                time.sleep(1.0)  # time for twenty polls
                assert len(sandbox.requests) == count
            finally:
                process.kill()
