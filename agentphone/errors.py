"""Every exception that the SDK raises on purpose. Plain data: nothing here sends, parses or decides anything.

    AgentPhoneError
    ├── ConfigurationError           a setting, a file or a directory cannot be used; the text says which
    ├── ClientClosedError            the client was used after close, or closed during a call
    ├── APIConnectionError           no complete response: network, proxy, TLS, lost server
    │   └── APITimeoutError          ... within `timeout`, the seconds for one attempt
    │       └── DeadlineExceededError    ... within `deadline`, the seconds for the whole call
    ├── ResponseDecodeError          a response or webhook is not what the API promises
    │   └── StateDecodeError         ... or a stored state does not match its class
    ├── SendUnconfirmedError         a message may have been sent: look before you send it again
    ├── PaginationError              contradictory pages: continuing would loop or lose items
    ├── WebhookVerificationError     a webhook delivery is not from AgentPhone, or too old
    └── APIStatusError               the API returned an error status
        ├── BadRequestError 400          ├── NotFoundError 404
        ├── AuthenticationError 401      ├── ConflictError 409
        ├── PermissionDeniedError 403    ├── UnprocessableEntityError 422
        ├── RateLimitError 429           └── ServerError 5xx

A wrong argument is not among them: it raises `ValueError` or `TypeError` before anything is sent. All of these can be
pickled (Celery, multiprocessing), and none contains the API key.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, TypeVar

from attrs import frozen

E = TypeVar("E", bound=BaseException)

MAX_ERROR_BODY = 500
"""How many bytes of a response's body an error keeps."""


@frozen
class Attempt:
    """One attempt to send a request."""

    outcome: str
    """The status (`"503"`) or the name of the failure (`"ReadTimeout"`)."""
    elapsed: float
    """Seconds until the outcome, including the wait for a free connection."""
    delay: float
    """Seconds waited before the next attempt; 0.0 after the last."""


def _rebuild(cls: type[E], args: tuple[Any, ...]) -> E:
    """Create an exception without calling `__init__`: pickle does not keep its keyword arguments."""
    return cls.__new__(cls, *args)


def escape_control_characters(text: str, *, keep: str = "") -> str:
    """Escape control characters, so that server-supplied text cannot forge log lines or drive a terminal.

    Args:
        text: Any text.
        keep: Unprintable characters to leave as they are.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else ascii(c)[1:-1] for c in text)


class AgentPhoneError(Exception):
    """Base of every error that the SDK raises on purpose."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.args), dict(self.__dict__)


class ConfigurationError(AgentPhoneError, ValueError):
    """A setting, a file or an export directory cannot be used; the text says which. No retry helps.

    It is a `ValueError` too, like any other invalid argument.
    """


class ClientClosedError(AgentPhoneError):
    """The client was used after `aclose()` or `close()`, or closed during the call; the text says which.

    In the first case nothing was sent. Create a new client.
    """


class PaginationError(AgentPhoneError):
    """The pages contradict each other: continuing would loop forever or silently lose items."""


class WebhookVerificationError(AgentPhoneError):
    """A webhook delivery is not signed with a known secret, or is too old: do not act on it, respond with 400 or 401.

    The text says what to check. It contains neither the secret nor the expected signature.

    Attributes:
        is_mismatch: Whether the delivery is well-formed, and its signature or timestamp does not fit the secrets or the
            clock. Respond with 503 then, if the secret is being replaced: AgentPhone does not repeat a delivery that
            was answered with 4xx.
    """

    is_mismatch: bool = False


class _RequestError(AgentPhoneError):
    """Base of the errors of one request."""

    advice = ""
    """The cause, whether to retry, and what to do next: one sentence, the same for every error of the class."""

    request: str
    """The method and the path with its query: `"GET /v1/conversations?limit=20&offset=0"`."""
    attempts: tuple[Attempt, ...]
    """Every attempt, in order; empty if the request was not sent."""

    def __init__(self, reason: str, *, request: str, attempts: tuple[Attempt, ...] = ()) -> None:
        super().__init__(reason)
        self.request = request
        self.attempts = attempts

    def __str__(self) -> str:
        count = f" (after {len(self.attempts)} attempts)" if len(self.attempts) > 1 else ""
        return escape_control_characters(f"{self.request}: {self.args[0]}{count}. {self.advice}".rstrip())


