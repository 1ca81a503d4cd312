"""Typed state: a conversation's metadata as a class of the caller's own, and back, strictly. It sends nothing.

A field `order_id` is the key `orderId`. Metadata that does not fit the class is rejected with the path. Changes are
merged into what was read, so that keys that the class does not know survive: they belong to the object that was read,
not to its place. A state is written only if it would be read back as it is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, ValuesView
from datetime import datetime
from enum import Enum
from typing import Any, Generic, TypeVar

import attrs

from agentphone._decoding import TOO_DEEP, Created, structure_hook, structure_state
from agentphone._json import DecodeError, encode_json, to_camel_case
from agentphone._timestamps import format_timestamp
from agentphone.errors import StateDecodeError

T = TypeVar("T")

Encoded = dict[int, tuple[Any, Any]]
"""The attrs objects of a state and their JSON, by id."""
_ABSENT: Any = object()
"""Stands for the JSON of an object that a default created: it is not stored until it changes."""


def check_class(cls: Any) -> None:
    """Check that a state can be read as this class.

    Raises:
        TypeError: It is neither `dict` nor an attrs class, or a field of it has a type that is not supported.
    """
    if cls is not dict and not (isinstance(cls, type) and attrs.has(cls)):
        raise TypeError(f"cls must be dict or an attrs class (made with attrs.define), got {cls!r}")
    structure_hook(cls, is_state=True)


def read_state(raw: Mapping[str, Any] | None, cls: type[T], name: str, created: Created | None = None) -> T:
    """Read a JSON object as a class.

    Args:
        raw: The object; None is an empty one.
        cls: `dict`, for a copy, or an attrs class.
        name: What the object is called in paths.
        created: Where to record the attrs objects that are created.

    Raises:
        DecodeError: The object does not fit the class.
        TypeError: See `check_class`.
    """
    check_class(cls)
    try:
        copy = json.loads(json.dumps(raw or {}))  # so that changing the state changes no other object
    except RecursionError:
        raise DecodeError(TOO_DEEP, name) from None
    return structure_state(copy, cls, name, [] if created is None else created)


def state_decode_error(error: DecodeError, cls: type, request: str) -> StateDecodeError:
    """Return the public error for a state that was read by `request` and does not fit the class."""
    reason = f"it does not fit {cls.__name__}: {error.reason}"
    return StateDecodeError(reason, request=request, path=error.path, status_code=None)


class LoadedState(Generic[T]):
    """A state that was read, and what it was then.

    Attributes:
        value: The state, to be changed.
    """

    def __init__(self, raw: Mapping[str, Any] | None, cls: type[T], name: str) -> None:
        """Read the state; see `read_state` for the arguments and the errors."""
        self._raw = dict(raw or {})
        self._class = cls
        self._name = name
        try:
            encode_json(self._raw, name)
        except ValueError as error:  # JSON text can hold half a surrogate pair, but UTF-8 cannot
            raise DecodeError(f"it could not be written back ({error})", name) from None
        created: Created = []
        self.value = read_state(raw, cls, name, created)
        try:
            encoded: Encoded = {}
            self._before, _ = self._encode(encoded)
            stored = {id(one): its_raw for one, its_raw in created}
            # The objects are kept too, so that no other object gets their ids.
            self._origins = {key: (one, its_json, stored.get(key, _ABSENT)) for key, (one, its_json) in encoded.items()}
        except RecursionError:  # encoding needs more of the stack than reading
            raise DecodeError(TOO_DEEP, name) from None

    def diff(self) -> dict[str, Any] | None:
        """Return the whole object to store, or None if nothing changed.

        Raises:
            TypeError: A value is of a type that JSON does not have, or that the class could not read back.
            ValueError: A value is one that JSON cannot carry, or a datetime without an offset.
        """
        try:
            now, types = self._encode({})
            merged: dict[str, Any] = self._merge_changes(self.value, now, self._before, self._raw)
            if _is_same(merged, self._raw):
                return None
            if self._class is not dict:
                self._check_readable(merged, types)
        except RecursionError:
            raise ValueError(f"{self._name} is nested too deeply, or contains itself") from None
        return merged

    def _encode(self, encoded: Encoded) -> tuple[dict[str, Any], dict[str, type]]:
        """Return the value as JSON, and the types that JSON loses by their paths; see `_to_json` for `encoded`."""
        types: dict[str, type] = {}
        plain = self.value if isinstance(self.value, dict) else _to_json(self.value, self._name, types, encoded)
        return json.loads(encode_json(plain, self._name)), types

    def _merge_changes(self, value: Any, now: Any, before: Any, raw: Any) -> Any:
        """Return `raw` with the changes.

        Args:
            value: The value.
            now: The value as JSON.
            before: What was in its place, as the class has it; None if nothing was. An object that was read has its
                own `before` and `raw`, wherever it is now.
            raw: What was in its place, as it was read.
        """
        is_object = attrs.has(type(value))
        if is_object:
            _, before, raw = self._origins.get(id(value), (value, None, None))
            if raw is _ABSENT:
                if _is_same(now, before):
                    return _ABSENT
                before = raw = None
        # Objects are compared one by one: another object with equal fields has unknown keys of its own.
        if _is_same(now, before) and not _has_objects(_items(value).values() if is_object else value):
            return raw
        if isinstance(now, list):  # items are not compared by index: one may have been inserted
            merged_items = [
                self._merge_changes(item, its_now, None, None) for item, its_now in zip(value, now, strict=True)
            ]
            return [its_now if item is _ABSENT else item for item, its_now in zip(merged_items, now, strict=True)]
        if not isinstance(now, dict):
            return now
        if not (isinstance(before, dict) and isinstance(raw, dict)):
            before, raw = {}, {}
        merged = {key: item for key, item in raw.items() if key in now or (is_object and key not in before)}
        items = _items(value) if is_object else value
        for key, item in now.items():
            if key not in before or not _is_same(item, before[key]) or _has_objects(items[key]):
                changed = self._merge_changes(items[key], item, before.get(key), raw.get(key))
                if changed is not _ABSENT:
                    merged[key] = changed
        return merged

    def _check_readable(self, merged: dict[str, Any], types: dict[str, type]) -> None:
        """Raise TypeError for what the class would read back as something else, or not at all."""
        try:
            again = read_state(merged, self._class, self._name)
        except DecodeError as error:
            raise TypeError(
                f"{error.path}: {error.reason}; {self._class.__name__} could not read it back, and nothing was written"
            ) from None
        read_back: dict[str, type] = {}
        _to_json(again, self._name, read_back, {})
        for path, its_type in types.items():
            if read_back.get(path) is not its_type:
                raise TypeError(
                    f"{path} is a {its_type.__name__}, which {self._class.__name__} would read back as something else;"
                    " nothing was written"
                )


def _is_same(one: Any, other: Any) -> bool:
    """Compare what would be sent: to Python, 1, 1.0 and True are equal."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def _has_objects(value: Any) -> bool:
    """Return whether a value is or contains attrs objects."""
    if isinstance(value, Mapping):
        value = value.values()
    elif not isinstance(value, list | tuple | ValuesView):
        return attrs.has(type(value))
    return any(map(_has_objects, value))


