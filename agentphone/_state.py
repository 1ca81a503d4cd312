"""Typed state: a conversation's metadata as a class of the caller's own, and back, strictly. Pure: it sends nothing.

A field `order_id` is the key `orderId`. What is read fits the class or is refused by its path. What changed is laid
over what was read, so that keys which the class does not know survive: they belong to the object that was read, not to
its place. It is written only if it reads back as it was.

Not by cattrs, as the models are: it takes a `StrEnum` for a string and an `IntEnum` for an integer, and has ways of its
own to read bytes, sets and decimals, where here a class that JSON cannot keep is to be refused at the start.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from enum import Enum
from functools import lru_cache
from types import NoneType, UnionType
from typing import Annotated, Any, Generic, Literal, TypeVar, Union, get_args, get_origin

import attrs

from agentphone._decoding import STRICT
from agentphone._json import DecodeError, encode_json, to_camel_case
from agentphone.errors import StateDecodeError

T = TypeVar("T")

Made = list[tuple[Any, dict[str, Any]]]
"""The objects of attrs classes that were made, each with the JSON that it was made of."""
Read = Callable[[Any, str, Made], Any]
"""Makes a value of JSON, given the path to it, and notes in the list the objects that it makes."""


def check_class(cls: Any) -> None:
    """Refuse what no state can be read into.

    Raises:
        TypeError: It is neither `dict` nor an attrs class, or a field of it is of a type that JSON does not have.
    """
    _reader_of(cls)


def read_state(raw: Mapping[str, Any] | None, cls: type[T], name: str, made: Made | None = None) -> T:
    """Read a JSON object as a class.

    Args:
        raw: The object; None is an empty one.
        cls: `dict`, for a copy, or an attrs class.
        name: What the object is called in paths.
        made: Where to note the objects that are made.

    Raises:
        DecodeError: It does not fit the class.
        TypeError: The class cannot hold a state.
    """
    read = _reader_of(cls)
    try:
        # A copy: nobody's object changes with the state.
        state: T = read(json.loads(json.dumps(raw or {})), name, [] if made is None else made)
    except RecursionError:
        raise DecodeError("it is nested too deeply", name) from None
    return state


def state_decode_error(error: DecodeError, cls: type, request: str) -> StateDecodeError:
    """Make the error that the caller gets for a state that was read by `request` and does not fit the class."""
    what = f"it does not fit {cls.__name__}: {error.reason}"
    return StateDecodeError(what, request=request, path=error.path, status_code=None)


class LoadedState(Generic[T]):
    """A state that was read to be changed."""

    def __init__(self, raw: Mapping[str, Any] | None, cls: type[T], name: str) -> None:
        """Read it; see `read_state` for the arguments and the errors."""
        self._to_bytes = dict(raw or {})
        self._class = cls
        self._name = name
        try:
            encode_json(self._to_bytes, name)
        except ValueError as error:  # half a surrogate pair: JSON can bring it, and UTF-8 cannot carry it back
            raise DecodeError(f"it could not be written back ({error})", name) from None
        made: Made = []
        self.value = read_state(raw, cls, name, made)
        try:
            written: dict[int, Any] = {}
            self._before, _ = self._encoded(written)
            # With the object itself, so that no other gets its id.
            self._origins = {id(one): (one, written.get(id(one)), its_raw) for one, its_raw in made}
        except RecursionError:  # to write takes more of the stack than to read
            raise DecodeError("it is nested too deeply", name) from None

    def changed(self) -> dict[str, Any] | None:
        """Give the whole object to store, or None if nothing changed.

        Raises:
            TypeError: A value is of a type that JSON does not have, or that the class could not read back.
            ValueError: A value is one that JSON cannot carry, or an instant without an offset.
        """
        try:
            now, kinds = self._encoded({})
            if _is_same(now, self._before):
                return None
            laid: dict[str, Any] = self._merge_changes(self.value, now, self._before, self._to_bytes)
            if self._class is not dict:
                self._check(laid, kinds)
        except RecursionError:
            raise ValueError(f"{self._name} is nested too deeply, or contains itself") from None
        return laid

    def _encoded(self, objects: dict[int, Any]) -> tuple[dict[str, Any], dict[str, type]]:
        """Give the value as JSON, and at which paths it is more than JSON says; see `_plain` for `objects`."""
        kinds: dict[str, type] = {}
        plain = self.value if isinstance(self.value, dict) else _plain(self.value, self._name, kinds, objects)
        return json.loads(encode_json(plain, self._name)), kinds

    def _merge_changes(self, value: Any, now: Any, before: Any, raw: Any) -> Any:
        """Lay what changed over what was read.

        Args:
            value: The value.
            now: The same as JSON.
            before: What was in its place, as the class has it; None if nothing was. An object's own counts instead.
            raw: What was in its place, as it was read.
        """
        is_object = attrs.has(type(value))
        if is_object:
            _, before, raw = self._origins.get(id(value), (value, None, None))
        if _is_same(now, before):
            return raw
        if isinstance(now, list):  # its items have no places: one may have come in between
            return [self._merge_changes(item, its_now, None, None) for item, its_now in zip(value, now, strict=True)]
        if not isinstance(now, dict):
            return now
        if not (isinstance(before, dict) and isinstance(raw, dict)):
            before, raw = {}, {}
        laid = {key: item for key, item in raw.items() if key in now or (is_object and key not in before)}
        items = _items(value) if is_object else value
        for key, item in now.items():
            if key not in before or not _is_same(item, before[key]):
                laid[key] = self._merge_changes(items[key], item, before.get(key), raw.get(key))
        return laid

    def _check(self, laid: dict[str, Any], kinds: dict[str, type]) -> None:
        """Refuse what the class would read as something else, or not at all."""
        try:
            again = read_state(laid, self._class, self._name)
        except DecodeError as error:
            raise TypeError(
                f"{error.path}: {error.reason}; {self._class.__name__} could not read it back, and nothing was written"
            ) from None
        read_back: dict[str, type] = {}
        _plain(again, self._name, read_back, {})
        for path, kind in kinds.items():
            if read_back.get(path) is not kind:
                raise TypeError(
                    f"{path} is a {kind.__name__}, which {self._class.__name__} would read back as something else;"
                    " nothing was written"
                )


def _is_same(one: Any, other: Any) -> bool:
    """Compare by what would be sent: to Python, 1, 1.0 and True are equal."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def _items(value: Any) -> dict[str, Any]:
    """Give what an object of an attrs class holds, under the keys of JSON."""
    return {to_camel_case(field.name): getattr(value, field.name) for field in attrs.fields(type(value)) if field.init}


