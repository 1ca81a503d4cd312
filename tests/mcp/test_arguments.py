"""Arguments of every shape, made from the schemas: a tool answers or fails, and the server lives on."""

from __future__ import annotations

from typing import Any

import mcp_types as types
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.mcp.conftest import KEY, Session, text_of

JUNK: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def fitting(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Return values that a schema allows."""
    match schema:
        case {"anyOf": members}:
            return st.one_of([fitting(member) for member in members])
        case {"enum": values}:
            return st.sampled_from(values)
        case {"type": "string"}:
            return st.text(min_size=schema.get("minLength", 0), max_size=schema.get("maxLength", 30))
        case {"type": "integer"}:
            return st.integers(schema.get("minimum"), schema.get("maximum"))
        case {"type": "boolean"}:
            return st.booleans()
        case {"type": "null"}:
            return st.none()
        case {"type": "array"}:
            return st.lists(fitting(schema["items"]), max_size=3)
        case {"type": "object", "properties": properties}:
            required = {name: fitting(properties[name]) for name in schema.get("required", ())}
            optional = {name: fitting(each) for name, each in properties.items() if name not in required}
            return st.fixed_dictionaries(required, optional=optional)
        case {"type": "object"}:
            return st.dictionaries(st.text(max_size=5), JUNK, max_size=3)
    raise AssertionError(f"a schema that this test does not know: {schema}")


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_arbitrary_arguments_are_answered_or_are_tool_errors(
    stdio_session: Session, conversation_id: str, data: st.DataObject
) -> None:
    tool = data.draw(st.sampled_from(_tools(stdio_session)))
    arguments = data.draw(fitting(tool.input_schema))
    for name in data.draw(st.sets(st.sampled_from([*tool.input_schema["properties"], "more"]), max_size=2)):
        arguments[name] = data.draw(JUNK)
    if "conversation_id" in arguments and data.draw(st.booleans()):
        arguments["conversation_id"] = conversation_id
    result = stdio_session.call(tool.name, **arguments)
    assert text_of(result)
    assert "unexpectedly" not in text_of(result)
    assert KEY not in text_of(result)
    assert len(text_of(result)) < 50_000


_LISTED: dict[int, list[types.Tool]] = {}


def _tools(session: Session) -> list[types.Tool]:
    if id(session) not in _LISTED:
        _LISTED[id(session)] = session.portal.call(session.client.list_tools).tools
    return _LISTED[id(session)]
