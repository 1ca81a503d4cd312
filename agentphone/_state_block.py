"""`async with conversations.state(...)`: read a conversation's state, and write what changed at the end."""

from __future__ import annotations

from types import TracebackType
from typing import Generic, TypeVar

from agentphone import _state
from agentphone._http.requests import get_conversation, update_conversation
from agentphone._http.transport import Transport
from agentphone._json import DecodeError

R = TypeVar("R")


T = TypeVar("T")


class AsyncState(Generic[T]):
    """A conversation's state: read when the block begins, written when it ends well and something changed.

    Made by `conversations.state`, which says what that means. It may be used again after its block, and reads afresh
    then; for two blocks at once, make two.
    """

    def __init__(self, conversation_id: str, cls: type[T], transport: Transport) -> None:
        self._conversation_id = conversation_id
        self._class = cls
        self._transport = transport
        self._call = get_conversation(conversation_id, message_limit=1)
        self._is_open = False
        self._opened: _state.LoadedState[T]

    async def __aenter__(self) -> T:
        """Read the state.

        Returns:
            The state, to be changed in the block.

        Raises:
            StateDecodeError: What is stored does not fit the class.
            AgentPhoneError: It could not be read.
            RuntimeError: The block of this object is open already.
        """
        if self._is_open:
            raise RuntimeError("This state is open already. Make another one with conversations.state().")
        self._is_open = True
        try:
            conversation = await self._transport.send(self._call)
            self._opened = _state.LoadedState(conversation.metadata, self._class, "metadata")
        except BaseException as error:
            self._is_open = False
            if isinstance(error, DecodeError):
                raise _state.state_decode_error(error, self._class, str(self._call)) from None
            raise
        return self._opened.value

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Write the state if it changed; after an exception, nothing.

        If the writing itself fails or is cut off, either the old object is stored or the new one, never a mixture.

        Raises:
            TypeError: A value is of a type that JSON does not have, or that the class could not read back.
            ValueError: A value is one that JSON cannot carry, or an instant without an offset.
            AgentPhoneError: It could not be written.
        """
        try:
            changed = self._opened.diff() if exc_type is None else None
            if changed is not None:
                await self._transport.send(update_conversation(self._conversation_id, metadata=changed))
        finally:
            self._is_open = False