def _plain(value: Any, where: str, kinds: dict[str, type], objects: dict[int, Any]) -> Any:
    """Give a value as JSON has it. What is unknown stays as it is.

    Args:
        value: The value.
        where: The path to it.
        kinds: Where to note, by path, which types JSON forgets.
        objects: Where to note, by id, how each object of an attrs class is given.
    """
    if attrs.has(type(value)):
        kinds[where] = type(value)
        plain = {key: _plain(item, f"{where}.{key}", kinds, objects) for key, item in _items(value).items()}
        objects[id(value)] = plain
        return plain
    if isinstance(value, Enum):
        kinds[where] = type(value)
        return value.value
    if isinstance(value, datetime):
        kinds[where] = datetime
        if value.utcoffset() is None:
            raise ValueError(f"{where} is a datetime without an offset: say datetime.now(UTC), or .astimezone()")
        try:
            return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
        except OverflowError:
            raise ValueError(f"{where} is a datetime outside the years 1 to 9999 in UTC") from None
    if isinstance(value, Mapping):
        return {key: _plain(item, f"{where}.{key}", kinds, objects) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}[{index}]", kinds, objects) for index, item in enumerate(value)]
    return value


def _reader_of(cls: Any) -> Read:
    """Give what reads a whole state."""
    if cls is not dict and not (isinstance(cls, type) and attrs.has(cls)):
        raise TypeError(f"cls is dict or an attrs class (made with attrs.define), not {cls!r}")
    return _make_reader(cls)


@lru_cache(maxsize=256)  # not for ever: a program may make classes as it goes
def _make_reader(cls: type) -> Read:
    return _read_of(cls, {})


def _read_of(shape: Any, known: dict[Any, Read]) -> Read:
    """Make what reads a shape; `known` has the classes that are in the making, for those that hold themselves."""
    origin, arguments = get_origin(shape) or shape, get_args(shape)
    if origin in (Any, object, None):
        return lambda value, *_: value
    if origin in known:
        return lambda *arguments: known[origin](*arguments)
    if origin in STRICT and not arguments:
        return _scalar(origin)
    if origin is Annotated:
        return _read_of(arguments[0], known)
    if origin in (Union, UnionType) and NoneType in arguments and len(arguments) == 2:
        inner = _read_of(next(one for one in arguments if one is not NoneType), known)
        return lambda value, where, made: None if value is None else inner(value, where, made)
    if origin is Literal:
        return _one_of([(value, value) for value in arguments])
    if origin is list:
        return _list(_read_of(arguments[0], known))
    if origin is dict and arguments[0] is str:
        return _dict(_read_of(arguments[1], known))
    if origin is tuple:
        return _tuple(arguments, known)
    if isinstance(shape, type) and issubclass(shape, Enum):
        return _one_of([(member, member.value) for member in shape])
    if isinstance(shape, type) and attrs.has(shape):
        return _object(shape, known)
    raise TypeError(
        f"a state cannot hold {shape.__name__ if isinstance(shape, type) else shape}; it can hold str, int, float,"
        " bool, datetime, enums, Literal, list[...], dict[str, ...], tuple[...] and attrs classes, each also `| None`,"
        " and Any"
    )