class APIConnectionError(_RequestError):
    """No complete response arrived: the network, a proxy or TLS failed, or the server closed the connection.

    Attributes:
        is_unsent: True if nothing of the last attempt's request was sent: no connection could be made, or the time ran
            out before it was written. Otherwise the API may have received and carried it out.
        is_permanent: True if every retry fails until a setting is changed: a certificate that is not trusted, or a
            proxy that rejects the connection.
    """

    advice: str = (
        "The API did not respond; this is usually temporary: try again, and check the network and the base URL."
    )
    advice_for_certificates = (
        "This is not temporary: the certificate is not trusted, not valid now, or not for this host, and nothing was"
        " sent. Check the base URL and this machine's clock; if the authority is your own or your company's, set"
        " SSL_CERT_FILE to its certificate or pass an `ssl_context` to the client."
    )
    advice_for_proxies = (
        "This is not temporary: the proxy rejects the connection. Put its user name and password into its URL"
        " (HTTPS_PROXY=http://user:password@host:port), or exclude the API's host with NO_PROXY."
    )

    def __init__(
        self,
        reason: str,
        *,
        request: str,
        attempts: tuple[Attempt, ...] = (),
        is_unsent: bool = False,
        permanent_advice: str | None = None,
    ) -> None:
        super().__init__(reason, request=request, attempts=attempts)
        self.is_unsent = is_unsent
        self.is_permanent: bool = permanent_advice is not None
        if permanent_advice is not None:
            self.advice = permanent_advice


class APITimeoutError(APIConnectionError):
    """No complete response arrived within `timeout`, the seconds for one attempt."""

    advice = "The API was too slow; try again, or raise the client's `timeout` (seconds for one attempt)."


class DeadlineExceededError(APITimeoutError):
    """The time for the whole call, `deadline`, ran out during an attempt."""

    advice = "Try again later, or raise the client's `deadline` (seconds for a call with its retries)."


class SendUnconfirmedError(_RequestError):
    """A message or reaction may have been sent, or not: the outcome is unclear. It was not sent again.

    After the request was written, the connection was lost, `timeout` or `deadline` ended, or the client was closed. Or
    the response was a 408, a 409 with the code `DELIVERY_UNCONFIRMED`, a 5xx, or a success that cannot be read. The
    underlying error is the `__cause__`.

    Attributes:
        since: When the first attempt began, by the server's clock where it is known: if the message was sent, the
            conversation's history has it no earlier than this (less the difference of the clocks).
        status_code: The HTTP status of the response; None if there was none.
    """

    advice: str = (
        "It may have been sent, so it was not sent again. Look for it in the conversation's newest messages before you"
        " send it again."
    )

    def __init__(
        self,
        reason: str,
        *,
        request: str,
        since: datetime,
        status_code: int | None = None,
        attempts: tuple[Attempt, ...] = (),
    ) -> None:
        super().__init__(reason, request=request, attempts=attempts)
        self.since = since
        self.status_code = status_code


class ResponseDecodeError(_RequestError):
    """A response or a webhook is not what the API promises: not JSON, a missing field, a wrong type.

    Attributes:
        path: The place in the body, in the API's names (`data[3].lastMessageAt`); empty for the whole body.
        status_code: The HTTP status of the response; None for a webhook.
        request_id: The response's `X-Request-ID`, or None.
        body: The first 500 bytes of the body.
    """

    advice: str = (
        "The response is at fault, not the request; it may come from a proxy instead of the API, or the API changed."
    )
    advice_for_webhooks: str = (
        "The signature is valid, so AgentPhone sent this, and its payloads may have changed; the same delivery fails"
        " each time: keep what you need of it, and respond with 200 to stop its redelivery."
    )

    def __init__(
        self,
        reason: str,
        *,
        request: str,
        path: str = "",
        status_code: int | None,
        request_id: str | None = None,
        body: bytes = b"",
        attempts: tuple[Attempt, ...] = (),
    ) -> None:
        super().__init__(reason, request=request, attempts=attempts)
        self.path = path
        self.status_code = status_code
        self.request_id = request_id
        self.body: bytes = body[:MAX_ERROR_BODY]
        if status_code is None:
            self.advice = self.advice_for_webhooks

    def __str__(self) -> str:
        where = f"{self.path}: " if self.path else ""
        facts = [
            f"status {self.status_code}" if self.status_code is not None else "",
            f"request id {self.request_id}" if self.request_id else "",
        ]
        known = ", ".join(filter(None, facts))
        text = f"{self.request}: {where}{self.args[0]}" + (f" ({known})" if known else "")
        preview = f" The body begins {self.body!r}." if self.body else ""
        return escape_control_characters(f"{text}.{preview} {self.advice}")


