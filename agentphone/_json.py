"""JSON parsing and encoding, strictly, and the API's names of fields. No models here."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any


class DecodeError(Exception):
    """The bytes are not JSON, or the JSON does not fit the class.

    Attributes:
        reason: What is wrong.
        path: The path of the value in the JSON; empty for the whole.
    """

    def __init__(self, reason: str, path: str = "") -> None:
        super().__init__(reason, path)
        self.reason = reason
        self.path = path


def parse_json(body: bytes) -> Any:
    """Parse JSON as RFC 8259 defines it: UTF-8, without NaN and infinities.

    Raises:
        DecodeError: The body is not JSON.
    """
    if not body.strip():
        raise DecodeError("the body is empty, not JSON")
    try:
        return _DECODER.decode(body.decode())
    except RecursionError:
        raise DecodeError("the JSON is nested too deeply") from None
    except ValueError as error:  # not UTF-8, not JSON, or a number with too many digits
        raise DecodeError(f"the body is not JSON ({error})") from None


def encode_json(value: Mapping[str, Any] | None, name: str) -> bytes:
    """Encode a value as JSON, and reject whatever could not be read back as it is.

    Args:
        value: A mapping with string keys, or None.
        name: The name of the value in errors.

    Returns:
        JSON in UTF-8.

    Raises:
        TypeError: A value in it has a type that JSON does not have; the text has the path.
        ValueError: A number or a text in it, or its depth, is one that JSON cannot carry; the text has the path.
    """
    if value is not None and not isinstance(value, Mapping):
        raise TypeError(f"{name} must be a dict with string keys or None, got {type(value).__name__}")
    try:
        checked = _check_json(value, name, frozenset())
        return json.dumps(checked, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
    except RecursionError:
        raise ValueError(f"{name} is nested too deeply for JSON") from None


def _check_json(value: Any, path: str, containers: frozenset[int]) -> Any:
    """Return `value` with plain dicts and lists; `containers` has the ids of the objects that contain it."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        try:
            int.__repr__(value)  # as json.dumps writes it; Python refuses thousands of digits
        except ValueError as error:
            raise ValueError(f"{path} is too large a number ({error})") from None
        return value
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError(f"{path} is not Unicode text: it contains half a surrogate pair") from None
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{path} is {value}, which JSON does not have")
        return value
    if not isinstance(value, Mapping | list | tuple):
        raise TypeError(f"{path} is a {type(value).__name__}, which JSON does not have")
    if id(value) in containers:
        raise ValueError(f"{path} contains itself")
    containers |= {id(value)}
    if not isinstance(value, Mapping):
        return [_check_json(item, f"{path}[{index}]", containers) for index, item in enumerate(value)]
    checked: dict[str, Any] = {}
    for key, item in value.items():
        if not isinstance(key, str):
            raise TypeError(f"{path} has the key {key!r}, a {type(key).__name__}; JSON's keys are strings")
        checked[_check_json(key, f"{path}: the key {key!r}", containers)] = _check_json(
            item, f"{path}[{key!r}]", containers
        )
    return checked


def to_camel_case(name: str) -> str:
    """Return the API's name of a field: `lastMessageAt` for `last_message_at`, `from` for `from_`."""
    head, *rest = name.strip("_").split("_")
    return head + "".join(map(str.capitalize, rest))


def _reject_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _parse_finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):  # an infinity could neither be sent nor exported
        raise ValueError(f"{text[:50]} is too large a number")
    return number


_DECODER = json.JSONDecoder(parse_constant=_reject_constant, parse_float=_parse_finite)
