"""Checks and conversions of single JSON values: each hook takes exactly one JSON type, and raises for any other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from types import NoneType
from typing import Any

from agentphone._timestamps import parse_timestamp

Hook = Callable[[Any, Any], Any]
"""Creates a value from JSON; the second argument is cattrs' (the type), and ignored."""

_JSON_NAMES: Mapping[type, str] = {
    dict: "an object",
    list: "an array",
    str: "a string",
    int: "an integer",
    float: "a number",
    bool: "true or false",
    NoneType: "null",
    datetime: "an ISO 8601 timestamp",
}


def _wrong_type(value: Any, expected: str) -> TypeError:
    actual = "a number" if type(value) is int else _JSON_NAMES.get(type(value), type(value).__name__)
    return TypeError(f"expected {expected}, got {actual}")


def _exactly(expected: type) -> Hook:
    def structure(value: Any, _: Any) -> Any:
        # type() and not isinstance(): JSON has no subclasses, and True is an int to isinstance().
        if type(value) is expected:
            return value
        raise _wrong_type(value, _JSON_NAMES[expected])

    return structure


def _structure_float(value: Any, _: Any) -> float:
    if type(value) is not float and type(value) is not int:
        raise _wrong_type(value, _JSON_NAMES[float])
    try:
        return float(value)
    except OverflowError:
        raise ValueError("the number is too large for a float") from None


def _structure_timestamp(value: Any, _: Any) -> datetime:
    if type(value) is not str:
        raise _wrong_type(value, _JSON_NAMES[datetime])
    return parse_timestamp(value)


def unchanged(value: Any, _: Any) -> Any:
    """Return a value of any type as it is."""
    return value


HOOKS: Mapping[Any, Hook] = {
    **{cls: _exactly(cls) for cls in (str, int, bool, dict, list)},
    float: _structure_float,
    datetime: _structure_timestamp,
    **dict.fromkeys((Any, object, None), unchanged),
}


def one_of(members: Sequence[tuple[Any, Any]]) -> Hook:
    """Return the hook for pairs of a result and its JSON; they are compared by type and value: 1 is not True."""
    expected = f"expected one of {', '.join(repr(json_value) for _, json_value in members)}"

    def structure(value: Any, _: Any) -> Any:
        for member, json_value in members:
            if type(json_value) is type(value) and json_value == value:
                return member
        raise ValueError(expected)

    return structure


check_list: Hook
check_dict: Hook
check_list, check_dict = HOOKS[list], HOOKS[dict]


def nullable(hook: Hook) -> Hook:
    """Return the hook that accepts null too."""
    return lambda value, _: None if value is None else hook(value, None)


def null_is_empty(structure_list: Hook) -> Hook:
    """Return the hook of a tuple that takes null as an empty one."""
    return lambda value, shape: () if value is None else structure_list(value, shape)
