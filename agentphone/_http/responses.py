"""Parse a response: return a model (by `_decoding`) or raise an error (by the status).

Pure: no I/O, no clock, no httpx.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, TypeVar

from attrs import frozen

from agentphone._decoding import decode
from agentphone._http.requests import LIST_PATH, RequestSpec
from agentphone._http.retry import parse_retry_after
from agentphone._json import DecodeError, parse_json
from agentphone._secret import Secret
from agentphone.errors import (
    MAX_ERROR_BODY,
    APIConnectionError,
    APIStatusError,
    AuthenticationError,
    BadRequestError,
    ConflictError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitError,
    ResponseDecodeError,
    ServerError,
    UnprocessableEntityError,
)

T = TypeVar("T")

ACCEPTED_ENCODINGS = "gzip"

_GZIP = 16 + zlib.MAX_WBITS


class BodyReader:
    """The body of a response as it arrives: decompressed, up to a maximum size.

    httpx can decompress too, but only whole chunks: a few kilobytes of zeros in gzip become gigabytes before anyone can
    check their size.
    """

    def __init__(self, encoding: str | None, max_bytes: int) -> None:
        self._encoding = (encoding or "identity").strip().lower()
        self._max_bytes = max_bytes
        self._bytes = bytearray()
        self._raw_preview = b""
        self._raw_length = 0
        self._decompressor = None if self._encoding == "identity" else zlib.decompressobj(_GZIP)
        self._error: DecodeError | None = None

    @property
    def preview(self) -> bytes:
        """The first bytes, for an error: as received where they could not be decompressed."""
        return bytes(self._bytes[:MAX_ERROR_BODY]) or self._raw_preview

    def feed(self, chunk: bytes) -> bool:
        """Add the next bytes as received; return whether to read more."""
        if self._error is None:
            try:
                self._feed(chunk)
            except DecodeError as error:
                self._error = error
        return self._error is None

    def _feed(self, chunk: bytes) -> None:
        self._raw_preview += chunk[: MAX_ERROR_BODY - len(self._raw_preview)]
        self._raw_length += len(chunk)
        if self._encoding not in ("identity", "gzip"):
            raise DecodeError(f"the body is compressed with {self._encoding!r}, which was not requested")
        if self._decompressor is not None:
            if self._decompressor.eof:
                raise self._encoding_error("more data after its end")
            try:
                chunk = self._decompressor.decompress(chunk, self._max_bytes - len(self._bytes) + 1)
            except zlib.error as error:
                raise self._encoding_error(str(error)) from None
            if self._decompressor.unused_data:
                raise self._encoding_error("more data after its end")
        self._bytes += chunk
        # Compressed data can be endless and decompress to nothing. Twice: compression can make short texts longer.
        if len(self._bytes) > self._max_bytes or self._raw_length > 2 * self._max_bytes + 1024:
            raise DecodeError(f"the body is larger than max_response_bytes={self._max_bytes}")

    def read(self) -> bytes:
        """Return the whole body.

        Raises:
            DecodeError: The body is too large, not compressed as its header says, or truncated.
        """
        if self._error is not None:
            raise self._error
        if self._decompressor is not None and not self._decompressor.eof:
            raise self._encoding_error("it ends too early")
        return bytes(self._bytes)

    def _encoding_error(self, reason: str) -> DecodeError:
        return DecodeError(f"the body is not {self._encoding}, as its Content-Encoding says ({reason})")


@frozen(repr=False)
class RawResponse:
    """A response as received. Its repr shows nothing: the server's text may repeat the key."""

    status: int
    headers: Mapping[str, str]
    """Looked up in lower case."""
    body: BodyReader


def parse_response(spec: RequestSpec[T], response: RawResponse, *, now: float, secret: Secret) -> T:
    """Parse a response.

    Args:
        spec: The request.
        response: The response to it.
        now: Unix seconds, for a `Retry-After` header that is a date.
        secret: The key, which no error may show even if the response repeats it.

    Returns:
        The model.

    Raises:
        APIStatusError: The status is not 2xx; raised even if the body cannot be read.
        ResponseDecodeError: The body is not JSON of the expected shape.
    """
    if not 200 <= response.status < 300:
        raise _status_error(spec, response, now, secret)
    try:
        return decode(response.body.read(), spec.response_type)
    except DecodeError as error:
        reason, path = secret.redact(error.reason), secret.redact(error.path)
    # Not inside the `except`: the error chained there holds the body unredacted, and would hide the exception that the
    # caller is handling.
    raise ResponseDecodeError(
        reason,
        request=str(spec),
        path=path,
        status_code=response.status,
        request_id=_header(response, "x-request-id", secret),
        body=_redact(response.body.preview, secret, is_truncated=True),
    )


