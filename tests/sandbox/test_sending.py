"""Sending over HTTP as the vendor documents it: messages, reactions and typing, in-process and over a connection."""

import json
from typing import Any

import anyio
import httpx
import pytest

from agentphone.sandbox import Behavior, Sandbox

from .helpers import ADA, AGENT, BEN

pytestmark = pytest.mark.anyio
SEND = {"from_number": AGENT, "to_number": ADA, "body": "On its way"}
PICTURE, VIDEO = "https://media.example/1.jpg", "https://media.example/2.mp4"


async def history(client: httpx.AsyncClient, conversation_id: str) -> list[Any]:
    """Return the messages of a conversation, newest first."""
    messages: list[Any] = (await client.get(f"/v1/conversations/{conversation_id}/messages")).json()["data"]
    return messages


async def conversations(client: httpx.AsyncClient) -> list[Any]:
    page: list[Any] = (await client.get("/v1/conversations")).json()["data"]
    return page


async def test_send_is_answered_and_stored(sandbox: Sandbox, any_client: httpx.AsyncClient) -> None:
    received = sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="Where is it?")
    sandbox.receive_sms(from_number=BEN, to_number=AGENT, body="Hi")
    response = await any_client.post("/v1/messages", json=SEND)
    sent = response.json()
    assert response.status_code == 200
    assert response.headers["x-request-id"]
    assert sent == {
        "id": sent["id"],
        "status": "sent",
        "channel": "sms",
        "from_number": AGENT,
        "to_number": ADA,
        "conversation_id": received["conversationId"],
        "media_urls": [],
        "reply_to_message_id": None,
        "reply_parent_unresolved": False,
    }
    [message, first] = await history(any_client, received["conversationId"])
    assert first["id"] == received["id"]
    assert message == {
        "id": sent["id"],
        "body": "On its way",
        "fromNumber": AGENT,
        "toNumber": ADA,
        "direction": "outbound",
        "receivedAt": message["receivedAt"],
        "channel": "sms",
        "mediaUrls": [],
        "status": "sent",
    }
    [front, _] = await conversations(any_client)
    assert (front["participant"], front["lastMessagePreview"], front["messageCount"]) == (ADA, "On its way", 2)
    request = sandbox.requests[0]
    assert (request.method, request.path, json.loads(request.body)) == ("POST", "/v1/messages", SEND)


async def test_every_send_is_a_message_of_its_own(client: httpx.AsyncClient) -> None:
    sent = [(await client.post("/v1/messages", json=SEND)).json() for _ in range(3)]
    [conversation] = await conversations(client)
    stored = await history(client, conversation["id"])
    assert [message["id"] for message in stored] == [each["id"] for each in reversed(sent)]


async def test_sender_is_the_number_else_its_id_else_its_agent(sandbox: Sandbox, client: httpx.AsyncClient) -> None:
    for number, person in ((AGENT, ADA), ("+15555550101", BEN)):
        sandbox.receive_sms(from_number=person, to_number=number, body="Hi")
    [other, first] = await conversations(client)
    senders = [
        ({"from_number": AGENT, "number_id": other["phoneNumberId"], "agent_id": other["agentId"]}, AGENT),
        ({"number_id": other["phoneNumberId"], "agent_id": first["agentId"]}, "+15555550101"),
        ({"agent_id": first["agentId"]}, AGENT),
        ({"from_number": "(555) 555-0177"}, "+15555550177"),
        ({"from_number": None, "number_id": first["phoneNumberId"]}, AGENT),
    ]
    for sender, number in senders:
        sent = await client.post("/v1/messages", json={"to_number": ADA, "body": "Hi", **sender})
        assert (sent.status_code, sent.json()["from_number"]) == (200, number)


