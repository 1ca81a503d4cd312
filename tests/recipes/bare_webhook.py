# bare_webhook.py
import fcntl
import os
from pathlib import Path
from urllib.parse import quote

from agentphone import Client, WebhookVerificationError
from agentphone.webhooks import MessageEvent, SQLiteDeliveryLog, Webhook

client = Client()
webhook = Webhook(os.environ["AGENTPHONE_WEBHOOK_SECRET"])
deliveries = SQLiteDeliveryLog("deliveries.db")


def think(event: MessageEvent, state: dict) -> None:
    """Do the agent's work. If it raises, nothing is stored, and AgentPhone sends the webhook again."""
    state["texts"] = state.get("texts", 0) + 1


def application(environ, start_response):
    status = "202 Accepted"
    try:
        event = webhook.parse(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])), environ)
        if isinstance(event, MessageEvent) and event.direction != "outbound" and event.delivery_id:
            # One text of a conversation at a time, over all processes; the lock ends with its process.
            with Path(quote(event.conversation_id, safe="") + ".lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not deliveries.seen(event.delivery_id):
                    with client.conversations.state(event.conversation_id) as state:
                        think(event, state)
                    deliveries.mark(event.delivery_id)
    except WebhookVerificationError as error:
        status = "503 Service Unavailable" if error.is_mismatch else "400 Bad Request"
    start_response(status, [])
    return [b""]