def _redact(body: bytes, secret: Secret, *, is_truncated: bool = False) -> bytes:
    # Latin-1 maps every byte to one character and back.
    return secret.redact(body.decode("latin-1"), is_truncated=is_truncated).encode("latin-1")


def _header(response: RawResponse, name: str, secret: Secret) -> str | None:
    value = response.headers.get(name)
    return None if value is None else secret.redact(value)


_STATUS_ERRORS = {
    400: BadRequestError,
    401: AuthenticationError,
    403: PermissionDeniedError,
    404: NotFoundError,
    409: ConflictError,
    422: UnprocessableEntityError,
    429: RateLimitError,
}


def _status_error(spec: RequestSpec[Any], response: RawResponse, now: float, secret: Secret) -> APIStatusError:
    status, headers = response.status, response.headers
    cls = _STATUS_ERRORS.get(status, ServerError if 500 <= status < 600 else APIStatusError)
    try:
        received = response.body.read()
        # Parsed first: in the received JSON any character of the key may be escaped, and stars could break it.
        error_body, body = _parse_error_body(received, secret), _redact(received, secret)
        message = error_body.message or _reason_phrase(status, body)
    except DecodeError as error:
        body, error_body = _redact(response.body.preview, secret, is_truncated=True), ErrorBody()
        message = secret.redact(f"{_reason_phrase(status, body.strip() or b'?')}; {error.reason}")
    status_error = cls(
        message,
        request=str(spec),
        status_code=status,
        code=error_body.code,
        type=error_body.type,
        details=error_body.details,
        retry_after=parse_retry_after(headers.get("retry-after"), now, headers.get("date")),
        request_id=_header(response, "x-request-id", secret),
        location=_header(response, "location", secret),
        body=body,
    )
    if status == 402:
        status_error.advice = APIStatusError.advice_for_payment
    elif status == 407:
        status_error.advice = APIConnectionError.advice_for_proxies
    elif status == 404 and spec.path == LIST_PATH:
        status_error.advice = NotFoundError.advice_for_lists
    return status_error


def _reason_phrase(status: int, body: bytes) -> str:
    """Return the meaning of a status, for a body without a message."""
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = "an unknown status"
    if body.lstrip()[:1] == b"<":
        return f"{phrase} (an HTML page, so probably from a proxy and not from the API)"
    return phrase if body.strip() else f"{phrase} (with an empty body)"


@frozen
class ErrorBody:
    """The fields of an error's body, in any of its five forms."""

    message: str | None = None
    code: str | None = None
    type: str | None = None
    details: list[dict[str, Any]] | None = None


def _parse_error_body(body: bytes, secret: Secret) -> ErrorBody:
    """Parse the fields of an error's body and redact them."""
    fields = _error_fields(body)
    try:
        details = secret.redact_json(fields.details)
    except RecursionError:  # the JSON parser allows more levels
        details = None
    return ErrorBody(
        message=secret.redact_json(fields.message),
        code=secret.redact_json(fields.code),
        type=secret.redact_json(fields.type),
        details=details,
    )


def _error_fields(body: bytes) -> ErrorBody:
    """Parse the API's envelope, FastAPI's two forms of `detail`, a bare `message` or `error`; else return no fields."""
    try:
        raw = parse_json(body)
    except DecodeError:
        return ErrorBody()
    match raw:
        case {"error": {**envelope}}:
            return ErrorBody(
                message=_string(envelope.get("message")),
                code=_string(envelope.get("code")),
                type=_string(envelope.get("type")),
                details=_objects(envelope.get("details")),
            )
        case {"detail": [*items]}:
            details = [_fastapi_detail(item) for item in _objects(items)]
            messages = [_string(detail["message"]) for detail in details]
            return ErrorBody(message="; ".join(filter(None, messages)), details=details)
        case {"detail": str(message)} | {"message": str(message)} | {"error": str(message)}:
            return ErrorBody(message=message)
    return ErrorBody()


def _string(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _objects(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _fastapi_detail(item: dict[str, Any]) -> dict[str, Any]:
    """Convert FastAPI's `{loc, msg, type}` to the envelope's `{field, message, type}`."""
    location = item.get("loc")
    field = ".".join(map(str, location)) if isinstance(location, list) else None
    return {"field": field, "message": item.get("msg"), "type": item.get("type")}
