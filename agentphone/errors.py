"""Every exception that the SDK raises on purpose. Plain data: nothing here sends, parses or decides.

    AgentPhoneError
    ├── ConfigurationError           the client was set up wrongly; nothing was sent
    ├── ClientClosedError            the client was used after close, or closed during the call
    ├── APIConnectionError           no whole answer came: network, proxy, TLS, server gone
    │   └── APITimeoutError          ... within `timeout`, the seconds for one attempt
    │       └── DeadlineExceededError    ... within `deadline`, the seconds for the whole call
    ├── ResponseDecodeError          an answer or a webhook came and is not what the API promises
    │   └── StateDecodeError         ... or a stored state does not fit the class that it is read as
    ├── PaginationError              the pages contradict each other; going on would loop or lose items
    ├── WebhookVerificationError     a webhook delivery is not from AgentPhone, or too old
    └── APIStatusError               the API said no
        ├── BadRequestError 400          ├── NotFoundError 404
        ├── AuthenticationError 401      ├── ConflictError 409
        ├── PermissionDeniedError 403    ├── UnprocessableEntityError 422
        ├── RateLimitError 429           └── ServerError 5xx

A wrong argument is not among them: that is a `ValueError` or a `TypeError`, raised before anything is sent. All of
them can be pickled (Celery, multiprocessing), and none holds the API key.
"""

from __future__ import annotations

from typing import Any, TypeVar

from attrs import frozen

E = TypeVar("E", bound=BaseException)


@frozen
class Attempt:
    """What happened at one attempt to send a request."""

    outcome: str
    """The status (`"503"`) or the name of the failure (`"ReadTimeout"`)."""
    elapsed: float
    """Seconds until the outcome, waiting for a free connection included."""
    delay: float
    """Seconds waited afterwards, before the next attempt; 0.0 after the last."""


def _rebuild(cls: type[E], args: tuple[Any, ...]) -> E:
    """Make an exception without its `__init__`, whose keyword arguments pickle does not know."""
    return cls.__new__(cls, *args)


def _one_line(text: str) -> str:
    """Escape what could forge a line of a log or steer a terminal: the texts of servers end in both."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class AgentPhoneError(Exception):
    """Base of every error that the SDK raises on purpose."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.args), dict(self.__dict__)


class ConfigurationError(AgentPhoneError, ValueError):
    """The client or the webhook was set up wrongly, which the text names. Nothing was sent; a retry cannot help.

    It is a `ValueError` too, as every other wrong value given by the caller.
    """


class ClientClosedError(AgentPhoneError):
    """The client was used after `aclose()` or `close()`, or closed in the middle of the call, which the text says.

    Nothing was sent in the first case. Make a new client.
    """


class PaginationError(AgentPhoneError):
    """The pages contradict each other, so that going on would loop for ever or lose items unnoticed."""


class WebhookVerificationError(AgentPhoneError):
    """A webhook delivery is not signed by a known secret, or not of now: do not act on it, answer with 400 or 401.

    The text says what to check. It holds neither the secret nor the signature that would have been right.
    """


class _RequestError(AgentPhoneError):
    """Base of the errors that belong to one request."""

    advice = ""
    """Whose fault it is, whether to retry, what to do next: one sentence, the same for every error of the class."""

    request: str
    """The method and the path with its query: `"GET /v1/conversations?limit=20&offset=0"`."""
    attempts: tuple[Attempt, ...]
    """What happened at each attempt, in order; empty when it was not sent."""

    def __init__(self, what: str, *, request: str, attempts: tuple[Attempt, ...] = ()) -> None:
        super().__init__(what)
        self.request = request
        self.attempts = attempts

    def __str__(self) -> str:
        tries = f" (after {len(self.attempts)} attempts)" if len(self.attempts) > 1 else ""
        return _one_line(" ".join(filter(None, (f"{self.request}: {self.args[0]}{tries}.", self.advice))))


class APIConnectionError(_RequestError):
    """No whole answer came: the network, a proxy, TLS or a server that went away.

    The call may or may not have reached the API. Every call of this SDK can be repeated without harm.

    Attributes:
        is_permanent: Whether every further attempt fails, too, until a setting is changed: a certificate that is not
            trusted, or a proxy that refuses to connect.
    """

    advice: str = (
        "The API did not answer; this is usually temporary: try again, and check the network and the base URL."
    )
    advice_for_certificates = (
        "This is not temporary: the certificate is not trusted, not valid now, or not of this host, and nothing was"
        " sent. Check the base URL and this machine's clock; if the authority is your own or your company's, name its"
        " certificate in SSL_CERT_FILE or give the client an `ssl_context`."
    )
    advice_for_proxies = (
        "This is not temporary: the proxy refuses to connect. Give its user name and password in its URL"
        " (HTTPS_PROXY=http://user:password@host:port), or except the API's host with NO_PROXY."
    )

    def __init__(
        self, what: str, *, request: str, attempts: tuple[Attempt, ...] = (), permanent_advice: str | None = None
    ) -> None:
        super().__init__(what, request=request, attempts=attempts)
        self.is_permanent: bool = permanent_advice is not None
        if permanent_advice is not None:
            self.advice = permanent_advice


class APITimeoutError(APIConnectionError):
    """No whole answer came within `timeout`, the seconds for one attempt."""

    advice = "The API was too slow; try again, or give the client a larger `timeout` (seconds for one attempt)."


class DeadlineExceededError(APITimeoutError):
    """The time for the whole call, `deadline`, ran out in the middle of an attempt."""

    advice = "Try again later, or give the client a larger `deadline` (seconds for a call with its retries)."


