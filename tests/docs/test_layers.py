"""The house rules of the package, held against its source: who may import whom, and what the face shows."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import agentphone

PACKAGE = Path(agentphone.__file__).parent

FLOORS: dict[str, float] = {
    # Each room and its floor; it imports only from floors below its own. Some stand here before they are built.
    "_version": 0,
    "errors": 0,
    "models": 0,
    "_portal": 0.5,  # on the stairs: it raises two of the errors, and no room beside it needs it
    "_config": 1,
    "_retry": 1,
    "_decoding": 1,
    "_state": 1.5,  # on the stairs: it reads with what `_decoding` has, and two floors read states
    "_wire": 2,
    "_connection": 2,
    "_pagination": 2,
    "_live": 2.5,  # the walks that never end, made of those that do
    "webhooks": 2,
    "_transport": 3,
    "_conversations": 4,
    "_client": 5,
    "_sync": 6,
    # The face, from what a program imports to what a shell starts.
    "__init__": 7,
    "export": 7.1,
    "pytest_plugin": 7.1,
    "cli": 7.2,
    "__main__": 7.3,
}
ASIDE = {"sandbox", "_codegen"}
"""Rooms beside the house: they import nothing of it, and it imports nothing of them but through the doors."""
DOORS = {
    "sandbox": {"_client", "cli", "pytest_plugin"},
    "_codegen": set[str](),
}
FOREIGN: dict[str, set[str]] = {
    # Which third-party packages a room may import; a room that is not named here, none.
    "errors": {"attrs"},
    "models": {"attrs"},
    "_portal": {"anyio", "attrs", "sniffio"},  # sniffio if it is there: httpcore asks it which loop runs
    "_config": {"attrs", "httpx"},
    "_retry": {"attrs"},
    "_decoding": {"attrs", "cattrs"},
    "_state": {"attrs"},
    "_wire": {"attrs"},
    "_connection": {"anyio", "h11", "httpcore", "httpx"},  # httpx stands on the other two, and is never without them
    "_pagination": {"attrs"},
    "_live": {"attrs"},
    "webhooks": {"attrs"},
    "_transport": {"anyio", "attrs", "httpx"},
    "_conversations": {"attrs"},
    "_client": {"attrs", "httpx"},
    "_sync": {"attrs", "httpx"},
    "export": {"anyio", "attrs", "pyarrow"},
    "pytest_plugin": {"anyio", "httpx", "pytest"},
    "cli": {"attrs", "click", "rich", "uvicorn"},
    "__main__": {"click"},
    "sandbox": {"anyio", "attrs", "httpx", "starlette", "uvicorn"},
    "_codegen": {"attrs"},
}

Sources = dict[str, str]
"""The text of each module by its dotted name inside the package: `errors`, `sandbox._store`, `cli.__init__`."""


def sources() -> Sources:
    """Read the package."""
    found = {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in PACKAGE.rglob("*.py")}
    return {name: path.read_text(encoding="utf-8") for name, path in found.items()}


def imports(name: str, text: str, known: set[str]) -> Iterator[str]:
    """Give the full name of every module that a module imports: anywhere in it, whatever the form."""
    package = ["agentphone", *name.split(".")[:-1]]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            for alias in node.names:
                inside = f"{base}.{alias.name}".removeprefix("agentphone.")
                is_module = base.startswith("agentphone") and {inside, inside + ".__init__"} & known
                yield f"agentphone.{inside}" if is_module else base
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if called in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                yield node.args[0].value


def breaches(modules: Sources) -> list[str]:
    """Name every import that the tables forbid."""
    known = set(modules) | set(FLOORS) | ASIDE
    found = []
    for name, text in modules.items():
        room = name.split(".")[0]
        if room not in FLOORS and room not in ASIDE:
            found.append(f"{name} has no row")
            continue
        for target in imports(name, text, known):
            top, *inside = target.split(".")
            if top in sys.stdlib_module_names:
                continue
            if top != "agentphone":
                if top not in FOREIGN.get(room, set()):
                    found.append(f"{name} imports {top}")
                continue
            other = inside[0] if inside else "__init__"
            if other == room and (room in ASIDE or "." in name):
                continue
            if other in ASIDE:
                allowed = room in DOORS[other]
            else:
                allowed = room not in ASIDE and FLOORS.get(other, 99) < FLOORS[room]
            if not allowed:
                found.append(f"{name} imports {other}")
    return found


def test_the_core_declares_exactly_what_it_imports() -> None:
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = {re.split(r"[^\w-]", line)[0] for line in project["dependencies"]}
    core = {name: text for name, text in sources().items() if name.split(".")[0] not in ASIDE and "." not in name}
    imported = {target.split(".")[0] for name, text in core.items() for target in imports(name, text, set())}
    of_extras = {"click", "pytest", "sniffio"}  # the command line's, the plugin's; used if it is there
    assert imported - set(sys.stdlib_module_names) - {"agentphone"} - of_extras == declared


def test_each_room_imports_only_from_floors_below() -> None:
    assert breaches(sources()) == []


@pytest.mark.parametrize(
    ("name", "text", "breach"),
    [
        ("_wire", "import agentphone._http.pool", "_wire imports _transport"),
        ("_wire", "from agentphone._transport import Transport", "_wire imports _transport"),
        ("_wire", "from agentphone import _transport", "_wire imports _transport"),
        ("_wire", "from . import _transport", "_wire imports _transport"),
        ("_wire", "from ._transport import Transport as T", "_wire imports _transport"),
        ("_wire", "def f():\n    from agentphone._pagination import Bound", "_wire imports _pagination"),
        ("_wire", "if TYPE_CHECKING:\n    from agentphone._client import AsyncClient", "_wire imports _client"),
        ("_wire", "import importlib\nimportlib.import_module('agentphone._client')", "_wire imports _client"),
        ("_wire", "from agentphone import AsyncClient", "_wire imports __init__"),
        ("_wire", "import agentphone", "_wire imports __init__"),
        ("_wire", "try:\n    import httpx\nexcept ImportError:\n    pass", "_wire imports httpx"),
        ("_wire", "import json, anyio.lowlevel", "_wire imports anyio"),
        ("_wire", "from agentphone._unheard import x", "_wire imports _unheard"),
        ("models", "from agentphone.errors import AgentPhoneError", "models imports errors"),
        ("_conversations", "import anyio", "_conversations imports anyio"),
        ("_transport", "from agentphone.sandbox import Sandbox", "_transport imports sandbox"),
        ("_client", "from agentphone._sync import Client", "_client imports _sync"),
        ("_client", "import starlette", "_client imports starlette"),
        ("_client", "import agentphone._codegen", "_client imports _codegen"),
        ("sandbox._store", "from agentphone.models import Message", "sandbox._store imports models"),
        ("sandbox._store", "from .. import errors", "sandbox._store imports errors"),
        ("sandbox._store", "from ..errors import AgentPhoneError", "sandbox._store imports errors"),
        ("_codegen", "import agentphone._client", "_codegen imports _client"),
        ("_version", "import attrs", "_version imports attrs"),
        ("__init__", "from agentphone.cli import main", "__init__ imports cli"),
        ("__main__", "import rich", "__main__ imports rich"),
        ("helpers", "", "helpers has no row"),
    ],
)
def test_a_wrong_import_is_found_whatever_its_form(name: str, text: str, breach: str) -> None:
    assert breaches({name: text}) == [breach]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("_wire", "import json\nfrom agentphone import errors\nfrom agentphone._retry import x"),
        ("_client", "def f():\n    from agentphone.sandbox import Sandbox"),
        ("sandbox._store", "from agentphone.sandbox._behavior import Reading\nfrom . import _faults"),
        ("cli.__init__", "from agentphone import AsyncClient\nfrom agentphone.cli._table import x"),
        ("__main__", "import click\nfrom agentphone.cli.commands import agentphone"),
        ("cli.commands", "from agentphone.sandbox.server import serve"),
    ],
)
def test_a_right_import_is_let_pass(name: str, text: str) -> None:
    assert breaches({name: text}) == []


@pytest.mark.parametrize("name", sorted(sources()))
def test_each_file_begins_by_saying_what_it_is(name: str) -> None:
    tree = ast.parse(sources()[name])
    docstring = ast.get_docstring(tree)
    assert docstring
    assert docstring[0].isupper() or docstring[0] == "`"
    assert docstring.partition("\n")[0].rstrip()[-1] in ".:"


def test_all_is_sorted_and_is_exactly_what_the_package_binds() -> None:
    names = agentphone.__all__
    assert len(set(names)) == len(names)
    bound = {
        name
        for name, value in vars(agentphone).items()
        if not name.startswith("_") and not isinstance(value, ModuleType)
    }
    assert set(names) == bound | {"__version__"}


def test_every_public_name_says_what_it_is() -> None:
    for name in agentphone.__all__:
        value = getattr(agentphone, name)
        if not isinstance(value, str):
            assert inspect.getdoc(value), name


LOADED = """
import sys
import agentphone
agentphone.AsyncClient("key")
unwanted = {"asyncio", "httpcore", "starlette", "uvicorn", "sqlite3", "trio", "agentphone.sandbox", "agentphone.cli"}
print(*sorted(unwanted & sys.modules.keys()))
"""


def test_importing_the_package_loads_neither_the_sandbox_nor_an_event_loop() -> None:
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", LOADED], capture_output=True, text=True, check=False, cwd=PACKAGE.parent
    )
    assert (run.stdout, run.stderr) == ("\n", "")
