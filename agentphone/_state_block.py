"""`AsyncState`, the context manager of `conversations.state`: read the metadata, and write it if it changed."""

from __future__ import annotations

from types import TracebackType
from typing import Generic, TypeVar

from agentphone import _state
from agentphone._http.requests import get_conversation, update_conversation
from agentphone._http.transport import Transport
from agentphone._json import DecodeError

T = TypeVar("T")


class AsyncState(Generic[T]):
    """A conversation's state: read when the block begins; written when it ends normally, if it has changed.

    Returned by `conversations.state`, which describes the details. It can be used again after its block, and then reads
    the state again. For two blocks at once, create two.
    """

    def __init__(self, conversation_id: str, cls: type[T], transport: Transport) -> None:
        self._conversation_id = conversation_id
        self._class = cls
        self._transport = transport
        self._spec = get_conversation(conversation_id, message_limit=1)
        self._is_open = False
        self._loaded: _state.LoadedState[T]

    async def __aenter__(self) -> T:
        """Read the state.

        Returns:
            The state. Change this object.

        Raises:
            StateDecodeError: The stored metadata does not match the class.
            AgentPhoneError: It could not be read.
            ClientClosedError: The client was closed.
            RuntimeError: The block of this object is already open.
        """
        if self._is_open:
            raise RuntimeError("This state is open already. Create another one with conversations.state().")
        self._is_open = True
        try:
            conversation = await self._transport.send(self._spec)
            self._loaded = _state.LoadedState(conversation.metadata, self._class, "metadata")
        except BaseException as error:
            self._is_open = False
            if isinstance(error, DecodeError):
                raise _state.state_decode_error(error, self._class, str(self._spec)) from None
            raise
        return self._loaded.value

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Write the state if it has changed; after an exception write nothing.

        If the write fails or is cancelled, either the old or the new object is stored, never a mixture.

        Raises:
            TypeError: A value has a type that JSON does not have, or that the class could not read back.
            ValueError: JSON cannot represent a value, or a timestamp has no offset.
            AgentPhoneError: It could not be written.
            ClientClosedError: The client was closed.
        """
        try:
            changed = self._loaded.diff() if exc_type is None else None
            if changed is not None:
                await self._transport.send(update_conversation(self._conversation_id, metadata=changed))
        finally:
            self._is_open = False
