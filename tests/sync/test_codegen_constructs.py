"""The generator of the sync facade on made-up sources: what it carries over, and what it reports as an error."""

from __future__ import annotations

import re
from collections.abc import Mapping
from textwrap import dedent, indent

import pytest

from agentphone._codegen import Generator, Source

HEAD = '''"""Made up."""

import ssl
from collections.abc import AsyncIterator, Awaitable
from typing import Generic, Literal, TypeVar, overload

import httpx

from agentphone._streams import AsyncStream

T = TypeVar("T")


class AsyncStream(Generic[T]):
    """An iterator without a facade."""


class AsyncOther(Generic[T]):
    """Another."""

'''


def made_up(members: str, *, opening: str = 'class AsyncThing:\n    """A thing."""\n') -> str:
    """Return a module whose last class has these members."""
    return f"{HEAD}\n{opening}\n{indent(dedent(members), '    ')}\n"


def generate(text: str, phrases: Mapping[str, str] | None = None) -> str:
    """Return the facade of a module."""
    return Generator([Source("_made_up.py", text)], phrases or {}).generate()


def generate_members(text: str) -> str:
    """Return the members of the facade's last class, after its constructor."""
    return generate(text).rpartition("\n\n\n")[2].partition("self._async = wrapped\n")[2].strip("\n")


SUPPORTED = {
    # a member of the async class, and its blocking form
    "def f(self, a: int = -1, *, b: str = 'x') -> int:\n    'D.'": (
        "def f(self, a: int = -1, *, b: str = 'x') -> int:\n    'D.'\n    return self._async.f(a, b=b)"
    ),
    "async def f(self, a: int, /, *b: int, **c: int) -> list[int]:\n    'D.'": (
        "def f(self, a: int, /, *b: int, **c: int) -> list[int]:\n    'D.'\n"
        "    return _portal.run(self._async.f, a, *b, **c)"
    ),
    "async def f(self) -> None:\n    'D.'": "def f(self) -> None:\n    'D.'\n    _portal.run(self._async.f)",
    "async def aclose(self) -> None:\n    'D.'": (
        "def close(self) -> None:\n    'D.'\n    _portal.run(self._async.aclose)"
    ),
    "def f(self) -> AsyncStream[dict[str, int]]:\n    'D.'": (
        "def f(self) -> Stream[dict[str, int]]:\n    'D.'\n    return _portal.iterate(self._async.f())"
    ),
    "def f(self) -> AsyncOther[int]:\n    'Return an AsyncOther.'": (
        "def f(self) -> Other[int]:\n    'Return an Other.'\n    return Other(self._async.f())"
    ),
    "@property\ndef f(self) -> int:\n    'D.'": "@property\ndef f(self) -> int:\n    'D.'\n    return self._async.f",
    "@property\ndef f(self) -> AsyncThing:\n    'D.'": (
        "@property\ndef f(self) -> Thing:\n    'D.'\n    return Thing(self._async.f)"
    ),
    "def __aiter__(self) -> AsyncIterator[int]:\n    return self.f()": (
        "def __iter__(self) -> Iterator[int]:\n    return _portal.iterate(self._async.__aiter__())"
    ),
    "async def __aenter__(self) -> AsyncThing:\n    return self": "def __enter__(self) -> Thing:\n    return self",
    "async def __aenter__(self) -> T:\n    'Enter.'\n    return await self.f()": (
        "def __enter__(self) -> T:\n    'Enter.'\n    return _portal.run(self._async.__aenter__)"
    ),
    "async def __aexit__(self, *exc: object) -> bool | None:\n    await self.aclose()": (
        "def __exit__(self, *exc: object) -> bool | None:\n    return _portal.run(self._async.__aexit__, *exc)"
    ),
    "@overload\nasync def f(self, *, a: int = 5) -> int: ...": "@overload\ndef f(self, *, a: int = 5) -> int: ...",
    "@overload\ndef f(\n    self, a: int\n) -> AsyncOther[int]: ...": (
        "@overload\ndef f(self, a: int) -> Other[int]: ..."
    ),
    "def __repr__(self) -> str:\n    return '<AsyncThing>'": (
        'def __repr__(self) -> str:\n    wrapped = getattr(self, "_async", "<Thing (not created)>")\n'
        '    return str(wrapped).replace("AsyncThing", "Thing", 1)'
    ),
    "def f(self, a: httpx.AsyncClient, b: ssl.SSLContext) -> int:\n    'Use an `httpx.AsyncClient`.'": (
        "def f(self, a: httpx.AsyncClient, b: ssl.SSLContext) -> int:\n    'Use an `httpx.AsyncClient`.'\n"
        "    return self._async.f(a, b)"
    ),
    "def f(self, ä: str = 'ßé€😀\x0c\u2028') -> AsyncOther[int]:\n    'Größe.'": (
        "def f(self, ä: str = 'ßé€😀\x0c\u2028') -> Other[int]:\n    'Größe.'\n    return Other(self._async.f(ä))"
    ),
    # not public
    "def _f(self, a: Mystery):\n    yield 1": "",
    "def __init__(self, a: Mystery):\n    pass": "",
    "def __await__(self):\n    return 1": "",
}


@pytest.mark.parametrize("member", SUPPORTED)
def test_supported_construct_is_carried_over(member: str) -> None:
    assert generate_members(made_up(member)) == indent(SUPPORTED[member], "    ")


