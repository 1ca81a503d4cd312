"""The inbox: an agent in a few lines, each text handled once, on one machine or on many. Needs the extra `inbox`.

    from agentphone.inbox import Inbox
    from agentphone.webhooks import MessageEvent

    inbox = Inbox()

    @inbox.on_message
    async def answer(text: MessageEvent) -> str | None:
        return f"You wrote: {text.text}"

`agentphone dev bot:inbox` runs it with a local AgentPhone, `agentphone run bot:inbox` with your account. The work is
durable: DBOS keeps it in SQLite, or in PostgreSQL for several machines.
"""

try:
    import dbos as _dbos  # noqa: F401  # the engine, named here if it is missing
except ModuleNotFoundError as _error:
    raise ModuleNotFoundError(
        f"agentphone.inbox needs {_error.name}: in the project's folder, pip install '.[inbox]'", name=_error.name
    ) from None

from agentphone.inbox._handlers import Reply
from agentphone.inbox._inbox import Inbox

__all__ = ["Inbox", "Reply"]
