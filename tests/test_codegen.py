"""The generator of the blocking face: its file is up to date, it carries over what it knows and refuses the rest."""

from __future__ import annotations

import inspect
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from textwrap import dedent, indent
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import agentphone
from agentphone import (
    AsyncClient,
    AsyncConversations,
    AsyncPager,
    AsyncState,
    Client,
    Conversations,
    Pager,
    State,
    _codegen,
    _sync,
)
from agentphone._codegen import PACKAGE, PHRASES, TARGET, Generator, Source, UnknownConstructError, main, read_sources

TRUE = PACKAGE / TARGET
WRONG_LINE = "        return _portal.run(self._async.update, conversation_id, metadata=metadata)"


# The file in the repository


def test_the_face_in_the_repository_is_that_of_its_source(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check"]) == 0, capsys.readouterr().err
    assert capsys.readouterr() == ("", "")


def corrupted(text: bytes) -> bytes:
    """Change one letter of a line in the middle."""
    assert text.count(WRONG_LINE.encode()) == 1
    return text.replace(WRONG_LINE.encode(), WRONG_LINE.encode()[:-1] + b"]")


DAMAGES: Mapping[str, tuple[Callable[[bytes], bytes | None], str]] = {
    "one letter": (corrupted, f"\n-{WRONG_LINE[:-1]}]\n+{WRONG_LINE}\n"),
    "emptied": (lambda _: b"", "\n@@ -1 +1,"),
    "missing": (lambda _: None, "\n@@ -1 +1,"),
    "a comment below": (lambda text: text + b"# more\n", "\n-# more\n"),
    "a line below": (lambda text: text + b"\n", "\n         return self\n \n-\n"),
    "a line above": (lambda text: b"\n" + text, "\n@@ -1,4 +1,3 @@\n-\n"),
    "cut short": (lambda text: text[: len(text) // 2], "\n+        return self\n"),
    "last newline gone": (lambda text: text[:-1], "\n         return self\n+\n"),
    "a space": (lambda text: text.replace(b"import ssl\n", b"import ssl \n"), "\n-import ssl \n+import ssl\n"),
    "CRLF": (lambda text: text.replace(b"\n", b"\r\n"), "\n-import ssl\\r\n"),
    "one CRLF": (lambda text: text.replace(b"import ssl\n", b"import ssl\r\n"), "\n-import ssl\\r\n+import ssl\n"),
    "not UTF-8": (lambda text: text.replace(b"import ssl\n", b"import ssl  # \xff\n"), "\n-import ssl  # \ufffd\n"),
    "BOM": (lambda text: b"\xef\xbb\xbf" + text, "\n@@ -1,"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_check_finds_a_damaged_face_names_the_place_and_leaves_it_alone(
    damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / TARGET
    change, place = DAMAGES[damage]
    content = change(TRUE.read_bytes())
    if content is not None:
        target.write_bytes(content)

    assert main(["--check"], target=target) == 1

    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("--- _sync.py (here)\n+++ _sync.py (wanted)\n@@ ")
    assert place in err
    assert (target.read_bytes() if target.exists() else None) == content


@pytest.mark.parametrize("damage", DAMAGES)
def test_writing_mends_any_damage_and_writing_again_changes_nothing(damage: str, tmp_path: Path) -> None:
    target = tmp_path / TARGET
    content = DAMAGES[damage][0](TRUE.read_bytes())
    if content is not None:
        target.write_bytes(content)
    for _ in range(2):
        assert main([], target=target) == 0
        assert target.read_bytes() == TRUE.read_bytes()
        assert main(["--check"], target=target) == 0


def test_a_face_with_unix_line_ends_is_written_everywhere(tmp_path: Path) -> None:
    main([], target=tmp_path / TARGET)
    assert b"\r" not in (tmp_path / TARGET).read_bytes()


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Copy the package to a place where it may be damaged."""
    shutil.copytree(PACKAGE, tmp_path / "agentphone", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def python(where: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a folder, with the package that lies there."""
    return subprocess.run([sys.executable, *arguments], cwd=where, capture_output=True, text=True, check=False)


def test_the_command_finds_and_mends_what_was_added_by_hand(copy: Path) -> None:
    target = copy / "agentphone" / TARGET
    target.write_bytes(target.read_bytes() + b"# by hand\n")

    found = python(copy, "-m", "agentphone._codegen", "--check")
    assert (found.returncode, found.stdout) == (1, "")
    assert "-# by hand\n" in found.stderr

    assert python(copy, "-m", "agentphone._codegen").returncode == 0
    assert target.read_bytes() == TRUE.read_bytes()
    passed = python(copy, "-m", "agentphone._codegen", "--check")
    assert (passed.returncode, passed.stdout, passed.stderr) == (0, "", "")


@pytest.mark.parametrize("content", [None, b"", b"not Python"])
def test_a_face_that_cannot_be_imported_is_found_either_way_and_mended_by_the_file_itself(
    copy: Path, content: bytes | None
) -> None:
    target = copy / "agentphone" / TARGET
    target.unlink()
    if content is not None:
        target.write_bytes(content)

    assert python(copy, "-m", "agentphone._codegen", "--check").returncode == 1  # the package cannot be imported
    found = python(copy, "agentphone/_codegen.py", "--check")
    assert found.returncode == 1
    assert "\n+class Client:\n" in found.stderr

    assert python(copy, "agentphone/_codegen.py").returncode == 0
    assert target.read_bytes() == TRUE.read_bytes()


@pytest.fixture
def changed_source(copy: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str, str], None]:
    """Give a function that changes a source for `main`."""
    monkeypatch.setattr(_codegen, "PACKAGE", copy / "agentphone")

    def change(name: str, old: str, new: str) -> None:
        path = copy / "agentphone" / name
        text = path.read_text(encoding="utf-8")
        assert text.count(old) == 1
        path.write_text(text.replace(old, new), encoding="utf-8")

    return change


ADDED_METHOD = """\
    async def added(self, a: int, /, *, b: str = "x") -> str:
        '''Add.'''
        return b

"""
ADDED_PROPERTY = """\
    @property
    def added(self) -> AsyncConversations:
        '''What was added.'''
        return self._conversations

"""
ADDED_CLASS = """\
class AsyncAdded:
    '''What was added.'''

    async def count(self) -> int:
        '''Count.'''
        return 1


"""
CHANGES = {
    # what it is: the file, the text in it, what comes instead, the lines of the face that the diff then holds
    "a method": (
        "_conversations.py",
        "    async def get(self",
        f"{ADDED_METHOD}    async def get(self",
        [
            '    def added(self, a: int, /, *, b: str = "x") -> str:',
            "        return _portal.run(self._async.added, a, b=b)",
        ],
    ),
    "a property": (
        "_client.py",
        "    def with_options(",
        f"{ADDED_PROPERTY}    def with_options(",
        ["    @property", "    def added(self) -> Conversations:", "        return Conversations(self._async.added)"],
    ),
    "a class": (
        "_conversations.py",
        "class _Pages(",
        f"{ADDED_CLASS}class _Pages(",
        ["class Added:", '    "Added",', "        return _portal.run(self._async.count)"],
    ),
    "a default": (
        "_conversations.py",
        'order: Literal["asc", "desc"] = "desc"',
        'order: Literal["asc", "desc"] = "asc"',
        ['        order: Literal["asc", "desc"] = "asc",'],
    ),
    "a docstring": (
        "_conversations.py",
        "Get a conversation with its recent messages.",
        "Get one conversation with its recent messages.",
        ['        """Get one conversation with its recent messages.'],
    ),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_change_of_the_async_classes_shows_up(
    what: str, changed_source: Callable[[str, str, str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    name, old, new, lines = CHANGES[what]
    changed_source(name, old, new)
    assert main(["--check"], target=TRUE) == 1
    diff = capsys.readouterr().err
    for line in lines:
        assert f"\n+{line}\n" in diff


def test_what_cannot_be_carried_over_is_said_without_a_traceback_and_nothing_is_written(
    changed_source: Callable[[str, str, str], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed_source("_client.py", "    def with_options(", "    @staticmethod\n    def with_options(")
    above = (_codegen.PACKAGE / "_client.py").read_text(encoding="utf-8").partition("    @staticmethod\n")[0]
    place = f"_client.py:{above.count(chr(10)) + 2}"
    for arguments in ([], ["--check"]):
        assert main(arguments, target=tmp_path / "new.py") == 1
        assert capsys.readouterr().err.startswith(f"{place}: AsyncClient.with_options has the decorators staticmethod")
    assert not (tmp_path / "new.py").exists()


def test_a_phrase_that_no_docstring_holds_any_more_is_found(
    changed_source: Callable[[str, str, str], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed_source("_client.py", "shared by all tasks, event loops and threads", "shared by everybody")
    assert main([], target=tmp_path / "new.py") == 1
    assert "'shared by all tasks, event loops and threads'" in capsys.readouterr().err
    assert not (tmp_path / "new.py").exists()


# The face as Python sees it

FACES: Mapping[type, type] = {
    AsyncPager: Pager,
    AsyncState: State,
    AsyncConversations: Conversations,
    AsyncClient: Client,
}
BLOCKING_NAMES = {"__aiter__": "__iter__", "__aenter__": "__enter__", "__aexit__": "__exit__", "aclose": "close"}
OF_ALL_CLASSES = {"__module__", "__doc__", "__dict__", "__weakref__", "__orig_bases__", "__parameters__", "__init__"}
SPEAKS_OF_ASYNC = re.compile(r"(?i)async(?!BaseTransport|Client)|await|coroutine|trio|anyio|aclose|event loop")

each_face = pytest.mark.parametrize(("asynchronous", "blocking"), FACES.items(), ids=lambda cls: cls.__name__)


def public(cls: type) -> dict[str, Any]:
    """Give what a class defines for its users."""
    names = {name for name in vars(cls) if name.startswith("__") or not name.startswith("_")}
    names -= {"__slotnames__", "__firstlineno__", "__static_attributes__"}  # left by copy, and by Python 3.13 itself
    return {name: inspect.getattr_static(cls, name) for name in names - OF_ALL_CLASSES}


def function(member: Any) -> Any:
    """Give the function of a property; others as they are."""
    return member.fget if isinstance(member, property) else member


def parameters(member: Any) -> list[tuple[str, object, object, object]]:
    """Give a method's parameters in all that a caller sees of them."""
    found = inspect.signature(function(member)).parameters.values()
    return [(one.name, one.kind, one.default, one.annotation) for one in found]


def test_every_public_async_class_has_its_face() -> None:
    modules = [sys.modules[f"agentphone.{Path(name).stem}"] for name in _codegen.SOURCES]
    found = {
        value
        for module in modules
        for name, value in vars(module).items()
        if isinstance(value, type) and value.__module__ == module.__name__ and not name.startswith("_")
    }
    assert found == set(FACES)
    assert {getattr(_sync, name) for name in _sync.__all__} == set(FACES.values())


@each_face
def test_every_public_method_has_its_face_and_there_is_no_other(asynchronous: type, blocking: type) -> None:
    expected = {BLOCKING_NAMES.get(name, name) for name in public(asynchronous)} - {"__await__"}
    assert set(public(blocking)) == expected
    assert [name for name, member in public(blocking).items() if inspect.iscoroutinefunction(member)] == []


@each_face
def test_every_face_takes_what_its_method_takes_and_gives_its_blocking_form(asynchronous: type, blocking: type) -> None:
    for name, member in public(asynchronous).items():
        if name == "__await__":
            continue
        face = public(blocking)[BLOCKING_NAMES.get(name, name)]
        assert type(face) is type(member)
        assert parameters(face) == parameters(member), name
        returned = inspect.signature(function(member)).return_annotation
        assert inspect.signature(function(face)).return_annotation == re.sub(r"\bAsync(\w+)", r"\1", returned)


def test_both_clients_take_the_same_settings() -> None:
    assert parameters(Client.__init__) == parameters(AsyncClient.__init__)


@each_face
def test_every_face_says_what_it_does_and_never_speaks_of_async(asynchronous: type, blocking: type) -> None:
    assert inspect.getdoc(asynchronous)
    for name, member in {**public(blocking), blocking.__name__: blocking}.items():
        text = function(member).__doc__ or ""
        assert text or name.startswith("__"), name
        assert not SPEAKS_OF_ASYNC.search(text), (name, SPEAKS_OF_ASYNC.search(text))


# Made-up sources

HEAD = '''"""Made up."""

from __future__ import annotations

import collections.abc
import ssl
import ssl as tls
from . import models
from .models import Page
from collections import abc
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from typing import Annotated, Any, Generic, Literal, Self, TypeVar, overload
from typing import Any as Renamed

import httpx

T = TypeVar("T")
Bound = TypeVar("Bound", bound=int)
LIMIT = 5
Alias = list[int]


class AsyncOther(Generic[T]):
    """Another."""


class _Private:
    """Nobody's."""

'''


def made_up(members: str = "", *, opening: str = "class AsyncThing:", head: str = HEAD) -> str:
    """Give a module with a class of these members."""
    return f'{head}\n{opening}\n    """A thing."""\n\n{indent(dedent(members).strip(), "    ")}\n'


def generate(text: str, phrases: Mapping[str, str] | None = None) -> str:
    """Give the face of a module's text."""
    return Generator([Source.parse("_made_up.py", text)], phrases or {}).generate()


def face_of(text: str) -> str:
    """Give what stands in the face's last class, behind its constructor."""
    return generate(text).rpartition("\n\n\n")[2].partition("self._async = wrapped\n")[2].strip("\n")


def refusal(text: str) -> str:
    """Give the error that a module's text is refused with."""
    with pytest.raises(UnknownConstructError) as error:
        generate(text)
    return str(error.value)


REFUSED_MEMBERS = {
    # a member of a class, whose first line holds the def that the error points at, and what the error says
    "@staticmethod\ndef f() -> int:\n    'D.'": "decorators staticmethod",
    "@classmethod\ndef f(cls) -> int:\n    'D.'": "decorators classmethod",
    "@overload\ndef f(self, a: int) -> int:\n    'D.'": "AsyncThing.f is an overload with a body",
    "@overload\nasync def f(self, a: int) -> int:\n    return a": "AsyncThing.f is an overload with a body",
    "@overload\ndef f(self, a: int): ...": "AsyncThing.f has no return annotation",
    "@typing.overload\ndef f(self, a: int) -> int: ...": "decorators typing.overload",
    "@overload\n@cache\ndef f(self, a: int) -> int: ...": "decorators overload, cache",
    "@functools.cache\ndef f(self) -> int:\n    'D.'": "decorators functools.cache",
    "@property\n@cache\ndef f(self) -> int:\n    'D.'": "decorators property, cache",
    "@property\nasync def f(self) -> int:\n    'D.'": "decorators property; known are a plain property and overload",
    "@f.setter\ndef f(self, x: int) -> None:\n    'D.'": "decorators f.setter",
    "limit = 5": "holds a Assign",
    "limit: int": "holds a AnnAssign",
    "__slots__ = ('a',)": "holds a Assign",
    "class Inner:\n    'D.'": "holds a ClassDef",
    "class AsyncInner:\n    'D.'": "AsyncInner is not at the top of the module",
    "if True:\n    def f(self) -> int:\n        'D.'": "holds a If",
    "'About nothing.'": "holds a Expr",
    "async def f(self) -> AsyncIterator[int]:\n    'D.'\n    yield 1": "is an async generator; give an AsyncStream",
    "async def f(self) -> object:\n    'D.'\n    yield 1": "f is an async generator",
    "def __len__(self) -> int:\n    return 1": "AsyncThing.__len__ is unknown",
    "async def __anext__(self) -> int:\n    return 1": "AsyncThing.__anext__ is unknown",
    "def __mangled(self) -> int:\n    return 1": "AsyncThing.__mangled is unknown",
    "async def f(self):\n    'D.'": "AsyncThing.f has no return annotation",
    "def __repr__(self):\n    return ''": "AsyncThing.__repr__ has no return annotation",
    "async def f(self) -> int:\n    return 1": "f has no docstring",
    "@property\ndef f(self) -> int:\n    return 1": "f has no docstring",
    "async def f(self) -> int:\n    ''": "f has no docstring",
    "async def f(self) -> int:\n    5": "f has no docstring",
    "async def f(self) -> int:\n    f'D.'": "f has no docstring",
    "async def __aenter__(self) -> AsyncThing:\n    await self.f()\n    return self": "does more than to return self",
    "async def __aenter__(self) -> Self:\n    await self.f()\n    return self": "does more than to return self",
    "async def __aenter__(self) -> AsyncOther[int]:\n    return self.f()": "does more than to return self",
    "async def __aenter__(self) -> AsyncIterator[int]:\n    return self.f()": "does more than to return self",
}


@pytest.mark.parametrize("member", REFUSED_MEMBERS)
def test_an_unknown_member_is_refused_with_file_and_line(member: str) -> None:
    line = HEAD.count("\n") + 5 + sum(decorator.startswith("@") for decorator in member.splitlines())
    error = refusal(made_up(member))
    assert error.startswith(f"_made_up.py:{line}: ")
    assert REFUSED_MEMBERS[member] in error


REFUSED_SIGNATURES = {
    # what stands behind `def f`, and what the error says
    "() -> int": "f does not take self",
    "(it) -> int": "f does not take self",
    "(*self) -> int": "f does not take self",
    "(self, a: Awaitable[int]) -> int": "Awaitable has no blocking form",
    "(self, a: Callable[[], Awaitable[int]]) -> int": "Awaitable has no blocking form",
    "(self) -> Awaitable[int]": "Awaitable has no blocking form",
    "(self) -> Coroutine[Any, Any, int]": "Coroutine has no blocking form",
    "(self) -> AsyncGenerator[int]": "AsyncGenerator has no blocking form",
    "(self) -> abc.AsyncIterator[int]": "abc.AsyncIterator has no blocking form",
    "(self) -> asyncio.Future[int]": "asyncio.Future has no blocking form",
    "(self) -> list[AsyncOther[int]]": "AsyncOther has no blocking form",
    "(self) -> AsyncOther[AsyncThing]": "AsyncThing has no blocking form",
    "(self) -> AsyncIterator[AsyncThing]": "AsyncThing has no blocking form",
    "(self) -> AsyncOther[int] | None": "AsyncOther has no blocking form",
    "(self) -> (AsyncOther)[int]": "AsyncOther has no blocking form",
    "(self, a: AsyncThing) -> int": "AsyncThing has no blocking form",
    "(self, *a: AsyncThing) -> int": "AsyncThing has no blocking form",
    "(self, *, a: AsyncThing) -> int": "AsyncThing has no blocking form",
    "(self, **a: AsyncThing) -> int": "AsyncThing has no blocking form",
    "(self, a: AsyncThing, /) -> int": "AsyncThing has no blocking form",
    "(self, a: Callable[[AsyncThing], int]) -> int": "AsyncThing has no blocking form",
    "(self, a: AsyncIterator[int]) -> int": "AsyncIterator has no blocking form",
    "(self, a: type = AsyncThing) -> int": "AsyncThing has no blocking form",
    "(self) -> Self": "Self has no blocking form",
    "(self, a: Self) -> int": "Self has no blocking form",
    "(self, a: Mystery) -> int": "Mystery in a signature comes from nowhere",
    "(self, a: _Private) -> int": "_Private in a signature comes from nowhere",
    "(self, a: collections.abc.Sized) -> int": "collections in a signature comes from nowhere",
    "(self, a: int = f) -> int": "f in a signature comes from nowhere",
    "(self, a: int = LIMIT) -> int": "LIMIT in a signature is a name of the module's own",
    "(self, a: Alias) -> int": "Alias in a signature is a name of the module's own",
    "(self, a: Bound) -> int": "Bound in a signature is a name of the module's own",
    "(self, a: Renamed) -> int": "Renamed is imported relatively or under another name",
    "(self, a: tls.SSLContext) -> int": "tls is imported relatively or under another name",
    "(self, a: Page[int]) -> int": "Page is imported relatively or under another name",
    "(self, a: models.Page) -> int": "models is imported relatively or under another name",
    "(self, a: 'int') -> int": "'int' is an annotation in quotes",
    "(self) -> 'AsyncThing'": "'AsyncThing' is an annotation in quotes",
    "(self) -> dict[str, 'AsyncThing']": "'AsyncThing' is an annotation in quotes",
    "(self) -> AsyncOther['AsyncThing']": "'AsyncThing' is an annotation in quotes",
    "(self, a: Annotated[int, 'x']) -> int": "'x' is an annotation in quotes",
    "(self, a: object = lambda: 0) -> int": "is a Lambda",
    "(self, a: object = (b := 0)) -> int": "is a NamedExpr",
    "(self, *, a: object = object()) -> int": "object() in a signature is a Call",
    "(self, a: object = {}) -> int": "{} in a signature is a Dict",
    "(self, a: object = [b for b in ()]) -> int": "is a ListComp",
    "(self, a: str = f'{1}') -> int": "is a JoinedStr",
    "(self, a: int if 1 else str) -> int": "is a IfExp",
    "(self, *a: *Shape) -> int": "is a Starred",
    "(self, _portal: int) -> int": "f takes _portal",
    "(self, **__a: int) -> int": "f takes __a",
    "(  # why\n    self\n) -> int": "f has a # in its signature",
    "(self, a: str = '#') -> int": "f has a # in its signature",
}
REFUSED_OF_COROUTINES = {
    "(self) -> AsyncIterator[int]": "AsyncIterator has no blocking form",
    "(self) -> AsyncOther[int]": "AsyncOther has no blocking form",
    "(self) -> list[AsyncOther[int]]": "AsyncOther has no blocking form",
}


@pytest.mark.parametrize(
    ("opening", "signature", "why"),
    [("def f", *row) for row in REFUSED_SIGNATURES.items()]
    + [("async def f", *row) for row in REFUSED_OF_COROUTINES.items()],
)
def test_an_unknown_signature_is_refused_with_file_and_line(opening: str, signature: str, why: str) -> None:
    error = refusal(made_up(f"{opening}{signature}:\n    'D.'"))
    imported = "is imported relatively or under another name" in why  # this one points at the import
    assert imported or error.startswith(f"_made_up.py:{HEAD.count(chr(10)) + 5}: ")
    assert re.match(r"_made_up\.py:\d+: ", error)
    assert why in error


def test_the_line_is_that_of_the_name_itself() -> None:
    text = "VALUE = 'é€😀'; OTHER = 1\n" + made_up(
        "def f(\n    self,\n    a: str = 'é',\n    b: Mystery = 1,\n) -> int:\n    'D.'"
    )
    line = next(number for number, content in enumerate(text.splitlines(), 1) if "Mystery" in content)
    assert refusal(text).startswith(f"_made_up.py:{line}: Mystery")


REFUSED_DOCSTRINGS = {
    "Use `async for`.": "async",
    "Await it.": "Await",
    "It awaits nothing.": "awaits",
    "Give an awaitable.": "awaitable",
    "For asyncio.": "asyncio",
    "It is asynchronous.": "asynchronous",
    "For Trio.": "Trio",
    "Over anyio.": "anyio",
    "A coroutine.": "coroutine",
    "On the event loop.": "event loop",
    "Like aclose().": "aclose",
    "An AsyncMystery.": "AsyncMystery",
    "An `httpx.AsyncClient`, not an `AsyncMystery`.": "AsyncMystery",
}


@pytest.mark.parametrize("docstring", REFUSED_DOCSTRINGS)
@pytest.mark.parametrize("opening", ["async def f(self) -> int:", "def __aiter__(self) -> AsyncIterator[int]:"])
def test_a_docstring_that_still_speaks_of_async_is_refused_with_file_and_line(opening: str, docstring: str) -> None:
    error = refusal(made_up(f'{opening}\n    """Do.\n\n    {docstring}\n    """'))
    assert error.startswith(f"_made_up.py:{HEAD.count(chr(10)) + 6}: the docstring of ")
    assert f"says {REFUSED_DOCSTRINGS[docstring]!r}: give PHRASES its blocking sense" in error


REFUSED_CLASSES = {
    "base class": ("class AsyncThing(Base):", "a base other than Generic"),
    "async base class": ("class AsyncThing(AsyncOther[int]):", "a base other than Generic"),
    "bare Generic": ("class AsyncThing(Generic):", "a base other than Generic"),
    "second base class": ("class AsyncThing(Generic[T], Base):", "a base other than Generic"),
    "metaclass": ("class AsyncThing(metaclass=Meta):", "decorators or class keywords"),
    "decorator": ("@final\nclass AsyncThing:", "decorators or class keywords"),
    "another name": ("class Thing:", "does not begin with Async"),
    "type variable from nowhere": ("class AsyncThing(Generic[K]):", "K in a signature comes from nowhere"),
    "docstring with async": ('class AsyncThing:\n    """For asyncio."""', "the docstring of AsyncThing says 'asyncio'"),
    "no docstring": ("class AsyncThing:\n    pass", "AsyncThing has no docstring"),
}


@pytest.mark.parametrize("what", REFUSED_CLASSES)
def test_an_unknown_class_is_refused_with_file_and_line(what: str) -> None:
    opening, why = REFUSED_CLASSES[what]
    error = refusal(made_up(opening=opening))
    assert re.match(r"_made_up\.py:\d+: ", error)
    line = made_up(opening=opening).splitlines()[int(error.split(":")[1]) - 1]
    assert "class " in line or '"""' in line
    assert why in error


@pytest.mark.parametrize("opening", ["if True:", "def make() -> type:", "class _Outer:", "try:"])
def test_an_async_class_that_is_not_at_the_top_of_its_module_is_refused(opening: str) -> None:
    ending = "finally:\n    pass\n" if opening == "try:" else ""
    text = f'{opening}\n    class AsyncThing:\n        """A thing."""\n{ending}'
    assert refusal(text) == "_made_up.py:2: AsyncThing is not at the top of the module"


def test_a_source_that_is_no_python_is_named_with_its_line() -> None:
    with pytest.raises(SyntaxError) as error:
        Source.parse("_made_up.py", "\n\nclass AsyncThing(:\n")
    assert (error.value.filename, error.value.lineno) == ("_made_up.py", 3)


KNOWN = {
    # the member of the async class, and its face
    "def f(self, a: int = -1, *, b: str = 'x') -> int:\n    'D.'": (
        "def f(self, a: int = -1, *, b: str = 'x') -> int:\n    'D.'\n    return self._async.f(a, b=b)"
    ),
    "def f(self) -> None:\n    'D.'": "def f(self) -> None:\n    'D.'\n    self._async.f()",
    "async def f(self, *a: int) -> list[int]:\n    'D.'": (
        "def f(self, *a: int) -> list[int]:\n    'D.'\n    return _portal.run(self._async.f, *a)"
    ),
    "async def f(self) -> None:\n    'D.'": "def f(self) -> None:\n    'D.'\n    _portal.run(self._async.f)",
    "async def aclose(self) -> None:\n    'D.'": (
        "def close(self) -> None:\n    'D.'\n    _portal.run(self._async.aclose)"
    ),
    "def f(self) -> AsyncIterator[dict[str, int]]:\n    'D.'": (
        "def f(self) -> Iterator[dict[str, int]]:\n    'D.'\n    return _portal.iterate(self._async.f())"
    ),
    "def f(self) -> AsyncOther[int]:\n    'Give an AsyncOther.'": (
        "def f(self) -> Other[int]:\n    'Give an Other.'\n    return Other(self._async.f())"
    ),
    "@property\ndef f(self) -> int:\n    'D.'": "@property\ndef f(self) -> int:\n    'D.'\n    return self._async.f",
    "@property\ndef f(self) -> AsyncIterator[int]:\n    'D.'": (
        "@property\ndef f(self) -> Iterator[int]:\n    'D.'\n    return _portal.iterate(self._async.f)"
    ),
    "@property\ndef f(self) -> AsyncThing:\n    'D.'": (
        "@property\ndef f(self) -> Thing:\n    'D.'\n    return Thing(self._async.f)"
    ),
    "def __aiter__(self) -> AsyncIterator[int]:\n    return self.f()": (
        "def __iter__(self) -> Iterator[int]:\n    return _portal.iterate(self._async.__aiter__())"
    ),
    "async def __aenter__(self) -> AsyncThing:\n    return self": "def __enter__(self) -> Thing:\n    return self",
    "async def __aenter__(self) -> Self:\n    'D.'\n    return self": (
        "def __enter__(self) -> Self:\n    'D.'\n    return self"
    ),
    "async def __aenter__(self) -> T:\n    'Enter.'\n    return await self.f()": (
        "def __enter__(self) -> T:\n    'Enter.'\n    return _portal.run(self._async.__aenter__)"
    ),
    "async def __aenter__(self) -> None:\n    await self.f()": (
        "def __enter__(self) -> None:\n    _portal.run(self._async.__aenter__)"
    ),
    "@overload\ndef f(self, a: int) -> AsyncOther[int]: ...": ("@overload\ndef f(self, a: int) -> Other[int]: ..."),
    "@overload\nasync def f(self, *, a: int = 5) -> int:\n    ...": (
        "@overload\ndef f(self, *, a: int = 5) -> int: ..."
    ),
    "@overload\ndef f(\n    self, a: int\n) -> AsyncOther[int]: ...": (
        "@overload\ndef f(self, a: int) -> Other[int]: ..."
    ),
    "async def __aexit__(self, *exc: object) -> bool | None:\n    await self.aclose()": (
        "def __exit__(self, *exc: object) -> bool | None:\n    return _portal.run(self._async.__aexit__, *exc)"
    ),
    "def __repr__(self) -> str:\n    return '<AsyncThing>'": (
        'def __repr__(self) -> str:\n    wrapped = getattr(self, "_async", "<Thing (not made)>")\n'
        '    return str(wrapped).replace("AsyncThing", "Thing", 1)'
    ),
    "def f(self, a: httpx.AsyncClient) -> int:\n    'Through an `httpx.AsyncClient`.'": (
        "def f(self, a: httpx.AsyncClient) -> int:\n    'Through an `httpx.AsyncClient`.'\n    return self._async.f(a)"
    ),
    "def f(self, a: Literal['async', b'x', 1] = 'async') -> int:\n    'D.'": (
        "def f(self, a: Literal['async', b'x', 1] = 'async') -> int:\n    'D.'\n    return self._async.f(a)"
    ),
    "async def f(self) -> int:  # noqa: X\n    # why\n    'D.'": (
        "def f(self) -> int:\n    'D.'\n    return _portal.run(self._async.f)"
    ),
    "async  def   f (self) -> int :\n    'D.'": "def f (self) -> int:\n    'D.'\n    return _portal.run(self._async.f)",
    # letters beyond ASCII before a name that changes
    "def f(self, ä: str = 'ßé€😀') -> AsyncOther[int]:\n    'Größe.'; x = 1": (
        "def f(self, ä: str = 'ßé€😀') -> Other[int]:\n    'Größe.'\n    return Other(self._async.f(ä))"
    ),
    # what is not public may be anything
    "def _f(self, a: Mystery):\n    return 1": "",
    "@cached\ndef _f(self, a=lambda: 0):\n    yield 1": "",
    "def __init__(self, a: Mystery):\n    pass": "",
    "def __await__(self):\n    return 1": "",
}


@pytest.mark.parametrize("member", KNOWN)
def test_a_known_construct_is_carried_over(member: str) -> None:
    assert face_of(made_up(member)) == indent(KNOWN[member], "    ")


def test_characters_that_only_python_takes_for_line_ends_move_nothing() -> None:
    signature = "    def f(self, a: str = 'x\x0cy\u2028z\x85') -> {}:\n        'D.\x0c\u2028'\n"
    text = f"{made_up()}\n{signature.format('AsyncOther[int]')}"
    assert f"{signature.format('Other[int]')}        return Other(self._async.f(a))\n" in generate(text)


def test_an_overload_is_imported() -> None:
    face = generate(made_up("@overload\ndef f(self) -> int: ..."))
    assert re.search(r"^from typing import .*\boverload$", face, re.MULTILINE)


@pytest.mark.parametrize("room", [0, 1, -1])
def test_an_overload_is_joined_where_it_fits_on_one_line_with_its_body(room: int) -> None:
    name = "a" * (120 - room - len("    def f(self, : int) -> Other[int]: ..."))
    text = made_up(f"@overload\ndef f(\n    self, {name}: int\n) -> AsyncOther[int]: ...")
    assert (f"    def f(self, {name}: int) -> Other[int]: ...\n" in generate(text)) == (room >= 0)


@pytest.mark.parametrize("room", [0, 1, -1])
def test_a_signature_is_joined_where_it_fits_on_one_line_now(room: int) -> None:
    name = "a" * (120 - room - len("    def f(self, : int) -> Other[int]:"))
    text = made_up(
        f"async def g(self) -> None:\n    'D.'\n\ndef f(\n    self, {name}: int\n) -> AsyncOther[int]:\n    'D.'"
    )
    assert (f"    def f(self, {name}: int) -> Other[int]:\n" in generate(text)) == (room >= 0)
    kept = generate(text.replace(f"{name}: int\n", f"{name}: int,\n"))
    assert f"    def f(\n        self, {name}: int,\n    ) -> Other[int]:\n" in kept


def test_private_classes_and_functions_of_the_module_have_no_face() -> None:
    text = made_up() + "\n\nclass _Hidden(Base, metaclass=Meta):\n    x = 1\n\n\nasync def helper():\n    yield 1\n"
    assert "idden" not in generate(text)
    assert "helper" not in generate(text)
    assert '__all__ = [\n    "Other",\n    "Thing",\n]\n' in generate(text)


def test_tabs_in_a_source_do_no_harm() -> None:
    members = 'async def f(\n    self,\n    a: int,\n) -> int:\n    """Give it.\n\n    At once.\n    """\n    return a'
    loaded = Loaded(made_up(members, head="").replace("    ", "\t"))
    assert thing(loaded).f(1) == 1


def test_long_calls_and_imports_go_on_lines_of_their_own() -> None:
    types, head = ["A" * 50, "B" * 50], f"from agentphone.models import {'A' * 50}, {'B' * 50}\n"
    method = "def f(\n    self,\n    {a}: int,\n    {b}: int,\n) -> AsyncThing:\n    'D.'"
    for letters, call in [
        (44, "            self._async.f({a}, {b})\n"),
        (50, "            self._async.f(\n                {a},\n                {b},\n            )\n"),
    ]:
        names = {name: name * letters for name in "ab"}
        text = made_up(
            method.format(**names) + f"\n\ndef g(self, a: {types[0]}, b: {types[1]}) -> int:\n    'D.'", head=head
        )
        assert f"        return Thing(\n{call.format(**names)}        )\n" in generate(text)
        assert f"from agentphone.models import (\n    {types[0]},\n    {types[1]},\n)\n" in generate(text)


def test_the_phrases_change_a_docstrings_sense() -> None:
    text = made_up("def f(self) -> int:\n    '''Await it here.'''")
    assert "'''Read it here.'''" in generate(text, {"Await it": "Read it"})
    with pytest.raises(UnknownConstructError, match=r"no docstring holds \['Nobody says this'\] any more"):
        generate(text, {"Await it": "Read it", "Nobody says this": "x"})


def test_all_phrases_are_in_use() -> None:
    Generator(read_sources(), PHRASES).generate()
    with pytest.raises(UnknownConstructError, match="Nobody says this"):
        Generator(read_sources(), {**PHRASES, "Nobody says this": "x"}).generate()


def test_two_modules_make_one_face() -> None:
    member = "@property\ndef other(self) -> AsyncOther[Decimal]:\n    'Give an AsyncOther.'"
    second = made_up(member, opening="class AsyncClient:", head="from decimal import Decimal\n")
    face = Generator([Source.parse("_made_up.py", made_up()), Source.parse("_second.py", second)], {}).generate()
    assert "from agentphone._made_up import AsyncOther, AsyncThing\n" in face
    assert "from agentphone._second import AsyncClient\n" in face
    assert "from decimal import Decimal\n" in face
    assert (
        "    def other(self) -> Other[Decimal]:\n        'Give an Other.'\n        return Other(self._async.other)\n"
        in face
    )


# Made-up faces at work


class Loaded:
    """A made-up module and its face, both at work over a portal that runs a coroutine on the spot."""

    def __init__(self, text: str) -> None:
        self.module: dict[str, Any] = {"__name__": "agentphone._made_up"}
        exec(compile(text, "_made_up.py", "exec"), self.module)
        self.faces: dict[str, Any] = {}
        with pytest.MonkeyPatch.context() as patch:
            module = ModuleType("agentphone._made_up")
            vars(module).update(self.module)
            patch.setitem(sys.modules, "agentphone._made_up", module)
            patch.setattr(agentphone, "_portal", type("Portal", (), {"run": staticmethod(run), "iterate": list}))
            exec(compile(generate(text), "_sync.py", "exec"), self.faces)


def run(function: Callable[..., Coroutine[Any, Any, Any]], /, *args: Any, **kwargs: Any) -> Any:
    """Do what the portal does, without a thread."""
    try:
        function(*args, **kwargs).send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("it waits for something")


LONG_NAME = "a_name_of_more_letters_than_most_of_the_names_that_are_given_to_parameters_anywhere"
NAMES = ["a", "type", "function", "wrapped", "cls", "result", "straße", "_", LONG_NAME]
KINDS = [
    inspect.Parameter.POSITIONAL_ONLY,
    inspect.Parameter.POSITIONAL_OR_KEYWORD,
    inspect.Parameter.VAR_POSITIONAL,
    inspect.Parameter.KEYWORD_ONLY,
    inspect.Parameter.VAR_KEYWORD,
]
DEFAULTS = st.sampled_from([None, 0, -1, 1.5, True, "x, y) -> z:", (), (1, "a"), ...])


@st.composite
def signatures(draw: st.DrawFn) -> inspect.Signature:
    """Make up a signature of any of the five kinds of parameters, with self before them."""
    counts = [draw(st.integers(0, 1 if kind in (KINDS[2], KINDS[4]) else 2)) for kind in KINDS]
    names = iter(draw(st.permutations(NAMES)))
    made = [inspect.Parameter("self", KINDS[0] if counts[0] else KINDS[1])]
    needs_default = False
    for kind, count in zip(KINDS, counts, strict=True):
        for _ in range(count):
            default: Any = inspect.Parameter.empty
            if kind not in (KINDS[2], KINDS[4]) and (draw(st.booleans()) or (needs_default and kind in KINDS[:2])):
                default, needs_default = draw(DEFAULTS), True
            made.append(inspect.Parameter(next(names), kind, default=default, annotation=object))
    return inspect.Signature(made)


@st.composite
def calls(draw: st.DrawFn) -> tuple[inspect.Signature, list[int], dict[str, int]]:
    """Make up a signature, and a call that it accepts."""
    signature = draw(signatures())
    args: list[int] = []
    kwargs: dict[str, int] = {}
    values = iter(range(100, 200))
    by_position = True
    for parameter in list(signature.parameters.values())[1:]:
        if parameter.kind is KINDS[2]:
            args += [next(values) for _ in range(draw(st.integers(0, 3)) if by_position else 0)]
        elif parameter.kind is KINDS[4]:
            kwargs |= {f"more_{index}": next(values) for index in range(draw(st.integers(0, 3)))}
        elif parameter.default is not inspect.Parameter.empty and draw(st.booleans()):
            by_position = False
        elif by_position and (parameter.kind is KINDS[0] or (parameter.kind is KINDS[1] and draw(st.booleans()))):
            args.append(next(values))
        elif parameter.kind is not KINDS[0]:
            by_position = False
            kwargs[parameter.name] = next(values)
    return signature, args, kwargs


RECEIVE = "    received = dict(locals())\n    del received['self']\n"
METHODS = {
    "a coroutine": f"async def f{{parameters}} -> object:\n    'D.'\n{RECEIVE}    return received",
    "a plain method": f"def f{{parameters}} -> object:\n    'D.'\n{RECEIVE}    return received",
    "an iterator": f"def f{{parameters}} -> AsyncIterator[object]:\n    'D.'\n{RECEIVE}    return [received]",
    "a maker": f"def f{{parameters}} -> AsyncThing:\n    'D.'\n{RECEIVE}    self.received = received\n    return self",
    "a constructor": f"def __init__{{parameters}} -> None:\n{RECEIVE}    self.received = received",
}
RECEIVED: Mapping[str, Callable[[Loaded, list[int], dict[str, int]], object]] = {
    "a coroutine": lambda loaded, args, kwargs: thing(loaded).f(*args, **kwargs),
    "a plain method": lambda loaded, args, kwargs: thing(loaded).f(*args, **kwargs),
    "an iterator": lambda loaded, args, kwargs: thing(loaded).f(*args, **kwargs)[0],
    "a maker": lambda loaded, args, kwargs: thing(loaded).f(*args, **kwargs)._async.received,
    "a constructor": lambda loaded, args, kwargs: loaded.faces["Client"](*args, **kwargs)._async.received,
}


def thing(loaded: Loaded) -> Any:
    """Make the face of a thing."""
    return loaded.faces["Thing"](loaded.module["AsyncThing"]())


@pytest.mark.parametrize("kind", METHODS)
@settings(deadline=None)
@given(call=calls())
def test_what_the_async_method_receives_is_what_the_blocking_one_was_given(
    kind: str, call: tuple[inspect.Signature, list[int], dict[str, int]]
) -> None:
    signature, args, kwargs = call
    bound = signature.bind(None, *args, **kwargs)
    bound.apply_defaults()
    expected = {name: value for name, value in bound.arguments.items() if name != "self"}

    text = METHODS[kind].format(parameters=str(signature).replace("Ellipsis", "..."))
    opening = "class AsyncClient:" if kind == "a constructor" else "class AsyncThing:"
    loaded = Loaded(made_up(text, opening=opening, head="from collections.abc import AsyncIterator\n"))

    assert RECEIVED[kind](loaded, args, kwargs) == expected


def test_a_client_that_a_method_makes_wraps_what_the_method_gave() -> None:
    members = (
        "def __init__(self) -> None:\n    self.made = 1\n\ndef make(self) -> AsyncClient:\n    'D.'\n    return self"
    )
    client = Loaded(made_up(members, opening="class AsyncClient:", head="")).faces["Client"]()
    made = client.make()
    assert type(made) is type(client)
    assert made is not client
    assert made._async is client._async
