"""Typed state: a conversation's metadata as a class of the caller's own, and back, strictly. It sends nothing.

A field `order_id` is the key `orderId`. Metadata that does not fit the class is rejected with the path. Changes are
merged into what was read, so that keys that the class does not know survive: they belong to the object that was read,
not to its place. A state is written only if it would be read back as it is.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sized
from datetime import datetime
from enum import Enum
from types import NoneType
from typing import Any, Generic, TypeVar

from agentphone._decoding import TOO_DEEP, structure_hook, structure_state
from agentphone._json import DecodeError, encode_json
from agentphone._state_classes import (
    Created,
    class_of,
    get_items,
    is_pydantic,
    is_state_class,
    item_shape,
    serialize,
    state_fields,
)
from agentphone._timestamps import format_timestamp
from agentphone.errors import StateDecodeError

T = TypeVar("T")

_ABSENT: Any = object()
"""Stands for the JSON of an object that a default created: it is not stored until it changes."""


class ObjectJSON(dict[str, Any]):
    """The JSON of an object of a state class.

    Attributes:
        source: The object.
    """

    __slots__ = ("source",)
    source: Any


def check_class(cls: Any) -> None:
    """Check that a state can be read as this class.

    Raises:
        TypeError: It is neither `dict` nor such a class, or a field of it has a type that is not supported.
    """
    if cls is not dict and not is_state_class(cls):
        raise TypeError(f"cls must be dict or an attrs class, dataclass, TypedDict or pydantic model, got {cls!r}")
    structure_hook(cls, is_state=True)


def read_state(raw: Mapping[str, Any] | None, cls: type[T], name: str, created: Created | None = None) -> T:
    """Read a JSON object as a class.

    Args:
        raw: The object; None is an empty one.
        cls: `dict`, for a copy, or a class; see `check_class`.
        name: What the object is called in paths.
        created: Where to record the objects of state classes that are created.

    Raises:
        DecodeError: The object does not fit the class.
        TypeError: See `check_class`.
    """
    check_class(cls)
    try:
        copy = json.loads(json.dumps(raw or {}))  # so that changing the state changes no other object
    except RecursionError:
        raise DecodeError(TOO_DEEP, name) from None
    return structure_state(copy, cls, name, created)


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
            before, _ = self._encode()
            stored = {id(one): its_raw for one, its_raw in created}
            # The objects are kept too, so that no other object gets their ids.
            self._origins = {
                id(found.source): (found.source, found, stored.get(id(found.source), _ABSENT))
                for found in _objects(before)
            }
        except RecursionError:  # encoding needs more of the stack than reading
            raise DecodeError(TOO_DEEP, name) from None

    def diff(self) -> dict[str, Any] | None:
        """Return the whole object to store, or None if nothing changed.

        Raises:
            TypeError: A value is of a type that JSON does not have, or that the class could not read back.
            ValueError: A value is one that JSON cannot carry, or a datetime without an offset.
        """
        try:
            now, types = self._encode()
            merged: dict[str, Any] = now if self._class is dict else self._merge_changes(now, None, None)
            if _is_same(merged, self._raw):
                return None
            if self._class is not dict:
                self._check_readable(merged, types)
        except RecursionError:
            raise ValueError(f"{self._name} is nested too deeply, or contains itself") from None
        return merged

    def _encode(self) -> tuple[dict[str, Any], dict[str, type]]:
        """Return the value as JSON, in containers of its own, and the types that JSON loses by their paths."""
        types: dict[str, type] = {}
        if self._class is dict:
            value: Any = self.value
            return json.loads(encode_json(value, self._name)), types
        encoded = _to_json(self.value, self._class, self._name, types)
        encode_json(encoded, self._name)  # raises for what JSON does not have
        return encoded, types

    def _merge_changes(self, now: Any, before: Any, raw: Any) -> Any:
        """Return `raw` with the changes.

        Args:
            now: The value as JSON.
            before: What was in its place, as the class has it; None if nothing was. An object that was read has its
                own `before` and `raw`, wherever it is now.
            raw: What was in its place, as it was read.
        """
        is_object = isinstance(now, ObjectJSON)
        if isinstance(now, ObjectJSON):
            _, before, raw = self._origins.get(id(now.source), (None, None, None))
            if raw is _ABSENT:
                if _is_same(now, before):
                    return _ABSENT
                before = raw = None
        # Objects are compared one by one: another object with equal fields has unknown keys of its own.
        if _is_same(now, before) and not any(found is not now for found in _objects(now)):
            return raw
        if isinstance(now, list):  # items are not compared by index: one may have been inserted
            merged_items = [self._merge_changes(item, None, None) for item in now]
            return [item if merged is _ABSENT else merged for merged, item in zip(merged_items, now, strict=True)]
        if not isinstance(now, dict):
            return now
        if not (isinstance(before, dict) and isinstance(raw, dict)):
            before, raw = {}, {}
        merged = {key: item for key, item in raw.items() if key in now or (is_object and key not in before)}
        for key, item in now.items():
            if key not in before or not _is_same(item, before[key]) or any(True for _ in _objects(item)):
                changed = self._merge_changes(item, before.get(key), raw.get(key))
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
        _to_json(again, self._class, self._name, read_back)
        for path, its_type in types.items():
            if read_back.get(path) is not its_type:
                raise TypeError(
                    f"{path} is a {its_type.__name__}, which {self._class.__name__} would read back as something else;"
                    " nothing was written"
                )


def _is_same(one: Any, other: Any) -> bool:
    """Compare what would be sent: to Python, 1, 1.0 and True are equal."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def _objects(encoded: Any) -> Iterator[ObjectJSON]:
    """Yield the JSON of each object in a value, itself included."""
    if isinstance(encoded, ObjectJSON):
        yield encoded
    if isinstance(encoded, dict | list):
        for item in encoded.values() if isinstance(encoded, dict) else encoded:
            yield from _objects(item)