def _scalar(plain: type) -> Read:
    def read(value: Any, where: str, _: Made) -> Any:
        try:
            return STRICT[plain](value, plain)
        except Exception as error:  # noqa: BLE001  # whatever it says of the value is what is wrong with it
            raise DecodeError(str(error), where) from None

    return read


def _one_of(members: Sequence[tuple[Any, Any]]) -> Read:
    def read(value: Any, where: str, _: Made) -> Any:
        for member, its_value in members:
            if type(its_value) is type(value) and its_value == value:
                return member
        raise DecodeError(f"one of {', '.join((repr(its_value) for _, its_value in members))} is wanted", where)

    return read


def _list(item: Read) -> Read:
    is_list = _scalar(list)

    def read(value: Any, where: str, made: Made) -> Any:
        return [item(one, f"{where}[{index}]", made) for index, one in enumerate(is_list(value, where, made))]

    return read


def _dict(item: Read) -> Read:
    is_dict = _scalar(dict)

    def read(value: Any, where: str, made: Made) -> Any:
        return {key: item(one, f"{where}.{key}", made) for key, one in is_dict(value, where, made).items()}

    return read


def _tuple(arguments: tuple[Any, ...], known: dict[Any, Read]) -> Read:
    if not arguments or arguments[1:] == (...,):
        read_list = _list(_read_of(arguments[0] if arguments else Any, known))
        return lambda *arguments: tuple(read_list(*arguments))
    items = [_read_of(argument, known) for argument in arguments]
    is_list = _scalar(list)

    def read(value: Any, where: str, made: Made) -> Any:
        if len(is_list(value, where, made)) != len(items):
            raise DecodeError(f"{len(items)} items are wanted, here are {len(value)}", where)
        pairs = zip(items, value, strict=True)
        return tuple(item(one, f"{where}[{index}]", made) for index, (item, one) in enumerate(pairs))

    return read


def _object(cls: Any, known: dict[Any, Read]) -> Read:
    fields: list[tuple[str, str, bool, Read]] = []
    converters: dict[str, Callable[[Any], Any]] = {}
    is_dict = _scalar(dict)

    def read(value: Any, where: str, made: Made) -> Any:
        is_dict(value, where, made)
        given: dict[str, Any] = {}
        for key, argument, is_required, read_field in fields:
            if key in value:
                given[argument] = read_field(value[key], f"{where}.{key}", made)
            elif is_required:
                raise DecodeError("the field is missing", f"{where}.{key}")
        try:
            one = cls(**given)
        except RecursionError:
            raise
        except Exception as error:  # noqa: BLE001  # a validator's or a converter's, of the class's own
            for key, argument, *_ in fields:  # a validator's text names the field; a converter knows of none
                if argument in given and key in converters:
                    _convert(converters[key], given[argument], f"{where}.{key}")
            raise _refusal(error, where) from None
        made.append((one, value))
        return one

    known[cls] = read
    try:
        attrs.resolve_types(cls)
    except Exception as error:  # noqa: BLE001  # an annotation in quotes is code, and may fail in any way
        raise TypeError(
            f"{cls.__name__} has an annotation that cannot be read: {error}. If it names what is local to a function,"
            f" call attrs.resolve_types({cls.__name__}, localns=locals()) there."
        ) from None
    for field in attrs.fields(cls):
        if field.init:
            try:
                inner = _read_of(field.type, known)
            except TypeError as error:
                raise TypeError(f"{cls.__name__}.{field.name}: {error}") from None
            fields.append((to_camel_case(field.name), field.alias, field.default is attrs.NOTHING, inner))
            if field.converter is not None and not isinstance(field.converter, attrs.Converter):
                converters[to_camel_case(field.name)] = field.converter
    if len({key for key, *_ in fields}) < len(fields):
        raise TypeError(f"two fields of {cls.__name__} have the same key in JSON")
    return read


def _convert(converter: Callable[[Any], Any], value: Any, where: str) -> None:
    """Raise what a converter has against a value, by its path."""
    try:
        converter(value)
    except Exception as error:  # noqa: BLE001  # a function of the caller's
        raise _refusal(error, where) from None


def _refusal(error: Exception, where: str) -> DecodeError:
    """Tell what the class's own code has against a value; the text of a KeyError or an assert alone says nothing."""
    is_said = isinstance(error, TypeError | ValueError) and str(error)
    return DecodeError(str(error) if is_said else f"{type(error).__name__}: {error}".rstrip(": "), where)
