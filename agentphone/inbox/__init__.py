r'''The inbox: an agent in a few lines, each text handled once, on one machine or on many. Needs the extra `inbox`.

```python
# bot.py
from attrs import define

from agentphone.inbox import Inbox
from agentphone.webhooks import MessageEvent

inbox = Inbox()  # key, webhook secret and database from the environment


@define
class OrderState:
    order_id: str | None = None


@inbox.on_message
async def answer(text: MessageEvent, state: OrderState) -> str | None:
    for word in (text.text or "").split():
        if word.startswith("ORD-"):
            state.order_id = word.strip(".,!?")
    return f"{state.order_id} is on its way." if state.order_id else "Which order?"
```

`agentphone dev bot:inbox` runs it with a local AgentPhone and a phone in the browser, `agentphone run bot:inbox` with
your account: it polls, or with `--webhook 0.0.0.0:8000` serves the webhook on any path. The work is durable: DBOS keeps
it in SQLite, or in PostgreSQL for several machines.

**The handler** is `def` or `async def`, with or without the state, and returns a str, a `Reply` (media, effects) or
None. `@inbox.on_event(ReactionEvent)` registers one for other events.

**What is guaranteed.** A text is lost in no crash once it was stored, which the status 202 says. The handler runs again
only while it has not succeeded: after 1, 2, 4, ... seconds (60 at most) if it raises, `max_attempts=5` times. Later
texts of the same conversation wait meanwhile; those of others do not. Once it has returned, its state is stored and its
reply sent without running it again, each at most once. A reply whose outcome is unclear is looked up; if the history
does not tell, it is `unconfirmed`, and sent again only by `agentphone inbox retry ID`.

**While something is down.** While the API, the network or the key does not work, texts wait, however long: that is no
attempt. A reply that is answered with a 5xx may have been sent, so it is looked up for 10 seconds, and is `unconfirmed`
then. While nothing serves the webhook, AgentPhone repeats a delivery after 1, 2, 4, 8 and 16 seconds and drops it then,
after about 31; the text is in the history, but is not handled. Polling continues where it was stopped and misses none;
its very first start begins with the texts that arrive from then on. A process that is killed while it handles a text
handles it again, which is no attempt either; a text whose process has ended 50 times is `failed`.

**Settings** come from the environment: `AGENTPHONE_API_KEY`, `AGENTPHONE_WEBHOOK_SECRET` (several during a rotation,
separated by white space), and `AGENTPHONE_INBOX_DATABASE`: `sqlite:////srv/inbox.db` on one machine, `postgresql://...`
on several. PostgreSQL may be your project's, because the tables are in a schema of their own.

## In a web application

The inbox is a route that only receives: `inbox.asgi`, `inbox.wsgi` or `inbox.django`. Beside the web processes run
workers, `agentphone work bot:inbox --name worker-1`. A name belongs to one worker, which continues under it when it is
restarted; if it does not come back, the others take over what it has left.

Starlette (mounted, its URL ends with a slash):

```python
# starlette_inbox.py
from bot import inbox
from starlette.applications import Starlette
from starlette.routing import Route

app = Starlette(routes=[Route("/agentphone", inbox.asgi)])
```

FastAPI:

```python
# fastapi_inbox.py
from bot import inbox
from fastapi import FastAPI

app = FastAPI()
app.add_route("/agentphone", inbox.asgi)
```

Django:

```python
# django_inbox.py
# The settings of a Django project. Its web processes (gunicorn, also with --preload, or uvicorn) only receive; beside
# them, with the same environment, runs `agentphone work bot:inbox --name worker-1`. If the handler in bot.py uses
# models, bot.py begins with `import django; django.setup()`: so the settings must not import it.
import os

SECRET_KEY = os.environ["DJANGO_SECRET_KEY"]
ALLOWED_HOSTS = ["127.0.0.1"]
ROOT_URLCONF = "django_urls"
MIDDLEWARE = ["django.middleware.common.CommonMiddleware", "django.middleware.csrf.CsrfViewMiddleware"]

# The inbox has a database of its own: on one machine a file, AGENTPHONE_INBOX_DATABASE=sqlite:////srv/inbox.db; on
# several PostgreSQL, which may be the project's, as its tables are in a schema of their own.
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "project.db"}}
```

```python
# django_urls.py
from bot import inbox
from django.urls import path

urlpatterns = [path("agentphone", inbox.django)]
```

## With an agent framework

pydantic-ai:

```python
# pydantic_ai_inbox.py
import os

from attrs import define
from pydantic_ai import Agent, RunContext

from agentphone.inbox import Inbox
from agentphone.webhooks import MessageEvent

inbox = Inbox()


@define
class OrderState:
    order_id: str | None = None


model = os.environ.get("MODEL", "test")  # "test" is built into pydantic-ai and needs no network
agent = Agent(model, deps_type=OrderState, instructions="Answer the person's text in one sentence.")


@agent.tool
def remember_order(context: RunContext[OrderState], order_id: str) -> str:
    """Store the number of the order that the conversation is about."""
    context.deps.order_id = order_id
    return "remembered"


@inbox.on_message
async def answer(text: MessageEvent, state: OrderState) -> str:
    history = [f"{item.direction}: {item.content}" for item in text.recent_history]
    result = await agent.run("\n".join([*history, f"inbound: {text.text}"]), deps=state)
    return result.output
```

The OpenAI Agents SDK:

```python
# openai_agents_inbox.py
from agents import Agent, RunContextWrapper, Runner, function_tool
from attrs import define

from agentphone.inbox import Inbox
from agentphone.webhooks import MessageEvent

inbox = Inbox()


@define
class OrderState:
    order_id: str | None = None


@function_tool
def remember_order(context: RunContextWrapper[OrderState], order_id: str) -> str:
    """Store the number of the order that the conversation is about."""
    context.context.order_id = order_id
    return "remembered"


agent = Agent[OrderState](
    name="Orders", instructions="Answer the person's text in one sentence.", tools=[remember_order]
)


@inbox.on_message
async def answer(text: MessageEvent, state: OrderState) -> str:
    history = [f"{item.direction}: {item.content}" for item in text.recent_history]
    result = await Runner.run(agent, "\n".join([*history, f"inbound: {text.text}"]), context=state)
    return str(result.final_output)
```

## In a test

A handler stays a plain function, which a test can call. This test runs the whole inbox with a local AgentPhone:

```python
# test_inbox.py
import json
import threading
import time
from datetime import UTC, datetime

from bot import answer

from agentphone.inbox import Inbox
from agentphone.webhooks import MessageEvent, Webhook

NUMBERS = {"from_number": "+15555550110", "to_number": "+15555550100"}  # a person, and the agent


def test_text_is_answered(agentphone_sandbox, agentphone_client, tmp_path):
    inbox = Inbox(agentphone_client, webhook_secret="whsec_test", database=f"sqlite:///{tmp_path}/inbox.db")
    inbox.on_message(answer)
    sms = agentphone_sandbox.receive_sms(**NUMBERS, body="Where is ORD-5?")
    event = MessageEvent(
        type="agent.message",
        timestamp=datetime.now(UTC),
        conversation_id=sms["conversationId"],
        message_id=sms["id"],
        text=sms["body"],
        **NUMBERS,
    )
    body = json.dumps(event.to_dict()).encode()
    assert inbox.receive(body, Webhook("whsec_test").sign(body)) == 202

    worker = threading.Thread(target=inbox.work)
    worker.start()
    ends_at = time.monotonic() + 30
    while agentphone_client.conversations.get(sms["conversationId"]).message_count < 2 and time.monotonic() < ends_at:
        time.sleep(0.05)
    inbox.stop()
    worker.join()
    conversation = agentphone_client.conversations.get(sms["conversationId"])
    assert conversation.metadata == {"orderId": "ORD-5"}
    assert "ORD-5 is on its way." in [message.body for message in conversation.messages]
```

The log of `agentphone.inbox` has a line for each text, without its words. Of an exception it has the class, the first
line of the message and the place, at level debug also the traceback; `***` replaces the text, what is quoted of it, the
phone numbers and the key. With `opentelemetry-api` installed there are
spans for receiving, handler, state and reply, in the trace of the web request. `agentphone inbox list` shows what is
pending, failed or unconfirmed; `--failed --json` has the tracebacks.
'''

try:
    import dbos as _dbos  # noqa: F401  # the engine, named here if it is missing
except ModuleNotFoundError as _error:
    raise ModuleNotFoundError(
        f"agentphone.inbox needs {_error.name}: in the project's folder, pip install '.[inbox]'", name=_error.name
    ) from None

from agentphone.inbox._handlers import Reply
from agentphone.inbox._inbox import Inbox

__all__ = ["Inbox", "Reply"]
