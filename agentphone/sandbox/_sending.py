"""Parsing of what is sent through the API: the bodies of `POST /v1/messages` and of reactions, in snake_case.

Only what a request says by itself is checked here. Whether its ids exist is the store's to know.
"""

import re
from collections.abc import Mapping
from typing import cast

from agentphone.sandbox._inputs import FieldError, check_string, parse_media_urls
from agentphone.sandbox._messages import OutgoingMessage

MIN_RECIPIENTS, MAX_RECIPIENTS = 2, 32
SEND_STYLES = (
    "celebration",
    "fireworks",
    "lasers",
    "love",
    "confetti",
    "balloons",
    "spotlight",
    "echo",
    "invisible",
    "gentle",
    "loud",
    "slam",
)
REACTIONS = ("love", "like", "dislike", "laugh", "emphasize", "question")
PHONE_NUMBER = re.compile(r"\+?[0-9 ().\-/]+")
MIN_DIGITS, MAX_DIGITS = 3, 15
_FLAG = "[\U0001f1e6-\U0001f1ff]{2}"
_SYMBOL = (
    "[\u00a9\u00ae\u203c\u2049\u2122\u2139\u2190-\u2bff\u3030\u303d\u3297\u3299\U0001f000-\U0001f1e5\U0001f200-\U0001faff]"
    "[\ufe0f\U0001f3fb-\U0001f3ff\U000e0020-\U000e007f]*"  # followed by variation, skin tone or tags
)
EMOJI = re.compile(f"[0-9#*]\ufe0f?\u20e3|{_FLAG}|{_SYMBOL}(\u200d{_SYMBOL})*")
"""One emoji: a keycap, a flag, or symbols joined by zero-width joiners. Wider than Unicode's list, never two emoji."""


def parse_outgoing(fields: Mapping[str, object]) -> OutgoingMessage:
    """Check the body of `POST /v1/messages`; null counts as absent, and unknown fields are ignored.

    Raises:
        FieldError: A field is invalid, or the fields contradict each other.
    """
    to_number, recipients = fields.get("to_number"), fields.get("recipients")
    if (to_number is None) == (recipients is None):
        raise FieldError("to_number", "or recipients is required, and not both.")
    senders = {name: _optional_string(fields, name) for name in ("from_number", "number_id", "agent_id")}
    if not any(senders.values()):
        raise FieldError("from_number", "or number_id or agent_id is required.")
    if (sender := senders["from_number"]) is not None:
        senders["from_number"] = _phone_number("from_number", sender)
    body = fields.get("body")
    text = "" if body is None else check_string("body", body, may_be_empty=True)
    media = fields.get("media_urls")
    media_urls = () if media is None else parse_media_urls("media_urls", media, schemes=("https",), minimum=1)
    if not text and not media_urls:
        raise FieldError("body", "must not be empty without media_urls.")
    style = fields.get("send_style")
    if style is not None and style not in SEND_STYLES:
        raise FieldError("send_style", f"must be one of {', '.join(SEND_STYLES)}.")
    channel = fields.get("channel")
    if channel not in (None, "whatsapp"):
        raise FieldError("channel", "must be whatsapp, or absent.")
    return OutgoingMessage(
        body=text,
        to_number=None if to_number is None else _recipient("to_number", to_number),
        recipients=None if recipients is None else _recipients(recipients),
        media_urls=media_urls,
        reply_to_message_id=_optional_string(fields, "reply_to_message_id"),
        is_whatsapp=channel == "whatsapp",
        **senders,
    )


def parse_reaction(value: object) -> str:
    """Check a reaction: one of `REACTIONS`, or one emoji.

    Raises:
        FieldError: It is neither.
    """
    if isinstance(value, str) and (value in REACTIONS or EMOJI.fullmatch(value)):
        return value
    raise FieldError("reaction", f"must be one of {', '.join(REACTIONS)}, or one emoji.")


def _recipients(value: object) -> tuple[str, ...]:
    items = cast("list[object]", value) if isinstance(value, list) else []
    recipients = tuple(dict.fromkeys(_recipient("recipients", item) for item in items))
    if not MIN_RECIPIENTS <= len(recipients) <= MAX_RECIPIENTS:
        raise FieldError("recipients", f"must be a list of {MIN_RECIPIENTS} to {MAX_RECIPIENTS} different recipients.")
    if any(recipient.startswith("grp_") for recipient in recipients):
        raise FieldError("recipients", "must not contain a group.")
    return recipients


def _recipient(field: str, value: object) -> str:
    text = check_string(field, value).strip()
    if text.startswith("grp_") or re.fullmatch(r"[^\s@]+@[^\s@]+", text):
        return text
    return _phone_number(field, text)


def _phone_number(field: str, text: str) -> str:
    """Return a number of any format as E.164, or a short code as it is. Numbers without a country are from the US."""
    digits = re.sub(r"[^0-9]", "", text)
    if PHONE_NUMBER.fullmatch(text.strip()) is None or not MIN_DIGITS <= len(digits) <= MAX_DIGITS:
        what = "a phone number" if field == "from_number" else "a phone number, an e-mail address or a grp_ id"
        raise FieldError(field, f"must be {what}.")
    if text.strip().startswith("+") or len(digits) > 10:
        return f"+{digits}"
    return f"+1{digits}" if len(digits) == 10 else digits


def _optional_string(fields: Mapping[str, object], name: str) -> str | None:
    value = fields.get(name)
    return None if value is None else check_string(name, value)
