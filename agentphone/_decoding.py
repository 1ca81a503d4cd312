"""JSON to attrs classes, strictly, by one cattrs converter: models, webhook payloads and the states of callers.

Types are checked strictly and nothing is coerced: cattrs' own hooks would turn 5 into "5", "false" into True, a string
into a list of letters, and a `StrEnum` into a plain string. Where the API may grow, models are tolerant: unknown fields
go to `extra`, open sets are plain strings. Nothing but `DecodeError` is raised for JSON that does not fit.
"""

from __future__ import annotations

import builtins
import datetime
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from enum import EnumType
from functools import lru_cache
from typing import Any, Literal, TypeVar, get_args, get_origin

import attrs
from cattrs import Converter
from cattrs.errors import AttributeValidationNote, BaseValidationError, IterableValidationNote
from cattrs.gen import make_dict_structure_fn_from_attrs, override

from agentphone._compiled_decoder import compile_list_decoder, inner_of_optional, is_compilable
from agentphone._json import DecodeError, parse_json
from agentphone._state_classes import (
    QUALIFIERS,
    Created,
    StateField,
    first_error,
    is_pydantic,
    is_state_class,
    state_fields,
    validate,
)
from agentphone._value_hooks import HOOKS, Hook, check_dict, check_list, null_is_empty, nullable, one_of, unchanged
from agentphone.models import EXTRA, NULLABLE_LIST, OPTIONAL, json_key

T = TypeVar("T")

_created: ContextVar[Created | None] = ContextVar("_created", default=None)


def decode(body: bytes, response_type: type[T]) -> T:
    """Decode a JSON body.

    Args:
        body: The body, UTF-8.
        response_type: The model's class, generic arguments included: `Page[Message]`.

    Returns:
        The model.

    Raises:
        DecodeError: The body is not JSON, or not of that type.
    """
    return structure(parse_json(body), response_type)


def structure(raw: Any, model: type[T]) -> T:
    """Create a model from parsed JSON.

    Raises:
        DecodeError: The JSON does not fit the model.
    """
    structured: T = _structure(raw, model, "", is_state=False)
    return structured


def structure_state(raw: Any, cls: type[T], root: str, created: Created | None) -> T:
    """Create an object of a caller's class from parsed JSON.

    Unlike a model, it has no `extra`: its unknown fields are ignored. The class's own code runs.

    Args:
        raw: The JSON. The object shares its parts.
        cls: The class.
        root: The name of `raw` in the paths of errors.
        created: Where to record the objects of state classes that are created, or None.

    Raises:
        DecodeError: The JSON does not fit the class.
        TypeError: See `structure_hook`.
    """
    token = _created.set(created)
    try:
        structured: T = _structure(raw, cls, root, is_state=True)
    finally:
        _created.reset(token)
    return structured


@lru_cache(maxsize=256)  # bounded: a program may create classes as it runs
def structure_hook(cls: Any, *, is_state: bool, detailed: bool = False) -> Hook:
    """Return the function that creates objects of a class; the detailed one is slower and adds paths to errors.

    Raises:
        TypeError: A field of the class has a type that is not supported, or an annotation that cannot be resolved.
    """
    return StrictConverter(is_state=is_state, detailed=detailed).get_structure_hook(cls)


def _structure(raw: Any, cls: Any, root: str, *, is_state: bool) -> Any:
    hook = structure_hook(cls, is_state=is_state)
    try:
        return hook(raw, cls)
    except RecursionError:
        raise DecodeError(TOO_DEEP, root) from None
    except Exception:  # noqa: BLE001  # whatever is wrong, the second pass finds where
        return decode_with_path(raw, cls, root, is_state=is_state)


