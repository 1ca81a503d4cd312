"""The classes that a state can be: attrs classes, dataclasses, TypedDicts and pydantic models, each as its fields.

A field `order_id` is the key `orderId`; a pydantic field with an alias has that as its key. pydantic is never imported
here: where one of its models comes, it is loaded already.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from types import UnionType
from typing import Annotated, Any, NotRequired, Required, Union, get_args, get_origin, get_type_hints

import attrs

from agentphone._json import to_camel_case

Created = list[tuple[Any, dict[str, Any]]]
"""Objects of state classes, each with the JSON object that it was created from."""


QUALIFIERS: tuple[Any, ...] = (Annotated, Required, NotRequired)


@attrs.frozen
class StateField:
    """A field of a state class.

    Attributes:
        name: Its attribute; of a TypedDict, its key in Python.
        key: Its key in JSON.
        type: Its annotation, resolved.
        is_required: Whether it must be in the JSON.
        alias: The name that the class takes it under.
    """

    name: str
    key: str
    type: Any
    is_required: bool
    alias: str


def is_pydantic(cls: Any) -> bool:
    """Return whether this is a pydantic model with fields, not one around a single value."""
    pydantic = sys.modules.get("pydantic.main")
    is_model = pydantic is not None and isinstance(cls, type) and issubclass(cls, pydantic.BaseModel)
    return is_model and not cls.__pydantic_root_model__


def is_typed_dict(cls: Any) -> bool:
    """Return whether this is a TypedDict: of `typing`, or of typing_extensions, which `typing` does not know."""
    return isinstance(cls, type) and issubclass(cls, dict) and hasattr(cls, "__required_keys__")


def is_state_class(cls: Any) -> bool:
    """Return whether this is a class whose fields are read and written one by one."""
    is_known = isinstance(cls, type) and (attrs.has(cls) or dataclasses.is_dataclass(cls))
    return is_known or is_typed_dict(cls) or is_pydantic(cls)


@lru_cache(maxsize=256)  # bounded: a program may create classes as it runs
def state_fields(cls: Any) -> tuple[StateField, ...]:
    """Return the fields of a state class that are read from JSON.

    Raises:
        TypeError: A type cannot be resolved, or two fields have the same key.
    """
    if is_pydantic(cls):
        fields = [*_pydantic_fields(cls)]
    elif attrs.has(cls):
        _resolving(cls, attrs.resolve_types, f"call attrs.resolve_types({cls.__name__}, localns=locals()) there")
        fields = [
            StateField(each.name, to_camel_case(each.name), each.type, each.default is attrs.NOTHING, each.alias or "")
            for each in attrs.fields(cls)
            if each.init
        ]
    else:
        hints = _resolving(cls, lambda cls: get_type_hints(cls, include_extras=True), "define both in the module")
        if is_typed_dict(cls):
            required = {name: _is_required(hint, default=name in cls.__required_keys__) for name, hint in hints.items()}
        else:
            missing = dataclasses.MISSING
            required = {
                each.name: each.default is missing and each.default_factory is missing
                for each in dataclasses.fields(cls)
                if each.init
            }
        fields = [
            StateField(name, to_camel_case(name), hints[name], is_required, name)
            for name, is_required in required.items()
        ]
    if len({field.key for field in fields}) < len(fields):
        raise TypeError(f"two fields of {cls.__name__} have the same key in JSON")
    return tuple(fields)


def _resolving(cls: Any, resolve: Callable[[Any], Any], advice: str) -> Any:
    try:
        return resolve(cls)
    except Exception as error:  # noqa: BLE001  # an annotation in quotes is code, and fails in any way
        raise TypeError(
            f"{cls.__name__} has an annotation that cannot be resolved: {error}. If it names a class that is local to a"
            f" function, {advice}."
        ) from None


def _is_required(hint: Any, *, default: bool) -> bool:
    """Return whether a key of a TypedDict is required; with annotations as text, the class itself does not know."""
    origin = get_origin(hint)
    return origin is Required or (origin is not NotRequired and default)


def _pydantic_fields(cls: Any) -> Iterator[StateField]:
    _resolving(cls, lambda cls: cls.model_rebuild(), f"call {cls.__name__}.model_rebuild() there")
    for name, field in cls.model_fields.items():
        alias = field.validation_alias
        if not isinstance(alias, str | None):
            raise TypeError(f"{cls.__name__}.{name}: its alias must be a string, got {alias!r}")
        yield StateField(name, alias or to_camel_case(name), field.annotation, field.is_required(), alias or name)


def members(shape: Any) -> list[Any]:
    """Return the types that a value of an annotation may have: without qualifiers, and those of a union one by one."""
    if (origin := get_origin(shape)) in QUALIFIERS:
        return members(get_args(shape)[0])
    if origin in (Union, UnionType):
        return [member for argument in get_args(shape) for member in members(argument)]
    return [shape]


def class_of(value: Any, shape: Any) -> Any:
    """Return the state class of a value, or None. That of a dict is known from the annotation alone."""
    if is_state_class(type(value)):
        return type(value)
    if type(value) is dict:
        return next((found for member in members(shape) if is_typed_dict(found := get_origin(member) or member)), None)
    return None


def item_shape(shape: Any, index: int) -> Any:
    """Return the annotation of the items of a list, tuple or dict."""
    for member in members(shape):
        arguments = get_args(member)
        if get_origin(member) is tuple and arguments[1:] != (...,):
            return arguments[index] if index < len(arguments) else Any
        if arguments:
            return arguments[-2 if arguments[-1] is ... else -1]
    return Any


def get_items(value: Any, cls: Any) -> dict[str, tuple[str, Any, Any]]:
    """Return the values of an object under their JSON keys, each with its name and its annotation."""
    extra = getattr(value, "__pydantic_extra__", None) or {}  # what a model with extra="allow" keeps
    items: dict[str, tuple[str, Any, Any]] = {key: (key, Any, item) for key, item in extra.items()}
    for field in state_fields(cls):
        if not isinstance(value, dict):
            items[field.key] = field.name, field.type, getattr(value, field.name)
        elif field.name in value:
            items[field.key] = field.name, field.type, value[field.name]
    return items


# ---- pydantic: its own validation and serialization, under our keys


def validate(cls: Any, raw: dict[str, Any], created: Created | None) -> Any:
    """Create a pydantic model from JSON, strictly.

    Args:
        cls: The class.
        raw: The JSON object.
        created: Where to record the objects that are created, or None.

    Raises:
        ValueError: The object does not fit.
    """
    renamed = _rename(raw, cls)
    model = cls.model_validate_json(json.dumps(renamed), strict=True)  # as JSON: a timestamp is a string there
    if created is not None:
        _record(model, raw, cls, created)
    return model


def first_error(error: Any, cls: Any) -> tuple[str, str]:
    """Return the path below the object, and the reason, of a ValidationError."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    shape: Any = cls
    path = ""
    for part in first["loc"]:
        fields = [field for found in _classes(shape) for field in state_fields(found)]
        field = next((each for each in fields if part in (each.alias, each.name)), None)
        if field is not None:
            path, shape = f"{path}.{field.key}", field.type
        elif isinstance(part, int):
            path, shape = f"{path}[{part}]", item_shape(shape, part)
        elif item_shape(shape, 0) is not Any:  # else the name of a validator, or of a member of a union
            path, shape = f"{path}.{part}", item_shape(shape, 0)
    if first["type"] == "extra_forbidden":
        path = f"{path}.{first['loc'][-1]}"
    return path.removeprefix("."), "the field is missing" if first["type"] == "missing" else first["msg"]


