"""The `with` block of a state: when it writes, and how it fails."""

from __future__ import annotations

import json
from typing import Any

import anyio
import anyio.lowlevel
import attrs
import httpx
import pytest

from agentphone import AsyncClient, Client, NotFoundError, ServerError, StateDecodeError
from agentphone.sandbox import Sandbox
from tests.state.world import AGENT, PERSON, SETTINGS, OrderState, World
from tests.support.helpers import conversation


class _StopError(BaseException):
    """An exception that `except Exception` does not catch."""


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, _StopError])
@pytest.mark.parametrize("cls", [dict, OrderState])
def test_exception_propagates_and_writes_nothing(world: World, error: type[BaseException], cls: Any) -> None:
    def change(state: Any) -> None:
        (state.update if cls is dict else lambda **given: setattr(state, "order_id", given["order_id"]))(order_id="x")
        raise error

    with pytest.raises(error):
        world.visit(change, cls)
    assert world.sent == ["GET"]
    assert world.stored is None


@pytest.mark.anyio
async def test_cancellation_writes_nothing() -> None:
    with Sandbox() as box:
        cid = box.receive_sms(from_number=PERSON, to_number=AGENT, body="?")["conversationId"]
        async with AsyncClient(**SETTINGS, transport=box.transport()) as client:
            with anyio.CancelScope() as scope:
                async with client.conversations.state(cid) as state:
                    state["a"] = 1
                    scope.cancel()
                    await anyio.lowlevel.checkpoint()
            assert scope.cancelled_caught
            assert [request.method for request in box.requests] == ["GET"]


@pytest.mark.parametrize("cid", ["", None, 5])
def test_invalid_id_is_rejected_before_any_request(world: World, cid: Any) -> None:
    with pytest.raises((ValueError, TypeError), match="conversation_id"):
        attrs.evolve(world, id=cid).visit()
    assert world.sent == []


@pytest.mark.anyio
async def test_state_object_is_reusable_but_not_reentrant() -> None:
    with Sandbox() as box:
        cid = box.receive_sms(from_number=PERSON, to_number=AGENT, body="?")["conversationId"]
        async with AsyncClient(**SETTINGS, transport=box.transport()) as client:
            opening = client.conversations.state(cid)
            async with opening as state:
                state["a"] = 1
                with pytest.raises(RuntimeError, match="open already"):
                    async with opening:
                        pass
            await client.conversations.update(cid, metadata={"b": 2})
            async with opening as again:
                assert again == {"b": 2}
                again["c"] = {1}
                with pytest.raises(RuntimeError, match="open already"):
                    await opening.__aenter__()
                del again["c"]
            box.faults.add(status=500)
            with pytest.raises(ServerError):
                await opening.__aenter__()
            async with opening as third:
                assert third == {"b": 2}


def test_failed_block_leaves_the_object_usable() -> None:
    with Sandbox() as box, Client(**SETTINGS, transport=box.transport()) as client:
        cid = box.receive_sms(from_number=PERSON, to_number=AGENT, body="?")["conversationId"]
        opening = client.conversations.state(cid, OrderState)
        with pytest.raises(RuntimeError, match="mine"), opening:
            raise RuntimeError("mine")
        with pytest.raises(TypeError), opening as state:
            state.step = "x"  # type: ignore[assignment]
        box.faults.add(status=500, times=1)
        with pytest.raises(ServerError), opening:
            pass
        client.conversations.update(cid, metadata={"step": "x"})
        with pytest.raises(StateDecodeError), opening:
            pass
        client.conversations.update(cid, metadata={})
        with opening as state, pytest.raises(RuntimeError, match="open already"), opening:
            pass
        with opening as state:
            state.step = 7
        assert client.conversations.get(cid).metadata == {"step": 7}


def test_missing_conversation_is_not_found(world: World) -> None:
    with pytest.raises(NotFoundError):
        attrs.evolve(world, id="conv_nobody").visit()


def test_later_of_two_writers_wins() -> None:
    with Sandbox() as box, Client(**SETTINGS, transport=box.transport()) as client:
        cid = box.receive_sms(from_number=PERSON, to_number=AGENT, body="?")["conversationId"]
        with client.conversations.state(cid) as outer:
            outer["outer"] = 1
            with client.conversations.state(cid) as inner:
                inner["inner"] = 1
        assert client.conversations.get(cid).metadata == {"outer": 1}


@pytest.mark.anyio
async def test_write_sends_the_whole_object_and_is_retried() -> None:
    with Sandbox() as box:
        cid = box.receive_sms(from_number=PERSON, to_number=AGENT, body="?")["conversationId"]
        async with AsyncClient(**SETTINGS | {"max_retries": 1}, transport=box.transport()) as client:
            await client.conversations.update(cid, metadata={"theirs": 1})
            async with client.conversations.state(cid, OrderState) as state:
                state.step = 1
                box.faults.add(status=503, retry_after=0)
            assert (await client.conversations.get(cid)).metadata == {"theirs": 1, "step": 1}
        assert [request.method for request in box.requests] == ["PATCH", "GET", "PATCH", "PATCH", "GET"]
        assert box.requests[2].body == box.requests[3].body


def test_metadata_that_cannot_be_written_back_is_rejected_when_read() -> None:
    body = json.dumps(conversation(metadata={"theirs": "\ud800"}))
    transport = httpx.MockTransport(lambda _: httpx.Response(200, content=body))
    with Client(**SETTINGS, transport=transport) as client, pytest.raises(StateDecodeError) as caught:
        client.conversations.state("conv_1", OrderState).__enter__()
    assert caught.value.path == "metadata"
    assert "it could not be written back (metadata['theirs'] " in str(caught.value)
