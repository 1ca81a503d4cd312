"""A Python SDK for AgentPhone conversations, with an async and a blocking client.

    import agentphone

    with agentphone.Client() as client:  # the key comes from AGENTPHONE_API_KEY
        for conversation in client.conversations.list(limit=3):
            print(conversation.participant, conversation.last_message_preview)
            for message in client.conversations.messages(conversation.id, limit=10):
                print(message.received_at, message.direction, message.body)

Set `AGENTPHONE_BASE_URL=sandbox:` to try it without an account. The names to know:

- `AsyncClient`, `Client`: the same methods, for asyncio and trio, and for blocking code. `client.conversations` has
  `list`, `get`, `update`, `messages`, `follow`, `watch` and `state`.
- `Conversation`, `Message`, `Page`: what they return. `to_dict()` makes plain data of each.
- `Cursor`: the position of a message as one line of text, to store and to resume from.
- `AgentPhoneError`: the base of all errors, among them `APIStatusError` and `APIConnectionError`.
- `agentphone.webhooks.Webhook`: verifies deliveries of webhooks, and parses them into typed events.
- `agentphone.inbox.Inbox`: an agent that handles each text once, and answers it; `agentphone dev` runs it.
- `agentphone.sandbox.Sandbox`: a local AgentPhone to test against.
- `agentphone.agents.history`: a conversation as the messages that language models take.
- `agentphone.export.export`: writes a whole account to files.
"""

import importlib
import sys

from agentphone._version import __version__

__all__ = [
    "APIConnectionError",
    "APIStatusError",
    "APITimeoutError",
    "AgentPhoneError",
    "AsyncClient",
    "AsyncConversations",
    "AsyncMessages",
    "AsyncPager",
    "AsyncState",
    "AsyncStream",
    "Attempt",
    "AuthenticationError",
    "BadRequestError",
    "Client",
    "ClientClosedError",
    "ConfigurationError",
    "ConflictError",
    "Conversation",
    "ConversationDetail",
    "Conversations",
    "Cursor",
    "DeadlineExceededError",
    "Message",
    "Messages",
    "NewMessage",
    "NotFoundError",
    "Page",
    "Pager",
    "PaginationError",
    "Participant",
    "PermissionDeniedError",
    "RateLimitError",
    "Reaction",
    "ReplyTo",
    "ResponseDecodeError",
    "SendUnconfirmedError",
    "SentMessage",
    "SentReaction",
    "ServerError",
    "State",
    "StateDecodeError",
    "Stream",
    "UnprocessableEntityError",
    "WebhookVerificationError",
    "__version__",
]

TYPE_CHECKING = False
if TYPE_CHECKING:  # checkers would accept any name if they saw a `__getattr__`
    from agentphone import agents as agents
    from agentphone import errors as errors
    from agentphone import export as export
    from agentphone import inbox as inbox
    from agentphone import models as models
    from agentphone import sandbox as sandbox
    from agentphone import webhooks as webhooks
    from agentphone._client import AsyncClient
    from agentphone._conversations import AsyncConversations
    from agentphone._messages import AsyncMessages
    from agentphone._portal import Stream
    from agentphone._state_block import AsyncState
    from agentphone._streams import AsyncPager, AsyncStream
    from agentphone._sync import Client, Conversations, Messages, Pager, State
    from agentphone.errors import (
        AgentPhoneError,
        APIConnectionError,
        APIStatusError,
        APITimeoutError,
        Attempt,
        AuthenticationError,
        BadRequestError,
        ClientClosedError,
        ConfigurationError,
        ConflictError,
        DeadlineExceededError,
        NotFoundError,
        PaginationError,
        PermissionDeniedError,
        RateLimitError,
        ResponseDecodeError,
        SendUnconfirmedError,
        ServerError,
        StateDecodeError,
        UnprocessableEntityError,
        WebhookVerificationError,
    )
    from agentphone.models import (
        Conversation,
        ConversationDetail,
        Cursor,
        Message,
        NewMessage,
        Page,
        Participant,
        Reaction,
        ReplyTo,
        SentMessage,
        SentReaction,
    )
else:
    _MODULES = ("agents", "errors", "export", "inbox", "models", "sandbox", "webhooks")
    _NAMES = {
        "_client": "AsyncClient",
        "_conversations": "AsyncConversations",
        "_messages": "AsyncMessages",
        "_portal": "Stream",
        "_state_block": "AsyncState",
        "_streams": "AsyncPager AsyncStream",
        "_sync": "Client Conversations Messages Pager State",
        "errors": (
            "AgentPhoneError APIConnectionError APIStatusError APITimeoutError Attempt AuthenticationError "
            "BadRequestError ClientClosedError ConfigurationError ConflictError DeadlineExceededError "
            "NotFoundError PaginationError PermissionDeniedError RateLimitError ResponseDecodeError "
            "SendUnconfirmedError ServerError StateDecodeError UnprocessableEntityError "
            "WebhookVerificationError"
        ),
        "models": (
            "Conversation ConversationDetail Cursor Message NewMessage Page Participant Reaction ReplyTo "
            "SentMessage SentReaction"
        ),
    }
    _MODULE_OF = {name: module for module, names in _NAMES.items() for name in names.split()}

    def __getattr__(name):
        """Import a public name on first use: `import agentphone` alone loads neither httpx nor cattrs."""
        if name in _MODULES:
            return importlib.import_module(f"{__name__}.{name}")
        if name not in _MODULE_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name, obj=sys.modules[__name__])
        value = getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
        globals()[name] = value
        return value

    def __dir__():
        return sorted({*__all__, *_MODULES, *(name for name in globals() if name.startswith("__"))})