def _items(value: Any) -> dict[str, Any]:
    """Return the fields of an attrs object under their JSON keys."""
    return {to_camel_case(field.name): getattr(value, field.name) for field in attrs.fields(type(value)) if field.init}


def _to_json(value: Any, path: str, types: dict[str, type], encoded: Encoded) -> Any:
    """Return a value as JSON has it. Values of unknown types stay as they are.

    Args:
        value: The value.
        path: The path to it.
        types: Where to record, by path, the types that JSON loses.
        encoded: Where to record each attrs object with its JSON, by id.
    """
    if attrs.has(type(value)):
        types[path] = type(value)
        plain = {key: _to_json(item, f"{path}.{key}", types, encoded) for key, item in _items(value).items()}
        encoded[id(value)] = value, plain
        return plain
    if isinstance(value, Enum):
        types[path] = type(value)
        return value.value
    if isinstance(value, datetime):
        types[path] = datetime
        if value.utcoffset() is None:
            raise ValueError(f"{path} is a datetime without an offset: use datetime.now(UTC), or .astimezone()")
        try:
            return format_timestamp(value)
        except OverflowError:
            raise ValueError(f"{path} is a datetime outside the years 1 to 9999 in UTC") from None
    if isinstance(value, Mapping):
        return {key: _to_json(item, f"{path}.{key}", types, encoded) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_to_json(item, f"{path}[{index}]", types, encoded) for index, item in enumerate(value)]
    return value