def decode_with_path(raw: Any, cls: Any, root: str, *, is_state: bool) -> Any:
    """Structure once more with the detailed converter, and raise the first error with its path."""
    hook = structure_hook(cls, is_state=is_state, detailed=True)
    try:
        return hook(raw, cls)
    except Exception as error:  # noqa: BLE001  # hooks raise anything; all of it means that the JSON does not fit
        cause: BaseException = error
        path = [root]
        while True:
            notes = getattr(cause, "__notes__", ())
            path += [_path_part(note) for note in reversed(notes)]
            if not isinstance(cause, BaseValidationError):
                break
            cause = cause.exceptions[0]
        if isinstance(cause, RecursionError):
            raise DecodeError(TOO_DEEP, root) from None
        # A KeyError with the note of a field is cattrs' own look-up; one that the class's code raised has none.
        is_missing = isinstance(cause, KeyError) and any(isinstance(note, AttributeValidationNote) for note in notes)
        reason = MISSING if is_missing else describe(cause)
        raise DecodeError(reason, "".join(path).removeprefix(".")) from None


TOO_DEEP = "it is nested too deeply"
MISSING = "the field is missing"


def _record(created: Any, raw: dict[str, Any]) -> None:
    if (record := _created.get()) is not None:
        record.append((created, raw))


def _path_part(note: object) -> str:
    if isinstance(note, AttributeValidationNote):
        return "." + note.name.removeprefix(_KEY)
    if isinstance(note, IterableValidationNote):
        return f"[{note.index}]" if isinstance(note.index, int) else f".{note.index}"
    return ""


def describe(error: BaseException) -> str:
    """Return an error's text, with its type where the text of a KeyError or an assert alone would say nothing."""
    is_clear = isinstance(error, TypeError | ValueError) and str(error)
    return str(error) if is_clear else f"{type(error).__name__}: {error}".rstrip(": ")


def _with_note(hook: Hook) -> Callable[[int | str, Any], Any]:
    """Return a function for the items of an array or object, whose errors get a note with the index or key."""

    def structure(index: int | str, item: Any) -> Any:
        try:
            return hook(item, None)
        except Exception as error:
            error.add_note(IterableValidationNote(f"at {index!r}", index, None))
            raise

    return structure


def _ignoring_index(hook: Hook) -> Callable[[int | str, Any], Any]:
    return lambda _, item: hook(item, None)


def _checked_by(converter: Callable[[Any], Any], hook: Hook) -> Hook:
    """Return a hook that also runs a field's own converter, so that its errors get the path of the field."""

    def structure(value: Any, _: Any) -> Any:
        structured = hook(value, None)
        try:
            converter(structured)
        except Exception as error:  # noqa: BLE001  # the caller's code
            raise ValueError(describe(error)) from None
        return structured

    return structure


_KEY = "key_"
"""Before the names of fields in cattrs' generated code, where a field `converter` would clash with an argument."""


