"""Pagers and clients used in the wrong way say what to write, and pass for nothing that they are not."""

from __future__ import annotations

import copy
import inspect
import pickle
import pydoc
from collections.abc import AsyncIterable, Awaitable, Callable, Collection, Iterable, Reversible, Sequence, Sized
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Any

import pytest

from agentphone import AsyncClient, AsyncPager, Client, Pager

ASYNC, SYNC = AsyncClient("key"), Client("key")  # nothing is sent
ASYNC_PAGER: Any = ASYNC.conversations.list()
PAGER: Any = SYNC.conversations.list()
both_pagers = pytest.mark.parametrize("pager", [ASYNC_PAGER, PAGER], ids=["async", "sync"])


@pytest.mark.parametrize(
    ("code", "error", "hints"),
    [
        ("pager.total", AttributeError, ("'AsyncPager' object has no attribute 'total'", "await pager", "page.total")),
        ("pager.data", AttributeError, ("await pager", "page.data")),
        ("pager.has_more", AttributeError, ("await pager", "page.has_more")),
        ("pager[0]", TypeError, ("page = await pager", "page[0]", "async for item in pager")),
        ("pager[1:]", TypeError, ("page = await pager", "page[slice(1, None, None)]")),
        ("len(pager)", TypeError, ("page = await pager", "len(page)")),
        ("list(pager)", TypeError, ("async for item in pager", "[item async for item in pager]")),
        ("[item for item in pager]", TypeError, ("async for item in pager", "page = await pager")),
    ],
)
def test_async_pager_says_what_to_write(code: str, error: type[Exception], hints: tuple[str, ...]) -> None:
    with pytest.raises(error) as caught:
        eval(code, {"pager": ASYNC_PAGER})
    for hint in hints:
        assert hint in str(caught.value)


@pytest.mark.parametrize(
    ("code", "error", "hints"),
    [
        ("pager.total", AttributeError, ("'Pager' object has no attribute 'total'", "pager.page()", "page.total")),
        ("pager.data", AttributeError, ("pager.page()", "page.data")),
        ("pager[0]", TypeError, ("page = pager.page()", "page[0]", "for item in pager")),
        ("len(pager)", TypeError, ("page = pager.page()", "len(page)")),
        ("reversed(pager)", TypeError, ("page = pager.page()",)),
    ],
)
def test_pager_says_what_to_write(code: str, error: type[Exception], hints: tuple[str, ...]) -> None:
    with pytest.raises(error) as caught:
        eval(code, {"pager": PAGER})
    for hint in hints:
        assert hint in str(caught.value)
    assert "await" not in str(caught.value)
    assert "async" not in str(caught.value).replace("AsyncPager", "")


@pytest.mark.anyio
async def test_pager_in_async_code_says_what_to_write() -> None:
    with pytest.raises(TypeError, match="`for item in pager`, or create an AsyncClient"):
        async for _ in PAGER:
            pass
    with pytest.raises(TypeError, match=r"`page = pager\.page\(\)` for its first page, or create an AsyncClient"):
        await PAGER


@pytest.mark.anyio
async def test_client_in_the_wrong_block_says_what_to_write() -> None:
    client: Any = ASYNC
    with pytest.raises(TypeError, match="AsyncClient needs `async with`"), client:
        pass
    client = SYNC
    with pytest.raises(TypeError, match="Client is blocking and needs a plain `with`"):
        async with client:
            pass


@both_pagers
@pytest.mark.parametrize("name", ["total", "data", "id", "__array__", "_repr_html_", "__deepcopy__", "shape"])
def test_pager_has_no_other_attributes(pager: Any, name: str) -> None:
    assert not hasattr(pager, name)
    with pytest.raises(AttributeError, match=f"has no attribute '{name}'") as caught:
        getattr(pager, name)
    assert (caught.value.name, caught.value.obj) == (name, pager)


@pytest.mark.parametrize(
    ("value", "protocols"),
    [
        (ASYNC_PAGER, {AsyncIterable, Awaitable}),
        (PAGER, {Iterable}),
        (ASYNC, {AbstractAsyncContextManager}),
        (SYNC, {AbstractContextManager}),
    ],
    ids=["async pager", "pager", "async client", "client"],
)
def test_protocols_are_those_that_work(value: Any, protocols: set[type]) -> None:
    every = (AsyncIterable, Awaitable, Collection, Iterable, Reversible, Sequence, Sized)
    contexts = (AbstractAsyncContextManager, AbstractContextManager)
    assert {protocol for protocol in (*every, *contexts) if isinstance(value, protocol)} == protocols
    assert {protocol for protocol in (*every, *contexts) if issubclass(type(value), protocol)} == protocols
    assert inspect.isawaitable(value) == (Awaitable in protocols)


@both_pagers
def test_pager_is_true_and_cannot_be_copied(pager: Any) -> None:
    assert pager
    attempts: tuple[Callable[[Any], Any], ...] = (pickle.dumps, copy.copy, copy.deepcopy)
    for attempt in attempts:
        with pytest.raises(TypeError, match=r"cannot be (copied or )?pickled"):
            attempt(pager)


def test_pager_without_init_says_what_is_missing() -> None:
    with pytest.raises(AttributeError, match="has no attribute '_async'"):
        Pager.__new__(Pager).page()


def test_repr_of_a_pager_says_what_to_write() -> None:
    assert repr(ASYNC_PAGER) == "<AsyncPager: `async for item in pager`, or `page = await pager` for its first page>"
    assert repr(PAGER) == "<Pager: `for item in pager`, or `page = pager.page()` for its first page>"


@pytest.mark.parametrize("cls", [AsyncPager, Pager, AsyncClient, Client])
def test_hints_are_not_in_help(cls: type) -> None:
    text = pydoc.render_doc(cls, renderer=pydoc.plaintext)  # type: ignore[attr-defined]  # not in its stub
    for name in ("__len__", "__getitem__", "__getattr__", "_loop"):
        assert name not in text
        assert name not in dir(cls)
    assert ("__await__" in text, "__aiter__" in text) == (cls is AsyncPager,) * 2
    assert ("__iter__" in text) == (cls is Pager)


def test_pager_is_read_into_lists_and_dataframes() -> None:
    pandas = pytest.importorskip("pandas")
    with Client(base_url="sandbox:") as client:
        pager = client.conversations.list(limit=3)
        ids = [conversation.id for conversation in pager]
        assert len(ids) == 3
        assert [conversation.id for conversation in list(pager)] == ids
        assert ids[0] in {conversation.id for conversation in pager}
        assert list(pandas.DataFrame(conversation.to_dict() for conversation in pager)["id"]) == ids
        assert [conversation.id for conversation in pandas.DataFrame(pager)[0]] == ids