@pytest.mark.parametrize(
    ("to_number", "stored"),
    [
        (ADA, ADA),
        ("(555) 555-0110", ADA),
        ("1-555-555-0110", ADA),
        (" +1 555.555.0110 ", ADA),
        ("+49 30 901820", "+4930901820"),
        ("72727", "72727"),
        ("ada@example.com", "ada@example.com"),
    ],
)
async def test_receiver_may_have_any_format(client: httpx.AsyncClient, to_number: str, stored: str) -> None:
    sent = (await client.post("/v1/messages", json=SEND | {"to_number": to_number})).json()
    [conversation] = await conversations(client)
    assert sent["to_number"] == conversation["participant"] == stored
    assert conversation["channel"] == sent["channel"] == ("imessage" if "@" in stored else "sms")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"to_number": None}, "to_number"),
        ({"recipients": [ADA, BEN]}, "to_number"),
        ({"to_number": ""}, "to_number"),
        ({"to_number": 5}, "to_number"),
        ({"to_number": "somebody"}, "to_number"),
        ({"to_number": "+1"}, "to_number"),
        ({"to_number": "9" * 500}, "to_number"),
        ({"to_number": "\ud800"}, "to_number"),
        ({"to_number": None, "recipients": []}, "recipients"),
        ({"to_number": None, "recipients": [ADA]}, "recipients"),
        ({"to_number": None, "recipients": [ADA, "(555) 555-0110"]}, "recipients"),
        ({"to_number": None, "recipients": [f"+1555555{index:04d}" for index in range(33)]}, "recipients"),
        ({"to_number": None, "recipients": ADA}, "recipients"),
        ({"to_number": None, "recipients": [ADA, None]}, "recipients"),
        ({"to_number": None, "recipients": [ADA, "grp_1"]}, "recipients"),
        ({"from_number": None}, "from_number"),
        ({"from_number": "ada@example.com"}, "from_number"),
        ({"from_number": None, "number_id": ""}, "number_id"),
        ({"from_number": None, "agent_id": 5}, "agent_id"),
        ({"body": ""}, "body"),
        ({"body": None}, "body"),
        ({"body": 5}, "body"),
        ({"body": "\ud800"}, "body"),
        ({"media_urls": []}, "media_urls"),
        ({"media_urls": PICTURE}, "media_urls"),
        ({"media_urls": [PICTURE] * 21}, "media_urls"),
        ({"media_urls": ["http://media.example/1.jpg"]}, "media_urls"),
        ({"media_urls": [PICTURE, "https://"]}, "media_urls"),
        ({"media_urls": [5]}, "media_urls"),
        ({"send_style": "sparkle"}, "send_style"),
        ({"send_style": ["love"]}, "send_style"),
        ({"channel": "sms"}, "channel"),
        ({"channel": "imessage"}, "channel"),
        ({"reply_to_message_id": ""}, "reply_to_message_id"),
        ({"reply_to_message_id": 5}, "reply_to_message_id"),
    ],
)
async def test_invalid_send_is_a_422_and_sends_nothing(
    sandbox: Sandbox, client: httpx.AsyncClient, change: dict[str, Any], field: str
) -> None:
    response = await client.post("/v1/messages", content=json.dumps(SEND | change))
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["type"]) == (422, "VALIDATION_ERROR", "validation_error")
    assert [detail["field"] for detail in error["details"]] == [field]
    assert error["message"].startswith(f"{field} ")
    assert await conversations(client) == []


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"reply_to_message_id": "msg_none"}, "NOT_FOUND"),
        ({"from_number": None, "number_id": "num_none"}, "PHONE_NUMBER_NOT_FOUND"),
        ({"from_number": None, "agent_id": "agt_none"}, "NOT_FOUND"),
        ({"to_number": "grp_none"}, "NOT_FOUND"),
    ],
)
async def test_unknown_id_is_a_404_and_sends_nothing(
    sandbox: Sandbox, any_client: httpx.AsyncClient, change: dict[str, Any], code: str
) -> None:
    message = sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="Hi")
    response = await any_client.post("/v1/messages", json=SEND | change)
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["type"]) == (404, code, "not_found_error")
    [conversation] = await conversations(any_client)
    assert conversation["messageCount"] == 1
    assert [each["id"] for each in await history(any_client, conversation["id"])] == [message["id"]]


async def test_media_make_an_sms_an_mms(sandbox: Sandbox, any_client: httpx.AsyncClient) -> None:
    sent = (await any_client.post("/v1/messages", json=SEND | {"body": "", "media_urls": [PICTURE, VIDEO]})).json()
    assert (sent["channel"], sent["media_urls"]) == ("mms", [PICTURE, VIDEO])
    sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="", media_urls=[PICTURE])
    [inbound, outbound] = await history(any_client, sent["conversation_id"])
    assert (outbound["body"], outbound["mediaUrls"], outbound["mediaUrl"]) == ("", [PICTURE, VIDEO], PICTURE)
    assert (inbound["channel"], inbound["mediaUrls"]) == ("mms", [PICTURE])
    assert [each["channel"] for each in await conversations(any_client)] == ["sms"]