class StrictConverter(Converter):
    """A cattrs converter that supports the types below, and raises `TypeError` for any other.

    It replaces cattrs' dispatch, which looks for hooks by base class first, and so finds that of `str` for a `StrEnum`.

    Args:
        is_state: Whether the classes are a caller's, and the objects to be recorded; otherwise they are models.
        detailed: Whether errors get the path where they occurred.
    """

    def __init__(self, *, is_state: bool, detailed: bool) -> None:
        super().__init__(detailed_validation=detailed)
        self._is_state = is_state
        self._class_hooks: dict[Any, Hook] = {}

    def get_structure_hook(self, type: Any, cache_result: bool = True) -> Hook:  # noqa: A002  # cattrs' signature
        """Return the hook for a type.

        Raises:
            TypeError: The type is not supported.
        """
        origin, arguments = get_origin(type) or type, get_args(type)
        if not arguments and origin in HOOKS:
            return HOOKS[origin]
        if origin in QUALIFIERS:
            return self.get_structure_hook(arguments[0])
        if origin is Literal:
            return one_of([(value, value) for value in arguments])
        if (inner := inner_of_optional(type)) is not None:
            return nullable(self.get_structure_hook(inner))
        if origin is list:
            return self._list(arguments[0])
        if origin is dict and arguments[0] is str:
            return self._dict(arguments[1])
        if origin is tuple:
            return self._tuple(arguments)
        if isinstance(type, EnumType):
            members: list[Any] = list(type)
            return one_of([(member, member.value) for member in members])
        if isinstance(origin, builtins.type) and attrs.has(origin):
            return self._class(type, origin)
        if self._is_state and is_state_class(origin):
            return self._pydantic(origin) if is_pydantic(origin) else self._by_fields(type, origin)
        name = type.__name__ if isinstance(type, builtins.type) and not arguments else type
        advice = "store its isoformat() as a str" if type in (datetime.date, datetime.time) else _SUPPORTED
        raise TypeError(f"the type {name} is not supported; {advice}")

    def _list(self, item_type: Any) -> Hook:
        if self._compiles(item_type):
            decode_list = self._compile(item_type)
            return lambda value, _: decode_list(check_list(value, None), None)
        hook = self.get_structure_hook(item_type)
        if not self.detailed_validation:
            return lambda value, _: [hook(item, None) for item in check_list(value, None)]
        structure_item = _with_note(hook)
        return lambda value, _: [structure_item(*pair) for pair in enumerate(check_list(value, None))]

    def _dict(self, item_type: Any) -> Hook:
        hook = self.get_structure_hook(item_type)
        if hook is unchanged:
            return check_dict
        if not self.detailed_validation:
            return lambda value, _: {key: hook(item, None) for key, item in check_dict(value, None).items()}
        structure_item = _with_note(hook)
        return lambda value, _: {key: structure_item(key, item) for key, item in check_dict(value, None).items()}

    def _tuple(self, item_types: Sequence[Any]) -> Hook:
        if not item_types or item_types[1:] == (...,):
            structure_list = self._list(item_types[0] if item_types else Any)
            return lambda value, _: tuple(structure_list(value, None))
        hooks = [self.get_structure_hook(item_type) for item_type in item_types]
        items = [_with_note(hook) if self.detailed_validation else _ignoring_index(hook) for hook in hooks]

        def structure(value: Any, _: Any) -> Any:
            if len(check_list(value, None)) != len(items):
                raise ValueError(f"expected {len(items)} items, got {len(value)}")
            return tuple(item(index, one) for index, (item, one) in enumerate(zip(items, value, strict=True)))

        return structure

    def _class(self, shape: Any, cls: Any) -> Hook:
        """Return the hook of an attrs class; `shape` has its generic arguments, if any."""
        if self._compiles(shape):
            decode_list = self._compile(shape)
            return lambda value, _: decode_list((value,), None)[0]
        if shape in self._class_hooks:
            return self._class_hooks[shape]
        # For a field that holds the same class: the hook is looked up when it is called.
        self._class_hooks[shape] = lambda value, _: self._class_hooks[shape](value, None)
        state_fields(cls)  # which resolves the types
        fields = {json_key(cls, field.name): field for field in attrs.fields(cls) if field.init}
        has_extra = not self._is_state and any(EXTRA in field.metadata for field in fields.values())
        if has_extra:
            del fields["extra"]
        types = dict(zip(getattr(cls, "__parameters__", ()), get_args(shape), strict=False))
        hooks = {key: self._field(cls, field, types) for key, field in fields.items()}
        optional = {key: field for key, field in fields.items() if has_extra and field.metadata.get(OPTIONAL)}
        described = {key: field for key, field in fields.items() if key not in optional}
        structure_described: Hook = make_dict_structure_fn_from_attrs(
            [field.evolve(name=_KEY + key, alias=field.alias, type=None) for key, field in described.items()],
            cls,
            self,
            {parameter.__name__: Any for parameter in getattr(cls, "__parameters__", ())},
            _cattrs_use_linecache=False,
            **{_KEY + key: override(rename=key, struct_hook=hooks[key]) for key in described},  # type: ignore[arg-type]  # its keyword arguments mix overrides and switches
        )

        def structure(value: Any, _: Any) -> Any:
            created = structure_described(check_dict(value, None), None)
            if has_extra and not value.keys() <= described.keys():
                extra = {}
                for key in (key for key in optional if key in value):
                    try:
                        # The one place that changes a frozen model: nobody else has seen it yet.
                        object.__setattr__(created, optional[key].name, hooks[key](value[key], None))
                    except RecursionError:
                        raise
                    except Exception:  # noqa: BLE001  # whatever is wrong, it does not fit
                        extra[key] = value[key]
                extra |= {key: value[key] for key in value if key not in fields}
                object.__setattr__(created, "extra", extra)
            if self._is_state:
                _record(created, value)
            return created

        self._class_hooks[shape] = structure
        return structure

    def _by_fields(self, shape: Any, cls: Any) -> Hook:
        """Return the hook of a dataclass or TypedDict."""
        if shape in self._class_hooks:
            return self._class_hooks[shape]
        self._class_hooks[shape] = lambda value, _: self._class_hooks[shape](value, None)
        types = dict(zip(getattr(cls, "__parameters__", ()), get_args(shape), strict=False))
        fields = [(field, self._field_hook(cls, field, types)) for field in state_fields(cls)]

        def structure(value: Any, _: Any) -> Any:
            check_dict(value, None)
            found: dict[str, Any] = {}
            for field, hook in fields:
                if field.key in value:
                    try:
                        found[field.name] = hook(value[field.key], None)
                    except Exception as error:
                        error.add_note(AttributeValidationNote("", field.key, None))
                        raise
                elif field.is_required:
                    missing = ValueError(MISSING)
                    missing.add_note(AttributeValidationNote("", field.key, None))
                    raise missing
            try:
                created = cls(**found)
            except RecursionError:
                raise
            except Exception as error:  # noqa: BLE001  # the caller's code
                raise ValueError(describe(error)) from None
            _record(created, value)
            return created

        self._class_hooks[shape] = structure
        return structure

    def _pydantic(self, cls: Any) -> Hook:
        """Return the hook of a pydantic model, which validates itself."""
        state_fields(cls)  # which raises for what is not supported

        def structure(value: Any, _: Any) -> Any:
            check_dict(value, None)
            try:
                return validate(cls, value, _created.get())
            except RecursionError:
                raise
            except Exception as error:  # noqa: BLE001  # pydantic's own, or one of the caller's code
                path, reason = first_error(error, cls) if hasattr(error, "errors") else ("", describe(error))
                described = ValueError(reason)
                if path:
                    described.add_note(AttributeValidationNote("", path, None))
                raise described from None

        return structure

    def _field(self, cls: Any, field: attrs.Attribute[Any], types: Mapping[Any, Any]) -> Hook:
        hook = self._field_hook(cls, field, types)
        if NULLABLE_LIST in field.metadata:
            return null_is_empty(hook)
        converter: Any = field.converter  # an attrs.Converter may want the object, which does not exist yet
        if self.detailed_validation and converter and not isinstance(converter, attrs.Converter):
            return _checked_by(converter, hook)
        return hook

    def _field_hook(self, cls: Any, field: attrs.Attribute[Any] | StateField, types: Mapping[Any, Any]) -> Hook:
        shape: Any = field.type
        if isinstance(shape, TypeVar):
            shape = types.get(shape, shape)
        elif parameters := getattr(shape, "__parameters__", ()):
            shape = shape[tuple(types.get(parameter, parameter) for parameter in parameters)]
        try:
            return self.get_structure_hook(shape)
        except TypeError as error:
            raise TypeError(f"{cls.__name__}.{field.name}: {error}") from None

    def _compiles(self, shape: Any) -> bool:
        return not self._is_state and not self.detailed_validation and is_compilable(shape)

    def _compile(self, cls: Any) -> Hook:
        attrs.resolve_types(cls)
        return compile_list_decoder(cls, lambda field: self._field(cls, field, {}))


_SUPPORTED = (
    "use str, int, float, bool, datetime, enums, Literal, list[...], dict[str, ...], tuple[...] or classes (attrs,"
    " dataclasses, TypedDict, pydantic), each also with `| None`, or Any"
)