def serialize(model: Any) -> Any:
    """Return a pydantic model as JSON under the names of its attributes.

    Raises:
        TypeError: pydantic cannot serialize a value.
    """
    try:
        # No warnings: a value that does not fit is an error once it could not be read back.
        return model.model_dump(mode="json", by_alias=False, warnings=False)
    except ValueError as error:  # PydanticSerializationError
        raise TypeError(f"{type(model).__name__}: {error}") from None


def _classes(shape: Any) -> list[Any]:
    found = [get_origin(member) or member for member in members(shape)]
    return [cls for cls in found if is_state_class(cls)]


def _rename(raw: Any, shape: Any) -> Any:
    """Return JSON with the names that pydantic expects for the keys of objects."""
    if isinstance(raw, list):
        return [_rename(item, item_shape(shape, index)) for index, item in enumerate(raw)]
    if not isinstance(raw, dict):
        return raw
    fields = {field.key: field for cls in _classes(shape) for field in state_fields(cls)}
    if not fields:
        return {key: _rename(item, item_shape(shape, 0)) for key, item in raw.items()}
    names = {field.alias for field in fields.values()}
    unknown = {key: item for key, item in raw.items() if key not in fields and key not in names}
    return unknown | {field.alias: _rename(raw[key], field.type) for key, field in fields.items() if key in raw}


def _record(value: Any, raw: Any, shape: Any, created: Created) -> None:
    """Record the objects in a value, as far as it still has the structure of the JSON that it was created from."""
    if isinstance(raw, dict) and (cls := class_of(value, shape)) is not None:
        created.append((value, raw))
        for key, (_, its_shape, item) in get_items(value, cls).items():
            if key in raw:
                _record(item, raw[key], its_shape, created)
    elif isinstance(raw, dict) and isinstance(value, Mapping):
        for key in raw.keys() & value.keys():
            _record(value[key], raw[key], item_shape(shape, 0), created)
    elif isinstance(raw, list) and isinstance(value, list | tuple) and len(raw) == len(value):
        for index, (item, its_raw) in enumerate(zip(value, raw, strict=True)):
            _record(item, its_raw, item_shape(shape, index), created)
