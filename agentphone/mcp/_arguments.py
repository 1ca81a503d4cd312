"""Errors about a tool's arguments, in the SDK's words: the name first, then what is wrong, for a model to fix it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

MAX_ERRORS = 5
MAX_SHOWN = 100

EXPECTED: Mapping[str, str] = {
    "string_type": "a string",
    "int_type": "an integer",
    "int_from_float": "an integer",
    "bool_type": "true or false",
    "list_type": "an array",
    "dict_type": "an object",
}


def explain(error: ValidationError, schema: Mapping[str, Any]) -> str:
    """Return what is wrong with the arguments of a call.

    Args:
        error: What pydantic raised.
        schema: The schema of the arguments.
    """
    found = error.errors(include_url=False)
    lines = [_explain(each, schema) for each in found[:MAX_ERRORS]]
    if len(found) > MAX_ERRORS:
        lines.append(f"and {len(found) - MAX_ERRORS} more errors")
    return "; ".join(dict.fromkeys(lines))


def _explain(error: Any, schema: Mapping[str, Any]) -> str:
    head, *rest = error["loc"] or ("arguments",)
    name = _show(head) + "".join(f"[{part}]" if isinstance(part, int) else f".{_show(part)}" for part in rest)
    context = error.get("ctx") or {}
    kind = error["type"]
    if kind.startswith("missing"):
        return f"{name} is missing"
    if kind == "unexpected_keyword_argument":
        return f"{name} is not an argument of this tool; it takes {', '.join(schema['properties'])}"
    got = f", got {_show(repr(error['input']))}"
    if kind in EXPECTED:
        return f"{name} must be {EXPECTED[kind]}{got}"
    if kind == "greater_than_equal":
        return f"{name} must be at least {context['ge']}{got}"
    if kind == "less_than_equal":
        return f"{name} must be at most {context['le']}{got}"
    if kind == "string_too_short":
        return f"{name} must not be empty"
    if kind in ("string_too_long", "too_long"):
        return f"{name} must have at most {context['max_length']} {'characters' if kind[0] == 's' else 'items'}"
    if kind == "literal_error":
        return f"{name} must be {context['expected']}{got}"
    return f"{name}: {error['msg']}{got}"


def _show(value: object) -> str:
    text = str(value)
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "..."