async def test_recipients_create_a_group(sandbox: Sandbox, any_client: httpx.AsyncClient) -> None:
    body = {
        "number_id": None,
        "from_number": AGENT,
        "recipients": [ADA, "(555) 555-0111", "cy@example.com"],
        "body": "Hi",
    }
    sent = (await any_client.post("/v1/messages", json=body)).json()
    group = sent["to_number"]
    assert group.startswith("grp_")
    [conversation] = await conversations(any_client)
    assert conversation["id"] == sent["conversation_id"]
    shown = {key: conversation[key] for key in ("participant", "isGroup", "groupId", "groupName", "participants")}
    members = [{"identifier": ADA}, {"identifier": BEN}, {"identifier": "cy@example.com"}]
    assert shown == {
        "participant": group, "isGroup": True, "groupId": group, "groupName": None, "participants": members
    }  # fmt: skip
    sandbox.receive_sms(from_number=BEN, to_number=AGENT, body="Hello", group=group)
    again = (await any_client.post("/v1/messages", json=SEND | {"to_number": group})).json()
    assert again["conversation_id"] == sent["conversation_id"]
    [last, inbound, first] = await history(any_client, sent["conversation_id"])
    assert (last["toNumber"], first["toNumber"]) == (group, group)
    assert (inbound["fromNumber"], inbound["senderIdentifier"], inbound["toNumber"]) == (BEN, BEN, AGENT)
    # A number has its own groups, and each send to recipients creates one.
    other = await any_client.post("/v1/messages", json=SEND | {"to_number": group, "from_number": "+15555550101"})
    assert other.status_code == 404
    assert (await any_client.post("/v1/messages", json=body)).json()["to_number"] != group
    for sender, chosen in (("+15555550999", group), (ADA, "grp_none")):
        with pytest.raises(LookupError, match="group"):
            sandbox.receive_sms(from_number=sender, to_number=AGENT, body="Hi", group=chosen)


async def test_whatsapp_is_a_thread_of_its_own(sandbox: Sandbox, any_client: httpx.AsyncClient) -> None:
    text = sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="by SMS")
    chat = sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="by WhatsApp", channel="whatsapp")
    assert text["conversationId"] != chat["conversationId"]
    for extra, conversation_id in (({}, text["conversationId"]), ({"channel": "whatsapp"}, chat["conversationId"])):
        sent = (await any_client.post("/v1/messages", json=SEND | extra)).json()
        assert sent["conversation_id"] == conversation_id
        assert sent["channel"] == extra.get("channel", "sms")
    found = {each["id"]: (each["channel"], each["messageCount"]) for each in await conversations(any_client)}
    assert found == {text["conversationId"]: ("sms", 2), chat["conversationId"]: ("whatsapp", 2)}


async def test_conversation_has_the_channel_of_its_latest_message(sandbox: Sandbox, client: httpx.AsyncClient) -> None:
    seen = []
    for channel in (None, "imessage", None, "mms", None):
        message = sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="Hi", channel=channel)
        [conversation] = await conversations(client)
        sent = (await client.post("/v1/messages", json=SEND)).json()
        seen.append((message["channel"], conversation["channel"], sent["channel"]))
    assert seen == [
        ("sms", "sms", "sms"),
        ("imessage", "imessage", "imessage"),
        ("imessage", "imessage", "imessage"),
        ("mms", "sms", "sms"),
        ("sms", "sms", "sms"),
    ]


@pytest.mark.parametrize("channel", ["sms", "imessage"])
async def test_reply_names_its_parent(sandbox: Sandbox, any_client: httpx.AsyncClient, channel: str) -> None:
    """SMS ignores threading and effects, and refuses neither."""
    parent = sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="Where?", channel=channel, media_urls=[PICTURE])
    body = SEND | {"reply_to_message_id": parent["id"], "send_style": "confetti"}
    sent = (await any_client.post("/v1/messages", json=body)).json()
    assert (sent["reply_to_message_id"], sent["reply_parent_unresolved"]) == (parent["id"], False)
    [message, _] = await history(any_client, sent["conversation_id"])
    expected = {"messageId": parent["id"], "message": "Where?", "mediaUrls": [PICTURE]}
    assert message.get("replyTo") == (expected if channel == "imessage" else None)


async def test_parent_of_another_conversation_is_unresolved(sandbox: Sandbox, client: httpx.AsyncClient) -> None:
    parent = sandbox.receive_sms(from_number=BEN, to_number=AGENT, body="Hi", channel="imessage")
    sent = (await client.post("/v1/messages", json=SEND | {"reply_to_message_id": parent["id"]})).json()
    assert sent["reply_parent_unresolved"]
    [message] = await history(client, sent["conversation_id"])
    assert "replyTo" not in message


