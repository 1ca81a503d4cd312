"""The tools: each a method with its arguments and its description as a model reads them. No protocol here."""

# The annotations are not postponed: pydantic reads those of the methods.

import re
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any, Literal
from weakref import WeakValueDictionary

import anyio
from pydantic import Field

from agentphone import AgentPhoneError, AsyncClient, Conversation, Cursor, Message, NotFoundError, SendUnconfirmedError
from agentphone.mcp._answers import (
    MAX_ANSWER,
    ConversationAnswer,
    Conversations,
    Detail,
    Match,
    Matches,
    MessageAnswer,
    Messages,
    Sent,
    State,
)
from agentphone.mcp._cursors import ListCursor, SearchCursor, parse_message_cursor

OVERLAP = 10
"""How many conversations before a position are listed again, in case some have gone from the list."""
MAX_LISTED = 1_000
"""How many conversations one call looks at."""
MAX_SEARCHED = 2_000
"""How many messages one call searches."""
MAX_SEARCHED_CONVERSATIONS = 50
CONCURRENCY, NEWEST = 10, 200
"""How many conversations a search reads at a time, and how many of their newest messages."""
MAX_STATE_OF_DETAIL = 4_000
"""How many characters of state `get_conversation` shows."""

ConversationId = Annotated[
    str, Field(min_length=1, description="The conversation's id, as list_conversations returns it.")
]
PageCursor = Annotated[
    str | None, Field(description="The next_cursor of an earlier answer, to go on from there. Default: the beginning.")
]
Timestamp = Annotated[str | None, Field(description="ISO 8601 with an offset, such as 2025-01-15T12:00:00Z.")]