UNSUPPORTED = {
    # a member of a class, and the error
    "@staticmethod\ndef f() -> int:\n    'D.'": "is decorated with staticmethod",
    "@property\n@cache\ndef f(self) -> int:\n    'D.'": "is decorated with property, cache",
    "limit = 5": "contains a Assign",
    "def __len__(self) -> int:\n    return 1": "AsyncThing.__len__ is not a known special method",
    "async def f(self):\n    'D.'": "AsyncThing.f has no return annotation",
    "async def f(self) -> int:\n    return 1": "f has no docstring",
    "async def __aenter__(self) -> AsyncThing:\n    await self.f()\n    return self": "contains 'AsyncThing'",
    "async def f(self) -> AsyncIterator[int]:\n    'D.'\n    yield 1": "f contains 'AsyncIterator'",
    "async def f(self) -> AsyncOther[int]:\n    'D.'": "f contains 'AsyncOther'",
    "def f(self) -> Awaitable[int]:\n    'D.'": "f contains 'Awaitable'",
    "def f(self) -> list[AsyncOther[int]]:\n    'D.'": "f contains 'AsyncOther'",
    "def f(self) -> AsyncOther[AsyncThing]:\n    'D.'": "f contains 'AsyncThing'",
    "def f(self) -> AsyncOther[int] | None:\n    'D.'": "f contains 'AsyncOther'",
    "def f(self, *, a: AsyncThing) -> int:\n    'D.'": "f contains 'AsyncThing'",
    "def f(self, a: Mystery) -> int:\n    'D.'": "Mystery in a signature is not imported",
    "def f(self) -> int:\n    'Await it.'": "the docstring of f contains 'Await'",
    "def f(self) -> int:\n    'Use `async for`.'": "the docstring of f contains 'async'",
    "def f(self) -> int:\n    'On the event loop.'": "the docstring of f contains 'event loop'",
    "def f(self) -> int:\n    'Like aclose().'": "the docstring of f contains 'aclose'",
    "def f(self) -> int:\n    'A coroutine for Trio.'": "the docstring of f contains 'coroutine'",
    "def f(self) -> int:\n    'An `httpx.AsyncClient`, not an `AsyncMystery`.'": "contains 'AsyncMystery'",
}


@pytest.mark.parametrize("member", UNSUPPORTED)
def test_unsupported_construct_is_an_error_with_file_and_line(member: str) -> None:
    text = made_up(member)
    with pytest.raises(SystemExit) as error:
        generate(text)
    place, _, reason = str(error.value).partition(": ")
    first = text.split("\n").index('    """A thing."""') + 3
    assert re.fullmatch(r"_made_up\.py:\d+", place)
    assert first <= int(place.partition(":")[2]) < first + member.count("\n") + 1
    assert UNSUPPORTED[member] in reason


@pytest.mark.parametrize(
    "opening",
    [
        "class AsyncThing(AsyncOther[int]):\n    'D.'",
        "class AsyncThing(Generic[T], Base):\n    'D.'",
        "class AsyncThing(metaclass=Meta):\n    'D.'",
        "@final\nclass AsyncThing:\n    'D.'",
        "class AsyncThing:\n    'For asyncio.'",
        "class AsyncThing:\n    pass",
    ],
)
def test_unsupported_class_is_an_error(opening: str) -> None:
    with pytest.raises(SystemExit, match=r"^_made_up\.py:\d+: .*AsyncThing"):
        generate(made_up("", opening=opening))


def test_api_key_is_deleted_when_the_constructor_ends() -> None:
    members = "def __init__(self, api_key: str) -> None:\n    self._key = api_key"
    facade = generate(made_up(members, opening="class AsyncClient:\n    'D.'\n"))
    body = "        try:\n            self._async = AsyncClient(api_key)\n        finally:\n            del api_key\n"
    assert f"    def __init__(self, api_key: str) -> None:\n{body}" in facade


@pytest.mark.parametrize("spare_columns", [0, 1, -1])
def test_signature_is_joined_where_it_fits_on_one_line(spare_columns: int) -> None:
    name = "a" * (120 - spare_columns - len("    def f(self, : int) -> Other[int]:"))
    text = made_up(f"def f(\n    self, {name}: int\n) -> AsyncOther[int]:\n    'D.'")
    assert (f"    def f(self, {name}: int) -> Other[int]:\n" in generate(text)) == (spare_columns >= 0)
    kept = generate(text.replace(f"{name}: int\n", f"{name}: int,\n"))
    assert f"    def f(\n        self, {name}: int,\n    ) -> Other[int]:\n" in kept


def test_phrases_change_docstrings() -> None:
    text = made_up("def f(self) -> int:\n    '''Await it here.'''")
    assert "'''Read it here.'''" in generate(text, {"Await it": "Read it"})
    with pytest.raises(SystemExit, match=r"no docstring contains \['Not there'\]"):
        generate(text, {"Await it": "Read it", "Not there": "x"})


def test_several_modules_make_one_facade() -> None:
    first = Source("_made_up.py", made_up("def f(self) -> AsyncIterator[T]:\n    'D.'"))
    second = Source(
        "_second.py",
        "from decimal import Decimal\nfrom agentphone._made_up import AsyncOther\nclass AsyncClient:\n    'D.'\n"
        "    @property\n    def other(self) -> AsyncOther[Decimal]:\n        'D.'\n"
        "    def copy(self) -> AsyncClient:\n        'D.'\n",
    )
    facade = Generator([first, second], {}).generate()
    assert "from agentphone._made_up import AsyncOther, AsyncThing\n" in facade
    assert "from agentphone._second import AsyncClient\n" in facade
    assert "from decimal import Decimal\n" in facade
    assert '__all__ = [\n    "Client",\n    "Other",\n    "Thing",\n]\n\nT = TypeVar("T")\n' in facade
    assert "    def other(self) -> Other[Decimal]:\n        'D.'\n        return Other(self._async.other)\n" in facade
    assert "    def copy(self) -> Client:\n        'D.'\n        return Client._wrap(self._async.copy())\n" in facade
    assert "class Stream" not in facade
