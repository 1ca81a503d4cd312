"""The compiled fast path of `_decoding`: one generated function per model that sets its fields.

It is an accelerator only: it accepts and rejects what the cattrs converter does, but does not say why.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from types import NoneType, UnionType
from typing import Any, Union, cast, get_args, get_origin

import attrs

from agentphone._timestamps import parse_timestamp
from agentphone._value_hooks import Hook
from agentphone.models import EXTRA, NULLABLE_LIST, OPTIONAL, json_key


def inner_of_optional(shape: Any) -> Any:
    """Return `X` for `X | None`, and None for any other type."""
    arguments = get_args(shape)
    if get_origin(shape) not in (Union, UnionType) or len(arguments) != 2 or NoneType not in arguments:
        return None
    return next(argument for argument in arguments if argument is not NoneType)


def is_compilable(cls: Any) -> bool:
    """Return whether this is a model, and setting its fields is all that creating one does."""
    return (
        isinstance(cls, type)
        and attrs.has(cls)
        and any(EXTRA in field.metadata for field in attrs.fields(cls))
        and all(field.init and not field.converter and not field.validator for field in attrs.fields(cls))
        and not any(hasattr(cls, f"__attrs_{when}_init__") for when in ("pre", "post"))
    )


def compile_list_decoder(cls: Any, hook_of: Callable[[attrs.Attribute[Any]], Hook]) -> Hook:
    """Generate and compile the function that creates a list of models.

    cattrs calls a function for each item and each field, and then an `__init__` that calls `object.__setattr__` for
    each, because the models are frozen: a whole page takes twice as long, JSON included. This function sets the fields
    of a mutable subclass, and then changes the object's class to the model, before anybody else has seen it. If it
    raises anything, `decode_with_path` decodes once more and finds the reason.

    Args:
        cls: A model for which `is_compilable`.
        hook_of: Returns the hook of a field that is neither plain nor a timestamp.
    """
    fields = [field for field in attrs.fields(cls) if EXTRA not in field.metadata]
    optional = [field for field in fields if OPTIONAL in field.metadata]
    described = [field for field in fields if field not in optional]
    mutable = {
        "__slots__": (),
        "__setattr__": object.__setattr__,
        "__delattr__": object.__delattr__,  # Python has one slot for both
        "__repr__": object.__repr__,  # a traceback with locals prints a model that is half made
    }
    names: dict[str, Any] = {
        "UTC": UTC,
        "cls": cls,
        "known": frozenset(json_key(cls, field.name) for field in fields),
        "new": object.__new__,
        "parse_timestamp": parse_timestamp,
        "parse_iso": datetime.fromisoformat,
        "mutable_base": type(cls.__name__, (cls,), mutable),
        "type": type,
        **{plain.__name__: plain for plain in _PLAIN},
    }
    lines = [
        "if type(raw) is not dict: raise TypeError",
        f"model, unknown = new(mutable_base), len(raw) - {len(described)}",
    ]
    for field in described:
        key, default = json_key(cls, field.name), field.default
        set_field = _set_field(field, f"raw[{key!r}]", hook_of, names)
        if default is not attrs.NOTHING:
            call = "()" if isinstance(default, attrs.Factory) else ""  # type: ignore[arg-type]  # a class, which its stub calls a function
            names[f"default_{field.name}"] = default.factory if call else default
            absent = f"else: model.{field.name}, unknown = default_{field.name}{call}, unknown + 1"
            set_field = [f"if {key!r} in raw:", *(f" {line}" for line in set_field), absent]
        lines += set_field
    lines += ["model.extra = extra = {}"]
    for default in (None, ()):  # all at once: responses without any optional field cost little
        targets = [f"model.{field.name} = " for field in optional if field.default == default]
        lines += ["".join(targets) + repr(default)] if targets else []
    lines += ["if unknown:"]
    for field in optional:
        key = json_key(cls, field.name)
        set_field = _set_field(field, f"raw[{key!r}]", hook_of, names)
        if field.metadata[OPTIONAL]:  # any value will do
            default = f"model.{field.name}, extra[{key!r}] = {field.default!r}, raw[{key!r}]"
            rejected = ["except RecursionError: raise", f"except Exception: {default}"]
            set_field = ["try:", *(f" {line}" for line in set_field), *rejected]
        lines += [f" if {key!r} in raw:", "  unknown -= 1", *(f"  {line}" for line in set_field)]
    lines += [
        " if unknown:",
        "  for key in raw:",
        "   if key not in known: extra[key] = raw[key]",
        "model.__class__ = cls",
        "add(model)",
    ]
    source = [
        f"def make({', '.join(names)}):",  # a nested function finds these names faster than globals
        " def structure(raws, _):",
        "  models = []",
        "  add = models.append",
        "  for raw in raws:",
        *(f"   {line}" for line in lines),
        "  return models",
        " return structure",
    ]
    scope: dict[str, Any] = {}
    exec("\n".join(source), scope)  # noqa: S102  # as attrs and cattrs do; only the names of our own fields go in
    return cast("Hook", scope["make"](**names))


_PLAIN = (str, int, bool, dict)


def _set_field(
    field: attrs.Attribute[Any], source: str, hook_of: Callable[[attrs.Attribute[Any]], Hook], names: dict[str, Any]
) -> list[str]:
    """Return the lines that set a field from the expression `source`."""
    inner = inner_of_optional(field.type)
    shape: Any = field.type if inner is None else inner
    plain = get_origin(shape) or shape
    if plain in _PLAIN:
        may_be_null = "" if inner is None else " and value is not None"
        return [
            f"model.{field.name} = value = {source}",
            f"if type(value) is not {plain.__name__}{may_be_null}: raise TypeError",
        ]
    if plain is datetime:
        return [
            f"value = {source}",
            "if False: pass" if inner is None else f"if value is None: model.{field.name} = None",
            "else:",
            f" model.{field.name} = timestamp = parse_iso(value)",
            # A timestamp in UTC has an offset and therefore a time: nothing is left for `parse_timestamp` to check.
            f" if timestamp.tzinfo is not UTC: model.{field.name} = parse_timestamp(value)",
        ]
    names[f"hook_{field.name}"] = hook_of(field)
    if NULLABLE_LIST in field.metadata:
        empty = f"if value is None or value == []: model.{field.name} = ()"
        return [f"value = {source}", empty, f"else: model.{field.name} = hook_{field.name}(value, None)"]
    return [f"model.{field.name} = hook_{field.name}({source}, None)"]
