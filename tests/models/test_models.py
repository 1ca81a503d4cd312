"""Models are frozen values that can be hashed, copied and pickled."""

from __future__ import annotations

import copy
import pickle
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import attrs
import pytest

from agentphone import Conversation, ConversationDetail, Message, Page, Participant, Reaction, ReplyTo
from agentphone.webhooks import Webhook
from tests.support.helpers import sample

T0 = datetime(2025, 6, 30, 12, tzinfo=UTC)
MESSAGE = Message(
    id="msg_1",
    from_number="+15555550110",
    to_number="+15555550100",
    received_at=T0,
    media_urls=("https://media.example/1.jpg",),
    extra={"seq": {"id": "msg_0"}},
)
CONVERSATION = Conversation(
    id="conv_1",
    phone_number="+15555550100",
    participant="+15555550110",
    metadata={"a": [1]},
    extra={"capabilities": False},
)
DETAIL = ConversationDetail(id="conv_1", phone_number="+1", participant="+2", metadata={"a": 1}, messages=(MESSAGE,))
MODELS = (
    *(MESSAGE, CONVERSATION, DETAIL, Page(data=(MESSAGE, MESSAGE), has_more=True, total=7)),
    *(Reaction(id="r1", created_at=T0), ReplyTo(message_id="msg_0", extra={"a": 1}), Participant(identifier="+1")),
)

each_model = pytest.mark.parametrize("model", MODELS, ids=lambda model: type(model).__name__)


@each_model
def test_fields_are_frozen(model: Any) -> None:
    for field in attrs.fields(type(model)):
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            setattr(model, field.name, None)


@each_model
def test_model_has_no_dict(model: Any) -> None:
    with pytest.raises((AttributeError, attrs.exceptions.FrozenInstanceError)):
        model.lastMessageAt = T0
    assert not hasattr(model, "__dict__")


@each_model
def test_copies_and_pickles_are_equal(model: Any) -> None:
    for other in (pickle.loads(pickle.dumps(model)), copy.copy(model), copy.deepcopy(model), attrs.evolve(model)):
        assert other == model
        assert hash(other) == hash(model)
        assert type(other) is type(model)


def test_equality_compares_every_field() -> None:
    later = T0 + timedelta(seconds=1)
    changes: dict[str, Any] = {"id": "x", "body": "x", "received_at": later, "media_urls": (), "extra": {}}
    for name, value in changes.items():
        assert attrs.evolve(MESSAGE, **{name: value}) != MESSAGE
    assert attrs.evolve(CONVERSATION, metadata={"other": 1}) != CONVERSATION
    assert attrs.evolve(CONVERSATION, extra={"other": 1}) != CONVERSATION


def test_detail_is_not_equal_to_its_conversation() -> None:
    assert isinstance(DETAIL, Conversation)
    assert Conversation(id="conv_1", phone_number="+1", participant="+2", metadata={"a": 1}) != DETAIL


def test_models_take_keyword_arguments_only() -> None:
    with pytest.raises(TypeError):
        Page((MESSAGE,), False)  # type: ignore[call-arg]


def test_page_behaves_like_its_tuple() -> None:
    first, second = attrs.evolve(MESSAGE, id="a"), attrs.evolve(MESSAGE, id="b")
    page = Page(data=(first, second), has_more=True)
    assert list(page) == [first, second]
    assert len(page) == 2
    assert page[0] == first
    assert page[-1] == second
    assert page[1:] == (second,)
    assert second in page
    with pytest.raises(IndexError):
        page[2]
    assert page.total is None
    assert not Page(data=(), has_more=False)
    assert page


def test_repr_is_one_line_with_timestamps_and_extra() -> None:
    message = attrs.evolve(MESSAGE, body="Two\nlines\x1b", direction="inbound", reactions=(Reaction(id="r1"),))
    assert repr(message) == (
        "Message(id='msg_1', body='Two\\nlines\\x1b', from_number='+15555550110', to_number='+15555550100',"
        " direction='inbound', received_at=2025-06-30T12:00:00Z, media_urls=['https://media.example/1.jpg'],"
        " reactions=[Reaction(id='r1')], extra={'seq': {'id': 'msg_0'}})"
    )
    assert "extra" not in repr(attrs.evolve(MESSAGE, extra={}))
    assert repr(attrs.evolve(CONVERSATION, metadata={}, message_count=0)).endswith(
        "message_count=0, metadata={}, extra={'capabilities': False})"
    )
    assert repr(message.cursor) == "Cursor(received_at=2025-06-30T12:00:00Z, id='msg_1')"


def test_repr_of_a_page_shows_its_counts_and_first_items() -> None:
    message = attrs.evolve(MESSAGE, body="x" * 5000, extra={"more": "y" * 5000})
    assert repr(Page(data=(), has_more=False)) == "Page(0, has_more=False) []"
    assert repr(Page(data=(CONVERSATION,), has_more=True, total=36)) == f"Page(1 of 36, has_more=True) [{CONVERSATION}]"
    many = repr(Page(data=(message,) * 200, has_more=True))
    assert many.startswith("Page(200, has_more=True) [Message(id='msg_1', body='xxx")
    assert many.endswith(", ... 197 more]")
    assert len(many) < 1500
    assert len(repr(attrs.evolve(DETAIL, messages=(message,) * 50))) < 1500


def test_repr_of_an_event_is_one_line() -> None:
    webhook, body = Webhook("whsec_secret"), sample("webhook_message")
    shown = repr(webhook.parse(body, webhook.sign(body)))
    assert re.match(r"MessageEvent\(type='agent.message', .*timestamp=2025-01-15T\d\d:\d\d:\d\dZ, ", shown)
    assert "\n" not in shown
    assert "datetime" not in shown
