"""Blocking calls in a thread that runs an event loop: a warning, or an error inside the SDK's own loop."""

from __future__ import annotations

import ast
import asyncio
import sys
import warnings
from collections.abc import Callable
from operator import attrgetter
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from agentphone import AsyncClient, Client, _portal, _sync
from agentphone.export import export
from tests.support.helpers import conversation, ok, page
from tests.sync.blocking import blocking

CALLS: dict[str, Callable[[Client], object]] = {
    "get": lambda client: client.conversations.get("conv_1"),
    "page": lambda client: client.conversations.list().page(),
    "iterate": lambda client: list(client.conversations.list()),
    "pages": lambda client: next(client.conversations.list().pages()),
    "messages": lambda client: list(client.conversations.messages("conv_1")),
    "follow": lambda client: client.conversations.follow("conv_1").close(),
    "close": lambda client: client.close(),
}


ADVICE = {
    "get": ("`client.conversations.get()`", "`await client.conversations.get()`"),
    "page": ("`client.conversations.list().page()`", "`await client.conversations.list().page()`"),
    "iterate": ("`for ... in client.conversations.list()`", "`async for ... in client.conversations.list()`"),
    "pages": ("`for ... in client.conversations.list()`", "`async for ... in client.conversations.list()`"),
    "messages": (
        "`for ... in client.conversations.messages()`",
        "`async for ... in client.conversations.messages()`",
    ),
    "follow": ("`client.conversations.follow().close()`", "`await client.conversations.follow().aclose()`"),
    "close": ("`client.close()`", "`await client.aclose()`"),
}


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("name", CALLS)
def test_blocking_call_on_a_running_loop_warns_once_per_line(name: str, backend: str) -> None:
    response = ok(conversation() | {"messages": []}) if name == "get" else ok(page(total=0))

    async def main() -> None:
        client, script = blocking(response)
        for _ in range(3):
            CALLS[name](client)
        assert bool(script.requests) == (name not in ("close", "follow"))

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        vars(sys.modules[__name__]).pop("__warningregistry__", None)
        anyio.run(main, backend=backend)
    assert [(warning.filename, warning.category) for warning in caught] == [(__file__, RuntimeWarning)]
    assert caught[0].lineno == CALLS[name].__code__.co_firstlineno
    call, instead = ADVICE[name]
    assert str(caught[0].message) == (
        f"{call} blocks the event loop that runs in this thread. With an AsyncClient, write {instead}."
    )


def test_leaving_a_with_block_on_a_running_loop_warns() -> None:
    async def main() -> None:
        with blocking(ok())[0]:
            pass

    with pytest.warns(RuntimeWarning, match=r"`with Client\(\)` .* `async with AsyncClient\(\)`") as caught:
        anyio.run(main)
    assert [warning.filename for warning in caught] == [__file__]


def test_export_on_a_running_loop_warns(tmp_path: Path) -> None:
    async def main() -> None:
        export(blocking(ok(page(total=0)))[0], tmp_path)

    with pytest.warns(RuntimeWarning, match=r"`export\(\)` blocks .* write `await export\(\)`") as caught:
        anyio.run(main)
    assert [warning.filename for warning in caught] == [__file__]


def test_every_blocking_method_has_an_equivalent_that_exists() -> None:
    tree = ast.parse(Path(_sync.__file__).read_text(encoding="utf-8"))
    found = 0
    client = AsyncClient("key")
    for cls in (node for node in tree.body if isinstance(node, ast.ClassDef)):
        for method in (node for node in cls.body if isinstance(node, ast.FunctionDef)):
            if "_portal.run(" in ast.unparse(method):
                found += 1
                name = f"{cls.name}.{method.name}"
                if name not in _portal.ASYNC_EQUIVALENTS:
                    written = f"client.{cls.name.lower()}.{method.name}"
                    assert _portal.equivalents(name) == (f"{written}()", f"await {written}()")
                    assert callable(attrgetter(f"{cls.name.lower()}.{method.name}")(client))
    assert found >= 7


def test_blocking_call_in_a_callback_of_a_loop_warns() -> None:
    client, script = blocking(ok())

    async def main() -> None:
        asyncio.get_running_loop().call_soon(client.conversations.list().page)
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    with pytest.warns(RuntimeWarning, match=r"`await client\.conversations\.list\(\)\.page\(\)`"):
        asyncio.run(main())
    assert len(script.requests) == 1


def test_warning_names_the_line_of_a_package_with_a_similar_name() -> None:
    package = str(Path(_portal.__file__).parent)
    scope: dict[str, Any] = {"client": blocking(ok())[0]}
    exec(compile("async def main(): client.conversations.list().page()", f"{package}_shop/views.py", "exec"), scope)
    with pytest.warns(RuntimeWarning, match=r"`await client\.conversations\.list\(\)\.page\(\)`") as caught:
        asyncio.run(scope["main"]())
    assert [Path(warning.filename).name for warning in caught] == ["views.py"]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_no_warning_in_a_worker_thread_of_a_loop(backend: str) -> None:
    client, script = blocking(ok())

    async def main() -> None:
        await anyio.to_thread.run_sync(client.conversations.list().page)

    anyio.run(main, backend=backend)
    assert len(script.requests) == 1


@pytest.mark.parametrize("where", ["on_request", "on_response", "on_retry", "transport"])
@pytest.mark.parametrize("name", ["get", "iterate"])
def test_blocking_call_inside_the_sdks_loop_raises(where: str, name: str) -> None:
    def hook(*_: Any) -> None:
        CALLS[name](client)

    async def send(_: httpx.Request) -> httpx.Response:
        CALLS[name](client)
        return ok()

    settings = {} if where == "transport" else {where: hook}
    step: Any = {"transport": send, "on_retry": httpx.Response(503)}.get(where, ok())
    client, _script = blocking(step, **settings)
    with pytest.raises(RuntimeError, match="inside the SDK's own event loop"):
        client.conversations.list().page()
    with pytest.raises(RuntimeError) as caught:
        client.conversations.list().page()
    assert str(caught.value).startswith(f"{ADVICE[name][0]} was called inside")
    assert str(caught.value).endswith(f"With an AsyncClient, write {ADVICE[name][1]} there.")


def test_blocking_call_in_a_callback_of_the_sdks_loop_raises() -> None:
    raised: list[BaseException] = []

    def callback() -> None:
        try:
            client.conversations.list().page()
        except RuntimeError as error:
            raised.append(error)

    client, _script = blocking(ok(), on_request=lambda _: asyncio.get_running_loop().call_soon(callback))
    client.conversations.list().page()
    blocking(ok())[0].conversations.list().page()  # the callback has run by now
    assert "own event loop" in str(raised[0])
