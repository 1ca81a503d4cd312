"""Text a sandbox that runs in another process, over its HTTP API."""

import json

import httpx

TIMEOUT = 30.0


class TextingError(Exception):
    """The text was not sent; the error says why."""


def send_text(url: str, api_key: str, *, from_number: str, to_number: str, body: str) -> str:
    """Send a text as a person and return the message as one line of JSON.

    Args:
        url: The sandbox's URL.
        api_key: Its key.
        from_number: The person's number.
        to_number: The agent's number.
        body: The text.

    Raises:
        TextingError: The sandbox cannot be reached, or rejects the text.
    """
    message = {"direction": "inbound", "from": from_number, "to": to_number, "body": body}
    try:
        response = httpx.post(
            f"{url.rstrip('/')}/sandbox/messages",
            json=message,
            headers={"Authorization": f"Bearer {api_key}"},
            timeout=TIMEOUT,
            trust_env=False,
        )
    except (httpx.InvalidURL, httpx.UnsupportedProtocol, UnicodeError) as error:
        raise TextingError(f"url must be that of a sandbox, got {url!r}: {error}") from error
    except httpx.HTTPError as error:
        raise TextingError(f"no sandbox at {url}: {error}. Start one with: agentphone sandbox") from error
    if response.status_code != 201:
        raise TextingError(f"{url} answered {response.status_code}: {_reason(response)}")
    return json.dumps(response.json())


def _reason(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return "it is not an AgentPhone sandbox"