class Tools:
    """The tools of one server.

    Args:
        connect: Returns the client; a tool whose client cannot be created fails with the reason.
        confirm: How long to look for a reply whose outcome is unclear, in seconds.
    """

    def __init__(self, connect: Callable[[], AsyncClient], confirm: float) -> None:
        self._connect = connect
        self._confirm = confirm
        self._locks: WeakValueDictionary[str, anyio.Lock] = WeakValueDictionary()

    async def list_conversations(
        self,
        *,
        limit: Annotated[int, Field(ge=1, le=50, description="How many conversations to return.")] = 20,
        participant: Annotated[
            str | None,
            Field(
                min_length=1, description="Only conversations with this phone number (E.164), e-mail address or group."
            ),
        ] = None,
        cursor: PageCursor = None,
    ) -> Conversations:
        """List the text conversations of the account, most recent activity first.

        Returns each conversation's id, who it is with, how many messages it has and how the latest one begins. With
        `participant` it finds the conversations with one person; if nothing is found but there is a next_cursor, not
        every conversation was looked at yet. Messages come from read_messages, state from get_state.
        """
        start = ListCursor.parse(cursor)
        found: list[ConversationAnswer] = []
        looked_at, position = 0, start
        async for conversation, its_position in self._conversations(start, page_size=100 if participant else limit + 1):
            if len(found) == limit or looked_at == MAX_LISTED:
                return Conversations(conversations=found, next_cursor=str(position))
            looked_at, position = looked_at + 1, its_position
            if participant is None or _normalize(conversation.participant) == _normalize(participant):
                found.append(ConversationAnswer.of(conversation))
        return Conversations(conversations=found)

    async def get_conversation(
        self,
        *,
        conversation_id: ConversationId,
        message_limit: Annotated[int, Field(ge=1, le=50, description="How many recent messages to return.")] = 10,
    ) -> Detail:
        """Show one conversation: who it is with, its state, and its latest messages, newest first.

        Use this before answering a text. Older messages come from read_messages.
        """
        conversation = await self._connect().conversations.get(conversation_id, message_limit=message_limit)
        newest_first = sorted(conversation.messages, key=lambda message: message.cursor, reverse=True)
        page = _page(newest_first)
        has_earlier = conversation.message_count is None or conversation.message_count > len(page)
        return Detail(
            conversation=ConversationAnswer.of(conversation),
            state=State.of(conversation_id, conversation.metadata, None, MAX_STATE_OF_DETAIL),
            messages=page,
            next_cursor=str(newest_first[len(page) - 1].cursor) if page and has_earlier else None,
        )

    async def read_messages(
        self,
        *,
        conversation_id: ConversationId,
        limit: Annotated[int, Field(ge=1, le=100, description="How many messages to return at most.")] = 20,
        order: Annotated[Literal["desc", "asc"], Field(description="desc: newest first. asc: oldest first.")] = "desc",
        before: Timestamp = None,
        after: Timestamp = None,
        cursor: PageCursor = None,
    ) -> Messages:
        """Read the messages of a conversation, page by page, optionally only those before or after a time.

        A page can have fewer messages than `limit` if they are long. While there is a next_cursor there is more.
        """
        at = parse_message_cursor(cursor)
        pager = self._connect().conversations.messages(
            conversation_id,
            limit=limit + 1,
            before=at if at and order == "desc" else before,
            after=at if at and order == "asc" else after,
            order=order,
            page_size=limit + 1,
        )
        found = [message async for message in pager]
        page = _page(found[:limit])
        return Messages(messages=page, next_cursor=str(found[len(page) - 1].cursor) if len(page) < len(found) else None)

    async def search_messages(
        self,
        *,
        query: Annotated[
            str, Field(min_length=1, max_length=200, description="The words to find, as they stand in the text.")
        ],
        conversation_id: Annotated[
            str | None, Field(min_length=1, description="Only this conversation. Default: all of them.")
        ] = None,
        limit: Annotated[int, Field(ge=1, le=50, description="How many matches to return at most.")] = 20,
        cursor: PageCursor = None,
    ) -> Matches:
        """Search the texts of one conversation or of all, ignoring case; newest messages of each conversation first.

        The API has no search, so this reads the messages: one call looks at 2,000 of them at most. While there is a
        next_cursor, not everything was searched yet: also if nothing was found, go on with it.
        """
        search = _Search(query, limit)
        if conversation_id is not None:
            last = await self._search_one(search, conversation_id, parse_message_cursor(cursor))
            return search.result(None if last is None else str(last))
        start = SearchCursor.parse(cursor)
        if start is not None and start.message is not None:
            last = await self._search_listed(search, start.position.id, start.message)
            if last is not None:
                return search.result(str(SearchCursor(start.position, last)))
        searched = 0
        position = start.position if start else None
        async for batch in self._batches(position):
            for conversation, its_position, newest in batch:
                if position is not None and (search.is_full or searched == MAX_SEARCHED_CONVERSATIONS):
                    return search.result(str(SearchCursor(position, None)))
                last = await self._search_listed(search, conversation.id, None, newest)
                if last is not None:
                    return search.result(str(SearchCursor(its_position, last)))
                searched, position = searched + 1, its_position
        return search.result(None)

    async def get_state(
        self,
        *,
        conversation_id: ConversationId,
        keys: Annotated[list[str] | None, Field(description="Only these keys. Default: all that fit.")] = None,
    ) -> State:
        """Read the state of a conversation: the JSON object that the agent keeps about it between texts."""
        conversation = await self._connect().conversations.get(conversation_id, message_limit=1)
        return State.of(conversation_id, conversation.metadata, keys, MAX_ANSWER)

    async def set_state(
        self,
        *,
        conversation_id: ConversationId,
        state: Annotated[dict[str, Any], Field(description="The keys to set, with their values; null removes a key.")],
        replace: Annotated[
            bool, Field(description="Whether to replace the whole state: keys that are not given are lost.")
        ] = False,
    ) -> State:
        """Change the state of a conversation: set the given keys and keep the others.

        The state comes with every webhook of the conversation. Store there what must be known at the next text: an
        order's number, a step, a decision. Returns the keys that were set.
        """
        changes = {key: value for key, value in state.items() if value is not None}
        lock = self._locks.setdefault(conversation_id, anyio.Lock())
        # The API can only replace it as a whole: one change at a time, so that parallel calls do not undo each other.
        async with lock, self._connect().conversations.state(conversation_id) as stored:
            if replace:
                stored.clear()
            for key in state.keys() - changes.keys():
                stored.pop(key, None)
            stored.update(changes)
        return State.of(conversation_id, changes, None, MAX_ANSWER)

    async def reply(
        self,
        *,
        conversation_id: ConversationId,
        body: Annotated[str, Field(description="The text to send; empty only with media.")] = "",
        media_urls: Annotated[
            list[str] | None, Field(max_length=20, description="https:// URLs of images or other media to send.")
        ] = None,
        reply_to: Annotated[str | None, Field(description="The id of the message that this one answers.")] = None,
    ) -> Sent:
        """Send a text to the person (or the group) of a conversation, at once: it cannot be taken back.

        A text is never sent twice. If the answer says `unconfirmed`, it may have been sent: do not call this again
        with it, but look with read_messages first.
        """
        try:
            sent = await self._connect().conversations.reply(
                conversation_id, body, media_urls=media_urls or (), reply_to=reply_to, confirm=self._confirm
            )
        except SendUnconfirmedError as error:
            return Sent(
                status="unconfirmed",
                conversation_id=conversation_id,
                advice=f"{error.args[0]}: it may have been sent. Do not call reply again with this text; look"
                " for it with read_messages.",
            )
        return Sent(
            status="sent",
            id=sent.id,
            conversation_id=sent.conversation_id or conversation_id,
            channel=sent.channel,
            delivery_status=sent.status,
        )

    async def react(
        self,
        *,
        message_id: Annotated[str, Field(min_length=1, description="The id of the message, as read_messages has it.")],
        reaction: Annotated[
            str, Field(min_length=1, description="love, like, dislike, laugh, emphasize, question, or one emoji.")
        ],
    ) -> Sent:
        """React to a message, on channels that can show it (not SMS). A reaction cannot be removed."""
        try:
            sent = await self._connect().messages.react(message_id, reaction)
        except SendUnconfirmedError as error:
            return Sent(status="unconfirmed", advice=f"{error.args[0]}: it may have been sent. Do not react again.")
        return Sent(status="sent", id=sent.id, channel=sent.channel)

    async def _conversations(
        self, start: ListCursor | None, *, page_size: int
    ) -> AsyncIterator[tuple[Conversation, ListCursor]]:
        """Yield the conversations after a position, each with its own.

        The list moves while it is read: it begins a little before the position, and passes what was shown already.
        """
        offset = 0 if start is None else max(0, start.offset - OVERLAP)
        uncertain: list[tuple[Conversation, ListCursor]] = []  # as old as the position, before or after it
        async for page in self._connect().conversations.list(offset=offset, page_size=page_size).pages():
            for conversation in page:
                its_position = ListCursor.of(offset, conversation)
                offset += 1
                if start is None:
                    yield conversation, its_position
                elif start.is_before(conversation):
                    pass
                elif conversation.id == start.id:
                    start = None  # what follows was not shown yet
                    uncertain.clear()
                else:
                    uncertain.append((conversation, its_position))
                    if conversation.last_message_at != start.at:  # the one at the position has moved or gone
                        start = None
                        for each in uncertain:
                            yield each
        if start is not None:
            for each in uncertain:
                yield each

    async def _batches(
        self, start: ListCursor | None
    ) -> AsyncIterator[list[tuple[Conversation, ListCursor, list[Message]]]]:
        """Yield the conversations after a position with their newest messages, several read at a time."""
        batch: list[tuple[Conversation, ListCursor, list[Message]]] = []
        async for conversation, its_position in self._conversations(start, page_size=100):
            batch.append((conversation, its_position, []))
            if len(batch) == CONCURRENCY:
                await self._read_newest(batch)
                yield batch
                batch = []
        await self._read_newest(batch)
        yield batch

    async def _read_newest(self, batch: list[tuple[Conversation, ListCursor, list[Message]]]) -> None:
        failures: list[AgentPhoneError] = []

        async def read(conversation: Conversation, messages: list[Message]) -> None:
            pager = self._connect().conversations.messages(conversation.id, limit=NEWEST)
            try:
                messages.extend([message async for message in pager])
            except NotFoundError:
                pass  # it has gone since it was listed
            except AgentPhoneError as error:
                failures.append(error)
                group.cancel_scope.cancel()

        async with anyio.create_task_group() as group:
            for conversation, _, messages in batch:
                group.start_soon(read, conversation, messages)
        if failures:  # raised here: the group would wrap it
            raise failures[0]

    async def _search_listed(
        self, search: "_Search", conversation_id: str, before: Cursor | None, newest: list[Message] | None = None
    ) -> Cursor | None:
        """Search a conversation like `_search_one`, unless it has gone since it was listed."""
        try:
            return await self._search_one(search, conversation_id, before, newest)
        except NotFoundError:
            return None

    async def _search_one(
        self, search: "_Search", conversation_id: str, before: Cursor | None, newest: list[Message] | None = None
    ) -> Cursor | None:
        """Search a conversation; return where it ended if it did not get to the end.

        Args:
            search: The search.
            conversation_id: The conversation's id.
            before: Where to begin; None for the newest message.
            newest: Its newest messages, if they were read already.
        """
        last = before
        for message in newest or ():
            if search.is_full:
                return last
            search.look_at(conversation_id, message)
            last = message.cursor
        if newest is not None and len(newest) < NEWEST:
            return None
        async for message in self._connect().conversations.messages(conversation_id, before=last):
            if search.is_full:
                return last
            search.look_at(conversation_id, message)
            last = message.cursor
        return None


