"""Arbitrary requests get one of the documented responses, and never break later ones."""

import asyncio
import json
from collections.abc import MutableMapping
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from agentphone.sandbox import Sandbox
from tests.support.long import count

from .helpers import ADA, AGENT

NOBODY = "http://127.0.0.1:1/"
segments = st.sampled_from(
    [b"v1", b"conversations", b"messages", b"sandbox", b"webhook", b"ID", b"", b"%2F", b"%", b"%00%ff", b".."]
)
known_paths = st.sampled_from(
    [
        [b"v1", b"conversations"],
        [b"v1", b"conversations", b"ID"],
        [b"v1", b"conversations", b"ID", b"messages"],
        [b"v1", b"conversations", b"ID", b"typing"],
        [b"v1", b"messages"],
        [b"v1", b"messages", b"MESSAGE", b"reactions"],
        [b"sandbox", b"messages"],
        [b"sandbox", b"messages", b"MESSAGE", b"reactions"],
        [b"sandbox", b"faults"],
        [b"sandbox", b"webhook"],
        [b"sandbox", b"deliveries"],
    ]
)
names = st.sampled_from([b"limit", b"offset", b"message_limit", b"before", b"after", b"other"])
timestamps = st.datetimes().map(lambda moment: moment.isoformat().encode() + b"Z")
values = st.one_of(st.binary(max_size=8), st.integers().map(lambda number: str(number).encode()), timestamps)
scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text())
trees = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=10)
fields = st.sampled_from(
    [
        "metadata",
        "direction",
        "from",
        "to",
        "body",
        "at",
        "url",
        "secret",
        "contextLimit",
        "timeout",
        "channel",
        "mediaUrls",
        "group",
        "from_number",
        "to_number",
        "recipients",
        "number_id",
        "media_urls",
        "send_style",
        "reply_to_message_id",
        "reaction",
        "status",
        "kind",
        "times",
        "retryAfter",
    ]
)
known_values = ["inbound", "outbound", ADA, AGENT, NOBODY, "whatsapp", "love", "👍", [ADA, "a@b.example"], "reset", 503]
objects = st.dictionaries(fields, st.one_of(trees, st.sampled_from(known_values)))
# Mostly valid, so that sends get past the first checks.
sends = objects.map(lambda body: {"from_number": AGENT, "to_number": ADA, "body": "Hi", "reaction": "love"} | body)
bodies = st.one_of(st.binary(max_size=20), (objects | sends).map(lambda body: json.dumps(body).encode()))


@settings(max_examples=count(100, 2000), deadline=None)
@given(
    method=st.sampled_from(["GET", "PATCH", "POST", "PUT", "HEAD", "X"]),
    path=known_paths | st.lists(segments, max_size=5),
    query=st.lists(st.tuples(names, values), max_size=3),
    body=bodies,
)
def test_arbitrary_requests_get_documented_responses(
    method: str, path: list[bytes], query: list[tuple[bytes, bytes]], body: bytes
) -> None:
    with Sandbox() as sandbox:
        message = sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="Hi", channel="imessage")
        known = message["conversationId"].encode()
        ids = {b"ID": known, b"MESSAGE": message["id"].encode()}
        raw_path = b"/" + b"/".join(ids.get(segment, segment) for segment in path)
        sent: list[MutableMapping[str, Any]] = []

        async def receive() -> MutableMapping[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: MutableMapping[str, Any]) -> None:
            sent.append(message)

        def call(method: str, raw_path: bytes, query_string: bytes) -> int:
            scope = {
                "type": "http",
                "method": method,
                "path": "unused",
                "raw_path": raw_path,
                "query_string": query_string,
                "headers": [(b"authorization", b"Bearer any"), (b"x-odd", b"\xff")],
            }
            sent.clear()
            asyncio.run(sandbox.app(scope, receive, send))
            start, content = sent
            assert b"x-request-id" in dict(start["headers"])
            if (method, raw_path) == ("GET", b"/"):  # the page
                assert content["body"].startswith(b"<!doctype html>")
                return 200
            if (method, raw_path) == ("HEAD", b"/"):
                return 200
            content_json = json.loads(content["body"], parse_constant=lambda name: 1 / 0)
            assert (start["status"] < 300) is ("error" not in content_json)
            status: int = start["status"]
            return status

        assert call(method, raw_path, b"&".join(b"=".join(pair) for pair in query)) in (200, 201, 400, 404, 405, 422)
        sandbox.faults.clear()
        # What was accepted must not break the responses to other requests.
        assert call("GET", b"/v1/conversations", b"") == 200
        assert call("GET", b"/v1/conversations/" + known, b"") == 200
