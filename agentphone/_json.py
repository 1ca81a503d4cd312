"""JSON in and out."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, TypeVar

T = TypeVar("T")


class DecodeError(Exception):
    """The bytes are not JSON, or not of the shape asked for; `path` says where, in the JSON's own names."""

    def __init__(self, what: str, path: str = "") -> None:
        super().__init__(what, path)
        self.what = what
        self.path = path


def parse_json(body: bytes) -> Any:
    """Parse JSON as RFC 8259 has it: UTF-8, without NaN and infinities.

    Raises:
        DecodeError: The body is not that.
    """
    if not body.strip():
        raise DecodeError("the body is empty, not JSON")
    try:
        return _JSON.decode(body.decode())
    except RecursionError:
        raise DecodeError("the JSON is nested too deeply") from None
    except ValueError as error:  # not UTF-8, not JSON, or a number with too many digits
        raise DecodeError(f"the body is not JSON ({error})") from None


def encode(value: Mapping[str, Any] | None, name: str) -> bytes:
    """Encode a value as JSON, refusing whatever would not come back as it went.

    Args:
        value: An object (string keys), or None.
        name: What the value is called in errors.

    Returns:
        JSON in UTF-8.

    Raises:
        TypeError: Something in it is of a type that JSON does not have; the text names where it sits.
        ValueError: Something in it is a number, a text or a depth that JSON cannot carry.
    """
    if value is not None and not isinstance(value, Mapping):
        raise TypeError(f"{name} is an object (a dict with string keys) or None, not {type(value).__name__}")
    try:
        plain = _plain(value, name, frozenset())
        return json.dumps(plain, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
    except RecursionError:
        raise ValueError(f"{name} is nested too deeply for JSON") from None


def _plain(value: Any, where: str, above: frozenset[int]) -> Any:
    """Check `value` for JSON and give it with plain dicts and lists; `above` holds the ids of what contains it."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        try:
            int.__repr__(value)  # as json.dumps prints it; Python refuses thousands of digits, written or read
        except ValueError as error:
            raise ValueError(f"{where} is too large a number ({error})") from None
        return value
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError(f"{where} is not Unicode text: it holds half a surrogate pair") from None
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{where} is {value}, which JSON does not have")
        return value
    if not isinstance(value, Mapping | list | tuple):
        raise TypeError(f"{where} is a {type(value).__name__}, which JSON does not have")
    if id(value) in above:
        raise ValueError(f"{where} contains itself")
    above |= {id(value)}
    if not isinstance(value, Mapping):
        return [_plain(item, f"{where}[{index}]", above) for index, item in enumerate(value)]
    plain: dict[str, Any] = {}
    for key, item in value.items():
        if not isinstance(key, str):
            raise TypeError(f"{where} has the key {key!r}, a {type(key).__name__}; JSON's keys are strings")
        plain[_plain(key, f"{where}: the key {key!r}", above)] = _plain(item, f"{where}[{key!r}]", above)
    return plain


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):  # as an infinity it could neither be sent nor exported
        raise ValueError(f"{text[:50]} is too large a number")
    return number


_JSON = json.JSONDecoder(parse_constant=_refuse_constant, parse_float=_finite)


def camel(name: str) -> str:
    """Give the API's name of a field: `last_message_at` is `lastMessageAt`, `from_` is `from`."""
    head, *rest = name.strip("_").split("_")
    return head + "".join(map(str.capitalize, rest))
