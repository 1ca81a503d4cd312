"""The one cattrs converter: JSON bytes to models, strictly. It knows the shapes, not HTTP.

Strict where a mistake would spread (types, required fields, instants), tolerant where the API may grow (unknown fields
go to `extra`, open sets are plain strings). Nothing but `DecodeError` comes out of `decode`.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from functools import cache
from types import NoneType
from typing import Any, TypeVar, get_args

import attrs
from cattrs import Converter
from cattrs.errors import AttributeValidationNote, BaseValidationError, IterableValidationNote
from cattrs.gen import make_dict_structure_fn, override

from agentphone._compiled_decoder import Hook, _is_optional, _is_plain, _origin, compile_list_decoder
from agentphone._json import DecodeError, parse_json, to_camel_case
from agentphone._timestamps import parse_timestamp

T = TypeVar("T")


NULLABLE_LISTS = {"media_urls", "recent_history"}
"""Lists that no page promises to be there: null there says what their absence says."""


def decode(body: bytes, shape: type[T]) -> T:
    """Decode a JSON body into a model.

    Args:
        body: The body, UTF-8.
        shape: The model's class, generic arguments included: `Page[Message]`.

    Returns:
        The model.

    Raises:
        DecodeError: The body is not JSON, or not of that shape.
    """
    return structure(parse_json(body), shape)


def structure(raw: Any, shape: type[T]) -> T:
    """Make a model of JSON that was parsed already.

    Raises:
        DecodeError: It is not of that shape.
    """
    try:
        return _converter(detailed=False).structure(raw, shape)
    except Exception:  # noqa: BLE001  # whatever is wrong, the second and slower look below says where it is
        return _decode_with_path(raw, shape)


class _WrongTypeError(Exception):
    """A JSON value is of another type than the field wants."""


_JSON_NAMES = {dict: "an object", list: "an array", str: "a string", bool: "true or false", NoneType: "null"}


def _wrong_type(value: Any, wanted: str) -> _WrongTypeError:
    return _WrongTypeError(f"{wanted} is wanted, here is {_JSON_NAMES.get(type(value), 'a number')}")


def _strict(wanted: type) -> Hook:
    """Make a hook that passes exactly this JSON type: cattrs' own would turn 5 into "5" and "false" into True."""
    name = _JSON_NAMES.get(wanted, "an integer")

    def structure(value: Any, _: Any) -> Any:
        # type() and not isinstance(): JSON makes no subclasses, and True is an int to isinstance().
        if type(value) is wanted:
            return value
        raise _wrong_type(value, name)

    return structure


def _structure_float(value: Any, _: Any) -> float:
    if type(value) is float or type(value) is int:
        return float(value)
    raise _wrong_type(value, "a number")


def _structure_instant(value: Any, _: Any) -> datetime:
    if type(value) is not str:
        raise _wrong_type(value, "an ISO 8601 instant")
    return parse_timestamp(value)


STRICT: Mapping[Any, Hook] = {
    **{plain: _strict(plain) for plain in (str, int, bool, dict, list)},
    float: _structure_float,
    datetime: _structure_instant,
}
"""What passes a value of exactly one JSON type, and raises whatever says what is wrong with any other."""


@cache
def _converter(*, detailed: bool) -> Converter:
    """Make the converter; the detailed one is slower and knows where it failed."""
    converter = Converter(detailed_validation=detailed)
    for plain in (str, int, bool):
        converter.register_structure_hook(plain, _strict(plain))
    converter.register_structure_hook(float, _structure_float)
    converter.register_structure_hook(datetime, _structure_instant)
    converter.register_structure_hook_func(lambda shape: _origin(shape) is dict, _strict(dict))

    # Registered as factories, so that each field's hook is found once and called directly, not dispatched each time.
    @converter.register_structure_hook_factory(_is_optional)
    def optional(shape: Any) -> Hook:
        (inner,) = (arg for arg in get_args(shape) if arg is not NoneType)
        structure_inner: Hook = converter.get_structure_hook(inner)
        return lambda value, _: None if value is None else structure_inner(value, inner)

    @converter.register_structure_hook_factory(lambda shape: _origin(shape) is tuple)
    def sequence(shape: Any) -> Hook:
        as_list_of: Any = list.__class_getitem__(get_args(shape)[0])
        structure_list: Hook = converter.get_structure_hook(as_list_of)

        def structure(value: Any, _: Any) -> tuple[Any, ...]:
            if type(value) is not list:  # a string would be taken for a list of letters
                raise _wrong_type(value, "an array")
            return tuple(structure_list(value, as_list_of))

        return structure

    def null_is_empty(shape: Any) -> Hook:
        structure_list: Hook = converter.get_structure_hook(shape)
        return lambda value, _: () if value is None else structure_list(value, shape)

    @converter.register_structure_hook_factory(lambda shape: attrs.has(_origin(shape)))
    def model(shape: Any) -> Hook:
        cls: Any = _origin(shape)
        attrs.resolve_types(cls)
        if not detailed and _is_plain(shape):
            as_list_of: Any = list.__class_getitem__(shape)
            structure_list: Hook = converter.get_structure_hook(as_list_of)
            return lambda value, _: structure_list((value,), as_list_of)[0]
        names = [field.name for field in attrs.fields(cls) if field.name != "extra"]
        known = frozenset(map(to_camel_case, names))
        overrides = {name: override(rename=to_camel_case(name)) for name in names}
        for name in NULLABLE_LISTS & set(names):
            shape_of_list = getattr(attrs.fields(cls), name).type
            overrides[name] = override(rename=to_camel_case(name), struct_hook=null_is_empty(shape_of_list))
        has_extra = len(names) < len(attrs.fields(cls))
        if has_extra:
            overrides["extra"] = override(omit=True)
        structure_known: Hook = make_dict_structure_fn(shape, converter, **overrides)  # type: ignore[arg-type]  # its keyword arguments mix overrides and switches

        def structure(value: Any, _: Any) -> Any:
            if type(value) is not dict:
                raise _wrong_type(value, "an object")
            made = structure_known(value, shape)
            if has_extra and not value.keys() <= known:
                # The one place that writes to a frozen model: before anybody else has seen it.
                object.__setattr__(made, "extra", {key: value[key] for key in value if key not in known})
            return made

        return structure

    @converter.register_structure_hook_factory(
        lambda shape: not detailed and _origin(shape) is list and _is_plain(get_args(shape)[0])
    )
    def plain_models(shape: Any) -> Hook:
        (cls,) = get_args(shape)
        attrs.resolve_types(cls)

        def hook_of(field: attrs.Attribute[Any]) -> Hook:
            return (null_is_empty if field.name in NULLABLE_LISTS else converter.get_structure_hook)(field.type)

        return compile_list_decoder(cls, hook_of)

    return converter


def _decode_with_path(raw: Any, shape: type[T]) -> T:
    """Structure once more with the detailed converter, to say where it fails."""
    try:
        return _converter(detailed=True).structure(raw, shape)
    except Exception as error:  # noqa: BLE001  # hooks may raise anything; all of it means "not of that shape"
        path: list[str] = []
        cause: BaseException = error
        while isinstance(cause, BaseValidationError):
            cause = cause.exceptions[0]
            for note in reversed(getattr(cause, "__notes__", ())):
                if isinstance(note, AttributeValidationNote):
                    path.append(f".{to_camel_case(note.name)}")
                elif isinstance(note, IterableValidationNote):
                    path.append(f"[{note.index}]")
        what = "the field is missing" if isinstance(cause, KeyError) else str(cause)
        raise DecodeError(what, "".join(path).removeprefix(".")) from None
