"""A Python SDK for AgentPhone conversations, with an async and a blocking client.

Start with `AsyncClient` for asyncio and trio, or with `Client`, which has the same methods for blocking code.
"""

from agentphone._client import AsyncClient
from agentphone._conversations import AsyncConversations
from agentphone._messages import AsyncMessages
from agentphone._portal import Stream
from agentphone._state_block import AsyncState
from agentphone._streams import AsyncPager, AsyncStream
from agentphone._sync import Client, Conversations, Messages, Pager, State
from agentphone._version import __version__
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
    SentMessage,
    SentReaction,
)

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
    "PermissionDeniedError",
    "RateLimitError",
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