class _Search:
    """A search, and what it has found."""

    def __init__(self, query: str, limit: int) -> None:
        self._query = query.casefold()
        self._limit = limit
        self._matches: list[Match] = []
        self._searched = 0
        self._size = 0

    @property
    def is_full(self) -> bool:
        """Return whether this call has done what one call does."""
        return len(self._matches) == self._limit or self._searched == MAX_SEARCHED or self._size > MAX_ANSWER

    def look_at(self, conversation_id: str, message: Message) -> None:
        """Look at a message."""
        self._searched += 1
        if self._query in (message.body or "").casefold():
            answer = MessageAnswer.of(message)
            self._matches.append(Match(conversation_id=conversation_id, message=answer))
            self._size += answer.size

    def result(self, next_cursor: str | None) -> Matches:
        """Return what was found."""
        return Matches(matches=self._matches, searched_messages=self._searched, next_cursor=next_cursor)


def _normalize(participant: str) -> str:
    """Return a number as its digits, with or without its plus sign; an e-mail address in lower case."""
    return participant.casefold() if "@" in participant else re.sub(r"[\s().+-]", "", participant)


def _page(messages: list[Message]) -> list[MessageAnswer]:
    """Return as many messages as fit into an answer, at least one."""
    page: list[MessageAnswer] = []
    size = 0
    for message in messages:
        answer = MessageAnswer.of(message)
        size += answer.size
        if page and size > MAX_ANSWER:
            break
        page.append(answer)
    return page