REACTIONS = ["love", "like", "dislike", "laugh", "emphasize", "question", "👍", "❤️", "👨‍👩‍👧", "🇩🇪", "1️⃣", "👋🏽"]


@pytest.mark.parametrize("reaction", REACTIONS)
async def test_reaction_is_answered_and_stored(sandbox: Sandbox, client: httpx.AsyncClient, reaction: str) -> None:
    message = sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="Hi", channel="imessage")
    path = f"/v1/messages/{message['id']}/reactions"
    response = await client.post(path, json={"reaction": reaction})
    added = response.json()
    assert response.status_code == 200
    assert added == {
        "id": added["id"], "reaction_type": reaction, "message_id": message["id"], "channel": "imessage"
    }  # fmt: skip
    conversation = (await client.get(f"/v1/conversations/{message['conversationId']}")).json()
    [shown] = conversation["messages"]
    [stored] = shown["reactions"]
    assert stored == {
        "id": added["id"],
        "reactionType": reaction,
        "fromNumber": AGENT,
        "direction": "outbound",
        "createdAt": stored["createdAt"],
    }
    assert conversation["messageCount"] == 1


@pytest.mark.parametrize(
    "reaction", [None, "", "LOVE", "lovely", "a", "1", "👍👍", "👍 ", "あ", "🇩", 5, ["love"], "\ud800"]
)
async def test_other_reaction_is_a_422(sandbox: Sandbox, client: httpx.AsyncClient, reaction: object) -> None:
    message = sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="Hi", channel="imessage")
    for prefix in ("/v1", "/sandbox"):
        path = f"{prefix}/messages/{message['id']}/reactions"
        response = await client.post(path, content=json.dumps({"reaction": reaction}))
        assert response.status_code == 422
        assert [detail["field"] for detail in response.json()["error"]["details"]] == ["reaction"]
    assert "reactions" not in (await history(client, message["conversationId"]))[0]


async def test_reactions_add_up(sandbox: Sandbox, any_client: httpx.AsyncClient) -> None:
    message = sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="Hi", channel="whatsapp")
    path = f"/v1/messages/{message['id']}/reactions"
    for reaction in ("love", "👍"):
        assert (await any_client.post(path, json={"reaction": reaction})).status_code == 200
    own = sandbox.receive_reaction(message["id"], "question")
    assert (own["channel"], own["messageId"]) == ("whatsapp", message["id"])
    response = await any_client.post(f"/sandbox/messages/{message['id']}/reactions", json={"reaction": "laugh"})
    assert (response.status_code, response.json()["fromNumber"]) == (201, ADA)
    [shown] = await history(any_client, message["conversationId"])
    assert [(each["reactionType"], each["direction"]) for each in shown["reactions"]] == [
        ("love", "outbound"),
        ("👍", "outbound"),
        ("question", "inbound"),
        ("laugh", "inbound"),
    ]


@pytest.mark.parametrize("media_urls", [[], [PICTURE]], ids=["sms", "mms"])
async def test_sms_takes_no_reactions(sandbox: Sandbox, any_client: httpx.AsyncClient, media_urls: list[str]) -> None:
    message = sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="Hi", media_urls=media_urls)
    for prefix in ("/v1", "/sandbox"):
        response = await any_client.post(f"{prefix}/messages/{message['id']}/reactions", json={"reaction": "love"})
        assert (response.status_code, response.json()["error"]["code"]) == (400, "BAD_REQUEST")
    with pytest.raises(ValueError, match="takes no reactions"):
        sandbox.receive_reaction(message["id"], "love")


async def test_reaction_to_an_unknown_message_is_a_404(sandbox: Sandbox, any_client: httpx.AsyncClient) -> None:
    for prefix in ("/v1", "/sandbox"):
        response = await any_client.post(f"{prefix}/messages/msg_none/reactions", json={"reaction": "love"})
        assert (response.status_code, response.json()["error"]["code"]) == (404, "NOT_FOUND")
    with pytest.raises(LookupError, match="no such message"):
        sandbox.receive_reaction("msg_none", "love")


async def test_reaction_in_a_group_needs_a_member(sandbox: Sandbox, client: httpx.AsyncClient) -> None:
    body = {"from_number": AGENT, "recipients": [ADA, BEN], "body": "Hi"}
    group = (await client.post("/v1/messages", json=body)).json()["to_number"]
    message = sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="Hi", group=group, channel="imessage")
    assert sandbox.receive_reaction(message["id"], "love", from_number=BEN)["fromNumber"] == BEN
    for nobody in (None, "+15555550999"):
        with pytest.raises(LookupError, match="from"):
            sandbox.receive_reaction(message["id"], "love", from_number=nobody)