class ResponseDecodeError(_RequestError):
    """An answer or a webhook came and is not what the API promises: not JSON, a missing field, a wrong type.

    Attributes:
        path: Where in the body, in the API's own names (`data[3].lastMessageAt`); empty for the body as a whole.
        status_code: The HTTP status of the answer; None for a webhook.
        request_id: The answer's `X-Request-ID`, or None.
        body: The first 500 bytes of the body.
    """

    advice: str = (
        "The answer is at fault, not the call; a proxy may have answered in the API's place, or the API changed."
    )
    advice_for_webhooks: str = (
        "The signature is good, so AgentPhone sent this, and its payloads may have changed; the same delivery fails"
        " again each time: keep what you need of it, and answer with 200 to get no more of it."
    )

    def __init__(
        self,
        what: str,
        *,
        request: str,
        path: str = "",
        status_code: int | None,
        request_id: str | None = None,
        body: bytes = b"",
        attempts: tuple[Attempt, ...] = (),
    ) -> None:
        super().__init__(what, request=request, attempts=attempts)
        self.path = path
        self.status_code = status_code
        self.request_id = request_id
        self.body: bytes = body[:500]
        if status_code is None:
            self.advice = self.advice_for_webhooks

    def __str__(self) -> str:
        where = f"{self.path}: " if self.path else ""
        facts = [
            f"status {self.status_code}" if self.status_code is not None else "",
            f"request id {self.request_id}" if self.request_id else "",
        ]
        told = ", ".join(filter(None, facts))
        what = f"{where}{self.args[0]}" + (f" ({told})" if told else "")
        begins = f" The body begins {self.body!r}." if self.body else ""
        return _one_line(f"{self.request}: {what}.{begins} {self.advice}")


class StateDecodeError(ResponseDecodeError):
    """A stored state does not fit the class that it is read as, at `path`. Nothing was written.

    `status_code` is None, and `body` empty: what is wrong is the state, not the answer that brought it.
    """

    advice = advice_for_webhooks = (
        "The state is stored in another shape than the class has, and nothing was written: mend it with `update`, or"
        " let the class take both (a default for what may be missing, `| None` for what may be null)."
    )


class APIStatusError(_RequestError):
    """The API answered with a status that is not a success. The classes below name the common ones.

    Attributes:
        status_code: The HTTP status.
        message: What the API says, or the status's own phrase where it says nothing.
        code: The API's error code (`"VALIDATION_ERROR"`, an open set), or None.
        type: The API's error type, or None.
        details: One dict for each complaint, with the keys `field`, `message` and `type` where the API names them.
        retry_after: Seconds after which the API wants to be asked again, or None.
        request_id: The answer's `X-Request-ID` (name it to AgentPhone's support), or None.
        location: Where a redirect (3xx) points, or None. Redirects are not followed.
        body: The first 500 bytes of the answer.
    """

    advice: str = "The SDK does not know this status; see the message."

    def __init__(
        self,
        message: str,
        *,
        request: str,
        status_code: int,
        code: str | None = None,
        type: str | None = None,  # noqa: A002  # the API's own name for it, as a caller reads it: error.type
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
        self.body: bytes = body[:500]

    def __str__(self) -> str:
        facts = [
            f"code {self.code}" if self.code else "",
            f"request id {self.request_id}" if self.request_id else "",
            f"retry after {self.retry_after:g} s" if self.retry_after is not None else "",
            f"after {len(self.attempts)} attempts" if len(self.attempts) > 1 else "",
        ]
        told = ", ".join(filter(None, facts))
        complaints = "; ".join(
            f"{detail.get('field') or 'request'}: {detail.get('message') or detail.get('type') or '?'}"
            for detail in self.details
        )
        text = f"{self.request}: {self.status_code} {self.message.rstrip('.')}"
        text += f" [{complaints}]" if complaints else ""
        text += f" ({told})" if told else ""
        text += f". It points to {self.location}" if self.location else ""
        return _one_line(f"{text}. {self.advice}")


class BadRequestError(APIStatusError):
    """400: the API could not read the request."""

    advice = "The request is at fault; sending it again cannot help."


class AuthenticationError(APIStatusError):
    """401: the API key is missing or wrong."""

    advice = "Check the API key (`api_key=` or AGENTPHONE_API_KEY) and that it belongs to this base URL."


class PermissionDeniedError(APIStatusError):
    """403: the API key is known and may not do this."""

    advice = "This API key may not do that; a retry cannot help."


class NotFoundError(APIStatusError):
    """404: no such thing, or this API key has no access to it."""

    advice: str = (
        "The id is wrong, or belongs to a project that this API key cannot see, or the base URL leads elsewhere (it"
        " stops before /v1); a retry cannot help."
    )
    advice_for_lists = (
        "There is no such list at this base URL, so it probably leads elsewhere: check `base_url` and"
        " AGENTPHONE_BASE_URL (it stops before /v1); a retry cannot help."
    )


class ConflictError(APIStatusError):
    """409: the request contradicts the present state."""

    advice = "Read the present state, then decide again."


class UnprocessableEntityError(APIStatusError):
    """422: the API read the request and refuses a value in it."""

    advice = "A value in the request is at fault; sending it again cannot help."


class RateLimitError(APIStatusError):
    """429: too many requests; `retry_after` says for how long, in seconds."""

    advice = "Slow down: wait `retry_after` seconds, or share one client, whose limits then hold for all callers."


class ServerError(APIStatusError):
    """5xx: the API or a proxy before it failed."""

    advice = "The API is at fault, usually for a short time; try again later."