_OWN: Any = object()
"""Stands for what pydantic serialized, where it did not."""
_EXCLUDED: Any = object()
"""Stands for what pydantic leaves out."""
MASK = "*" * 10
"""What pydantic writes for each SecretStr and SecretBytes."""


def _to_json(value: Any, shape: Any, path: str, types: dict[str, type], serialized: Any = _OWN) -> Any:
    """Return a value as JSON has it. Values of unknown types stay as they are.

    Args:
        value: The value.
        shape: Its annotation.
        path: The path to it.
        types: Where to record, by path, the types that JSON loses.
        serialized: Inside a pydantic model, what pydantic serialized it to.
    """
    if is_pydantic(type(value)) and serialized is _OWN:
        serialized = serialize(value)
    if (cls := class_of(value, shape)) is not None and (serialized is _OWN or isinstance(serialized, dict)):
        types[path] = type(value)
        return _object_to_json(value, cls, path, types, serialized)
    if isinstance(value, Mapping) and (serialized is _OWN or _has_length(serialized, dict, value)):
        parts = [(key, _OWN) for key in value] if serialized is _OWN else [*serialized.items()]
        return {
            key: _to_json(item, item_shape(shape, 0), f"{path}.{key}", types, part)
            for (key, part), item in zip(parts, value.values(), strict=True)
        }
    if isinstance(value, list | tuple) and (serialized is _OWN or _has_length(serialized, list, value)):
        parts = [_OWN] * len(value) if serialized is _OWN else serialized
        return [
            _to_json(item, item_shape(shape, index), f"{path}[{index}]", types, part)
            for index, (part, item) in enumerate(zip(parts, value, strict=True))
        ]
    if serialized is not _OWN:
        if serialized == MASK and hasattr(value, "get_secret_value"):
            raise TypeError(
                f"{path} is a {type(value).__name__}, which pydantic writes as {MASK!r}: make it a str, or give it a"
                " field_serializer that returns the value"
            )
        if type(value) not in (str, int, float, bool, NoneType):
            types[path] = type(value)
        return serialized
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
    return value


def _object_to_json(value: Any, cls: Any, path: str, types: dict[str, type], serialized: Any) -> ObjectJSON:
    if isinstance(value, dict) and (unknown := value.keys() - {field.name for field in state_fields(cls)}):
        raise TypeError(f"{path} has the key {min(unknown, key=str)!r}, which {cls.__name__} does not declare")
    encoded = ObjectJSON()
    encoded.source = value
    for key, (name, shape, item) in get_items(value, cls).items():
        part = _OWN if serialized is _OWN else serialized.get(name, _EXCLUDED)
        if part is not _EXCLUDED:
            encoded[key] = _to_json(item, shape, f"{path}.{key}", types, part)
    return encoded


def _has_length(serialized: Any, container: type[Sized], value: Sized) -> bool:
    return isinstance(serialized, container) and len(serialized) == len(value)
