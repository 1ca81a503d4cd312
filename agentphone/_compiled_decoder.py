"""The compiled fast path of the decoder: one function per model that fills its fields. It only accelerates `_decoding`."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, cast, get_args, get_origin

import attrs

from agentphone._json import to_camel_case
from agentphone._timestamps import parse_timestamp

T = TypeVar("T")


Hook = Callable[[Any, Any], Any]


def _is_optional(shape: Any) -> bool:
    return _origin(shape) in (Union, UnionType) and NoneType in get_args(shape)


def _origin(shape: Any) -> Any:
    """Give the class of a generic one, `Page` of `Page[Message]`; any other as it is."""
    return get_origin(shape) or shape


def _is_plain(shape: Any) -> bool:
    """Whether this is a model that is made by setting its fields: nothing of the class's own wants to run."""
    return (
        attrs.has(shape)
        and get_origin(shape) is None
        and all(field.init and not field.converter and not field.validator for field in attrs.fields(shape))
        and not any(hasattr(shape, f"__attrs_{when}_init__") for when in ("pre", "post"))
    )


def compile_list_decoder(cls: Any, hook_of: Callable[[attrs.Attribute[Any]], Hook]) -> Hook:
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
        "known": frozenset(to_camel_case(field.name) for field in fields),
        "new": object.__new__,
        "parse_instant": parse_timestamp,
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
        key, default = to_camel_case(field.name), field.default
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
