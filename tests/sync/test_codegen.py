"""The generated sync facade: it is up to date, and has every public method of the async classes."""

from __future__ import annotations

import inspect
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

import agentphone
from agentphone import (
    AsyncClient,
    AsyncConversations,
    AsyncMessages,
    AsyncPager,
    AsyncState,
    Client,
    Conversations,
    Messages,
    Pager,
    State,
    _codegen,
    _portal,
    _sync,
)
from agentphone._codegen import ITERATORS, PACKAGE, RENAMED_METHODS, TARGET, main

CURRENT = (PACKAGE / TARGET).read_bytes()
CHANGED_LINE = "        return _portal.run(self._async.update, conversation_id, metadata=metadata)"


# The file in the repository


def test_sync_module_is_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check"]) == 0, capsys.readouterr().err
    assert capsys.readouterr() == ("", "")


def change_one_character(text: bytes) -> bytes:
    assert text.count(CHANGED_LINE.encode()) == 1
    return text.replace(CHANGED_LINE.encode(), CHANGED_LINE.encode()[:-1] + b"]")


DAMAGES: Mapping[str, tuple[Callable[[bytes], bytes | None], str]] = {
    # a change of the file, and what the diff then contains
    "one character": (change_one_character, f"\n-{CHANGED_LINE[:-1]}]\n+{CHANGED_LINE}\n"),
    "empty": (lambda _: b"", "\n@@ -1 +1,"),
    "missing": (lambda _: None, "\n@@ -1 +1,"),
    "comment at the end": (lambda text: text + b"# more\n", "\n-# more\n"),
    "blank line at the end": (lambda text: text + b"\n", "\n         return self\n \n-\n"),
    "blank line at the start": (lambda text: b"\n" + text, "\n@@ -1,4 +1,3 @@\n-\n"),
    "truncated": (lambda text: text[: len(text) // 2], "\n+        return self\n"),
    "no final newline": (lambda text: text[:-1], "\n         return self\n+\n"),
    "trailing space": (lambda text: text.replace(b"import ssl\n", b"import ssl \n"), "\n-import ssl \n+import ssl\n"),
    "CRLF": (lambda text: text.replace(b"\n", b"\r\n"), "\n-import ssl\\r\n"),
    "one CRLF": (lambda text: text.replace(b"import ssl\n", b"import ssl\r\n"), "\n-import ssl\\r\n+import ssl\n"),
    "not UTF-8": (lambda text: text.replace(b"import ssl\n", b"import ssl  # \xff\n"), "\n-import ssl  # \ufffd\n"),
    "BOM": (lambda text: b"\xef\xbb\xbf" + text, "\n@@ -1,"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_check_reports_a_changed_file(damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It prints a diff and leaves the file alone; writing then restores it."""
    target = tmp_path / TARGET
    change, expected = DAMAGES[damage]
    content = change(CURRENT)
    if content is not None:
        target.write_bytes(content)

    assert main(["--check"], target=target) == 1

    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("--- _sync.py (actual)\n+++ _sync.py (expected)\n@@ ")
    assert expected in err
    assert (target.read_bytes() if target.exists() else None) == content
    assert main([], target=target) == 0
    assert target.read_bytes() == CURRENT


def test_writing_is_idempotent(tmp_path: Path) -> None:
    target = tmp_path / TARGET
    for _ in range(2):
        assert main([], target=target) == 0
        assert target.read_bytes() == CURRENT
        assert main(["--check"], target=target) == 0


def test_line_ends_are_lf_on_every_platform(tmp_path: Path) -> None:
    main([], target=tmp_path / TARGET)
    assert b"\r" not in (tmp_path / TARGET).read_bytes()


@pytest.fixture
def copied_package(tmp_path: Path) -> Path:
    """Copy the package to a folder where tests may change it, and return the folder."""
    shutil.copytree(PACKAGE, tmp_path / "agentphone", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def run_python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a folder, with the package in that folder."""
    return subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, text=True, check=False)


def test_command_reports_and_overwrites_manual_edits(copied_package: Path) -> None:
    target = copied_package / "agentphone" / TARGET
    target.write_bytes(target.read_bytes() + b"# by hand\n")

    failed = run_python(copied_package, "-m", "agentphone._codegen", "--check")
    assert (failed.returncode, failed.stdout) == (1, "")
    assert "-# by hand\n" in failed.stderr

    assert run_python(copied_package, "-m", "agentphone._codegen").returncode == 0
    assert target.read_bytes() == CURRENT
    passed = run_python(copied_package, "-m", "agentphone._codegen", "--check")
    assert (passed.returncode, passed.stdout, passed.stderr) == (0, "", "")


@pytest.mark.parametrize("content", [None, b"", b"not Python"])
def test_file_that_cannot_be_imported_is_rewritten_by_the_script(copied_package: Path, content: bytes | None) -> None:
    target = copied_package / "agentphone" / TARGET
    target.unlink()
    if content is not None:
        target.write_bytes(content)

    assert run_python(copied_package, "-m", "agentphone._codegen", "--check").returncode == 1
    failed = run_python(copied_package, "agentphone/_codegen.py", "--check")
    assert failed.returncode == 1
    assert "\n+class Client(ClientHints):\n" in failed.stderr

    assert run_python(copied_package, "agentphone/_codegen.py").returncode == 0
    assert target.read_bytes() == CURRENT


@pytest.fixture
def change_source(copied_package: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str, str], None]:
    """Return a function that changes a source that `main` reads."""
    monkeypatch.setattr(_codegen, "PACKAGE", copied_package / "agentphone")

    def change(name: str, old: str, new: str) -> None:
        path = copied_package / "agentphone" / name
        text = path.read_text(encoding="utf-8")
        assert text.count(old) == 1
        path.write_text(text.replace(old, new), encoding="utf-8")

    return change


NEW_METHOD = """\
    async def added(self, a: int, /, *, b: str = "x") -> str:
        '''Add.'''
        return b

"""
NEW_PROPERTY = """\
    @property
    def added(self) -> AsyncConversations:
        '''Return what was added.'''
        return self._conversations

"""
NEW_CLASS = """\
class AsyncAdded:
    '''What was added.'''

    async def count(self) -> int:
        '''Count.'''
        return 1


"""
CHANGES = {
    # the file, the text in it, its replacement, and lines of the facade that the diff then adds
    "method": (
        "_conversations.py",
        "    async def get(self",
        f"{NEW_METHOD}    async def get(self",
        [
            '    def added(self, a: int, /, *, b: str = "x") -> str:',
            "        return _portal.run(self._async.added, a, b=b)",
        ],
    ),
    "property": (
        "_client.py",
        "    def with_options(",
        f"{NEW_PROPERTY}    def with_options(",
        ["    @property", "    def added(self) -> Conversations:", "        return Conversations(self._async.added)"],
    ),
    "class": (
        "_client.py",
        "class AsyncClient(AsyncClientHints):",
        f"{NEW_CLASS}class AsyncClient(AsyncClientHints):",
        ["class Added:", '    "Added",', "        return _portal.run(self._async.count)"],
    ),
    "default": (
        "_conversations.py",
        'order: Literal["asc", "desc"] = "desc"',
        'order: Literal["asc", "desc"] = "asc"',
        ['        order: Literal["asc", "desc"] = "asc",'],
    ),
    "docstring": (
        "_conversations.py",
        "Get a conversation with its recent messages.",
        "Get one conversation with its recent messages.",
        ['        """Get one conversation with its recent messages.'],
    ),
}


@pytest.mark.parametrize("what", CHANGES)
def test_check_reports_a_changed_source(
    what: str, change_source: Callable[[str, str, str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    name, old, new, lines = CHANGES[what]
    change_source(name, old, new)
    assert main(["--check"], target=PACKAGE / TARGET) == 1
    diff = capsys.readouterr().err
    for line in lines:
        assert f"\n+{line}\n" in diff


def test_unsupported_construct_writes_nothing(
    change_source: Callable[[str, str, str], None], copied_package: Path
) -> None:
    change_source("_client.py", "    def with_options(", "    @staticmethod\n    def with_options(")
    above = (copied_package / "agentphone" / "_client.py").read_text(encoding="utf-8").partition("    @staticmethod")[0]
    target = copied_package / "agentphone" / TARGET
    target.unlink()
    for arguments in ([], ["--check"]):
        failed = run_python(copied_package, "agentphone/_codegen.py", *arguments)
        expected = f"_client.py:{above.count(chr(10)) + 2}: AsyncClient.with_options is decorated with staticmethod"
        assert (failed.returncode, failed.stdout) == (1, "")
        assert failed.stderr.startswith(expected)
        assert failed.stderr.count("\n") == 1
    assert not target.exists()


# The facade as Python sees it

FACADES: Mapping[type, type] = {
    AsyncPager: Pager,
    AsyncState: State,
    AsyncConversations: Conversations,
    AsyncMessages: Messages,
    AsyncClient: Client,
}
OF_EVERY_CLASS = {"__module__", "__doc__", "__dict__", "__weakref__", "__orig_bases__", "__parameters__", "__init__"}
ASYNC_WORDS = re.compile(r"(?i)async(?!BaseTransport|Client)|await|coroutine|trio|anyio|aclose|event loop")

each_facade = pytest.mark.parametrize(("asynchronous", "blocking"), FACADES.items(), ids=lambda cls: cls.__name__)


def public(cls: type) -> dict[str, Any]:
    """Return what a class defines for its users."""
    names = {name for name in vars(cls) if name.startswith("__") or not name.startswith("_")}
    names -= {"__slotnames__", "__annotations__"}  # left by copy and by help
    names -= {"__firstlineno__", "__static_attributes__"}  # Python 3.13
    return {name: inspect.getattr_static(cls, name) for name in names - OF_EVERY_CLASS}


def pairs(asynchronous: type, blocking: type) -> list[tuple[str, Any, Any]]:
    """Return each async method with its name and its blocking form."""
    members = [(name, member) for name, member in public(asynchronous).items() if name != "__await__"]
    return [(name, member, public(blocking)[RENAMED_METHODS.get(name, name)]) for name, member in members]


def function(member: Any) -> Any:
    """Return the function of a property, and anything else as it is."""
    return member.fget if isinstance(member, property) else member


def parameters(member: Any) -> list[tuple[str, object, object, object]]:
    """Return everything that a caller sees of a method's parameters."""
    found = inspect.signature(function(member)).parameters.values()
    return [(one.name, one.kind, one.default, one.annotation) for one in found]


def test_every_public_class_has_a_facade() -> None:
    modules = [sys.modules[f"agentphone.{Path(name).stem}"] for name in _codegen.SOURCES]
    found = {
        value
        for module in modules
        for name, value in vars(module).items()
        if isinstance(value, type) and value.__module__ == module.__name__
        if name.startswith("Async") or name in agentphone.__all__
    }
    assert {cls for cls in found if cls.__name__ not in ITERATORS} == set(FACADES)
    assert {getattr(_sync, name) for name in _sync.__all__} == set(FACADES.values())


@each_facade
def test_every_public_method_has_a_blocking_form(asynchronous: type, blocking: type) -> None:
    expected = {RENAMED_METHODS.get(name, name) for name in public(asynchronous)} - {"__await__"}
    assert set(public(blocking)) == expected
    assert [name for name, member in public(blocking).items() if inspect.iscoroutinefunction(member)] == []


@each_facade
def test_signatures_match(asynchronous: type, blocking: type) -> None:
    for name, member, facade in pairs(asynchronous, blocking):
        assert type(facade) is type(member)
        assert parameters(facade) == parameters(member), name
        returned = inspect.signature(function(member)).return_annotation
        assert inspect.signature(function(facade)).return_annotation == re.sub(r"\bAsync(\w+)", r"\1", returned)


def test_clients_have_the_same_settings() -> None:
    assert parameters(Client.__init__) == parameters(AsyncClient.__init__)


@each_facade
def test_every_argument_reaches_the_async_method(
    asynchronous: type, blocking: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The arguments are passed on by the names or positions that the caller used."""
    received: list[dict[str, object]] = []
    monkeypatch.setattr(_portal, "run", lambda method, *args, **kwargs: method(*args, **kwargs))
    monkeypatch.setattr(_portal, "iterate", lambda stream: stream)

    def recorder(signature: inspect.Signature) -> Callable[..., None]:
        return lambda *args, **kwargs: received.append(signature.bind(None, *args, **kwargs).arguments)

    if blocking is Client:
        signature = inspect.signature(AsyncClient.__init__)
        monkeypatch.setattr(_sync, "AsyncClient", recorder(signature))
        call_with_markers(signature, Client, received)
    for name, member, facade in pairs(asynchronous, blocking):
        if isinstance(member, property) or name in ("__repr__", "__aenter__"):
            continue
        signature = inspect.signature(member)
        wrapped: Any = object.__new__(blocking)
        wrapped._async = type("Recorder", (), {name: staticmethod(recorder(signature))})()
        call_with_markers(signature, lambda *args, f=facade, w=wrapped, **kwargs: f(w, *args, **kwargs), received)


def call_with_markers(signature: inspect.Signature, function: Any, received: list[dict[str, object]]) -> None:
    """Call a function with another object for each of its arguments, and check that these were received."""
    given = {name: object() for name in list(signature.parameters)[1:]}
    kinds = {name: signature.parameters[name].kind for name in given}
    function(
        *(value for name, value in given.items() if kinds[name] is not inspect.Parameter.KEYWORD_ONLY),
        **{name: value for name, value in given.items() if kinds[name] is inspect.Parameter.KEYWORD_ONLY},
    )
    assert {name: value for name, value in received.pop().items() if name != "self"} == given


@each_facade
def test_docstrings_fit_blocking_code(asynchronous: type, blocking: type) -> None:
    assert inspect.getdoc(asynchronous)
    for name, member in {**public(blocking), blocking.__name__: blocking}.items():
        text = function(member).__doc__ or ""
        assert text or name.startswith("__"), name
        assert not ASYNC_WORDS.search(text), (name, ASYNC_WORDS.search(text))
