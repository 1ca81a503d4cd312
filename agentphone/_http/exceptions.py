"""Map exceptions of httpx and of the system to the SDK's errors.

It redacts their texts and drops their frames; no I/O.
"""

from __future__ import annotations

import re
import ssl
import traceback
from collections.abc import Iterator
from types import FrameType

import httpx

from agentphone._http.retry import RETRIED_STATUSES
from agentphone._secret import Secret
from agentphone.errors import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    ClientClosedError,
    ResponseDecodeError,
)

CallError = APIConnectionError | APIStatusError | ResponseDecodeError
"""The errors of one call, which list its attempts."""
CALL_ERRORS = (APIConnectionError, APIStatusError, ResponseDecodeError)

_UNSENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError, httpx.UnsupportedProtocol)
"""What httpx raises before it has written anything of a request."""

# asyncio keeps the error of a write with the frame that has the bytes, and raises it later from elsewhere.
_NETWORK_PACKAGES = {"agentphone", "anyio", "asyncio", "h11", "httpcore", "httpx", "socket", "socksio", "ssl", "trio"}


NETWORK_ERRORS = (httpx.RequestError, OSError)
"""What fails between here and the API. Not all of it is httpx's: under asyncio a broken TLS record comes through
httpcore as a bare `SSLError`, which is an `OSError` as `TimeoutError` is."""


def map_exception(
    error: Exception,
    request: str,
    secret: Secret,
    handled: BaseException | None,
    *,
    sending: httpx.Request | None = None,
) -> APIConnectionError:
    """Return the SDK's error for a failure between here and the API.

    Args:
        error: One of `NETWORK_ERRORS`.
        request: The method and target, for the error.
        secret: The key, which the error must not show.
        handled: The exception that was being handled when the call began (`sys.exception()`).
        sending: The request, while no response to it has begun; None afterwards.
    """
    is_unsent = _is_unsent(error, sending)
    reason = _describe(error, handled, secret)
    if isinstance(error, httpx.TimeoutException | TimeoutError):
        return APITimeoutError(reason, request=request, is_unsent=is_unsent)
    advice = _permanent_advice(error, handled)
    return APIConnectionError(reason, request=request, is_unsent=is_unsent, permanent_advice=advice)


def _is_unsent(error: Exception, sending: httpx.Request | None) -> bool:
    """Return whether nothing of the request was written.

    The error may be that of another request: after this one was sent, a hook of an `http_client` or a transport of the
    user's may have failed to reach a server of its own.
    """
    if sending is None or not isinstance(error, _UNSENT):
        return False
    try:
        failed = error.request
    except RuntimeError:  # httpx has not set it
        return True
    return (failed.method, failed.url) == (sending.method, sending.url)


def outcome_of(error: CallError | ClientClosedError) -> str:
    """Return the outcome of a failed attempt as one word: the status, or the name of the underlying exception."""
    if isinstance(error, APIStatusError):
        return str(error.status_code)
    return type(error.__cause__ or error).__name__


def _chain(error: BaseException, handled: BaseException | None) -> Iterator[BaseException]:
    """Yield an exception, then its causes.

    Args:
        error: The exception.
        handled: The exception that the caller was handling when the call began. Python chains it to whatever is raised
            inside the call, but it belongs to the caller: stop there.
    """
    seen: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause is not handled and cause not in seen:
        yield cause
        seen.append(cause)
        cause = cause.__cause__ or cause.__context__


def _permanent_advice(error: Exception, handled: BaseException | None) -> str | None:
    """Return what to do about a failure that no retry can clear; None where a retry may succeed."""
    # Through a proxy on trio, the certificate's error is several causes below an error without a text.
    if any(isinstance(cause, ssl.SSLCertVerificationError) for cause in _chain(error, handled)):
        return APIConnectionError.advice_for_certificates
    # httpx has a proxy's status only in the text, and a SOCKS proxy's rejected password only in words.
    status = re.match(r"4\d\d(?= )|Invalid username", str(error)) if isinstance(error, httpx.ProxyError) else None
    if status is None or (status[0].isdigit() and int(status[0]) in RETRIED_STATUSES):
        return None
    return APIConnectionError.advice_for_proxies


def _describe(error: BaseException, handled: BaseException | None, secret: Secret) -> str:
    """Return the name and first text of an exception and its causes; redact their texts and drop their frames.

    httpx leaves many texts empty, and so do the libraries below it; the first text may be the system's own. The texts
    may quote the server. The frames hold the headers with the key as plain lists, which tools that print the locals of
    a traceback would show. An exception from before the call, which a transport of the user chains, keeps its frames
    unless they are those of a library that holds such lists.

    Args:
        error: The exception.
        handled: The exception that the caller was handling when the call began; it is not touched.
        secret: The key.
    """
    text, name = "", type(error).__name__
    frames_of_call: set[FrameType] = set()
    for cause in _chain(error, handled):
        cause.args = tuple(secret.redact(arg) if isinstance(arg, str) else arg for arg in cause.args)
        text = text or secret.redact(str(cause))
        # A cause that was caught inside the call was raised below one of the frames that the error passed.
        frames = set(_frames(cause))
        if cause is error or frames & frames_of_call or not _NETWORK_PACKAGES.isdisjoint(map(_package, frames)):
            cause.__traceback__ = None
            frames_of_call |= frames
    return f"{name}: {text.rstrip('.')}" if text else name


def _frames(error: BaseException) -> Iterator[FrameType]:
    return (frame for frame, _ in traceback.walk_tb(error.__traceback__))


def _package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__")).partition(".")[0]
