"""The one cattrs converter: JSON bytes to models, strictly. It knows the shapes, not HTTP.

Strict where a mistake would spread (types, required fields, instants), tolerant where the API may grow (unknown fields
go to `extra`, open sets are plain strings). Nothing but `DecodeError` comes out of `decode`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import cache
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, cast, get_args, get_origin

import attrs
from cattrs import Converter
from cattrs.errors import AttributeValidationNote, BaseValidationError, IterableValidationNote
from cattrs.gen import make_dict_structure_fn, override

T = TypeVar("T")

Hook = Callable[[Any, Any], Any]

NULL_IS_EMPTY = {"media_urls", "recent_history"}
"""Lists that no page promises to be there: null there says what their absence says."""


class DecodeError(Exception):
    """The bytes are not JSON, or not of the shape asked for; `path` says where, in the JSON's own names."""

    def __init__(self, what: str, path: str = "") -> None:
        super().__init__(what, path)
        self.what = what
        self.path = path


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
        return _explain(raw, shape)


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


def parse_instant(text: str) -> datetime:
    """Parse an ISO 8601 date and time; one without an offset is in UTC.

    Raises:
        ValueError: It is no date with a time.
    """
    instant = datetime.fromisoformat(text)
    if ":" not in text and "T" not in text:
        raise ValueError(f"a date without a time: {text!r}")
    if instant.tzinfo is UTC:
        return instant
    try:
        return instant.replace(tzinfo=UTC) if instant.tzinfo is None else instant.astimezone(UTC)
    except OverflowError:
        raise ValueError(f"outside the years 1 to 9999 in UTC: {text!r}") from None


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
    return parse_instant(value)


STRICT: Mapping[Any, Hook] = {
    **{plain: _strict(plain) for plain in (str, int, bool, dict, list)},
    float: _structure_float,
    datetime: _structure_instant,
}
"""What passes a value of exactly one JSON type, and raises whatever says what is wrong with any other."""


def _is_optional(shape: Any) -> bool:
    return _origin(shape) in (Union, UnionType) and NoneType in get_args(shape)


def _origin(shape: Any) -> Any:
    """Give the class of a generic one, `Page` of `Page[Message]`; any other as it is."""
    return get_origin(shape) or shape


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
        known = frozenset(map(camel, names))
        overrides = {name: override(rename=camel(name)) for name in names}
        for name in NULL_IS_EMPTY & set(names):
            shape_of_list = getattr(attrs.fields(cls), name).type
            overrides[name] = override(rename=camel(name), struct_hook=null_is_empty(shape_of_list))
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
            return (null_is_empty if field.name in NULL_IS_EMPTY else converter.get_structure_hook)(field.type)

        return _write_out(cls, hook_of)

    return converter


def _is_plain(shape: Any) -> bool:
    """Whether this is a model that is made by setting its fields: nothing of the class's own wants to run."""
    return (
        attrs.has(shape)
        and get_origin(shape) is None
        and all(field.init and not field.converter and not field.validator for field in attrs.fields(shape))
        and not any(hasattr(shape, f"__attrs_{when}_init__") for when in ("pre", "post"))
    )


def _write_out(cls: Any, hook_of: Callable[[attrs.Attribute[Any]], Hook]) -> Hook:
    """Write the function that makes models of a list, field after field in one piece, and compile it.

    cattrs' own calls a function for each item and each field, and then an `__init__` that goes through
    `object.__setattr__` for each, the class being frozen: twice as long for a whole page, JSON included. This one sets
    the fields of a subclass that is not frozen, and makes it the class itself before anybody else has seen it. What it
    refuses, `_explain` looks at once more, so that any exception will do.

    Args:
        cls: The model.
        hook_of: Gives the hook of a field that is neither plain nor an instant.
    """
    fields = [field for field in attrs.fields(cls) if field.name != "extra"]
    thaw = {
        "__slots__": (),
        "__setattr__": object.__setattr__,
        "__delattr__": object.__delattr__,  # Python has one slot for both
        "__repr__": object.__repr__,  # a traceback with locals prints a model that is made by half
    }
    names: dict[str, Any] = {
        "UTC": UTC,
        "cls": cls,
        "known": frozenset(camel(field.name) for field in fields),
        "new": object.__new__,
        "parse_instant": parse_instant,
        "parse_iso": datetime.fromisoformat,
        "thawed": type(cls.__name__, (cls,), thaw),
        "type": type,
        **{plain.__name__: plain for plain in _PLAIN},
    }
    lines = [
        "if type(raw) is not dict: raise TypeError",
        f"made, unknown = new(thawed), len(raw) - {len(fields)}",
    ]
    for field in fields:
        key, default = camel(field.name), field.default
        read = _write_field(field, f"raw[{key!r}]", hook_of, names)
        if default is not attrs.NOTHING:
            make = "()" if isinstance(default, attrs.Factory) else ""  # type: ignore[arg-type]  # a class, which its stub calls a function
            names[f"default_{field.name}"] = default.factory if make else default
            absent = f"else: made.{field.name}, unknown = default_{field.name}{make}, unknown + 1"
            read = [f"if {key!r} in raw:", *(f" {line}" for line in read), absent]
        lines += read
    if len(fields) < len(attrs.fields(cls)):
        lines += [
            "made.extra = extra = {}",
            "if unknown:",
            " for key in raw:",
            "  if key not in known: extra[key] = raw[key]",
        ]
    lines += ["made.__class__ = cls", "add(made)"]
    source = [
        f"def write({', '.join(names)}):",  # a function inside another finds its names sooner than globals
        " def structure(raws, _):",
        "  models = []",
        "  add = models.append",
        "  for raw in raws:",
        *(f"   {line}" for line in lines),
        "  return models",
        " return structure",
    ]
    scope: dict[str, Any] = {}
    exec("\n".join(source), scope)  # noqa: S102  # as attrs and cattrs do; what goes in are names of our own
    return cast("Hook", scope["write"](**names))


_PLAIN = (str, int, bool, dict)


def _write_field(
    field: attrs.Attribute[Any], source: str, hook_of: Callable[[attrs.Attribute[Any]], Hook], names: dict[str, Any]
) -> list[str]:
    """Write the lines that set a field from what `source` gives."""
    shape: Any = field.type
    inner = [arg for arg in get_args(shape) if arg is not NoneType] if _is_optional(shape) else [shape]
    plain = _origin(inner[0]) if len(inner) == 1 else None
    if plain in _PLAIN:
        may_be_null = " and value is not None" if _is_optional(shape) else ""
        return [
            f"made.{field.name} = value = {source}",
            f"if type(value) is not {plain.__name__}{may_be_null}: raise TypeError",
        ]
    if plain is datetime:
        return [
            f"value = {source}",
            f"if value is None: made.{field.name} = None" if _is_optional(shape) else "if False: pass",
            "else:",
            f" made.{field.name} = instant = parse_iso(value)",
            # What is in UTC has an offset, and so a time: all that `parse_instant` is there for.
            f" if instant.tzinfo is not UTC: made.{field.name} = parse_instant(value)",
        ]
    names[f"hook_{field.name}"], names[f"shape_{field.name}"] = hook_of(field), shape
    return [f"made.{field.name} = hook_{field.name}({source}, shape_{field.name})"]


def _explain(raw: Any, shape: type[T]) -> T:
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
                    path.append(f".{camel(note.name)}")
                elif isinstance(note, IterableValidationNote):
                    path.append(f"[{note.index}]")
        what = "the field is missing" if isinstance(cause, KeyError) else str(cause)
        raise DecodeError(what, "".join(path).removeprefix(".")) from None