class StateDecodeError(ResponseDecodeError):
    """A stored state does not match the class that it is read as, at `path`. Nothing was written.

    `status_code` is None and `body` is empty: the state is wrong, not the response that contained it.
    """

    advice = advice_for_webhooks = (
        "The stored state does not match the class, and nothing was written: fix it with `update`, or let the class"
        " accept both (a default for what may be missing, `| None` for what may be null)."
    )


class APIStatusError(_RequestError):
    """The API returned a status other than 2xx. The common ones have subclasses.

    Attributes:
        status_code: The HTTP status.
        message: The API's message, or the standard phrase of the status if there is none.
        code: The API's error code (`"VALIDATION_ERROR"`, an open set), or None.
        type: The API's error type, or None.
        details: One dict per invalid field, with the keys `field`, `message` and `type` where the API has them.
        retry_after: Seconds until a retry is welcome (`Retry-After`), or None.
        request_id: The response's `X-Request-ID` (quote it to AgentPhone's support), or None.
        location: The target of a redirect (3xx), or None. Redirects are not followed.
        body: The first 500 bytes of the response.
    """

    advice: str = "The SDK does not know this status; see the message."
    advice_for_payment = "The account's balance or plan does not allow it; a retry cannot help until that has changed."

    def __init__(
        self,
        message: str,
        *,
        request: str,
        status_code: int,
        code: str | None = None,
        type: str | None = None,  # noqa: A002  # the API's name for it, as in `error.type`
        details: list[dict[str, Any]] | None = None,
        retry_after: float | None = None,
        request_id: str | None = None,
        location: str | None = None,
        body: bytes = b"",
        attempts: tuple[Attempt, ...] = (),
    ) -> None:
        super().__init__(message, request=request, attempts=attempts)
        self.message = message
        self.status_code = status_code
        self.code = code
        self.type = type
        self.details: list[dict[str, Any]] = details or []
        self.retry_after = retry_after
        self.request_id = request_id
        self.location = location
        self.body: bytes = body[:MAX_ERROR_BODY]

    def __str__(self) -> str:
        facts = [
            f"code {self.code}" if self.code else "",
            f"request id {self.request_id}" if self.request_id else "",
            f"retry after {self.retry_after:g} s" if self.retry_after is not None else "",
            f"after {len(self.attempts)} attempts" if len(self.attempts) > 1 else "",
        ]
        known = ", ".join(filter(None, facts))
        details = "; ".join(
            f"{detail.get('field') or 'request'}: {detail.get('message') or detail.get('type') or '?'}"
            for detail in self.details
        )
        text = f"{self.request}: {self.status_code} {self.message.rstrip('.')}"
        text += f" [{details}]" if details else ""
        text += f" ({known})" if known else ""
        text += f". It redirects to {self.location}" if self.location else ""
        return escape_control_characters(f"{text}. {self.advice}")


class BadRequestError(APIStatusError):
    """400: the API could not parse the request."""

    advice = "The request is at fault; sending it again cannot help."


class AuthenticationError(APIStatusError):
    """401: the API key is missing or wrong."""

    advice = "Check the API key (`api_key=` or AGENTPHONE_API_KEY) and that it belongs to this base URL."


class PermissionDeniedError(APIStatusError):
    """403: the API key is valid but has no permission for this."""

    advice = "This API key has no permission for that; a retry cannot help."


class NotFoundError(APIStatusError):
    """404: it does not exist, or this API key has no access to it."""

    advice: str = (
        "The id is wrong, or belongs to a project that this API key cannot access, or the base URL is wrong (it stops"
        " before /v1); a retry cannot help."
    )
    advice_for_lists = (
        "There is no such list at this base URL, so it is probably wrong: check `base_url` and"
        " AGENTPHONE_BASE_URL (it stops before /v1); a retry cannot help."
    )


class ConflictError(APIStatusError):
    """409: the request conflicts with the current state."""

    advice = "Read the current state, then decide again."


class UnprocessableEntityError(APIStatusError):
    """422: the API parsed the request but rejects a value in it."""

    advice = "A value in the request is at fault; sending it again cannot help."


class RateLimitError(APIStatusError):
    """429: too many requests; `retry_after` is the time to wait, in seconds."""

    advice = "Slow down: wait `retry_after` seconds, or share one client, whose limits then apply to all callers."


class ServerError(APIStatusError):
    """5xx: the API, or a proxy before it, failed."""

    advice = "The API is at fault, usually for a short time; try again later."