@pytest.mark.parametrize(
    ("channel", "status"), [("imessage", 200), ("sms", 400), ("mms", 400), ("whatsapp", 400), (None, 404)]
)
async def test_typing_is_for_imessage(
    sandbox: Sandbox, any_client: httpx.AsyncClient, channel: str | None, status: int
) -> None:
    conversation_id = "conv_none"
    if channel is not None:
        message = sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="Hi", channel=channel)
        conversation_id = message["conversationId"]
    response = await any_client.post(f"/v1/conversations/{conversation_id}/typing")
    assert response.status_code == status
    if status == 200:
        assert response.json() == {"conversationId": conversation_id, "channel": "imessage", "status": "sent"}
    else:
        assert response.json()["error"]["code"] == {400: "BAD_REQUEST", 404: "NOT_FOUND"}[status]


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/v1/messages"), ("GET", "/v1/messages/x/reactions"), ("DELETE", "/v1/messages/x/reactions")],
)
async def test_other_method_is_a_405(client: httpx.AsyncClient, method: str, path: str) -> None:
    response = await client.request(method, path)
    assert (response.status_code, response.headers["Allow"]) == (405, "POST")


async def test_sending_needs_the_key(sandbox: Sandbox, client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/messages", json=SEND, headers={"Authorization": "Basic any"})
    assert response.status_code == 401
    assert await conversations(client) == []


async def test_sent_message_may_be_shown_late(sandbox: Sandbox, any_client: httpx.AsyncClient) -> None:
    sandbox.behavior = Behavior(sent_message_delay=1000)
    sent = (await any_client.post("/v1/messages", json=SEND)).json()
    [conversation] = await conversations(any_client)
    assert (conversation["messageCount"], conversation["lastMessagePreview"]) == (1, "On its way")
    assert await history(any_client, sent["conversation_id"]) == []
    assert (await any_client.get(f"/v1/conversations/{sent['conversation_id']}")).json()["messages"] == []
    sandbox.behavior = Behavior(sent_message_delay=0.2)
    late = (await any_client.post("/v1/messages", json=SEND | {"body": "late"})).json()
    sandbox.behavior = Behavior()
    shown: list[Any] = []
    for _ in range(600):
        if shown := await history(any_client, sent["conversation_id"]):
            break
        await anyio.sleep(0.05)
    assert [each["id"] for each in shown] == [late["id"]]


@pytest.mark.parametrize("delay", [-1, float("nan"), float("inf"), "1", True])
def test_invalid_delay_is_rejected(delay: Any) -> None:
    with pytest.raises((ValueError, TypeError), match=r"^sent_message_delay must be "):
        Behavior(sent_message_delay=delay)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"channel": "fax"}, "channel"),
        ({"channel": ["sms"]}, "channel"),
        ({"mediaUrls": "x"}, "mediaUrls"),
        ({"mediaUrls": ["ftp://media.example/1"]}, "mediaUrls"),
        ({"mediaUrls": [PICTURE] * 21}, "mediaUrls"),
        ({"group": ""}, "group"),
        ({"group": "grp_1", "direction": "outbound"}, "group"),
    ],
)
async def test_sandbox_endpoint_checks_channel_media_and_group(
    client: httpx.AsyncClient, change: dict[str, Any], field: str
) -> None:
    body = {"direction": "inbound", "from": ADA, "to": AGENT, "body": "Hi"} | change
    response = await client.post("/sandbox/messages", json=body)
    assert response.status_code == 422
    assert [detail["field"] for detail in response.json()["error"]["details"]] == [field]
    assert await conversations(client) == []


async def test_sandbox_endpoint_takes_channel_media_and_group(client: httpx.AsyncClient) -> None:
    group = (await client.post("/v1/messages", json={**SEND, "to_number": None, "recipients": [ADA, BEN]})).json()
    body = {"direction": "inbound", "from": BEN, "to": AGENT, "body": "Hi", "group": group["to_number"]}
    response = await client.post("/sandbox/messages", json=body | {"channel": "imessage", "mediaUrls": [PICTURE]})
    message = response.json()
    assert response.status_code == 201
    assert (message["conversationId"], message["senderIdentifier"]) == (group["conversation_id"], BEN)
    assert (message["channel"], message["mediaUrls"]) == ("imessage", [PICTURE])
    response = await client.post("/sandbox/messages", json=body | {"from": "+15555550999"})
    assert response.status_code == 404
